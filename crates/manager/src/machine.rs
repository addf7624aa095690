//! The state of the manager, and every decision: no I/O, no clock, no spawn. Time comes in with each call, what is to be
//! done outside comes out as [`Effect`]s.

use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::sync::Arc;

use foldhash::fast::FixedState;
use kvstrata_core::{Affinity, Error, ErrorKind, Instant, KeyMask, Layout, ObjectKey};
use kvstrata_evict::{
    Access, Admission, Entry as PolicyEntry, EvictionPolicy, Offer, Removal, Slot, TenantId, admit_chain,
};
use kvstrata_mem::{Allocate, ReadBuf, UNIT, WriteBuf};
use kvstrata_policy::{L2Id, StorePolicy};

use crate::index::{Entry, Handle, Index, KeyMap, StoreState};
use crate::pace::Pace;
use crate::store::{Retry, StoreOp};
use crate::{Committed, Grant, Layouts, Options, Stats, StoredHook};

/// Work for the driver.
pub(crate) enum Effect {
    /// Hand these to an adapter; its answers come back through `Machine::stored`.
    Put { tier: L2Id, op: u64, items: Vec<(ObjectKey, Layout, ReadBuf)>, affinity: Affinity },
    /// Take this away again: it was deleted while it was being stored.
    Remove { tier: L2Id, key: ObjectKey },
    /// Tell the caller that the key can be read from L2.
    Hook { hook: Arc<dyn StoredHook>, key: ObjectKey },
}

/// An adapter as the machine sees it.
pub(crate) struct Tier {
    pub(crate) id: L2Id,
    pub(crate) name: String,
    pub(crate) weight: u32,
    /// Leaving: no new stores or loads.
    pub(crate) draining: bool,
    /// Keys of stores in flight.
    pub(crate) in_flight: usize,
    /// What its loads take, once one was measured.
    pub(crate) pace: Option<Pace>,
}

/// A granted buffer and what its commit needs to know.
pub(crate) struct Granted {
    pub(crate) key: ObjectKey,
    pub(crate) parent: Option<ObjectKey>,
    pub(crate) layout: Layout,
    pub(crate) buf: WriteBuf,
    pub(crate) cx: Access,
    pub(crate) affinity: Affinity,
    /// Not admitted to L1: it only passes through, in the staging budget.
    pub(crate) passing: bool,
}

/// One key's answer to `Machine::reserve`.
pub(crate) enum Room {
    Granted(Box<Granted>),
    Unwanted,
    NotAdmitted,
    Resident,
    Busy,
    Refused(Error),
}

/// A loaded chunk to admit.
pub(crate) struct Arrival {
    pub(crate) key: ObjectKey,
    pub(crate) parent: Option<ObjectKey>,
    pub(crate) layout: Layout,
    pub(crate) buf: ReadBuf,
    pub(crate) cx: Access,
}

pub(crate) struct Machine {
    pub(crate) index: Index,
    policy: Box<dyn EvictionPolicy>,
    admission: Box<dyn Admission>,
    cache: Arc<dyn Allocate>,
    staging: Arc<dyn Allocate>,
    pub(crate) store_policy: Box<dyn StorePolicy>,
    pub(crate) options: Options,
    /// Keys somebody is writing.
    staged: KeyMap<()>,
    tenants: hashbrown::HashMap<String, TenantId, FixedState>,
    pub(crate) tiers: Vec<Tier>,
    pub(crate) ops: hashbrown::HashMap<u64, StoreOp, FixedState>,
    pub(crate) next_op: u64,
    pub(crate) retries: BinaryHeap<Retry>,
    pub(crate) stats: Stats,
    pub(crate) effects: Vec<Effect>,
    pub(crate) closed: bool,
    /// A pin or a reservation ended since the driver last looked: who waits for room may try again.
    pub(crate) roomier: bool,
    /// Counts deletions.
    pub(crate) epoch: u64,
    /// Chunks with a pin: counted here, so that asking how full L1 is does not walk it under the lock.
    pub(crate) pinned: usize,
    /// What an object that is not here is taken to weigh: as much as the last that came.
    typical: NonZeroU32,
    victims: Vec<Slot>,
}

