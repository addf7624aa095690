//! Policies of `kvstrata-evict`, made into caches.

use super::{Cache, Contestant};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use kvstrata_evict::{Access, Entry, EvictionPolicy, Removal, Slot, TenantId, by_name};
use parking_lot::Mutex;
use std::hash::BuildHasher;
use std::num::NonZeroU32;

pub(crate) const NAME: &str = "kvstrata";

pub(crate) fn contestants() -> Vec<Contestant> {
    macro_rules! ours {
        ($($policy:literal in $family:literal),*) => { vec![$(
            Contestant {
                of: NAME, policy: $policy, family: $family,
                make: |entries| Box::new(Mutex::new(Mapped::new($policy, entries))),
            },
        )*] };
    }
    ours!(
        "FIFO" in "FIFO", "LRU" in "LRU", "SIEVE" in "SIEVE", "S3-FIFO" in "S3-FIFO", "W-TinyLFU" in "TinyLFU",
        "ARC" in "ARC", "life-table" in "life-table"
    )
}

/// A policy, and how it is spoken to.
struct Policy {
    policy: Box<dyn EvictionPolicy>,
    victims: Vec<Slot>,
    events: u64,
}

impl Policy {
    fn new(name: &str, entries: usize) -> Self {
        let mut policy = by_name(name).expect("a known name");
        policy.set_capacity(entries as u64);
        Self { policy, victims: Vec::new(), events: 0 }
    }

    fn access(&mut self) -> Access {
        self.events += 1;
        Access { request: self.events, position: 0, chain: 1 }
    }

    fn touch(&mut self, slot: Slot) {
        let access = self.access();
        self.policy.touch(slot, &access);
    }

    fn insert(&mut self, slot: Slot, print: u64) {
        let access = self.access();
        let entry = Entry { slot, print, weight: NonZeroU32::MIN, parent: None, tenant: TenantId(0) };
        self.policy.insert(entry, &access);
    }

    fn remove(&mut self, slot: Slot) {
        self.policy.remove(slot, Removal::Deleted);
    }

    fn evict(&mut self) -> Slot {
        self.victims.clear();
        self.policy.victims(1, &mut self.victims);
        let slot = self.victims[0];
        self.policy.remove(slot, Removal::Evicted);
        slot
    }
}

struct Mapped {
    policy: Policy,
    by_key: HashTable<Slot>,
    objects: Vec<(u64, u32)>,
    free: Vec<Slot>,
}

fn hash(key: u64) -> u64 {
    FixedState::default().hash_one(key)
}

impl Mapped {
    fn new(name: &str, entries: usize) -> Self {
        let free = (0..entries as u32).rev().map(Slot).collect();
        let by_key = HashTable::with_capacity(entries);
        Self { policy: Policy::new(name, entries), by_key, objects: vec![(0, 0); entries], free }
    }

    fn find(&self, key: u64) -> Option<Slot> {
        self.by_key.find(hash(key), |slot| self.objects[slot.index()].0 == key).copied()
    }

    fn forget(&mut self, key: u64, slot: Slot) {
        if let Ok(found) = self.by_key.find_entry(hash(key), |found| *found == slot) {
            found.remove();
        }
    }
}

impl Cache for Mutex<Mapped> {
    fn get(&mut self, key: u64) -> bool {
        // The lock is what a shared cache needs; nobody else wants it here.
        let cache = &mut *(*self).lock();
        let Some(slot) = cache.find(key) else { return false };
        cache.policy.touch(slot);
        std::hint::black_box(cache.objects[slot.index()].1);
        true
    }

    fn insert(&mut self, key: u64, value: u32) {
        let cache = &mut *(*self).lock();
        // If it is there, it replaces its old value.
        let slot = cache.find(key).unwrap_or_else(|| {
            let slot = cache.free.pop().unwrap_or_else(|| {
                let slot = cache.policy.evict();
                cache.forget(cache.objects[slot.index()].0, slot);
                slot
            });
            let objects = &cache.objects;
            cache.by_key.insert_unique(hash(key), slot, |slot| hash(objects[slot.index()].0));
            slot
        });
        cache.objects[slot.index()] = (key, value);
        cache.policy.insert(slot, key);
    }

    fn remove(&mut self, key: u64) {
        let cache = &mut *(*self).lock();
        if let Some(slot) = cache.find(key) {
            cache.forget(key, slot);
            cache.policy.remove(slot);
            cache.free.push(slot);
        }
    }
}
