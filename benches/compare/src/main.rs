//! Others that do what this project does, beside it in the same run: two times taken at different moments prove nothing on
//! a shared machine.
//!
//! Each comparison is a command with a module of its own; every one prints a table, and rows for machines with `--json`.

mod policies;
mod report;

use clap::{Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(about)]
struct Args {
    #[command(subcommand)]
    comparison: Comparison,
}

#[derive(Subcommand, Debug)]
enum Comparison {
    /// Eviction policies as caches in memory: foyer, quick_cache and moka
    Policies(policies::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().comparison {
        Comparison::Policies(args) => policies::run(&args),
    }
}
