//! Stores and loads of the `fs` adapter beside plain `pwrite` and `pread`: the same bytes in the same run, batch by batch in
//! turn, with the same number of threads. Objects of 64 KiB, 1 MiB and 16 MiB; through the page cache and past it; with
//! digests made and checked, and without.
//!
//! It is `kvstrata bench l2`, run once for each row; that command says how it measures.
//!
//! `cargo bench -p kvstrata-benches --bench fs [-- --dir DIR] [--memory-dir DIR] [--rounds N] [--only WORD] [--figures FILE]`

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use kvstrata_benches::{Bar, Chart, Figures, Flags, append, scratch};
use serde_json::{Value, json};

/// One row of the table.
struct Cell {
    place: &'static str,
    dir: PathBuf,
    direct: bool,
    size: &'static str,
    keys: u32,
    batch: u32,
    digests: bool,
}

struct Args {
    dir: PathBuf,
    memory_dir: PathBuf,
    rounds: u32,
    only: String,
    figures: Option<PathBuf>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let flags = Flags::read(&["--dir", "--memory-dir", "--rounds", "--only", "--figures"])?;
        Ok(Self {
            dir: flags.path("--dir").unwrap_or_else(std::env::temp_dir),
            memory_dir: flags.path("--memory-dir").unwrap_or_else(|| "/dev/shm".into()),
            rounds: flags.number("--rounds", 7)?,
            only: flags.text("--only").unwrap_or_default().into(),
            figures: flags.path("--figures"),
        })
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        let places = [
            ("memory", &self.memory_dir, false),
            ("page cache", &self.dir, false),
            ("O_DIRECT", &self.dir, true),
        ];
        for (place, dir, direct) in places {
            for (size, keys, batch) in [("64KiB", 512, 64), ("1MiB", 128, 16), ("16MiB", 8, 4)] {
                for digests in [true, false] {
                    let dir = dir.clone();
                    cells.push(Cell { place, dir, direct, size, keys, batch, digests });
                }
            }
        }
        cells.retain(|cell| cell.place.contains(&self.only) || cell.size.contains(&self.only));
        cells
    }
}

/// What `kvstrata bench l2` says about one row.
fn measure(cell: &Cell, rounds: u32) -> Result<Value, String> {
    let base_path = scratch(&cell.dir, "bench-fs");
    let adapter = json!({"type": "fs", "base_path": base_path, "use_odirect": if cell.direct { json!("require") } else { json!(false) }});
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--release", "-p", "kvstrata", "--bin", "kvstrata", "--", "bench", "l2"]);
    command.args(["--l2-adapter", &adapter.to_string(), "--size", cell.size, "--json", "-"]);
    for (flag, n) in [("--keys", cell.keys), ("--batch", cell.batch), ("--rounds", rounds)] {
        command.args([flag, &n.to_string()]);
    }
    if !cell.digests {
        command.arg("--no-digests");
    }
    let output = command.output().map_err(|e| format!("run kvstrata: {e}"))?;
    remove(&base_path);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| format!("what kvstrata printed: {e}"))
}

fn remove(dir: &Path) {
    if let Err(e) = std::fs::remove_dir_all(dir) {
        eprintln!("{}: {e}", dir.display());
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let args = Args::read()?;
    let mut table = Figures::new(
        "fs",
        &[
            "files, object, digests",
            "store GB/s",
            "pwrite",
            "ratio",
            "load GB/s",
            "pread",
            "ratio",
            "lookup µs",
        ],
    );
    let mut charts = ["Stores of the fs adapter beside pwrite", "Loads of the fs adapter beside pread"]
        .map(|title| Chart { title: title.into(), unit: "GB/s".into(), bars: Vec::new() });
    for cell in args.cells() {
        let digests = if cell.digests { "checked" } else { "off" };
        let what = format!("{}, {}, {digests}", cell.place, cell.size);
        let found = match measure(&cell, args.rounds) {
            Ok(found) => found,
            // A file system without O_DIRECT still gives the other rows.
            Err(why) => {
                eprintln!("{what}: not run: {}", why.trim());
                continue;
            }
        };
        let number = |of: &Value, field: &str| of[field].as_f64().unwrap_or(f64::NAN);
        let (ours, plain) = (|field| number(&found, field), |field| number(&found["plain"], field));
        let mut row = vec![what.clone()];
        for (at, (gbps, ratio)) in
            [("store_gbps", "store_ratio"), ("load_gbps", "load_ratio")].into_iter().enumerate()
        {
            row.extend([ours(gbps), plain(gbps), ours(ratio)].map(|n| format!("{n:.2}")));
            for (label, value) in [("kvstrata", ours(gbps)), ("plain", plain(gbps))] {
                charts[at].bars.push(Bar { group: what.clone(), label: label.into(), value });
            }
        }
        row.push(format!("{:.2}", ours("lookup_us_per_key")));
        eprintln!("{}", row.join("  "));
        table.rows.push(row);
    }
    table.charts = charts.into();
    append(&[table], args.figures.as_ref()).map_err(|e| format!("--figures: {e}"))
}
