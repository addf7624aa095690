//! The manager beside LMCache's storage manager, which its cache server uses: the same chunks, sizes and directories, in
//! turn. LMCache runs in a Python of its own (`lmcache_bench.py`), and measures itself.
//!
//! - memory: chunks of 4 KiB, written and read in batches of 64 and 1 024, per chunk. `write` is `reserve_write` and
//!   `finish_write` there; `read` is a prefetch that finds everything in memory, reading, and letting go.
//! - files: all chunks stored through memory to files and waited for, then, with memory emptied, loaded in one request.
//!   There it is the adapter `fs_native`, here `fs`; four workers each, through the page cache.
//!
//! What differs: LMCache's time is Python's; it neither makes nor checks digests; its buffers are torch tensors. Here
//! digests are made and checked.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use kvstrata_benches::{Chart, Figures, append};
use serde_json::{Value, json};

use super::ours::Ours;
use super::{Side, payload};

#[derive(ClapArgs, Debug)]
pub(crate) struct Args {
    /// A Python that has lmcache 0.5.6
    #[arg(long, value_name = "FILE")]
    python: PathBuf,
    /// All of it is done so many times, in turn; the table shows the least
    #[arg(long, default_value_t = 7)]
    rounds: u64,
    /// Files in memory go here
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory_dir: PathBuf,
    /// Files on a disk go here
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Add the tables to this file
    #[arg(long)]
    figures: Option<PathBuf>,
}

const WORKERS: usize = 4;

/// LMCache in a process of its own.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &PathBuf) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/lmcache_bench.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("LMCACHE_LOG_LEVEL", "ERROR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", python.display()))?;
        let to = child.stdin.take().context("stdin")?;
        let from = BufReader::new(child.stdout.take().context("stdout")?);
        // What it says is kept for when it fails; somebody must read it meanwhile.
        if let Some(said) = child.stderr.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(said).lines().map_while(Result::ok) {
                    if line.contains("Error") || line.contains("assert") {
                        eprintln!("lmcache: {line}");
                    }
                }
            });
        }
        Ok(Self { child, to, from })
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.to, "{request}")?;
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            bail!("LMCache's process ended at {request}");
        }
        serde_json::from_str(&line).with_context(|| line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut peer = Peer::start(&args.python)?;
    let tables = [memory(&mut peer, args)?, files(&mut peer, args)?];
    append(&tables, args.figures.as_ref())?;
    Ok(())
}

fn memory(peer: &mut Peer, args: &Args) -> Result<Figures> {
    let mut table =
        Figures::new("lmcache-memory", &["chunks in memory", "kvstrata µs each", "LMCache µs each"]);
    let unit = "µs a chunk, less is better".into();
    table.charts.push(Chart { title: "Chunks in memory beside LMCache".into(), unit, bars: Vec::new() });
    for batch in [64, 1024] {
        let ours = Ours::new(2 * batch, 4096, "lru")?;
        let mut seconds = [const { [const { Vec::new() }; 2] }; 2];
        for round in 0..args.rounds {
            // Ten batches make one round; the least of them counts, on both sides.
            let answer = peer.ask(&json!({"do": "memory", "rounds": 10, "batch": batch}))?;
            for (at, what) in ["write", "read"].into_iter().enumerate() {
                let times: Vec<f64> = serde_json::from_value(answer[what].clone())?;
                seconds[1][at].push(kvstrata_benches::least(&times));
            }
            let mut times = [Vec::new(), Vec::new()];
            for n in 0..10 {
                let keys = Ours::keys((10 * round + n) * batch as u64, batch)?;
                let begun = Instant::now();
                ensure!(ours.write(&keys, &[]) == batch, "all get a buffer");
                times[0].push(begun.elapsed().as_secs_f64() / batch as f64);
                let begun = Instant::now();
                ensure!(ours.read(&keys) == batch, "all are there");
                times[1].push(begun.elapsed().as_secs_f64() / batch as f64);
            }
            seconds[0].iter_mut().zip(&times).for_each(|(s, t)| s.push(kvstrata_benches::least(t)));
        }
        ours.close()?;
        for (at, what) in ["write", "read"].into_iter().enumerate() {
            let what = format!("{what}, batches of {batch}");
            let mut row = vec![what.clone()];
            for (who, label) in ["kvstrata", "LMCache"].into_iter().enumerate() {
                let side = Side { label, seconds: &seconds[who][at], ours: &seconds[0][at] };
                row.push(side.cell(&format!("{:.2}", side.least() * 1e6)));
                side.bar(&mut table, 0, &what, side.least() * 1e6);
            }
            table.rows.push(row);
        }
    }
    Ok(table)
}

fn files(peer: &mut Peer, args: &Args) -> Result<Figures> {
    let headings = ["files", "kvstrata store GB/s", "LMCache", "kvstrata load GB/s", "LMCache", "wrong"];
    let mut table = Figures::new("lmcache-files", &headings);
    for title in ["Storing to files beside LMCache", "Loading from files beside LMCache"] {
        table.charts.push(Chart { title: title.into(), unit: "GB/s".into(), bars: Vec::new() });
    }
    let places = [
        ("in memory, 512 × 64 KiB", &args.memory_dir, 512, 64 << 10),
        ("on disk, 512 × 64 KiB", &args.dir, 512, 64 << 10),
        ("in memory, 128 × 1 MiB", &args.memory_dir, 128, 1 << 20),
        ("on disk, 128 × 1 MiB", &args.dir, 128, 1 << 20),
    ];
    for (place, dir, n, len) in places {
        let sources: Vec<Vec<u8>> = (0..n as u64).map(|n| payload(n, len)).collect();
        let keys = Ours::keys(0, n)?;
        let mut seconds = [const { [const { Vec::new() }; 2] }; 2];
        let mut wrong = 0;
        for _ in 0..args.rounds {
            let dir = tempfile::tempdir_in(dir)?;
            let base_path = dir.path().join("lmcache");
            let request =
                json!({"do": "files", "base_path": base_path, "n": n, "size": len, "workers": WORKERS});
            let answer = peer.ask(&request)?;
            ensure!(answer["found"] == n, "LMCache found {} of {n} chunks", answer["found"]);
            for (at, what) in ["store", "load"].into_iter().enumerate() {
                seconds[1][at].push(answer[what].as_f64().context("seconds")?);
            }
            let ours = Ours::new(n, len, "lru")?.with_files(&dir.path().join("kv"), WORKERS, false)?;
            let begun = Instant::now();
            ours.store(&keys, &sources, n)?;
            seconds[0][0].push(begun.elapsed().as_secs_f64());
            ours.manager.clear();
            let begun = Instant::now();
            let hits = ours.load(&keys);
            seconds[0][1].push(begun.elapsed().as_secs_f64());
            wrong += ours.wrong(&hits, &sources) as u64 + answer["wrong"].as_u64().unwrap_or(n as u64);
            drop(hits);
            ours.close()?;
        }
        let mut row = vec![place.to_owned()];
        for at in [0, 1] {
            for (who, label) in ["kvstrata", "LMCache"].into_iter().enumerate() {
                let side = Side { label, seconds: &seconds[who][at], ours: &seconds[0][at] };
                let gbps = (n * len) as f64 / 1e9 / side.least();
                row.push(side.cell(&format!("{gbps:.2}")));
                side.bar(&mut table, at, place, gbps);
            }
        }
        row.push(wrong.to_string());
        table.rows.push(row);
    }
    Ok(table)
}
