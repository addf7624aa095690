//! The Mooncake adapter beside Mooncake's own Python client and beside memcpy: the same bytes, batched, in turn, over one
//! cluster that this starts on loopback and ends.
//!
//! Two topologies. *Co-located*: the client that is attached to owns the segment. *Remote*: it owns none, and the owner is
//! another process over loopback TCP. In both, Python is attached to the same client as ours (`setup_dummy`); in the
//! second it is also a client of its own (`setup`). Ours is without digests (LMCache's objects without header), and with them.
//!
//! `cargo bench -p kvstrata-benches --bench mooncake [-- --rounds N] [--mib N] [--batches N] [--only WORD] [--steps] [--figures
//! FILE]`, after `cargo xtask services mooncake fetch`. With `--batches` so many are under way at once: from threads of Python's, and
//! as requests of ours.

#[path = "../../crates/l2-mooncake/tests/common/cluster.rs"]
#[expect(dead_code, reason = "no process is killed here")]
mod cluster;
#[path = "mooncake/steps.rs"]
mod steps;

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster::{Cluster, wheel};
use kvstrata_benches::{Figures, append, median};
use kvstrata_core::{Affinity, ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::{
    Adapter, Answer, Call, Checked, Context, Get, GetItem, GetSink, Put, PutDigest, PutItem, PutSink, Stored,
    Verify, all,
};
use kvstrata_l2_mooncake::{Attach, MooncakeConfig, MooncakeContext, MooncakeStore, Route};
use kvstrata_mem::{Allocate, MemfdRegion, Pool, Region, RegionOptions, Slab};
use kvstrata_mooncake_sys::{Source, Target};
use steps::{Steps, Table, Timed};

/// The sizes of objects, in MiB.
const SIZES: [usize; 4] = [1, 4, 16, 32];
/// The owner's segment, and how much is put into it once, so that its pages are there.
const SEGMENT: usize = 1 << 30;

/// Sets the adapters of this process apart.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Mooncake's own client. Per line of input, a name and a size, it puts, gets and removes a batch, and prints the seconds.
const PYTHON: &str = r#"
import sys, time, ctypes, mmap
from concurrent.futures import ThreadPoolExecutor
from mooncake.store import MooncakeDistributedStore
master, mode, client, total, batches = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
each = ThreadPoolExecutor(batches).map if batches > 1 else map
s = MooncakeDistributedStore()
if mode == "attached":
    assert s.setup_dummy(2 * total + (64 << 20), 64 << 20, client) == 0
    base = s.alloc_from_mem_pool(2 * total)
else:
    assert s.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", master) == 0
    room = mmap.mmap(-1, 2 * total)
    base = ctypes.addressof(ctypes.c_char.from_buffer(room))
ctypes.memset(base, 7, 2 * total)
assert s.register_buffer(base, 2 * total) == 0
print("ready", flush=True)
for line in sys.stdin:
    tag, size = line.split(); size = int(size); n = total // size
    names = [f"{tag}-{i}" for i in range(n)]
    at = [base + i * size for i in range(n)]
    to = [a + total for a in at]
    k = max(n // batches, 1)
    parts = [(names[i:i + k], at[i:i + k], to[i:i + k], [size] * k) for i in range(0, n, k)]
    t = time.perf_counter(); put = list(each(lambda b: s.batch_put_from(b[0], b[1], b[3]), parts)); p = time.perf_counter() - t
    t = time.perf_counter(); got = list(each(lambda b: s.batch_get_into(b[0], b[2], b[3]), parts)); g = time.perf_counter() - t
    assert all(c == 0 for part in put for c in part), put
    assert all(c == size for part in got for c in part), got
    assert all(c == 0 for c in s.batch_remove(names, True))
    print(p, g, flush=True)
"#;

/// Who moves a batch there and back; in seconds.
trait Mover {
    fn go(&mut self, name: &str, len: usize) -> (f64, f64);

    /// The requests of the last store and of the last load, if they are known.
    fn steps(&mut self) -> (Steps, Steps) {
        Default::default()
    }
}

struct Python {
    child: Child,
    to: Option<ChildStdin>,
    from: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn start(cluster: &Cluster, mode: &str, client: usize, total: usize, batches: usize) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PYTHON, &format!("127.0.0.1:{}", cluster.ports.master), mode])
            .args([cluster.client(client).to_string(), total.to_string(), batches.to_string()])
            .env("PYTHONPATH", wheel().expect("the wheel"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut python = Self { child, to, from };
        while python.line() != "ready" {}
        python
    }

    fn line(&mut self) -> String {
        self.from.next().expect("a line of Python's, which has ended").expect("text")
    }
}

impl Mover for Python {
    fn go(&mut self, name: &str, len: usize) -> (f64, f64) {
        writeln!(self.to.as_ref().expect("its input"), "{name} {len}").expect("its input");
        let said = self.line();
        let (put, get) = said.split_once(' ').expect("two numbers");
        (put.parse().expect("seconds"), get.parse().expect("seconds"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.to.take());
        drop(self.child.wait());
    }
}

struct Ours {
    timed: Arc<Timed>,
    /// The requests of the last store and of the last load.
    steps: (Steps, Steps),
    runtime: Arc<tokio::runtime::Runtime>,
    cx: Context,
    store: MooncakeStore,
    adapter: Adapter,
    pool: Arc<Pool>,
    total: usize,
    batches: usize,
}

impl Ours {
    fn open(cluster: &Cluster, digests: bool, total: usize, batches: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().expect("a runtime");
        let cx = Context::tokio(runtime.handle().clone());
        let options = RegionOptions { prefault: true, ..RegionOptions::default() };
        let region: Arc<dyn Region> = MemfdRegion::new("bench", 2 * total, &options).expect("memory");
        let pool = Slab::new(vec![region]).expect("a slab").pool("bench", 2 * total as u64);
        let own = MooncakeContext {
            l2: cx.clone(),
            run: u64::from(std::process::id()) << 32 | RUNS.fetch_add(1, Ordering::Relaxed),
            memory: Some(Arc::clone(&pool) as Arc<dyn Allocate>),
        };
        let config = MooncakeConfig { digests, save_chunk_meta: Some(false), ..cluster.config() };
        let way = Attach::connect(cluster.client(0), None, own.run).expect("the client");
        let timed = Arc::new(Timed::new(Arc::new(way)));
        let store =
            MooncakeStore::over(Arc::clone(&timed) as Arc<dyn Route>, &config, &own).expect("a cluster");
        let verify = if digests { Verify::On } else { Verify::Off };
        let adapter = Checked::new(store.adapter(), verify, cx.clone()).adapter;
        let (steps, runtime) = (Default::default(), Arc::new(runtime));
        Self { timed, steps, runtime, cx, store, adapter, pool, total, batches }
    }

    fn put(&self, keys: &[ObjectKey], len: usize) -> f64 {
        let layout = Layout::opaque(len as u64).expect("a layout");
        let item = |key: &ObjectKey| {
            let buf = self.pool.reserve(len, 4096).expect("room").seal(len);
            PutItem { key: key.clone(), layout: layout.clone(), digest: PutDigest::None, buf }
        };
        let answer = |_, a: kvstrata_core::Result<Stored>| assert_eq!(a.expect("a put"), Stored::Written);
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        let put = |keys: &[ObjectKey]| {
            let items = keys.iter().map(item).collect();
            let sink = PutSink::new(keys.len(), Arc::new(answer));
            self.adapter.store.put(Put { items, deadline, affinity: Affinity::default() }, sink)
        };
        let puts: Vec<Call<'_, ()>> = keys.chunks((keys.len() / self.batches).max(1)).map(put).collect();
        self.time(puts)
    }

    /// How long the calls take, at once.
    fn time(&self, calls: Vec<Call<'_, ()>>) -> f64 {
        self.timed.begin();
        let start = Instant::now();
        self.runtime.block_on(all(calls));
        start.elapsed().as_secs_f64()
    }

    fn remove(&self, keys: &[ObjectKey]) {
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        let remove = self.adapter.remove.as_ref().expect("the ability");
        let removed = self.runtime.block_on(remove.remove(keys.into(), deadline));
        removed.into_iter().for_each(|r| assert!(r.expect("a removal")));
    }

    /// Touches the pages of the owner's segment.
    fn fill(&self) {
        let n = self.total >> 20;
        let all: Vec<_> = (0..SEGMENT * 7 / 8 / self.total).map(|i| keys(&format!("fill-{i}"), n)).collect();
        for keys in &all {
            self.put(keys, 1 << 20);
        }
        all.iter().for_each(|keys| self.remove(keys));
    }
}

impl Mover for Ours {
    fn go(&mut self, name: &str, len: usize) -> (f64, f64) {
        let keys = keys(name, self.total / len);
        let put = self.put(&keys, len);
        self.steps.0 = self.timed.end();
        let layout = Layout::opaque(len as u64).expect("a layout");
        let item = |key: &ObjectKey| GetItem {
            key: key.clone(),
            layout: layout.clone(),
            buf: self.pool.reserve(len, 4096).expect("room"),
        };
        let answer = |_, a: Answer| assert!(matches!(a, Answer::Loaded(_)), "{a:?}");
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        let get = |keys: &[ObjectKey]| {
            let items = keys.iter().map(item).collect();
            let sink = GetSink::new(keys.len(), Arc::new(answer));
            self.adapter.store.get(Get { items, deadline, affinity: Affinity::default() }, sink)
        };
        let get = self.time(keys.chunks((keys.len() / self.batches).max(1)).map(get).collect());
        self.steps.1 = self.timed.end();
        self.remove(&keys);
        (put, get)
    }

    fn steps(&mut self) -> (Steps, Steps) {
        std::mem::take(&mut self.steps)
    }
}

/// Our way, called directly: a put and a get, and nothing that makes them an adapter's.
struct Alone {
    route: Arc<dyn Route>,
    pool: Arc<Pool>,
    total: usize,
}

impl Mover for Alone {
    fn go(&mut self, name: &str, len: usize) -> (f64, f64) {
        let n = self.total / len;
        let names: Vec<_> = (0..n).map(|i| format!("{name}-{i}")).collect();
        let room = || (0..n).map(|_| self.pool.reserve(len, 4096).expect("room"));
        let bufs: Vec<_> = room().map(|b| b.seal(len)).collect();
        let from: Vec<_> = bufs.iter().map(Source::of).collect();
        let start = Instant::now();
        let put = self.route.put_from(&names, &from).expect("a put");
        let put_took = start.elapsed().as_secs_f64();
        assert!(put.iter().all(Result::is_ok), "{put:?}");
        let mut bufs: Vec<_> = room().collect();
        let mut to: Vec<_> = bufs.iter_mut().map(Target::of).collect();
        let start = Instant::now();
        let got = self.route.get_into(&names, &mut to).expect("a get");
        let get_took = start.elapsed().as_secs_f64();
        assert!(got.iter().all(|g| *g == Ok(len as u64)), "{got:?}");
        self.route.remove(&names).expect("a removal");
        (put_took, get_took)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let deadline = self.cx.timer.now() + Duration::from_secs(20);
        if let Err(e) = self.runtime.block_on(self.store.adapter().store.shutdown(deadline)) {
            eprintln!("shutdown: {e}");
        }
    }
}

fn keys(tag: &str, n: usize) -> Vec<ObjectKey> {
    let scope = KeyScope::new(tag, KvRank::single(), 0, "").expect("a scope");
    (0..n as u32).map(|i| ObjectKey::new(&scope, ChunkHash::new(&i.to_be_bytes()).expect("a hash"))).collect()
}

/// One thread that copies, out of our memory and back into it.
struct Memcpy {
    pool: Arc<Pool>,
    there: Vec<u8>,
}

impl Mover for Memcpy {
    fn go(&mut self, _: &str, len: usize) -> (f64, f64) {
        let n = self.there.len() / len;
        let from: Vec<_> = (0..n).map(|_| self.pool.reserve(len, 4096).expect("room").seal(len)).collect();
        let mut to: Vec<_> = (0..n).map(|_| self.pool.reserve(len, 4096).expect("room")).collect();
        let start = Instant::now();
        for (buf, there) in from.iter().zip(self.there.chunks_mut(len)) {
            buf.read_at(0, there).expect("inside");
        }
        let put = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for (buf, there) in to.iter_mut().zip(self.there.chunks(len)) {
            buf.write_at(0, there).expect("inside");
        }
        (put, start.elapsed().as_secs_f64())
    }
}

struct Args {
    rounds: usize,
    total: usize,
    batches: usize,
    only: String,
    steps: bool,
    figures: Option<PathBuf>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let mut args = Self {
            rounds: 9,
            total: 128 << 20,
            batches: 1,
            only: String::new(),
            steps: false,
            figures: None,
        };
        let mut given = std::env::args().skip(1);
        while let Some(flag) = given.next() {
            if flag == "--bench" {
                continue;
            }
            if flag == "--steps" {
                args.steps = true;
                continue;
            }
            let value = given.next().ok_or_else(|| format!("{flag} takes a value"))?;
            let number = || value.parse::<usize>().map_err(|e| format!("{flag} {value}: {e}"));
            match flag.as_str() {
                "--rounds" => args.rounds = number()?.max(1),
                "--mib" => args.total = number()?.next_multiple_of(32).clamp(32, 256) << 20,
                "--batches" => args.batches = number()?.clamp(1, 4).next_power_of_two(),
                "--only" => args.only = value,
                "--figures" => args.figures = Some(value.into()),
                _ => {
                    return Err(format!(
                        "{flag}: --rounds, --mib, --batches, --only, --steps and --figures are taken"
                    ));
                }
            }
        }
        Ok(args)
    }
}

/// The middle of the rounds' ratios of two movers' seconds.
fn ratio(of: &[f64], to: &[f64]) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| of / to).collect())
}

