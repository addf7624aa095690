//! Kills a process that stores, again and again, and looks at what it leaves.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvstrata_tests::kill::{ChildArgs, LayoutName, Options, child, run};
use kvstrata_tests::report::{Progress, end, this_program};

/// Kills a process that stores at full speed with SIGKILL at random moments, opening included, and checks after each kill
/// what is found in its directory.
///
/// What must hold: every file under an object's name is whole; the index has what the directory has, with and without its
/// snapshot; everything listed loads byte for byte; what was acknowledged is there unless it was evicted, and what was
/// removed stays removed; usage, and what `du` says, are within the capacity; nothing unfinished stays behind. Directories
/// take turns: files and segments, one path and three, with and without eviction, through the manager and through the
/// adapter, with each degree of `sync`.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask kill", args_conflicts_with_subcommands = true)]
struct Args {
    /// Kills
    #[arg(long, value_name = "N", default_value_t = 200)]
    rounds: u64,
    /// What the moments and all other choices are made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The longest that a process lives, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 300)]
    longest_ms: u64,
    /// Only where objects lie like this in files; by default both take turns
    #[arg(long, value_enum)]
    layout: Option<LayoutName>,
    /// Only where there are so many paths with a store each, 1 or 3; by default both take turns
    #[arg(long, value_name = "N")]
    paths: Option<usize>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What is killed
    #[command(hide = true)]
    Child(ChildArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Child(args)) = &args.command {
        return child(args);
    }
    let program = match this_program() {
        Ok(program) => program,
        Err(code) => return code,
    };
    let options = Options {
        program,
        rounds: args.rounds,
        seed: args.seed,
        longest_ms: args.longest_ms,
        layout: args.layout,
        paths: args.paths,
    };
    let mut progress = Progress::new("kill", args.rounds);
    let report = run(&options, &mut progress);
    drop(progress);
    end(args.json, &report, &report.text(), &report.failures)
}
