use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

/// Uses are counted up to this; what was used more often counts as used so often.
const MOST: usize = 255;

/// Least frequently used first; of those used equally often, the least recently used. An entry's count dies with it, and
/// counts do not age: what was once popular stays until it is removed.
///
/// Memory: 16 bytes per slot and 4.2 per position, with at most sixteen positions per resident, and 110 KiB for the
/// queues (one per count, each of at least 64 positions once used); vectors grow by doubling.
#[derive(Debug)]
pub struct Lfu {
    /// Queue `n` holds what was used `n` times since it was inserted.
    queues: Queues<()>,
}

impl Default for Lfu {
    fn default() -> Self {
        Self { queues: Queues::new(MOST + 1) }
    }
}

impl EvictionPolicy for Lfu {
    fn name(&self) -> &'static str {
        "LFU"
    }

    fn set_capacity(&mut self, _: u64) {}

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queues.remove(entry.slot);
        self.queues.insert(&entry, 0, ());
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        if let Some(node) = self.queues.get_mut(slot) {
            let uses = node.queue as usize;
            self.queues.append(slot, (uses + 1).min(MOST));
        }
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        self.queues.remove(slot);
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        for uses in 0..=MOST {
            if total >= want {
                break;
            }
            if self.queues.weight(uses) > 0 {
                self.queues.rewind(uses);
                self.queues.drain(uses, want, &mut total, out);
            }
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
        self.queues.memory()
    }
}
