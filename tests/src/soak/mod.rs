//! Many clients that connect, store, look up, load and die at random, and what a server holds afterwards.

mod client;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvstrata_testkit::rng::Rng;
use serde::Serialize;

use crate::census::Census;
use crate::live::{Paged, Server};
use crate::report::{Progress, number, table};

pub use client::{ClientArgs, Tally, clients};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that serves: `kvstrata`.
    pub server: PathBuf,
    /// The program that holds clients, and what makes it one: the arguments before those of [`ClientArgs`].
    pub clients_program: (PathBuf, Vec<String>),
    /// How long clients come and go.
    pub seconds: u64,
    /// Clients at a time.
    pub clients: u64,
    /// Processes that they are in.
    pub processes: u64,
    /// How often one of those is killed.
    pub kill_every: Duration,
    /// The mean of a client's pauses, in milliseconds.
    pub pause_ms: u64,
    /// What every choice is made from.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How long clients came and went.
    pub seconds: u64,
    /// Clients at a time.
    pub clients: u64,
    /// Processes of clients that were killed with SIGKILL, all of their clients at once.
    pub kills: u64,
    /// What clients did and saw, those of killed processes until a tenth of a second before.
    pub seen: Tally,
    /// Requests that the server counted.
    pub requests: u64,
    /// Stores that the server dropped unseen.
    pub aborted: u64,
    /// The server's memory of its own at the start and at the end, in KiB.
    pub anonymous_kib: (u64, u64),
    /// Descriptors and named mappings of the server at the start and at the end.
    pub descriptors: (usize, usize),
    /// Mappings of files and shared memory.
    pub mappings: (usize, usize),
    /// Processor seconds that the server used.
    pub cpu_seconds: f64,
    /// What is held or left that should not be, and what clients saw that they should not see.
    pub failures: Vec<String>,
}

impl Report {
    /// As a table.
    pub fn text(&self) -> String {
        let s = &self.seen;
        let rows = [
            ("clients that lived", s.lives),
            ("  whose bytes the server moves", s.paged),
            ("died without a word", s.deaths),
            ("  with slots filled in part", s.deaths_writing),
            ("  with chunks locked or read", s.deaths_reading),
            ("  with a request unanswered", s.deaths_asking),
            ("unregistered", s.farewells),
            ("processes killed", self.kills),
            ("lookups", s.lookups),
            ("  that found something", s.hits),
            ("prompts stored", s.stores),
            ("  refused", s.refused),
            ("prompts read and compared", s.loads),
            ("  chunks of those", s.chunks),
            ("  gone between lookup and load", s.missed),
            ("  wrong", s.wrong),
            ("batches of events", s.batches),
            ("requests", self.requests),
            ("stores dropped unseen", self.aborted),
        ];
        let rows: Vec<_> = rows.iter().map(|(what, n)| vec![(*what).to_owned(), number(*n)]).collect();
        let ((fd, fd_end), (map, map_end)) = (self.descriptors, self.mappings);
        format!(
            "seed {}, {} s, {} clients at a time\n{}the server: {:.1} s of processor time; descriptors {fd} before and \
             {fd_end} after, mappings {map} and {map_end}, memory of its own {} and {} KiB\n",
            self.seed,
            self.seconds,
            self.clients,
            table(&["", "n"], &rows),
            self.cpu_seconds,
            self.anonymous_kib.0,
            self.anonymous_kib.1,
        )
    }
}

/// A process of clients, and what they saw so far.
struct Group {
    child: Child,
    seen: Arc<Mutex<Tally>>,
    reader: Option<JoinHandle<()>>,
}

