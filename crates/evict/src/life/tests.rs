//! The policy against a plain one that keeps everything in one vector, counts by looking at all of it, and searches.

use super::ages::{BUCKETS, bucket};
use super::cells::rank_key;
use super::census::Census;
use super::class::{CLASSES, Chain, MOST_USES, class, kind, uses};
use super::model::Model;
use super::{FIT_USES, GHOSTS, LifeTable, MIN_USES};
use crate::{Access, Entry, EvictionPolicy, Removal, Slot, TenantId};
use proptest::prelude::*;
use std::collections::HashMap;
use std::num::NonZeroU32;

const CAPACITY: u64 = 200;
/// Each slot but the first follows the slot with a quarter of its number, so that none has more children than a walk
/// looks at.
const SLOTS: u32 = 60;

/// A resident, or a ghost (without a slot).
#[derive(Clone, Debug)]
struct Known {
    slot: Option<u32>,
    print: u64,
    weight: u64,
    pins: u32,
    class: usize,
    generation: u32,
    /// When it was used last.
    used: usize,
    /// Its place in the list of its class and generation; none when a walk came by while it was pinned.
    place: Option<i64>,
    /// The slot before it, and which of its tenants.
    parent: Option<(u32, u32)>,
}

/// Ghosts are in the order of their eviction.
#[derive(Default)]
struct Plain {
    known: Vec<Known>,
    tenants: HashMap<u32, u32>,
    most: usize,
    census: Box<Census>,
    model: Model,
    generation: u32,
    matched: HashMap<u64, u32>,
    returned: HashMap<u64, bool>,
    request: u64,
    spent: u64,
    uses: u32,
    unfitted: u32,
    clock: usize,
    /// Places at the front are given out below this.
    front: i64,
}

