mod ages;
mod census;
mod chains;
mod class;
mod model;
#[cfg(test)]
mod tests;

use crate::ghosts::Ghosts;
use crate::space::Space;
use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};
use ages::bucket;
use census::Census;
use chains::Chains;
use class::{CLASSES, Chain, MOST_USES, class, kind, uses};
use model::Model;

/// A capacity of traffic is so many generations.
const GENERATIONS: u64 = 8;
/// A generation has at least so many uses, so that what its end costs is small beside them.
const MIN_USES: u32 = 64;
/// Ghosts for each resident.
const GHOSTS: usize = 4;
/// Requests under way that are told apart.
const REQUESTS: usize = 256;
/// Bits of a ghost's mark that hold its class; the others hold the generation of its last use.
const CLASS_BITS: u32 = 5;
const _: () = assert!(CLASSES <= 1 << CLASS_BITS);

/// Beside its class, which is its queue.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    print: u64,
    /// The generation of its last use.
    generation: u32,
    /// When that was, in uses. Numbers wrap; they only order those whose index is the same.
    used: u32,
}

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

/// What is least likely to be worth its space goes first, by a life table that is kept while running.
///
/// Entries are classed when they are used: how often they were (1, 2, 3, more), how much of the request's chain was known
/// before it (resident, or a ghost), and whether they are its last chunk. Each class is a queue in the order of the last
/// use. For each class and age the policy counts how many were there to come back and how many did, ghosts included, and
/// from that it says what a class at an age is worth: the best ratio of the chance of a use to the time that is waited
/// for it. The oldest of each class is compared, and the worst goes. What others follow is not taken before them: from
/// an entry with resident children the walk goes on to a leaf, the least recently used side first, so prefixes stay
/// closed. Until something is known, which takes an eighth of the capacity in traffic, it is LRU.
///
/// Time is traffic: a generation is an eighth of the capacity in weight used, at least 64 uses. Counts fade by half in
/// 160 generations. A change of the capacity changes the length of generations from then on; what was counted stays,
/// and fades. Worth is per entry, whatever it weighs.
///
/// A request's number ties its misses to what it stores. Entries stored under a number without misses count as behind a
/// known prefix.
///
/// `victims` costs the victims, a look at each class, and where a walk begins at an entry with children the way down to
/// a leaf. At the end of a generation the model is fitted anew, which costs the same at any capacity.
///
/// Memory: 64 bytes per slot, 4.2 per position with at most sixteen positions per resident, at most 76 per ghost, 8 per
/// chunk of the longest chain walked, and at most 150 KiB for counts, queues and requests. Ghosts are at most four times
/// as many as the most residents, and at most four times the capacity in weight; vectors grow by doubling.
///
/// What was tried and what it scored is in `docs/adr/0006-life-table-eviction.md`.
///
/// Sources: the index is that of Gittins, "Bandit Processes and Dynamic Allocation Indices", 1979; hit densities by age
/// and class were shown by Beckmann, Chen, Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI 2018.
#[derive(Debug)]
pub struct LifeTable {
    /// A queue per class, in the order of the last use.
    queues: Queues<Life>,
    chains: Chains,
    ghosts: Ghosts,
    space: Space,
    census: Box<Census>,
    model: Box<Model>,
    lookups: Vec<Lookup>,
    /// The last request whose uses were seen.
    request: u64,
    /// Weight used in this generation, and how many uses that was.
    spent: u64,
    uses: u32,
    clock: u32,
}

impl Default for LifeTable {
    fn default() -> Self {
        Self {
            queues: Queues::new(CLASSES),
            chains: Chains::default(),
            ghosts: Ghosts::default(),
            space: Space::default(),
            census: Box::default(),
            model: Box::default(),
            lookups: vec![Lookup::default(); REQUESTS],
            request: 0,
            spent: 0,
            uses: 0,
            clock: 0,
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
            self.model.fit(&self.census);
            (self.spent, self.uses) = (0, 0);
        }
        self.spent += u64::from(weight);
        self.uses += 1;
        self.clock = self.clock.wrapping_add(1);
    }

    /// The class an entry is of from now on, with its last class and the generation of that, if it was known.
    fn observe(&mut self, before: Option<(usize, u32)>, cx: &Access) -> usize {
        let lookup = self.lookup(cx.request);
        let chain = Chain { length: cx.chain, matched: lookup.matched.min(cx.chain) };
        let mut now = 1;
        if let Some((class, generation)) = before {
            let first = !std::mem::replace(&mut lookup.returned, true);
            self.census.returned(class, generation, first);
            self.census.leave(class, generation);
            now = (uses(kind(class)) + 1).min(MOST_USES);
        }
        let class = class(now, chain, cx.position);
        self.census.enter(class);
        class
    }

