//! Programs of others that tests talk to: fetched into `target`, on loopback, and stopped by their process ids.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ci::Outcome;
use crate::workspace::Workspace;

/// The package without CUDA: the others' clients need a driver.
const PACKAGE: &str = "mooncake-transfer-engine-non-cuda";
/// The release that CI runs, and that is taken unless another is asked for.
const RELEASE: &str = "0.3.13.post1";
const PORTS: [(&str, u16); 3] = [("master", 50051), ("client", 50052), ("metrics", 9003)];

struct Mooncake {
    at: PathBuf,
    release: String,
}

/// `services mooncake [fetch | start | check | stop] [--release X]`; without a word it fetches, starts and checks. A release takes the
/// place of the one that was fetched before.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut release = RELEASE;
    if let [.., "--release", asked] = words[..] {
        release = asked;
        words.truncate(words.len() - 2);
    }
    let mooncake = Mooncake::of(&Workspace::load()?, release);
    match words[..] {
        ["mooncake", "fetch"] => mooncake.fetch()?,
        ["mooncake"] | ["mooncake", "start"] => {
            mooncake.fetch()?;
            mooncake.start()?;
        }
        ["mooncake", "check"] => mooncake.check()?,
        ["mooncake", "stop"] => mooncake.stop()?,
        _ => bail!("usage: cargo xtask services mooncake [fetch | start | check | stop] [--release X]"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A step of CI: the tests of the Mooncake adapter are ignored where the wheel is not, so here it has to be.
pub(crate) fn fetched(workspace: &Workspace) -> Result<Outcome> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        return Ok(Outcome::NotRun("Mooncake's wheels are for x86-64 Linux".into()));
    }
    match Mooncake::of(workspace, RELEASE).fetch() {
        Ok(()) => Ok(Outcome::Passed),
        Err(e) => {
            println!("{e:#}");
            Ok(Outcome::Failed)
        }
    }
}

impl Mooncake {
    fn of(workspace: &Workspace, release: &str) -> Self {
        Self { at: workspace.root.join("target/services/mooncake"), release: release.to_owned() }
    }

    fn wheel(&self) -> PathBuf {
        self.at.join("wheel")
    }

    fn program(&self, name: &str) -> PathBuf {
        self.wheel().join("mooncake").join(name)
    }

    /// Fetches the wheel and unpacks it, unless that was done, and sees to it that its programs start.
    fn fetch(&self) -> Result<()> {
        let mark = self.at.join("version");
        let release = &self.release;
        if fs::read_to_string(&mark).is_ok_and(|v| v == *release) {
            return self.programs_start();
        }
        fs::create_dir_all(&self.at)?;
        if mark.exists() {
            fs::remove_file(&mark)?;
        }
        let fresh = self.at.join("fetched");
        for old in [&fresh, &self.wheel()] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        println!("fetching {PACKAGE} {release}");
        python(&[
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .arg("--dest")
        .arg(&fresh)
        .arg(format!("{PACKAGE}=={release}"))
        .status()
        .context("python3 is missing. Run: apt-get install python3 python3-pip")?
        .success()
        .then_some(())
        .with_context(|| {
            format!(
                "pip could not fetch {PACKAGE} {release}; above is what it says. Without pip run: apt-get install python3-pip. \
                 Otherwise see that its package index can be reached and run this again"
            )
        })?;
        let wheel = fs::read_dir(&fresh)?.filter_map(Result::ok).map(|e| e.path());
        let wheel = wheel
            .into_iter()
            .find(|p| p.extension().is_some_and(|e| e == "whl"))
            .context("pip fetched no wheel")?;
        let unpacked = python(&["-m", "zipfile", "-e"]).arg(&wheel).arg(self.wheel()).status()?;
        if !unpacked.success() {
            bail!("the wheel could not be unpacked");
        }
        for name in ["mooncake_master", "mooncake_client"] {
            use std::os::unix::fs::PermissionsExt;
            // Unpacked files have no permissions to be run.
            let program = self.program(name);
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("the wheel has no {}", program.display()))?;
        }
        self.programs_start()?;
        fs::remove_dir_all(&fresh)?;
        fs::write(mark, release)?;
        Ok(())
    }

    /// Whether the loader finds every library that the programs need, and which package has it if not.
    fn programs_start(&self) -> Result<()> {
        let missing = || -> Result<Vec<String>> {
            let mut all = Vec::new();
            for name in ["mooncake_master", "mooncake_client"] {
                let out = Command::new("ldd").arg(self.program(name)).output().context("ldd is missing")?;
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                all.extend(
                    text.lines()
                        .filter(|l| l.contains("not found"))
                        .filter_map(|l| l.split_whitespace().next())
                        .map(str::to_owned),
                );
            }
            all.sort();
            all.dedup();
            Ok(all)
        };
        if missing()?.is_empty() {
            return Ok(());
        }
        let packages = ["libibverbs1", "librdmacm1", "libnuma1", "libcurl4"];
        println!("$ apt-get install --yes --no-install-recommends {}", packages.join(" "));
        let install = |args: &[&str]| Command::new("apt-get").args(args).stdout(Stdio::null()).status();
        let update = install(&["update", "--quiet"]);
        let installed = install(&[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat());
        match missing()? {
            none if none.is_empty() => Ok(()),
            libraries => bail!(
                "Mooncake's programs lack {} (apt-get update: {update:?}, install: {installed:?}). Run: apt-get install {}",
                libraries.join(", "),
                packages.join(" ")
            ),
        }
    }

    fn start(&self) -> Result<()> {
        if self.check().is_ok() {
            println!("it runs already");
            return Ok(());
        }
        for (name, port) in PORTS {
            TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!(
                    "port {port}, of the {name}, is taken. If an earlier start left something: cargo xtask services mooncake stop"
                )
            })?;
        }
        let [(_, master), (_, client), (_, metrics)] = PORTS;
        self.spawn(
            "mooncake_master",
            &[
                "--rpc_address=127.0.0.1",
                &format!("--rpc_port={master}"),
                "--metrics_host=127.0.0.1",
                &format!("--metrics_port={metrics}"),
            ],
        )?;
        self.until(|| healthy(metrics), "the master is not healthy")?;
        self.spawn(
            "mooncake_client",
            &[
                "--host=127.0.0.1",
                &format!("--port={client}"),
                "--metadata_server=P2PHANDSHAKE",
                &format!("--master_server_address=127.0.0.1:{master}"),
                "--protocol=tcp",
                "--global_segment_size=1GB",
                "--local_buffer_size=64MB",
                // With its one thread of default a long store holds the heartbeats up.
                "--threads=8",
            ],
        )?;
        self.until(|| TcpStream::connect(("127.0.0.1", client)).is_ok(), "the client does not listen")?;
        println!(
            "--l2-adapter '{{\"type\":\"mooncake_store\",\"master_server_address\":\"127.0.0.1:{master}\",\"client_address\":\"127.0.0.1:{client}\"}}'"
        );
        Ok(())
    }

