//! A burst into a full cache: chunks of 1 MiB arrive at 1 GB/s (10^9 bytes per second) for ten seconds, into a pre-faulted
//! L1 of 1 GiB, without an L2 and with a fast one. Each is reserved without waiting, filled and committed, when it is due.
//!
//! Accepted is what got a buffer at once. Reached is the rate at which chunks were filled and committed: a machine whose
//! memory is too slow for the stream falls behind it, and is not refused anything for that. The denominator is the memory
//! itself: copying 1 MiB from the same source into the same region, before and after, with nothing in between.
//!
//! `cargo bench -p kvstrata-benches --bench burst [-- --seconds N] [--gb-per-second X] [--json | --figures FILE]`

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kvstrata_benches::{Figures, append};
use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Context, Found, Get, GetSink, L2Desc, L2Store, MemoryKinds, Miss, Probe, Put, PutSink,
    Stored,
};
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved};
use kvstrata_mem::{Allocate, MmapRegion, RegionOptions, Slab};

const CHUNK: usize = 1 << 20;
const L1: usize = 1 << 30;

/// An L2 as fast as memory: it copies what it is given over the oldest of what it has, and finds nothing.
#[derive(Debug)]
struct Ring {
    desc: L2Desc,
    bytes: Mutex<(usize, Vec<u8>)>,
}

impl Ring {
    fn adapter(len: usize) -> Adapter {
        let desc = L2Desc {
            name: "ring".into(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: 64,
            durable: false,
            shared: false,
        };
        let ring = Self { desc, bytes: Mutex::new((0, vec![1; len])) };
        Adapter { store: Arc::new(ring), remove: None, list: None, usage: None, quotas: None }
    }
}

#[async_trait]
impl L2Store for Ring {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        for (position, item) in request.items.into_iter().enumerate() {
            {
                let mut ring = self.bytes.lock().expect("nobody panics");
                let chunk = item.buf.as_slice().expect("host memory");
                let at = if ring.0 + chunk.len() > ring.1.len() { 0 } else { ring.0 };
                ring.1[at..at + chunk.len()].copy_from_slice(chunk);
                ring.0 = at + chunk.len();
            }
            drop(item);
            done.answer(position, Ok(Stored::Written));
        }
    }

    async fn get(&self, request: Get, done: GetSink) {
        for (position, item) in request.items.into_iter().enumerate() {
            done.answer(position, Answer::Miss(Miss::Absent, Some(item.buf)));
        }
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        request.keys.iter().map(|_| Ok(None)).collect()
    }

    async fn shutdown(&self, _: kvstrata_core::Instant) -> Result<()> {
        Ok(())
    }
}

struct Args {
    seconds: f64,
    gb_per_second: f64,
    json: bool,
    figures: Option<PathBuf>,
}

impl Args {
    fn read() -> std::result::Result<Self, String> {
        let mut args = Self { seconds: 10.0, gb_per_second: 1.0, json: false, figures: None };
        let mut given = std::env::args().skip(1);
        while let Some(flag) = given.next() {
            let number = |given: &mut dyn Iterator<Item = String>| {
                let n = given.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0.0 && *n < 1e6);
                n.ok_or_else(|| format!("{flag} takes a number above 0"))
            };
            match flag.as_str() {
                "--seconds" => args.seconds = number(&mut given)?,
                "--gb-per-second" => args.gb_per_second = number(&mut given)?,
                "--json" => args.json = true,
                "--figures" => args.figures = given.next().map(PathBuf::from),
                "--bench" => {}
                other => {
                    return Err(format!(
                        "{other}: --seconds N, --gb-per-second X, --json and --figures FILE are taken"
                    ));
                }
            }
        }
        Ok(args)
    }
}

/// What a stream came to.
struct Burst {
    l2: &'static str,
    offered: u64,
    accepted: u64,
    gb_per_second: f64,
    /// Copying alone, in the same run.
    memory_gb_per_second: f64,
    evicted: u64,
    stored: u64,
}

fn key(n: u64) -> ObjectKey {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&n.to_le_bytes());
    ObjectKey::new(&scope, ChunkHash::from(hash))
}

fn gb_per_second(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e9 / took.as_secs_f64()
}

/// Copies of 1 MiB into all of a budget, twice over.
fn memory(cache: &dyn Allocate, source: &[u8]) -> f64 {
    let mut bufs: Vec<_> =
        (0..L1 / CHUNK).map(|_| cache.reserve(CHUNK, 4096).expect("an empty budget has room")).collect();
    let start = Instant::now();
    for _ in 0..2 {
        for buf in &mut bufs {
            buf.as_mut_slice().expect("host memory").copy_from_slice(black_box(source));
        }
    }
    gb_per_second(2 * L1, start.elapsed())
}

