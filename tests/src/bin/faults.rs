//! Injects faults by the million, and says what came of them.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kvstrata_tests::faults::{Options, run, watch_panics};
use kvstrata_tests::kill::LayoutName;
use kvstrata_tests::report::{Progress, end};

/// Injects faults below the digest check until so many took effect, and fails if there was one wrong byte, one leak or one
/// late answer.
///
/// The stack is the one that ships: manager, digest check, meter, breaker, limit of bytes in flight, and below them the
/// fault injector around a store in memory (virtual time: a call is late if it is late at all) and around a store of files
/// in a temporary directory (real time). First each class is alone, so that what came of it can be told; then all at once. A
/// fault counts when it changed bytes or an outcome that somebody then looked at.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask faults")]
struct Args {
    /// Faults that take effect, all classes together; from 1 000 000 on, each class has at least 1 000
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    count: u64,
    /// What every choice is made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Worlds at the same time; by default as many as the machine has cores
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Over files, how long after its deadline a call may end before it counts as late: what a busy machine needs to wake a
    /// thread
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    margin_ms: u64,
    /// How objects lie in files; by default both in turns
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    /// Paths with a store each, where objects are in files; by default one and three in turns
    #[arg(long, value_name = "N")]
    paths: Option<std::num::NonZeroUsize>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let options = Options {
        count: args.count,
        seed: args.seed,
        threads,
        margin: Duration::from_millis(args.margin_ms),
        layout: args.layout,
        paths: args.paths.map(Into::into),
    };
    let panics = watch_panics();
    let mut progress = Progress::new("faults", args.count);
    let report = run(&options, &panics, &mut progress);
    drop(progress);
    end(args.json, &report.json(), &report.text(), &report.failures())
}
