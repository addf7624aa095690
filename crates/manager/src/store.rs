//! The way of a chunk to L2: targets, answers, retries, and what happens to L1 afterwards.

use std::cmp::Reverse;
use std::time::Duration;

use kvstrata_core::{Affinity, Error, Instant, KeyMask, ObjectKey, Result, Retry as Advice};
use kvstrata_l2::Stored;
use kvstrata_policy::{L2Id, TierView};

use crate::index::Handle;
use crate::machine::{Effect, Machine};

/// A batch at an adapter.
pub(crate) struct StoreOp {
    tier: L2Id,
    /// Per position: the chunk, and how often this adapter was asked to take it, this time included.
    pub(crate) items: Vec<(Handle, u32)>,
    left: usize,
    affinity: Affinity,
}

/// A chunk that waits to be offered to an adapter again. Not pinned meanwhile: room that is needed goes first.
pub(crate) struct Retry {
    pub(crate) due: Instant,
    tier: L2Id,
    handle: Handle,
    attempt: u32,
    affinity: Affinity,
}

impl Ord for Retry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = |r: &Self| Reverse((r.due, r.handle.slot, r.tier));
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for Retry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Retry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Retry {}

impl Machine {
    /// Sends freshly committed chunks to their targets.
    pub(crate) fn start_stores(&mut self, handles: &[Handle], affinity: Affinity) {
        if self.tiers.iter().any(|t| t.stores && !t.draining) {
            self.offer(handles, affinity);
        }
        for handle in handles {
            if self.index.get(*handle).is_some_and(|e| e.store.pending == 0) {
                self.settle(*handle);
            }
        }
    }

    /// Submits chunks to the targets that the store policy names.
    fn offer(&mut self, handles: &[Handle], affinity: Affinity) {
        let keys: Vec<ObjectKey> =
            handles.iter().filter_map(|h| self.index.get(*h)).map(|e| e.key.clone()).collect();
        let none = KeyMask::none(keys.len());
        let views: Vec<TierView<'_>> = self
            .tiers
            .iter()
            .filter(|t| t.stores && t.serves())
            .map(|t| TierView {
                id: t.id,
                name: &t.name,
                weight: t.weight,
                stores: true,
                loads: true,
                found: &none,
                load_time: None,
            })
            .collect();
        let resting = self.tiers.iter().filter(|t| t.stores && !t.draining).count() - views.len();
        self.stats.store_skipped += (resting * keys.len()) as u64;
        let mut targets = Vec::new();
        if self.store_policy.call(|p| p.targets(&keys, &views, &mut targets)).is_none() {
            targets.clear();
        }
        for (tier, mask) in targets {
            let items: Vec<(Handle, u32)> = mask.iter().filter_map(|i| Some((*handles.get(i)?, 1))).collect();
            for (handle, _) in &items {
                self.index.at_mut(handle.slot).store.pending += 1;
            }
            self.submit(tier, items, affinity);
        }
    }

    fn submit(&mut self, tier: L2Id, items: Vec<(Handle, u32)>, affinity: Affinity) {
        if items.is_empty() {
            return;
        }
        let op = self.next_op;
        self.next_op += 1;
        let mut payload = Vec::with_capacity(items.len());
        for (handle, _) in &items {
            self.pin(handle.slot);
            let entry = self.index.at_mut(handle.slot);
            payload.push((entry.key.clone(), entry.layout.clone(), entry.buf.clone()));
        }
        self.works(tier, items.len() as isize);
        self.effects.push(Effect::Put { tier, op, items: payload, affinity });
        self.ops.insert(op, StoreOp { tier, left: items.len(), items, affinity });
    }

    /// An adapter answered one key of a batch. A second answer for the same key cannot arrive: sinks see to that.
    pub(crate) fn stored(&mut self, now: Instant, op: u64, position: usize, answer: Result<Stored>) {
        let Some(batch) = self.ops.get_mut(&op) else { return };
        let (handle, attempt) = batch.items[position];
        let (tier, affinity) = (batch.tier, batch.affinity);
        batch.left -= 1;
        if batch.left == 0 {
            self.ops.remove(&op);
        }
        let again = match answer {
            Ok(how) => {
                self.took(tier, handle, how);
                None
            }
            Err(e) => self.refused(now, tier, handle, attempt, affinity, &e),
        };
        let settled = again.is_none() && {
            let entry = self.index.get_mut(handle).expect("a chunk with a store in flight is pinned");
            entry.store.pending -= 1;
            entry.store.pending == 0
        };
        if settled {
            self.settle(handle);
        }
        self.unpin(handle);
        self.retries.extend(again);
        self.works(tier, -1);
    }

    fn took(&mut self, tier: L2Id, handle: Handle, how: Stored) {
        let entry = self.index.get_mut(handle).expect("a chunk with a store in flight is pinned");
        entry.store.stored += 1;
        match how {
            Stored::Written => {
                self.stats.stored += 1;
                self.stats.stored_bytes += entry.buf.len() as u64;
            }
            Stored::Present => self.stats.stored_present += 1,
        }
        if entry.deleted {
            // Unless it was stored anew meanwhile: then what lies there is wanted.
            let key = entry.key.clone();
            if self.is_free(&key) {
                self.undoing += 1;
                self.works(tier, 1);
                self.effects.push(Effect::Remove { tier, key });
            }
        }
    }

