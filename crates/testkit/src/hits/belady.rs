use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kvstrata_core::{Error, Result};

use super::{Lookup, Tally};

/// It is never used again.
const NEVER: u32 = u32::MAX;

/// When each access's block is used next: the first of two passes over a trace. Four bytes per access stay; while it is
/// made, distinct blocks need about twenty more each.
#[derive(Debug, Default)]
pub struct NextUses {
    next: Vec<u32>,
    last: HashMap<u64, u32>,
}

impl NextUses {
    /// Adds the blocks of a lookup. Lookups come in order and none is left out.
    ///
    /// # Errors
    /// `Invalid` beyond 2^32 - 1 accesses.
    pub fn push(&mut self, lookup: &Lookup) -> Result<()> {
        for (id, _) in &lookup.blocks {
            let at = u32::try_from(self.next.len()).ok().filter(|at| *at < NEVER);
            let at = at.ok_or_else(|| {
                Error::invalid("find next uses", "a trace this long is beyond the offline optimum")
                    .with("accesses", self.next.len())
            })?;
            if let Some(before) = self.last.insert(*id, at) {
                self.next[before as usize] = at;
            }
            self.next.push(NEVER);
        }
        Ok(())
    }

    /// The heap memory held, in bytes.
    pub fn memory(&self) -> usize {
        // A map has an eighth of its places free at least, and a byte beside each.
        self.next.capacity() * 4 + self.last.capacity() * 8 / 7 * (size_of::<(u64, u32)>() + 1)
    }

    /// The next use of every access, by the number of the access.
    pub fn finish(self) -> Arc<Vec<u32>> {
        Arc::new(self.next)
    }
}

/// The offline optimum for blocks of one size: keeps what is used soonest and takes in nothing that would be used later
/// than all of that. No cache that may pass blocks by has more hits, whatever it does within a request.
///
/// Source: Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
#[derive(Debug)]
pub struct Belady {
    next: Arc<Vec<u32>>,
    capacity: usize,
    /// What is held, by the number of the access that wants it next; no two blocks have the same.
    wanted: BTreeSet<u32>,
    tally: Tally,
    there: Vec<bool>,
}

impl Belady {
    /// An empty cache of so many blocks that knows this future.
    pub fn new(next: Arc<Vec<u32>>, capacity: u32) -> Self {
        Self {
            next,
            capacity: capacity as usize,
            wanted: BTreeSet::new(),
            tally: Tally::default(),
            there: Vec::new(),
        }
    }

    /// Serves a lookup, block by block from the first; which of them were there.
    ///
    /// # Panics
    /// If the lookup is beyond the future.
    pub fn request(&mut self, lookup: &Lookup) -> &[bool] {
        self.there.clear();
        for at in (lookup.at..).take(lookup.blocks.len()) {
            let hit = self.wanted.remove(&(at as u32));
            self.there.push(hit);
            let again = self.next[at as usize];
            if again != NEVER {
                self.keep(again, hit);
            }
        }
        self.tally.answered(lookup, &self.there);
        &self.there
    }

    /// Keeps a block until its next use, if there is room or something is wanted later.
    fn keep(&mut self, again: u32, held: bool) {
        if self.wanted.len() >= self.capacity {
            if self.wanted.last().is_none_or(|last| *last < again) {
                self.tally.declined += 1;
                return;
            }
            self.wanted.pop_last();
        }
        self.wanted.insert(again);
        self.tally.written += u64::from(!held);
    }

    /// What it did so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}
