//! Nanoseconds per operation of every eviction policy, with 1 000, 100 000 and 10 million residents.
//!
//! - `insert`: an entry comes into a slot that is free.
//! - `touch`: a resident is used.
//! - `remove`: a resident is deleted.
//! - `victim`: the full tier turns over: `victims` for one entry, `remove` of it as evicted, `insert` of another.
//! - `pinned`: `victims` for one entry when 150 000 pinned ones come before the only one that may go.
//!
//! Slots come in random order, so that what does not fit into the processor's caches is missed there. Entries arrive as
//! chains of 16 chunks, last chunk first. Before the first figure half of the residents are used once more, and the tier
//! turns over once, so that queues and ghosts are as full as they get. A figure includes a virtual call for each call, and
//! the look at a list of slots: `noop` shows how much that is.
//!
//! A whole run takes about five minutes and, by reckoning, 4 GiB. A part of it is run with a filter:
//! `cargo bench -p kvstrata-benches --bench evict -- 'evict/(LRU|ARC)/100k'`.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kvstrata_evict::{Access, Entry, EvictionPolicy, NAMES, Removal, Slot, TenantId, by_name};

const SIZES: [(&str, u32); 3] = [("1k", 1_000), ("100k", 100_000), ("10M", 10_000_000)];
const PINNED: u32 = 150_000;
/// Chunks of a request.
const CHAIN: usize = 16;
/// The most operations between two looks at the clock, and so the most slots that are free meanwhile.
const BATCH: usize = 8_192;
const WEIGHT: NonZeroU32 = NonZeroU32::new(1 << 20).expect("not zero");

/// The numbers below `len` in an order that no prefetcher foresees, the same in each run.
fn shuffled(len: u32) -> Vec<Slot> {
    let mut slots: Vec<Slot> = (0..len).map(Slot).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for at in (1..slots.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        slots.swap(at, (state % (at as u64 + 1)) as usize);
    }
    slots
}

/// A full tier.
struct Tier {
    policy: Box<dyn EvictionPolicy>,
    /// Its slots in random order.
    slots: Vec<Slot>,
    /// The next of them to be looked at.
    at: usize,
    objects: u64,
    requests: u64,
    victims: Vec<Slot>,
}

impl Tier {
    fn new(name: &str, residents: u32) -> Self {
        let mut policy = by_name(name).expect("a known name");
        policy.set_capacity(u64::from(residents) * u64::from(WEIGHT.get()));
        let slots = shuffled(residents);
        let mut tier = Self { policy, slots, at: 0, objects: 0, requests: 0, victims: Vec::new() };
        for from in (0..residents as usize).step_by(BATCH) {
            tier.insert(from..(from + BATCH).min(residents as usize));
        }
        tier.touch(residents as usize / 2);
        tier.turn_over(residents as usize);
        tier
    }

    /// So many of the slots, not more than a batch.
    fn next(&mut self, most: usize) -> std::ops::Range<usize> {
        let most = most.min(BATCH).min(self.slots.len() / 4);
        if self.at + most > self.slots.len() {
            self.at = 0;
        }
        self.at += most;
        self.at - most..self.at
    }

    /// Inserts new objects as requests, each from its last chunk to its first.
    fn insert(&mut self, slots: std::ops::Range<usize>) {
        for chain in self.slots[slots].chunks(CHAIN) {
            insert_chain(&mut *self.policy, chain, &mut self.objects, &mut self.requests);
        }
    }

    fn remove(&mut self, slots: std::ops::Range<usize>) {
        for &slot in &self.slots[slots] {
            self.policy.remove(slot, Removal::Deleted);
        }
    }

    fn touch(&mut self, most: usize) -> usize {
        let slots = self.next(most);
        let len = slots.len();
        for chain in self.slots[slots].chunks(CHAIN) {
            self.requests += 1;
            for (position, &slot) in chain.iter().enumerate().rev() {
                self.policy.touch(slot, &access(self.requests, position, chain.len()));
            }
        }
        len
    }

    /// So many entries go, one at a time, and as many come, a request at a time.
    fn turn_over(&mut self, entries: usize) {
        for _ in 0..entries.div_ceil(CHAIN) {
            self.victims.clear();
            for _ in 0..CHAIN {
                self.policy.victims(1, &mut self.victims);
                let Some(&slot) = self.victims.last() else { return };
                self.policy.remove(slot, Removal::Evicted);
            }
            insert_chain(&mut *self.policy, &self.victims, &mut self.objects, &mut self.requests);
        }
    }
}

