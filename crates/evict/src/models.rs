//! Every policy against a plain one that keeps vectors and searches them.

use crate::sketch::Sketch;
use crate::{Access, Entry, EvictionPolicy, Quotas, Removal, Slot, TenantId, by_name};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

const SLOTS: u32 = 60;
const CAPACITY: u64 = 200;

#[derive(Clone, Debug)]
struct Item {
    slot: u32,
    print: u64,
    weight: u64,
    pins: u32,
    /// Uses, or what the policy makes of them.
    uses: u64,
    group: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Fifo,
    Lru,
    Mru,
    Lfu,
    Sieve,
    S3Fifo,
    Arc,
    WTinyLfu,
}

/// The oldest item of each queue comes first.
#[derive(Clone, Debug)]
struct Model {
    kind: Kind,
    queues: [Vec<Item>; 4],
    ghosts: [Vec<(u64, u64, bool)>; 2],
    request: Option<u64>,
    group: u64,
    hand: usize,
    left: Vec<u32>,
    target: u64,
    again: bool,
    most: usize,
    sketch: Sketch,
}

fn weight(items: &[Item]) -> u64 {
    items.iter().map(|item| item.weight).sum()
}

impl Model {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            queues: Default::default(),
            ghosts: Default::default(),
            request: None,
            group: 0,
            hand: 0,
            left: Vec::new(),
            target: 0,
            again: false,
            most: 0,
            sketch: Sketch::default(),
        }
    }

    fn find(&mut self, slot: u32) -> Option<(usize, usize)> {
        (0..4).find_map(|q| Some((q, self.queues[q].iter().position(|item| item.slot == slot)?)))
    }

    fn take(&mut self, slot: u32) -> Option<(usize, Item)> {
        let (queue, at) = self.find(slot)?;
        if at < self.hand {
            self.hand -= 1;
        }
        Some((queue, self.queues[queue].remove(at)))
    }

    fn len(&self) -> usize {
        self.queues.iter().map(Vec::len).sum()
    }

    fn group(&mut self, cx: &Access) -> u64 {
        if self.request.replace(cx.request) != Some(cx.request) {
            self.group += 1;
        }
        self.group
    }

    fn insert(&mut self, slot: u32, print: u64, weight: u64, cx: &Access) {
        self.take(slot);
        let group = self.group(cx);
        let mut queue = 0;
        match self.kind {
            Kind::S3Fifo => {
                queue = usize::from(self.ghosts[0].iter().any(|ghost| ghost.0 == print));
                self.ghosts[0].retain(|ghost| ghost.0 != print);
            }
            Kind::Arc => {
                self.learn(print);
                queue = usize::from(self.ghosts.iter().flatten().any(|ghost| ghost.0 == print));
                self.ghosts.iter_mut().for_each(|ghosts| ghosts.retain(|ghost| ghost.0 != print));
            }
            _ => {}
        }
        self.queues[queue].push(Item { slot, print, weight, pins: 0, uses: 0, group });
        self.most = self.most.max(self.len());
        match self.kind {
            Kind::Arc => self.trim(),
            Kind::WTinyLfu => {
                self.sketch.ensure(self.len());
                if self.sketch.count(print) == 0 {
                    self.sketch.add(print);
                }
                self.overflow(0, 1, CAPACITY / 100);
                self.overflow(1, 2, CAPACITY / 100);
            }
            _ => {}
        }
    }

    fn overflow(&mut self, from: usize, to: usize, most: u64) {
        while weight(&self.queues[from]) > most {
            let Some(at) = self.queues[from].iter().position(|item| item.pins == 0) else { return };
            let item = self.queues[from].remove(at);
            self.queues[to].push(item);
        }
    }

    fn learn(&mut self, print: u64) {
        self.again = false;
        for side in 0..2 {
            let sizes = [0, 1].map(|n| self.ghosts[n].iter().map(|ghost| ghost.1).sum::<u64>());
            let Some(ghost) = self.ghosts[side].iter_mut().find(|ghost| ghost.0 == print) else { continue };
            self.again = side == 1;
            if !std::mem::replace(&mut ghost.2, true) {
                let step = ghost.1 * sizes[1 - side].max(sizes[side]) / sizes[side];
                self.target = if side == 0 {
                    (self.target + step).min(CAPACITY)
                } else {
                    self.target.saturating_sub(step)
                };
            }
            return;
        }
    }

    fn trim(&mut self) {
        let total = |ghosts: &[(u64, u64, bool)]| ghosts.iter().map(|ghost| ghost.1).sum::<u64>();
        let held: u64 = self.queues.iter().map(|queue| weight(queue)).sum();
        let room = CAPACITY.saturating_sub(weight(&self.queues[0]));
        while self.ghosts[0].len() > self.most || total(&self.ghosts[0]) > room {
            self.ghosts[0].remove(0);
        }
        let room = (2 * CAPACITY).saturating_sub(held + total(&self.ghosts[0]));
        while self.ghosts[1].len() > self.most || total(&self.ghosts[1]) > room {
            self.ghosts[1].remove(0);
        }
    }

    fn touch(&mut self, slot: u32, cx: &Access) {
        let Some((queue, at)) = self.find(slot) else { return };
        match self.kind {
            Kind::Fifo => {}
            Kind::Sieve => self.queues[queue][at].uses = 1,
            Kind::S3Fifo => self.queues[queue][at].uses = (self.queues[queue][at].uses + 1).min(3),
            _ => {
                let mut item = self.queues[queue].remove(at);
                item.group = self.group(cx);
                item.uses = (item.uses + 1).min(255);
                let to = match (self.kind, queue) {
                    (Kind::Arc, _) => 1,
                    (Kind::WTinyLfu, 1..) => 3,
                    _ => 0,
                };
                self.sketch.add(item.print);
                self.queues[to].push(item);
                if to == 3 {
                    self.overflow(3, 2, (CAPACITY - CAPACITY / 100) / 5 * 4);
                }
            }
        }
    }

    fn missed(&mut self, print: u64) {
        match self.kind {
            Kind::Arc => self.learn(print),
            Kind::WTinyLfu => self.sketch.add(print),
            _ => {}
        }
    }

    fn remove(&mut self, slot: u32, why: Removal) {
        let Some((queue, item)) = self.take(slot) else { return };
        let remembers = self.kind == Kind::Arc || (self.kind == Kind::S3Fifo && queue == 0);
        if why == Removal::Evicted && remembers {
            self.ghosts[queue].retain(|ghost| ghost.0 != item.print);
            self.ghosts[queue].push((item.print, item.weight, false));
            if self.kind == Kind::Arc {
                self.trim();
            } else {
                while self.ghosts[0].len() > self.most
                    || self.ghosts[0].iter().map(|ghost| ghost.1).sum::<u64>() > CAPACITY
                {
                    self.ghosts[0].remove(0);
                }
            }
        }
    }

    /// The oldest of a queue that is neither pinned nor proposed.
    fn oldest(&self, queue: usize, out: &[u32]) -> Option<Item> {
        self.queues[queue].iter().find(|item| item.pins == 0 && !out.contains(&item.slot)).cloned()
    }

    fn requeue(&mut self, slot: u32, queue: usize, uses: u64) {
        if let Some((_, item)) = self.take(slot) {
            self.queues[queue].push(Item { uses, ..item });
        }
    }

    fn victims(&mut self, want: u64) -> Vec<u32> {
        let mut out = Vec::new();
        let mut total = 0;
        while total < want {
            let Some(item) = self.next(&out) else { break };
            total += item.weight;
            out.push(item.slot);
        }
        self.left.splice(0..0, out.iter().copied());
        if self.kind == Kind::Sieve && self.hand >= self.queues[0].len() {
            self.hand = 0;
        }
        out
    }

    fn next(&mut self, out: &[u32]) -> Option<Item> {
        let free = |item: &&Item| item.pins == 0 && !out.contains(&item.slot);
        match self.kind {
            Kind::Fifo | Kind::Lru => self.oldest(0, out),
            Kind::Mru => {
                let newest = self.queues[0].iter().filter(free).map(|item| item.group).max()?;
                self.queues[0].iter().filter(free).find(|item| item.group == newest).cloned()
            }
            Kind::Lfu => self.queues[0].iter().filter(free).min_by_key(|item| item.uses).cloned(),
            Kind::Sieve => {
                // What was proposed last time and is still there: marked by its uses, in the order of the proposals.
                while let Some(slot) = self.left.first().copied() {
                    self.left.remove(0);
                    let Some((_, at)) = self.find(slot) else { continue };
                    let item = &mut self.queues[0][at];
                    if item.uses == 2 && item.pins == 0 {
                        return Some(item.clone());
                    } else if item.uses == 2 {
                        item.uses = 0;
                    }
                }
                self.queues[0].iter().find(|item| item.pins == 0 && !out.contains(&item.slot))?;
                loop {
                    if self.hand >= self.queues[0].len() {
                        self.hand = 0;
                    }
                    let item = &mut self.queues[0][self.hand];
                    self.hand += 1;
                    if item.pins > 0 || out.contains(&item.slot) {
                        continue;
                    }
                    if std::mem::take(&mut item.uses) == 0 {
                        item.uses = 2;
                        return Some(item.clone());
                    }
                }
            }
            Kind::S3Fifo => {
                let small: u64 =
                    self.queues[0].iter().filter(|item| !out.contains(&item.slot)).map(|i| i.weight).sum();
                if small > CAPACITY / 10 {
                    while let Some(item) = self.oldest(0, out) {
                        if item.uses == 0 {
                            return Some(item);
                        }
                        self.requeue(item.slot, 1, item.uses);
                    }
                }
                while let Some(item) = self.oldest(1, out) {
                    if item.uses == 0 {
                        return Some(item);
                    }
                    self.requeue(item.slot, 1, item.uses - 1);
                }
                self.oldest(0, out)
            }
            Kind::Arc => {
                let once: u64 =
                    self.queues[0].iter().filter(|item| !out.contains(&item.slot)).map(|i| i.weight).sum();
                let first = usize::from(!(once > self.target || (self.again && once == self.target)));
                self.oldest(first, out).or_else(|| self.oldest(1 - first, out))
            }
            Kind::WTinyLfu => {
                let old = self.oldest(2, out).or_else(|| self.oldest(3, out));
                let Some(new) = self.oldest(1, out) else { return old.or_else(|| self.oldest(0, out)) };
                match old {
                    Some(old) if self.sketch.count(new.print) >= self.sketch.count(old.print) => {
                        self.requeue(new.slot, 2, new.uses);
                        Some(old)
                    }
                    _ => Some(new),
                }
            }
        }
    }
}

