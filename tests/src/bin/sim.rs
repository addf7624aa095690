//! Plays a seed, or looks for one that fails.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kvstrata_sim::{Kind, STEPS, run_with, shrunk};

/// Simulates the storage manager over faulty adapters, deterministically: a seed is a run.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// Play this seed; a failure is made smaller and printed step by step
    #[arg(long)]
    seed: Option<u64>,
    /// Play seeds one after the other for so long, and stop at the first that fails
    #[arg(long, value_name = "N", conflicts_with = "seed", default_value_t = 60)]
    seconds: u64,
    /// The first seed of a search; by default it goes by the time of day
    #[arg(long, value_name = "SEED", conflicts_with = "seed")]
    from: Option<u64>,
    /// Steps of a run
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
    /// How many paths each adapter on disks has; by default 1 to 3, as the seed says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16))]
    paths: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A run catches what panics, and says what it was.
    std::panic::set_hook(Box::new(|_| {}));
    let kind = Kind { steps: args.steps, paths: args.paths, plant: None };
    if let Some(seed) = args.seed {
        return play(seed, kind);
    }
    let from = args.from.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs() << 20)
    });
    let start = Instant::now();
    let (mut runs, mut hits, mut said) = (0, 0, Instant::now());
    for seed in from.. {
        let one = run_with(seed, kind);
        runs += 1;
        hits += one.hits;
        if one.failure.is_some() {
            println!("seed {seed} fails after {runs} runs");
            return play(seed, kind);
        }
        if said.elapsed() > Duration::from_secs(10) {
            eprintln!("{runs} runs, {hits} verified chunks, {} s", start.elapsed().as_secs());
            said = Instant::now();
        }
        if start.elapsed() > Duration::from_secs(args.seconds) {
            break;
        }
    }
    println!("{runs} runs of {} steps from seed {from}, {hits} verified chunks: nothing failed", args.steps);
    ExitCode::SUCCESS
}

fn play(seed: u64, kind: Kind) -> ExitCode {
    let one = run_with(seed, kind);
    match shrunk(seed, kind) {
        None => {
            println!("seed {seed}: {} hits, {} misses, trace {:016x}", one.hits, one.misses, one.trace);
            ExitCode::SUCCESS
        }
        Some(schedule) => {
            println!(
                "{schedule}\n\nseed {seed}, {} of {} steps; as found: {}",
                schedule.len(),
                kind.steps,
                one.failure.unwrap_or_default()
            );
            ExitCode::FAILURE
        }
    }
}
