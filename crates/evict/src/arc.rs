use crate::ghosts::Ghosts;
use crate::space::Space;
use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

const ONCE: usize = 0;
const AGAIN: usize = 1;

/// Adaptive replacement: one LRU of what was used once, one of what was used again, each with ghosts of what left it. A
/// ghost that is asked for moves the border between the two towards its own side.
///
/// Memory: 24 bytes per slot, 4.2 per position with at most sixteen positions per resident, and at most 76 per ghost.
/// Ghosts are at most twice as many as the most residents, and at most the capacity in weight; vectors grow by
/// doubling.
///
/// Source: Megiddo, Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, in weights instead of pages.
#[derive(Debug)]
pub struct AdaptiveReplacement {
    queues: Queues<u64>,
    ghosts: [Ghosts; 2],
    /// How much of the capacity is for what was used once.
    target: u64,
    /// The last miss was a ghost of what was used again.
    again: bool,
    space: Space,
}

impl Default for AdaptiveReplacement {
    fn default() -> Self {
        Self {
            queues: Queues::new(2),
            ghosts: [Ghosts::default(), Ghosts::default()],
            target: 0,
            again: false,
            space: Space::default(),
        }
    }
}

/// A ghost's mark: the border was moved for it.
const COUNTED: u32 = 1;

impl AdaptiveReplacement {
    /// Moves the border if the object is a ghost that was not counted yet; says whether it is a ghost.
    fn learn(&mut self, print: u64) -> bool {
        self.again = false;
        for side in [ONCE, AGAIN] {
            let Some(ghost) = self.ghosts[side].get_mut(print) else { continue };
            self.again = side == AGAIN;
            if std::mem::replace(&mut ghost.mark, COUNTED) == COUNTED {
                return true;
            }
            let weight = ghost.weight();
            let (own, other) = (self.ghosts[side].weight().max(1), self.ghosts[1 - side].weight());
            // At least one entry's weight, and more where the other side has more ghosts.
            let step = (u128::from(weight) * u128::from(other.max(own)) / u128::from(own)) as u64;
            self.target = match side {
                ONCE => self.target.saturating_add(step).min(self.space.weight()),
                _ => self.target.saturating_sub(step),
            };
            return true;
        }
        false
    }

    /// Keeps residents and ghosts of what was used once within the capacity, and everything within twice that.
    fn trim(&mut self) {
        let (space, most) = (self.space.weight(), self.space.entries());
        self.ghosts[ONCE].trim(most, space.saturating_sub(self.queues.weight(ONCE)));
        let rest = (2 * space).saturating_sub(self.queues.total() + self.ghosts[ONCE].weight());
        self.ghosts[AGAIN].trim(most, rest);
    }
}

impl EvictionPolicy for AdaptiveReplacement {
    fn name(&self) -> &'static str {
        "ARC"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.space.tell(weight);
        self.target = self.target.min(weight);
    }

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queues.remove(entry.slot);
        let known = self.learn(entry.print);
        if known {
            for ghosts in &mut self.ghosts {
                ghosts.remove(entry.print);
            }
        }
        self.queues.insert(&entry, if known { AGAIN } else { ONCE }, entry.print);
        self.space.see(self.queues.total(), self.queues.len());
        self.trim();
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        self.queues.append(slot, AGAIN);
    }

    fn remove(&mut self, slot: Slot, why: Removal) {
        let Some(node) = self.queues.remove(slot) else { return };
        if why == Removal::Evicted {
            self.ghosts[node.queue as usize].push(node.extra, node.weight, 0);
            self.trim();
        }
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        let mut once = self.queues.weight(ONCE);
        self.queues.rewind(ONCE);
        self.queues.rewind(AGAIN);
        while total < want {
            let first = if once > self.target || (self.again && once == self.target) { ONCE } else { AGAIN };
            let mut from = first;
            let next = self.queues.advance(first).or_else(|| {
                from = 1 - first;
                self.queues.advance(from)
            });
            let Some((slot, weight)) = next else { break };
            if from == ONCE {
                once -= weight;
            }
            out.push(slot);
            total += weight;
        }
        total
    }

    fn missed(&mut self, print: u64, _: &Access) {
        self.learn(print);
    }

    fn pin(&mut self, slot: Slot) {
        self.queues.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queues.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.queues.memory() + self.ghosts.iter().map(Ghosts::memory).sum::<usize>()
    }
}
