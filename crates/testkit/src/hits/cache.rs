use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::num::NonZeroU32;

use kvstrata_core::{Error, Result};
use kvstrata_evict::{Access, Admission, Entry, EvictionPolicy, Offer, Removal, Slot, TenantId, admit_chain};

use super::{Lookup, Tally};

/// The order of events within a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// As the manager serves a request: all blocks are looked up and what is there is pinned; room is made for the missing
    /// ones, first to last; they are stored, last first; the hits are touched, last first, and released. So nothing of a
    /// request drives out what the same request uses, and its last block is the oldest.
    #[default]
    Batch,
    /// What is there when the request comes is a hit. Then each block in turn is touched or stored, from the first to the
    /// last, as if it were a request of its own: what it drives out may be a block that the same request has yet to touch,
    /// which is then stored again.
    BlockForward,
    /// The same from the last block to the first, so that a chain's first block is the youngest.
    BlockTailFirst,
}

impl Order {
    /// The block by block order in which a policy does best. Policies that go by the time of the last use must see the
    /// last block of a chain first; those that go by the time of arrival, or for whom a use is a mark, see it in the
    /// order of the chain.
    pub fn by_block(policy: &str) -> Self {
        match policy {
            "FIFO" | "SIEVE" => Self::BlockForward,
            _ => Self::BlockTailFirst,
        }
    }
}

/// A block's identity. Its print is uniform, and serves as the hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    id: u64,
    print: u64,
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.print);
    }
}

#[derive(Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a name hashes as one u64");
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

/// A block that has room, but is not stored yet.
const STAGED: Slot = Slot(u32::MAX);

/// A cache without contents: a policy, and which blocks would be resident. Memory is proportional to its capacity.
#[derive(Debug)]
pub struct Cache {
    policy: Box<dyn EvictionPolicy>,
    /// `None`: everything comes in.
    admission: Option<Box<dyn Admission>>,
    capacity: usize,
    weight: NonZeroU32,
    /// Where each block is, staged ones included: so its length is the blocks that have room.
    index: HashMap<Name, Slot, BuildHasherDefault<Uniform>>,
    /// Who is in a slot, and the pins on it.
    places: Vec<(Name, u32)>,
    free: Vec<Slot>,
    tally: Tally,
    victims: Vec<Slot>,
    there: Vec<bool>,
}

impl Cache {
    /// An empty cache of so many blocks of so many bytes.
    ///
    /// # Errors
    /// `Invalid` if there is no block, or one without bytes, or more than 2^32 - 2 of either.
    pub fn new(mut policy: Box<dyn EvictionPolicy>, blocks: u32, block_bytes: u32) -> Result<Self> {
        const OP: &str = "make cache";
        if blocks == 0 || blocks == u32::MAX {
            return Err(Error::invalid(OP, "a cache has 1 to 2^32 - 2 blocks").with("blocks", blocks));
        }
        let weight = NonZeroU32::new(block_bytes)
            .ok_or_else(|| Error::invalid(OP, "a block has at least one byte").with("block_bytes", 0))?;
        policy.set_capacity(u64::from(blocks) * u64::from(block_bytes));
        Ok(Self {
            policy,
            admission: None,
            capacity: blocks as usize,
            weight,
            index: HashMap::default(),
            places: Vec::new(),
            free: Vec::new(),
            tally: Tally::default(),
            victims: Vec::new(),
            there: Vec::new(),
        })
    }

    /// The same with a rule for what comes in.
    #[must_use]
    pub fn with_admission(mut self, mut rule: Box<dyn Admission>) -> Self {
        rule.set_capacity(self.capacity as u64 * u64::from(self.weight.get()));
        // Policies are not asked for rivals that the rule never looks at: a question may leave a mark in a policy.
        self.admission = (rule.name() != "always").then_some(rule);
        self
    }

    /// What it did so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether a block is there now.
    pub fn holds(&self, block: (u64, u64)) -> bool {
        self.index.contains_key(&Name { id: block.0, print: block.1 })
    }

    /// Serves a lookup; which of its blocks were there.
    pub fn request(&mut self, lookup: &Lookup, order: Order) -> &[bool] {
        self.there.clear();
        self.there.resize(lookup.blocks.len(), false);
        match order {
            Order::Batch => self.batch(lookup),
            Order::BlockForward | Order::BlockTailFirst => {
                let blocks = lookup.blocks.len();
                for i in 0..blocks {
                    self.there[i] = self.index.contains_key(&named(lookup, i).0);
                }
                for i in 0..blocks {
                    self.block(lookup, if order == Order::BlockForward { i } else { blocks - 1 - i });
                }
            }
        }
        self.tally.answered(lookup, &self.there);
        &self.there
    }

    fn block(&mut self, lookup: &Lookup, i: usize) {
        let (name, cx) = named(lookup, i);
        if let Some(rule) = &mut self.admission {
            rule.asked(name.print, self.weight, &cx);
        }
        if let Some(slot) = self.index.get(&name).copied() {
            self.policy.touch(slot, &cx);
            return;
        }
        self.policy.missed(name.print, &cx);
        if self.admits(name, &cx) && self.make_room() {
            let slot = self.take_slot();
            self.insert(lookup, i, slot);
        } else {
            self.tally.declined += 1;
        }
    }

