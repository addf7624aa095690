//! What is in the store, and how many bytes it takes: no I/O in here.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use kvstrata_core::{KeyScope, ObjectKey, encode};
use kvstrata_evict::{Access, Entry as PolicyEntry, EvictionPolicy, Removal, Slot, TenantId};
use kvstrata_l2::Found;

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

/// Where an object lies. There is one path, and a file has no place of its own; both numbers are in the snapshot's format
/// for stores over many paths and for extents of segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The path's number.
    pub path: u16,
    /// Where on it; 0 for an object with a file of its own.
    pub at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Being written: known to the policy (pinned), not to be found.
    Writing,
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
    pins: u32,
    state: State,
}

/// An object that has to leave the device.
#[derive(Debug)]
pub(crate) struct Victim {
    pub(crate) key: ObjectKey,
    pub(crate) charge: u64,
}

/// The answer to a reservation.
#[derive(Debug)]
pub(crate) enum Room {
    /// The bytes are set aside.
    Ready,
    /// These bad objects in quarantine go first; then ask again.
    Purge(Vec<(std::ffi::OsString, u64)>),
    /// These are no longer found; their keys are held until they are off the device, and then [`Index::settle`] is told.
    Evict { victims: Vec<Victim>, added: u64 },
    /// Everything is in use, or it can never fit.
    Full,
}

/// The objects, the policy's view of them, the keys somebody works on, and the bytes.
pub(crate) struct Index<W> {
    by_print: ByPrint<u32>,
    slots: Vec<Option<SlotState>>,
    free: Vec<u32>,
    policy: Box<dyn EvictionPolicy>,
    /// Keys that are being written, evicted or removed, with those who wait for their turn.
    held: ByPrint<VecDeque<W>>,
    scopes: HashMap<Vec<u8>, Arc<KeyScope>>,
    /// The scope that was interned last: usually the next one too.
    last_scope: Option<Arc<KeyScope>>,
    tenants: HashMap<Box<str>, TenantId>,
    quarantined: VecDeque<(std::ffi::OsString, u64)>,
    requests: u64,
    uses: u64,
    used: u64,
    /// What the store itself takes: directories, manifest, snapshot. They are no object's bytes and mostly stay when
    /// objects go, so they are counted apart; the limit holds for the sum.
    overhead: u64,
    capacity: Option<u64>,
    pub(crate) evicted: u64,
}

/// The policy counts in 4 KiB units, so that objects above 4 GiB have a weight.
const UNIT: u64 = 4096;