    fn spawn(&self, name: &str, args: &[&str]) -> Result<()> {
        let log = fs::File::create(self.at.join(format!("{name}.log")))?;
        let child = Command::new(self.program(name))
            .args(args)
            // Flags that older releases do not have.
            .arg("--undefok=local_buffer_size,metrics_host")
            .current_dir(&self.at)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        fs::write(self.at.join(format!("{name}.pid")), child.id().to_string())?;
        Ok(())
    }

    fn until(&self, ready: impl Fn() -> bool, failure: &str) -> Result<()> {
        for _ in 0..300 {
            if ready() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.stop()?;
        bail!("{failure} after 30 seconds; the logs are in {}", self.at.display())
    }

    fn check(&self) -> Result<()> {
        let [_, (_, client), (_, metrics)] = PORTS;
        if !healthy(metrics) {
            bail!("no master is healthy at port {metrics}; cargo xtask services mooncake starts one");
        }
        TcpStream::connect(("127.0.0.1", client)).with_context(|| {
            format!("no client listens at port {client}; cargo xtask services mooncake starts one")
        })?;
        println!("the master is healthy, and the client listens");
        Ok(())
    }

    /// Ends what `start` started, and nothing else: a process id may be another program's by now.
    fn stop(&self) -> Result<()> {
        for name in ["mooncake_client", "mooncake_master"] {
            let file = self.at.join(format!("{name}.pid"));
            let Ok(pid) = fs::read_to_string(&file) else { continue };
            let exe = Path::new("/proc").join(&pid).join("exe");
            let runs = || fs::read_link(&exe).is_ok_and(|p| p.ends_with(name));
            if runs() {
                Command::new("kill").arg(&pid).status()?;
                // So that a start that follows finds its ports free.
                if !(0..100).any(|_| {
                    std::thread::sleep(Duration::from_millis(100));
                    !runs()
                }) {
                    bail!("{name} ({pid}) was told to end, and runs on after 10 seconds");
                }
                println!("{name} ({pid}) has ended");
            }
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

fn python(args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(args);
    command
}

fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut page = [0; 1024];
        let n = stream.read(&mut page)?;
        Ok(String::from_utf8_lossy(&page[..n]).into_owned())
    };
    ask().is_ok_and(|page| page.contains(" 200 "))
}
