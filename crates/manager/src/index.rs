//! Which chunks are resident: key → slot → entry.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use kvstrata_core::{Layout, ObjectKey};
use kvstrata_evict::{Slot, TenantId};
use kvstrata_mem::ReadBuf;

use crate::{L1Watch, StoredHook};

/// A slot and which of its tenants is meant: an entry that left is not confused with the one that took its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle {
    pub(crate) slot: Slot,
    pub(crate) generation: u32,
}

/// A resident chunk.
pub(crate) struct Entry {
    pub(crate) key: ObjectKey,
    pub(crate) layout: Layout,
    pub(crate) buf: ReadBuf,
    /// Readers and stores in flight. Above zero the entry is not evicted, and its policy knows it as pinned.
    pub(crate) pins: u32,
    pub(crate) tenant: TenantId,
    /// Not admitted: it leaves as soon as its stores are over.
    pub(crate) passing: bool,
    /// Not found by lookups any more, and gone with the last pin.
    pub(crate) doomed: bool,
    /// Deleted by the caller: what a store in flight still writes is removed again.
    pub(crate) deleted: bool,
    pub(crate) store: StoreState,
}

/// How far an entry's way to L2 is.
#[derive(Default)]
pub(crate) struct StoreState {
    /// Targets without a final answer.
    pub(crate) pending: u32,
    /// Targets that have it.
    pub(crate) stored: u32,
    /// Targets that gave up.
    pub(crate) failed: u32,
    pub(crate) hook: Option<Arc<dyn StoredHook>>,
}

#[derive(Default)]
struct Place {
    generation: u32,
    entry: Option<Entry>,
}

/// The index proper. A doomed entry keeps its slot but has no name.
#[derive(Default)]
pub(crate) struct Index {
    names: HashTable<Slot>,
    places: Vec<Place>,
    free: Vec<Slot>,
    /// Told what gets a name and what loses it, but for chunks that only pass through.
    pub(crate) watch: Option<Arc<dyn L1Watch>>,
}

fn hash(key: &ObjectKey) -> u64 {
    key.fingerprint() as u64
}

impl Index {
    pub(crate) fn find(&self, key: &ObjectKey) -> Option<Slot> {
        let same = |s: &Slot| self.places[s.index()].entry.as_ref().is_some_and(|e| e.key == *key);
        self.names.find(hash(key), same).copied()
    }

    /// The slot that the next [`Self::insert`] of a batch would take, `ahead` inserts from now.
    pub(crate) fn take_slot(&mut self) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            Slot(u32::try_from(self.places.len() - 1).expect("fewer than 2^32 chunks fit a machine"))
        })
    }

    /// Fills a slot that [`Self::take_slot`] gave. The key must not have a name yet.
    pub(crate) fn insert(&mut self, slot: Slot, entry: Entry) -> Handle {
        let places = &self.places;
        self.names.insert_unique(hash(&entry.key), slot, |s| {
            hash(&places[s.index()].entry.as_ref().expect("a named slot is filled").key)
        });
        if let Some(watch) = self.watch.as_ref().filter(|_| !entry.passing) {
            watch.came(&entry.key);
        }
        let place = &mut self.places[slot.index()];
        place.entry = Some(entry);
        Handle { slot, generation: place.generation }
    }

    /// Lookups do not find the entry any more.
    pub(crate) fn unname(&mut self, slot: Slot) {
        let Some(entry) = &self.places[slot.index()].entry else { return };
        if let Ok(found) = self.names.find_entry(hash(&entry.key), |s| *s == slot) {
            found.remove();
            if let Some(watch) = self.watch.as_ref().filter(|_| !entry.passing) {
                watch.left(&entry.key);
            }
        }
    }

    /// Empties a slot; handles to what was in it are void from now on.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Entry> {
        self.unname(slot);
        let place = &mut self.places[slot.index()];
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        Some(entry)
    }

    pub(crate) fn handle(&self, slot: Slot) -> Handle {
        Handle { slot, generation: self.places[slot.index()].generation }
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&Entry> {
        let place = &self.places[handle.slot.index()];
        (place.generation == handle.generation).then_some(place.entry.as_ref()).flatten()
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut Entry> {
        let place = &mut self.places[handle.slot.index()];
        (place.generation == handle.generation).then_some(place.entry.as_mut()).flatten()
    }

    pub(crate) fn at(&self, slot: Slot) -> &Entry {
        self.places[slot.index()].entry.as_ref().expect("the slot is filled")
    }

    pub(crate) fn at_mut(&mut self, slot: Slot) -> &mut Entry {
        self.places[slot.index()].entry.as_mut().expect("the slot is filled")
    }

    /// What is in a slot that a policy named: perhaps nothing.
    pub(crate) fn candidate(&self, slot: Slot) -> Option<&Entry> {
        self.places.get(slot.index())?.entry.as_ref().filter(|e| !e.passing)
    }

    /// Filled slots, doomed ones included.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        self.places.iter().enumerate().filter_map(|(i, p)| Some((Slot(i as u32), p.entry.as_ref()?)))
    }

    /// Chunks that lookups find.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }
}

/// Maps by key: a key hashes as 64 uniform bits already.
pub(crate) type KeyMap<V> = hashbrown::HashMap<ObjectKey, V, BuildHasherDefault<Uniform>>;

#[derive(Default)]
pub(crate) struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("an object key hashes as one u64");
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}
