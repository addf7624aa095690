use crate::table::Queues;
use crate::{Access, Entry, EvictionPolicy, Removal, Slot};
use std::collections::VecDeque;

/// What is known of an entry since the hand last passed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Unused,
    Used,
    /// The hand passed it as a victim, and the owner has not taken it.
    Proposed,
}

/// A queue in the order of arrival and a hand that goes from the oldest to the newest and round again: what was used since
/// the hand last came by stays where it is, what was not goes.
///
/// Memory: 20 bytes per slot, 4 per victim of the last call, and 4.2 per position, with at most sixteen positions per
/// resident; vectors grow by doubling.
///
/// Source: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is Simpler than LRU", NSDI 2024.
#[derive(Debug)]
pub struct Sieve {
    queue: Queues<State>,
    /// The victims of the last call. What the owner did not take is the first to be proposed again: the hand moves for
    /// what goes, not for what is only looked at.
    proposed: VecDeque<Slot>,
}

impl Default for Sieve {
    fn default() -> Self {
        Self { queue: Queues::new(1), proposed: VecDeque::new() }
    }
}

impl EvictionPolicy for Sieve {
    fn name(&self) -> &'static str {
        "SIEVE"
    }

    fn set_capacity(&mut self, _: u64) {}

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.queue.remove(entry.slot);
        self.queue.insert(&entry, 0, State::Unused);
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        if let Some(node) = self.queue.get_mut(slot) {
            node.extra = State::Used;
        }
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        self.queue.remove(slot);
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let (mut total, mut rounds, from) = (0, 0, out.len());
        while total < want
            && let Some(slot) = self.proposed.pop_front()
        {
            let Some(node) = self.queue.get_mut(slot).filter(|node| node.extra == State::Proposed) else {
                continue;
            };
            if node.pins == 0 {
                out.push(slot);
                total += u64::from(node.weight);
            } else {
                node.extra = State::Unused;
            }
        }
        let mut hand = self.queue.order(0).0.hand();
        // The rest of a round, one that finds everything used, and one that finds it unused again.
        while total < want && rounds < 3 {
            let Some((slot, weight)) = self.queue.advance(0) else {
                self.queue.rewind(0);
                rounds += 1;
                continue;
            };
            let Some(node) = self.queue.get_mut(slot) else { break };
            match node.extra {
                State::Used => node.extra = State::Unused,
                State::Proposed => {}
                State::Unused => {
                    node.extra = State::Proposed;
                    out.push(slot);
                    total += weight;
                    hand = self.queue.order(0).0.hand();
                }
            }
        }
        for &slot in out[from..].iter().rev() {
            self.proposed.push_front(slot);
        }
        let (order, _) = self.queue.order(0);
        order.resume(hand);
        // Past the newest entry comes the oldest, not the next to arrive.
        if order.at_end() {
            order.rewind();
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
        self.queue.memory() + self.proposed.capacity() * size_of::<Slot>()
    }
}
