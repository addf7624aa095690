//! Lets the files of a store rot, and says how each fault was found.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use kvstrata_tests::report::{Progress, end};
use kvstrata_tests::rot::{Options, run};

/// Damages files in a store's directory, while it is open and while it is closed, and checks what comes of each fault.
///
/// What must hold: a load delivers the bytes that were stored or none; each fault is found as a miss with its reason, when
/// the store is opened or when the object is loaded, or does no harm; nothing else is missed; and the next store of the key
/// heals it. Files are cut off, extended, exchanged, copied, zeroed, replaced and deleted, bits of payloads, headers and
/// snapshots are flipped, and strange files appear.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask rot")]
struct Args {
    /// Faults in objects' files
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    faults: u64,
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
    let report = run(&Options { faults: args.faults, seed: args.seed }, &mut progress);
    drop(progress);
    end(args.json, &report, &report.text(), &report.failures())
}
