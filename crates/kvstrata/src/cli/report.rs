//! What a command tells: a table for people, the same as JSON for programs, and progress while it works.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Writes `value` to `path` as JSON, whole or not at all; `-` is standard output.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    if path == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    let part = path.with_extension("json.part");
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    written.with_context(|| format!("write {}", path.display()))
}

/// Whether the JSON goes to standard output: then nothing else may, or no program could read it.
pub(crate) fn to_stdout(json: Option<&PathBuf>) -> bool {
    json.is_some_and(|path| path == Path::new("-"))
}

/// Rows of a name and its values, aligned.
pub(crate) fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, value) in rows {
        println!("{name:<width$}  {value}");
    }
}

/// A bar on a terminal; elsewhere a line every tenth of the way.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: u64,
    done: u64,
    tell: fn(u64) -> String,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        Self::of(what, total, "{pos}/{len}", |n| n.to_string())
    }

    /// Progress in bytes.
    pub(crate) fn bytes(what: &'static str, total: u64) -> Self {
        Self::of(what, total, "{binary_bytes}/{binary_total_bytes}", bytes)
    }

    fn of(what: &'static str, total: u64, count: &str, tell: fn(u64) -> String) -> Self {
        let style = ProgressStyle::with_template(&format!(
            "{{prefix:>10}} [{{bar:40}}] {count} {{elapsed}} (left: {{eta}}) {{msg}}"
        ));
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_prefix(what);
            bar.set_style(style.expect("the template is constant").progress_chars("=> "));
            bar
        });
        Self { bar, what, total, done: 0, tell }
    }

    pub(crate) fn step(&mut self, n: u64) {
        let tenth = |done: u64| done * 10 / self.total.max(1);
        let before = tenth(self.done);
        self.done += n;
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if tenth(self.done) > before => {
                eprintln!("{}: {}/{}", self.what, (self.tell)(self.done), (self.tell)(self.total));
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Latencies, kept to three digits.
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    pub(crate) fn new() -> Self {
        // From a nanosecond to ten minutes.
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in order"))
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let us = |q| self.0.value_at_quantile(q) as f64 / 1e3;
        Percentiles { p50: us(0.5), p99: us(0.99), p999: us(0.999) }
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Serialize, Debug)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} / {:.1} / {:.1} µs (p50 / p99 / p99.9)", self.p50, self.p99, self.p999)
    }
}

/// Bytes for people.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// 10^9 bytes per second.
pub(crate) fn gbps(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / 1e9 / took.as_secs_f64().max(1e-9)
}

/// Lines of cells under the first of them, the titles: the first `left` columns to the left, the others, numbers, to the
/// right.
pub(crate) fn columns(lines: &[Vec<String>], left: usize) {
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    for line in lines {
        let cells: Vec<String> = (line.iter().zip(&widths).enumerate())
            .map(|(c, (cell, w))| if c < left { format!("{cell:<w$}") } else { format!("{cell:>w$}") })
            .collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds_of_what_was_recorded() {
        let mut l = Latency::new();
        (1..=1000).for_each(|ms| l.record(Duration::from_millis(ms)));
        let p = l.percentiles();
        assert!((p.p50 / 500_000.0 - 1.0).abs() < 2e-3 && (p.p99 / 990_000.0 - 1.0).abs() < 2e-3, "{p}");
    }

    #[test]
    fn bytes_are_written_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)],
            ["0 B", "1023 B", "1.50 KiB", "5.00 GiB"]
        );
    }
}