impl Machine {
    pub(crate) fn new(
        cache: Arc<dyn Allocate>,
        staging: Arc<dyn Allocate>,
        mut policy: Box<dyn EvictionPolicy>,
        mut admission: Box<dyn Admission>,
        store_policy: Box<dyn StorePolicy>,
        options: Options,
    ) -> Self {
        policy.set_capacity(cache.usage().limit);
        admission.set_capacity(cache.usage().limit);
        Self {
            index: Index::default(),
            policy,
            admission,
            cache,
            staging,
            store_policy,
            options,
            staged: KeyMap::default(),
            tenants: hashbrown::HashMap::default(),
            tiers: Vec::new(),
            ops: hashbrown::HashMap::default(),
            next_op: 0,
            retries: BinaryHeap::new(),
            stats: Stats::default(),
            effects: Vec::new(),
            closed: false,
            roomier: false,
            epoch: 0,
            pinned: 0,
            typical: weight(options.typical_chunk),
            victims: Vec::new(),
        }
    }

    fn tenant(&mut self, salt: &str) -> TenantId {
        if salt.is_empty() {
            return TenantId(0);
        }
        let next = TenantId(self.tenants.len() as u32 + 1);
        *self.tenants.entry_ref(salt).or_insert(next)
    }

    // ---- reservations ------------------------------------------------------------------------------------------

    /// Sets buffers aside for the wanted keys of a chain, first to last. What is resident or being written is skipped. What
    /// is not admitted gets a staging buffer if there is an L2 to pass it on to. At the first key without room the rest is
    /// refused, and under [`Grant::Whole`] everything that was granted goes back.
    pub(crate) fn reserve(
        &mut self,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        grant: Grant,
        cx: Access,
        affinity: Affinity,
    ) -> Vec<Room> {
        assert_eq!(wanted.len(), keys.len(), "a mask of another batch");
        if let Layouts::Each(each) = layouts {
            assert_eq!(each.len(), keys.len(), "the layouts of another batch");
        }
        let mut full: Option<Error> = None;
        if grant == Grant::Whole {
            let missing = |i: &usize| {
                wanted.get(*i) && self.index.find(&keys[*i]).is_none() && !self.staged.contains_key(&keys[*i])
            };
            let need = (0..keys.len())
                .filter(missing)
                .map(|i| layouts.at(i).bytes().next_multiple_of(UNIT as u64))
                .sum();
            full = self.cannot_have(need);
        }
        let admitted = self.admitted(keys, wanted, layouts, &cx);
        let passes = self.tiers.iter().any(|t| !t.draining);
        let mut rooms = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().enumerate() {
            let passing = admitted.get(i).is_some_and(|admitted| !admitted);
            rooms.push(if !wanted.get(i) {
                Room::Unwanted
            } else if self.index.find(key).is_some() {
                Room::Resident
            } else if self.staged.contains_key(key) {
                Room::Busy
            } else if passing && !passes {
                self.stats.not_admitted += 1;
                Room::NotAdmitted
            } else if let Some(e) = &full {
                Room::Refused(e.clone())
            } else {
                let bytes = layouts.at(i).bytes();
                match if passing { self.staging.reserve(bytes as usize, UNIT) } else { self.room_for(bytes) }
                {
                    Ok(buf) => {
                        self.staged.insert(key.clone(), ());
                        Room::Granted(Box::new(Granted {
                            key: key.clone(),
                            parent: i.checked_sub(1).map(|p| keys[p].clone()),
                            layout: layouts.at(i).clone(),
                            buf,
                            cx: Access { position: cx.position + i as u32, ..cx },
                            affinity,
                            passing,
                        }))
                    }
                    Err(e) => Room::Refused(full.insert(e).clone()),
                }
            });
        }
        if let (Some(why), Grant::Whole) = (full, grant) {
            for room in &mut rooms {
                if let Room::Granted(granted) = room {
                    self.staged.remove(&granted.key);
                    *room = Room::Refused(why.clone());
                }
            }
        }
        rooms
    }