fn burst(args: &Args, l2: bool) -> Burst {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("threads");
    let options = RegionOptions { prefault: true, ..RegionOptions::default() };
    let slab = Slab::new(vec![MmapRegion::new(L1, &options).expect("memory")]).expect("a region");
    let cache = slab.pool("cache", L1 as u64);
    let source = vec![0x5a; CHUNK];
    let before = memory(&*cache, &source);
    let cx = Context::tokio(runtime.handle().clone());
    let parts = Parts {
        cache: Arc::clone(&cache) as Arc<dyn Allocate>,
        staging: slab.pool("staging", 0),
        eviction: kvstrata_evict::by_name("life-table").expect("known"),
        admission: kvstrata_evict::admission_by_name("always").expect("known"),
        store: kvstrata_policy::store_by_name("default").expect("known"),
        prefetch: kvstrata_policy::prefetch_by_name("default").expect("known"),
        cx,
    };
    let m = Manager::new(parts, Options::default()).expect("good options");
    if l2 {
        m.add_adapter(Ring::adapter(L1 / 2), 1).expect("a free name");
    }
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).expect("good"));
    let offered = (args.seconds * args.gb_per_second * 1e9 / CHUNK as f64).ceil() as u64;
    let mut accepted = 0;
    let start = Instant::now();
    for n in 0..offered {
        let due = Duration::from_secs_f64(n as f64 * CHUNK as f64 / (args.gb_per_second * 1e9));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let keys = [key(n)];
        let rq = m.request(Duration::from_secs(1));
        for reserved in m.try_reserve(&rq, &keys, &KeyMask::all(1), &layouts, Grant::Part) {
            if let Reserved::Granted(mut chunk) = reserved {
                let bytes = chunk.buf().as_mut_slice().expect("host memory");
                bytes.copy_from_slice(black_box(&source));
                accepted += m.commit(vec![chunk]).len() as u64;
            }
        }
    }
    let took = start.elapsed();
    runtime.block_on(m.flush(Duration::from_secs(60))).expect("a fast L2 keeps up");
    let stats = m.usage().stats;
    runtime.block_on(m.shutdown(Duration::from_secs(60))).expect("nothing is in flight");
    m.clear();
    let after = memory(&*cache, &source);
    Burst {
        l2: if l2 { "memory" } else { "none" },
        offered,
        accepted,
        gb_per_second: gb_per_second(accepted as usize * CHUNK, took),
        memory_gb_per_second: (before + after) / 2.0,
        evicted: stats.evicted,
        stored: stats.stored,
    }
}

fn main() {
    let args = Args::read().unwrap_or_else(|usage| {
        eprintln!("{usage}");
        std::process::exit(2);
    });
    let rows: Vec<Burst> = [false, true].map(|l2| burst(&args, l2)).into();
    if args.json {
        let row = |b: &Burst| {
            format!(
                r#"{{"l2":"{}","offered":{},"accepted":{},"accepted_ratio":{:.6},"gb_per_second":{:.3},"memory_gb_per_second":{:.3},"evicted":{},"stored":{}}}"#,
                b.l2,
                b.offered,
                b.accepted,
                b.accepted as f64 / b.offered as f64,
                b.gb_per_second,
                b.memory_gb_per_second,
                b.evicted,
                b.stored
            )
        };
        println!("[{}]", rows.iter().map(row).collect::<Vec<_>>().join(","));
        return;
    }
    println!("1 MiB chunks at {} GB/s for {} s into 1 GiB of L1", args.gb_per_second, args.seconds);
    let headings = ["L2", "offered", "accepted", "accepted %", "GB/s", "memcpy GB/s", "evicted", "stored"];
    let mut table = Figures::new("burst", &headings);
    for b in rows {
        let ratio = 100.0 * b.accepted as f64 / b.offered as f64;
        table.rows.push(vec![
            b.l2.into(),
            b.offered.to_string(),
            b.accepted.to_string(),
            format!("{ratio:.2}"),
            format!("{:.2}", b.gb_per_second),
            format!("{:.2}", b.memory_gb_per_second),
            b.evicted.to_string(),
            b.stored.to_string(),
        ]);
    }
    if let Err(e) = append(&[table], args.figures.as_ref()) {
        eprintln!("--figures: {e}");
        std::process::exit(1);
    }
}
