//! The command line: what can be asked, and what the exit status says.

mod bench;
mod doctor;
mod flags;
mod fsck;
mod import;
mod lmcache_flags;
mod ls;
mod plot;
mod replay;
mod report;
mod serve;
mod serve_http;
mod serve_spans;
mod show;
mod simulate;
mod stack;
mod store_path;
mod trace;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Keeps the KV cache of large language models in tiers below GPU memory
///
/// Exit status: 0 all is well, 1 something failed or was found wrong, 2 the command line or the configuration is wrong.
#[derive(Parser, Debug)]
#[command(name = "kvstrata", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log, to standard error: a level, or targets with levels (`info,kvstrata_disk=debug`)
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn")]
    log: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Replay(replay::ReplayArgs),
    Simulate(simulate::SimulateArgs),
    Trace(trace::TraceArgs),
    Ls(ls::LsArgs),
    Fsck(fsck::FsckArgs),
    Import(import::ImportArgs),
    Doctor(doctor::DoctorArgs),
    /// Measure a part of the cache
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Settings: where they come from and what they are
    #[command(subcommand)]
    Config(show::ConfigCommand),
}

/// Runs the command that the process was called with.
pub(crate) fn main() -> ExitCode {
    // The command tries cuFile for itself, in a process of its own that may never come back.
    let mut told = std::env::args_os().skip(1);
    if told.next().is_some_and(|first| first == kvstrata_config::PROBE_COMMAND) {
        return kvstrata_l2_gds::child(told, kvstrata_l2_gds::cuda(), &mut std::io::stdout());
    }
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(e) => return failed(2, &anyhow::anyhow!("--log {}: {e}", cli.log)),
    };
    let mut log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if !std::io::stderr().is_terminal() {
        log = log.with_ansi(false);
    }
    log.init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(1, &e.into()),
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Replay(args) => replay::run(args).await,
            Command::Simulate(args) => simulate::run(args),
            Command::Trace(args) => trace::run(&args),
            Command::Ls(args) => ls::run(args),
            Command::Fsck(args) => fsck::run(args),
            Command::Import(args) => import::run(args).await,
            Command::Doctor(args) => doctor::run(args),
            Command::Bench(command) => bench::run(command).await,
            Command::Config(command) => show::run(command),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let usage = e.chain().any(|e| {
                e.downcast_ref::<kvstrata_core::Error>()
                    .is_some_and(|e| e.kind() == kvstrata_core::ErrorKind::Invalid)
            });
            failed(if usage { 2 } else { 1 }, &e)
        }
    }
}

fn failed(code: u8, e: &anyhow::Error) -> ExitCode {
    eprintln!("kvstrata: {e:#}");
    ExitCode::from(code)
}
