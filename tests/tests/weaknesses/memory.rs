//! Who may free memory: W1 and W2, on our manager and on models of LMCache's locks and prefetch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::{Context, Keys};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{
    Grant, Hits, Layouts, LoadMode, Loading, Manager, Options, Parts, Reserved, StoredHook,
};
use kvstrata_mem::{Allocate, HeapRegion, Slab, WriteBuf};
use kvstrata_testkit::rng::Rng;
use kvstrata_testkit::trace;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::support::{ensure, found};

/// The size of every chunk here. A chunk is filled with its number.
pub(crate) const CHUNK: usize = 4096;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
const FREED: u8 = 0xdb;

pub(crate) fn key(n: u8) -> ObjectKey {
    trace::key(&KeyScope::new("m", KvRank::single(), 0, "").expect("a scope"), n.into())
}

pub(crate) fn layouts() -> Layouts {
    Layout::opaque(CHUNK as u64).expect("a layout").into()
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// A manager over `chunks` chunks of memory, half of them for staging if there are two or more.
pub(crate) fn manager(slab: &Arc<Slab>, cache: usize, staging: usize, policies: [&str; 3]) -> Manager {
    let [eviction, store, prefetch] = policies;
    let parts = Parts {
        cache: slab.pool("cache", (cache * CHUNK) as u64),
        staging: slab.pool("staging", (staging * CHUNK) as u64),
        eviction: kvstrata_evict::by_name(eviction).expect("a policy"),
        admission: kvstrata_evict::admission_by_name("always").expect("a rule"),
        store: kvstrata_policy::store_by_name(store).expect("a policy"),
        prefetch: kvstrata_policy::prefetch_by_name(prefetch).expect("a policy"),
        cx: Context::tokio(tokio::runtime::Handle::current()),
    };
    let options = Options { store_attempts: 1, store_timeout: SECOND, ..Options::default() };
    Manager::new(parts, options).expect("a manager")
}

pub(crate) fn slab(chunks: usize) -> Arc<Slab> {
    Slab::new(vec![HeapRegion::new(chunks * CHUNK).expect("memory")]).expect("memory")
}

/// Stores chunks; whether all found room.
pub(crate) fn put(m: &Manager, names: &[u8], hook: Option<Arc<dyn StoredHook>>) -> bool {
    let keys: Vec<_> = names.iter().map(|n| key(*n)).collect();
    let (rq, all) = (m.request(SECOND), KeyMask::all(keys.len()));
    let mut filled = Vec::new();
    for (r, name) in m.try_reserve(&rq, &keys, &all, &layouts(), Grant::Whole).into_iter().zip(names) {
        if let Reserved::Granted(mut chunk) = r {
            chunk.buf().as_mut_slice().expect("host memory").fill(*name);
            filled.push(chunk);
        }
    }
    filled.len() == names.len() && m.commit_with(filled, hook).len() == names.len()
}

/// The value of all bytes, if they have one.
pub(crate) fn uniform(bytes: &[u8]) -> Option<u8> {
    bytes.iter().all(|b| *b == bytes[0]).then(|| bytes[0])
}

// ---- W1 --------------------------------------------------------------------------------------------------------

/// A cache with room for one chunk, whose readers look at its memory.
trait Cache {
    type Held;
    /// Whether there was room.
    async fn put(&mut self, name: u8) -> bool;
    fn read(&mut self, name: u8) -> Option<Self::Held>;
    fn release(&mut self, held: Self::Held);
    async fn delete(&mut self, name: u8);
    async fn pass(&mut self, time: Duration);
    /// What the reader sees now.
    fn sees(&self, held: &Self::Held) -> Option<u8>;
}

/// Longer than the five minutes for which LMCache's read locks hold.
const LONG: Duration = Duration::from_secs(301);

/// A reader's bytes stay as they are until that reader lets go of them, and then the memory is free.
async fn readers_keep_their_bytes(cache: &mut impl Cache) -> Result<(), String> {
    let mut defects = Vec::new();
    for late_unlock in [false, true] {
        ensure(cache.put(7).await, "the memory of a chunk that nobody holds is not free")?;
        let mut reader = cache.read(7).ok_or("the chunk is not there")?;
        cache.pass(LONG).await;
        if late_unlock {
            let other = cache.read(7).ok_or("the chunk is not there")?;
            cache.release(std::mem::replace(&mut reader, other));
        }
        cache.delete(7).await;
        cache.put(9).await;
        let sees = cache.sees(&reader);
        if sees != Some(7) {
            let cause = if late_unlock { "a late unlock of another reader" } else { "time" };
            defects.push(format!("{cause} freed a reader's chunk: it sees {sees:?} for 7"));
        }
        cache.release(reader);
        cache.delete(9).await;
    }
    ensure(cache.put(7).await, "the memory of a chunk that nobody holds is not free")?;
    ensure(defects.is_empty(), defects.join("; "))
}

/// The same with readers, writers, deletions and time in any order.
async fn readers_keep_their_bytes_in_any_order<C: Cache>(cache: &mut C, seed: u64) -> Result<(), String> {
    const NAMES: u64 = 3;
    let (mut rng, mut readers) = (Rng::new(seed), Vec::<(u8, C::Held)>::new());
    for step in 0..2000 {
        let name = rng.below(NAMES) as u8 + 1;
        match rng.below(8) {
            0 => drop(cache.put(name).await),
            1 | 2 => readers.extend(cache.read(name).map(|held| (name, held))),
            3 if !readers.is_empty() => {
                let (_, held) = readers.swap_remove(rng.below(readers.len() as u64) as usize);
                cache.release(held);
            }
            4 | 5 => cache.delete(name).await,
            _ => cache.pass(Duration::from_secs(rng.below(400))).await,
        }
        for (name, held) in &readers {
            let sees = cache.sees(held);
            ensure(sees == Some(*name), format!("step {step}: a reader of {name} sees {sees:?}"))?;
        }
    }
    readers.into_iter().for_each(|(_, held)| cache.release(held));
    for name in 1..=NAMES as u8 {
        cache.delete(name).await;
    }
    ensure(cache.put(1).await, "the memory of chunks that nobody holds is not free")
}

impl Cache for Manager {
    type Held = Hits;

    async fn put(&mut self, name: u8) -> bool {
        put(self, &[name], None)
    }

    fn read(&mut self, name: u8) -> Option<Hits> {
        let hits = Manager::read(self, &self.request(SECOND), &[key(name)]);
        hits.mask().is_full().then_some(hits)
    }

    fn release(&mut self, held: Hits) {
        drop(held);
    }

    async fn delete(&mut self, name: u8) {
        Manager::delete(self, &self.request(SECOND), &[key(name)]).await;
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn sees(&self, held: &Hits) -> Option<u8> {
        uniform(held.buf(0)?.as_slice()?)
    }
}

/// LMCache's L1: a chunk has a count of readers and a time at which they are all forgotten; who unlocks is not known.
#[derive(Default)]
struct TtlCache {
    memory: Vec<u8>,
    used: bool,
    /// By name: where it lies, the count, and when it lapses.
    entries: HashMap<u8, (usize, u32, u64)>,
    now: u64,
}

impl Cache for TtlCache {
    /// The address.
    type Held = (u8, usize);

    async fn put(&mut self, name: u8) -> bool {
        if std::mem::replace(&mut self.used, true) {
            return false;
        }
        self.memory = vec![name; CHUNK];
        self.entries.insert(name, (0, 0, 0));
        true
    }

    fn read(&mut self, name: u8) -> Option<(u8, usize)> {
        let (at, count, lapses) = self.entries.get_mut(&name)?;
        *count = if *lapses > self.now { *count + 1 } else { 1 };
        *lapses = self.now + 300;
        Some((name, *at))
    }

    fn release(&mut self, (name, _): (u8, usize)) {
        if let Some((_, count, _)) = self.entries.get_mut(&name) {
            *count = count.saturating_sub(1);
        }
    }

    async fn delete(&mut self, name: u8) {
        let locked = |(_, count, lapses): &(usize, u32, u64)| *count > 0 && *lapses > self.now;
        if self.entries.get(&name).is_some_and(|entry| !locked(entry)) {
            self.entries.remove(&name);
            self.used = false;
        }
    }

    async fn pass(&mut self, time: Duration) {
        self.now += time.as_secs();
    }

    fn sees(&self, (_, at): &(u8, usize)) -> Option<u8> {
        uniform(&self.memory[*at..*at + CHUNK])
    }
}

/// W1: read locks have no owner and end by time, so memory is freed under a reader. Remains for the cache server: what a
/// process holds that cannot drop a guard here is a lease, whose lapse frees nothing (`kvstrata_manager::Leases`).
#[tokio::test(start_paused = true)]
async fn w01_time_or_a_late_unlock_frees_memory_under_a_reader() {
    let ours = || manager(&slab(1), 1, 0, ["lru", "default", "default"]);
    assert_eq!(readers_keep_their_bytes(&mut ours()).await, Ok(()));
    found(
        readers_keep_their_bytes(&mut TtlCache::default()).await,
        &["time freed a reader's chunk: it sees Some(9)", "a late unlock of another reader freed"],
    );
    for seed in 0..8 {
        assert_eq!(readers_keep_their_bytes_in_any_order(&mut ours(), seed).await, Ok(()), "seed {seed}");
        let double = readers_keep_their_bytes_in_any_order(&mut TtlCache::default(), seed).await;
        found(double, &["a reader of"]);
    }
}

// ---- W2 --------------------------------------------------------------------------------------------------------

/// How a load ends before its device does.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The caller goes away.
    Abort,
    /// Everything is shut down.
    Stop,
}

/// A load from a device that takes its time.
trait Prefetch {
    /// Brings a load to the device, which hangs.
    async fn begin(&mut self);
    async fn end(&mut self, how: End);
    /// Fills all memory that is free with [`FREED`]; how many chunks.
    fn poison(&mut self) -> usize;
    /// The device goes on, and ends.
    async fn wake(&mut self);
    /// Whether what was free is still as it was filled.
    fn untouched(&self) -> bool;
}

/// A device never writes to memory that is free, and when it is done the memory is.
async fn device_writes_to_its_buffers_only(load: &mut impl Prefetch, how: End) -> Result<(), String> {
    load.begin().await;
    load.end(how).await;
    let while_hung = load.poison();
    load.wake().await;
    ensure(load.untouched(), format!("{how:?}: the device wrote to memory that was free"))?;
    let after = load.poison();
    ensure(after == while_hung + 1, format!("{how:?}: {after} chunks are free, {while_hung} while it hung"))
}

struct OurLoad {
    slab: Arc<Slab>,
    all: Arc<dyn Allocate>,
    mock: Mock,
    manager: Manager,
    loading: Option<Loading>,
    poisoned: Vec<WriteBuf>,
}

impl OurLoad {
    async fn new() -> Self {
        let slab = slab(4);
        let manager = manager(&slab, 2, 2, ["lru", "default", "default"]);
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let mock = Mock::open(&MockConfig::new(1.0, 100.0), cx).expect("a mock");
        manager.add_adapter(mock.adapter(), 1).expect("an adapter");
        assert!(put(&manager, &[7], None));
        manager.flush(SECOND).await.expect("the store ends");
        manager.clear();
        let all = slab.pool("poison", 4 * CHUNK as u64);
        Self { slab, all, mock, manager, loading: None, poisoned: Vec::new() }
    }
}

impl Prefetch for OurLoad {
    async fn begin(&mut self) {
        let keys: Keys = [key(7)].into();
        let lookup = self.manager.lookup(&self.manager.request(SECOND), &keys).await;
        assert_eq!(lookup.l2().count(), 1, "the device has it");
        self.mock.hang();
        self.loading = Some(self.manager.load(lookup, &layouts(), LoadMode::Prefix));
        settle().await;
    }

    async fn end(&mut self, how: End) {
        self.loading = None;
        if let End::Stop = how {
            self.manager.shutdown(SECOND).await.expect_err("the device still has a buffer");
        }
        settle().await;
    }

    fn poison(&mut self) -> usize {
        self.poisoned.clear();
        while let Ok(mut buf) = self.all.reserve(CHUNK, CHUNK) {
            buf.as_mut_slice().expect("host memory").fill(FREED);
            self.poisoned.push(buf);
        }
        self.poisoned.len()
    }

    async fn wake(&mut self) {
        self.mock.resume();
        tokio::time::sleep(SECOND).await;
        assert_eq!(self.slab.usage().used, (self.poisoned.len() * CHUNK) as u64, "nothing else is out");
    }

    fn untouched(&self) -> bool {
        let mut clean = true;
        for buf in &self.poisoned {
            let mut bytes = vec![0; CHUNK];
            buf.read_at(0, &mut bytes).expect("host memory");
            clean &= uniform(&bytes) == Some(FREED);
        }
        clean
    }
}

/// LMCache's prefetch: an adapter's thread has the address; whoever ends the request frees the buffer, and does not wait
/// for the thread.
struct Staging {
    memory: Arc<Mutex<Vec<u8>>>,
    free: Vec<usize>,
    taken: Option<usize>,
    gate: Arc<Notify>,
}

impl Staging {
    fn new() -> Self {
        let memory = Arc::new(Mutex::new(vec![0; 4 * CHUNK]));
        Self { memory, free: vec![0, 1, 2, 3], taken: None, gate: Arc::default() }
    }
}

impl Prefetch for Staging {
    async fn begin(&mut self) {
        let at = self.free.pop().expect("a free chunk");
        self.taken = Some(at);
        let (memory, gate) = (Arc::clone(&self.memory), Arc::clone(&self.gate));
        tokio::spawn(async move {
            gate.notified().await;
            memory.lock()[at * CHUNK..(at + 1) * CHUNK].fill(7);
        });
        settle().await;
    }

    async fn end(&mut self, _: End) {
        self.free.extend(self.taken.take());
    }

    fn poison(&mut self) -> usize {
        let mut memory = self.memory.lock();
        self.free.iter().for_each(|at| memory[at * CHUNK..(at + 1) * CHUNK].fill(FREED));
        self.free.len()
    }

    async fn wake(&mut self) {
        self.gate.notify_one();
        settle().await;
    }

    fn untouched(&self) -> bool {
        let memory = self.memory.lock();
        self.free.iter().all(|at| uniform(&memory[at * CHUNK..(at + 1) * CHUNK]) == Some(FREED))
    }
}

/// W2: a load that is aborted, or whose manager stops, frees its buffers while an adapter still writes to them.
#[tokio::test(start_paused = true)]
async fn w02_aborted_prefetch_frees_buffers_under_the_device() {
    for how in [End::Abort, End::Stop] {
        assert_eq!(device_writes_to_its_buffers_only(&mut OurLoad::new().await, how).await, Ok(()));
        let defect = device_writes_to_its_buffers_only(&mut Staging::new(), how).await;
        found(defect, &["the device wrote to memory that was free"]);
    }
}
