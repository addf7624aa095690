//! What this server costs beside LMCache's, on the same machine and in the same minutes.
//!
//! Both servers run at once and are measured in turn with LMCache's own client (`xtask/compat/lookups.py`), several rounds;
//! a figure is the median of its rounds. Medians and ratios go to standard output as the table that docs/performance.md has.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Place, Pool, lmcache, quiet};

const ROUNDS: &str = "3";
const L1_GB: &str = "4";

/// A server of either kind; killed when dropped.
struct Subject {
    child: Child,
    url: String,
    _pool: Pool,
    /// From its start until it answered.
    ready: Duration,
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Subject {
    /// Starts it with flags that both understand, and waits until something listens.
    fn start(mut command: Command, more: &[&str], name: &str) -> Result<Self> {
        let (port, http) = (free_port()?, free_port()?);
        let pool = Pool::new(&format!("figures_{name}"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--http-port", &http.to_string()]);
        command.args(["--l1-size-gb", L1_GB, "--eviction-policy", "LRU", "--shm-name", &pool.name]);
        command.args(["--no-l1-use-lazy", "--supported-transfer-mode", "engine_driven"]);
        command.args(more).stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let mut this =
            Self { child, url: format!("tcp://127.0.0.1:{port}"), _pool: pool, ready: Duration::ZERO };
        let health = format!("127.0.0.1:{http}");
        while !healthy(&health) {
            ensure!(this.child.try_wait()?.is_none(), "{name} ended before it was ready");
            ensure!(begun.elapsed() < Duration::from_secs(120), "{name} is not ready after two minutes");
            sleep(Duration::from_millis(1));
        }
        this.ready = begun.elapsed();
        Ok(this)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory of the process itself in MB, without the pool.
    fn resident_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let of = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).context("a line of its status")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()?)
        };
        Ok((of("VmRSS:")? - of("RssShmem:")?) * 1024.0 / 1e6)
    }

    /// CPU time so far, of user and system together, in ticks.
    fn ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("its name")?.1.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
}

/// Whether something answers there that it is well.
fn healthy(address: &str) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// What each round gave, for both.
fn measure(place: &Place, subjects: [&Subject; 2], rounds: &str, what: &[&str]) -> Result<[Vec<Value>; 2]> {
    let servers = subjects.map(|s| format!("{},{}", s.url, s.pid())).join(";");
    let script = place.root.join("xtask/compat/lookups.py");
    let done = quiet(&mut Command::new(place.venv.join("bin/python")))
        .arg(script)
        .args([&servers, rounds])
        .args(what)
        .output()?;
    let text = String::from_utf8_lossy(&done.stdout);
    match text.lines().last().and_then(|l| serde_json::from_str(l).ok()) {
        Some(value) if done.status.success() => Ok(value),
        _ => bail!("{what:?}: {}", String::from_utf8_lossy(&done.stderr)),
    }
}

fn ours(binary: &Path, more: &[&str]) -> Result<Subject> {
    let mut command = Command::new(binary);
    command.args(["--log", "error", "serve"]);
    Subject::start(command, more, "ours")
}

fn theirs(venv: &Path, more: &[&str]) -> Result<Subject> {
    let mut command = lmcache(venv);
    command.arg("server");
    Subject::start(command, more, "theirs")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A field of several answers.
fn of(answers: &[Value], field: &str) -> f64 {
    median(answers.iter().filter_map(|a| a[field].as_f64()).collect())
}

fn row(what: &str, unit: &str, (here, there): (f64, f64)) {
    println!("| {what} | {here:.2} {unit} | {there:.2} {unit} | {:.3} |", here / there);
}

pub(super) fn run(place: &Place) -> Result<ExitCode> {
    let (us, them) = (ours(&place.binary, &[])?, theirs(&place.venv, &[])?);
    println!("| | kvstrata | LMCache 0.5.6 | ratio |\n|---|---|---|---|");
    // The pool is faulted in behind the start; that is over by now.
    sleep(Duration::from_secs(5));
    const IDLE: Duration = Duration::from_secs(10);
    let before = (us.ticks()?, them.ticks()?);
    sleep(IDLE);
    let share = |now: u64, before: u64| (now - before) as f64 / IDLE.as_secs_f64();
    let idle = (share(us.ticks()?, before.0), share(them.ticks()?, before.1));
    println!("| CPU while idle | {:.1} % | {:.1} % | |", idle.0, idle.1);

    for (tokens, count) in [("4096", "300"), ("131072", "40")] {
        let [here, there] = measure(place, [&us, &them], ROUNDS, &["lookups", tokens, count])?;
        for (field, what) in [
            ("server_ms", "server CPU per lookup"),
            ("p50_ms", "lookup, half"),
            ("p99_ms", "lookup, 99 of 100"),
        ] {
            row(&format!("{what}, {tokens} tokens"), "ms", (of(&here, field), of(&there, field)));
        }
    }
    let [here, there] = measure(place, [&us, &them], ROUNDS, &["clients", "4096", "4"])?;
    row(
        "lookup with four clients, 99 of 100, 4096 tokens",
        "ms",
        (of(&here, "p99_ms"), of(&there, "p99_ms")),
    );
    row("lookups a second with four clients", "", (of(&here, "per_second"), of(&there, "per_second")));
    row("memory without the pool, after all that", "MB", (us.resident_mb()?, them.resident_mb()?));
    drop((us, them));

    // One MB a second: a lookup of what is only there takes seconds.
    let slow = ["--l2-adapter", r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":0.001}"#];
    let (us, them) = (ours(&place.binary, &slow)?, theirs(&place.venv, &slow)?);
    // The second start of both: Python has compiled what it imports by now.
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    row("from the start to the first answer", "ms", (ms(us.ready), ms(them.ready)));
    let [here, there] = measure(place, [&us, &them], "1", &["ping", "300"])?;
    for (field, what) in [
        ("alone_p99_ms", "ping, 99 of 100"),
        ("stalled_p99_ms", "ping while a lookup waits for a slow tier, 99 of 100"),
        ("stalled_max_ms", "the slowest of those pings"),
        ("waited_s", "(that lookup's wait, s)"),
    ] {
        let unit = if field == "waited_s" { "s" } else { "ms" };
        row(what, unit, (of(&here, field), of(&there, field)));
    }
    Ok(ExitCode::SUCCESS)
}
