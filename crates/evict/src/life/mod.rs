mod ages;
mod cells;
mod census;
mod chains;
mod class;
mod model;
#[cfg(test)]
mod tests;

use crate::ghosts::Ghosts;
use crate::space::Space;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};
use cells::{Cells, Life};
use census::Census;
use chains::Chains;
use class::{CLASSES, Chain, MOST_USES, class, kind, uses};
use model::Model;

/// A capacity of traffic is so many generations.
const GENERATIONS: u64 = 8;
/// A generation has at least so many uses, so that what its end costs is small beside them.
const MIN_USES: u32 = 128;
/// The model is fitted after so many uses at the earliest, for the same reason.
const FIT_USES: u32 = 512;
/// Ghosts for each resident.
const GHOSTS: usize = 8;
/// A small cache sees little come back, so it has at least so many.
const FEWEST_GHOSTS: usize = 8192;
/// Requests under way that are told apart.
const REQUESTS: usize = 256;
/// Bits of a ghost's mark that hold its class; the others hold the generation of its last use.
const CLASS_BITS: u32 = 7;
const _: () = assert!(CLASSES <= 1 << CLASS_BITS);

/// What is known of a request from the chunks that it missed.
#[derive(Clone, Copy, Debug, Default)]
struct Lookup {
    /// The request's number plus one; 0: none.
    request: u64,
    /// The first position that missed and is no ghost.
    matched: u32,
    /// One of its chunks returned.
    returned: bool,
}

/// What an entry that is used was until then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Was {
    Resident,
    /// Evicted, or never seen.
    Away,
}

/// What is least likely to be worth its space goes first, by a life table that is kept while running.
///
/// Entries are classed when they are used: how often they were (1, 2, 3, more; a use that finds them
/// evicted does not count beyond the second), how much of the request's chain was known before it (resident, or a ghost), how long the
/// chain is (or what is new of it), and whether they are its last chunk. For each class and age the policy counts how
/// many were there to come back and how many did, ghosts included, and from that it says what a class at an age is worth:
/// the best ratio of the chance of a use to the time that is waited for it. What is worth least goes, be it old or young:
/// of a loop that is larger than the cache that is what came last. What others follow is not taken before them: from an
/// entry with resident children the walk goes on to a leaf, the least recently used side first, so prefixes stay closed.
/// Until something is known, which takes an eighth of the capacity in traffic and 512 uses, the oldest generation goes.
///
/// Time is traffic: a generation is an eighth of the capacity in weight used, at least 128 uses. Counts fade by half in
/// 160 generations. A change of the capacity changes the length of generations from then on; what was counted stays,
/// and fades. Worth is per entry, whatever it weighs. Within a class and generation it is LRU.
///
/// A request's number ties its misses to what it stores. Entries stored under a number without misses count as behind a
/// known prefix.
///
/// `victims` costs the victims, and where a walk begins at an entry with children the way down to a leaf. A pinned entry
/// is in the way of one walk at most. A generation's end costs the same at any capacity.
///
/// Memory: 64 bytes per slot, at most 76 per ghost, 8 per chunk of the longest chain walked, and at most 150 KiB for
/// counts, lists and requests. Ghosts are at most eight times as many as the most residents, or 8192 if that is more;
/// vectors grow by doubling.
///
/// What was tried and what it scored is in `docs/adr/0006-life-table-eviction.md`.
///
/// Sources: the index is that of Gittins, "Bandit Processes and Dynamic Allocation Indices", 1979; hit densities by age
/// and class were shown by Beckmann, Chen, Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI 2018.
#[derive(Debug)]
pub struct LifeTable {
    cells: Box<Cells>,
    chains: Chains,
    ghosts: Ghosts,
    fewest_ghosts: usize,
    space: Space,
    census: Box<Census>,
    model: Box<Model>,
    lookups: Vec<Lookup>,
    /// The last request whose uses were seen.
    request: u64,
    /// Weight used in this generation, and how many uses that was.
    spent: u64,
    uses: u32,
    /// Uses since the model was fitted.
    unfitted: u32,
}

impl Default for LifeTable {
    fn default() -> Self {
        let model: Box<Model> = Box::default();
        Self {
            cells: Box::new(Cells::new(&model.index)),
            chains: Chains::default(),
            ghosts: Ghosts::default(),
            fewest_ghosts: FEWEST_GHOSTS,
            space: Space::default(),
            census: Box::default(),
            model,
            lookups: vec![Lookup::default(); REQUESTS],
            request: 0,
            spent: 0,
            uses: 0,
            unfitted: 0,
        }
    }
}

impl LifeTable {
    /// What is known of a request.
    fn lookup(&mut self, request: u64) -> &mut Lookup {
        let number = request.wrapping_add(1);
        let at = &mut self.lookups[request as usize % REQUESTS];
        if at.request != number {
            *at = Lookup { request: number, matched: u32::MAX, returned: false };
        }
        at
    }

