use crate::sketch::Sketch;
use crate::space::Space;
use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};

/// Where new entries come first.
const WINDOW: usize = 0;
/// What left the window and has not been weighed against what is on probation.
const CANDIDATES: usize = 1;
const PROBATION: usize = 2;
/// What was used on probation.
const PROTECTED: usize = 3;

/// An LRU window of one hundredth of the capacity for what is new, and a main part (one fifth on probation, the rest
/// protected) that an entry comes into only if it is asked for more often than the one that would have to go. How often
/// is counted by a sketch that forgets. Of two that are asked for equally often the older goes, so that the chunks of one
/// request leave from its last to its first.
///
/// Memory: 24 bytes per slot, 4.2 per position with at most sixteen positions per resident, and 8 per resident (rounded
/// up to a power of two) for the sketch; no ghosts; vectors grow by doubling.
///
/// Source: Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017.
#[derive(Debug)]
pub struct WTinyLfu {
    queues: Queues<u64>,
    sketch: Sketch,
    space: Space,
}

impl Default for WTinyLfu {
    fn default() -> Self {
        Self { queues: Queues::new(4), sketch: Sketch::default(), space: Space::default() }
    }
}

impl WTinyLfu {
    fn window(&self) -> u64 {
        self.space.weight() / 100
    }

    /// Moves the oldest of `from` to the tail of `to` until `from` weighs at most `most`. Pinned entries wait.
    fn overflow(&mut self, from: usize, to: usize, most: u64) {
        self.queues.rewind(from);
        while self.queues.weight(from) > most {
            let Some((slot, _)) = self.queues.advance(from) else { return };
            self.queues.append(slot, to);
        }
    }

    fn count(&mut self, slot: Slot) -> u64 {
        let print = self.queues.get_mut(slot).map_or(0, |node| node.extra);
        self.sketch.count(print)
    }

    /// The next victim of the main part: probation first.
    fn next_of_main(&mut self) -> Option<(Slot, u64)> {
        self.queues.advance(PROBATION).or_else(|| self.queues.advance(PROTECTED))
    }
}

impl EvictionPolicy for WTinyLfu {
    fn name(&self) -> &'static str {
        "W-TinyLFU"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.space.tell(weight);
    }

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queues.remove(entry.slot);
        self.queues.insert(&entry, WINDOW, entry.print);
        self.space.see(self.queues.total(), self.queues.len());
        self.sketch.ensure(self.queues.len());
        // The owner may store what nobody looked up.
        if self.sketch.count(entry.print) == 0 {
            self.sketch.add(entry.print);
        }
        let window = self.window();
        self.overflow(WINDOW, CANDIDATES, window);
        self.overflow(CANDIDATES, PROBATION, window);
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        let Some(node) = self.queues.get_mut(slot) else { return };
        let (print, queue) = (node.extra, node.queue as usize);
        self.sketch.add(print);
        if queue == WINDOW {
            self.queues.append(slot, WINDOW);
            return;
        }
        self.queues.append(slot, PROTECTED);
        let most = (self.space.weight() - self.window()) / 5 * 4;
        self.overflow(PROTECTED, PROBATION, most);
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        self.queues.remove(slot);
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        (WINDOW..=PROTECTED).for_each(|queue| self.queues.rewind(queue));
        let (mut candidate, mut victim) = (self.queues.advance(CANDIDATES), self.next_of_main());
        while total < want {
            let taken = match (candidate, victim) {
                (Some(new), Some(old)) if self.count(new.0) >= self.count(old.0) => {
                    self.queues.append(new.0, PROBATION);
                    candidate = self.queues.advance(CANDIDATES);
                    victim = self.next_of_main();
                    old
                }
                (Some(new), _) => {
                    candidate = self.queues.advance(CANDIDATES);
                    new
                }
                (None, Some(old)) => {
                    victim = self.next_of_main();
                    old
                }
                (None, None) => match self.queues.advance(WINDOW) {
                    Some(new) => new,
                    None => break,
                },
            };
            out.push(taken.0);
            total += taken.1;
        }
        total
    }

    fn missed(&mut self, print: u64, _: &Access) {
        self.sketch.add(print);
    }

    fn pin(&mut self, slot: Slot) {
        self.queues.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queues.unpin(slot);
    }

    fn memory(&self) -> usize {
        self.queues.memory() + self.sketch.memory()
    }
}
