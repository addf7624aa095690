//! The process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::WITHIN;
use crate::census::Census;

/// `kvstrata serve` in a process of its own; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it serves clients.
    pub endpoint: String,
    /// Where it serves operators.
    pub http: SocketAddr,
    shm: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.pool());
    }
}

impl Server {
    /// With these flags, on ports that were free, with nothing of what the environment says. It logs errors only.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start(program: &Path, flags: &[&str]) -> Self {
        Self::start_logging(program, "error", Stdio::inherit(), flags)
    }

    /// With this log level, and its log there.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_logging(program: &Path, level: &str, log: Stdio, flags: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVSTRATA_")) {
            command.env_remove(name);
        }
        command.args(["--log", level, "serve", "--port", "0", "--http-port", "0", "--shm-name", &name]);
        let mut child =
            command.args(flags).stdout(Stdio::piped()).stderr(log).spawn().expect("the command starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let (mut endpoint, mut http, mut shm, mut ready) = (String::new(), None, String::new(), false);
        for line in lines.map_while(Result::ok) {
            if let Some(at) = line.strip_prefix("listening at ") {
                at.clone_into(&mut endpoint);
            } else if let Some(at) = line.strip_prefix("HTTP at http://") {
                http = at.parse().ok();
            } else if let Some(at) = line.strip_prefix("shared memory ") {
                shm = at.split(' ').next().unwrap_or("").into();
            } else if line == "ready" {
                ready = true;
                break;
            }
        }
        let http = http.unwrap_or_else(|| {
            let _ = child.kill();
            panic!("the server says where it listens")
        });
        assert!(ready, "the server ended before it was ready");
        Self { child, endpoint, http, shm }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process is still there.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }

    /// The file that its clients map.
    pub fn pool(&self) -> PathBuf {
        PathBuf::from(format!("/dev/shm{}", self.shm))
    }

    /// Bytes of the pool that have memory behind them.
    pub fn pool_faulted_in(&self) -> u64 {
        File::open(self.pool()).and_then(|f| f.metadata()).expect("the pool").blocks() * 512
    }

    fn status_kib(&self, names: &[&str]) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let of = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).expect(name);
            line.trim().trim_end_matches(" kB").parse::<u64>().expect(name)
        };
        names.iter().map(|name| of(name)).sum()
    }

    /// The memory that the process has, the shared pool left out, in KiB.
    pub fn private_kib(&self) -> u64 {
        self.status_kib(&["RssAnon:", "RssFile:"])
    }

    /// Memory of its own, in KiB: neither the pool nor what it maps of its program.
    pub fn anonymous_kib(&self) -> u64 {
        self.status_kib(&["RssAnon:"])
    }

    /// The processor time that the threads have used which it has.
    pub fn cpu(&self) -> Duration {
        // Nanoseconds on a processor come first.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let of = |task: PathBuf| {
            let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.flatten().filter_map(|t| of(t.path())).sum())
    }

    /// What it holds of the system's.
    pub fn census(&self) -> Census {
        Census::take(&self.pid().to_string())
    }

    /// A connection to its HTTP interface.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.http, WITHIN).expect("it listens");
        stream.set_read_timeout(Some(WITHIN)).expect("a limit");
        stream.set_write_timeout(Some(WITHIN)).expect("a limit");
        stream
    }

    /// Asks over HTTP: the status, and the body.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// Its metrics.
    pub fn metrics(&self) -> String {
        let (status, page) = self.ask("GET", "/metrics", "");
        assert_eq!(status, 200);
        page
    }

    /// One sample of its metrics, by its name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.metrics();
        let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        page.lines().find_map(of).unwrap_or_else(|| panic!("{name} is not on the page:\n{page}"))
    }

    /// What it says of itself.
    pub fn status(&self) -> Value {
        let (status, body) = self.ask("GET", "/status", "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// What is held for clients: sessions, locks, leases, pins, and what is reserved. Empty if nothing is.
    pub fn held(&self) -> Vec<String> {
        let status = self.status();
        let l1 = &status["storage_manager"]["l1_manager"];
        let all = [
            ("sessions", &status["active_sessions"]),
            ("lookups under way", &status["active_prefetch_jobs"]),
            ("locked chunks", &status["held"]["locked_chunks"]),
            ("leases", &status["held"]["leases"]),
            ("leases in quarantine", &status["held"]["quarantined"]),
            ("pinned objects", &l1["read_locked_count"]),
            ("reserved objects", &l1["write_locked_count"]),
            ("staged bytes", &l1["temporary_bytes"]),
            ("stores under way", &status["storage_manager"]["store_controller"]["in_flight_count"]),
        ];
        let held = all.iter().filter(|(_, n)| n.as_u64() != Some(0));
        held.map(|(what, n)| format!("{what}: {n}")).collect()
    }

    /// Waits until nothing is held for clients; what is, if that does not end.
    pub fn settle(&self, patience: Duration) -> Vec<String> {
        let until = Instant::now() + patience;
        loop {
            let held = self.held();
            if held.is_empty() || Instant::now() > until {
                return held;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end, and waits for that; whether it said that all was well.
    pub fn stop(mut self) -> bool {
        let pid = self.pid().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.is_ok_and(|s| s.success()), "it can be asked to end");
        let until = Instant::now() + WITHIN;
        while self.runs() {
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.wait().expect("it ended").success() && !self.pool().exists()
    }
}