    /// Lets time pass: one use of so much weight. Generations end between requests, so that a request is of one
    /// generation; one that is twice as long as it should be ends within a request.
    fn pass(&mut self, weight: u32, cx: &Access) {
        let within = std::mem::replace(&mut self.request, cx.request) == cx.request;
        let length = (self.space.weight() / GENERATIONS) << u32::from(within);
        if self.uses >= MIN_USES && self.spent >= length {
            self.census.end_generation();
            self.cells.end_generation();
            if self.unfitted >= FIT_USES {
                self.model.fit(&self.census);
                self.cells.rank(&self.model.index);
                self.unfitted = 0;
            }
            (self.spent, self.uses) = (0, 0);
        }
        self.spent += u64::from(weight);
        self.uses += 1;
        self.unfitted = self.unfitted.saturating_add(1);
    }

    /// The class an entry is of from now on, with its last class and the generation of that, if it was known.
    fn observe(&mut self, before: Option<(usize, u32)>, was: Was, cx: &Access) -> usize {
        let lookup = self.lookup(cx.request);
        let chain = Chain { length: cx.chain, matched: lookup.matched.min(cx.chain) };
        let mut now = 1;
        if let Some((class, generation)) = before {
            let first = !std::mem::replace(&mut lookup.returned, true);
            self.census.returned(class, generation, first);
            self.census.leave(class, generation);
            let before = uses(kind(class));
            now = if was == Was::Resident { (before + 1).min(MOST_USES) } else { before.max(2) };
        }
        let class = class(now, chain, cx.position);
        self.census.enter(class);
        class
    }

    fn unpack(&self, mark: u32) -> (usize, u32) {
        let now = self.census.now();
        // The age is known to be below 2^25 generations, so the bits that are missing are those of now.
        let age = now.wrapping_sub(mark >> CLASS_BITS) & (u32::MAX >> CLASS_BITS);
        ((mark & ((1 << CLASS_BITS) - 1)) as usize, now.wrapping_sub(age))
    }

    fn forget(&mut self, mark: u32) {
        let (class, generation) = self.unpack(mark);
        self.census.leave(class, generation);
    }

    fn trim(&mut self) {
        let entries = self.space.entries().max(1);
        let count = (GHOSTS * entries).max(self.fewest_ghosts);
        let weight = u128::from(self.space.weight()) * count as u128 / entries as u128;
        let weight = u64::try_from(weight).unwrap_or(u64::MAX);
        while let Some(mark) = self.ghosts.drop_oldest(count, weight) {
            self.forget(mark);
        }
    }

    /// Proposes what the walk comes by until `total` reaches `want`; the new total.
    fn take_leaves(&mut self, want: u64, mut total: u64, out: &mut Vec<Slot>) -> u64 {
        let cells = &self.cells;
        let weight =
            |slot: Slot| cells.get(slot).filter(|life| life.pins == 0).map(|life| u64::from(life.weight));
        while total < want
            && let Some(slot) = self.chains.next(|slot| weight(slot).is_some())
        {
            total += weight(slot).unwrap_or_default();
            out.push(slot);
        }
        total
    }
}

impl EvictionPolicy for LifeTable {
    fn name(&self) -> &'static str {
        "life-table"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.space.tell(weight);
        self.trim();
    }

    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.remove(entry.slot, Removal::Deleted);
        self.pass(entry.weight.get(), cx);
        let before = self.ghosts.remove(entry.print).map(|mark| self.unpack(mark));
        let class = self.observe(before, Was::Away, cx);
        self.cells.insert(&entry, class);
        self.chains.insert(entry.slot, entry.parent);
        self.space.see(self.cells.total(), self.cells.len());
    }

    fn touch(&mut self, slot: Slot, cx: &Access) {
        let Some(&Life { weight, class, generation, .. }) = self.cells.get(slot) else { return };
        self.pass(weight, cx);
        let class = self.observe(Some((class.into(), generation)), Was::Resident, cx);
        self.cells.touch(slot, class);
        self.chains.touch(slot);
    }

    fn missed(&mut self, print: u64, cx: &Access) {
        let known = self.ghosts.get_mut(print).is_some();
        let lookup = self.lookup(cx.request);
        if !known {
            lookup.matched = lookup.matched.min(cx.position);
        }
    }

    fn remove(&mut self, slot: Slot, why: Removal) {
        let Some(Life { print, weight, generation, class, .. }) = self.cells.remove(slot) else { return };
        self.chains.remove(slot);
        if let Some(mark) = self.ghosts.remove(print) {
            self.forget(mark);
        }
        if why == Removal::Evicted {
            self.ghosts.push(print, weight, generation << CLASS_BITS | u32::from(class));
            self.trim();
        } else {
            self.census.leave(class.into(), generation);
        }
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        let mut walk = Cells::walk();
        self.chains.begin();
        while total < want
            && let Some(slot) = self.cells.advance(&mut walk)
        {
            if !self.chains.visited(slot) {
                self.chains.walk_from(slot);
                total = self.take_leaves(want, total, out);
            }
        }
        total
    }

    fn pin(&mut self, slot: Slot) {
        self.cells.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.cells.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.cells.memory()
            + size_of::<Cells>()
            + self.chains.memory()
            + self.ghosts.memory()
            + self.census.memory()
            + size_of::<Model>()
            + self.lookups.capacity() * size_of::<Lookup>()
    }
}
