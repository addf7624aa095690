use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

/// Most recently used first. Entries of one request leave together, its last chunk first, so that what stays of it is a
/// prefix.
///
/// Memory: 16 bytes per slot and 4.3 per position, with at most sixteen positions per resident; vectors grow by
/// doubling.
#[derive(Debug)]
pub struct Mru {
    queue: Queues<()>,
    request: Option<u64>,
}

impl Default for Mru {
    fn default() -> Self {
        Self { queue: Queues::grouped(), request: None }
    }
}

impl Mru {
    /// Whether this event is the first of its request.
    fn begins(&mut self, cx: &Access) -> bool {
        self.request.replace(cx.request) != Some(cx.request)
    }
}

impl EvictionPolicy for Mru {
    fn name(&self) -> &'static str {
        "MRU"
    }

    fn set_capacity(&mut self, _: u64) {}

    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.queue.remove(entry.slot);
        self.queue.insert(&entry, 0, ());
        if self.begins(cx) {
            self.queue.begin_group(0);
        }
    }

    fn touch(&mut self, slot: Slot, cx: &Access) {
        if self.queue.get_mut(slot).is_some() {
            self.queue.append(slot, 0);
            if self.begins(cx) {
                self.queue.begin_group(0);
            }
        }
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        self.queue.remove(slot);
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        let (order, table) = self.queue.order(0);
        let mut below = order.tail();
        while total < want {
            let Some((start, end)) = order.newest_group(below) else { break };
            below = start;
            let mut from = start;
            while let Some((at, slot)) = order.within(from, end).filter(|_| total < want) {
                total += u64::from(table.node(slot).weight);
                out.push(Slot(slot));
                from = at + 1;
            }
        }
        total
    }

    fn missed(&mut self, _: u64, _: &Access) {}

    fn pin(&mut self, slot: Slot) {
        self.queue.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queue.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.queue.memory()
    }
}
