//! `kvstrata trace`: a made-up trace, for trying things out where no recorded one is at hand.

use std::fs::File;
use std::io::{BufWriter, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kvstrata_testkit::trace::{self, Synthetic};

/// Make up a trace of requests: dialogues behind shared system prompts, and one-off prompts
///
/// The same settings make the same trace, byte for byte. The format is Mooncake's, which `replay` and `simulate` read.
///
/// Example: kvstrata trace --requests 500 --out dialogues.jsonl
#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// Where it goes (`-`: standard output)
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// What everything random is drawn from
    #[arg(long, default_value_t = Synthetic::default().seed)]
    seed: u64,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = Synthetic::default().requests)]
    requests: usize,
    /// Tokens per block
    #[arg(long, value_name = "TOKENS", default_value_t = Synthetic::default().block_tokens)]
    block_tokens: u64,
    /// Mean wait between two new dialogues or one-off prompts, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Synthetic::default().arrival_ms)]
    arrival_ms: u64,
    /// Mean wait between an answer and the next turn, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Synthetic::default().think_ms)]
    think_ms: u64,
    /// Mean number of turns of a dialogue
    #[arg(long, value_name = "N", default_value_t = Synthetic::default().turns)]
    turns: u64,
    /// How many in a hundred arrivals are one-off prompts
    #[arg(long, value_name = "PERCENT", default_value_t = Synthetic::default().one_off_percent)]
    one_off_percent: u64,
    /// Number of shared system prompts
    #[arg(long, value_name = "N", default_value_t = Synthetic::default().system_prompts)]
    system_prompts: u64,
    /// The longest prompt, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = Synthetic::default().max_input_tokens)]
    max_input_tokens: u64,
}

pub(crate) fn run(args: &TraceArgs) -> Result<bool> {
    let settings = Synthetic {
        seed: args.seed,
        requests: args.requests,
        block_tokens: args.block_tokens,
        arrival_ms: args.arrival_ms,
        think_ms: args.think_ms,
        turns: args.turns,
        one_off_percent: args.one_off_percent,
        system_prompts: args.system_prompts,
        max_input_tokens: args.max_input_tokens,
        ..Synthetic::default()
    };
    let requests = settings.generate()?;
    if args.out == Path::new("-") {
        trace::write(stdout().lock(), requests)?;
    } else {
        let file = File::create_new(&args.out).with_context(|| format!("create {}", args.out.display()))?;
        trace::write(BufWriter::new(file), requests)?;
    }
    Ok(true)
}
