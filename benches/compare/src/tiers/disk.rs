//! Chunks through memory to files and back: the manager over the file adapter, beside foyer's hybrid cache.
//!
//! `store` copies every chunk into memory and waits until all of them are in files; `load` asks for a request of 16 chunks at
//! a time, which memory has forgotten, and waits for all of them. Each loaded byte is compared with what was stored, outside
//! of the times. The chunks that came are counted: a cache may drop what it cannot take in time.
//!
//! The same: files on one file system, four workers, no compression, a checksum of every chunk made and checked, neither
//! syncs. What differs: here each chunk is a file of its own, published by a rename; there chunks are appended to files of
//! 64 MiB, through a buffer, and the index is lost with the process or read back from the blocks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args as ClapArgs;
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy,
    PsyncIoEngineConfig, RecoverMode,
};
use kvstrata_benches::{Chart, Figures, append};
use tokio::runtime::Runtime;

use super::ours::Ours;
use super::{Side, payload};

#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// Chunks of 1 MiB
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    chunks: u32,
    /// All of it is done so many times, in turn; the table shows the least
    #[arg(long, default_value_t = 7)]
    rounds: u64,
    /// The files go here
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Add the table to this file
    #[arg(long)]
    figures: Option<PathBuf>,
}

const LEN: usize = 1 << 20;
/// Chunks of a request.
const BATCH: usize = 16;
const WORKERS: usize = 4;

/// What a side did in a round.
struct Round {
    store: f64,
    load: f64,
    found: usize,
    wrong: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut table =
        Figures::new("foyer-disk", &["files, cache", "store GB/s", "load GB/s", "found", "wrong"]);
    for title in ["Storing chunks of 1 MiB to files", "Loading chunks of 1 MiB from files"] {
        table.charts.push(Chart { title: title.into(), unit: "GB/s".into(), bars: Vec::new() });
    }
    let n = args.chunks as usize / BATCH * BATCH;
    let sources: Vec<Vec<u8>> = (0..n as u64).map(|n| payload(n, LEN)).collect();
    for (place, direct) in [("page cache", false), ("O_DIRECT", true)] {
        let mut seconds = [const { [const { Vec::new() }; 2] }; 2];
        let mut counts = [[0; 2]; 2];
        for round in 0..args.rounds {
            for who in [round as usize % 2, (round as usize + 1) % 2] {
                let dir = tempfile::tempdir_in(&args.dir)?;
                let done = if who == 0 {
                    ours(dir.path(), direct, &sources)?
                } else {
                    theirs(dir.path(), direct, &sources)?
                };
                seconds[who][0].push(done.store);
                seconds[who][1].push(done.load);
                counts[who][0] += done.found;
                counts[who][1] += done.wrong;
            }
        }
        for (who, label) in ["kvstrata", "foyer"].into_iter().enumerate() {
            let side = |at: usize| Side { label, seconds: &seconds[who][at], ours: &seconds[0][at] };
            let gbps = |side: &Side<'_>| (n * LEN) as f64 / 1e9 / side.least();
            let cells = [side(0), side(1)].map(|side| side.cell(&format!("{:.2}", gbps(&side))));
            let found = format!("{:.1} %", 100.0 * counts[who][0] as f64 / (n as u64 * args.rounds) as f64);
            let row =
                [vec![format!("{place}, {label}")], cells.into(), vec![found, counts[who][1].to_string()]];
            table.rows.push(row.concat());
            for at in [0, 1] {
                side(at).bar(&mut table, at, place, gbps(&side(at)));
            }
        }
    }
    append(&[table], args.figures.as_ref())?;
    Ok(())
}

fn ours(dir: &Path, direct: bool, sources: &[Vec<u8>]) -> Result<Round> {
    let ours = Ours::new(4 * BATCH, LEN, "lru")?.with_files(&dir.join("kv"), WORKERS, direct)?;
    let keys = Ours::keys(0, sources.len())?;
    let begun = Instant::now();
    ours.store(&keys, sources, BATCH)?;
    let store = begun.elapsed().as_secs_f64();
    ours.manager.clear();
    let (mut load, mut found, mut wrong) = (0.0, 0, 0);
    for (keys, sources) in keys.chunks(BATCH).zip(sources.chunks(BATCH)) {
        let begun = Instant::now();
        let hits = ours.load(keys);
        load += begun.elapsed().as_secs_f64();
        found += hits.len();
        wrong += ours.wrong(&hits, sources);
    }
    ours.close()?;
    Ok(Round { store, load, found, wrong })
}

fn theirs(dir: &Path, direct: bool, sources: &[Vec<u8>]) -> Result<Round> {
    let runtime: Runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // Room for everything, and for blocks that are being written.
        let device = FsDeviceBuilder::new(dir)
            .with_capacity(2 * sources.len() * LEN + (512 << 20))
            .with_direct(direct)
            .build()?;
        let engine = BlockEngineConfig::new(device)
            .with_block_size(64 << 20)
            .with_flushers(WORKERS)
            // So much that nothing is dropped because the files are slower than the source.
            .with_buffer_pool_size(256 << 20)
            .with_submit_queue_size_threshold(4 << 30);
        let cache: HybridCache<u64, Bytes> = HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .memory(4 * BATCH * LEN)
            .with_shards(1)
            .with_weighter(|_: &u64, value: &Bytes| value.len())
            .storage()
            .with_io_engine_config(PsyncIoEngineConfig::new())
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::None)
            .build()
            .await?;
        let begun = Instant::now();
        for (n, source) in sources.iter().enumerate() {
            cache.insert(n as u64, Bytes::copy_from_slice(source));
        }
        cache.storage().wait().await;
        let store = begun.elapsed().as_secs_f64();
        cache.memory().clear();
        let (mut load, mut found, mut wrong) = (0.0, 0, 0);
        for (batch, sources) in sources.chunks(BATCH).enumerate() {
            let begun = Instant::now();
            let tasks: Vec<_> = (0..sources.len())
                .map(|n| {
                    let cache = cache.clone();
                    tokio::spawn(async move { cache.get(&((batch * BATCH + n) as u64)).await })
                })
                .collect();
            let mut entries = Vec::new();
            for task in tasks {
                entries.push(task.await??);
            }
            load += begun.elapsed().as_secs_f64();
            for (entry, source) in entries.iter().zip(sources) {
                let Some(entry) = entry else { continue };
                found += 1;
                wrong += usize::from(entry.value() != source);
            }
        }
        cache.close().await?;
        ensure!(load > 0.0, "there is something to load");
        Ok(Round { store, load, found, wrong })
    })
}
