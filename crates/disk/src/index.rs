//! What is in the store, and how many bytes it takes: no I/O in here.

mod extents;
mod room;
mod slab;
mod tenants;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use kvstrata_core::{Digest, KeyScope, ObjectKey, encode};
use kvstrata_evict::{Access, Contained, Entry as PolicyEntry, EvictionPolicy, Removal, Slot, TenantId};
use kvstrata_l2::{Found, Tenants};

use room::weight;
pub(crate) use room::{Asker, Room, Victim};
pub(crate) use slab::Leaving;

/// Fingerprints are uniform already: their low half is the hash.
#[derive(Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only 128-bit fingerprints are hashed");
    }
    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }
}

type ByPrint<T> = hashbrown::HashMap<u128, T, BuildHasherDefault<Uniform>>;

/// Where an object lies. There is one path; the number is in the formats for stores over several devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The path's number.
    pub path: u16,
    /// Where on it: the place of its extent, or 0 for an object with a file of its own.
    pub at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Being written: known to the policy (pinned), not to be found.
    Writing,
    /// As that, and its record is in the log: a snapshot that takes the log's place has to have it.
    Recorded,
    Resident,
    /// No longer to be found; loads that began before still hold the slot.
    Gone,
}

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) key: ObjectKey,
    pub(crate) found: Found,
    pub(crate) place: Place,
    pub(crate) generation: u64,
    /// Bytes it takes on the device: header, payload, rounding.
    pub(crate) charge: u64,
    /// Counts uses, so that a restart knows which object was used last.
    pub(crate) used_at: u64,
}

#[derive(Debug)]
struct SlotState {
    object: Object,
    tenant: u32,
    pins: u32,
    state: State,
}

/// The objects, the policy's view of them, the keys somebody works on, and the bytes.
pub(crate) struct Index<W> {
    /// The slots of what can be found, by fingerprint. Numbers alone: a start pays for every byte that it touches.
    by_print: HashTable<u32>,
    slots: Vec<Option<SlotState>>,
    free: Vec<u32>,
    policy: Contained<dyn EvictionPolicy>,
    /// What it is called; a policy that has panicked is not asked any more.
    policy_name: &'static str,
    /// Keys that are being written, evicted or removed, with those who wait for their turn.
    held: ByPrint<VecDeque<W>>,
    scopes: HashMap<Vec<u8>, Arc<KeyScope>>,
    /// The scope that was interned last: usually the next one too.
    last_scope: Option<Arc<KeyScope>>,
    tenants: Tenants,
    quarantined: VecDeque<(std::ffi::OsString, u64)>,
    requests: u64,
    uses: u64,
    used: u64,
    /// What the store itself takes: directories, manifest, snapshot. They are no object's bytes and mostly stay when
    /// objects go, so they are counted apart; the limit holds for the sum.
    overhead: u64,
    capacity: Option<u64>,
    pub(crate) evicted: u64,
    /// Of a store of segments: its places, how many are taken, and how many there may be.
    extents: Option<extents::Extents>,
    placed: u64,
    most: u64,
}

impl<W> Index<W> {
    pub(crate) fn new(policy: Box<dyn EvictionPolicy>, capacity: Option<u64>) -> Self {
        let mut policy = Contained::new(policy);
        let policy_name = policy.name();
        if let Some(capacity) = capacity {
            policy.set_capacity(capacity / room::UNIT);
        }
        Self {
            by_print: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            policy,
            policy_name,
            held: ByPrint::default(),
            scopes: HashMap::new(),
            last_scope: None,
            tenants: Tenants::default(),
            quarantined: VecDeque::new(),
            requests: 0,
            uses: 0,
            used: 0,
            overhead: 0,
            capacity,
            evicted: 0,
            extents: None,
            placed: 0,
            most: u64::MAX,
        }
    }

    // --- finding -------------------------------------------------------------------------------------------------

    fn slot_by_print(&self, print: u128) -> Option<u32> {
        let same = |slot: &u32| self.at(*slot).object.key.fingerprint() == print;
        self.by_print.find(print as u64, same).copied()
    }

    /// The object in this slot can be found. No other one of its key can.
    fn show(&mut self, slot: u32) {
        let hash = |slot: u32| {
            let s = self.slots[slot as usize].as_ref().expect("a slot in use");
            s.object.key.fingerprint() as u64
        };
        self.by_print.insert_unique(hash(slot), slot, |slot| hash(*slot));
    }