    /// Which keys of a chain may stay in L1; empty if all may. A key that is resident or not wanted is no gap in the chain.
    fn admitted(
        &mut self,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        cx: &Access,
    ) -> Vec<bool> {
        let mut out = Vec::new();
        if self.admission.name() == "always" {
            return out;
        }
        let bytes = |i: usize| layouts.at(i).bytes().next_multiple_of(UNIT as u64);
        let is_new: Vec<bool> =
            (0..keys.len()).map(|i| wanted.get(i) && self.index.find(&keys[i]).is_none()).collect();
        let new_bytes: u64 = (0..keys.len()).filter(|i| is_new[*i]).map(bytes).sum();
        let usage = self.cache.usage();
        let free = usage.limit.saturating_sub(usage.used);
        self.victims.clear();
        if new_bytes > free {
            self.policy.victims(new_bytes - free, &mut self.victims);
        }
        // Each new chunk's rival is the one that goes when the chunks before it have taken what is free.
        let mut rivals = self.victims.iter().map(|slot| {
            let entry = self.index.at(*slot);
            (entry.buf.capacity() as u64, print(&entry.key))
        });
        let (mut taken, mut given, mut rival) = (0, free, None);
        let chain: Vec<Offer> = (0..keys.len())
            .map(|i| {
                let mut offer = Offer {
                    print: print(&keys[i]),
                    weight: weight(bytes(i)),
                    rival: None,
                    resident: !is_new[i],
                };
                if is_new[i] {
                    while taken >= given
                        && let Some((bytes, print)) = rivals.next()
                    {
                        given += bytes;
                        rival = Some(print);
                    }
                    offer.rival = rival;
                    taken += bytes(i);
                }
                offer
            })
            .collect();
        admit_chain(self.admission.as_mut(), &chain, cx, &mut out);
        out
    }

    /// The writer of a reservation went away without a commit.
    pub(crate) fn abort(&mut self, key: &ObjectKey) {
        self.staged.remove(key);
        self.stats.aborts += 1;
        self.roomier = true;
    }

    /// Why `need` bytes of the cache budget cannot be had now, however much is evicted. Changes nothing.
    fn cannot_have(&mut self, need: u64) -> Option<Error> {
        let usage = self.cache.usage();
        if need > usage.limit {
            let e = Error::invalid("reserve", "the batch is larger than the whole cache budget");
            return Some(e.with("bytes", need).with("limit", usage.limit));
        }
        let want = (usage.used + need).saturating_sub(usage.limit);
        self.victims.clear();
        (want > 0 && self.policy.victims(want, &mut self.victims) < want).then(|| {
            let e = Error::new(ErrorKind::NoSpace, "reserve", "too much of L1 is pinned for the whole batch");
            e.with("bytes", need).with("limit", usage.limit)
        })
    }

    /// A buffer from the cache budget, evicting exactly as much as is missing.
    pub(crate) fn room_for(&mut self, bytes: u64) -> Result<WriteBuf, Error> {
        let bytes = usize::try_from(bytes)
            .map_err(|_| Error::invalid("reserve", "an object this large cannot be mapped"))?;
        loop {
            let e = match self.cache.reserve(bytes, UNIT) {
                Ok(buf) => return Ok(buf),
                Err(e) if e.kind() == ErrorKind::NoSpace => e,
                Err(e) => return Err(e),
            };
            let usage = self.cache.usage();
            let units = bytes.next_multiple_of(UNIT) as u64;
            // At least one victim even when the budget has room: then the free memory is in pieces.
            let want = (usage.used + units).saturating_sub(usage.limit).max(1);
            if !self.evict(want) {
                return Err(e);
            }
        }
    }

    /// Evicts at least `want` bytes if the policy has that much to give; whether anything went.
    fn evict(&mut self, want: u64) -> bool {
        let mut victims = std::mem::take(&mut self.victims);
        victims.clear();
        self.policy.victims(want, &mut victims);
        let went = !victims.is_empty();
        for slot in victims.drain(..) {
            let Some(entry) = self.index.remove(slot) else { continue };
            debug_assert_eq!(entry.pins, 0, "a policy gave up a pinned chunk");
            self.policy.remove(slot, Removal::Evicted);
            self.stats.evicted += 1;
            self.stats.evicted_bytes += entry.buf.len() as u64;
            self.left(entry);
        }
        self.victims = victims;
        went
    }

    // ---- commits -----------------------------------------------------------------------------------------------

