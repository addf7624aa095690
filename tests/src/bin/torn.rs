//! Kills clients of the cache server while they write.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvstrata_tests::report::{Progress, end, this_program};
use kvstrata_tests::torn::{Options, run, writer};

/// Kills clients of `kvstrata serve` between prepare and commit, and looks for what they left.
///
/// Each writer reserves slots in the pool, fills half of them, the last by half, and is killed with SIGKILL while it fills
/// them on; some lose their connection or unregister instead, and some are killed while they commit. Another client looks
/// each prompt up, before and after, and again when others have had its memory. What must hold: what was not committed is
/// never found, what was is there as a whole, no byte is another's, and at the end nothing is pinned or reserved.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask torn", args_conflicts_with_subcommands = true)]
struct Args {
    /// Writers
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rounds: u64,
    /// What all choices are made from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The program that serves; by default the `kvstrata` beside this one
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
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
    Writer { args: Vec<String> },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Writer { args }) = &args.command {
        return writer(args);
    }
    let program = match this_program() {
        Ok(program) => program,
        Err(code) => return code,
    };
    let options = Options {
        server: args.server.unwrap_or_else(|| program.with_file_name("kvstrata")),
        writer: (program, vec!["writer".into()]),
        rounds: args.rounds,
        seed: args.seed,
    };
    let mut progress = Progress::new("torn", args.rounds);
    let report = run(&options, &mut progress);
    drop(progress);
    end(args.json, &report, &report.text(), &report.failures)
}
