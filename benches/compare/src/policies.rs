//! Nanoseconds per operation of caches with the same keys, values, hash function and capacity, one thread, one shard.
//!
//! What is the same: `u64` keys, `u32` values, foldhash, weight 1 each. What is not:
//!
//! - `kvstrata` is a policy of `kvstrata-evict`, which has no keys, with the least that makes a cache of it: a `hashbrown`
//!   table of slots by key, a vector of keys and values by slot, and a mutex. The policies alone are
//!   measured in `benches/benches/evict.rs`.
//! - `foyer` allocates a record for each entry, and gives out handles that keep it alive: what it removes is freed when the
//!   last of them is dropped. It has counters of metrics. One shard is one lock, as here.
//! - `quick_cache, no lock` takes `&mut self`; `quick_cache` is the one with a lock. Both store keys and values in their
//!   own slots and need no allocation for an entry. It is its own policy, near to S3-FIFO and Clock-PRO.
//! - `moka` is a concurrent hash table with a queue of what happened, worked off every few hundred operations by whoever
//!   comes by: its figures include that. Other threads read without waiting, which none of the others offers.
//!
//! Keys and values are as small as they get, so that figures show what the caches themselves do.

mod others;
mod ours;

use clap::Args as ClapArgs;
use kvstrata_benches::{Figures, append};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// Entries that fit
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=20_000_000))]
    entries: u32,
    /// Each cache is measured so many times, in turn; the table shows the least
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Print rows of JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Add the table to this file
    #[arg(long)]
    figures: Option<PathBuf>,
}

/// A cache with numbers for keys, as all of them are seen here.
pub(crate) trait Cache {
    /// Whether it was there; then it counts as used.
    fn get(&mut self, key: u64) -> bool;
    fn insert(&mut self, key: u64, value: u32);
    fn remove(&mut self, key: u64);
    /// Does what was put off.
    fn settle(&mut self) {}
}

/// A way to make a cache for so many entries.
pub(crate) struct Contestant {
    /// Who, and which of its policies.
    pub(crate) of: &'static str,
    pub(crate) policy: &'static str,
    /// Those of one family are compared with each other.
    pub(crate) family: &'static str,
    pub(crate) make: fn(usize) -> Box<dyn Cache>,
}

const OPERATIONS: [&str; 4] = ["get", "remove", "insert", "evict"];
/// Operations between two looks at the clock.
const BATCH: usize = 1_024;

#[derive(Serialize, Debug)]
struct Row {
    family: &'static str,
    cache: &'static str,
    policy: &'static str,
    operation: &'static str,
    entries: u32,
    /// The least of the rounds, which is the nearest to what the cache itself takes, and their median.
    ns: f64,
    ns_median: f64,
    /// Its least over that of `kvstrata` in the same family.
    ratio: Option<f64>,
    /// Of the keys asked for, how many were there.
    found: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let contestants: Vec<Contestant> = ours::contestants().into_iter().chain(others::contestants()).collect();
    let mut times = vec![[const { Vec::new() }; OPERATIONS.len()]; contestants.len()];
    let mut found = vec![0.0; contestants.len()];
    for round in 0..args.rounds {
        for (at, contestant) in contestants.iter().enumerate() {
            if !args.json {
                eprint!(
                    "\r\x1b[Kround {} of {}: {} {}",
                    round + 1,
                    args.rounds,
                    contestant.of,
                    contestant.policy
                );
            }
            let (ns, rate) = measure(contestant, args.entries as usize);
            found[at] = rate;
            times[at].iter_mut().zip(ns).for_each(|(times, ns)| times.push(ns));
        }
    }
    if !args.json {
        eprint!("\r\x1b[K");
    }
    times.iter_mut().flatten().for_each(|times| times.sort_by(f64::total_cmp));
    let rows = rows(&contestants, &times, &found, args.entries);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        show(&rows, args)?;
    }
    Ok(())
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