    /// Makes written chunks readable, last one first, and sends them on their way to L2. The answers are in the order of
    /// `granted`.
    #[expect(clippy::vec_box, reason = "they come boxed out of their guards")]
    pub(crate) fn commit(
        &mut self,
        granted: Vec<Box<Granted>>,
        hook: Option<&Arc<dyn StoredHook>>,
    ) -> Vec<Committed> {
        let affinity = granted.first().map(|g| g.affinity).unwrap_or_default();
        // Slots are given out first, so that a chunk inserted before its parent can already name the parent's slot.
        let slots: Vec<Option<Slot>> = granted
            .iter()
            .map(|g| {
                self.staged.remove(&g.key);
                self.index.find(&g.key).is_none().then(|| self.index.take_slot())
            })
            .collect();
        let parents: Vec<Option<Slot>> = granted
            .iter()
            .enumerate()
            .map(|(i, g)| {
                let parent = g.parent.as_ref()?;
                // The one before in the batch is the one before in the chain unless that was resident already.
                let in_batch = i.checked_sub(1).filter(|p| granted[*p].key == *parent).and_then(|p| slots[p]);
                in_batch.or_else(|| self.index.find(parent))
            })
            .collect();
        let mut answers = vec![Committed::Duplicate; granted.len()];
        let mut handles = Vec::with_capacity(granted.len());
        for (i, g) in granted.into_iter().enumerate().rev() {
            let Some(slot) = slots[i] else {
                self.stats.duplicates += 1;
                continue;
            };
            let len = g.layout.bytes() as usize;
            let arrival =
                Arrival { key: g.key, parent: None, layout: g.layout, buf: g.buf.seal(len), cx: g.cx };
            self.stats.commits += 1;
            self.stats.committed_bytes += len as u64;
            handles.push(self.insert(slot, arrival, parents[i], hook.cloned(), g.passing));
            answers[i] = Committed::Resident;
        }
        handles.reverse();
        // What was written can be evicted from now on.
        self.roomier = true;
        self.start_stores(&handles, affinity);
        for (answer, handle) in answers.iter_mut().filter(|a| **a == Committed::Resident).zip(&handles) {
            if self.index.get(*handle).is_none_or(|e| e.doomed) {
                *answer = Committed::Passed;
            }
        }
        answers
    }

    fn insert(
        &mut self,
        slot: Slot,
        a: Arrival,
        parent: Option<Slot>,
        hook: Option<Arc<dyn StoredHook>>,
        passing: bool,
    ) -> Handle {
        let entry = PolicyEntry {
            slot,
            print: print(&a.key),
            weight: u32::try_from(a.buf.capacity())
                .unwrap_or(u32::MAX)
                .try_into()
                .expect("a buffer has bytes"),
            parent,
            tenant: self.tenant(a.key.scope().salt()),
        };
        self.typical = entry.weight;
        let handle = self.index.insert(
            slot,
            Entry {
                key: a.key,
                layout: a.layout,
                buf: a.buf,
                pins: 0,
                passing,
                doomed: false,
                deleted: false,
                store: StoreState { hook, ..StoreState::default() },
            },
        );
        // What only passes through is no candidate: it leaves by itself.
        if !passing {
            self.policy.insert(entry, &a.cx);
        }
        handle
    }

    /// Takes a loaded chunk into L1 for good, pinned once. If it is resident already, that copy is pinned instead. It stays
    /// temporary (without a handle) if a chunk of another layout has its name, or if keys were deleted after `epoch`, when
    /// the load began: it may be one of them.
    pub(crate) fn admit(&mut self, arrival: Arrival, epoch: u64) -> (Option<Handle>, ReadBuf) {
        let found = self.index.find(&arrival.key);
        let other = found.is_some_and(|slot| self.index.at(slot).layout.id() != arrival.layout.id());
        if other || epoch != self.epoch {
            return (None, arrival.buf);
        }
        let slot = match found {
            Some(slot) => slot,
            None => {
                let parent = arrival.parent.as_ref().and_then(|p| self.index.find(p));
                let slot = self.index.take_slot();
                self.insert(slot, arrival, parent, None, false);
                slot
            }
        };
        let handle = self.index.handle(slot);
        self.pin(slot);
        (Some(handle), self.index.at_mut(slot).buf.clone())
    }

    // ---- lookups -----------------------------------------------------------------------------------------------

