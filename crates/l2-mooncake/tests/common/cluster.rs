//! Real processes of Mooncake's on loopback, from the wheel that `cargo xtask services mooncake` fetches.
//!
//! The benchmark and the command's tests take this file too, so it knows the adapter and nothing else of this workspace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvstrata_l2_mooncake::{Attach, MooncakeConfig, Route};

/// Where the wheel is, or why no test that needs it can run.
pub(crate) fn wheel() -> Result<PathBuf, String> {
    let at = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap_or(Path::new("target"))
        .join("services/mooncake/wheel");
    let programs = at.join("mooncake");
    match programs.join("mooncake_client").exists() {
        true => Ok(at),
        false => Err("the wheel of Mooncake is not there: cargo xtask services mooncake fetches it".into()),
    }
}

/// A port that nobody listens at, below those that the system gives to whoever connects.
fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(61) % 12_000;
    let next = || 20_000 + ((first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000) as u16;
    (0..1000).map(|_| next()).find(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok()).expect("a port")
}

/// A master with its clients, which end with this.
pub(crate) struct Cluster {
    wheel: PathBuf,
    dir: tempfile::TempDir,
    master: Option<Child>,
    clients: Vec<Option<Child>>,
    pub(crate) ports: Ports,
    segment: Vec<String>,
}

#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) master: u16,
    pub(crate) metrics: u16,
    pub(crate) clients: [u16; 3],
}

impl Cluster {
    /// A master, and a client whose segment has this size.
    pub(crate) fn start(segment: &str) -> Self {
        Self::with_clients(&[segment])
    }

    /// A master, and a client for each size, three at most.
    pub(crate) fn with_clients(segments: &[&str]) -> Self {
        let ports = Ports {
            master: free_port(),
            metrics: free_port(),
            clients: std::array::from_fn(|_| free_port()),
        };
        let mut cluster = Self {
            wheel: wheel().expect("the wheel"),
            dir: tempfile::tempdir().expect("a directory"),
            master: None,
            clients: segments.iter().map(|_| None).collect(),
            ports,
            segment: segments.iter().map(|s| (*s).to_owned()).collect(),
        };
        cluster.start_master();
        for i in 0..segments.len() {
            cluster.start_client(i);
        }
        cluster
    }

    fn spawn(&self, program: &str, args: &[String]) -> Child {
        let log = self.dir.path().join(format!("{program}.log"));
        // Flags that older releases do not have.
        let newer = "--undefok=local_buffer_size,metrics_host";
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        Command::new(self.wheel.join("mooncake").join(program))
            .args(args)
            .arg(newer)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("a process of Mooncake's")
    }

    pub(crate) fn start_master(&mut self) {
        let Ports { master, metrics, .. } = self.ports;
        self.master = Some(self.spawn(
            "mooncake_master",
            &[
                "--rpc_address=127.0.0.1".into(),
                format!("--rpc_port={master}"),
                "--metrics_host=127.0.0.1".into(),
                format!("--metrics_port={metrics}"),
                // 30 unless set: so long a key stays with a writer that died.
                "--put_start_discard_timeout_sec=5".into(),
            ],
        ));
        // That of 0.3.10 says no more than OK.
        let ready = |page: String| page.contains("\"service_ready\":true") || page.ends_with("\r\n\r\nOK");
        self.wait("the master", || self.get("/health").is_some_and(ready));
    }

    pub(crate) fn start_client(&mut self, i: usize) {
        let port = self.ports.clients[i];
        self.clients[i] = Some(self.spawn(
            "mooncake_client",
            &[
                "--host=127.0.0.1".into(),
                format!("--port={port}"),
                "--metadata_server=P2PHANDSHAKE".into(),
                format!("--master_server_address=127.0.0.1:{}", self.ports.master),
                "--protocol=tcp".into(),
                format!("--global_segment_size={}", self.segment[i]),
                "--local_buffer_size=16MB".into(),
                "--threads=8".into(),
            ],
        ));
        self.wait("the client", || {
            Attach::connect(self.client(i), None, 0).is_ok_and(|a| {
                a.close();
                true
            })
        });
    }

    fn wait(&self, what: &str, ready: impl Fn() -> bool) {
        for _ in 0..600 {
            if ready() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = std::fs::read_to_string(self.dir.path().join("mooncake_client.log")).unwrap_or_default();
        panic!(
            "{what} is not ready after 30 seconds; the client says: {}",
            &log[log.len().saturating_sub(3000)..]
        );
    }

    pub(crate) fn client(&self, i: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.clients[i]))
    }

    /// A page of the master's.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.metrics)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut page = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            page.extend_from_slice(&piece[..n]);
            let text = String::from_utf8_lossy(&page);
            // Not every version of the master closes the connection.
            let len = text.lines().find_map(|l| {
                l.to_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok()
            });
            if let (Some(len), Some(head)) = (len, text.find("\r\n\r\n"))
                && page.len() >= head + 4 + len
            {
                break;
            }
        }
        Some(String::from_utf8_lossy(&page).into_owned())
    }

    /// A counter of the master's.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = self.get("/metrics")?;
        page.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok())
    }

    pub(crate) fn kill_master(&mut self) {
        end(self.master.take());
    }

    pub(crate) fn kill_client(&mut self, i: usize) {
        end(self.clients[i].take());
    }

    /// The process of a client.
    pub(crate) fn client_pid(&self, i: usize) -> u32 {
        self.clients[i].as_ref().expect("a client").id()
    }

    pub(crate) fn config(&self) -> MooncakeConfig {
        MooncakeConfig {
            client_address: self.client(0).to_string(),
            master_server_address: Some(format!("127.0.0.1:{}", self.ports.master)),
            ..MooncakeConfig::default()
        }
    }

    /// Runs a program of Python's with Mooncake's own package; what it prints.
    pub(crate) fn python(&self, program: &str, args: &[String]) -> String {
        let out = Command::new("python3")
            .arg("-c")
            .arg(program)
            .arg(format!("127.0.0.1:{}", self.ports.master))
            .args(args)
            .env("PYTHONPATH", &self.wheel)
            .current_dir(self.dir.path())
            .output()
            .expect("python3");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "python3: {text}\n{}", String::from_utf8_lossy(&out.stderr));
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.clients.drain(..).for_each(end);
        end(self.master.take());
    }
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        drop(child.kill());
        drop(child.wait());
    }
}

/// Stops a process, or lets it go on; returns when that is so.
pub(crate) fn signal(pid: u32, stop: bool) {
    let name = if stop { "-STOP" } else { "-CONT" };
    let done = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill");
    assert!(done.success(), "kill {name} {pid}");
    for _ in 0..2000 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
        if (state == Some('T')) == stop {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("process {pid} does not take {name}");
}
