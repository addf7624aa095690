//! The L1 path of the manager, per batch of keys: what an engine pays beside copying its bytes.
//!
//! The denominator is what any index must do: find as many keys in a hash map, and clone a handle of each value.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::Context;
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved};
use kvstrata_mem::{MmapRegion, RegionOptions, Slab, UNIT};

fn manager(chunks: usize) -> (tokio::runtime::Runtime, Manager) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("threads");
    let region = MmapRegion::new(chunks * UNIT, &RegionOptions::default()).expect("memory");
    let slab = Slab::new(vec![region]).expect("a region");
    let parts = Parts {
        cache: slab.pool("cache", (chunks * UNIT) as u64),
        staging: slab.pool("staging", UNIT as u64),
        eviction: kvstrata_evict::by_name("lru").expect("known"),
        admission: kvstrata_evict::admission_by_name("always").expect("known"),
        store: kvstrata_policy::store_by_name("default").expect("known"),
        prefetch: kvstrata_policy::prefetch_by_name("default").expect("known"),
        cx: Context::tokio(runtime.handle().clone()),
    };
    let manager = Manager::new(parts, Options::default()).expect("good options");
    (runtime, manager)
}

fn keys(chain: u32, n: usize) -> Vec<ObjectKey> {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
    let hash = |i: usize| ChunkHash::from(*hash_of(chain, i as u32).first_chunk().expect("32 bytes"));
    (0..n).map(|i| ObjectKey::new(&scope, hash(i))).collect()
}

fn hash_of(chain: u32, i: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&chain.to_le_bytes());
    bytes[4..8].copy_from_slice(&i.to_le_bytes());
    bytes
}

fn store(m: &Manager, keys: &[ObjectKey], layouts: &Layouts) {
    let rq = m.request(Duration::from_secs(1));
    let reserved = m.try_reserve(&rq, keys, &KeyMask::all(keys.len()), layouts, Grant::Whole);
    m.commit(
        reserved
            .into_iter()
            .filter_map(|r| match r {
                Reserved::Granted(chunk) => Some(chunk),
                _ => None,
            })
            .collect(),
    );
}

/// Reserve, commit, read, touch and release, in steady state: each batch evicts another.
fn cycle(c: &mut Criterion) {
    let mut group = c.benchmark_group("L1 cycle per key");
    let layouts = Layouts::from(Layout::opaque(UNIT as u64).expect("good"));
    for batch in [1, 64, 1024] {
        let (_runtime, m) = manager(4096);
        let chains: Vec<Vec<ObjectKey>> =
            (0..(8192 / batch) as u32).map(|chain| keys(chain, batch)).collect();
        let mut next = 0;
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                let k = &chains[next % chains.len()];
                next += 1;
                store(&m, k, &layouts);
                let rq = m.request(Duration::from_secs(1));
                let hits = m.read(&rq, k);
                m.touch(&rq, k, &hits.mask());
                black_box(hits.len())
            });
        });
    }
    group.finish();
}

/// Look up 1 024 resident keys, pin them and let go.
fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup of 1024 resident keys");
    let (_runtime, m) = manager(16_384);
    let layouts = Layouts::from(Layout::opaque(UNIT as u64).expect("good"));
    let chains: Vec<Vec<ObjectKey>> = (0..16).map(|chain| keys(chain, 1024)).collect();
    chains.iter().for_each(|k| store(&m, k, &layouts));
    group.throughput(Throughput::Elements(1024));
    let mut next = 0;
    group.bench_function("manager", |b| {
        b.iter(|| {
            next += 1;
            let rq = m.request(Duration::from_secs(1));
            black_box(m.read(&rq, &chains[next % 16]).len())
        });
    });
    let map: HashMap<ObjectKey, Arc<u64>> =
        chains.iter().flatten().map(|k| (k.clone(), Arc::new(0))).collect();
    group.bench_function("std HashMap and Arc::clone", |b| {
        b.iter(|| {
            next += 1;
            let found: Vec<_> = chains[next % 16].iter().map(|k| map.get(k).cloned()).collect();
            black_box(found.len())
        });
    });
    group.finish();
}

/// 1, 2, 4 and 8 threads, each with chains of its own: hits only, and the whole cycle of a full L1. More threads than cores
/// are reported as not run.
fn threads(c: &mut Criterion) {
    threaded(c, "L1 hits, threads", 1, |m, k, _| {
        let rq = m.request(Duration::from_secs(1));
        black_box(m.read(&rq, k).len());
    });
    // Four times what there is room for, so that each store evicts.
    threaded(c, "L1 cycle, threads", 64, |m, k, layouts| {
        store(m, k, layouts);
        let rq = m.request(Duration::from_secs(1));
        let hits = m.read(&rq, k);
        m.touch(&rq, k, &hits.mask());
        black_box(hits.len());
    });
}

/// What so many threads at once make of `work`, per key; each goes over as many chains of 1 024 keys again and again.
fn threaded(
    c: &mut Criterion,
    name: &str,
    chains_each: u32,
    work: impl Fn(&Manager, &[ObjectKey], &Layouts) + Sync,
) {
    let mut group = c.benchmark_group(name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in [1, 2, 4, 8] {
        if threads > cores {
            println!("{name}/{threads}: not run, this machine has {cores} cores");
            continue;
        }
        let (_runtime, m) = manager(16_384);
        let layouts = Layouts::from(Layout::opaque(UNIT as u64).expect("good"));
        let chains = |thread: u32| (0..chains_each).map(move |n| keys(thread * chains_each + n, 1024));
        let chains: Vec<Vec<Vec<ObjectKey>>> = (0..threads as u32).map(|t| chains(t).collect()).collect();
        chains.iter().flatten().for_each(|k| store(&m, k, &layouts));
        group.throughput(Throughput::Elements(1024 * threads as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter_custom(|rounds| {
                let begun = std::time::Instant::now();
                std::thread::scope(|s| {
                    for own in &chains {
                        s.spawn(|| {
                            own.iter().cycle().take(rounds as usize).for_each(|k| work(&m, k, &layouts))
                        });
                    }
                });
                begun.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cycle, lookup, threads);
criterion_main!(benches);
