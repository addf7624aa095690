//! What the injector remembers: damage that nobody has looked at yet, and objects that it can lie with.

use std::collections::{HashMap, VecDeque};

use kvstrata_core::{LayoutId, ObjectKey};
use kvstrata_l2::Found;
use parking_lot::Mutex;

use crate::Fault;

/// Damage that is remembered. Beyond it the oldest is forgotten, and never counts as effective.
const PENDING: usize = 1 << 16;
/// Objects that are remembered to lie with.
const RECENT: usize = 256;

/// An object that was stored.
#[derive(Clone, Debug)]
struct Entry {
    key: ObjectKey,
    found: Found,
    /// It was removed.
    gone: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pending: HashMap<ObjectKey, (Fault, u64)>,
    /// The order in which damage was done; entries that were settled since are stale.
    order: VecDeque<(ObjectKey, u64)>,
    next: u64,
    recent: VecDeque<Entry>,
}

impl Ledger {
    /// What lies under the key from now on is damaged; what was damaged there before, if nobody looked at it.
    pub(crate) fn damaged(&self, key: &ObjectKey, fault: Fault) -> Option<Fault> {
        let mut state = self.0.lock();
        let state = &mut *state;
        state.next += 1;
        let before = state.pending.insert(key.clone(), (fault, state.next)).map(|(fault, _)| fault);
        state.order.push_back((key.clone(), state.next));
        while state.order.len() > PENDING {
            if let Some((key, n)) = state.order.pop_front()
                && state.pending.get(&key).is_some_and(|(_, m)| *m == n)
            {
                state.pending.remove(&key);
            }
        }
        before
    }

    /// The damage did not reach the medium: what was there before still is.
    pub(crate) fn undo(&self, key: &ObjectKey, before: Option<Fault>) {
        self.settle(key);
        if let Some(fault) = before {
            self.damaged(key, fault);
        }
    }

    /// The damage under the key, if nobody has looked at it.
    pub(crate) fn pending(&self, key: &ObjectKey) -> Option<Fault> {
        self.0.lock().pending.get(key).map(|(fault, _)| *fault)
    }

    /// Somebody has looked at the damage, or it is gone; whether it was still there.
    pub(crate) fn settle(&self, key: &ObjectKey) -> bool {
        self.0.lock().pending.remove(key).is_some()
    }

    /// An object was stored.
    pub(crate) fn stored(&self, key: &ObjectKey, found: Found) {
        let mut state = self.0.lock();
        match state.recent.iter_mut().find(|e| e.key == *key) {
            Some(entry) => *entry = Entry { key: key.clone(), found, gone: false },
            None => {
                if state.recent.len() >= RECENT {
                    state.recent.pop_front();
                }
                state.recent.push_back(Entry { key: key.clone(), found, gone: false });
            }
        }
    }

    /// An object was removed.
    pub(crate) fn removed(&self, key: &ObjectKey) {
        let mut state = self.0.lock();
        state.pending.remove(key);
        if let Some(entry) = state.recent.iter_mut().find(|e| e.key == *key) {
            entry.gone = true;
        }
    }

    /// Another object of this layout that should be there, and is none of `except`.
    pub(crate) fn other(
        &self,
        layout: LayoutId,
        roll: u64,
        except: impl Fn(&ObjectKey) -> bool,
    ) -> Option<ObjectKey> {
        let state = self.0.lock();
        let fits = |e: &&Entry| !e.gone && e.found.layout == Some(layout) && !except(&e.key);
        let n = state.recent.iter().filter(fits).count() as u64;
        let pick = roll.checked_rem(n)?;
        state.recent.iter().filter(fits).nth(pick as usize).map(|e| e.key.clone())
    }

    /// What to say of a key that is not there: what it was, or what another one is.
    pub(crate) fn ghost(&self, key: &ObjectKey) -> Option<Found> {
        let state = self.0.lock();
        let own = state.recent.iter().find(|e| e.key == *key);
        own.or_else(|| state.recent.back()).map(|e| e.found)
    }

    /// An object that was removed.
    pub(crate) fn gone(&self, roll: u64) -> Option<(ObjectKey, Found)> {
        let state = self.0.lock();
        let n = state.recent.iter().filter(|e| e.gone).count() as u64;
        let pick = roll.checked_rem(n)?;
        state.recent.iter().filter(|e| e.gone).nth(pick as usize).map(|e| (e.key.clone(), e.found))
    }
}
