//! Small operations that follow each other in a file, asked of the kernel as one transfer from or to several places: what a
//! transfer costs the processor, it costs once for all of them.

use super::pieces::PIECE;
use super::sys::BIN;

/// The most operations of a row: their places, and as many gaps, are a list that the kernel takes without setting aside memory
/// of several pages for it.
const MOST: usize = 64;

/// Reads go over a gap of [`BIN`] bytes (the header of an object, which lies before each payload) if they are so many times as
/// long.
const WORTH: usize = 4;

/// A whole operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// Operations on one file in the same direction, none of them overlapping another.
#[derive(Debug)]
pub(super) struct Row {
    /// Where the last one ends.
    end: u64,
    /// Bytes of all of them, gaps included.
    len: usize,
    operations: usize,
    /// Between any two of them, once there are two.
    gap: Option<usize>,
    /// The shortest one.
    shortest: usize,
    read: bool,
    direct: bool,
}

impl Row {
    /// A row that starts with `len` bytes at `offset`.
    pub(super) fn new(offset: u64, len: usize, read: bool, direct: bool) -> Self {
        Self { end: offset + len as u64, len, operations: 1, gap: None, shortest: len, read, direct }
    }

    /// The gap before the next one, if it can be part of the row.
    fn fits(&self, next: Neighbour) -> Option<usize> {
        let gap = usize::try_from(next.offset.checked_sub(self.end)?).ok()?;
        let wanted = self.gap.unwrap_or(gap);
        let may = match gap {
            0 => true,
            // As long as a page, so that what follows lies as a direct read demands it.
            BIN => self.read && self.shortest.min(next.len) >= WORTH * BIN,
            _ => false,
        };
        let whole_blocks = !self.direct || self.end.is_multiple_of(BIN as u64);
        let small = self.len + gap + next.len <= PIECE && self.operations < MOST;
        (gap == wanted && may && whole_blocks && small && next.len > 0).then_some(gap)
    }

    /// Whether the next operation can be part of it.
    pub(super) fn takes(&self, next: Neighbour) -> bool {
        self.fits(next).is_some()
    }

    /// Adds one that it takes.
    pub(super) fn add(&mut self, next: Neighbour) {
        let gap = self.fits(next).expect("asked before");
        self.gap = Some(gap);
        self.end = next.offset + next.len as u64;
        self.len += gap + next.len;
        self.operations += 1;
        self.shortest = self.shortest.min(next.len);
    }

    /// Bytes of all of them, gaps included.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes between any two of them: 0 or [`BIN`].
    pub(super) fn gap(&self) -> usize {
        self.gap.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn at(offset: usize, len: usize) -> Neighbour {
        Neighbour { offset: offset as u64, len }
    }

    #[test]
    fn what_follows_directly_goes_along_up_to_a_piece() {
        for read in [false, true] {
            let mut row = Row::new(0, 64 * KIB, read, true);
            let mut end = 64 * KIB;
            while row.takes(at(end, 68 * KIB)) {
                row.add(at(end, 68 * KIB));
                end += 68 * KIB;
            }
            assert_eq!((row.len(), row.gap()), (64 * KIB + 14 * 68 * KIB, 0));
            assert!(row.takes(at(end, PIECE - row.len())) && !row.takes(at(end, PIECE - row.len() + 1)));
            assert!(!row.takes(at(end + 4 * KIB, 4 * KIB)) && !row.takes(at(end - 4 * KIB, 4 * KIB)));
            assert!(!row.takes(at(end, 0)));
        }
    }

    #[test]
    fn reads_of_some_length_go_over_gaps_of_a_page() {
        let next = at(68 * KIB, 64 * KIB);
        assert!(!Row::new(0, 64 * KIB, false, true).takes(next), "a write has nothing to put there");
        assert!(!Row::new(56 << 10, 8 * KIB, true, true).takes(next), "too much of it would be in vain");
        assert!(!Row::new(0, 60 * KIB, true, true).takes(next), "two pages");
        let mut row = Row::new(0, 64 * KIB, true, true);
        row.add(next);
        assert_eq!((row.len(), row.gap()), (132 * KIB, 4 * KIB));
        assert!(!row.takes(at(132 * KIB, 64 * KIB)), "one gap is as long as the other");
        assert!(row.takes(at(136 * KIB, 64 * KIB)));
    }

    #[test]
    fn a_direct_transfer_ends_a_row_in_the_middle_of_a_block() {
        assert!(!Row::new(0, 100, false, true).takes(at(100, 100)));
        assert!(Row::new(0, 100, false, false).takes(at(100, 100)));
    }

    #[test]
    fn a_row_has_so_many_operations_at_most() {
        let mut row = Row::new(0, 1, false, false);
        for i in 1..MOST {
            row.add(at(i, 1));
        }
        assert!(!row.takes(at(MOST, 1)));
    }
}