    /// Whether the chunk is to be offered again, and when: by the error's own advice, within the configured bounds.
    fn refused(
        &mut self,
        now: Instant,
        tier: L2Id,
        handle: Handle,
        attempt: u32,
        affinity: Affinity,
        why: &Error,
    ) -> Option<Retry> {
        self.stats.store_failures += 1;
        let entry = self.index.get_mut(handle).expect("a chunk with a store in flight is pinned");
        let doubled = self.options.store_backoff.saturating_mul(2u32.saturating_pow(attempt - 1));
        let backoff = doubled.min(self.options.store_backoff_max);
        let wait = match why.retry() {
            Advice::Never => None,
            Advice::Later => Some(backoff),
            // Whoever asks for more patience than there is, is not asked again.
            Advice::After(at_least) => {
                (at_least <= self.options.store_backoff_max).then(|| at_least.max(Duration::from_millis(1)))
            }
        };
        let gone = entry.doomed || self.closed || self.tiers.iter().any(|t| t.id == tier && t.draining);
        match wait {
            Some(wait) if attempt < self.options.store_attempts && !gone => {
                self.stats.store_retries += 1;
                Some(Retry { due: now + wait, tier, handle, attempt: attempt + 1, affinity })
            }
            _ => {
                entry.store.failed += 1;
                self.stats.store_gave_up += 1;
                tracing::warn!(key = %entry.key, attempt, error = %why, "store given up");
                None
            }
        }
    }

    /// Every target has answered for good: tell the caller, and let the chunk leave L1 if the policy says so.
    fn settle(&mut self, handle: Handle) {
        let Some(entry) = self.index.get_mut(handle) else { return };
        let (stored, failed) = (entry.store.stored, entry.store.failed);
        if let Some(hook) = entry.store.hook.take()
            && stored > 0
            && !entry.deleted
        {
            self.effects.push(Effect::Hook { hook, key: entry.key.clone() });
        }
        let leaves = entry.passing
            || self
                .store_policy
                .call(|p| {
                    if stored > 0 && failed == 0 {
                        p.release(std::slice::from_ref(&entry.key), &KeyMask::all(1)).get(0)
                    } else {
                        p.release_failed()
                    }
                })
                // Without a working store policy nothing is stored, and what L1 is for decides.
                .unwrap_or(!self.options.lookup_l1);
        if leaves {
            if stored == 0 {
                self.stats.lost += 1;
            }
            self.let_go(handle);
        }
    }

    /// Offers again what is due.
    pub(crate) fn fire(&mut self, now: Instant) {
        while self.retries.peek().is_some_and(|r| r.due <= now) {
            let Retry { tier, handle, attempt, affinity, .. } = self.retries.pop().expect("peeked");
            let live = self.tiers.iter().any(|t| t.id == tier && !t.draining);
            if live && self.index.get(handle).is_some_and(|e| !e.doomed) {
                self.submit(tier, vec![(handle, attempt)], affinity);
            } else {
                self.abandon(handle);
            }
        }
    }

    /// Gives up what waits for a retry at `tier` (at every tier for `None`).
    pub(crate) fn give_up(&mut self, tier: Option<L2Id>) {
        let (theirs, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.retries).into_iter().partition(|r| tier.is_none_or(|t| t == r.tier));
        self.retries = others.into();
        theirs.iter().for_each(|r| self.abandon(r.handle));
    }

    /// A retry that will not be made. The chunk may have been evicted while it waited.
    fn abandon(&mut self, handle: Handle) {
        self.stats.store_gave_up += 1;
        let Some(entry) = self.index.get_mut(handle) else { return };
        entry.store.pending -= 1;
        entry.store.failed += 1;
        if entry.store.pending == 0 {
            self.settle(handle);
        }
    }

    /// An adapter has so many keys more, or less, to store or to take away again.
    fn works(&mut self, tier: L2Id, keys: isize) {
        if let Some(t) = self.tiers.iter_mut().find(|t| t.id == tier) {
            t.in_flight = t.in_flight.checked_add_signed(keys).expect("what ends has begun");
        }
    }

    /// Whether an adapter has nothing to store or to take away again, or is not there.
    pub(crate) fn is_idle(&self, tier: L2Id) -> bool {
        self.tiers.iter().find(|t| t.id == tier).is_none_or(|t| t.in_flight == 0)
    }

    /// Keys whose way to L2 is not over, or not undone.
    pub(crate) fn storing(&self) -> usize {
        self.ops.values().map(|op| op.left).sum::<usize>() + self.retries.len() + self.undoing
    }

    /// An adapter took away again what it had stored after a deletion, or did not.
    pub(crate) fn undone(&mut self, tier: L2Id, gone: bool) {
        self.undoing -= 1;
        self.works(tier, -1);
        self.stats.undo_failures += u64::from(!gone);
    }
}
