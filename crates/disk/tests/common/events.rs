//! What the callers of a store know of its keys while it goes through a history, and what a crash may leave of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use kvstrata_disk::{Durability, Store};
use kvstrata_io::SimDisk;

use crate::common::key;

/// SplitMix64: a seed is a history.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// This version was stored.
    Stored(u64),
    /// This version was written and given up when it was there already.
    Unwanted(u64),
    /// Removed, evicted, or found to be bad.
    Gone,
}

/// What happened to a key, between two numbers of changes of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) n: u64,
    pub(crate) begun: usize,
    pub(crate) done: usize,
    pub(crate) what: What,
}

/// All events, in their order.
#[derive(Default)]
pub(crate) struct Events {
    all: Vec<Event>,
    durable: usize,
}

impl Events {
    pub(crate) fn add(&mut self, event: Event) {
        self.all.push(event);
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Everything so far is durable.
    pub(crate) fn rest(&mut self) {
        self.all.iter_mut().for_each(|e| (e.begun, e.done) = (0, 0));
        self.durable = self.all.len();
    }

    /// These keys are gone, of which no event from `from` on has told already.
    pub(crate) fn gone(&mut self, keys: impl Iterator<Item = u64>, from: usize, begun: usize, done: usize) {
        for n in keys {
            if !self.all[from..].iter().any(|e| e.n == n) {
                self.add(Event { n, begun, done, what: What::Gone });
            }
        }
    }

    /// The versions of a key that may be found if the power failed after so many changes, and whether one must be. That is
    /// so after later versions too where what replaces an object is `safe` before the old one goes.
    pub(crate) fn allowed(
        &self,
        n: u64,
        after: usize,
        durability: Durability,
        safe: bool,
    ) -> (BTreeSet<u64>, bool) {
        let events: Vec<_> = self.all.iter().enumerate().filter(|(_, e)| e.n == n).collect();
        let durable = |at: usize| durability == Durability::Full || at < self.durable;
        let sure =
            |(at, e): &(usize, &Event)| e.done <= after && matches!(e.what, What::Stored(_)) && durable(*at);
        let from = events.iter().rposition(sure);
        let later = &events[from.map_or(0, |at| at + 1)..];
        let later: Vec<_> = later.iter().filter(|(_, e)| e.begun < after || e.done <= after).collect();
        let versions = from.map(|at| events[at]).into_iter().chain(later.iter().map(|e| **e));
        let versions = versions.filter_map(|(_, e)| match e.what {
            What::Stored(v) | What::Unwanted(v) => Some(v),
            What::Gone => None,
        });
        let kept = later.iter().all(|(_, e)| matches!(e.what, What::Stored(_)) && safe);
        (versions.collect(), from.is_some() && kept)
    }
}

/// Which of the first keys are there.
pub(crate) fn resident(store: &Arc<Store<SimDisk>>, keys: u64) -> BTreeSet<u64> {
    let all: Vec<_> = (0..keys).map(key).collect();
    let found = store.probe(&all).expect("in service");
    (0..keys).zip(found).filter_map(|(n, found)| found.map(|_| n)).collect()
}