fn access(request: u64, position: usize, chain: usize) -> Access {
    Access { request, position: position as u32, chain: chain as u32 }
}

fn insert_chain(policy: &mut dyn EvictionPolicy, chain: &[Slot], objects: &mut u64, requests: &mut u64) {
    *requests += 1;
    for (position, &slot) in chain.iter().enumerate().rev() {
        *objects += 1;
        let print = objects.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let parent = position.checked_sub(1).map(|before| chain[before]);
        let entry = Entry { slot, print, weight: WEIGHT, parent, tenant: TenantId(0) };
        policy.insert(entry, &access(*requests, position, chain.len()));
    }
}

/// The time of `iters` operations, done in batches; `batch` does at most so many, and says how many and how long.
fn timed(iters: u64, mut batch: impl FnMut(usize) -> (usize, Duration)) -> Duration {
    let (mut left, mut time) = (iters as usize, Duration::ZERO);
    while left > 0 {
        let (done, took) = batch(left);
        left -= done;
        time += took;
    }
    time
}

/// The tier of a group of figures, made for the first of them that is asked for.
fn made<'a>(tier: &'a mut Option<Tier>, name: &str, residents: u32) -> &'a mut Tier {
    tier.get_or_insert_with(|| Tier::new(name, residents))
}

fn operations(c: &mut Criterion) {
    for (size, residents) in SIZES {
        for name in NAMES {
            let mut group = c.benchmark_group(format!("evict/{name}/{size}"));
            let mut tier = None;
            group.bench_function("insert", |b| {
                let tier = made(&mut tier, name, residents);
                b.iter_custom(|iters| {
                    timed(iters, |most| {
                        let slots = tier.next(most);
                        tier.remove(slots.clone());
                        let (len, start) = (slots.len(), Instant::now());
                        tier.insert(slots);
                        (len, start.elapsed())
                    })
                });
            });
            group.bench_function("remove", |b| {
                let tier = made(&mut tier, name, residents);
                b.iter_custom(|iters| {
                    timed(iters, |most| {
                        let (slots, start) = (tier.next(most), Instant::now());
                        tier.remove(slots.clone());
                        let took = start.elapsed();
                        tier.insert(slots.clone());
                        (slots.len(), took)
                    })
                });
            });
            if name != "noop" {
                group.bench_function("victim", |b| {
                    let tier = made(&mut tier, name, residents);
                    b.iter_custom(|iters| {
                        // Whole requests only: what is above is not counted.
                        let done = iters.next_multiple_of(CHAIN as u64);
                        let start = Instant::now();
                        tier.turn_over(done as usize);
                        start.elapsed().mul_f64(iters as f64 / done as f64)
                    });
                });
            }
            // The last, since what was used changes what the victims after it cost.
            group.bench_function("touch", |b| {
                let tier = made(&mut tier, name, residents);
                b.iter_custom(|iters| {
                    timed(iters, |most| {
                        let start = Instant::now();
                        let done = tier.touch(most);
                        (done, start.elapsed())
                    })
                });
            });
            group.finish();
        }
    }
}

fn pinned(c: &mut Criterion) {
    for name in NAMES.into_iter().filter(|name| *name != "noop") {
        c.bench_function(&format!("evict/{name}/150k pinned/victims"), |b| {
            let mut policy = by_name(name).expect("a known name");
            policy.set_capacity(u64::from(PINNED + 1) * u64::from(WEIGHT.get()));
            // MRU starts at the other end.
            let behind = if name == "MRU" { 0 } else { PINNED };
            for slot in 0..=PINNED {
                insert_chain(&mut *policy, &[Slot(slot)], &mut slot.into(), &mut slot.into());
                if slot != behind {
                    policy.pin(Slot(slot));
                }
            }
            let mut victims = Vec::new();
            b.iter(|| {
                victims.clear();
                black_box(policy.victims(1, &mut victims));
            });
            assert_eq!(victims, [Slot(behind)], "{name}");
        });
    }
}

fn config() -> Criterion {
    // A figure is a mean over millions of operations: many samples would only take long.
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .nresamples(1_000)
        .without_plots()
}

criterion_group! { name = benches; config = config(); targets = operations, pinned }
criterion_main!(benches);
