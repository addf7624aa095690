//! Where threads meet: pins, seal and drop, room that comes free, and the answers of a request. Real code; under
//! `cargo xtask schedules` its locks are a model checker's, which tries every order in which the threads of a small test can
//! go on, and thousands of orders of a larger one. Otherwise the same tests run on the machine's threads, a few times.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use kvstrata_core::{
    ChunkHash, Clock, Error, ErrorKind, Instant, KeyMask, KeyScope, KvRank, Layout, ObjectKey, Result,
};
use kvstrata_l2::{Context, PutSink, Spawn, Stored, Task, Timer};
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved, Wait};
use kvstrata_mem::sync::Mutex;
use kvstrata_mem::{Allocate, HeapRegion, Pool, ReadBuf, Slab, SpaceWatch, UNIT};

/// The machine's own threads, or the model checker's.
#[cfg(not(kvstrata_shuttle))]
mod model {
    pub(crate) use std::thread::spawn;

    const ROUNDS: usize = 200;

    pub(crate) fn every(test: fn()) {
        (0..ROUNDS).for_each(|_| test());
    }

    pub(crate) fn many(test: fn()) {
        every(test);
    }

    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    pub(crate) fn give_way() {
        std::thread::yield_now();
    }
}

#[cfg(kvstrata_shuttle)]
mod model {
    pub(crate) use shuttle::future::block_on;
    pub(crate) use shuttle::thread::{spawn, yield_now as give_way};

    /// Every schedule, or so many that the machine's patience is the only limit.
    pub(crate) fn every(test: fn()) {
        shuttle::check_dfs(test, Some(20_000));
    }

    /// Random schedules, and those with few switches at unlikely places.
    pub(crate) fn many(test: fn()) {
        shuttle::check_random(test, 1000);
        shuttle::check_pct(test, 1000, 3);
    }
}

use model::{block_on, every, give_way, many, spawn};

fn pool(units: usize) -> Arc<Pool> {
    let slab = Slab::new(vec![HeapRegion::new(units * UNIT).unwrap()]).unwrap();
    slab.pool("cache", (units * UNIT) as u64)
}

fn filled(pool: &Pool, byte: u8) -> Result<ReadBuf> {
    let mut buf = pool.reserve(UNIT, UNIT)?;
    buf.as_mut_slice().unwrap().fill(byte);
    Ok(buf.seal(UNIT))
}

fn holds(buf: &ReadBuf, byte: u8) -> bool {
    buf.as_slice().unwrap().iter().all(|b| *b == byte)
}

#[test]
fn the_last_pin_frees_once_and_no_earlier() {
    every(|| {
        let pool = pool(1);
        let first = filled(&pool, 7).unwrap();
        let second = first.clone();
        let readers = [first, second].map(|pin| {
            spawn(move || {
                assert!(holds(&pin, 7), "written while it was pinned");
                drop(pin);
            })
        });
        let writer = {
            let pool = Arc::clone(&pool);
            // It has room only when both pins are gone.
            spawn(move || filled(&pool, 9).map(|buf| assert!(holds(&buf, 9) && buf.pins() == 1)).is_ok())
        };
        readers.into_iter().for_each(|r| r.join().unwrap());
        writer.join().unwrap();
        assert_eq!((pool.usage().used, pool.usage().buffers), (0, 0));
        filled(&pool, 1).expect("free again");
    });
}

/// Counts what it is told; whoever waits looks at the count.
#[derive(Default)]
struct Told(Mutex<u64>);

impl SpaceWatch for Told {
    fn freed(&self, bytes: u64) {
        *self.0.lock() += bytes;
    }
}

#[test]
fn whoever_is_told_of_room_finds_it() {
    every(|| {
        let pool = pool(1);
        let told = Arc::new(Told::default());
        pool.watch_space(told.clone());
        let pin = filled(&pool, 1).unwrap();
        let reader = spawn(move || drop(pin));
        let writer = {
            let (pool, told) = (Arc::clone(&pool), Arc::clone(&told));
            spawn(move || {
                // Tries only once it has been told, as one that sleeps until then.
                let was_told = *told.0.lock() > 0;
                assert!(!was_told || pool.reserve(UNIT, UNIT).is_ok(), "told of room that is not there");
            })
        };
        reader.join().unwrap();
        writer.join().unwrap();
        assert_eq!(*told.0.lock() % UNIT as u64, 0);
        assert!(*told.0.lock() > 0, "nobody was told");
    });
}

