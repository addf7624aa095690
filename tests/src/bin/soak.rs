//! Lets many clients of the cache server come and go.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kvstrata_tests::report::{Progress, end, this_program};
use kvstrata_tests::soak::{ClientArgs, Options, clients, run};

/// Lets clients of `kvstrata serve` connect, store, look up, load and die at random, and looks at what the server holds
/// when they are gone.
///
/// Clients are in a few processes, of which one is killed with SIGKILL now and then; the others lose their connections at any
/// point: with slots filled in part, with chunks locked, with requests unanswered. One in eight has the server move its
/// bytes. What must hold: every byte that is read is the right one; when all are gone no pin, no reservation, no session, no
/// descriptor and no mapping is left beside those of the start.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask soak", args_conflicts_with_subcommands = true)]
struct Args {
    /// How long clients come and go
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Clients at a time
    #[arg(long, value_name = "N", default_value_t = 1000)]
    clients: u64,
    /// Processes that they are in
    #[arg(long, value_name = "N", default_value_t = 4)]
    processes: u64,
    /// Seconds from one kill of such a process to the next
    #[arg(long, value_name = "N", default_value_t = 5)]
    kill_every: u64,
    /// The mean of a client's pauses, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pause_ms: u64,
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
    /// What holds clients
    #[command(hide = true)]
    Clients(ClientArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Clients(args)) = &args.command {
        return clients(args);
    }
    let program = match this_program() {
        Ok(program) => program,
        Err(code) => return code,
    };
    let options = Options {
        server: args.server.unwrap_or_else(|| program.with_file_name("kvstrata")),
        clients_program: (program, vec!["clients".into()]),
        seconds: args.seconds,
        clients: args.clients,
        processes: args.processes.max(1),
        kill_every: Duration::from_secs(args.kill_every.max(1)),
        pause_ms: args.pause_ms,
        seed: args.seed,
    };
    let mut progress = Progress::new("soak", args.seconds);
    let report = run(&options, &mut progress);
    drop(progress);
    end(args.json, &report, &report.text(), &report.failures)
}
