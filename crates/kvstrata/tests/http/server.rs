//! A server to ask, and a client that asks it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvstrata_server::api::{Key, Request, Tokens};
use kvstrata_server::wire::request_parts;
use kvstrata_zmtp::Dealer;

/// Nothing here takes as long.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

pub(crate) const MOCK: &str = r#"{"type":"mock","name":"disk","max_size_gb":0.1,"mock_bandwidth_gb":100}"#;

/// `kvstrata serve` in a process of its own; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) endpoint: String,
    pub(crate) http: SocketAddr,
    shm: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(format!("/dev/shm{}", self.shm));
    }
}

impl Server {
    /// With 64 MiB of memory, a mock adapter named `disk`, and these flags.
    pub(crate) fn start(more: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("http-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvstrata"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVSTRATA_")) {
            command.env_remove(name);
        }
        command.args([
            "--log",
            "error",
            "serve",
            "--port",
            "0",
            "--http-port",
            "0",
            "--l1-size-gb",
            "0.0625",
        ]);
        command.args(["--l2-adapter", MOCK, "--shm-name", &name]).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the command starts");
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

    /// Whether the process is still there.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }

    /// The most memory that the process had, the shared pool left out, in KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let of = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).expect(name);
            line.trim().trim_end_matches(" kB").parse::<u64>().expect(name)
        };
        of("RssAnon:") + of("RssFile:")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.http, WITHIN).expect("it listens");
        stream.set_read_timeout(Some(WITHIN)).expect("a limit");
        stream.set_write_timeout(Some(WITHIN)).expect("a limit");
        stream
    }

    /// Asks over HTTP: the status, and the body.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
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

    pub(crate) fn metrics(&self) -> String {
        let (status, page) = self.ask("GET", "/metrics", "");
        assert_eq!(status, 200);
        page
    }
}

/// An engine: a client of the wire that speaks LMCache's protocol.
pub(crate) struct Engine {
    dealer: Dealer,
    next: u64,
}

impl Engine {
    pub(crate) async fn connect(server: &Server) -> Self {
        Self { dealer: Dealer::connect(&server.endpoint).await.expect("it listens"), next: 0 }
    }

    /// Asks, and gives the payload of the answer back; empty for `None`.
    pub(crate) async fn ask(&mut self, request: &Request) -> Vec<u8> {
        let parts = request_parts(self.next, request);
        self.next += 1;
        self.dealer.send(&parts).await.expect("it reads");
        let answer = tokio::time::timeout(WITHIN, self.dealer.receive()).await.expect("it answers in time");
        let answer = answer.expect("it answers");
        assert_eq!(answer[..2], parts[..2], "the number and the operation are those of the request");
        answer.get(2).map(|p| p.to_vec()).unwrap_or_default()
    }

    /// Looks a prompt up; how many chunks are there.
    pub(crate) async fn look_up(&mut self, key: Key) -> u8 {
        let status = Request::QueryPrefetchStatus(key.request.clone());
        assert!(self.ask(&Request::Lookup(key)).await.is_empty());
        for _ in 0..2000 {
            if let [chunks] = self.ask(&status).await[..] {
                return chunks;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the lookup does not end");
    }
}

/// A prompt of so many whole chunks of 256 tokens, told apart by its first token.
pub(crate) fn key(prompt: u32, chunks: usize, request: &str, salt: &str, worker: Option<i64>) -> Key {
    let tokens: Vec<u32> = (0..chunks as u32 * 256).map(|i| if i == 0 { prompt } else { i }).collect();
    Key {
        model: "org/model".into(),
        world_size: 1,
        worker,
        tokens: Tokens::from(&tokens[..]),
        start: 0,
        end: tokens.len() as i64,
        request: request.into(),
        salt: salt.into(),
        configs: None,
        readers: 1,
    }
}
