//! How late a load is when an adapter hangs, under load: engines that ask a hung adapter, each with a deadline, beside
//! engines that are served by another one. Printed is how long after its deadline a load returned, and what the good
//! adapter's loads took meanwhile; then, with the breaker on, how long after the adapter woke up it served again.
//!
//! `cargo bench -p kvstrata-benches --bench deadlines [-- --loads N] [--within-ms N] [--json]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::{BreakerOptions, Context, Keys};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{AdapterOptions, Grant, Layouts, LoadMode, Manager, Options, Parts, Reserved};
use kvstrata_mem::{MmapRegion, RegionOptions, Slab};

const CHUNK: usize = 64 << 10;
const BATCH: usize = 16;
/// Engines that wait for the hung adapter, and engines that do not.
const WAITING: usize = 16;
const SERVED: usize = 4;

struct Args {
    loads: usize,
    within: Duration,
    json: bool,
}

impl Args {
    fn read() -> Result<Self, String> {
        let mut args = Self { loads: 4_000, within: Duration::from_millis(50), json: false };
        let mut given = std::env::args().skip(1);
        while let Some(flag) = given.next() {
            let mut number = || {
                let n = given.next().and_then(|n| n.parse::<u32>().ok()).filter(|n| *n > 0);
                n.ok_or_else(|| format!("{flag} takes a whole number above 0"))
            };
            match flag.as_str() {
                "--loads" => args.loads = number()? as usize,
                "--within-ms" => args.within = Duration::from_millis(number()?.into()),
                "--json" => args.json = true,
                "--bench" => {}
                other => return Err(format!("{other}: --loads N, --within-ms N and --json are taken")),
            }
        }
        Ok(args)
    }
}

fn keys(chain: u8) -> Vec<ObjectKey> {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
    let key = |i| {
        let mut hash = [0; 32];
        (hash[0], hash[1]) = (chain, i as u8);
        ObjectKey::new(&scope, ChunkHash::from(hash))
    };
    (0..BATCH).map(key).collect()
}

/// A manager without adapters.
fn manager(cx: &Context) -> Manager {
    let chunks = 2048;
    let region = MmapRegion::new(2 * chunks * CHUNK, &RegionOptions::default()).expect("memory");
    let slab = Slab::new(vec![region]).expect("a region");
    let parts = Parts {
        cache: slab.pool("cache", (chunks * CHUNK) as u64),
        staging: slab.pool("staging", (chunks * CHUNK) as u64),
        eviction: kvstrata_evict::by_name("life-table").expect("known"),
        admission: kvstrata_evict::admission_by_name("always").expect("known"),
        store: kvstrata_policy::store_by_name("default").expect("known"),
        prefetch: kvstrata_policy::prefetch_by_name("default").expect("known"),
        cx: cx.clone(),
    };
    Manager::new(parts, Options::default()).expect("good options")
}

/// A manager over an adapter that can be made to hang, which has chain 1, and one that is good, which has chain 2.
async fn stack(breaker: Option<BreakerOptions>) -> (Manager, Injector, Layouts) {
    let cx = Context::tokio(tokio::runtime::Handle::current());
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).expect("good"));
    let script = FaultConfig::scripted(vec![Rule::new(Op::Get, Fault::Hang)]);
    let mock = |name: &str| {
        let config = MockConfig { name: name.into(), ..MockConfig::new(1.0, 100.0) };
        Mock::open(&config, cx.clone()).expect("good settings").adapter()
    };
    let hung = Injector::new(mock("hung"), &script, cx.clone()).expect("a good script");
    hung.arm(false);
    let both = manager(&cx);
    for (chain, adapter) in [(1, hung.adapter()), (2, mock("good"))] {
        // Through a manager of its own, so that nobody else gets the chain.
        let alone = manager(&cx);
        alone.add_adapter(adapter.clone(), 1).expect("a free name");
        store(&alone, &keys(chain), &layouts).await;
        let options = AdapterOptions { breaker: breaker.clone(), ..AdapterOptions::default() };
        both.add_adapter(adapter, options).expect("a free name");
    }
    (both, hung, layouts)
}

async fn store(m: &Manager, keys: &[ObjectKey], layouts: &Layouts) {
    let rq = m.request(Duration::from_secs(10));
    let reserved = m.try_reserve(&rq, keys, &KeyMask::all(keys.len()), layouts, Grant::Whole);
    let granted = reserved.into_iter().map(|r| match r {
        Reserved::Granted(mut chunk) => {
            chunk.buf().as_mut_slice().expect("host memory").fill(7);
            chunk
        }
        other => panic!("an empty cache has room: {other:?}"),
    });
    m.commit(granted.collect());
    m.flush(Duration::from_secs(10)).await.expect("a mock takes it");
}