fn weight(charge: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(charge.div_ceil(UNIT)).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

impl<W> Index<W> {
    pub(crate) fn new(policy: Box<dyn EvictionPolicy>, capacity: Option<u64>) -> Self {
        Self {
            by_print: ByPrint::default(),
            slots: Vec::new(),
            free: Vec::new(),
            policy,
            held: ByPrint::default(),
            scopes: HashMap::new(),
            last_scope: None,
            tenants: HashMap::new(),
            quarantined: VecDeque::new(),
            requests: 0,
            uses: 0,
            used: 0,
            overhead: 0,
            capacity,
            evicted: 0,
        }
    }

    // --- finding -------------------------------------------------------------------------------------------------

    fn slot_of(&self, key: &ObjectKey) -> Option<u32> {
        let slot = *self.by_print.get(&key.fingerprint())?;
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
        object.key = self.interned(&object.key);
        let entry = PolicyEntry {
            slot: Slot(0),
            print: object.key.fingerprint() as u64,
            weight: weight(object.charge),
            parent: None,
            tenant: self.tenant(object.key.scope().salt()),
        };
        let held = Some(SlotState { object, pins: 0, state });
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
    fn interned(&mut self, key: &ObjectKey) -> ObjectKey {
        if self.last_scope.as_ref().is_some_and(|last| Arc::ptr_eq(last, key.scope())) {
            return key.clone();
        }
        let mut text = Vec::with_capacity(128);
        encode::encode_key(key, &mut text);
        let scope = text.split_off(2 + key.hash().as_bytes().len());
        let scope = self.scopes.entry(scope).or_insert_with(|| Arc::clone(key.scope()));
        self.last_scope = Some(Arc::clone(scope));
        if Arc::ptr_eq(scope, key.scope()) { key.clone() } else { ObjectKey::new(scope, *key.hash()) }
    }

    fn tenant(&mut self, salt: &str) -> TenantId {
        if salt.is_empty() {
            return TenantId(0);
        }
        let next = TenantId(self.tenants.len() as u32 + 1);
        match self.tenants.get(salt) {
            Some(id) => *id,
            None => *self.tenants.entry(salt.into()).or_insert(next),
        }
    }

    /// The object can be found from now on.
    pub(crate) fn publish(&mut self, slot: u32, generation: u64) {
        let s = self.at_mut(slot);
        s.state = State::Resident;
        s.object.generation = generation;
        let print = s.object.key.fingerprint();
        self.policy.unpin(Slot(slot));
        let before = self.by_print.insert(print, slot);
        debug_assert!(before.is_none(), "whoever publishes removed the old object first");
    }

    /// The object was not written.
    pub(crate) fn give_up(&mut self, slot: u32) {
        self.policy.remove(Slot(slot), Removal::Deleted);
        self.release(slot);
    }

    /// Adds what recovery found; its bytes count.
    pub(crate) fn recovered(&mut self, object: Object) {
        if let Some(slot) = self.slot_of(&object.key) {
            self.detach(slot, Removal::Deleted);
        }
        self.used += object.charge;
        let print = object.key.fingerprint();
        let slot = self.take_slot(object, State::Resident, &Access::default());
        self.by_print.insert(print, slot);
    }

    /// The object is not found any more. Its bytes count until [`Self::free`] is told that they are off the device.
    pub(crate) fn detach(&mut self, slot: u32, why: Removal) -> Object {
        self.policy.remove(Slot(slot), why);
        let s = self.at_mut(slot);
        s.state = State::Gone;
        let object = s.object.clone();
        if s.pins == 0 {
            self.release(slot);
        }
        self.by_print.remove(&object.key.fingerprint());
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

    /// Takes the right to write, evict or remove a key, if nobody has it.
    pub(crate) fn hold(&mut self, print: u128) -> bool {
        match self.held.entry(print) {
            hashbrown::hash_map::Entry::Occupied(_) => false,
            hashbrown::hash_map::Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                true
            }
        }
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
        }
        next
    }

    /// The fan-out directories of the keys somebody works on: the first two bytes of their fingerprints.
    pub(crate) fn held_dirs(&self) -> impl Iterator<Item = [u8; 2]> {
        self.held.keys().map(|print| *print.to_le_bytes().first_chunk().expect("16 bytes"))
    }

    // --- bytes ---------------------------------------------------------------------------------------------------

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// The bytes above the limit.
    pub(crate) fn excess(&self) -> u64 {
        self.capacity.map_or(0, |capacity| (self.used + self.overhead).saturating_sub(capacity))
    }

    /// Directories were made or removed, or another file of the store's own.
    pub(crate) fn overhead_grown(&mut self, by: i64) {
        self.overhead = self.overhead.saturating_add_signed(by);
    }

    pub(crate) fn capacity(&self) -> Option<u64> {
        self.capacity
    }

    /// Sets `need` bytes aside, or says what has to go first.
    pub(crate) fn reserve(&mut self, need: u64) -> Room {
        let Some(capacity) = self.capacity else {
            self.used += need;
            return Room::Ready;
        };
        let free = capacity.saturating_sub(self.used + self.overhead);
        if need <= free {
            self.used += need;
            return Room::Ready;
        }
        if !self.quarantined.is_empty() {
            let mut purge = Vec::new();
            let mut bytes = 0;
            while let Some(bad) = self.quarantined.pop_front_if(|_| bytes < need - free) {
                bytes += bad.1;
                purge.push(bad);
            }
            return Room::Purge(purge);
        }
        // What exceeds the capacity already (found at the start) goes too.
        let short = self.used + self.overhead + need - capacity;
        match self.evict(short) {
            None => Room::Full,
            Some((victims, freed)) => {
                let added = need.saturating_sub(freed);
                self.used += added;
                Room::Evict { victims, added }
            }
        }
    }

    /// Detaches and holds victims worth at least `bytes`, if there are enough.
    pub(crate) fn evict(&mut self, bytes: u64) -> Option<(Vec<Victim>, u64)> {
        let mut slots = Vec::new();
        self.policy.victims(bytes.div_ceil(UNIT), &mut slots);
        let freed: u64 = slots.iter().map(|s| self.at(s.0).object.charge).sum();
        if freed < bytes {
            return None;
        }
        self.evicted += slots.len() as u64;
        let victims = slots.into_iter().map(|s| {
            let object = self.detach(s.0, Removal::Evicted);
            let held = self.hold(object.key.fingerprint());
            debug_assert!(held, "objects of held keys are pinned");
            Victim { key: object.key, charge: object.charge }
        });
        Some((victims.collect(), freed))
    }

    /// After [`Room::Evict`]: `freed` bytes are off the device. Whether the reservation of `need` stands; it does unless
    /// victims could not be removed.
    pub(crate) fn settle(&mut self, need: u64, added: u64, freed: u64) -> bool {
        self.used = self.used + (need - added) - freed;
        let stands = self.excess() == 0;
        if !stands {
            self.used -= need;
        }
        stands
    }

    /// Bytes that are off the device, or were set aside in vain.
    pub(crate) fn free(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "more bytes freed than used");
        self.used = self.used.saturating_sub(bytes);
    }

    /// Bytes that are on the device whether or not they were asked for.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// A bad object lies in quarantine and takes bytes that are counted already.
    pub(crate) fn quarantine(&mut self, name: std::ffi::OsString, bytes: u64) {
        self.quarantined.push_back((name, bytes));
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
