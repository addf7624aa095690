//! Tables of what criterion measured, from the estimates that it leaves in its directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Bar, Chart, Figures};

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// The median of a benchmark in ns; `None` if it was not run.
fn median(dir: &Path, benchmark: &str) -> Result<Option<f64>> {
    let file = dir.join(benchmark).join("new/estimates.json");
    match std::fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => {
            let read = || format!("read {}", file.display());
            let estimates: Estimates =
                serde_json::from_slice(&bytes.with_context(read)?).with_context(read)?;
            Ok(Some(estimates.median.point_estimate))
        }
    }
}

fn ns(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |ns| format!("{ns:.0}"))
}

fn figures(name: &str, headings: &[&str]) -> Figures {
    let headings = headings.iter().map(ToString::to_string).collect();
    Figures { name: name.into(), headings, rows: Vec::new(), charts: Vec::new() }
}

/// Eviction policies at three sizes.
pub(super) fn evict(dir: &Path) -> Result<Figures> {
    let mut table = figures("evict", &["policy", "insert", "touch", "remove", "victim", "pinned"]);
    let mut bars = Vec::new();
    for policy in [
        "noop",
        "FIFO",
        "LRU",
        "MRU",
        "LFU",
        "SIEVE",
        "S3-FIFO",
        "ARC",
        "W-TinyLFU",
        "IsolatedLRU",
        "life-table",
    ] {
        let mut row = vec![policy.to_owned()];
        for operation in ["insert", "touch", "remove", "victim"] {
            let mut cells = Vec::new();
            for size in ["1k", "100k", "10M"] {
                let found = median(dir, &format!("evict_{policy}_{size}/{operation}"))?;
                if let (Some(value), "victim", "100k") = (found, operation, size) {
                    bars.push(Bar { group: policy.into(), label: "turn-over".into(), value });
                }
                cells.push(ns(found));
            }
            row.push(cells.join(" / "));
        }
        row.push(ns(median(dir, &format!("evict_{policy}_150k pinned_victims"))?));
        table.rows.push(row);
    }
    let unit = "ns, less is better".into();
    table.charts.push(Chart { title: "One out, one in, at 100 000 residents".into(), unit, bars });
    Ok(table)
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    full_id: String,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
struct Throughput {
    #[serde(rename = "Elements")]
    elements: Option<u64>,
}

/// Every benchmark of the groups, under criterion's own names.
fn groups(dir: &Path, mut table: Figures, wanted: &[&str]) -> Result<Figures> {
    let mut found = Vec::new();
    below(dir, 4, &mut found)?;
    found.sort();
    for at in found {
        let file = at.join("new/benchmark.json");
        let read = || format!("read {}", file.display());
        let of: Benchmark =
            serde_json::from_slice(&std::fs::read(&file).with_context(read)?).with_context(read)?;
        if !wanted.contains(&of.group_id.as_str()) {
            continue;
        }
        let whole = median(&at, "")?;
        let each = of.throughput.and_then(|t| t.elements).zip(whole).map(|(n, whole)| whole / n as f64);
        table.rows.push(vec![of.full_id, ns(whole), ns(each)]);
    }
    Ok(table)
}

/// The directories of benchmarks, not more than so many levels down.
fn below(dir: &Path, levels: u32, found: &mut Vec<PathBuf>) -> Result<()> {
    if dir.join("new/benchmark.json").is_file() {
        found.push(dir.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if levels > 0 && entry.file_type()?.is_dir() {
            below(&entry.path(), levels - 1, found)?;
        }
    }
    Ok(())
}

/// The allocator.
pub(super) fn alloc(dir: &Path) -> Result<Figures> {
    let table = figures("alloc", &["allocator, 1 MiB", "ns", "ns each"]);
    groups(dir, table, &["reserve_and_drop", "turn_over"])
}

/// The manager's way through memory.
pub(super) fn manager(dir: &Path) -> Result<Figures> {
    let table = figures("manager", &["manager, in memory", "ns a batch", "ns a key"]);
    groups(dir, table, &["L1 cycle per key", "lookup of 1024 resident keys", "L1 hits, threads"])
}
