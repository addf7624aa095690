//! The state of the manager, and every decision: no I/O, no clock, no spawn. Time comes in with each call, what is to be
//! done outside comes out as [`Effect`]s.

use std::collections::BinaryHeap;
use std::num::NonZeroU32;
use std::sync::Arc;

use foldhash::fast::FixedState;
use kvstrata_core::{Affinity, Error, Instant, KeyMask, Layout, ObjectKey};
use kvstrata_evict::{
    Access, Admission, Contained, Entry as PolicyEntry, EvictionPolicy, Removal, Slot, TenantId,
};
use kvstrata_l2::{BreakerState, Phase, Tenants};
use kvstrata_mem::{Allocate, ReadBuf, WriteBuf};
use kvstrata_policy::{L2Id, StorePolicy};

use crate::index::{Entry, Handle, Index, KeyMap, StoreState};
use crate::pace::Pace;
use crate::store::{Retry, StoreOp};
use crate::{Committed, Options, Stats, StoredHook};

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
    /// Whether it is stored to.
    pub(crate) stores: bool,
    /// Leaving: no new stores or loads.
    pub(crate) draining: bool,
    /// Keys of stores in flight, and of those that are being undone.
    pub(crate) in_flight: usize,
    /// What its loads take, once one was measured.
    pub(crate) pace: Option<Pace>,
    pub(crate) breaker: Option<Arc<BreakerState>>,
}

impl Tier {
    /// Whether it takes new work: it is not leaving, and no open breaker says that it would be in vain.
    pub(crate) fn serves(&self) -> bool {
        !self.draining && self.breaker.as_ref().is_none_or(|b| b.view().phase != Phase::Open)
    }
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

/// A key that somebody is writing.
pub(crate) struct Staged {
    /// It will not stay in L1.
    pub(crate) passing: bool,
    pub(crate) bytes: u64,
    /// Whose bytes were set aside, if it is to stay.
    pub(crate) tenant: Option<u32>,
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
    pub(crate) policy: Contained<dyn EvictionPolicy>,
    pub(crate) admission: Contained<dyn Admission>,
    pub(crate) cache: Arc<dyn Allocate>,
    pub(crate) staging: Arc<dyn Allocate>,
    pub(crate) store_policy: Contained<dyn StorePolicy>,
    pub(crate) options: Options,
    /// Keys somebody is writing.
    pub(crate) staged: KeyMap<Staged>,
    pub(crate) tenants: Tenants,
    pub(crate) tiers: Vec<Tier>,
    pub(crate) ops: hashbrown::HashMap<u64, StoreOp, FixedState>,
    pub(crate) next_op: u64,
    pub(crate) retries: BinaryHeap<Retry>,
    /// Stores that are being undone, since their keys were deleted meanwhile.
    pub(crate) undoing: usize,
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
    pub(crate) victims: Vec<Slot>,
    /// A policy of L1 panicked: nothing is kept in L1 any more.
    pub(crate) l1_out: bool,
    /// The store policy panicked, and it was said.
    pub(crate) store_out: bool,
}

impl Machine {
    pub(crate) fn new(
        cache: Arc<dyn Allocate>,
        staging: Arc<dyn Allocate>,
        policy: Box<dyn EvictionPolicy>,
        admission: Box<dyn Admission>,
        store_policy: Box<dyn StorePolicy>,
        options: Options,
    ) -> Self {
        let (mut policy, mut admission) = (Contained::new(policy), Contained::new(admission));
        policy.set_capacity(cache.usage().limit);
        admission.set_capacity(cache.usage().limit);
        Self {
            index: Index::default(),
            policy,
            admission,
            cache,
            staging,
            store_policy: Contained::new(store_policy),
            options,
            staged: KeyMap::default(),
            tenants: Tenants::default(),
            tiers: Vec::new(),
            ops: hashbrown::HashMap::default(),
            next_op: 0,
            retries: BinaryHeap::new(),
            undoing: 0,
            stats: Stats::default(),
            effects: Vec::new(),
            closed: false,
            roomier: false,
            epoch: 0,
            pinned: 0,
            typical: weight(options.typical_chunk),
            victims: Vec::new(),
            l1_out: false,
            store_out: false,
        }
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
                self.unstage(&g.key);
                self.index.find(&g.key).is_none().then(|| self.index.take_slot())
            })
            .collect();
        let parents: Vec<Option<Slot>> = granted
            .iter()
            .enumerate()
            .map(|(i, g)| {
                let parent = g.parent.as_ref()?;
                // The one before in the batch is the one before in the chain unless that was resident already.
                // What only passes through is unknown to the policy.
                let in_batch =
                    i.checked_sub(1).filter(|p| granted[*p].key == *parent && !granted[*p].passing);
                let there = || self.index.find(parent).filter(|s| !self.index.at(*s).passing);
                in_batch.and_then(|p| slots[p]).or_else(there)
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
            let passing = g.passing || self.l1_out;
            handles.push(self.insert(slot, arrival, parents[i], hook.cloned(), passing));
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
            // What only passes through is nobody's: it takes nothing of the cache budget.
            tenant: TenantId(if passing { 0 } else { self.tenants.number(a.key.scope().salt()) }),
        };
        self.typical = entry.weight;
        let handle = self.index.insert(
            slot,
            Entry {
                key: a.key,
                layout: a.layout,
                buf: a.buf,
                pins: 0,
                tenant: entry.tenant,
                passing,
                doomed: false,
                deleted: false,
                store: StoreState { hook, ..StoreState::default() },
            },
        );
        // What only passes through is no candidate: it leaves by itself.
        if !passing {
            self.tenants.takes(entry.tenant.0, entry.weight.get().into());
            self.policy.insert(entry, &a.cx);
        }
        handle
    }

