//! What becomes of L1 when its policy fails: W8, on our manager and on a model of LMCache's eviction thread.

use std::collections::BTreeMap;
use std::time::Duration;

use kvstrata_evict::{Access, Entry, EvictionPolicy, Lru, Removal, Slot};
use kvstrata_manager::Manager;

use crate::room::{ROOM, SECOND, keys, manager, named, put};
use crate::support::{ensure, found};

/// An L1 that evicts.
trait Evicting {
    /// Stores a chunk; whether it found room.
    fn store(&mut self, n: u64) -> bool;
    async fn pass(&mut self, time: Duration);
    /// What is out of service, if that shows anywhere.
    fn fault(&self) -> Option<String>;
}

/// A policy that fails shows, and one that does not goes on evicting: L1 never just stands still.
async fn eviction_goes_on_or_its_end_shows(l1: &mut impl Evicting) -> Result<(), String> {
    let mut refused = 0;
    for n in 0..4 * ROOM as u64 {
        refused += usize::from(!l1.store(n));
        l1.pass(SECOND).await;
    }
    ensure(
        refused == 0 || l1.fault().is_some(),
        format!("{refused} of {} stores were refused, and nothing says why", 4 * ROOM),
    )
}

impl Evicting for Manager {
    fn store(&mut self, n: u64) -> bool {
        put(self, &keys(n, 1)) == 1
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn fault(&self) -> Option<String> {
        self.usage().faults.first().map(|fault| format!("{:?}: {}", fault.part, fault.panic))
    }
}

/// A policy that cannot answer without something that its owner does not give.
#[derive(Debug, Default)]
struct WantsSalt(Lru);

impl EvictionPolicy for WantsSalt {
    fn name(&self) -> &'static str {
        "wants-salt"
    }
    fn set_capacity(&mut self, weight: u64) {
        self.0.set_capacity(weight);
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.0.insert(entry, cx);
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.0.touch(slot, cx);
    }
    fn missed(&mut self, print: u64, cx: &Access) {
        self.0.missed(print, cx);
    }
    fn pin(&mut self, slot: Slot) {
        self.0.pin(slot);
    }
    fn unpin(&mut self, slot: Slot) {
        self.0.unpin(slot);
    }
    fn remove(&mut self, slot: Slot, why: Removal) {
        self.0.remove(slot, why);
    }
    fn victims(&mut self, _: u64, _: &mut Vec<Slot>) -> u64 {
        panic!("ValueError: a cache salt is required")
    }
    fn memory(&self) -> usize {
        self.0.memory()
    }
}

/// LMCache's L1 with `IsolatedLRU`: a thread that looks once a second, and at the watermark asks for a part of all keys. The
/// policy wants a salt, the thread has none, and that was its last pass.
#[derive(Default)]
struct EvictionThread {
    /// Per salt, oldest first.
    buckets: BTreeMap<String, Vec<u64>>,
    dead: bool,
}

impl EvictionThread {
    fn used(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }

    fn victims(&self, ratio: f64, salt: Option<&str>) -> Result<(String, usize), &'static str> {
        let salt = salt.ok_or("ValueError: a cache salt is required")?;
        let len = self.buckets.get(salt).map_or(0, Vec::len);
        Ok((salt.to_owned(), (len as f64 * ratio) as usize))
    }

    fn tick(&mut self) {
        if self.dead || self.used() * 10 < ROOM * 8 {
            return;
        }
        match self.victims(0.2, None) {
            Ok((salt, n)) => drop(self.buckets.get_mut(&salt).map(|bucket| bucket.drain(..n))),
            Err(_) => self.dead = true,
        }
    }
}

impl Evicting for EvictionThread {
    fn store(&mut self, n: u64) -> bool {
        let fits = self.used() < ROOM;
        if fits {
            self.buckets.entry(String::new()).or_default().push(n);
        }
        fits
    }

    async fn pass(&mut self, time: Duration) {
        (0..time.as_secs()).for_each(|_| self.tick());
    }

    fn fault(&self) -> Option<String> {
        None
    }
}

/// W8: a policy on a tier that it does not fit kills the eviction thread at its first pass, and L1 stays full. Here that
/// policy evicts in L1, and one that panics takes L1 out of service, which shows. Settings that name a policy where it does
/// not belong are refused (`crates/config/tests/refusals.rs`).
#[tokio::test(start_paused = true)]
async fn w08_eviction_thread_dies_silently() {
    for policy in ["IsolatedLRU", "LRU", "life-table"] {
        let mut ours = manager(named(policy), "default", 1);
        assert_eq!(eviction_goes_on_or_its_end_shows(&mut ours).await, Ok(()), "{policy}");
        assert_eq!(ours.fault(), None, "{policy}");
    }
    let mut panics = manager(Box::<WantsSalt>::default(), "default", 1);
    assert_eq!(eviction_goes_on_or_its_end_shows(&mut panics).await, Ok(()));
    assert!(panics.fault().is_some_and(|fault| fault.contains("a cache salt is required")));
    found(
        eviction_goes_on_or_its_end_shows(&mut EvictionThread::default()).await,
        &["48 of 64 stores were refused, and nothing says why"],
    );
}
