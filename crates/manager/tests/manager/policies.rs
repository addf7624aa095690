//! A policy that panics takes out of service what it decides on, and nothing else.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Held, Policies, SECOND, keys, layouts, settle, store};
use kvstrata_core::{ErrorKind, KeyMask, ObjectKey};
use kvstrata_evict::{Access, Admission, Always, Entry, EvictionPolicy, Lru, Offer, Removal, Slot};
use kvstrata_manager::{Fault, Grant, LoadMode, Manager, Options, Part, Reserved};
use kvstrata_policy::{Admit, FirstTier, L2Id, Plan, PrefetchPolicy, StoreDefault, StorePolicy, TierView};

/// Lit by the test; whoever checks it then panics.
#[derive(Clone, Debug, Default)]
struct Fuse(Arc<AtomicBool>);

impl Fuse {
    fn light(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) {
        assert!(!self.0.load(Ordering::Relaxed), "the fuse was lit");
    }
}

/// A good policy with a fuse.
#[derive(Debug)]
struct Fused<P>(P, Fuse);

impl EvictionPolicy for Fused<Lru> {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn set_capacity(&mut self, weight: u64) {
        self.0.set_capacity(weight);
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.0.insert(entry, cx);
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.1.check();
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
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let total = self.0.victims(want, out);
        self.1.check();
        total
    }
    fn memory(&self) -> usize {
        self.0.memory()
    }
}

impl Admission for Fused<Always> {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn set_capacity(&mut self, weight: u64) {
        self.0.set_capacity(weight);
    }
    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access) {
        self.0.asked(print, weight, cx);
    }
    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool {
        self.1.check();
        self.0.admits(offer, cx)
    }
    fn memory(&self) -> usize {
        self.0.memory()
    }
}

impl StorePolicy for Fused<StoreDefault> {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn targets(&self, keys: &[ObjectKey], tiers: &[TierView<'_>], out: &mut Vec<(L2Id, KeyMask)>) {
        self.0.targets(keys, tiers, out);
        self.1.check();
    }
    fn release(&self, keys: &[ObjectKey], stored: &KeyMask) -> KeyMask {
        self.0.release(keys, stored)
    }
    fn release_failed(&self) -> bool {
        self.0.release_failed()
    }
}

impl PrefetchPolicy for Fused<FirstTier> {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        within: Option<std::time::Duration>,
    ) -> Plan {
        self.1.check();
        self.0.plan(keys, resident, tiers, within)
    }
    fn admit(&self) -> Admit {
        self.0.admit()
    }
}

/// A manager over one adapter, with a fuse in one of its policies.
fn fused(part: Part, staging: usize) -> (Manager, Arc<Held>, Fuse) {
    let fuse = Fuse::default();
    let retained = FirstTier { admit: Admit::Retained };
    let mut policies = Policies {
        eviction: Box::<Lru>::default(),
        admission: Box::new(Always),
        store: Box::new(StoreDefault),
        prefetch: Box::new(retained),
    };
    match part {
        Part::Eviction => policies.eviction = Box::new(Fused(Lru::default(), fuse.clone())),
        Part::Admission => policies.admission = Box::new(Fused(Always, fuse.clone())),
        Part::Store => policies.store = Box::new(Fused(StoreDefault, fuse.clone())),
        Part::Prefetch => policies.prefetch = Box::new(Fused(retained, fuse.clone())),
    }
    let m = policies.manager(4, staging, Options::default());
    let held = Held::new("h");
    m.add_adapter(held.adapter(), 1).unwrap();
    (m, held, fuse)
}

fn fault(part: Part) -> Vec<Fault> {
    vec![Fault { part, panic: "the fuse was lit".into() }]
}

/// Stores a chain and lets the adapter take it.
async fn stored(m: &Manager, held: &Held, chain: u8, n: u8) -> usize {
    let committed = store(m, &keys(chain, n));
    settle().await;
    held.accept();
    committed
}

/// How many of a chain a load brings, wherever from.
async fn loaded(m: &Manager, held: &Held, chain: u8, n: u8) -> usize {
    let rq = m.request(SECOND);
    let lookup = m.lookup(&rq, &keys(chain, n)[..].into()).await;
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    held.serve();
    loading.finish().await.hits.mask().count()
}

#[tokio::test]
async fn a_faulty_eviction_policy_takes_l1_out_and_l2_goes_on() {
    let (m, held, fuse) = fused(Part::Eviction, 4);
    assert_eq!(stored(&m, &held, 1, 3).await, 3);
    let pinned = m.read(&m.request(SECOND), &keys(1, 1));
    fuse.light();
    m.touch(&m.request(SECOND), &keys(1, 3), &KeyMask::all(3));
    let u = m.usage();
    assert_eq!((u.faults, u.resident), (fault(Part::Eviction), 0), "L1 is emptied");
    assert_eq!(pinned.buf(0).unwrap().as_slice().unwrap()[0], 0, "who holds a pin keeps it");
    drop(pinned);
    assert_eq!(m.usage().cache.used, 0);
    // What is stored passes through, what is loaded is temporary.
    assert_eq!(stored(&m, &held, 2, 4).await, 4);
    assert_eq!((m.usage().resident, m.usage().staging.used, m.usage().stats.lost), (0, 0, 0));
    assert_eq!(loaded(&m, &held, 1, 3).await, 3);
    assert_eq!(loaded(&m, &held, 2, 4).await, 4);
    let u = m.usage();
    assert_eq!((u.cache.used, u.staging.used, u.pinned, u.reserved), (0, 0, 0, 0));
    m.shutdown(SECOND).await.unwrap();
}

