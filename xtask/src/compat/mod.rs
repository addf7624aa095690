//! LMCache's own client against `kvstrata serve`.
//!
//! Makes a Python environment under `target/compat` with the released LMCache (about 5 GB with what it brings along), and
//! runs its `bench server` in every shape and both modes of transfer, over several tiers. Each run compares the checksums of
//! what it stored and what it got back. Then its vLLM adapters go through the steps of a request's life, and through kills of
//! the server (`--kills N`, 100 unless given). `cli`, `kills`, `figures` and `dashboard` run alone: LMCache's command line, the
//! kills, what the servers cost side by side, and the queries of `docs/deploy` asked of a real Prometheus. Needs Python 3.11 and a
//! package index; CI does not run it.

mod adapters;
mod cli;
mod figures;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

const LMCACHE: &str = "lmcache==0.5.6";

/// What a run of the client adds to the common flags.
const SHAPES: &[(&str, &[&str])] = &[
    ("one worker", &["--kvcache-shape-spec", "(2,256,16,8,128):float16:2"]),
    ("two workers", &["--tp-size", "2", "--kvcache-shape-spec", "(2,256,16,8,128):float16:2"]),
    (
        "two workers, one plane",
        &["--tp-size", "2", "--use-mla", "--kvcache-shape-spec", "(1,256,16,1,576):float16:4"],
    ),
];

const MODES: [&str; 2] = ["engine_driven", "lmcache_driven"];

/// Where a server listens that is to be found again after a kill: below the ports that the kernel gives to clients. A client
/// that dials a port of those while nobody listens may be given this very port, and then it is connected to itself.
const PORT: u16 = 15_755;

/// A server's shared memory, by the name it was given. Removed when dropped: who is killed leaves it to the next start.
struct Pool {
    name: String,
}

impl Pool {
    fn new(of: &str) -> Self {
        Self { name: format!("{of}_{}", std::process::id()) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::remove_file(format!("/dev/shm/lmcache_l1_pool_{}", self.name));
    }
}

/// A server; killed when dropped.
struct Server {
    child: Child,
    endpoint: String,
    http: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// At this port, and the next one for HTTP; 0 takes any.
    fn start(binary: &Path, adapter: &str, pool: &Pool, port: u16) -> Result<Self> {
        let flags = ["serve", "--l1-size-gb", "1", "--l2-adapter", adapter];
        let http = if port == 0 { 0 } else { port + 1 };
        Self::launch(
            Command::new(binary)
                .args(flags)
                .args(["--port", &port.to_string(), "--http-port", &http.to_string()])
                .args(["--shm-name", &pool.name]),
        )
    }

    /// Starts a server that says where it listens, and waits until it is ready.
    fn launch(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("start the server")?;
        let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut server = Self { child, endpoint: String::new(), http: String::new() };
        for line in lines.by_ref() {
            let line = line?;
            if let Some(at) = line.strip_prefix("listening at ") {
                server.endpoint = at.to_owned();
            } else if let Some(at) = line.strip_prefix("HTTP at ") {
                server.http = at.to_owned();
            } else if line == "ready" {
                return Ok(server);
            }
        }
        bail!("the server ended before it was ready");
    }
}

pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    match args {
        [] => suite(100),
        [flag, n] if flag == "--kills" => suite(n.parse().context("--kills takes a number")?),
        [what] if what == "cli" => Ok(passed(cli::run(&Place::make()?)?)),
        [what, n, modes @ ..] if what == "kills" => {
            let place = Place::make()?;
            let modes = if modes.is_empty() { &MODES.map(str::to_owned)[..] } else { modes };
            Ok(passed(kills(&place, n.parse().context("kills takes a number")?, modes)?))
        }
        [what] if what == "figures" => figures::run(&Place::make()?),
        [what, prometheus] if what == "dashboard" => dashboard(&Place::make()?, prometheus),
        _ => bail!(
            "usage: cargo xtask compat-lmcache [cli | kills N [MODE] | figures | dashboard PROMETHEUS | --kills N]"
        ),
    }
}

