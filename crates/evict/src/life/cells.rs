//! The residents by slot, in a list for each class and generation, and which list is worth least.

use super::ages::{BUCKETS, OLDEST, bucket, first_age};
use super::census::Table;
use super::class::CLASSES;
use crate::{Entry, Slot};

const NONE: u32 = u32::MAX;
/// A cell is a class at an age bucket.
const CELLS: usize = CLASSES * BUCKETS;
const WORDS: usize = CELLS.div_ceil(64);
/// A row of lists for each generation that is told apart, by its number modulo their count, and one for the older.
const ROWS: usize = OLDEST as usize + 1;
const OLD: usize = OLDEST as usize;
// A class's rows are the bits of one number.
const _: () = assert!(OLDEST == u128::BITS);

/// A resident.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) print: u64,
    /// 0: the slot is not resident.
    pub(super) weight: u32,
    pub(super) pins: u32,
    /// The generation of its last use.
    pub(super) generation: u32,
    pub(super) class: u16,
    /// Whether it is in its list: what is pinned may have been left out.
    listed: bool,
    next: u32,
    prev: u32,
}

const FREE: Life =
    Life { print: 0, weight: 0, pins: 0, generation: 0, class: 0, listed: false, next: NONE, prev: NONE };

/// Residents, in circular lists by class and generation of the last use, and cells in the order of their worth.
///
/// Lists are in the order of the last use. A pinned resident stays where it is until a walk comes by, which leaves it
/// out of its list; when it is unpinned it goes back to the front, where the walk was. So a pin costs at most one step
/// of one walk.
#[derive(Debug)]
pub(super) struct Cells {
    lives: Vec<Life>,
    /// The first of each list.
    heads: Vec<[u32; CLASSES]>,
    /// The rows in which a class has a list, but for the oldest row.
    rows: [u128; CLASSES],
    /// Cells from the one that is worth least, and the place of each cell in that order.
    order: [u16; CELLS],
    ranks: [[u16; BUCKETS]; CLASSES],
    /// By rank: cells that may have residents. Those that have some are in it.
    filled: [u64; WORDS],
    /// The current generation.
    now: u32,
    total: u64,
    residents: usize,
}

/// Where a walk stands.
#[derive(Debug)]
pub(super) struct Walk {
    /// The rank after that of its cell.
    rank: usize,
    class: usize,
    /// Rows of the cell that it has yet to come to: bit 0 is the oldest generation but for the oldest row.
    rows: u128,
    row: usize,
    /// The next of its list.
    slot: u32,
}

/// What cells are compared by: what they are worth, then the older first, then by class. The sign of what is worth
/// something is positive, so its bits are in its order; the last few of them make room for the rest.
pub(super) fn rank_key(index: f64, class: usize, bucket: usize) -> u64 {
    const ROOM: u64 = (CELLS as u64).next_power_of_two() - 1;
    index.to_bits() & !ROOM | ((BUCKETS - 1 - bucket) * CLASSES + class) as u64
}

