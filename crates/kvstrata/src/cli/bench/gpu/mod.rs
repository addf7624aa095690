//! `kvstrata bench gpu`: copies between host and GPU, and every way from GPU memory to a disk, side by side.

mod copies;
mod raw;
mod ways;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kvstrata_config::{BuildContext, ByteSize};
use kvstrata_core::Error;
use kvstrata_cuda::Cuda;
use serde::Serialize;

use self::copies::{CopyFigure, ScatterFigure};
use self::ways::{Plan, WayFigures};
use super::figures::median;
use crate::cli::report::{self, Progress};

/// Measure copies to and from a GPU, and its ways to a disk
///
/// Copies go between the GPU and pinned, registered, registered shared, and pageable host memory. With --path, chunks in GPU memory are
/// stored and loaded by each way of the gds adapter, beside whole transfers of pinned host memory to plain files on the same
/// path. Every byte that comes back is compared, outside of the times. Everything is done in every round, in turns, and
/// ratios are those of the same round: their medians are reported.
///
/// A way that is not to be had is listed with the reason. What was stored is deleted again.
///
/// Example: kvstrata bench gpu --path /mnt/nvme/kv --sizes 1MiB,4MiB,16MiB --in-flight 1,4,8
#[derive(Args, Debug)]
pub(crate) struct GpuArgs {
    /// A folder on the disk to measure; without it only copies are
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The GPU, as this process counts them
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// Bytes per chunk
    #[arg(long, value_name = "BYTES,..", value_delimiter = ',', default_value = "1MiB,4MiB,16MiB")]
    sizes: Vec<ByteSize>,
    /// Chunks at the same time
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,4,8")]
    in_flight: Vec<usize>,
    /// Bytes per measurement
    #[arg(long, value_name = "BYTES", default_value = "256MiB")]
    bytes: ByteSize,
    /// Ways of the gds adapter
    #[arg(long, value_name = "WAY,..", value_delimiter = ',', default_value = "bounce,compat,direct")]
    ways: Vec<String>,
    /// More settings of the gds adapter
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Neither make nor check digests, to see what they cost
    #[arg(long)]
    no_digests: bool,
    /// How often all of it is done
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Write the figures here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One measurement, by round: bytes, time and processor time.
#[derive(Default)]
struct Series(Vec<(u64, Duration, f64)>);

impl Series {
    fn record(&mut self, bytes: u64, took: Duration) {
        self.record_with(bytes, took, 0.0);
    }

    fn record_with(&mut self, bytes: u64, took: Duration, cpu: f64) {
        self.0.push((bytes, took, cpu));
    }

    fn per_round(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(|(bytes, took, _)| report::gbps(*bytes, *took))
    }

    fn median(&self) -> f64 {
        median(self.per_round().collect())
    }

    /// The median of the ratios of the same round.
    fn ratio_to(&self, other: &Self) -> f64 {
        median(self.per_round().zip(other.per_round()).map(|(a, b)| a / b.max(1e-12)).collect())
    }

    fn cpu_per_gb(&self) -> f64 {
        let bytes: u64 = self.0.iter().map(|(bytes, _, _)| bytes).sum();
        self.0.iter().map(|(_, _, cpu)| cpu).sum::<f64>() / (bytes.max(1) as f64 / 1e9)
    }

    /// The fastest of each round.
    fn best<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let all: Vec<&Self> = all.collect();
        let rounds = all.iter().map(|s| s.0.len()).min().unwrap_or(0);
        let best = |round: usize| {
            let of_round = all.iter().map(|s| s.0[round]);
            of_round.max_by(|a, b| report::gbps(a.0, a.1).total_cmp(&report::gbps(b.0, b.1)))
        };
        Self((0..rounds).filter_map(best).collect())
    }
}

/// The figures. `schema_version` changes when the meaning of a field does.
#[derive(Serialize, Debug)]
struct Figures {
    schema_version: u32,
    device: String,
    uuid: String,
    pci: String,
    numa_node: Option<u32>,
    driver: u32,
    copies_in_batches: bool,
    rounds: u32,
    digests: bool,
    copies: Vec<CopyFigure>,
    scattered: Vec<ScatterFigure>,
    #[serde(flatten)]
    disk: WayFigures,
}