    fn slot_of(&self, key: &ObjectKey) -> Option<u32> {
        let slot = self.slot_by_print(key.fingerprint())?;
        (self.at(slot).object.key.fingerprint256() == key.fingerprint256()).then_some(slot)
    }

    fn at(&self, slot: u32) -> &SlotState {
        self.slots[slot as usize].as_ref().expect("a slot in use")
    }

    fn at_mut(&mut self, slot: u32) -> &mut SlotState {
        self.slots[slot as usize].as_mut().expect("a slot in use")
    }

    /// The object under this key, and its slot.
    pub(crate) fn find(&self, key: &ObjectKey) -> Option<(u32, &Object)> {
        self.slot_of(key).map(|slot| (slot, &self.at(slot).object))
    }

    /// Tells the policy that an object that is not here was asked for.
    pub(crate) fn missed(&mut self, key: &ObjectKey, cx: &Access) {
        self.policy.missed(key.fingerprint() as u64, cx);
    }

    /// The number of the request that begins.
    pub(crate) fn request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    pub(crate) fn touch(&mut self, slot: u32, cx: &Access) {
        self.uses += 1;
        let uses = self.uses;
        self.at_mut(slot).object.used_at = uses;
        self.policy.touch(Slot(slot), cx);
    }

    /// Keeps the object from being evicted, and its slot from being reused.
    pub(crate) fn pin(&mut self, slot: u32) {
        self.at_mut(slot).pins += 1;
        self.policy.pin(Slot(slot));
    }

    /// Ends a pin. Whether the object was there all the time.
    pub(crate) fn unpin(&mut self, slot: u32) -> bool {
        let s = self.at_mut(slot);
        s.pins -= 1;
        if s.state == State::Gone {
            if s.pins == 0 {
                self.release(slot);
            }
            return false;
        }
        self.policy.unpin(Slot(slot));
        true
    }

    fn release(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
    }

    // --- coming and going ----------------------------------------------------------------------------------------

    /// A slot for an object that is being written: the policy hears of it now, so that a batch's order is what counts and
    /// not which thread was faster. It is pinned until it is published or given up.
    pub(crate) fn begin(&mut self, object: Object, cx: &Access) -> u32 {
        let slot = self.take_slot(object, State::Writing, cx);
        self.policy.pin(Slot(slot));
        slot
    }