/// Everybody, each with memory of its own. The copies of `memcpy`, and the calls of "our way alone", are in that of ours. Who comes
/// first gets what memory was freed last, so that is Python in each other round.
fn movers(cluster: &Cluster, remote: bool, args: &Args, round: usize) -> Vec<(&'static str, Box<dyn Mover>)> {
    let (total, batches) = (args.total, args.batches);
    let attached = || Python::start(cluster, "attached", 0, total, batches);
    let first = (round % 2 == 1).then(attached);
    let plain = Ours::open(cluster, false, total, batches);
    let pool = Arc::clone(&plain.pool);
    let alone = Alone { route: Arc::clone(&plain.timed.inner), pool: Arc::clone(&pool), total };
    let mut movers: Vec<(&str, Box<dyn Mover>)> = vec![
        ("ours, no digests", Box::new(plain)),
        ("ours, digests", Box::new(Ours::open(cluster, true, total, batches))),
        ("Python, attached", Box::new(first.unwrap_or_else(attached))),
        ("our way alone", Box::new(alone)),
        ("memcpy", Box::new(Memcpy { pool, there: vec![2; total] })),
    ];
    if remote {
        movers.push(("Python, own client", Box::new(Python::start(cluster, "own", 0, total, batches))));
    }
    movers
}