    /// Takes a loaded chunk into L1 for good, pinned once. If it is resident already, that copy is pinned instead. It stays
    /// temporary (without a handle) if a chunk of another layout has its name, if keys were deleted after `epoch`, when the
    /// load began, since it may be one of them, or if nothing is kept in L1.
    pub(crate) fn admit(&mut self, arrival: Arrival, epoch: u64) -> (Option<Handle>, ReadBuf) {
        let found = self.index.find(&arrival.key);
        let other = found.is_some_and(|slot| self.index.at(slot).layout.id() != arrival.layout.id());
        if other || epoch != self.epoch || self.l1_out {
            return (None, arrival.buf);
        }
        let slot = match found {
            Some(slot) => slot,
            None => {
                let there = |p| self.index.find(p).filter(|s| !self.index.at(*s).passing);
                let parent = arrival.parent.as_ref().and_then(there);
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
            if let Some(entry) = self.take_out(handle.slot, Removal::Deleted) {
                self.left(entry);
            }
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
            let entry = self.take_out(handle.slot, Removal::Deleted);
            if let Some(entry) = entry {
                self.left(entry);
            }
        }
    }

    /// The one way out of the index.
    pub(crate) fn take_out(&mut self, slot: Slot, why: Removal) -> Option<Entry> {
        let entry = self.index.remove(slot)?;
        if !entry.passing {
            self.policy.remove(slot, why);
            let held = weight(entry.buf.capacity() as u64).get();
            self.tenants.gives(entry.tenant.0, held.into());
        }
        Some(entry)
    }

    /// An unpinned chunk is gone. If it waited for a retry at one adapter, what the others said is final.
    pub(crate) fn left(&mut self, entry: Entry) {
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

    /// Deletes keys from L1; which of them were there. What still writes one of them to an adapter takes it away again when
    /// it is done, also if L1 has let go of it already.
    pub(crate) fn delete(&mut self, keys: &[ObjectKey]) -> KeyMask {
        self.epoch += 1;
        if !self.ops.is_empty() {
            let gone: KeyMap<()> = keys.iter().map(|key| (key.clone(), ())).collect();
            for (handle, _) in self.ops.values().flat_map(|op| &op.items) {
                if let Some(entry) = self.index.get_mut(*handle).filter(|e| gone.contains_key(&e.key)) {
                    entry.deleted = true;
                }
            }
        }
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

    /// Whether L1 is only a buffer on the way to L2: what no adapter takes is lost there.
    pub(crate) fn is_buffer(&self) -> bool {
        !self.options.lookup_l1 || self.store_policy.call(|p| p.release_failed()).unwrap_or(false)
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
pub(crate) fn print(key: &ObjectKey) -> u64 {
    (key.fingerprint() >> 64) as u64
}

/// What policies take a buffer of so many bytes to weigh.
pub(crate) fn weight(capacity: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(capacity).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}
