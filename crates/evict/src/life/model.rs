//! What a life table says of the future.

use super::ages::{BUCKETS, first_age, log_length};
use super::census::{Census, Table};
use super::class::{CLASSES, KINDS, SIZES, inner, kind, size, uses};

/// Rounds of proportional fitting. The factors are settled to a few percent after two or three.
const ROUNDS: usize = 2;
/// How many times more the model weighs than the counts of a class and age themselves.
const WEIGHT: f64 = 32.0;
/// How many times more a factor's absence weighs than what was counted for it.
const PRIOR: f64 = 4.0;

/// The index of each class at each age: the best ratio, over all times to wait, of the chance to be used again to the
/// time that the space is taken for it, per generation. It is Gittins' index of a job that ends when it is used.
///
/// Counts of one class at one age are few, so they are drawn to a model, and the model to a weaker one:
/// first, that what returns at a rate `r` when unused for `t` generations returns at `r / 2` after `2 t`, at any scale;
/// then, a rate per age that all classes share;
/// then, a factor for the kind of an entry, one for where in its request it was, and one for the length of that.
/// How hard is measured: chunks of a request return together, so `chunks / requests` returns count as one.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) index: Table,
    kinds: [f64; KINDS],
    inner: [f64; 2],
    sizes: [f64; SIZES],
}

impl Default for Model {
    /// Before anything is known: the older, the less. Classes are alike, so it is LRU by generations.
    fn default() -> Self {
        let by_age = std::array::from_fn(|at| 1.0 / middle(at));
        Self { index: [by_age; CLASSES], kinds: [1.0; KINDS], inner: [1.0; 2], sizes: [1.0; SIZES] }
    }
}

/// An age in the middle of a bucket.
fn middle(bucket: usize) -> f64 {
    let first = f64::from(first_age(bucket));
    if bucket < 4 { first + 0.5 } else { first * 1.2 }
}

impl Model {
    /// Learns from what was counted.
    pub(super) fn fit(&mut self, census: &Census) {
        let one = (census.chunks / census.requests.max(1.0)).max(1.0);
        let shared = shared_rates(census, one);
        let sum = |table: &Table, weight: &dyn Fn(usize) -> f64, class: usize| -> f64 {
            table[class].iter().enumerate().map(|(at, count)| count * weight(at)).sum()
        };
        let returns: [f64; CLASSES] = std::array::from_fn(|class| sum(&census.returns, &|_| 1.0, class));
        let expected: [f64; CLASSES] =
            std::array::from_fn(|class| sum(&census.risk, &|at| shared[at], class));
        let prior = one * PRIOR;
        for _ in 0..ROUNDS {
            // A kind nothing is known of is taken to return the more, the more often it was used.
            let start = std::array::from_fn(|kind| (prior * uses(kind) as f64, prior));
            let others = |class| self.inner[inner(class)] * self.sizes[size(class)];
            self.kinds = proportions(start, kind, &returns, &expected, others);
            let others = |class| self.kinds[kind(class)] * self.sizes[size(class)];
            self.inner = proportions([(prior, prior); 2], inner, &returns, &expected, others);
            let others = |class| self.kinds[kind(class)] * self.inner[inner(class)];
            self.sizes = proportions([(prior, prior); SIZES], size, &returns, &expected, others);
        }
        let drawn = one * WEIGHT;
        for class in 0..CLASSES {
            let factor = self.kinds[kind(class)] * self.inner[inner(class)] * self.sizes[size(class)];
            let rates = std::array::from_fn(|at| {
                (census.returns[class][at] + drawn) / (census.risk[class][at] + drawn / (shared[at] * factor))
            });
            self.index[class] = indices(&rates);
        }
    }
}

/// The factor of each group of classes: what returned in it over what was due without the factor, from a start.
fn proportions<const N: usize>(
    start: [(f64, f64); N],
    group: impl Fn(usize) -> usize,
    returns: &[f64; CLASSES],
    expected: &[f64; CLASSES],
    others: impl Fn(usize) -> f64,
) -> [f64; N] {
    let mut seen = start;
    for class in 0..CLASSES {
        let (found, due) = &mut seen[group(class)];
        *found += returns[class];
        *due += expected[class] * others(class);
    }
    seen.map(|(found, due)| found / due)
}

/// Returns per generation at each age, of all classes together. An age that few lived to see goes by the one before it:
/// what nobody lived to see is no reason to let the old go for the young.
fn shared_rates(census: &Census, one: f64) -> [f64; BUCKETS] {
    let total = |table: &Table, at: usize| -> f64 { table.iter().map(|of_class| of_class[at]).sum() };
    let returns: [f64; BUCKETS] = std::array::from_fn(|at| total(&census.returns, at));
    let risk: [f64; BUCKETS] = std::array::from_fn(|at| total(&census.risk, at));
    let by_time: f64 = risk.iter().enumerate().map(|(at, risk)| risk / middle(at)).sum();
    // Returns per generation, times the generations.
    let mut scale = (returns.iter().sum::<f64>() + 1.0) / (by_time + 10.0);
    std::array::from_fn(|at| {
        let rate = (returns[at] + one) / (risk[at] + one * middle(at) / scale);
        scale = rate * middle(at);
        rate
    })
}

/// The best of all times to wait, from each age on.
fn indices(rates: &[f64; BUCKETS]) -> [f64; BUCKETS] {
    // Stretches of ages that are waited through or not, as a whole; each is worth more than the one after it.
    let mut ahead = [Stretch::default(); BUCKETS];
    let mut count = 0;
    let mut index = [0.0; BUCKETS];
    for at in (0..BUCKETS).rev() {
        let mut stay = 1.0 / (1.0 + rates[at]);
        for _ in 0..log_length(at) {
            stay *= stay;
        }
        let returns = 1.0 - stay;
        let mut stretch = Stretch { returns, time: returns / rates[at], stay };
        while count > 0 && ahead[count - 1].returns * stretch.time > stretch.returns * ahead[count - 1].time {
            count -= 1;
            stretch.extend(&ahead[count]);
        }
        ahead[count] = stretch;
        count += 1;
        index[at] = stretch.returns / stretch.time;
    }
    index
}

/// Of those that come into a stretch of ages: how many return in it, how long they are in it, and how many leave it.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    returns: f64,
    time: f64,
    stay: f64,
}

impl Stretch {
    fn extend(&mut self, next: &Self) {
        self.returns += self.stay * next.returns;
        self.time += self.stay * next.time;
        self.stay *= next.stay;
    }
}
