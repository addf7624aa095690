use crate::ghosts::Ghosts;
use crate::space::Space;
use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

const SMALL: usize = 0;
const MAIN: usize = 1;
/// Uses are counted up to this.
const MOST: u8 = 3;
/// The small queue's share of the capacity is one in so many.
const SHARE: u64 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    print: u64,
    uses: u8,
}

/// Three queues: what is new waits in a small one, and comes into the main one if it was used meanwhile or was evicted
/// lately; what leaves the main queue and was used goes round again.
///
/// Memory: 32 bytes per slot, 4.2 per position with at most sixteen positions per resident, and at most 76 per ghost.
/// Ghosts are at most as many as the most residents, and at most the capacity in weight;
/// vectors grow by doubling.
///
/// Source: Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023.
#[derive(Debug)]
pub struct S3Fifo {
    queues: Queues<Extra>,
    ghosts: Ghosts,
    space: Space,
}

impl Default for S3Fifo {
    fn default() -> Self {
        Self { queues: Queues::new(2), ghosts: Ghosts::default(), space: Space::default() }
    }
}

impl S3Fifo {
    /// The next to leave the small queue; what was used goes to the main queue on the way.
    fn next_of_small(&mut self) -> Option<(Slot, u64)> {
        loop {
            let (slot, weight) = self.queues.advance(SMALL)?;
            if self.queues.get_mut(slot)?.extra.uses == 0 {
                return Some((slot, weight));
            }
            self.queues.append(slot, MAIN);
        }
    }

    /// The next to leave the main queue; what was used goes round once for each use.
    fn next_of_main(&mut self) -> Option<(Slot, u64)> {
        loop {
            let (slot, weight) = self.queues.advance(MAIN)?;
            let uses = &mut self.queues.get_mut(slot)?.extra.uses;
            if *uses == 0 {
                return Some((slot, weight));
            }
            *uses -= 1;
            self.queues.append(slot, MAIN);
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "S3-FIFO"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.space.tell(weight);
    }

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queues.remove(entry.slot);
        let known = self.ghosts.remove(entry.print).is_some();
        let extra = Extra { print: entry.print, uses: 0 };
        self.queues.insert(&entry, if known { MAIN } else { SMALL }, extra);
        self.space.see(self.queues.total(), self.queues.len());
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        if let Some(node) = self.queues.get_mut(slot) {
            node.extra.uses = (node.extra.uses + 1).min(MOST);
        }
    }

    fn remove(&mut self, slot: Slot, why: Removal) {
        let Some(node) = self.queues.remove(slot) else { return };
        if why == Removal::Evicted && node.queue as usize == SMALL {
            self.ghosts.push(node.extra.print, node.weight, 0);
            self.ghosts.trim(self.space.entries(), self.space.weight());
        }
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let (mut total, mut of_small) = (0, 0);
        let share = self.space.weight() / SHARE;
        self.queues.rewind(SMALL);
        self.queues.rewind(MAIN);
        while total < want {
            let small =
                if self.queues.weight(SMALL) - of_small > share { self.next_of_small() } else { None };
            let next = match small {
                Some(next) => Some((next, true)),
                // When nothing is left in the main queue, what is in the small one goes, used or not.
                None => match self.next_of_main() {
                    Some(next) => Some((next, false)),
                    None => self.queues.advance(SMALL).map(|next| (next, true)),
                },
            };
            let Some(((slot, weight), was_small)) = next else { break };
            if was_small {
                of_small += weight;
            }
            out.push(slot);
            total += weight;
        }
        total
    }

    fn missed(&mut self, _: u64, _: &Access) {}

    fn pin(&mut self, slot: Slot) {
        self.queues.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queues.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.queues.memory() + self.ghosts.memory()
    }
}
