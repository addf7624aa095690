//! The life of a block without its bytes: the L1 of the manager beside KVBM's `kvbm-logical`, which keeps blocks by number
//! and leaves the memory to others.
//!
//! `write` is reserve and commit of 1 024 chunks here, and allocate, stage, register and let go there; both caches are full,
//! so that each pushes another out. `lookup` finds 1 024 blocks, keeps them from being evicted, and lets go. *active* means
//! that somebody else holds them meanwhile. What differs: here a block has an address in memory, a layout, a tenant and a
//! 32-byte hash; there it has a number and a 128-bit hash of its place in a chain, and no bytes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args as ClapArgs;
use kvbm_logical::manager::FrequencyTrackingCapacity;
use kvbm_logical::{BlockManager, BlockRegistry, SequenceHash};
use kvstrata_benches::{Chart, Figures, append};

use super::Side;
use super::ours::Ours;

#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// All of it is done so many times, in turn; the table shows the least
    #[arg(long, default_value_t = 31)]
    rounds: u64,
    /// Add the table to this file
    #[arg(long)]
    figures: Option<PathBuf>,
}

const BLOCKS: usize = 4096;
const BATCH: usize = 1024;
const WORK: [&str; 3] = ["write", "lookup", "lookup, active"];

#[derive(Clone, Debug)]
struct Host;

/// A chain of its own for each round.
fn hashes(round: u64) -> Vec<SequenceHash> {
    let hash = |n: u64| (round * BATCH as u64 + n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..BATCH as u64).map(|n| SequenceHash::new(hash(n), n.checked_sub(1).map(hash), n)).collect()
}

fn theirs() -> Result<BlockManager<Host>> {
    let tracker = FrequencyTrackingCapacity::Medium.create_tracker();
    let registry = BlockRegistry::builder().frequency_tracker(tracker).build();
    BlockManager::<Host>::builder()
        .block_count(BLOCKS)
        .block_size(256)
        .registry(registry)
        .with_lru_backend()
        .build()
        .map_err(|e| anyhow!("{e}"))
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (ours, theirs) = (Ours::new(BLOCKS, 4096, "lru")?, theirs()?);
    let mut seconds = [const { [const { Vec::new() }; WORK.len()] }; 2];
    let filling = (BLOCKS / BATCH) as u64;
    for round in 0..args.rounds + filling {
        let (keys, hashes) = (Ours::keys(round * BATCH as u64, BATCH)?, hashes(round));
        for who in [round % 2, (round + 1) % 2] {
            let mut took = [0.0; WORK.len()];
            let begun = Instant::now();
            if who == 0 {
                ensure!(ours.write(&keys, &[]) == BATCH, "all get a buffer");
            } else {
                let blocks = theirs.allocate_blocks(BATCH).context("blocks")?;
                let staged = blocks
                    .into_iter()
                    .zip(&hashes)
                    .map(|(block, hash)| block.stage(*hash, 256).map_err(|e| anyhow!("{e:?}")))
                    .collect::<Result<Vec<_>>>()?;
                drop(theirs.register_blocks(staged));
            }
            took[0] = begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            let found = if who == 0 { ours.read(&keys) } else { theirs.match_blocks(&hashes).len() };
            took[1] = begun.elapsed().as_secs_f64();
            ensure!(found == BATCH, "{found} of {BATCH} found");
            let held =
                (who == 0).then(|| ours.manager.read(&ours.manager.request(std::time::Duration::MAX), &keys));
            let held_there = (who == 1).then(|| theirs.match_blocks(&hashes));
            let begun = Instant::now();
            let found = if who == 0 { ours.read(&keys) } else { theirs.match_blocks(&hashes).len() };
            took[2] = begun.elapsed().as_secs_f64();
            ensure!(found == BATCH, "{found} of {BATCH} found");
            drop((held, held_there));
            if round >= filling {
                seconds[who as usize].iter_mut().zip(took).for_each(|(s, t)| s.push(t / BATCH as f64));
            }
        }
    }
    let mut table = Figures::new("blocks", &["1 024 blocks", "kvstrata ns each", "kvbm-logical ns each"]);
    let unit = "ns a block, less is better".into();
    table.charts.push(Chart {
        title: "The life of a block, beside kvbm-logical".into(),
        unit,
        bars: Vec::new(),
    });
    for (at, what) in WORK.into_iter().enumerate() {
        let mut row = vec![what.to_owned()];
        for (label, who) in [("kvstrata", 0), ("kvbm-logical", 1)] {
            let side = Side { label, seconds: &seconds[who][at], ours: &seconds[0][at] };
            row.push(side.cell(&format!("{:.0}", side.least() * 1e9)));
            side.bar(&mut table, 0, what, side.least() * 1e9);
        }
        table.rows.push(row);
    }
    append(&[table], args.figures.as_ref())?;
    ours.close()
}