impl Plain {
    fn resident(&mut self, slot: u32) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.slot == Some(slot))
    }

    fn ghosts(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|known| known.slot.is_none())
    }

    fn pass(&mut self, weight: u64, cx: &Access) {
        let most = if self.request == cx.request { CAPACITY / 4 } else { CAPACITY / 8 };
        self.request = cx.request;
        if self.uses >= MIN_USES && self.spent >= most {
            // Summed first, so that it is rounded as little.
            let mut lived = [[0.0; BUCKETS]; CLASSES];
            for known in &self.known {
                let age = self.generation - known.generation;
                lived[known.class][bucket(age)] += if age == 0 { 0.5 } else { 1.0 };
            }
            let risk = self.census.risk.iter_mut().flatten();
            risk.zip(lived.iter().flatten()).for_each(|(risk, lived)| *risk += lived);
            self.census.fade();
            if self.unfitted >= FIT_USES {
                self.model.fit(&self.census);
                self.unfitted = 0;
            }
            self.generation += 1;
            (self.spent, self.uses) = (0, 0);
        }
        self.spent += weight;
        self.uses += 1;
        self.unfitted += 1;
        self.clock += 1;
    }

    /// The class from now on.
    fn observe(&mut self, before: Option<&Known>, cx: &Access) -> usize {
        let matched = self.matched.get(&cx.request).copied().unwrap_or(u32::MAX).min(cx.chain);
        let mut now = 1;
        if let Some(known) = before {
            let first = !self.returned.insert(cx.request, true).unwrap_or(false);
            self.census.returns[known.class][bucket(self.generation - known.generation)] += 1.0;
            self.census.chunks += 1.0;
            self.census.requests += f64::from(u8::from(first));
            // What had to go and comes back is not used more often than before.
            let used = uses(kind(known.class));
            now = if known.slot.is_some() { (used + 1).min(MOST_USES) } else { used.max(2) };
        }
        class(now, Chain { length: cx.chain, matched }, cx.position)
    }

    fn insert(&mut self, slot: u32, print: u64, weight: u64, cx: &Access) {
        self.remove(slot, Removal::Deleted);
        self.pass(weight, cx);
        let ghost = self.known.iter().position(|known| known.slot.is_none() && known.print == print);
        let ghost = ghost.map(|at| self.known.remove(at));
        let class = self.observe(ghost.as_ref(), cx);
        let parent = (slot > 0).then(|| (slot / 4, self.tenants.get(&(slot / 4)).copied().unwrap_or(0)));
        let (generation, used) = (self.generation, self.clock);
        let place = Some(used as i64);
        self.known.push(Known {
            slot: Some(slot),
            print,
            weight,
            pins: 0,
            class,
            generation,
            used,
            place,
            parent,
        });
        self.most = self.most.max(self.known.len() - self.ghosts().count());
    }

    fn touch(&mut self, slot: u32, cx: &Access) {
        let Some(known) = self.resident(slot).cloned() else { return };
        self.pass(known.weight, cx);
        let class = self.observe(Some(&known), cx);
        let (generation, used) = (self.generation, self.clock);
        if let Some(known) = self.resident(slot) {
            (known.class, known.generation, known.used) = (class, generation, used);
            known.place = Some(used as i64);
        }
    }

    fn missed(&mut self, print: u64, cx: &Access) {
        if !self.ghosts().any(|ghost| ghost.print == print) {
            let matched = self.matched.entry(cx.request).or_insert(u32::MAX);
            *matched = cx.position.min(*matched);
        }
    }

    fn remove(&mut self, slot: u32, why: Removal) {
        let Some(at) = self.known.iter().position(|known| known.slot == Some(slot)) else { return };
        let gone = self.known.remove(at);
        *self.tenants.entry(slot).or_default() += 1;
        self.known.retain(|known| known.slot.is_some() || known.print != gone.print);
        if why == Removal::Evicted {
            self.known.push(Known { slot: None, ..gone });
            while self.ghosts().count() > GHOSTS * self.most
                || self.ghosts().map(|ghost| ghost.weight).sum::<u64>() > GHOSTS as u64 * CAPACITY
            {
                let oldest = self.known.iter().position(|known| known.slot.is_none());
                self.known.remove(oldest.expect("a ghost"));
            }
        }
    }

    fn unpin(&mut self, slot: u32) {
        let front = self.front - 1;
        let Some(known) = self.resident(slot).filter(|known| known.pins > 0) else { return };
        known.pins -= 1;
        if known.pins == 0 && known.place.is_none() {
            known.place = Some(front);
            self.front = front;
        }
    }

    fn victims(&mut self, want: u64) -> Vec<u32> {
        let worth = |known: &Known| {
            let bucket = bucket(self.generation - known.generation);
            (
                rank_key(self.model.index[known.class][bucket], known.class, bucket),
                known.generation,
                known.place,
            )
        };
        // Everybody, from what is worth least.
        let mut order: Vec<usize> = (0..self.known.len()).collect();
        order.retain(|&at| self.known[at].slot.is_some() && self.known[at].place.is_some());
        order.sort_by_key(|&at| worth(&self.known[at]));
        let (mut out, mut total) = (Vec::new(), 0);
        for at in order {
            if total >= want {
                break;
            }
            if self.known[at].pins > 0 {
                self.known[at].place = None;
                continue;
            }
            let root = self.known[at].slot.unwrap_or_default();
            while total < want && !out.contains(&root) {
                let free =
                    |known: &&Known| known.pins == 0 && known.slot.is_some_and(|slot| !out.contains(&slot));
                let mut next = &self.known[at];
                // Down to a leaf, by the least recently used.
                let child = |of: &Known| {
                    let slot = of.slot.unwrap_or_default();
                    let name = (slot, self.tenants.get(&slot).copied().unwrap_or(0));
                    let children = self.known.iter().filter(free).filter(|k| k.parent == Some(name));
                    children.min_by_key(|k| k.used)
                };
                while let Some(child) = child(next) {
                    next = child;
                }
                total += next.weight;
                out.push(next.slot.unwrap_or_default());
            }
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn agrees_with_a_plain_one(
        steps in prop::collection::vec((0..20_u8, 0..SLOTS, 0..150_u64, 1..30_u32), 1..3000),
    ) {
        let (mut policy, mut plain) = (LifeTable::default(), Plain::default());
        policy.set_capacity(CAPACITY);
        policy.fewest_ghosts = 0;
        for (n, &(step, slot, print, size)) in steps.iter().enumerate() {
            let cx = Access { request: n as u64 / 7, position: size % 5, chain: 1 + print as u32 % 7 };
            let s = Slot(slot);
            match step {
                0..6 => {
                    let weight = NonZeroU32::new(size % 9 + 1).expect("not zero");
                    let parent = (slot > 0).then_some(Slot(slot / 4));
                    policy.insert(Entry { slot: s, print, weight, parent, tenant: TenantId(0) }, &cx);
                    plain.insert(slot, print, weight.get().into(), &cx);
                }
                6..11 => {
                    policy.touch(s, &cx);
                    plain.touch(slot, &cx);
                }
                11 => {
                    policy.pin(s);
                    if let Some(known) = plain.resident(slot) { known.pins += 1; }
                }
                12..14 => {
                    policy.unpin(s);
                    plain.unpin(slot);
                }
                14 => {
                    let why = if size % 2 == 0 { Removal::Evicted } else { Removal::Deleted };
                    policy.remove(s, why);
                    plain.remove(slot, why);
                }
                15 => {
                    policy.missed(print, &cx);
                    plain.missed(print, &cx);
                }
                _ => {
                    let mut out = Vec::new();
                    policy.victims(size.into(), &mut out);
                    let out: Vec<u32> = out.iter().map(|slot| slot.0).collect();
                    prop_assert_eq!(&out, &plain.victims(size.into()), "step {}", n);
                    for slot in out.into_iter().take(print as usize % 4) {
                        policy.remove(Slot(slot), Removal::Evicted);
                        plain.remove(slot, Removal::Evicted);
                    }
                }
            }
        }
        prop_assert_eq!(policy.census.now(), plain.generation);
        prop_assert_eq!(&policy.census.returns, &plain.census.returns);
        prop_assert_eq!(&policy.census.risk, &plain.census.risk);
    }
}

/// A cache of so many slots with unit weights; a chain that is asked for is looked up, stored and touched.
struct Cache {
    policy: LifeTable,
    slots: HashMap<u64, Slot>,
    prints: Vec<Option<u64>>,
    requests: u64,
}

impl Cache {
    fn new(slots: usize) -> Self {
        let mut policy = LifeTable::default();
        policy.set_capacity(slots as u64);
        Self { policy, slots: HashMap::new(), prints: vec![None; slots], requests: 0 }
    }

    /// How many of the chain were there.
    fn ask(&mut self, chain: &[u64]) -> usize {
        self.requests += 1;
        let request = self.requests;
        let cx = |at: usize| Access { request, position: at as u32, chain: chain.len() as u32 };
        let hits: Vec<bool> = chain.iter().map(|print| self.slots.contains_key(print)).collect();
        for (at, print) in chain.iter().enumerate() {
            match self.slots.get(print) {
                Some(slot) => self.policy.pin(*slot),
                None => self.policy.missed(*print, &cx(at)),
            }
        }
        let mut given = vec![Slot(0); chain.len()];
        for (at, print) in chain.iter().enumerate() {
            given[at] = match self.slots.get(print) {
                Some(slot) => *slot,
                None => self.take_slot(*print),
            };
        }
        for at in (0..chain.len()).rev().filter(|at| !hits[*at]) {
            let (slot, weight) = (given[at], NonZeroU32::MIN);
            let parent = at.checked_sub(1).map(|before| given[before]);
            self.policy
                .insert(Entry { slot, print: chain[at], weight, parent, tenant: TenantId(0) }, &cx(at));
        }
        for at in (0..chain.len()).rev().filter(|at| hits[*at]) {
            self.policy.touch(given[at], &cx(at));
            self.policy.unpin(given[at]);
        }
        hits.into_iter().filter(|hit| *hit).count()
    }

    fn take_slot(&mut self, print: u64) -> Slot {
        let slot = match self.prints.iter().position(Option::is_none) {
            Some(free) => Slot(free as u32),
            None => {
                let mut out = Vec::new();
                self.policy.victims(1, &mut out);
                self.policy.remove(out[0], Removal::Evicted);
                self.slots.remove(&self.prints[out[0].index()].take().expect("a resident"));
                out[0]
            }
        };
        self.prints[slot.index()] = Some(print);
        self.slots.insert(print, slot);
        slot
    }
}

/// Rounds of ten chains of eight that come back each round, and between them chains that never do: twice the capacity,
/// so that LRU has forgotten everything when it comes back.
#[test]
fn what_comes_back_outlives_what_never_does() {
    let mut cache = Cache::new(160);
    let mut fresh = 1_000_000;
    let mut hits = 0;
    for round in 0..60 {
        for chain in 0..10 {
            let again: Vec<u64> = (0..8).map(|at| chain * 8 + at).collect();
            let found = cache.ask(&again);
            hits += if round >= 30 { found } else { 0 };
            for _ in 0..4 {
                let once: Vec<u64> = (fresh..fresh + 8).collect();
                fresh += 8;
                assert_eq!(cache.ask(&once), 0);
            }
        }
    }
    assert!(hits > 30 * 80 * 9 / 10, "{hits} of {}", 30 * 80);
}

/// Whatever is worth what: a chunk never stays without those before it.
#[test]
fn prefixes_stay_closed() {
    let mut cache = Cache::new(300);
    let mut state = 1_u64;
    for _ in 0..3_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Branches of a few trees, of different lengths.
        let (tree, branch, length) = (state >> 60, state >> 50 & 31, 1 + (state >> 40) % 40);
        let name = |at: u64| if at < 6 { tree << 32 | at } else { tree << 32 | (branch + 1) << 16 | at };
        let chain: Vec<u64> = (0..length).map(name).collect();
        let before: Vec<bool> = chain.iter().map(|print| cache.slots.contains_key(print)).collect();
        assert!(before.is_sorted_by(|a, b| a >= b), "{before:?}");
        cache.ask(&chain);
    }
}

/// Ages beyond those told apart, and a long time without any of them.
#[test]
fn what_is_very_old_is_counted_once() {
    let mut census = Census::default();
    census.enter(3);
    for _ in 0..2_000 {
        census.enter(5);
        census.end_generation();
    }
    assert_eq!(census.age(0), super::ages::OLDEST);
    for generation in 0..2_000 {
        census.returned(5, generation, true);
        census.leave(5, generation);
    }
    census.leave(3, 0);
    let risk = census.risk;
    for _ in 0..2 {
        census.end_generation();
    }
    assert!(census.risk.iter().flatten().zip(risk.iter().flatten()).all(|(after, before)| after <= before));
}