/// A load of a chain: how many chunks came, how long it took, how late it was.
async fn load(m: &Manager, chain: u8, layouts: &Layouts, within: Duration) -> (usize, Duration, Duration) {
    let keys: Keys = keys(chain).into();
    let start = Instant::now();
    let rq = m.request(within);
    let lookup = m.lookup(&rq, &keys).await;
    let loaded = m.load(lookup, layouts, LoadMode::Prefix).finish().await;
    let took = start.elapsed();
    (loaded.hits.mask().count(), took, took.saturating_sub(within))
}

fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[at].as_secs_f64() * 1e3
}

async fn late(args: &Args) -> (Vec<Duration>, Vec<Duration>) {
    let (m, hung, layouts) = stack(None).await;
    hung.arm(true);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let served: Vec<_> = (0..SERVED)
        .map(|_| {
            let (m, layouts, done) = (m.clone(), layouts.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut all = Vec::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let (chunks, took, _) = load(&m, 2, &layouts, Duration::from_secs(5)).await;
                    assert_eq!(chunks, BATCH, "the good adapter serves");
                    all.push(took);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                all
            })
        })
        .collect();
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let (m, layouts, within) = (m.clone(), layouts.clone(), args.within);
            let loads = args.loads.div_ceil(WAITING);
            tokio::spawn(async move {
                let mut all = Vec::new();
                for _ in 0..loads {
                    let (chunks, took, late) = load(&m, 1, &layouts, within).await;
                    assert!(chunks == 0 && took >= within, "it hangs");
                    all.push(late);
                }
                all
            })
        })
        .collect();
    let mut lateness = Vec::new();
    for task in waiting {
        lateness.extend(task.await.expect("no panic"));
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut good = Vec::new();
    for task in served {
        good.extend(task.await.expect("no panic"));
    }
    hung.arm(false);
    hung.release();
    m.shutdown(Duration::from_secs(10)).await.expect("it woke up");
    lateness.sort_unstable();
    good.sort_unstable();
    (lateness, good)
}

/// How long after the adapter woke up its breaker let a load through that was served.
async fn back(args: &Args) -> (u64, Duration) {
    let breaker = BreakerOptions { cool_down: Duration::from_millis(100), ..BreakerOptions::default() };
    let (m, hung, layouts) = stack(Some(breaker)).await;
    hung.arm(true);
    while m.usage().adapters[0].breaker.is_some_and(|b| b.trips == 0) {
        load(&m, 1, &layouts, args.within).await;
    }
    hung.arm(false);
    hung.release();
    let woke = Instant::now();
    while load(&m, 1, &layouts, args.within).await.0 < BATCH {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(woke.elapsed() < Duration::from_secs(60), "it never came back");
    }
    let took = woke.elapsed();
    let trips = m.usage().adapters[0].breaker.map_or(0, |b| b.trips);
    m.shutdown(Duration::from_secs(10)).await.expect("it woke up");
    (trips, took)
}

fn main() {
    let args = Args::read().unwrap_or_else(|usage| {
        eprintln!("{usage}");
        std::process::exit(2);
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("threads");
    let (late, good) = runtime.block_on(late(&args));
    let (trips, back) = runtime.block_on(back(&args));
    let back = back.as_secs_f64() * 1e3;
    let rows = [("late after the deadline", &late), ("loads from the good adapter", &good)];
    if args.json {
        let row = |(what, all): &(&str, &Vec<Duration>)| {
            let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| quantile(all, part));
            format!(
                r#"{{"what":"{what}","loads":{},"p50_ms":{p50:.3},"p99_ms":{p99:.3},"p999_ms":{p999:.3},"max_ms":{max:.3}}}"#,
                all.len()
            )
        };
        let rows = rows.iter().map(row).collect::<Vec<_>>().join(",");
        println!(r#"{{"rows":[{rows}],"breaker_trips":{trips},"served_again_after_ms":{back:.3}}}"#);
        return;
    }
    println!("{WAITING} engines with {:?} each at a hung adapter, {SERVED} at a good one", args.within);
    println!("{:>28} {:>7} {:>9} {:>9} {:>9} {:>9}", "ms", "loads", "p50", "p99", "p99.9", "max");
    for (what, all) in rows {
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| quantile(all, part));
        println!("{what:>28} {:>7} {p50:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}", all.len());
    }
    println!("breaker: {trips} trips, served again {back:.1} ms after it woke up");
}
