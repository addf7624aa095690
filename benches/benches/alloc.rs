//! Reserving a buffer and dropping it, in an empty slab and among 50 000 holes that do not fit.
//!
//! Beside each figure stands the same work done by two ordered maps (holes by length and by address, the simplest
//! allocator that is as exact), bare: without the lock, the accounts and the buffer that a pool's figure includes.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use kvstrata_mem::{Allocate, MmapRegion, Pool, RegionOptions, Slab, UNIT, WriteBuf};

const UNFIT: usize = 50_000;
const CHUNK: usize = 1 << 20;

/// The peer: an exact best fit over ordered maps.
struct Maps {
    by_place: BTreeMap<usize, usize>,
    by_length: BTreeSet<(usize, usize)>,
}

impl Maps {
    fn new(len: usize) -> Self {
        Self { by_place: [(0, len)].into(), by_length: [(len, 0)].into() }
    }

    fn take(&mut self, len: usize) -> Option<usize> {
        let &(hole, at) = self.by_length.range((len, 0)..).next()?;
        self.by_length.remove(&(hole, at));
        self.by_place.remove(&at);
        if hole > len {
            self.by_place.insert(at + len, hole - len);
            self.by_length.insert((hole - len, at + len));
        }
        Some(at)
    }

    fn give(&mut self, at: usize, len: usize) {
        let (mut at, mut len) = (at, len);
        if let Some(next) = self.by_place.remove(&(at + len)) {
            self.by_length.remove(&(next, at + len));
            len += next;
        }
        if let Some((&before, &n)) = self.by_place.range(..at).next_back()
            && before + n == at
        {
            self.by_place.remove(&before);
            self.by_length.remove(&(n, before));
            (at, len) = (before, n + len);
        }
        self.by_place.insert(at, len);
        self.by_length.insert((len, at));
    }
}

fn pool(bytes: usize) -> Arc<Pool> {
    let region = MmapRegion::new(bytes, &RegionOptions::default()).expect("address space");
    Slab::new(vec![region]).expect("slab").pool("cache", bytes as u64)
}

/// A pool with `UNFIT` holes of 1 to 8 units between buffers of one unit, and a free rest of 512 MiB.
fn holed_pool() -> (Arc<Pool>, Vec<WriteBuf>) {
    let pool = pool(UNFIT * UNIT * 6 + (512 << 20));
    let reserve = |n: usize| pool.reserve(n * UNIT, UNIT).expect("room");
    let (holes, walls): (Vec<_>, Vec<_>) = (0..UNFIT).map(|i| (reserve(i % 8 + 1), reserve(1))).unzip();
    drop(holes);
    assert!(pool.slab().usage().holes as usize > UNFIT);
    (pool, walls)
}

fn holed_maps() -> Maps {
    let mut maps = Maps::new(UNFIT * UNIT * 6 + (512 << 20));
    let mut take = |n: usize| (maps.take(n * UNIT).expect("room"), n * UNIT);
    let holes: Vec<_> = (0..UNFIT).map(|i| (take(i % 8 + 1), take(1)).0).collect();
    holes.into_iter().for_each(|(at, len)| maps.give(at, len));
    maps
}

fn reserve_and_drop(c: &mut Criterion) {
    let mut group = c.benchmark_group("reserve_and_drop");
    let empty = pool(512 << 20);
    group.bench_function("pool/empty", |b| b.iter(|| black_box(empty.reserve(CHUNK, UNIT))));
    group.bench_function("pool/empty, sealed and pinned once", |b| {
        b.iter(|| {
            let first = empty.reserve(CHUNK, UNIT).expect("room").seal(CHUNK);
            black_box(first.clone())
        });
    });
    let mut maps = Maps::new(512 << 20);
    group.bench_function("maps/empty", |b| {
        b.iter(|| {
            let at = maps.take(black_box(CHUNK)).expect("room");
            maps.give(at, CHUNK);
        });
    });
    let (holed, _walls) = holed_pool();
    group.bench_function("pool/50k unfit holes", |b| b.iter(|| black_box(holed.reserve(CHUNK, UNIT))));
    let mut maps = holed_maps();
    group.bench_function("maps/50k unfit holes", |b| {
        b.iter(|| {
            let at = maps.take(black_box(CHUNK)).expect("room");
            maps.give(at, CHUNK);
        });
    });
    group.finish();
}

/// A full cache that turns over: the oldest buffer of a ring goes, and one of another size comes, so that every step
/// joins holes and splits one.
fn turn_over(c: &mut Criterion) {
    const RING: usize = 20_000;
    let size = |i: usize| (i * 7919 % 61 + 1) * UNIT;
    let mut group = c.benchmark_group("turn_over");
    let pool = pool(RING * 33 * UNIT);
    let mut ring: Vec<_> = (0..RING).map(|i| pool.reserve(size(i), UNIT).ok()).collect();
    let mut step = 0;
    group.bench_function("pool", |b| {
        b.iter(|| {
            step += 1;
            let oldest = &mut ring[step * 7 % RING];
            *oldest = None;
            *oldest = pool.reserve(size(step), UNIT).ok();
        });
    });
    let mut maps = Maps::new(RING * 33 * UNIT);
    let mut ring: Vec<_> = (0..RING).map(|i| maps.take(size(i)).map(|at| (at, size(i)))).collect();
    let mut step = 0;
    group.bench_function("maps", |b| {
        b.iter(|| {
            step += 1;
            let oldest = &mut ring[step * 7 % RING];
            if let Some((at, len)) = oldest.take() {
                maps.give(at, len);
            }
            *oldest = maps.take(size(step)).map(|at| (at, size(step)));
        });
    });
    group.finish();
}

criterion_group!(benches, reserve_and_drop, turn_over);
criterion_main!(benches);