#[test]
fn a_pool_and_its_slab_go_after_the_last_buffer() {
    every(|| {
        let pool = pool(2);
        let bufs = [filled(&pool, 1).unwrap(), filled(&pool, 2).unwrap()];
        let threads = bufs.map(|buf| {
            spawn(move || {
                let byte = buf.as_slice().unwrap()[0];
                let again = buf.clone();
                drop(buf);
                assert!(holds(&again, byte), "its region is gone");
            })
        });
        drop(pool);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn each_key_of_a_request_is_answered_once_whoever_answers() {
    every(|| {
        let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
        let to = Arc::clone(&seen);
        let sink = PutSink::new(2, Arc::new(move |i, _: Result<Stored>| to.lock().push(i)));
        let answered = sink.answered();
        let device = {
            let sink = sink.clone();
            spawn(move || {
                // As a driver does before it publishes: from then on no time-out answers for the key.
                if let Some(claim) = sink.claim(0) {
                    claim.answer(Ok(Stored::Written));
                }
            })
        };
        let deadline = spawn(move || {
            sink.answer_rest(|_| Err(Error::new(ErrorKind::TimedOut, "store", "too late")));
        });
        // If nobody wakes the one who waits, this never ends, and the model checker says so.
        block_on(answered);
        let heard: Vec<usize> = seen.lock().clone();
        assert_eq!(heard.len(), 2, "answered, and the receiver heard of {heard:?}");
        assert_eq!(heard.iter().collect::<HashSet<_>>().len(), 2, "{heard:?}");
        device.join().unwrap();
        deadline.join().unwrap();
    });
}

/// Time that stands still: short waits end at once, and deadlines never come.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Instant {
        Instant::ZERO
    }
}

impl Timer for Still {
    fn sleep_until(&self, at: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        if at.as_nanos() < 1_000_000_000 {
            give_way();
            return Box::pin(std::future::ready(()));
        }
        Box::pin(std::future::pending())
    }
}

/// Nothing here needs a task: there are no adapters.
#[derive(Debug)]
struct Nowhere;

impl Spawn for Nowhere {
    fn spawn(&self, task: Task) {
        drop(task);
    }
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

fn manager(chunks: usize) -> Manager {
    let parts = Parts {
        cache: pool(chunks),
        staging: pool(1),
        eviction: kvstrata_evict::by_name("lru").unwrap(),
        admission: kvstrata_evict::admission_by_name("always").unwrap(),
        store: kvstrata_policy::store_by_name("default").unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name("default").unwrap(),
        cx: Context { timer: Arc::new(Still), spawn: Arc::new(Nowhere) },
    };
    Manager::new(parts, Options { typical_chunk: UNIT as u64, ..Options::default() }).unwrap()
}

fn key(n: u8) -> [ObjectKey; 1] {
    let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
    [ObjectKey::new(&scope, ChunkHash::new(&[n]).unwrap())]
}

/// Stores a chunk of this byte, and waits for room as long as that takes.
fn store(m: &Manager, n: u8) {
    let layouts = Layouts::from(Layout::opaque(UNIT as u64).unwrap());
    let rq = m.request(HOUR);
    let key = key(n);
    let all = KeyMask::all(1);
    let reserved = block_on(m.reserve(&rq, &key, &all, &layouts, Grant::Whole, Wait::UntilDeadline));
    for r in reserved {
        let Reserved::Granted(mut chunk) = r else { panic!("{r:?}") };
        chunk.buf().as_mut_slice().unwrap().fill(n);
        m.commit(vec![chunk]);
    }
}

#[test]
fn who_waits_for_room_is_woken_when_the_pin_that_was_in_the_way_ends() {
    many(|| {
        let m = manager(1);
        store(&m, 1);
        let pin = m.read(&m.request(HOUR), &key(1));
        assert!(holds(pin.buf(0).unwrap(), 1));
        let reader = spawn(move || {
            assert!(holds(pin.buf(0).unwrap(), 1), "evicted under its pin");
            drop(pin);
        });
        let writer = {
            let m = m.clone();
            spawn(move || store(&m, 2))
        };
        reader.join().unwrap();
        writer.join().unwrap();
        assert!(m.read(&m.request(HOUR), &key(2)).buf(0).is_some_and(|buf| holds(buf, 2)));
        let u = m.usage();
        assert_eq!((u.pinned, u.reserved, u.cache.used), (0, 0, UNIT as u64));
    });
}

#[test]
fn readers_and_evicting_writers_never_see_each_others_bytes() {
    many(|| {
        let m = manager(2);
        store(&m, 1);
        let writers = [2, 3].map(|n| {
            let m = m.clone();
            spawn(move || store(&m, n))
        });
        let reader = {
            let m = m.clone();
            spawn(move || {
                for n in [1, 2, 1] {
                    let hits = m.read(&m.request(HOUR), &key(n));
                    assert!(hits.buf(0).is_none_or(|buf| holds(buf, n)), "{n} has other bytes");
                    give_way();
                    assert!(hits.buf(0).is_none_or(|buf| holds(buf, n)), "{n} changed under its pin");
                }
            })
        };
        writers.into_iter().for_each(|w| w.join().unwrap());
        reader.join().unwrap();
        let u = m.usage();
        assert_eq!((u.pinned, u.reserved, u.cache.used), (0, 0, 2 * UNIT as u64));
    });
}
