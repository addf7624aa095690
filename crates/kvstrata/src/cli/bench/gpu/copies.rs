//! Copies between the host and a GPU.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use kvstrata_cuda::Device;
use kvstrata_cuda::measure::{CopyRig, HostMemory, Scatter, Way};
use serde::Serialize;

use super::Series;
use crate::cli::report;

const BYTES: usize = 256 << 20;
const PIECES: [usize; 4] = [64 << 10, 1 << 20, 4 << 20, 16 << 20];
const BLOCKS: [usize; 2] = [16 << 10, 64 << 10];
const BLOCK_COUNT: usize = 4096;

const MEMORIES: [(HostMemory, &str); 4] = [
    (HostMemory::Pinned, "pinned"),
    (HostMemory::Registered, "registered"),
    (HostMemory::RegisteredShared, "registered shared"),
    (HostMemory::Pageable, "pageable"),
];

/// Throughput of one kind of memory at one size of pieces, 10^9 bytes a second, medians of the rounds.
#[derive(Serialize, Debug)]
pub(super) struct CopyFigure {
    memory: &'static str,
    piece: usize,
    up_gbps: f64,
    down_gbps: f64,
    both_gbps: f64,
    /// To the best of any memory in one copy of everything, in the same round.
    up_to_best: f64,
    down_to_best: f64,
}

/// Blocks that lie scattered on the device.
#[derive(Serialize, Debug)]
pub(super) struct ScatterFigure {
    block: usize,
    blocks: usize,
    loop_gbps: f64,
    batch_gbps: f64,
    batch_to_loop: f64,
}

/// One kind of memory, one size of pieces: up, down and both, each by round.
struct Cell {
    memory: usize,
    piece: usize,
    ways: [Series; 3],
}

pub(super) fn measure(
    device: &Arc<Device>,
    rounds: u32,
    mut step: impl FnMut() -> Result<()>,
) -> Result<(Vec<CopyFigure>, Vec<ScatterFigure>)> {
    let rigs: Vec<CopyRig> =
        MEMORIES.iter().map(|(m, _)| CopyRig::new(device, *m, BYTES)).collect::<Result<_, _>>()?;
    let mut cells: Vec<Cell> = (0..MEMORIES.len())
        .flat_map(|memory| PIECES.into_iter().chain([BYTES]).map(move |piece| (memory, piece)))
        .map(|(memory, piece)| Cell { memory, piece, ways: Default::default() })
        .collect();
    let mut scattered: Vec<(usize, [Series; 2])> = BLOCKS.map(|block| (block, Default::default())).into();
    // The first copies of a process are slow, whatever they are.
    for rig in &rigs {
        rig.copy(Way::Both, 1 << 20)?;
    }
    for _ in 0..rounds {
        for cell in &mut cells {
            for (way, series) in [Way::Up, Way::Down, Way::Both].into_iter().zip(&mut cell.ways) {
                let begun = Instant::now();
                rigs[cell.memory].copy(way, cell.piece)?;
                series.record(BYTES as u64, begun.elapsed());
            }
        }
        for (block, ways) in &mut scattered {
            for (how, series) in [Scatter::Loop, Scatter::Batch].into_iter().zip(ways) {
                let begun = Instant::now();
                rigs[0].scattered(Way::Down, *block, BLOCK_COUNT, how)?;
                series.record((*block * BLOCK_COUNT) as u64, begun.elapsed());
            }
        }
        step()?;
    }
    let best = |way: usize| {
        let whole = cells.iter().filter(|c| c.piece == BYTES).map(|c| &c.ways[way]);
        Series::best(whole)
    };
    let (best_up, best_down) = (best(0), best(1));
    let copies = cells.iter().map(|cell| CopyFigure {
        memory: MEMORIES[cell.memory].1,
        piece: cell.piece,
        up_gbps: cell.ways[0].median(),
        down_gbps: cell.ways[1].median(),
        both_gbps: cell.ways[2].median(),
        up_to_best: cell.ways[0].ratio_to(&best_up),
        down_to_best: cell.ways[1].ratio_to(&best_down),
    });
    let scatters = scattered.iter().map(|(block, [one, all])| ScatterFigure {
        block: *block,
        blocks: BLOCK_COUNT,
        loop_gbps: one.median(),
        batch_gbps: all.median(),
        batch_to_loop: all.ratio_to(one),
    });
    Ok((copies.collect(), scatters.collect()))
}

impl CopyFigure {
    pub(super) fn print_head() {
        println!("{:<18} {:>10} {:>16} {:>16} {:>10}", "memory", "piece", "up", "down", "both");
    }

    pub(super) fn print(&self) {
        println!(
            "{:<18} {:>10} {:>8.1} ({:.3}) {:>8.1} ({:.3}) {:>10.1}",
            self.memory,
            report::bytes(self.piece as u64),
            self.up_gbps,
            self.up_to_best,
            self.down_gbps,
            self.down_to_best,
            self.both_gbps
        );
    }
}

impl ScatterFigure {
    pub(super) fn print(&self) {
        println!(
            "{} blocks of {}: one call each {:.1}, in a batch {:.1} ({:.2} times)",
            self.blocks,
            report::bytes(self.block as u64),
            self.loop_gbps,
            self.batch_gbps,
            self.batch_to_loop
        );
    }
}
