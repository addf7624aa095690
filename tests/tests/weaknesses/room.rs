//! How room comes free in L1: W7 and W9, on our manager and on models of LMCache's buffer-only mode and its disk lock.

use std::collections::HashMap;
use std::time::Duration;

use kvstrata_core::{ErrorKind, KeyMask, Layout, ObjectKey};
use kvstrata_evict::EvictionPolicy;
use kvstrata_l2::{Context, Keys};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{Grant, Hits, Layouts, LoadAnswer, LoadMode, Manager, Options, Parts, Reserved};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_testkit::payload;

use crate::support::{Got, LEN, ensure, found, key};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// What fits into L1, in chunks.
pub(crate) const ROOM: usize = 16;

fn layouts() -> Layouts {
    Layout::opaque(LEN as u64).expect("a layout").into()
}

pub(crate) fn manager(eviction: Box<dyn EvictionPolicy>, store: &str, staging: usize) -> Manager {
    let slab = Slab::new(vec![HeapRegion::new((ROOM + staging) * LEN).expect("memory")]).expect("memory");
    let parts = Parts {
        cache: slab.pool("cache", (ROOM * LEN) as u64),
        staging: slab.pool("staging", (staging * LEN) as u64),
        eviction,
        admission: kvstrata_evict::admission_by_name("always").expect("a rule"),
        store: kvstrata_policy::store_by_name(store).expect("a policy"),
        prefetch: kvstrata_policy::prefetch_by_name("default").expect("a policy"),
        cx: Context::tokio(tokio::runtime::Handle::current()),
    };
    Manager::new(parts, Options::default()).expect("a manager")
}

pub(crate) fn named(policy: &str) -> Box<dyn EvictionPolicy> {
    kvstrata_evict::by_name(policy).expect("a policy")
}

pub(crate) fn keys(first: u64, n: usize) -> Vec<ObjectKey> {
    (first..first + n as u64).map(key).collect()
}

/// Stores what there is room for; how many chunks that were.
pub(crate) fn put(m: &Manager, keys: &[ObjectKey]) -> usize {
    let (rq, all) = (m.request(SECOND), KeyMask::all(keys.len()));
    let mut filled = Vec::new();
    for (r, key) in m.try_reserve(&rq, keys, &all, &layouts(), Grant::Part).into_iter().zip(keys) {
        if let Reserved::Granted(mut chunk) = r {
            payload::write(key, chunk.buf()).expect("host memory");
            filled.push(chunk);
        }
    }
    m.commit(filled).len()
}

fn mock() -> Mock {
    let cx = Context::tokio(tokio::runtime::Handle::current());
    Mock::open(&MockConfig::new(1.0, 100.0), cx).expect("a mock")
}

// ---- W7 --------------------------------------------------------------------------------------------------------

/// L1 as a buffer only: a chunk leaves when L2 has it.
trait Buffer {
    /// Stores chunks; how many found room.
    fn store(&mut self, first: u64, n: usize) -> usize;
    /// Stores in L2 fail, or work again.
    fn fail(&mut self, on: bool);
    /// Takes buffers to fill, and goes away.
    fn abandon(&mut self, first: u64, n: usize);
    /// Holds what can be read of these in L1.
    fn hold(&mut self, first: u64, n: usize);
    fn let_go(&mut self);
    /// Long enough for retries and for every time limit.
    async fn pass(&mut self);
    /// Bytes of L1 in use.
    fn used(&self) -> u64;
}

/// Whatever happens to stores, readers and writers, in the end the buffer is empty and takes a batch that fits into it.
async fn buffer_drains(buffer: &mut impl Buffer) -> Result<(), String> {
    let mut defects = Vec::new();
    let mut expect_empty = |what: &str, used: u64| {
        if used > 0 {
            defects.push(format!("{what}: {} of {ROOM} chunks stay", used / LEN as u64));
        }
    };
    buffer.fail(true);
    ensure(buffer.store(0, 4) == 4, "an empty buffer takes no chunks")?;
    buffer.pass().await;
    buffer.fail(false);
    let mut before = buffer.used();
    expect_empty("a failed store", before);

    ensure(buffer.store(100, 4) == 4, "there is no room for a second batch")?;
    buffer.hold(100, 4);
    buffer.pass().await;
    buffer.let_go();
    buffer.pass().await;
    expect_empty("a deletion while somebody reads", buffer.used() - before);
    before = buffer.used();

    buffer.abandon(200, 4);
    buffer.pass().await;
    expect_empty("an abandoned reservation", buffer.used() - before);
    let taken = buffer.store(300, ROOM);
    ensure(
        defects.is_empty() && taken == ROOM,
        format!("{}; then {taken} of {ROOM} chunks find room", defects.join("; ")),
    )
}