    /// Pins what is resident of a chain of keys.
    pub(crate) fn read(&mut self, keys: &[ObjectKey], cx: Access) -> Vec<Option<(Handle, ReadBuf)>> {
        self.stats.lookups += keys.len() as u64;
        let found: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| {
                let cx = Access { position: cx.position + i as u32, ..cx };
                let slot = self.index.find(key).filter(|_| self.options.lookup_l1);
                let weight = slot.map_or(self.typical, |s| weight(self.index.at(s).buf.capacity() as u64));
                self.admission.asked(print(key), weight, &cx);
                let Some(slot) = slot else {
                    self.policy.missed(print(key), &cx);
                    return None;
                };
                self.pin(slot);
                Some((self.index.handle(slot), self.index.at_mut(slot).buf.clone()))
            })
            .collect();
        self.stats.l1_hits += found.iter().flatten().count() as u64;
        found
    }

    pub(crate) fn pin(&mut self, slot: Slot) {
        let entry = self.index.at_mut(slot);
        entry.pins += 1;
        if entry.pins == 1 {
            self.pinned += 1;
            self.policy.pin(slot);
        }
    }

    /// Ends one pin. The last pin of a doomed chunk takes the chunk with it.
    pub(crate) fn unpin(&mut self, handle: Handle) {
        let Some(entry) = self.index.get_mut(handle) else { return };
        debug_assert!(entry.pins > 0, "a pin ended twice");
        entry.pins -= 1;
        if entry.pins > 0 {
            return;
        }
        self.pinned -= 1;
        self.roomier = true;
        if entry.doomed {
            self.index.remove(handle.slot);
            self.policy.remove(handle.slot, Removal::Deleted);
        } else {
            self.policy.unpin(handle.slot);
        }
    }

    /// Marks keys of a chain as used, last one first.
    pub(crate) fn touch(&mut self, keys: &[ObjectKey], which: &KeyMask, cx: Access) {
        for (i, key) in keys.iter().enumerate().rev().filter(|(i, _)| which.get(*i)) {
            if let Some(slot) = self.index.find(key) {
                self.policy.touch(slot, &Access { position: cx.position + i as u32, ..cx });
            }
        }
    }

    // ---- leaving -----------------------------------------------------------------------------------------------

    /// The chunk leaves L1: at once if nobody holds it, else with its last pin.
    pub(crate) fn let_go(&mut self, handle: Handle) {
        let Some(entry) = self.index.get_mut(handle) else { return };
        if entry.pins > 0 {
            entry.doomed = true;
            self.index.unname(handle.slot);
        } else {
            let entry = self.index.remove(handle.slot);
            self.policy.remove(handle.slot, Removal::Deleted);
            if let Some(entry) = entry {
                self.left(entry);
            }
        }
    }

    /// An unpinned chunk is gone. If it waited for a retry at one adapter, what the others said is final.
    fn left(&mut self, entry: Entry) {
        if entry.store.pending == 0 {
            return;
        }
        if entry.store.stored == 0 {
            self.stats.lost += 1;
        } else if !entry.deleted
            && let Some(hook) = entry.store.hook
        {
            self.effects.push(Effect::Hook { hook, key: entry.key });
        }
    }

    /// Whether nobody has the key now or is about to.
    pub(crate) fn is_free(&self, key: &ObjectKey) -> bool {
        self.index.find(key).is_none() && !self.staged.contains_key(key)
    }

    /// Deletes keys from L1; which of them were there.
    pub(crate) fn delete(&mut self, keys: &[ObjectKey]) -> KeyMask {
        self.epoch += 1;
        keys.iter()
            .map(|key| {
                let Some(slot) = self.index.find(key) else { return false };
                self.index.at_mut(slot).deleted = true;
                self.let_go(self.index.handle(slot));
                true
            })
            .collect()
    }

    /// Lets everything go that is resident; how many chunks that was. Stores in flight are finished.
    pub(crate) fn clear(&mut self) -> usize {
        self.epoch += 1;
        let all: Vec<Slot> = self.index.slots().filter(|(_, e)| !e.doomed).map(|(s, _)| s).collect();
        all.iter().for_each(|s| self.let_go(self.index.handle(*s)));
        all.len()
    }

    // ---- what is held ------------------------------------------------------------------------------------------

    pub(crate) fn reserved(&self) -> usize {
        self.staged.len()
    }

    /// When [`Self::fire`] wants to be called next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.retries.peek().map(|r| r.due)
    }
}

/// What policies know an object by.
fn print(key: &ObjectKey) -> u64 {
    (key.fingerprint() >> 64) as u64
}

/// What policies take a buffer of so many bytes to weigh.
fn weight(capacity: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(capacity).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}
