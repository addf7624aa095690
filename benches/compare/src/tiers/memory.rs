//! Chunks in memory: the L1 of the manager beside foyer's cache of `Bytes`, both full, both LRU, one thread.
//!
//! `write` brings a chunk in and pushes one out. Here that is reserve, copy, commit, in batches of a request; there it is
//! making a `Bytes` of the source, which allocates and copies, and inserting it. `read` finds a chunk, keeps it from being
//! freed, marks it used, and lets go. What differs: here the memory is one region that is mapped beforehand and that devices
//! and other processes can be given, keys are 32-byte hashes with a model and a tenant, and a batch is one step; there
//! memory is the allocator's, keys are `u64`, and every chunk is a step of its own.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args as ClapArgs;
use foyer::{Cache, CacheBuilder, LruConfig};
use kvstrata_benches::{Chart, Figures, append};

use super::ours::Ours;
use super::{Side, payload};
use std::time::Instant;

#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// All of it is done so many times, in turn; the table shows the least
    #[arg(long, default_value_t = 15)]
    rounds: u64,
    /// Add the table to this file
    #[arg(long)]
    figures: Option<PathBuf>,
}

/// Chunks of a request.
const BATCH: usize = 64;
/// Chunks of a round.
const CHUNKS: usize = 512;

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut table = Figures::new("memory", &["chunk, cache", "write ns", "read ns", "write GB/s"]);
    for title in ["Bringing a chunk into memory", "Reading a chunk that is in memory"] {
        table.charts.push(Chart {
            title: title.into(),
            unit: "ns a chunk, less is better".into(),
            bars: Vec::new(),
        });
    }
    for (size, len) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        one(&mut table, args.rounds, size, len)?;
    }
    append(&[table], args.figures.as_ref())?;
    Ok(())
}

fn one(table: &mut Figures, rounds: u64, size: &str, len: usize) -> Result<()> {
    let ours = Ours::new(CHUNKS, len, "lru")?;
    let theirs: Cache<u64, Bytes> = CacheBuilder::new(CHUNKS * len)
        .with_shards(1)
        .with_weighter(|_: &u64, value: &Bytes| value.len())
        .with_eviction_config(LruConfig::default())
        .build();
    let sources: Vec<Vec<u8>> = (0..BATCH as u64).map(|n| payload(n, len)).collect();
    let mut seconds = [const { Vec::new() }; 4];
    for round in 0..rounds {
        let first = round * CHUNKS as u64;
        let keys = Ours::keys(first, CHUNKS)?;
        for who in [round % 2, (round + 1) % 2] {
            let begun = Instant::now();
            if who == 0 {
                for keys in keys.chunks(BATCH) {
                    ensure!(ours.write(keys, &sources) == keys.len(), "all chunks get a buffer");
                }
            } else {
                for n in 0..CHUNKS as u64 {
                    theirs.insert(first + n, Bytes::copy_from_slice(&sources[n as usize % BATCH]));
                }
            }
            let written = begun.elapsed();
            let begun = Instant::now();
            let found = if who == 0 {
                keys.chunks(BATCH).map(|keys| ours.read(keys)).sum::<usize>()
            } else {
                (first..first + CHUNKS as u64)
                    .filter(|n| std::hint::black_box(theirs.get(n)).is_some())
                    .count()
            };
            let read = begun.elapsed();
            ensure!(found >= CHUNKS - BATCH, "what was written last is there: {found} of {CHUNKS}");
            let at = 2 * who as usize;
            // The first round fills both.
            if round > 0 {
                seconds[at].push(written.as_secs_f64() / CHUNKS as f64);
                seconds[at + 1].push(read.as_secs_f64() / CHUNKS as f64);
            }
        }
    }
    for (label, at) in [("kvstrata", 0), ("foyer", 2)] {
        let side = |n: usize| Side { label, seconds: &seconds[at + n], ours: &seconds[n] };
        let [write, read] = [side(0), side(1)];
        let ns = |side: &Side<'_>| side.cell(&format!("{:.0}", side.least() * 1e9));
        let gbps = format!("{:.2}", len as f64 / 1e9 / write.least());
        table.rows.push(vec![format!("{size}, {label}"), ns(&write), ns(&read), gbps]);
        write.bar(table, 0, size, write.least() * 1e9);
        read.bar(table, 1, size, read.least() * 1e9);
    }
    ours.close()
}
