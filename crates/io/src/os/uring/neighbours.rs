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
#[derive(Clone, Copy, Debug)]
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

    /// The row that it is with the next operation, if that can be part of it.
    pub(super) fn with(self, next: Neighbour) -> Option<Self> {
        let gap = usize::try_from(next.offset.checked_sub(self.end)?).ok()?;
        let shortest = self.shortest.min(next.len);
        let may = match gap {
            0 => true,
            // As long as a page, so that what follows lies as a direct read demands it.
            BIN => self.read && shortest >= WORTH * BIN,
            _ => false,
        };
        let same_gap = self.gap.is_none_or(|wanted| gap == wanted);
        let whole_blocks = !self.direct || self.end.is_multiple_of(BIN as u64);
        let len = self.len + gap + next.len;
        let small = len <= PIECE && self.operations < MOST;
        (may && same_gap && whole_blocks && small && next.len > 0).then_some(Self {
            end: next.offset + next.len as u64,
            len,
            operations: self.operations + 1,
            gap: Some(gap),
            shortest,
            ..self
        })
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

    fn takes(row: Row, next: Neighbour) -> bool {
        row.with(next).is_some()
    }

    #[test]
    fn what_follows_directly_goes_along_up_to_a_piece() {
        for read in [false, true] {
            let mut row = Row::new(0, 64 * KIB, read, true);
            let mut end = 64 * KIB;
            while let Some(longer) = row.with(at(end, 68 * KIB)) {
                row = longer;
                end += 68 * KIB;
            }
            assert_eq!((row.len(), row.gap()), (64 * KIB + 14 * 68 * KIB, 0));
            assert!(takes(row, at(end, PIECE - row.len())) && !takes(row, at(end, PIECE - row.len() + 1)));
            assert!(!takes(row, at(end + 4 * KIB, 4 * KIB)) && !takes(row, at(end - 4 * KIB, 4 * KIB)));
            assert!(!takes(row, at(end, 0)));
        }
    }

    #[test]
    fn reads_of_some_length_go_over_gaps_of_a_page() {
        let next = at(68 * KIB, 64 * KIB);
        assert!(!takes(Row::new(0, 64 * KIB, false, true), next), "a write has nothing to put there");
        assert!(!takes(Row::new(56 << 10, 8 * KIB, true, true), next), "too much of it would be in vain");
        assert!(!takes(Row::new(0, 60 * KIB, true, true), next), "two pages");
        let row = Row::new(0, 64 * KIB, true, true);
        let row = row.with(next).expect("they are long enough");
        assert_eq!((row.len(), row.gap()), (132 * KIB, 4 * KIB));
        assert!(!takes(row, at(132 * KIB, 64 * KIB)), "one gap is as long as the other");
        assert!(takes(row, at(136 * KIB, 64 * KIB)));
    }

    #[test]
    fn a_direct_transfer_ends_a_row_in_the_middle_of_a_block() {
        assert!(!takes(Row::new(0, 100, false, true), at(100, 100)));
        assert!(takes(Row::new(0, 100, false, false), at(100, 100)));
    }

    #[test]
    fn a_row_has_so_many_operations_at_most() {
        let mut row = Row::new(0, 1, false, false);
        for i in 1..MOST {
            row = row.with(at(i, 1)).expect("they follow each other");
        }
        assert!(!takes(row, at(MOST, 1)));
    }
}
