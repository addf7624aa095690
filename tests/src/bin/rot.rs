//! Lets the files of a store rot, and says how each fault was found.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kvstrata_tests::kill::LayoutName;
use kvstrata_tests::report::{Progress, end};
use kvstrata_tests::rot::{Options, run, segments};

/// Damages files in a store's directory, while it is open and while it is closed, and checks what comes of each fault.
///
/// What must hold: a load delivers the bytes that were stored or none; each fault is found as a miss with its reason, when
/// the store is opened or when the object is loaded, or does no harm; nothing else is missed; and the next store of the key
/// heals it. Files are cut off, extended, exchanged, copied, zeroed, replaced and deleted, bits of payloads, headers and
/// snapshots are flipped, and strange files appear. Of a store of segments (`--layout slab`), parts of segments, logs and
/// snapshots are flipped, zeroed, overwritten and cut off while it is closed.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask rot")]
struct Args {
    /// Faults put in place
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    faults: u64,
    /// How objects lie in files
    #[arg(long, value_enum, default_value = "files")]
    layout: LayoutName,
    /// Paths with a store each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    paths: u64,
    /// What every choice is made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut progress = Progress::new("rot", args.faults);
    let options = Options { faults: args.faults, seed: args.seed, paths: args.paths as usize };
    if args.layout == LayoutName::Slab {
        let report = segments::run(&options, &mut progress);
        drop(progress);
        return end(args.json, &report, &report.text(), &report.failures);
    }
    let report = run(&options, &mut progress);
    drop(progress);
    end(args.json, &report, &report.text(), &report.failures())
}