type Step = (u8, u32, u32, u32);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..20_u8, 0..SLOTS, 0..150_u32, 1..30_u32), 1..2500)
}

fn agrees(name: &str, kind: Kind, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut policy = by_name(name).expect("a known name");
    let mut model = Model::new(kind);
    policy.set_capacity(CAPACITY);
    for (n, &(step, slot, print, size)) in steps.iter().enumerate() {
        let cx = Access { request: n as u64 / 7, position: 0, chain: 0 };
        let (s, print) = (Slot(slot), u64::from(print));
        match step {
            0..5 => {
                let weight = NonZeroU32::new(size % 9 + 1).expect("not zero");
                policy.insert(Entry { slot: s, print, weight, parent: None, tenant: TenantId(0) }, &cx);
                model.insert(slot, print, weight.get().into(), &cx);
            }
            5..10 => {
                policy.touch(s, &cx);
                model.touch(slot, &cx);
            }
            10..13 => {
                policy.pin(s);
                if let Some((queue, at)) = model.find(slot) {
                    model.queues[queue][at].pins += 1;
                }
            }
            13..16 => {
                policy.unpin(s);
                if let Some((queue, at)) = model.find(slot) {
                    let pins = &mut model.queues[queue][at].pins;
                    *pins = pins.saturating_sub(1);
                }
            }
            16 => {
                let why = if size % 2 == 0 { Removal::Evicted } else { Removal::Deleted };
                policy.remove(s, why);
                model.remove(slot, why);
            }
            17 => {
                policy.missed(print, &cx);
                model.missed(print);
            }
            _ => {
                let mut out = Vec::new();
                let total = policy.victims(size.into(), &mut out);
                let expected = model.victims(size.into());
                prop_assert_eq!(
                    out.iter().map(|slot| slot.0).collect::<Vec<_>>(),
                    expected.clone(),
                    "step {}",
                    n
                );
                let sum: u64 = expected
                    .iter()
                    .filter_map(|&slot| model.find(slot).map(|(queue, at)| model.queues[queue][at].weight))
                    .sum();
                prop_assert_eq!(total, sum);
                // The owner takes some of them.
                for slot in out.iter().take(print as usize % 4) {
                    policy.remove(*slot, Removal::Evicted);
                    model.remove(slot.0, Removal::Evicted);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn fifo(steps in steps()) { agrees("FIFO", Kind::Fifo, &steps)?; }
    #[test]
    fn lru(steps in steps()) { agrees("LRU", Kind::Lru, &steps)?; }
    #[test]
    fn mru(steps in steps()) { agrees("MRU", Kind::Mru, &steps)?; }
    #[test]
    fn lfu(steps in steps()) { agrees("LFU", Kind::Lfu, &steps)?; }
    #[test]
    fn sieve(steps in steps()) { agrees("SIEVE", Kind::Sieve, &steps)?; }
    #[test]
    fn s3fifo(steps in steps()) { agrees("S3-FIFO", Kind::S3Fifo, &steps)?; }
    #[test]
    fn arc(steps in steps()) { agrees("ARC", Kind::Arc, &steps)?; }
    #[test]
    fn w_tinylfu(steps in steps()) { agrees("W-TinyLFU", Kind::WTinyLfu, &steps)?; }
    #[test]
    fn isolated_without_quotas_is_lru(steps in steps()) { agrees("IsolatedLRU", Kind::Lru, &steps)?; }
}

/// What a tenant may expect: a plain account of quotas beside the policy.
#[derive(Default)]
struct Account {
    /// By slot: tenant, weight, pins, last use.
    held: BTreeMap<u32, (u32, u64, u32, u64)>,
    quotas: BTreeMap<u32, u64>,
    default: Option<u64>,
}

impl Account {
    fn quota(&self, tenant: u32) -> Option<u64> {
        self.quotas.get(&tenant).copied().or(self.default)
    }

    fn usage(&self, tenant: u32) -> u64 {
        self.held.values().filter(|held| held.0 == tenant).map(|held| held.1).sum()
    }

    /// Whether tenants within their quotas give to the one that will have so much more.
    fn others_give(&self, asker: Option<u32>, more: u64, capacity: u64) -> bool {
        let Some(asker) = asker else { return true };
        let known = (0..4).filter(|&t| self.usage(t) > 0 || self.quotas.contains_key(&t) || t == asker);
        let promised: u64 = known.filter_map(|t| self.quota(t)).sum();
        self.quota(asker).is_some_and(|quota| self.usage(asker) + more <= quota) && promised > capacity
    }

    /// Every victim is the least recently used one of its tenant (or of all that share), and nobody gives while somebody
    /// who should give before has anything unpinned.
    fn check(
        &self,
        asker: Option<u32>,
        aside: i64,
        out: &[Slot],
        want: u64,
        capacity: u64,
    ) -> Result<(), TestCaseError> {
        const NEVER: u32 = 4;
        let mut gone = HashSet::new();
        let mut left: BTreeMap<u32, u64> = (0..4).map(|tenant| (tenant, self.usage(tenant))).collect();
        let more = want.saturating_add_signed(aside);
        let others_give = self.others_give(asker, more, capacity);
        let rank = |left: &BTreeMap<u32, u64>, tenant: u32| match self.quota(tenant) {
            Some(quota) if left[&tenant] > quota => 0,
            Some(quota) if asker == Some(tenant) && left[&tenant] > quota.saturating_sub(more) => 1,
            None => 2,
            Some(_) if others_give || asker == Some(tenant) => 3,
            Some(_) => NEVER,
        };
        let mut total = 0;
        for slot in out {
            prop_assert!(total < want);
            let &(tenant, weight, pins, used) = self.held.get(&slot.0).expect("a resident");
            prop_assert_eq!(pins, 0);
            prop_assert!(rank(&left, tenant) < NEVER, "tenant {} is within its quota", tenant);
            let others = || self.held.iter().filter(|(s, held)| held.2 == 0 && !gone.contains(*s));
            for (_, other) in others() {
                let (mine, theirs) = (rank(&left, tenant), rank(&left, other.0));
                prop_assert!(mine <= theirs, "tenant {} before {}", tenant, other.0);
                let together = tenant == other.0 || (mine == 2 && theirs == 2);
                prop_assert!(!together || used <= other.3);
            }
            gone.insert(slot.0);
            *left.get_mut(&tenant).expect("a tenant") -= weight;
            total += weight;
        }
        let gives = |(slot, held): (&u32, &(u32, u64, u32, u64))| {
            held.2 == 0 && !gone.contains(slot) && rank(&left, held.0) < NEVER
        };
        prop_assert!(total >= want || !self.held.iter().any(gives));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn isolated_with_quotas(steps in steps()) {
        let mut policy = crate::IsolatedLru::default();
        let mut account = Account::default();
        let cx = Access::default();
        for (n, &(step, slot, print, size)) in steps.iter().enumerate() {
            let (s, tenant, now) = (Slot(slot), print % 4, n as u64);
            match step {
                0..6 => {
                    let weight = NonZeroU32::new(size % 9 + 1).expect("not zero");
                    policy.insert(Entry { slot: s, print: 0, weight, parent: None, tenant: TenantId(tenant) }, &cx);
                    account.held.insert(slot, (tenant, weight.get().into(), 0, now));
                }
                6..9 => {
                    policy.touch(s, &cx);
                    if let Some(held) = account.held.get_mut(&slot) { held.3 = now; }
                }
                9..11 => {
                    policy.pin(s);
                    if let Some(held) = account.held.get_mut(&slot) { held.2 += 1; }
                }
                11..13 => {
                    policy.unpin(s);
                    if let Some(held) = account.held.get_mut(&slot) { held.2 = held.2.saturating_sub(1); }
                }
                13 => {
                    policy.remove(s, Removal::Deleted);
                    account.held.remove(&slot);
                }
                14 => {
                    policy.set(TenantId(tenant), u64::from(size) * 8);
                    account.quotas.insert(tenant, u64::from(size) * 8);
                }
                15 => prop_assert_eq!(policy.delete(TenantId(tenant)), account.quotas.remove(&tenant).is_some()),
                16 => {
                    account.default = [None, Some(0), Some(60)][size as usize % 3];
                    policy.set_default(account.default);
                }
                _ => {
                    let asker = [Some(0), Some(1), Some(2), Some(3), None][slot as usize % 5];
                    // Sometimes told, and sometimes too little for the quotas.
                    let capacity = u64::from(print / 4 % 3) * 100;
                    policy.set_capacity(capacity);
                    let aside = i64::from(size) % 7 * 3 - 6;
                    policy.asks(asker.map(TenantId), aside);
                    let mut out = Vec::new();
                    policy.victims(size.into(), &mut out);
                    account.check(asker, aside, &out, size.into(), capacity)?;
                    for slot in out.iter().take(print as usize % 5) {
                        policy.remove(*slot, Removal::Evicted);
                        account.held.remove(&slot.0);
                    }
                }
            }
            let usage: Vec<_> =
                (0..4).map(|t| (TenantId(t), account.usage(t))).filter(|(_, usage)| *usage > 0).collect();
            prop_assert_eq!(policy.usage(), usage);
            let quotas: Vec<_> = account.quotas.iter().map(|(&t, &quota)| (TenantId(t), quota)).collect();
            prop_assert_eq!(policy.list(), quotas);
        }
    }
}
