//! What a life table says of the future.

use super::ages::{BUCKETS, first_age, log_length};
use super::census::{Census, Table};
use super::class::{CLASSES, KINDS, inner, kind, uses};

/// Rounds of proportional fitting. The factors are settled to a few percent after two or three.
const ROUNDS: usize = 4;
/// How many times more the model weighs than the counts of a class and age themselves.
const WEIGHT: f64 = 32.0;

/// The index of each class at each age: the best ratio, over all times to wait, of the chance to be used again to the
/// time that the space is taken for it, per generation. It is Gittins' index of a job that ends when it is used.
///
/// Counts of one class at one age are few, so they are drawn to a model, and the model to a weaker one:
/// first, that anything unused for `t` generations returns at a rate of `k / t`, which holds at any scale;
/// then, a rate per age that all classes share;
/// then, a factor for the kind of an entry and one for where in its request it was.
/// How hard is measured: chunks of a request return together, so `chunks / requests` returns count as one.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) index: Table,
    kinds: [f64; KINDS],
    inner: [f64; 2],
}

impl Default for Model {
    /// Before anything is known: the older, the less. Classes are alike, so it is LRU.
    fn default() -> Self {
        let by_age = std::array::from_fn(|at| 1.0 / middle(at));
        Self { index: [by_age; CLASSES], kinds: [1.0; KINDS], inner: [1.0; 2] }
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
        for _ in 0..ROUNDS {
            // A kind nothing is known of is taken to return the more, the more often it was used.
            let mut seen: [_; KINDS] = std::array::from_fn(|kind| (one * uses(kind) as f64, one));
            for class in 0..CLASSES {
                let (found, due) = &mut seen[kind(class)];
                *found += returns[class];
                *due += expected[class] * self.inner[inner(class)];
            }
            self.kinds = seen.map(|(found, due)| found / due);
            let mut seen = [(one, one); 2];
            for class in 0..CLASSES {
                let (found, due) = &mut seen[inner(class)];
                *found += returns[class];
                *due += expected[class] * self.kinds[kind(class)];
            }
            self.inner = seen.map(|(found, due)| found / due);
        }
        for class in 0..CLASSES {
            let factor = self.kinds[kind(class)] * self.inner[inner(class)];
            let drawn = one * WEIGHT;
            let rates = std::array::from_fn(|at| {
                (census.returns[class][at] + drawn) / (census.risk[class][at] + drawn / (shared[at] * factor))
            });
            self.index[class] = indices(&rates);
        }
    }
}

/// Returns per generation at each age, of all classes together.
fn shared_rates(census: &Census, one: f64) -> [f64; BUCKETS] {
    let total = |table: &Table, at: usize| -> f64 { table.iter().map(|of_class| of_class[at]).sum() };
    let returns: [f64; BUCKETS] = std::array::from_fn(|at| total(&census.returns, at));
    let risk: [f64; BUCKETS] = std::array::from_fn(|at| total(&census.risk, at));
    let by_time: f64 = risk.iter().enumerate().map(|(at, risk)| risk / middle(at)).sum();
    let scale = (returns.iter().sum::<f64>() + 1.0) / (by_time + 10.0);
    std::array::from_fn(|at| (returns[at] + one) / (risk[at] + one * middle(at) / scale))
}

/// The best of all times to wait, from each age on.
fn indices(rates: &[f64; BUCKETS]) -> [f64; BUCKETS] {
    // For each bucket, the chance to return within it, and the generations spent in it, of those that come into it.
    let stages: [(f64, f64); BUCKETS] = std::array::from_fn(|at| {
        let mut stay = 1.0 / (1.0 + rates[at]);
        for _ in 0..log_length(at) {
            stay *= stay;
        }
        (1.0 - stay, (1.0 - stay) / rates[at])
    });
    std::array::from_fn(|from| {
        let (mut best, mut chance, mut time, mut there) = (0.0_f64, 0.0, 0.0, 1.0);
        for (returns, spent) in &stages[from..] {
            chance += there * returns;
            time += there * spent;
            there *= 1.0 - returns;
            best = best.max(chance / time);
        }
        best
    })
}
