//! `kvstrata config show`: the settings in effect and where each came from.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::flags::ConfigFlags;
use super::report;

#[derive(Subcommand, Debug)]
pub(crate) enum ConfigCommand {
    Show(ShowArgs),
}

/// Print the settings in effect, and where each came from
///
/// Later layers win: built-in defaults, the file, KVSTRATA_… variables, flags.
///
/// Example: kvstrata config show --config kv.toml --l1-size-gb 8
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// Write them here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFlags,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    value: &'a str,
    origin: &'a str,
}

pub(crate) fn run(ConfigCommand::Show(args): ConfigCommand) -> Result<bool> {
    let resolved = args.config.resolve()?;
    let rows = resolved.rows();
    if let Some(path) = &args.json {
        let lines: Vec<Line<'_>> =
            rows.iter().map(|r| Line { name: r.name, value: &r.value, origin: &r.origin }).collect();
        report::write_json(path, &lines)?;
        return Ok(true);
    }
    let width = rows.iter().map(|r| r.value.chars().count()).max().unwrap_or_default().min(60);
    let lines: Vec<(&str, String)> =
        rows.iter().map(|r| (r.name, format!("{:<width$}  {}", r.value, r.origin))).collect();
    report::table(&lines);
    Ok(true)
}