impl Group {
    fn start(options: &Options, endpoint: &str, seed: u64) -> Self {
        let (program, first) = &options.clients_program;
        let arguments = [
            ("--endpoint", endpoint.to_owned()),
            ("--clients", options.clients.div_ceil(options.processes).to_string()),
            ("--pause-ms", options.pause_ms.to_string()),
            ("--seed", seed.to_string()),
        ];
        let mut command = Command::new(program);
        command.args(first).args(arguments.iter().flat_map(|(name, value)| [name, value.as_str()]));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process of clients");
        let seen = Arc::new(Mutex::new(Tally::default()));
        let (out, kept) = (child.stdout.take().expect("its output"), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // The last line of one that was killed may be cut.
                if let Ok(tally) = serde_json::from_str(&line) {
                    *kept.lock().expect("nobody panics with it") = tally;
                }
            }
        });
        Self { child, seen, reader: Some(reader) }
    }

    /// Ends it, by a kill or by the end of its input; what its clients saw.
    fn end(mut self, kill: bool) -> Tally {
        if kill {
            let _ = self.child.kill();
        } else {
            drop(self.child.stdin.take());
        }
        let _ = self.child.wait();
        self.reader.take().map(JoinHandle::join);
        self.seen.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What its workers had in shared memory goes with nobody.
        let prefix = Paged::prefix(self.child.id());
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// How long what the clients left may take to be given back: the grace of those who may come back is two seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server's own memory may grow by: what its L2 has room for, and twice that for what allocators keep.
const MOST_MORE_KIB: u64 = 192 << 10;

/// Runs clients against a server of its own.
pub fn run(options: &Options, progress: &mut Progress) -> Report {
    // Its objects lie in the server's own memory.
    let l2 = r#"{"type":"mock","max_size_gb":0.0625,"mock_bandwidth_gb":100}"#;
    let flags = ["--l1-size-gb", "0.0625", "--l2-adapter", l2];
    let mut server = Server::start(&options.server, &flags);
    let mut rng = Rng::new(options.seed);
    let start = |rng: &mut Rng| Group::start(options, &server.endpoint, rng.bits());

    // Whatever is made once has been made after a first, small crowd.
    let small = Options { clients: 8, processes: 1, ..options.clone() };
    let first = Group::start(&small, &server.endpoint, rng.bits());
    std::thread::sleep(Duration::from_millis(1500));
    let mut seen = first.end(false);
    let mut failures: Vec<String> =
        server.settle(PATIENCE).iter().map(|h| format!("held before all: {h}")).collect();
    let pid = server.pid().to_string();
    let before = server.census();
    let kib = server.anonymous_kib();

    let mut groups: Vec<Group> = (0..options.processes).map(|_| start(&mut rng)).collect();
    let (begun, mut kills) = (Instant::now(), 0);
    let mut next_kill = begun + options.kill_every;
    while begun.elapsed().as_secs() < options.seconds {
        std::thread::sleep(Duration::from_millis(100));
        if Instant::now() >= next_kill {
            next_kill += options.kill_every;
            let at = rng.below(groups.len() as u64) as usize;
            let killed = std::mem::replace(&mut groups[at], start(&mut rng));
            seen.add(&killed.end(true));
            kills += 1;
        }
        let alive: u64 = groups.iter().map(|g| g.seen.lock().expect("nobody panics with it").lives).sum();
        progress.reached(begun.elapsed().as_secs(), &format!("{} lives", alive + seen.lives));
    }
    let seconds = begun.elapsed().as_secs();
    groups.into_iter().for_each(|group| seen.add(&group.end(false)));

    failures.append(&mut seen.failures);
    if !server.runs() {
        failures.push("the server is gone".into());
        return Report {
            seed: options.seed,
            seconds,
            clients: options.clients,
            kills,
            seen,
            failures,
            ..Report::default()
        };
    }
    failures.extend(server.settle(PATIENCE).iter().map(|held| format!("still held: {held}")));
    let after = Census::settled(&pid, &before, PATIENCE);
    failures.extend(after.beyond(&before).iter().map(|more| format!("left: {more}")));
    let own = server.anonymous_kib();
    if own > kib + MOST_MORE_KIB {
        failures.push(format!("memory of its own: {own} KiB, and {kib} before"));
    }
    let of = |name: &str| server.metric(name) as u64;
    let report = Report {
        seed: options.seed,
        seconds,
        clients: options.clients,
        kills,
        requests: of("kvstrata_server_requests_total"),
        aborted: of(r#"kvstrata_server_stores_total{result="aborted"}"#),
        anonymous_kib: (kib, own),
        descriptors: (before.descriptors.values().sum(), after.descriptors.values().sum()),
        mappings: (before.named.values().sum(), after.named.values().sum()),
        cpu_seconds: server.cpu().as_secs_f64(),
        seen,
        failures,
    };
    if server.stop() {
        return report;
    }
    let mut report = report;
    report.failures.push("the server did not end well, or left its pool".into());
    report
}