fn passed(failed: u32) -> ExitCode {
    println!("{failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The environment, the program, and a folder for both.
struct Place {
    root: PathBuf,
    home: PathBuf,
    venv: PathBuf,
    binary: PathBuf,
}

impl Place {
    /// Makes what is missing of it.
    fn make() -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let home = root.join("target/compat");
        fs::create_dir_all(&home)?;
        let venv = environment(&home)?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built =
            Command::new(cargo).current_dir(&root).args(["build", "--release", "-p", "kvstrata"]).status()?;
        ensure!(built.success(), "kvstrata could not be built");
        let binary = root.join("target/release/kvstrata");
        Ok(Self { root, home, venv, binary })
    }
}

/// Where a server's disk tier lies; removed when dropped.
struct Store(PathBuf);

impl Store {
    fn new(place: &Place) -> Self {
        Self(place.home.join(format!("store-{}", std::process::id())))
    }

    fn adapter(&self) -> String {
        format!(r#"{{"type":"fs","base_path":"{}","max_capacity_gb":2}}"#, self.0.display())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn suite(rounds: u32) -> Result<ExitCode> {
    let place = Place::make()?;
    let Place { venv, binary, .. } = &place;
    let (pool, store) = (Pool::new("compat"), Store::new(&place));
    let tiers = [
        ("mock", r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":100}"#.to_owned()),
        ("fs", store.adapter()),
    ];
    let mut failed = cli::run(&place)?;
    for (tier, adapter) in &tiers {
        let server = Server::start(binary, adapter, &pool, 0)?;
        for (m, mode) in MODES.iter().enumerate() {
            for (n, (shape, flags)) in SHAPES.iter().enumerate() {
                failed += u32::from(!bench(venv, &server, mode, shape, tier, m * 100 + n * 10, flags)?);
            }
            failed += adapters::steps(venv, &server, mode)?;
        }
    }
    drop(store);
    Ok(passed(failed + kills(&place, rounds, &MODES)?))
}

/// Kills under a live client in each mode, over a disk tier of its own.
fn kills(place: &Place, rounds: u32, modes: &[impl AsRef<str>]) -> Result<u32> {
    let mut failed = 0;
    for mode in modes {
        let (pool, store) = (Pool::new("compat"), Store::new(place));
        let start = || Server::start(&place.binary, &store.adapter(), &pool, PORT);
        failed += adapters::kills(&place.venv, mode.as_ref(), rounds, start)?;
    }
    Ok(failed)
}

/// Asks a Prometheus of this machine what the dashboard asks.
fn dashboard(place: &Place, prometheus: &str) -> Result<ExitCode> {
    let done = quiet(&mut Command::new(place.venv.join("bin/python")))
        .arg(place.root.join("xtask/compat/dashboard.py"))
        .args([&place.binary, Path::new(prometheus), &place.root.join("docs/deploy")])
        .status()?;
    Ok(if done.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The environment's folder; made if it is not there.
fn environment(home: &Path) -> Result<PathBuf> {
    let venv = home.join("venv");
    if !venv.join("bin/lmcache").exists() {
        let python = ["python3.11", "python3"]
            .into_iter()
            .find(|p| Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success()));
        let python = python.context("there is no python3")?;
        ensure!(
            Command::new(python).args(["-m", "venv"]).arg(&venv).status()?.success(),
            "no environment was made"
        );
        let pip = Command::new(venv.join("bin/pip")).args(["install", LMCACHE]).status()?;
        ensure!(pip.success(), "{LMCACHE} could not be installed");
    }
    Ok(venv)
}

fn lmcache(venv: &Path) -> Command {
    let mut command = Command::new(venv.join("bin/lmcache"));
    quiet(&mut command);
    command
}

/// Without what LMCache reports home and prints. What Python compiles is kept: LMCache imports torch, which takes half a minute
/// where nothing is.
fn quiet(command: &mut Command) -> &mut Command {
    command
        .env("LMCACHE_TRACK_USAGE", "false")
        .env("LMCACHE_DISABLE_BANNER", "1")
        .env("LMCACHE_LOG_LEVEL", "ERROR")
        .env("PYTHONWARNINGS", "ignore")
        .env_remove("PYTHONDONTWRITEBYTECODE")
}

/// Three requests from `start` on; whether all checksums match.
fn bench(
    venv: &Path,
    server: &Server,
    mode: &str,
    shape: &str,
    tier: &str,
    start: usize,
    flags: &[&str],
) -> Result<bool> {
    let range = [start.to_string(), (start + 3).to_string()];
    let output = lmcache(venv)
        .args(["bench", "server", "--mode", "cpu", "--transfer-mode", mode, "--url", &server.http])
        .args(["--rpc-url", &server.endpoint, "--num-tokens", "1024", "--interval", "0.02"])
        .args(["--start", &range[0], "--end", &range[1]])
        .args(flags)
        .output()
        .context("run lmcache bench server")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |name: &str| {
        let line = text.lines().find(|l| l.trim_start().starts_with(name))?;
        line.rsplit(' ').next()?.parse::<u32>().ok()
    };
    let (ok, bad) = (number("Checksum OK:"), number("Checksum FAIL:"));
    let good = output.status.success() && ok == Some(3) && bad == Some(0);
    println!(
        "{tier}, {mode}, {shape}: {ok:?} checksums match, {bad:?} do not{}",
        if good { "" } else { ": FAILED" }
    );
    if !good {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(good)
}