impl Cells {
    pub(super) fn new(index: &Table) -> Self {
        let mut cells = Self {
            lives: Vec::new(),
            heads: vec![[NONE; CLASSES]; ROWS],
            rows: [0; CLASSES],
            order: [0; CELLS],
            ranks: [[0; BUCKETS]; CLASSES],
            filled: [0; WORDS],
            now: 0,
            total: 0,
            residents: 0,
        };
        cells.rank(index);
        cells
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn len(&self) -> usize {
        self.residents
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Life> {
        self.lives.get(slot.index()).filter(|life| life.weight != 0)
    }

    /// Adds a resident, used now. It must not be one.
    pub(super) fn insert(&mut self, entry: &Entry, class: usize) {
        let index = entry.slot.index();
        if index >= self.lives.len() {
            self.lives.resize(index + 1, FREE);
        }
        let (weight, generation) = (entry.weight.get(), self.now);
        self.lives[index] = Life { print: entry.print, weight, generation, class: class as u16, ..FREE };
        self.append(entry.slot.0);
        self.total += u64::from(weight);
        self.residents += 1;
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Life> {
        let life = *self.get(slot)?;
        self.unlist(slot.0);
        self.lives[slot.index()] = FREE;
        self.total -= u64::from(life.weight);
        self.residents -= 1;
        Some(life)
    }

    /// A resident is used now, and is of this class from now on.
    pub(super) fn touch(&mut self, slot: Slot, class: usize) {
        self.unlist(slot.0);
        let life = &mut self.lives[slot.index()];
        (life.class, life.generation) = (class as u16, self.now);
        self.append(slot.0);
    }

    pub(super) fn pin(&mut self, slot: Slot) {
        if self.get(slot).is_some() {
            self.lives[slot.index()].pins += 1;
        }
    }

    pub(super) fn unpin(&mut self, slot: Slot) {
        let Some(&Life { pins, listed, .. }) = self.get(slot) else { return };
        self.lives[slot.index()].pins = pins.saturating_sub(1);
        if pins == 1 && !listed {
            let (row, class) = self.append(slot.0);
            self.heads[row][class] = slot.0;
        }
    }

    fn row(generation: u32) -> usize {
        (generation % OLDEST) as usize
    }

    /// The row and class of a resident's list.
    fn list(&self, life: &Life) -> (usize, usize) {
        let young = self.now.wrapping_sub(life.generation) < OLDEST;
        (if young { Self::row(life.generation) } else { OLD }, life.class.into())
    }

    /// Puts a resident at the end of its list, which in a circle is also before its front.
    fn append(&mut self, slot: u32) -> (usize, usize) {
        let life = self.lives[slot as usize];
        let (row, class) = self.list(&life);
        let head = self.heads[row][class];
        let (next, prev) = if head == NONE {
            self.heads[row][class] = slot;
            if row != OLD {
                self.rows[class] |= 1 << row;
            }
            (slot, slot)
        } else {
            let last = self.lives[head as usize].prev;
            self.lives[last as usize].next = slot;
            self.lives[head as usize].prev = slot;
            (head, last)
        };
        self.lives[slot as usize] = Life { listed: true, next, prev, ..life };
        self.fill(class, bucket(self.now.wrapping_sub(life.generation)));
        (row, class)
    }

    fn unlist(&mut self, slot: u32) {
        let life = self.lives[slot as usize];
        if !life.listed {
            return;
        }
        self.lives[slot as usize].listed = false;
        let (row, class) = self.list(&life);
        if life.next == slot {
            self.heads[row][class] = NONE;
            if row != OLD {
                self.rows[class] &= !(1 << row);
            }
            return;
        }
        self.lives[life.prev as usize].next = life.next;
        self.lives[life.next as usize].prev = life.prev;
        if self.heads[row][class] == slot {
            self.heads[row][class] = life.next;
        }
    }

    fn fill(&mut self, class: usize, bucket: usize) {
        let rank = usize::from(self.ranks[class][bucket]);
        self.filled[rank / 64] |= 1 << (rank % 64);
    }

    /// A generation ends. No list is longer to move than another.
    pub(super) fn end_generation(&mut self) {
        self.now = self.now.wrapping_add(1);
        // The row of the new generation is that of the one that is now as old as is told apart.
        let row = Self::row(self.now);
        for class in 0..CLASSES {
            let head = std::mem::replace(&mut self.heads[row][class], NONE);
            self.rows[class] &= !(1 << row);
            if head == NONE {
                continue;
            }
            let old = self.heads[OLD][class];
            if old == NONE {
                self.heads[OLD][class] = head;
            } else {
                let [old_last, last] = [old, head].map(|first| self.lives[first as usize].prev);
                self.lives[old_last as usize].next = head;
                self.lives[head as usize].prev = old_last;
                self.lives[last as usize].next = old;
                self.lives[old as usize].prev = last;
            }
            self.fill(class, BUCKETS - 1);
        }
        for bucket in 1..BUCKETS - 1 {
            let row = Self::row(self.now.wrapping_sub(first_age(bucket)));
            for class in 0..CLASSES {
                if self.rows[class] & 1 << row != 0 {
                    self.fill(class, bucket);
                }
            }
        }
    }

    /// Puts cells in the order of what they are worth.
    pub(super) fn rank(&mut self, index: &Table) {
        let mut keys: [u64; CELLS] = std::array::from_fn(|cell| {
            let (class, bucket) = (cell / BUCKETS, cell % BUCKETS);
            rank_key(index[class][bucket], class, bucket)
        });
        keys.sort_unstable();
        self.filled = [0; WORDS];
        for (rank, key) in keys.into_iter().enumerate() {
            let code = (key & ((CELLS as u64).next_power_of_two() - 1)) as usize;
            let (class, bucket) = (code % CLASSES, BUCKETS - 1 - code / CLASSES);
            self.order[rank] = (class * BUCKETS + bucket) as u16;
            self.ranks[class][bucket] = rank as u16;
            if self.cell_rows(class, bucket) != 0 || (bucket == BUCKETS - 1 && self.heads[OLD][class] != NONE)
            {
                self.fill(class, bucket);
            }
        }
    }

    /// The rows of a cell that have lists, but for the oldest row: bit 0 is the oldest generation.
    fn cell_rows(&self, class: usize, bucket: usize) -> u128 {
        if bucket == BUCKETS - 1 {
            return 0;
        }
        let (from, to) = (first_age(bucket), first_age(bucket + 1));
        let oldest_first = self.rows[class].rotate_right(Self::row(self.now.wrapping_add(1)) as u32);
        // Age `a` is at bit `OLDEST - 1 - a`.
        oldest_first & (((1 << (to - from)) - 1) << (OLDEST - to))
    }

    /// A walk over all residents, from what is worth least.
    pub(super) fn walk() -> Walk {
        Walk { rank: 0, class: 0, rows: 0, row: OLD, slot: NONE }
    }

    /// The next resident of a walk that is not pinned. Nothing was changed since the walk began.
    pub(super) fn advance(&mut self, walk: &mut Walk) -> Option<Slot> {
        loop {
            if walk.slot == NONE {
                self.next_list(walk)?;
            }
            let slot = walk.slot;
            let life = self.lives[slot as usize];
            if life.pins > 0 {
                self.leave_out(walk);
                continue;
            }
            let end = life.next == self.heads[walk.row][walk.class];
            walk.slot = if end { NONE } else { life.next };
            return Some(Slot(slot));
        }
    }

    /// Leaves the pinned ones that follow each other from where a walk stands out of their list.
    fn leave_out(&mut self, walk: &mut Walk) {
        let (first, head) = (walk.slot, self.heads[walk.row][walk.class]);
        let before = self.lives[first as usize].prev;
        let mut at = first;
        walk.slot = loop {
            let life = &mut self.lives[at as usize];
            if life.pins == 0 {
                break at;
            }
            life.listed = false;
            at = life.next;
            if at == head {
                break NONE;
            }
        };
        if first == head {
            self.heads[walk.row][walk.class] = walk.slot;
            if walk.slot == NONE {
                if walk.row != OLD {
                    self.rows[walk.class] &= !(1 << walk.row);
                }
                return;
            }
        }
        self.lives[before as usize].next = at;
        self.lives[at as usize].prev = before;
    }

    fn next_list(&mut self, walk: &mut Walk) -> Option<()> {
        while walk.rows == 0 {
            let mut word = walk.rank / 64;
            let mut bits = self.filled.get(word)? & (u64::MAX << (walk.rank % 64));
            while bits == 0 {
                word += 1;
                bits = *self.filled.get(word)?;
            }
            let rank = word * 64 + bits.trailing_zeros() as usize;
            walk.rank = rank + 1;
            let cell = usize::from(self.order[rank]);
            let bucket = cell % BUCKETS;
            walk.class = cell / BUCKETS;
            walk.rows = self.cell_rows(walk.class, bucket);
            if bucket == BUCKETS - 1 && self.heads[OLD][walk.class] != NONE {
                (walk.row, walk.slot) = (OLD, self.heads[OLD][walk.class]);
                return Some(());
            }
            if walk.rows == 0 {
                self.filled[rank / 64] &= !(1 << (rank % 64));
            }
        }
        walk.row = (walk.rows.trailing_zeros() as usize + Self::row(self.now.wrapping_add(1))) % OLD;
        walk.rows &= walk.rows - 1;
        walk.slot = self.heads[walk.row][walk.class];
        Some(())
    }

    pub(super) fn memory(&self) -> usize {
        self.lives.capacity() * size_of::<Life>() + self.heads.capacity() * size_of::<[u32; CLASSES]>()
    }
}
