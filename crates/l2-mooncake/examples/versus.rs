//! The attached way against Mooncake's own Python client and against memcpy, in turns, on a running cluster:
//! `versus CLIENT MASTER WHEEL MIB..`, for example `versus 127.0.0.1:50052 127.0.0.1:50051 target/services/mooncake/wheel 1 4`.
//!
//! Each round moves the same 128 MiB each way; the table has the median of the rounds, in GB/s.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use kvstrata_core::{Affinity, ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::{Adapter, Answer, Checked, Context, Get, GetItem, GetSink, Put, PutItem, PutSink, Verify};
use kvstrata_l2_mooncake::{MooncakeConfig, MooncakeContext, MooncakeStore};
use kvstrata_mem::{Allocate, MemfdRegion, Pool, ReadBuf, Region, RegionOptions, Slab};

const TOTAL: usize = 128 << 20;
const ROUNDS: usize = 5;

const PYTHON: &str = r#"
import sys, time, ctypes, mmap
from mooncake.store import MooncakeDistributedStore
s = MooncakeDistributedStore()
assert s.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", sys.argv[1]) == 0
total = int(sys.argv[2])
room = mmap.mmap(-1, 2 * total)
base = ctypes.addressof(ctypes.c_char.from_buffer(room))
ctypes.memset(base, 7, 2 * total)
assert s.register_buffer(base, 2 * total) == 0
print("ready", flush=True)
for line in sys.stdin:
    tag, size = line.split(); size = int(size); n = total // size
    names = [f"py-{tag}-{i}" for i in range(n)]
    at = [base + i * size for i in range(n)]
    t = time.perf_counter(); r = s.batch_put_from(names, at, [size] * n); p = time.perf_counter() - t
    assert all(c == 0 for c in r), r
    at = [a + total for a in at]
    t = time.perf_counter(); r = s.batch_get_into(names, at, [size] * n); g = time.perf_counter() - t
    assert all(c == size for c in r), r
    for name in names: s.remove(name, True)
    print(total / p / 1e9, total / g / 1e9, flush=True)
"#;

fn keys(tag: &str, n: usize) -> Vec<ObjectKey> {
    let scope = KeyScope::new(tag, KvRank::single(), 0, "").expect("a scope");
    (0..n as u32).map(|i| ObjectKey::new(&scope, ChunkHash::new(&i.to_be_bytes()).expect("a hash"))).collect()
}