struct OurBuffer {
    manager: Manager,
    injector: Injector,
    held: Option<Hits>,
}

impl OurBuffer {
    fn new() -> Self {
        let manager = manager(named("noop"), "skip_l1", 1);
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let config = FaultConfig::scripted(vec![Rule::new(Op::Put, Fault::Error)]);
        let injector = Injector::new(mock().adapter(), &config, cx).expect("rules");
        manager.add_adapter(injector.adapter(), 1).expect("an adapter");
        Self { manager, injector, held: None }
    }
}

impl Buffer for OurBuffer {
    fn store(&mut self, first: u64, n: usize) -> usize {
        put(&self.manager, &keys(first, n))
    }

    fn fail(&mut self, on: bool) {
        self.injector.arm(on);
    }

    fn abandon(&mut self, first: u64, n: usize) {
        let (m, k) = (&self.manager, keys(first, n));
        drop(m.try_reserve(&m.request(SECOND), &k, &KeyMask::all(n), &layouts(), Grant::Whole));
    }

    fn hold(&mut self, first: u64, n: usize) {
        let hits = self.manager.read(&self.manager.request(SECOND), &keys(first, n));
        assert!(hits.mask().is_full(), "what is on its way to L2 is in L1");
        self.held = Some(hits);
    }

    fn let_go(&mut self) {
        self.held = None;
    }

    async fn pass(&mut self) {
        tokio::time::sleep(10 * MINUTE).await;
    }

    fn used(&self) -> u64 {
        self.manager.usage().cache.used
    }
}

/// LMCache with `noop` and `skip_l1`: a chunk is deleted once, after a store that worked, if nobody reads it just then.
/// Nothing comes back to it.
#[derive(Default)]
struct SkipL1 {
    /// By key, the readers.
    resident: HashMap<u64, u32>,
    staged: usize,
    stored: Vec<u64>,
    failing: bool,
    held: Vec<u64>,
}

impl Buffer for SkipL1 {
    fn store(&mut self, first: u64, n: usize) -> usize {
        if self.resident.len() + self.staged + n > ROOM {
            return 0;
        }
        for key in first..first + n as u64 {
            self.resident.insert(key, 0);
            if !self.failing {
                self.stored.push(key);
            }
        }
        n
    }

    fn fail(&mut self, on: bool) {
        self.failing = on;
    }

    fn abandon(&mut self, _: u64, n: usize) {
        self.staged += n;
    }

    fn hold(&mut self, first: u64, n: usize) {
        self.held = (first..first + n as u64).collect();
        for key in &self.held {
            *self.resident.get_mut(key).expect("resident") += 1;
        }
    }

    fn let_go(&mut self) {
        for key in self.held.drain(..) {
            *self.resident.get_mut(&key).expect("resident") -= 1;
        }
    }

    async fn pass(&mut self) {
        for key in std::mem::take(&mut self.stored) {
            if self.resident[&key] == 0 {
                self.resident.remove(&key);
            }
        }
    }

    fn used(&self) -> u64 {
        ((self.resident.len() + self.staged) * LEN) as u64
    }
}

/// W7: after a failed store, a deletion that a reader blocked, or an abandoned reservation, a buffer never drains.
#[tokio::test(start_paused = true)]
async fn w07_buffer_only_mode_never_drains_after_failures() {
    assert_eq!(buffer_drains(&mut OurBuffer::new()).await, Ok(()));
    found(
        buffer_drains(&mut SkipL1::default()).await,
        &[
            "a failed store: 4 of 16",
            "a deletion while somebody reads: 4",
            "an abandoned reservation: 4",
            "0 of 16 chunks find room",
        ],
    );
}

// ---- W9 --------------------------------------------------------------------------------------------------------

/// Chunks the staging memory has room for.
const STAGING: usize = 4;

/// Loads of batches from L2 through a staging memory.
trait Staged {
    /// Loads chunks, and lets go of them; `None` if it does not end within a minute.
    async fn load(&mut self, first: u64, n: usize) -> Option<Vec<Got>>;
    /// Somebody takes up so many chunks of the staging memory, or gives them back.
    async fn occupy(&mut self, n: usize);
}