fn rows(
    contestants: &[Contestant],
    times: &[[Vec<f64>; OPERATIONS.len()]],
    found: &[f64],
    entries: u32,
) -> Vec<Row> {
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let rank = |at: usize| contestants.iter().position(|other| other.family == contestants[at].family);
    order.sort_by_key(|&at| rank(at));
    let mut rows = Vec::new();
    for at in order {
        let Contestant { of, policy, family, .. } = contestants[at];
        let own = contestants.iter().position(|other| other.of == ours::NAME && other.family == family);
        for (n, operation) in OPERATIONS.into_iter().enumerate() {
            let (ns, ns_median, found) = (times[at][n][0], median(&times[at][n]), found[at]);
            let ratio = own.filter(|&own| own != at).map(|own| ns / times[own][n][0]);
            rows.push(Row { family, cache: of, policy, operation, entries, ns, ns_median, ratio, found });
        }
    }
    rows
}

fn show(rows: &[Row], args: &Args) -> anyhow::Result<()> {
    println!(
        "ns per operation, {} entries, least of {} rounds; in brackets the ratio to kvstrata\n",
        args.entries, args.rounds
    );
    let cell = |row: &Row| {
        let ratio = row.ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.2}×)"));
        format!("{:.0}{ratio}", row.ns)
    };
    let mut table = Figures::new("policies", &["cache, policy", "get", "remove", "insert", "evict", "found"]);
    for of_cache in rows.chunks(OPERATIONS.len()) {
        let name = format!("{}, {}", of_cache[0].cache, of_cache[0].policy);
        let found = format!("{:.1} %", of_cache[0].found * 100.0);
        table.rows.push([name].into_iter().chain(of_cache.iter().map(cell)).chain([found]).collect());
    }
    append(&[table], args.figures.as_ref())?;
    println!("\nget, remove: of a key that is there. insert: with room. evict: insert into a full cache.");
    Ok(())
}

/// Keys look random, as hashes do.
fn key(number: usize) -> u64 {
    (number as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

/// Numbers below `len` in random order, the same in each run.
fn shuffled(len: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..len).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for at in (1..len).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(at, (state % (at as u64 + 1)) as usize);
    }
    numbers
}

/// Nanoseconds of each operation, in the order of `OPERATIONS`, and the part of the keys that was found.
fn measure(contestant: &Contestant, entries: usize) -> ([f64; OPERATIONS.len()], f64) {
    let mut cache = (contestant.make)(entries);
    (0..entries).for_each(|n| cache.insert(key(n), n as u32));
    cache.settle();
    let order = shuffled(entries);
    let per_operation = |time: Duration, count: usize| time.as_nanos() as f64 / count as f64;

    let mut found = 0;
    let start = Instant::now();
    for &n in &order {
        found += usize::from(cache.get(key(n)));
    }
    cache.settle();
    let get = per_operation(start.elapsed(), entries);

    let (mut removing, mut inserting) = (Duration::ZERO, Duration::ZERO);
    for batch in order.chunks(BATCH) {
        let start = Instant::now();
        batch.iter().for_each(|&n| cache.remove(key(n)));
        cache.settle();
        removing += start.elapsed();
        let start = Instant::now();
        batch.iter().for_each(|&n| cache.insert(key(n), n as u32));
        cache.settle();
        inserting += start.elapsed();
    }

    // Before it is measured twice as many come as fit, and half of them are used again soon: what is remembered of the
    // evicted is full then, and queues for what was used have something in them.
    for n in entries..3 * entries {
        cache.insert(key(n), n as u32);
        if n % 2 == 0 {
            cache.get(key(n - entries / 20));
        }
    }
    cache.settle();
    let start = Instant::now();
    (3 * entries..4 * entries).for_each(|n| cache.insert(key(n), n as u32));
    cache.settle();
    let evict = start.elapsed();

    let [remove, insert, evict] = [removing, inserting, evict].map(|time| per_operation(time, entries));
    ([get, remove, insert, evict], found as f64 / entries as f64)
}
