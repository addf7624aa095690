//! Pools of a slab: limits, growth, and who hears of what.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use kvstrata_core::ErrorKind;
use kvstrata_mem::{
    Allocate, HeapRegion, Pool, Region, RegionId, RegionWatch, Slab, SpaceWatch, UNIT, Usage, WriteBuf,
};

fn region(units: usize) -> Arc<dyn Region> {
    HeapRegion::new(units * UNIT).expect("memory")
}

fn slab(units: &[usize]) -> Arc<Slab> {
    Slab::new(units.iter().map(|n| region(*n)).collect()).expect("regions")
}

fn units(n: usize) -> u64 {
    (n * UNIT) as u64
}

#[test]
fn usage_counts_whole_units_until_the_last_handle_is_gone() {
    let slab = slab(&[16]);
    let pool = slab.pool("cache", units(8));
    let first = pool.reserve(1, 1).expect("room");
    let second = pool.reserve(UNIT + 1, UNIT).expect("room");
    let limit = units(8);
    assert_eq!(pool.usage(), Usage { used: units(3), limit, peak: units(3), buffers: 2 });
    let pin = second.seal(UNIT);
    let other = pin.clone();
    drop((first, pin));
    assert_eq!(pool.usage(), Usage { used: units(2), limit, peak: units(3), buffers: 1 }, "still pinned");
    drop(other);
    assert_eq!(pool.usage(), Usage { used: 0, limit, peak: units(3), buffers: 0 });
    assert_eq!((slab.usage().used, slab.usage().holes, slab.usage().largest_hole), (0, 1, units(16)));
}

#[test]
fn budgets_are_separate_and_neither_starves_the_other() {
    let slab = slab(&[16]);
    let (cache, staging) = (slab.pool("cache", units(12)), slab.pool("staging", units(4)));
    let full = cache.reserve(12 * UNIT, UNIT).expect("room");
    let e = cache.reserve(1, 1).expect_err("the cache is full");
    assert_eq!(e.kind(), ErrorKind::NoSpace);
    assert!(e.to_string().contains("pool: cache"), "{e}");
    assert_eq!(staging.reserve(4 * UNIT, UNIT).expect("its own budget").capacity(), 4 * UNIT);
    drop(full);
    assert_eq!((cache.usage().used, staging.usage().used), (0, 0));
}

#[test]
fn bad_requests_name_what_would_be_accepted() {
    let slab = slab(&[8, 4]);
    let pool = slab.pool("cache", units(10));
    for (bytes, align, says) in [
        (0, 4096, "at least one byte"),
        (1, 0, "power-of-two"),
        (1, 3, "power-of-two"),
        (1, 4 << 20, "2097152"),
        (11 * UNIT, 4096, "limit: 40960"),
        (9 * UNIT, 4096, "largest_region: 32768"),
        (usize::MAX, 4096, "largest_region: 32768"),
    ] {
        let e = pool.reserve(bytes, align).expect_err("bad");
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        assert!(e.to_string().contains(says), "{says:?} in {e}");
    }
    let holes = pool.reserve(8 * UNIT, UNIT).expect("the whole first region");
    let e = pool.reserve(2 * UNIT, UNIT).map(drop);
    assert_eq!(e.ok(), Some(()), "the second region has room");
    drop(holes);
    assert_eq!(pool.usage().used, 0, "a refusal changes nothing");
}

#[test]
fn addresses_have_the_alignment_asked_for() {
    let slab = slab(&[64]);
    let pool = slab.pool("cache", units(64));
    let _off_by_one = pool.reserve(1, 1).expect("room");
    for align in [1, 512, 4096, 8192, 64 << 10] {
        let buffer = pool.reserve(100, align).expect("room");
        assert_eq!(buffer.as_ptr().addr().get() % align.max(UNIT), 0, "{align}");
    }
}

#[test]
fn equal_buffers_fill_several_regions_to_the_last_unit() {
    let slab = slab(&[12, 9, 3]);
    let pool = slab.pool("cache", units(24));
    let buffers: Vec<WriteBuf> =
        (0..8).map(|_| pool.reserve(3 * UNIT, UNIT).expect("room for all")).collect();
    assert_eq!(pool.usage().used, units(24));
    let mut places: Vec<_> = buffers.iter().map(|b| (b.region().id(), b.extent().offset)).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 8, "each its own place");
}

#[test]
fn a_limit_moves_at_run_time_and_takes_nothing_away() {
    let slab = slab(&[16]);
    let pool = slab.pool("cache", units(8));
    let buffer = pool.reserve(8 * UNIT, UNIT).expect("room");
    pool.set_limit(units(4));
    assert_eq!((pool.usage().used, pool.usage().limit), (units(8), units(4)));
    assert_eq!(pool.reserve(1, 1).expect_err("above").kind(), ErrorKind::NoSpace);
    drop(buffer);
    assert_eq!(pool.reserve(5 * UNIT, 1).expect_err("larger than the pool").kind(), ErrorKind::Invalid);
    pool.set_limit(units(16));
    assert_eq!(pool.reserve(16 * UNIT, 1).expect("room").len(), 16 * UNIT);
}