/// GB/s of a put and of a get of all keys in one batch.
fn ours(
    runtime: &tokio::runtime::Runtime,
    cx: &Context,
    adapter: &Adapter,
    pool: &Arc<Pool>,
    bufs: &[ReadBuf],
    tag: &str,
) -> (f64, f64) {
    let len = bufs[0].len();
    let (keys, layout) = (keys(tag, bufs.len()), Layout::opaque(len as u64).expect("a layout"));
    let deadline = cx.timer.now() + std::time::Duration::from_secs(60);
    let affinity = Affinity::default();
    let item = |(key, buf): (&ObjectKey, &ReadBuf)| PutItem {
        key: key.clone(),
        layout: layout.clone(),
        digest: None,
        buf: buf.clone(),
    };
    let items = keys.iter().zip(bufs).map(item).collect();
    let sink = PutSink::new(
        keys.len(),
        Arc::new(|_, a: kvstrata_core::Result<kvstrata_l2::Stored>| assert!(a.is_ok(), "{a:?}")),
    );
    let start = Instant::now();
    runtime.block_on(adapter.store.put(Put { items, deadline, affinity }, sink));
    let put = (len * keys.len()) as f64 / start.elapsed().as_secs_f64() / 1e9;
    let item = |key: &ObjectKey| GetItem {
        key: key.clone(),
        layout: layout.clone(),
        buf: pool.reserve(len, 4096).expect("room"),
    };
    let items = keys.iter().map(item).collect();
    let sink = GetSink::new(keys.len(), Arc::new(|_, a| assert!(matches!(a, Answer::Loaded(_)), "{a:?}")));
    let start = Instant::now();
    runtime.block_on(adapter.store.get(Get { items, deadline, affinity }, sink));
    let get = (len * keys.len()) as f64 / start.elapsed().as_secs_f64() / 1e9;
    let remove = adapter.remove.as_ref().expect("the ability");
    runtime.block_on(remove.remove(keys.as_slice().into(), deadline));
    (put, get)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [client, master, wheel, sizes @ ..] = args.as_slice() else { panic!("CLIENT MASTER WHEEL MIB..") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().expect("a runtime");
    let cx = Context::tokio(runtime.handle().clone());
    let bytes = 3 * TOTAL;
    let options = RegionOptions { prefault: true, ..RegionOptions::default() };
    let region: Arc<dyn Region> = MemfdRegion::new("versus", bytes, &options).expect("memory");
    let pool = Slab::new(vec![region]).expect("a slab").pool("versus", bytes as u64);
    let own = MooncakeContext {
        l2: cx.clone(),
        run: u64::from(std::process::id()),
        memory: Some(Arc::clone(&pool) as Arc<dyn Allocate>),
    };
    let config = MooncakeConfig {
        client_address: client.clone(),
        master_server_address: Some(master.clone()),
        ..MooncakeConfig::default()
    };
    let store = MooncakeStore::open(&config, &own).expect("a cluster");
    let on = Checked::new(store.adapter(), Verify::On, cx.clone()).adapter;
    let off = Checked::new(store.adapter(), Verify::Off, cx.clone()).adapter;
    let mut python = Command::new("python3")
        .args(["-c", PYTHON, master, &TOTAL.to_string()])
        .env("PYTHONPATH", wheel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3");
    let mut to = python.stdin.take().expect("its input");
    let mut from = BufReader::new(python.stdout.take().expect("its output")).lines();
    let mut line = move || from.next().expect("a line of Python's").expect("text");
    while line() != "ready" {}
    println!("| MiB | Python put / get | ours, no digests | ours, digests | memcpy |");
    for mib in sizes {
        let len = mib.parse::<usize>().expect("a size in MiB") << 20;
        let bufs: Vec<_> = (0..TOTAL / len)
            .map(|i| {
                let mut buf = pool.reserve(len, 4096).expect("room");
                let piece = vec![i as u8 + 1; 1 << 20];
                (0..len).step_by(piece.len()).for_each(|at| buf.write_at(at, &piece).expect("inside"));
                buf.seal(len)
            })
            .collect();
        let (source, mut target) = (vec![1u8; TOTAL], vec![2u8; TOTAL]);
        let mut all: [Vec<f64>; 7] = Default::default();
        for round in 0..ROUNDS {
            let tag = format!("{}-{mib}-{round}", std::process::id());
            let (put, get) = ours(&runtime, &cx, &off, &pool, &bufs, &format!("off-{tag}"));
            writeln!(to, "{tag} {len}").expect("its input");
            let said = line();
            let (p, g) = said.split_once(' ').expect("two numbers");
            let (dput, dget) = ours(&runtime, &cx, &on, &pool, &bufs, &format!("on-{tag}"));
            let start = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            let copy = TOTAL as f64 / start.elapsed().as_secs_f64() / 1e9;
            std::hint::black_box(&target);
            let python = [p, g].map(|v| v.parse::<f64>().expect("a number"));
            for (list, v) in all.iter_mut().zip([python[0], python[1], put, get, dput, dget, copy]) {
                list.push(v);
            }
        }
        let [p, g, put, get, dput, dget, copy] = all.map(median);
        println!("| {mib} | {p:.2} / {g:.2} | {put:.2} / {get:.2} | {dput:.2} / {dget:.2} | {copy:.2} |");
    }
    drop(to);
    drop(python.wait());
}
