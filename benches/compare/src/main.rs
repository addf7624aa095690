//! Others that do what this project does, beside it in the same run: two times taken at different moments prove nothing on
//! a shared machine.
//!
//! Each comparison is a command with a module of its own; every one prints a table, and adds it to a file with `--figures`.

mod policies;
mod tiers;

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
    /// Chunks in memory: foyer
    Memory(tiers::memory::Args),
    /// The life of a block without its bytes: kvbm-logical
    KvbmLogical(tiers::blocks::Args),
    /// Chunks through memory to files and back: foyer
    FoyerDisk(tiers::disk::Args),
    /// Chunks in memory and in files: LMCache, in a Python of its own
    Lmcache(tiers::lmcache::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().comparison {
        Comparison::Policies(args) => policies::run(&args),
        Comparison::Memory(args) => tiers::memory::run(&args),
        Comparison::KvbmLogical(args) => tiers::blocks::run(&args),
        Comparison::FoyerDisk(args) => tiers::disk::run(&args),
        Comparison::Lmcache(args) => tiers::lmcache::run(&args),
    }
}