#[test]
fn concurrent_reservers_never_exceed_a_limit_and_never_share_a_byte() {
    const THREADS: u8 = 4;
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    let slab = slab(&[20, 13]);
    let pools = [slab.pool("cache", units(17)), slab.pool("staging", units(9))];
    thread::scope(|s| {
        for id in 0..THREADS {
            let pools = &pools;
            s.spawn(move || {
                let mut held = Vec::new();
                for round in 0..rounds {
                    let pool = &pools[round % 2];
                    if let Ok(mut buffer) = pool.reserve((round * 7 % 5 + 1) * UNIT, UNIT) {
                        buffer.as_mut_slice().expect("private").fill(id);
                        held.push(buffer.seal(UNIT));
                    }
                    let usage = pool.usage();
                    assert!(usage.used <= usage.limit && usage.peak <= usage.limit, "{usage:?}");
                    if held.len() > 2 {
                        let oldest = held.remove(0);
                        assert!(oldest.as_slice().expect("private").iter().all(|b| *b == id), "ours alone");
                    }
                }
            });
        }
    });
    let [cache, staging] = pools.each_ref().map(|p| p.usage());
    assert_eq!((cache.used, cache.buffers, staging.used, staging.buffers), (0, 0, 0, 0));
    assert!(cache.peak > 0 && staging.peak > 0);
    assert_eq!((slab.usage().used, slab.usage().holes), (0, 2), "each region is one hole again");
}

#[derive(Default)]
struct Seen(Mutex<Vec<(&'static str, RegionId)>>, Mutex<Weak<Pool>>);

impl RegionWatch for Seen {
    fn added(&self, region: &Arc<dyn Region>) {
        self.0.lock().expect("lock").push(("added", region.id()));
        // A registration takes its time: buffers come and go meanwhile.
        if let Some(pool) = self.1.lock().expect("lock").upgrade() {
            let buffer = pool.reserve(1, 1).expect("room");
            assert_ne!(buffer.region().id(), region.id(), "no buffer before all watches know");
            assert!(!pool.regions().iter().any(|r| r.id() == region.id()));
        }
    }
    fn removed(&self, region: &Arc<dyn Region>) {
        self.0.lock().expect("lock").push(("removed", region.id()));
        // SAFETY: the region is still mapped and holds no buffers.
        assert_eq!(unsafe { region.base().read() }, 0);
    }
}

#[test]
fn watches_hear_of_each_region_once_when_it_comes_and_once_when_it_goes() {
    let slab = slab(&[2]);
    let pool = slab.pool("cache", units(100));
    let (early, late) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
    pool.watch_regions(early.clone());
    *early.1.lock().expect("lock") = Arc::downgrade(&pool);
    let first = slab.regions()[0].id();

    let second = region(50);
    let id = second.id();
    slab.add_region(second.clone()).expect("new");
    assert_eq!(slab.add_region(second).expect_err("twice").kind(), ErrorKind::Invalid);
    slab.watch_regions(late.clone());
    assert_eq!(slab.usage().capacity, units(52));

    let buffer = pool.reserve(50 * UNIT, UNIT).expect("only the new region can hold it");
    assert_eq!(buffer.region().id(), id);
    assert_eq!(slab.remove_region(id).expect_err("in use").kind(), ErrorKind::Busy);
    drop(buffer);
    let gone = slab.remove_region(id).expect("empty");
    assert_eq!(slab.remove_region(id).expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(pool.reserve(3 * UNIT, UNIT).expect_err("too large now").kind(), ErrorKind::Invalid);
    assert_eq!(slab.usage().capacity, units(2));

    let last = pool.reserve(1, 1).expect("room").seal(1);
    drop((pool, slab, gone));
    let told = |s: &Seen| s.0.lock().expect("lock").clone();
    let mut expected = vec![("added", first), ("added", id), ("removed", id)];
    assert_eq!((told(&early), told(&late)), (expected.clone(), expected.clone()), "a buffer keeps the slab");
    drop(last);
    expected.push(("removed", first));
    assert_eq!((told(&early), told(&late)), (expected.clone(), expected));
}

struct Heard(AtomicU64, Weak<Pool>);

impl SpaceWatch for Heard {
    fn freed(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        if let Some(pool) = self.1.upgrade() {
            // Under a lock of the allocator each of these would hang.
            assert!(pool.usage().used + pool.slab().usage().used + bytes > 0);
        }
    }
}

#[test]
fn whatever_makes_room_is_told_outside_the_locks() {
    let slab = slab(&[16]);
    let (cache, staging) = (slab.pool("cache", units(16)), slab.pool("staging", units(16)));
    let heard = Arc::new(Heard(AtomicU64::new(0), Arc::downgrade(&cache)));
    let take = || heard.0.swap(0, Ordering::Relaxed);
    cache.watch_space(heard.clone());

    drop(cache.reserve(3 * UNIT, 1).expect("room"));
    assert_eq!(take(), units(3));
    // The memory is shared, so the other pool's buffers stand in the way too.
    drop(staging.reserve(2 * UNIT, 1).expect("room"));
    assert_eq!(take(), units(2));
    cache.set_limit(units(20));
    assert_eq!(take(), units(4));
    cache.set_limit(units(16));
    assert_eq!(take(), 0, "a lower limit makes no room");
    slab.add_region(region(7)).expect("new");
    assert_eq!(take(), units(7));
    drop(cache);
    drop(staging.reserve(1, 1).expect("room"));
    assert_eq!(take(), 0, "nobody waits for a pool that is gone");
    assert_eq!(Arc::strong_count(&heard), 1);
}

#[test]
fn a_new_pool_may_take_the_number_of_one_that_is_gone_with_all_its_buffers() {
    let slab = slab(&[16]);
    let old = slab.pool("old", units(16));
    let buffer = old.reserve(UNIT, 1).expect("room").seal(1);
    drop(old);
    let new = slab.pool("new", units(16));
    assert_eq!(new.usage().used, 0, "the old pool's buffer is still in its own account");
    drop(buffer);
    assert_eq!((new.usage().used, slab.pool("third", 0).usage().buffers, slab.usage().used), (0, 0, 0));
}