fn topology(args: &Args, remote: bool) -> Figures {
    let segment = format!("{}MB", SEGMENT >> 20);
    let cluster = match remote {
        true => Cluster::with_clients(&["0", &segment]),
        false => Cluster::start(&segment),
    };
    let total = args.total;
    Ours::open(&cluster, false, total, 1).fill();
    let mut names = Vec::new();
    let mut seconds: [Vec<(Vec<f64>, Vec<f64>)>; SIZES.len()] = Default::default();
    let mut steps: [Vec<(Table, Table)>; SIZES.len()] = Default::default();
    // Where memory lies decides about a tenth: in each round everybody has other memory.
    for round in 0..args.rounds {
        let mut movers = movers(&cluster, remote, args, round);
        let n = movers.len();
        names = movers.iter().map(|(name, _)| *name).collect();
        for (at, mib) in SIZES.into_iter().enumerate() {
            seconds[at].resize_with(n, Default::default);
            steps[at].resize_with(n, Default::default);
            for i in (0..n).map(|i| (i + round) % n) {
                let mover = &mut movers[i].1;
                // Each follows itself: what ran before, and left in the caches, would decide otherwise.
                mover.go(&format!("m{i}-{mib}-{round}-warm"), mib << 20);
                mover.steps();
                let (put, get) = mover.go(&format!("m{i}-{mib}-{round}"), mib << 20);
                let (of_put, of_get) = mover.steps();
                steps[at][i].0.add(of_put, put);
                steps[at][i].1.add(of_get, get);
                seconds[at][i].0.push(put);
                seconds[at][i].1.push(get);
            }
        }
    }
    let ratios = ["/ Python, attached", if remote { "/ Python, own" } else { "/ memcpy" }];
    let mut table = Figures::new(if remote { "remote owner" } else { "co-located owner" }, &[]);
    table.headings = ["MiB"].into_iter().chain(names.iter().copied()).chain(ratios).map(Into::into).collect();
    for (at, mib) in SIZES.into_iter().enumerate() {
        let seconds = &seconds[at];
        let speed = |all: &[f64]| total as f64 / median(all.to_vec()) / 1e9;
        let mut row = vec![mib.to_string()];
        row.extend(seconds.iter().map(|(put, get)| format!("{:.2} / {:.2}", speed(put), speed(get))));
        for of in [2, if remote { 5 } else { 4 }] {
            let ((put, get), (of_put, of_get)) = (&seconds[0], &seconds[of]);
            row.push(format!("{:.2} / {:.2}", ratio(of_put, put), ratio(of_get, get)));
        }
        eprintln!("{}: {}", table.name, row.join("  "));
        for (name, (put, get)) in names.iter().zip(&steps[at]).filter(|_| args.steps) {
            put.print(&format!("{name}: store"));
            get.print(&format!("{name}: load"));
        }
        table.rows.push(row);
    }
    table
}

fn main() -> ExitCode {
    let run = || -> Result<(), String> {
        let args = Args::read()?;
        wheel()?;
        let topologies = [("co-located", false), ("remote", true)];
        let asked = topologies.iter().filter(|(name, _)| name.contains(&args.only));
        let tables: Vec<_> = asked.map(|(_, remote)| topology(&args, *remote)).collect();
        append(&tables, args.figures.as_ref()).map_err(|e| format!("--figures: {e}"))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
