//! A queue that keeps its order while members are hidden, shown and taken out of its middle.

use crate::bits::Bits;
use crate::table::Table;

/// An empty position.
const NONE: u32 = u32::MAX;
/// The positions looked at for each push while a sweep is under way. A sweep starts with a quarter of the ring free and
/// looks at three quarters, so three would do.
const SWEEP_STEPS: usize = 4;
/// The smallest ring.
const MIN: usize = 64;

/// Members in the order of their arrival, in a ring of positions.
///
/// A linked list forgets the place of what is taken out of it, so a pinned member would have to stay in it and be walked
/// over, or come back to the wrong place. Here a member keeps its position; hiding it clears one bit, and the walk goes
/// from set bit to set bit. So hiding, showing, pushing and removing are O(1), and a walk costs what it returns.
///
/// Positions left empty are won back by a sweep that moves members towards the tail, a few at every push, and the ring is
/// never more than four times as long as the most members it had (plus the smallest ring).
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// The slot at each position, by position modulo the (power of two) length.
    ring: Vec<u32>,
    shown: Bits,
    head: u64,
    tail: u64,
    live: usize,
    /// Where a walk stands: the next position it looks at.
    hand: u64,
    sweep: Option<Sweep>,
}

/// Members at `write..` have been moved, those below `read` not yet, and nothing is between.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    read: u64,
    write: u64,
}

impl Order {
    /// Appends a slot; it is shown unless it is pinned.
    pub(crate) fn push<X>(&mut self, table: &mut Table<X>, slot: u32) {
        self.make_room(table);
        let at = self.index(self.tail);
        self.tail += 1;
        self.live += 1;
        self.ring[at] = slot;
        let node = table.node(slot);
        node.place = at as u32;
        if node.pins == 0 {
            self.shown.insert(at);
        }
    }

    /// Takes the slot at `place` out.
    pub(crate) fn take(&mut self, place: u32) {
        self.ring[place as usize] = NONE;
        self.shown.remove(place as usize);
        self.live -= 1;
        while self.head < self.tail && self.ring[self.index(self.head)] == NONE {
            self.head += 1;
        }
    }

    /// Keeps the member at `place` out of walks.
    pub(crate) fn hide(&mut self, place: u32) {
        self.shown.remove(place as usize);
    }

    /// Lets walks see the member at `place` again, where it always was.
    pub(crate) fn show(&mut self, place: u32) {
        self.shown.insert(place as usize);
    }

    /// Starts a walk at the oldest member.
    pub(crate) fn rewind(&mut self) {
        self.hand = self.head;
    }

    /// The next shown member of the walk. What is pushed meanwhile comes at its end.
    pub(crate) fn advance(&mut self) -> Option<u32> {
        let at = self.seek()?;
        self.hand = at + 1;
        Some(self.ring[self.index(at)])
    }

    fn seek(&self) -> Option<u64> {
        let from = self.hand.max(self.head);
        if from >= self.tail {
            return None;
        }
        let start = self.index(from);
        let found = self.shown.next(start).or_else(|| self.shown.next(0))?;
        let at = from + (found.wrapping_sub(start) & (self.ring.len() - 1)) as u64;
        (at < self.tail).then_some(at)
    }

    pub(crate) fn memory(&self) -> usize {
        self.ring.capacity() * 4 + self.shown.memory()
    }

    fn index(&self, position: u64) -> usize {
        position as usize & (self.ring.len() - 1)
    }

    fn make_room<X>(&mut self, table: &mut Table<X>) {
        if self.sweep.is_some() {
            for _ in 0..SWEEP_STEPS {
                self.sweep_step(table);
            }
        } else if (self.tail - self.head) as usize >= self.ring.len() / 4 * 3 {
            if self.live > self.ring.len() / 2 || self.ring.is_empty() {
                self.grow(table);
            } else {
                self.sweep = Some(Sweep { read: self.tail, write: self.tail });
            }
        }
    }

    fn sweep_step<X>(&mut self, table: &mut Table<X>) {
        let Some(mut sweep) = self.sweep else { return };
        if sweep.read <= self.head {
            self.head = self.head.max(sweep.write).min(self.tail);
            self.sweep = None;
            return;
        }
        sweep.read -= 1;
        let from = self.index(sweep.read);
        let slot = self.ring[from];
        if slot != NONE {
            sweep.write -= 1;
            let to = self.index(sweep.write);
            if to != from {
                self.ring[from] = NONE;
                self.ring[to] = slot;
                if self.shown.contains(from) {
                    self.shown.remove(from);
                    self.shown.insert(to);
                }
                table.node(slot).place = to as u32;
                // What the walk has behind it stays behind it.
                if sweep.read < self.hand && self.hand <= sweep.write {
                    self.hand = sweep.write + 1;
                }
            }
        }
        self.sweep = Some(sweep);
    }

    fn grow<X>(&mut self, table: &mut Table<X>) {
        let len = (self.ring.len() * 2).max(MIN);
        let mut ring = vec![NONE; len];
        let mut shown = Bits::new(len);
        let (mut at, mut hand) = (0, None);
        for position in self.head..self.tail {
            let old = self.index(position);
            let slot = self.ring[old];
            if slot == NONE {
                continue;
            }
            if position >= self.hand && hand.is_none() {
                hand = Some(at as u64);
            }
            ring[at] = slot;
            if self.shown.contains(old) {
                shown.insert(at);
            }
            table.node(slot).place = at as u32;
            at += 1;
        }
        self.hand = hand.unwrap_or(at as u64);
        (self.ring, self.shown, self.head, self.tail) = (ring, shown, 0, at as u64);
    }
}