    fn take_slot(&mut self, mut object: Object, state: State, cx: &Access) -> u32 {
        self.uses += 1;
        object.used_at = self.uses;
        object.key = self.interned(object.key);
        let tenant = self.tenants.number(object.key.scope().salt());
        self.tenants.takes(tenant, object.charge);
        let entry = PolicyEntry {
            slot: Slot(0),
            print: object.key.fingerprint() as u64,
            weight: weight(object.charge),
            parent: None,
            tenant: TenantId(tenant),
        };
        let held = Some(SlotState { object, tenant, pins: 0, state });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = held;
                slot
            }
            None => {
                self.slots.push(held);
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 objects")
            }
        };
        self.policy.insert(PolicyEntry { slot: Slot(slot), ..entry }, cx);
        slot
    }

    /// Scopes come with each request anew; the index keeps one of each.
    fn interned(&mut self, key: ObjectKey) -> ObjectKey {
        if self.last_scope.as_ref().is_some_and(|last| Arc::ptr_eq(last, key.scope())) {
            return key;
        }
        let mut text = Vec::with_capacity(128);
        encode::encode_key(&key, &mut text);
        let scope = text.split_off(2 + key.hash().as_bytes().len());
        let scope = self.scopes.entry(scope).or_insert_with(|| Arc::clone(key.scope()));
        self.last_scope = Some(Arc::clone(scope));
        if Arc::ptr_eq(scope, key.scope()) { key } else { ObjectKey::new(scope, *key.hash()) }
    }

    /// The object can be found from now on.
    pub(crate) fn publish(&mut self, slot: u32, generation: u64) {
        let s = self.at_mut(slot);
        s.state = State::Resident;
        s.object.generation = generation;
        let print = s.object.key.fingerprint();
        debug_assert!(self.slot_by_print(print).is_none(), "whoever publishes removed the old object first");
        // Its pin is from now on that of the hold under which it was written.
        self.show(slot);
    }

    /// The digest of what is being written is known now.
    pub(crate) fn set_digest(&mut self, slot: u32, digest: Digest) {
        self.at_mut(slot).object.found.digest = Some(digest);
    }

    /// The object was not written.
    pub(crate) fn give_up(&mut self, slot: u32) {
        self.policy.remove(Slot(slot), Removal::Deleted);
        let s = self.at(slot);
        let (tenant, charge) = (s.tenant, s.object.charge);
        self.tenants.gives(tenant, charge);
        self.release(slot);
    }

    /// So many objects are about to come; they are not to be moved again and again as the index grows.
    pub(crate) fn expect(&mut self, objects: usize) {
        let slots = &self.slots;
        let hash =
            |slot: &u32| slots[*slot as usize].as_ref().map_or(0, |s| s.object.key.fingerprint() as u64);
        self.by_print.reserve(objects, hash);
        self.slots.reserve(objects);
    }

    /// These are about to be looked for, one by one: what that reads is fetched now, for several of them at a time. An index of
    /// millions is in no cache, and whoever looks for one after the other waits for memory each time.
    pub(crate) fn fetch(&self, objects: &[Object]) {
        for object in objects {
            std::hint::black_box(self.slot_by_print(object.key.fingerprint()));
        }
    }

    /// Adds what recovery found; its bytes count.
    pub(crate) fn recovered(&mut self, object: Object) {
        self.recovered_over(self.slot_of(&object.key), object);
    }

    /// As that, where the slot of an object with the same key is known.
    fn recovered_over(&mut self, there: Option<u32>, object: Object) {
        if let Some(slot) = there {
            self.used -= self.detach(slot, Removal::Deleted).charge;
        }
        self.used += object.charge;
        let slot = self.take_slot(object, State::Resident, &Access::default());
        self.show(slot);
    }

    /// The object is not found any more. Its bytes count until [`Self::free`] is told that they are off the device.
    pub(crate) fn detach(&mut self, slot: u32, why: Removal) -> Object {
        self.policy.remove(Slot(slot), why);
        let s = self.at_mut(slot);
        s.state = State::Gone;
        let (object, tenant, pins) = (s.object.clone(), s.tenant, s.pins);
        self.tenants.gives(tenant, object.charge);
        if let Ok(shown) = self.by_print.find_entry(object.key.fingerprint() as u64, |there| *there == slot) {
            shown.remove();
        }
        if pins == 0 {
            self.release(slot);
        }
        object
    }

    /// Objects that can be found.
    pub(crate) fn len(&self) -> usize {
        self.by_print.len()
    }

    /// The next at most `limit` objects from slot `from` on, and where to go on. Slots do not change while an object stays.
    pub(crate) fn page(&self, from: usize, limit: usize) -> (Vec<&Object>, Option<usize>) {
        let mut out = Vec::new();
        for (at, slot) in self.slots.iter().enumerate().skip(from) {
            if out.len() == limit {
                return (out, Some(at));
            }
            out.extend(slot.as_ref().filter(|s| s.state == State::Resident).map(|s| &s.object));
        }
        (out, None)
    }

    // --- who works on a key --------------------------------------------------------------------------------------

    /// Takes the right to write, evict or remove a key, if nobody has it. As long as somebody does, its object is not
    /// evicted.
    pub(crate) fn hold(&mut self, print: u128) -> bool {
        match self.held.entry(print) {
            hashbrown::hash_map::Entry::Occupied(_) => return false,
            hashbrown::hash_map::Entry::Vacant(free) => drop(free.insert(VecDeque::new())),
        }
        if let Some(slot) = self.slot_by_print(print) {
            self.policy.pin(Slot(slot));
        }
        true
    }

    /// Waits for a key that somebody holds.
    ///
    /// # Panics
    /// If nobody does.
    pub(crate) fn wait(&mut self, print: u128, waiter: W) {
        self.held.get_mut(&print).expect("a key that is held").push_back(waiter);
    }

    /// Ends a hold, or passes it to the one who waits longest.
    pub(crate) fn pass_on(&mut self, print: u128) -> Option<W> {
        let next = self.held.get_mut(&print)?.pop_front();
        if next.is_none() {
            self.held.remove(&print);
            if let Some(slot) = self.slot_by_print(print) {
                self.policy.unpin(Slot(slot));
            }
        }
        next
    }

    /// The fan-out directories of the keys somebody works on: the first two bytes of their fingerprints.
    pub(crate) fn held_dirs(&self) -> impl Iterator<Item = [u8; 2]> {
        self.held.keys().map(|print| *print.to_le_bytes().first_chunk().expect("16 bytes"))
    }
}

impl<W> std::fmt::Debug for Index<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("objects", &self.len())
            .field("held", &self.held.len())
            .field("used", &self.used)
            .field("overhead", &self.overhead)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
