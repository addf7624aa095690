use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

/// Least recently used first. What is touched while pinned leaves its place at once, not when it is unpinned.
///
/// Memory: 16 bytes per slot and 4.2 per position, with at most sixteen positions per resident; vectors grow by
/// doubling.
#[derive(Debug)]
pub struct Lru {
    queue: Queues<()>,
}

impl Default for Lru {
    fn default() -> Self {
        Self { queue: Queues::new(1) }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "LRU"
    }

    fn set_capacity(&mut self, _: u64) {}

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queue.remove(entry.slot);
        self.queue.insert(&entry, 0, ());
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        self.queue.append(slot, 0);
    }

    fn missed(&mut self, _: u64, _: &Access) {}

    fn pin(&mut self, slot: Slot) {
        self.queue.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queue.unpin(slot);
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        self.queue.remove(slot);
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        self.queue.rewind(0);
        self.queue.drain(0, want, &mut total, out);
        total
    }

    fn memory(&self) -> usize {
        self.queue.memory()
    }
}