/// A load that finds too little memory ends, gives out only what was read, and does not stop the next one.
async fn exhaustion_is_an_answer(staged: &mut impl Staged) -> Result<(), String> {
    let all = staged.load(0, STAGING).await.ok_or("a plain load does not end")?;
    ensure(all.iter().all(|got| *got == Got::Exact), format!("a plain load gives {all:?}"))?;
    staged.occupy(STAGING - 1).await;
    let mut defects = Vec::new();
    match staged.load(0, STAGING).await {
        None => defects.push("a load without memory does not end".to_owned()),
        Some(some) => {
            if let Some(got) = some.iter().find(|got| matches!(got, Got::Wrong(_))) {
                defects.push(format!("a load without memory gives out what was never read: {got:?}"));
            }
        }
    }
    staged.occupy(0).await;
    match staged.load(0, STAGING).await {
        None => defects.push("the next load never ends".to_owned()),
        Some(all) if all.iter().all(|got| *got == Got::Exact) => {}
        Some(all) => defects.push(format!("the next load gives {all:?}")),
    }
    ensure(defects.is_empty(), defects.join("; "))
}

struct OurStaging {
    manager: Manager,
    occupied: Vec<LoadAnswer>,
}

impl OurStaging {
    async fn new() -> Self {
        let manager = manager(named("lru"), "default", STAGING);
        manager.add_adapter(mock().adapter(), 1).expect("an adapter");
        assert_eq!(put(&manager, &keys(0, 2 * STAGING)), 2 * STAGING);
        manager.flush(MINUTE).await.expect("stores end");
        manager.clear();
        Self { manager, occupied: Vec::new() }
    }

    async fn answers(&self, first: u64, n: usize) -> Vec<(usize, LoadAnswer)> {
        let keys: Keys = keys(first, n).into();
        let lookup = self.manager.lookup(&self.manager.request(MINUTE), &keys).await;
        let mut loading = self.manager.load(lookup, &layouts(), LoadMode::Any);
        let mut answers = Vec::new();
        while let Some(answer) = loading.next().await {
            answers.push(answer);
        }
        answers
    }
}

impl Staged for OurStaging {
    async fn load(&mut self, first: u64, n: usize) -> Option<Vec<Got>> {
        // A little more than the request's own deadline: it must end by itself.
        let answers = tokio::time::timeout(MINUTE + SECOND, self.answers(first, n)).await.ok()?;
        let got = |(position, answer)| match answer {
            LoadAnswer::Hit(pin) => {
                Got::judge(&key(first + position as u64), pin.buf().as_slice().expect("host memory"))
            }
            LoadAnswer::Miss(_) => Got::Miss,
            LoadAnswer::Failed(e) if e.kind() == ErrorKind::NoSpace => Got::Error("no space".into()),
            LoadAnswer::Failed(e) => Got::Error(e.to_string()),
        };
        Some(answers.into_iter().map(got).collect())
    }

    async fn occupy(&mut self, n: usize) {
        self.occupied.clear();
        if n > 0 {
            self.occupied = self.answers(STAGING as u64, n).await.into_iter().map(|(_, a)| a).collect();
            assert_eq!(self.manager.usage().staging.used, (n * LEN) as u64);
        }
    }
}

/// LMCache's batched load from a local disk: it locks, takes memory for one chunk after the other, and when there is none
/// leaves with the lock held and with what it has, which nobody has read yet.
#[derive(Default)]
struct DiskLock {
    locked: bool,
    occupied: usize,
}

impl Staged for DiskLock {
    async fn load(&mut self, first: u64, n: usize) -> Option<Vec<Got>> {
        if self.locked {
            return None;
        }
        self.locked = true;
        let mut memory: Vec<Vec<u8>> = Vec::new();
        for _ in 0..n {
            if self.occupied + memory.len() == STAGING {
                return Some(self.judge(first, &memory));
            }
            memory.push(vec![42; LEN]);
        }
        for (n, buf) in (first..).zip(&mut memory) {
            payload::fill(&key(n), buf);
        }
        self.locked = false;
        Some(self.judge(first, &memory))
    }

    async fn occupy(&mut self, n: usize) {
        self.occupied = n;
    }
}

impl DiskLock {
    fn judge(&self, first: u64, memory: &[Vec<u8>]) -> Vec<Got> {
        (first..).zip(memory).map(|(n, bytes)| Got::judge(&key(n), bytes)).collect()
    }
}

/// W9: a load that runs out of memory leaves with the disk's lock held, and gives out chunks that were never read.
#[tokio::test(start_paused = true)]
async fn w09_exhausted_staging_keeps_the_disk_lock() {
    assert_eq!(exhaustion_is_an_answer(&mut OurStaging::new().await).await, Ok(()));
    found(
        exhaustion_is_an_answer(&mut DiskLock::default()).await,
        &["gives out what was never read", "the next load never ends"],
    );
}
