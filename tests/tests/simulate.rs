//! What the simulator predicts is what the manager does: the policy is told the same things in the same order.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvstrata_core::{KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_evict::{
    ADMISSIONS, Access, Admission, Entry, EvictionPolicy, NAMES, Offer, Quotas, Removal, Slot,
    admission_by_name, by_name,
};
use kvstrata_l2::Context;
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_testkit::hits::{Cache, Lookup, Lookups, Order};
use kvstrata_testkit::trace::{self, Request, Synthetic};

/// Bytes per block.
const BLOCK: u32 = 4096;
const MODEL: &str = "replay";

/// What a policy or a rule was told, and what it answered.
#[derive(Clone, PartialEq, Debug)]
enum Event {
    Capacity(u64),
    Insert(Entry, Access),
    Touch(Slot, Access),
    Missed(u64, Access),
    Pin(Slot),
    Unpin(Slot),
    Remove(Slot, Removal),
    Victims(u64, Vec<Slot>),
    Asked(u64, NonZeroU32, Access),
    Admits(Offer, Access, bool),
}

type Log = Arc<Mutex<Vec<Event>>>;

#[derive(Debug)]
struct Recorded<T: ?Sized> {
    log: Log,
    of: Box<T>,
}

impl<T: ?Sized> Recorded<T> {
    fn note(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }
}

impl EvictionPolicy for Recorded<dyn EvictionPolicy> {
    fn name(&self) -> &'static str {
        self.of.name()
    }
    fn set_capacity(&mut self, weight: u64) {
        self.note(Event::Capacity(weight));
        self.of.set_capacity(weight);
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.note(Event::Insert(entry, *cx));
        self.of.insert(entry, cx);
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.note(Event::Touch(slot, *cx));
        self.of.touch(slot, cx);
    }
    fn missed(&mut self, print: u64, cx: &Access) {
        self.note(Event::Missed(print, *cx));
        self.of.missed(print, cx);
    }
    fn pin(&mut self, slot: Slot) {
        self.note(Event::Pin(slot));
        self.of.pin(slot);
    }
    fn unpin(&mut self, slot: Slot) {
        self.note(Event::Unpin(slot));
        self.of.unpin(slot);
    }
    fn remove(&mut self, slot: Slot, why: Removal) {
        self.note(Event::Remove(slot, why));
        self.of.remove(slot, why);
    }
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let from = out.len();
        let total = self.of.victims(want, out);
        self.note(Event::Victims(want, out[from..].to_vec()));
        total
    }
    fn quotas(&self) -> Option<&dyn Quotas> {
        self.of.quotas()
    }
    fn memory(&self) -> usize {
        self.of.memory()
    }
}

impl Admission for Recorded<dyn Admission> {
    fn name(&self) -> &'static str {
        self.of.name()
    }
    fn set_capacity(&mut self, weight: u64) {
        self.note(Event::Capacity(weight));
        self.of.set_capacity(weight);
    }
    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access) {
        // What everything lets in does not look at what was asked for.
        if self.name() != "always" {
            self.note(Event::Asked(print, weight, *cx));
        }
        self.of.asked(print, weight, cx);
    }
    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool {
        let admitted = self.of.admits(offer, cx);
        self.note(Event::Admits(*offer, *cx, admitted));
        admitted
    }
    fn memory(&self) -> usize {
        self.of.memory()
    }
}

/// A policy and a rule that note what they are told in one log.
fn recorded(policy: &str, rule: &str) -> (Log, Box<dyn EvictionPolicy>, Box<dyn Admission>) {
    let log = Log::default();
    let policy = Recorded { log: Arc::clone(&log), of: by_name(policy).unwrap() };
    let rule = Recorded { log: Arc::clone(&log), of: admission_by_name(rule).unwrap() };
    (log, Box::new(policy), Box::new(rule))
}