    fn unpack(&self, mark: u32) -> (usize, u32) {
        let now = self.census.now();
        // The age is known to be below 2^27 generations, so the bits that are missing are those of now.
        let age = now.wrapping_sub(mark >> CLASS_BITS) & (u32::MAX >> CLASS_BITS);
        ((mark & ((1 << CLASS_BITS) - 1)) as usize, now.wrapping_sub(age))
    }

    fn forget(&mut self, mark: u32) {
        let (class, generation) = self.unpack(mark);
        self.census.leave(class, generation);
    }

    fn trim(&mut self) {
        let count = GHOSTS * self.space.entries();
        let weight = self.space.weight().saturating_mul(GHOSTS as u64);
        while let Some(mark) = self.ghosts.drop_oldest(count, weight) {
            self.forget(mark);
        }
    }

    /// Proposes what the walk comes by until `total` reaches `want`; the new total.
    fn take_leaves(&mut self, want: u64, mut total: u64, out: &mut Vec<Slot>) -> u64 {
        let queues = &self.queues;
        let weight =
            |slot: Slot| queues.get(slot).filter(|node| node.pins == 0).map(|node| u64::from(node.weight));
        while total < want
            && let Some(slot) = self.chains.next(|slot| weight(slot).is_some())
        {
            total += weight(slot).unwrap_or_default();
            out.push(slot);
        }
        total
    }

    /// The next of a class that is not proposed yet, and what it is worth.
    fn peek(&mut self, class: usize) -> Option<Next> {
        loop {
            let (slot, _) = self.queues.advance(class)?;
            if !self.chains.visited(slot) {
                let life = self.queues.get(slot)?.extra;
                let index = self.model.index[class][bucket(self.census.age(life.generation))];
                return Some(Next { slot, index, ago: self.clock.wrapping_sub(life.used) });
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Next {
    slot: Slot,
    index: f64,
    /// How many uses ago it was used last.
    ago: u32,
}

impl Next {
    fn before(&self, other: &Self) -> bool {
        self.index < other.index || (self.index == other.index && self.ago > other.ago)
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
        let class = self.observe(before, cx);
        let life = Life { print: entry.print, generation: self.census.now(), used: self.clock };
        self.queues.insert(&entry, class, life);
        self.chains.insert(entry.slot, entry.parent);
        self.space.see(self.queues.total(), self.queues.len());
    }

    fn touch(&mut self, slot: Slot, cx: &Access) {
        let Some(node) = self.queues.get(slot) else { return };
        let (weight, before) = (node.weight, (node.queue as usize, node.extra.generation));
        self.pass(weight, cx);
        let class = self.observe(Some(before), cx);
        self.queues.append(slot, class);
        self.chains.touch(slot);
        let (generation, used) = (self.census.now(), self.clock);
        if let Some(node) = self.queues.get_mut(slot) {
            node.extra = Life { generation, used, ..node.extra };
        }
    }

    fn missed(&mut self, print: u64, cx: &Access) {
        let known = self.ghosts.get_mut(print).is_some();
        let lookup = self.lookup(cx.request);
        if !known {
            lookup.matched = lookup.matched.min(cx.position);
        }
    }

    fn remove(&mut self, slot: Slot, why: Removal) {
        let Some(node) = self.queues.remove(slot) else { return };
        self.chains.remove(slot);
        let Life { print, generation, .. } = node.extra;
        if let Some(mark) = self.ghosts.remove(print) {
            self.forget(mark);
        }
        if why == Removal::Evicted {
            self.ghosts.push(print, node.weight, generation << CLASS_BITS | node.queue);
            self.trim();
        } else {
            self.census.leave(node.queue as usize, generation);
        }
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        let mut next = [None; CLASSES];
        self.chains.begin();
        for (class, next) in next.iter_mut().enumerate() {
            if self.queues.weight(class) > 0 {
                self.queues.rewind(class);
                *next = self.peek(class);
            }
        }
        while total < want {
            let known = next.iter().flatten();
            let first = known.reduce(|first, other| if other.before(first) { other } else { first });
            let Some(first) = first else { break };
            self.chains.walk_from(first.slot);
            total = self.take_leaves(want, total, out);
            for (class, next) in next.iter_mut().enumerate() {
                if next.is_some_and(|next| self.chains.visited(next.slot)) {
                    *next = self.peek(class);
                }
            }
        }
        total
    }

    fn pin(&mut self, slot: Slot) {
        self.queues.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queues.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.queues.memory()
            + self.chains.memory()
            + self.ghosts.memory()
            + self.census.memory()
            + size_of::<Model>()
            + self.lookups.capacity() * size_of::<Lookup>()
    }
}
