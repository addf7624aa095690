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
/// A ring this many times as long as its members is made shorter.
const SPARSE: usize = 16;

/// Members in the order of their arrival, in a ring of positions.
///
/// A linked list forgets the place of what is taken out of it, so a pinned member would have to stay in it and be walked
/// over, or come back to the wrong place. Here a member keeps its position; hiding it clears one bit, and the walk goes
/// from set bit to set bit. So hiding, showing, pushing and removing are O(1), and a walk costs what it returns.
///
/// Positions left empty are won back by a sweep that moves members towards the tail, a few at every push. The ring is at
/// most sixteen times as long as its members (or the smallest ring), and mostly four to eight times: a shorter one would
/// be swept more often, and four bytes a position are nothing beside a chunk.
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
    /// Where groups of members begin, in an order that has them.
    groups: Option<Bits>,
}

/// Members at `write..` have been moved, those below `read` not yet, and nothing is between.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    read: u64,
    write: u64,
}

impl Order {
    /// An order whose members stand in groups.
    pub(crate) fn grouped() -> Self {
        Self { groups: Some(Bits::default()), ..Self::default() }
    }

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

    /// Makes the newest member the first of a new group.
    pub(crate) fn begin_group(&mut self) {
        if self.live > 0 {
            let at = self.index(self.tail - 1);
            if let Some(groups) = &mut self.groups {
                groups.insert(at);
            }
        }
    }

    /// Takes the slot at `place` out.
    pub(crate) fn take<X>(&mut self, table: &mut Table<X>, place: u32) {
        self.ring[place as usize] = NONE;
        self.shown.remove(place as usize);
        self.live -= 1;
        while self.head < self.tail {
            let at = self.index(self.head);
            if self.ring[at] != NONE {
                break;
            }
            if let Some(groups) = &mut self.groups {
                groups.remove(at);
            }
            self.head += 1;
        }
        if self.tail > self.head && self.ring[self.index(self.tail - 1)] == NONE {
            self.retract();
        }
        if self.ring.len() > MIN && self.live < self.ring.len() / SPARSE {
            self.resize(table, self.ring.len() / 2);
        }
    }

    /// Gives empty positions at the tail back, so that the tail is right behind the newest member.
    fn retract(&mut self) {
        let old = self.tail;
        while self.tail > self.head && self.ring[self.index(self.tail - 1)] == NONE {
            self.tail -= 1;
        }
        if self.tail == old {
            return;
        }
        if let Some(groups) = &mut self.groups {
            // A group that lost all its members may get new ones.
            let mask = self.ring.len() - 1;
            let begins = (self.tail..=old).fold(false, |begins, at| groups.take(at as usize & mask) | begins);
            if begins {
                groups.insert(self.tail as usize & mask);
            }
        }
        self.hand = self.hand.min(self.tail);
        if let Some(sweep) = &mut self.sweep {
            sweep.write = sweep.write.min(self.tail);
            sweep.read = sweep.read.min(self.tail);
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

    /// What stands so many places after the walk, if anything: a hint.
    pub(crate) fn ahead(&self, places: u64) -> u32 {
        self.ring[self.index(self.hand + places)]
    }

    /// Whether the walk has passed every member, the hidden ones too.
    pub(crate) fn at_end(&self) -> bool {
        self.hand >= self.tail
    }

    /// The newest group with a shown member below `below`: where it begins, and one past its last shown member.
    pub(crate) fn newest_group(&self, below: u64) -> Option<(u64, u64)> {
        let last = self.seek_back(&self.shown, below)?;
        let groups = self.groups.as_ref()?;
        // The group at the head may have lost its first members.
        Some((self.seek_back(groups, last + 1).unwrap_or(self.head), last + 1))
    }

    /// The next shown member at or after `from` and below `end`, and its position.
    pub(crate) fn within(&mut self, from: u64, end: u64) -> Option<(u64, u32)> {
        self.hand = from;
        let at = self.seek().filter(|&at| at < end)?;
        Some((at, self.ring[self.index(at)]))
    }

    pub(crate) fn hand(&self) -> u64 {
        self.hand
    }

    /// Puts a walk back to where it stood. Nothing was pushed or taken since.
    pub(crate) fn resume(&mut self, hand: u64) {
        self.hand = hand;
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    fn seek_back(&self, bits: &Bits, below: u64) -> Option<u64> {
        if below <= self.head {
            return None;
        }
        let start = self.index(below - 1);
        let found = bits.prev(start).or_else(|| bits.prev(self.ring.len() - 1))?;
        let back = (start.wrapping_sub(found) & (self.ring.len() - 1)) as u64;
        (below - 1).checked_sub(back).filter(|&at| at >= self.head)
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
        self.ring.capacity() * 4 + self.shown.memory() + self.groups.as_ref().map_or(0, Bits::memory)
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
            if self.live > self.ring.len() / 4 || self.ring.is_empty() {
                self.resize(table, (self.ring.len() * 2).max(MIN));
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
        let begins = self.groups.as_ref().is_some_and(|groups| groups.contains(from));
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
        if begins && sweep.read != sweep.write {
            let to = self.index(sweep.write);
            if let Some(groups) = &mut self.groups {
                groups.remove(from);
                groups.insert(to);
            }
        }
        self.sweep = Some(sweep);
    }

    /// Moves everything to a ring of another length, without gaps.
    fn resize<X>(&mut self, table: &mut Table<X>, len: usize) {
        let mut ring = vec![NONE; len];
        let mut shown = Bits::new(len);
        let mut groups = self.groups.as_ref().map(|_| Bits::new(len));
        let (mut at, mut hand, mut begins) = (0, None, false);
        for position in self.head..self.tail {
            let old = self.index(position);
            let slot = self.ring[old];
            begins |= self.groups.as_ref().is_some_and(|groups| groups.contains(old));
            if slot == NONE {
                continue;
            }
            if let Some(groups) = groups.as_mut().filter(|_| begins) {
                groups.insert(at);
                begins = false;
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
        // What is pushed next may begin a group, or go on with one that has lost all its members.
        if let Some(old) = self.groups.as_ref().filter(|_| !self.ring.is_empty()) {
            begins |= old.contains(self.index(self.tail));
        }
        if let Some(groups) = groups.as_mut().filter(|_| begins) {
            groups.insert(at);
        }
        self.hand = hand.unwrap_or(at as u64);
        (self.ring, self.shown, self.groups, self.sweep) = (ring, shown, groups, None);
        (self.head, self.tail) = (0, at as u64);
    }
}