pub(super) async fn run(args: GpuArgs) -> Result<bool> {
    let plan = plan(&args)?;
    let cuda = Cuda::open().context(
        "bench gpu measures a GPU: run it where nvidia-smi lists one; `cargo xtask test-gpu --pack DIR` makes a folder to carry there",
    )?;
    let device = cuda.device(args.device)?;
    let cells = plan.as_ref().map_or(0, |p| p.sizes.len() * p.in_flight.len());
    let mut progress = Progress::new("bench", u64::from(args.rounds) + cells as u64);
    let mut step = || {
        progress.step(1);
        Ok(())
    };
    let (copies, scattered) =
        tokio::task::block_in_place(|| copies::measure(&device, args.rounds, &mut step))?;
    let disk = match &plan {
        Some(plan) => {
            let cx = BuildContext::tokio(tokio::runtime::Handle::current());
            ways::measure(&device, &cx, plan, &mut step).await?
        }
        None => WayFigures::default(),
    };
    let figures = Figures {
        schema_version: 1,
        device: device.name().to_owned(),
        uuid: device.uuid().to_string(),
        pci: device.pci().to_string(),
        numa_node: device.numa_node(),
        driver: cuda.driver_version(),
        copies_in_batches: cuda.copies_in_batches(),
        rounds: args.rounds,
        digests: !args.no_digests,
        copies,
        scattered,
        disk,
    };
    if !report::to_stdout(args.json.as_ref()) {
        figures.print();
    }
    if let Some(path) = &args.json {
        report::write_json(path, &figures)?;
    }
    Ok(true)
}

fn plan(args: &GpuArgs) -> Result<Option<Plan<'_>>> {
    let Some(path) = &args.path else { return Ok(None) };
    if !path.is_dir() {
        return Err(Error::invalid("bench", "--path is a folder").with("path", path.display()).into());
    }
    let sizes: Vec<usize> = args.sizes.iter().map(|s| usize::try_from(s.0)).collect::<Result<_, _>>()?;
    if sizes.contains(&0) || args.in_flight.contains(&0) || args.in_flight.iter().any(|n| *n > 256) {
        return Err(
            Error::invalid("bench", "a chunk has at least one byte, and 1 to 256 are in flight").into()
        );
    }
    let settings: serde_json::Value = serde_json::from_str(&args.settings)
        .map_err(|e| Error::invalid("bench", "--settings is a JSON object").caused_by(e))?;
    let Some(settings) = settings.as_object() else {
        bail!(Error::invalid("bench", "--settings is a JSON object"))
    };
    Ok(Some(Plan {
        path,
        ways: &args.ways,
        sizes,
        in_flight: &args.in_flight,
        bytes: usize::try_from(args.bytes.0).context("--bytes")?,
        settings: settings.clone(),
        digests: !args.no_digests,
        rounds: args.rounds,
    }))
}

impl Figures {
    fn print(&self) {
        let batches = if self.copies_in_batches { "in one call" } else { "one call each" };
        report::table(&[
            ("GPU", format!("{} {} at {}", self.device, self.uuid, self.pci)),
            ("driver", format!("for CUDA {}; scattered copies {batches}", self.driver)),
            ("rounds", self.rounds.to_string()),
        ]);
        println!("\ncopies of 256 MiB, GB/s (to the best in one piece)");
        CopyFigure::print_head();
        self.copies.iter().for_each(CopyFigure::print);
        println!("\nscattered blocks to the host, GB/s");
        self.scattered.iter().for_each(ScatterFigure::print);
        self.print_disk();
    }

    fn print_disk(&self) {
        if self.disk.raw.is_empty() {
            return;
        }
        println!(
            "\nGPU memory to disk and back, GB/s (to the raw disk; to compat), digests {}",
            if self.digests { "on" } else { "off" }
        );
        for raw in &self.disk.raw {
            raw.print();
            self.disk.ways.iter().filter(|w| w.is_beside(raw)).for_each(ways::WayFigure::print);
        }
        for absent in &self.disk.absent {
            println!("{}: not here: {}", absent.way, absent.why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round_and_the_best_is_per_round() {
        let (mut a, mut b) = (Series::default(), Series::default());
        for (ours, theirs) in [(2, 1), (2, 1), (90, 1), (1, 4)] {
            a.record_with(1_000_000, Duration::from_millis(ours), 0.5);
            b.record(1_000_000, Duration::from_millis(theirs));
        }
        assert!((a.ratio_to(&b) - 0.5).abs() < 1e-9);
        assert!((a.cpu_per_gb() - 500.0).abs() < 1e-6);
        let best = Series::best([&a, &b].into_iter());
        assert_eq!(best.0.iter().map(|r| r.1.as_millis()).collect::<Vec<_>>(), [1, 1, 1, 1]);
    }
}