    /// What the manager does when a request's blocks are looked up, stored, touched and released.
    fn batch(&mut self, lookup: &Lookup) {
        let blocks = lookup.blocks.len();
        for i in 0..blocks {
            let (name, cx) = named(lookup, i);
            if let Some(rule) = &mut self.admission {
                rule.asked(name.print, self.weight, &cx);
            }
            match self.index.get(&name).copied() {
                Some(slot) => {
                    self.there[i] = true;
                    self.pin(slot);
                }
                None => self.policy.missed(name.print, &cx),
            }
        }
        let admitted = self.admitted(lookup);
        let mut staged = Vec::new();
        for i in 0..blocks {
            let (name, _) = named(lookup, i);
            // A block that the request has twice is missing twice, and stored once.
            if self.there[i] || self.index.contains_key(&name) {
                continue;
            }
            if admitted.get(i).is_some_and(|admitted| !admitted) {
                self.tally.declined += 1;
                continue;
            }
            if !self.make_room() {
                // The rest has no use without this one.
                let rest = (i..blocks).filter(|i| !self.index.contains_key(&named(lookup, *i).0));
                self.tally.declined += rest.count() as u64;
                break;
            }
            self.index.insert(name, STAGED);
            staged.push(i);
        }
        // Slots are given out before anything is inserted, so that a block can name the one before it.
        let slots: Vec<Slot> = staged.iter().map(|_| self.take_slot()).collect();
        for (i, slot) in staged.iter().zip(&slots) {
            self.index.insert(named(lookup, *i).0, *slot);
        }
        for (i, slot) in staged.into_iter().zip(slots).rev() {
            self.insert(lookup, i, slot);
        }
        for i in (0..blocks).rev().filter(|i| self.there[*i]) {
            let (name, cx) = named(lookup, i);
            self.policy.touch(self.index[&name], &cx);
        }
        for i in 0..blocks {
            if self.there[i] {
                self.unpin(self.index[&named(lookup, i).0]);
            }
        }
    }

    /// What the admission rule thinks of one missing block.
    fn admits(&mut self, name: Name, cx: &Access) -> bool {
        self.find_rivals(1);
        let offer = self.offer(name, 0);
        self.admission.as_mut().is_none_or(|rule| rule.admits(&offer, cx))
    }

    /// What the admission rule thinks of each block of a looked up chain; empty without a rule.
    fn admitted(&mut self, lookup: &Lookup) -> Vec<bool> {
        let mut out = Vec::new();
        let missing = self.there.iter().filter(|there| !**there).count();
        if missing == 0 || self.admission.is_none() {
            return out;
        }
        self.find_rivals(missing);
        let mut before = 0;
        let chain: Vec<Offer> = (0..lookup.blocks.len())
            .map(|i| {
                let offer = Offer { resident: self.there[i], ..self.offer(named(lookup, i).0, before) };
                before += usize::from(!self.there[i]);
                offer
            })
            .collect();
        if let Some(rule) = &mut self.admission {
            let (_, cx) = named(lookup, 0);
            admit_chain(rule.as_mut(), &chain, &cx, &mut out);
        }
        out
    }

    /// Has the policy name those who would go for so many new blocks, if a rule wants to know.
    fn find_rivals(&mut self, new: usize) {
        self.victims.clear();
        let short = (self.index.len() + new).saturating_sub(self.capacity);
        if short > 0 && self.admission.is_some() {
            self.policy.victims(short as u64 * u64::from(self.weight.get()), &mut self.victims);
        }
    }

    /// A missing block before which so many others of its request are missing.
    fn offer(&self, name: Name, before: usize) -> Offer {
        let free = self.capacity.saturating_sub(self.index.len());
        let rival = before.checked_sub(free).and_then(|n| self.victims.get(n).or(self.victims.last()));
        let rival = rival.map(|slot| self.places[slot.index()].0.print);
        Offer { print: name.print, weight: self.weight, rival, resident: false }
    }

    /// Evicts until one more block fits; whether it does.
    fn make_room(&mut self) -> bool {
        while self.index.len() >= self.capacity {
            self.victims.clear();
            self.policy.victims(self.weight.get().into(), &mut self.victims);
            if self.victims.is_empty() {
                return false;
            }
            for slot in self.victims.drain(..) {
                self.policy.remove(slot, Removal::Evicted);
                self.index.remove(&self.places[slot.index()].0);
                self.free.push(slot);
            }
        }
        true
    }

    fn take_slot(&mut self) -> Slot {
        self.free.pop().unwrap_or_else(|| {
            self.places.push((Name { id: 0, print: 0 }, 0));
            Slot(self.places.len() as u32 - 1)
        })
    }

    fn insert(&mut self, lookup: &Lookup, i: usize, slot: Slot) {
        let (name, cx) = named(lookup, i);
        let before = i.checked_sub(1).map(|p| named(lookup, p).0);
        let parent = before.and_then(|name| self.index.get(&name).copied());
        self.index.insert(name, slot);
        self.places[slot.index()] = (name, 0);
        let entry =
            Entry { slot, print: name.print, weight: self.weight, parent, tenant: TenantId::default() };
        self.policy.insert(entry, &cx);
        self.tally.written += 1;
    }

    fn pin(&mut self, slot: Slot) {
        let pins = &mut self.places[slot.index()].1;
        *pins += 1;
        if *pins == 1 {
            self.policy.pin(slot);
        }
    }

    fn unpin(&mut self, slot: Slot) {
        let pins = &mut self.places[slot.index()].1;
        *pins -= 1;
        if *pins == 0 {
            self.policy.unpin(slot);
        }
    }
}

fn named(lookup: &Lookup, i: usize) -> (Name, Access) {
    let (id, print) = lookup.blocks[i];
    let cx = Access {
        request: lookup.request,
        position: lookup.first + i as u32,
        chain: lookup.first + lookup.blocks.len() as u32,
    };
    (Name { id, print }, cx)
}