fn manager(blocks: u32, eviction: Box<dyn EvictionPolicy>, admission: Box<dyn Admission>) -> Manager {
    let bytes = (blocks * BLOCK) as usize;
    let slab = Slab::new(vec![HeapRegion::new(bytes).unwrap()]).unwrap();
    let parts = Parts {
        cache: slab.pool("cache", bytes as u64),
        staging: slab.pool("staging", 0),
        eviction,
        admission,
        store: kvstrata_policy::store_by_name("default").unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name("default").unwrap(),
        cx: Context::tokio(tokio::runtime::Handle::current()),
    };
    Manager::new(parts, Options { typical_chunk: BLOCK.into(), ..Options::default() }).unwrap()
}

/// A request as `kvstrata replay` makes it: look up and pin, store what is missing, touch the hits, let go.
fn replay(manager: &Manager, keys: &[ObjectKey], layouts: &Layouts) -> Vec<bool> {
    let rq = manager.request(Duration::from_secs(60));
    let hits = manager.read(&rq, keys);
    let there = hits.mask();
    let granted = manager
        .try_reserve(&rq, keys, &there.complement(), layouts, Grant::Part)
        .into_iter()
        .filter_map(|r| match r {
            Reserved::Granted(mut chunk) => {
                chunk.buf().as_mut_slice().unwrap().fill(0);
                Some(chunk)
            }
            _ => None,
        })
        .collect();
    manager.commit(granted);
    manager.touch(&rq, keys, &there);
    there.iter().fold(vec![false; keys.len()], |mut all, i| {
        all[i] = true;
        all
    })
}

fn requests() -> Vec<Request> {
    let settings = Synthetic { requests: 250, max_input_tokens: 16_384, ..Synthetic::default() };
    settings.generate().unwrap().collect()
}

async fn compare(requests: &[Request], policy: &str, rule: &str, blocks: u32) {
    let scope = KeyScope::new(MODEL, KvRank::single(), 0, "").unwrap();
    let layouts = Layouts::from(Layout::opaque(BLOCK.into()).unwrap());
    let (told, eviction, admission) = recorded(policy, rule);
    let manager = manager(blocks, eviction, admission);
    let (predicted, eviction, admission) = recorded(policy, rule);
    let mut cache = Cache::new(eviction, blocks, BLOCK).unwrap().with_admission(admission);
    let mut lookups = Lookups::new(MODEL, None).unwrap();
    for (n, request) in requests.iter().enumerate() {
        let keys: Vec<ObjectKey> = request.hash_ids.iter().map(|id| trace::key(&scope, *id)).collect();
        let there = replay(&manager, &keys, &layouts);
        let lookup: Lookup = lookups.next(request);
        let what = format!("{policy} + {rule}, {blocks} blocks, request {n}");
        assert_eq!(cache.request(&lookup, Order::Batch), there, "{what}");
        let told = std::mem::take(&mut *told.lock().unwrap());
        let predicted = std::mem::take(&mut *predicted.lock().unwrap());
        assert_eq!(told, predicted, "{what}: the manager on the left");
    }
    let stats = manager.usage().stats;
    assert_eq!(cache.tally().written, stats.commits, "{policy} + {rule}, {blocks} blocks");
    assert_eq!(cache.tally().hits, stats.l1_hits, "{policy} + {rule}, {blocks} blocks");
}

#[tokio::test]
async fn every_policy_hears_the_same_from_the_manager_and_the_simulator() {
    let requests = requests();
    // 16 blocks are fewer than the longest request has; 2000 are enough for everything.
    for blocks in [16, 150, 2000] {
        for policy in NAMES {
            compare(&requests, policy, "always", blocks).await;
        }
    }
}

#[tokio::test]
async fn every_rule_hears_the_same_from_the_manager_and_the_simulator() {
    let requests = requests();
    for blocks in [16, 150] {
        for rule in ADMISSIONS {
            for policy in ["LRU", "SIEVE", "ARC"] {
                compare(&requests, policy, rule, blocks).await;
            }
        }
    }
}