#[tokio::test]
async fn a_panic_in_the_middle_of_a_reservation_gives_everything_back() {
    let (m, held, fuse) = fused(Part::Eviction, 0);
    assert_eq!(stored(&m, &held, 1, 3).await, 3);
    fuse.light();
    let rq = m.request(SECOND);
    let r = m.try_reserve(&rq, &keys(2, 3), &KeyMask::all(3), &layouts(), Grant::Part);
    let granted = r.iter().filter(|r| matches!(r, Reserved::Granted(_))).count();
    assert_eq!((granted, m.usage().faults), (1, fault(Part::Eviction)), "one fitted without a victim");
    drop(r);
    let u = m.usage();
    assert_eq!((u.cache.used, u.reserved, u.pinned), (0, 0, 0));
    let r = m.try_reserve(&rq, &keys(2, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::Unavailable), "no staging: {r:?}");
}

#[tokio::test]
async fn a_faulty_admission_rule_takes_l1_out_and_says_so_without_an_l2() {
    let (m, held, fuse) = fused(Part::Admission, 4);
    assert_eq!(stored(&m, &held, 1, 2).await, 2);
    fuse.light();
    assert_eq!(stored(&m, &held, 2, 2).await, 2, "they pass through");
    assert_eq!((m.usage().faults, m.usage().resident), (fault(Part::Admission), 0));
    assert_eq!(loaded(&m, &held, 1, 2).await + loaded(&m, &held, 2, 2).await, 4);
    let (id, _) = m.adapters()[0].clone();
    m.remove_adapter(id, SECOND).await.unwrap();
    let r = m.try_reserve(&m.request(SECOND), &keys(3, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    assert!(
        matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::Unavailable
            && e.to_string().contains("the fuse was lit")),
        "{r:?}"
    );
}

#[tokio::test]
async fn a_faulty_store_policy_ends_stores_and_leaves_l1_and_loads_alone() {
    let (m, held, fuse) = fused(Part::Store, 4);
    assert_eq!(stored(&m, &held, 1, 2).await, 2);
    fuse.light();
    assert_eq!(stored(&m, &held, 2, 2).await, 2);
    let u = m.usage();
    assert_eq!((u.faults, u.resident, u.stats.stored, u.storing), (fault(Part::Store), 4, 2, 0));
    m.clear();
    assert_eq!(loaded(&m, &held, 1, 2).await, 2);
    assert_eq!(loaded(&m, &held, 2, 2).await, 0, "the adapter never got them");
}

#[tokio::test]
async fn a_faulty_prefetch_policy_ends_loads_and_leaves_l1_and_stores_alone() {
    let (m, held, fuse) = fused(Part::Prefetch, 4);
    assert_eq!(stored(&m, &held, 1, 2).await, 2);
    fuse.light();
    m.clear();
    assert_eq!(loaded(&m, &held, 1, 2).await, 0);
    assert_eq!(m.usage().faults, fault(Part::Prefetch));
    assert_eq!(stored(&m, &held, 2, 2).await, 2);
    assert_eq!(loaded(&m, &held, 2, 2).await, 2, "from L1");
    assert_eq!((m.usage().stats.stored, m.usage().pinned), (4, 0));
}

/// Gives up whatever it is asked for: what is pinned, or what never was there.
#[derive(Debug)]
struct Lying(Slot);

impl EvictionPolicy for Lying {
    fn name(&self) -> &'static str {
        "lying"
    }
    fn set_capacity(&mut self, _: u64) {}
    fn insert(&mut self, _: Entry, _: &Access) {}
    fn touch(&mut self, _: Slot, _: &Access) {}
    fn missed(&mut self, _: u64, _: &Access) {}
    fn pin(&mut self, _: Slot) {}
    fn unpin(&mut self, _: Slot) {}
    fn remove(&mut self, _: Slot, _: Removal) {}
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        out.push(self.0);
        want
    }
    fn memory(&self) -> usize {
        0
    }
}

#[tokio::test]
async fn a_policy_that_gives_up_what_it_must_not_is_out_like_one_that_panics() {
    for (slot, why) in
        [(Slot(0), "it gave up a pinned chunk"), (Slot(99), "it gave up a chunk that is not there")]
    {
        let policies = Policies {
            eviction: Box::new(Lying(slot)),
            admission: Box::new(Always),
            store: Box::new(StoreDefault),
            prefetch: Box::new(FirstTier { admit: Admit::Retained }),
        };
        let m = policies.manager(2, 4, Options::default());
        store(&m, &keys(1, 2));
        let pinned = m.read(&m.request(SECOND), &keys(1, 2));
        store(&m, &keys(2, 1));
        assert_eq!(m.usage().faults, [Fault { part: Part::Eviction, panic: why.into() }]);
        assert_eq!(pinned.buf(1).unwrap().as_slice().unwrap()[0], 1, "what is pinned stays as it is");
        drop(pinned);
        assert_eq!(m.usage().cache.used, 0);
    }
}
