//! Small operations that follow each other in a file, asked of the kernel as one transfer from or to several places: what a
//! transfer costs the processor, it costs once for all of them.

use super::pieces::PIECE;

/// The most operations of a row: their places are a list that the kernel takes without setting aside memory of several pages
/// for it.
const MOST: usize = 128;

/// What a direct row may be cut at: a block of any device.
const BLOCK: u64 = 4096;

/// A whole operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour {
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// Operations on one file in the same direction, each beginning where the one before ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    end: u64,
    len: usize,
    operations: usize,
    direct: bool,
}

impl Row {
    /// A row that starts with this one.
    pub(super) fn new(first: Neighbour, direct: bool) -> Self {
        Self { end: first.offset + first.len as u64, len: first.len, operations: 1, direct }
    }

    /// The row that it is with the next operation, if that can be part of it.
    pub(super) fn with(self, next: Neighbour) -> Option<Self> {
        let follows = next.offset == self.end && next.len > 0;
        let whole_blocks = !self.direct || self.end.is_multiple_of(BLOCK);
        let (len, operations) = (self.len + next.len, self.operations + 1);
        let small = len <= PIECE && operations <= MOST;
        let end = next.offset + next.len as u64;
        (follows && whole_blocks && small).then_some(Self { end, len, operations, ..self })
    }

    /// Bytes of all of them.
    pub(super) fn len(&self) -> usize {
        self.len
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
        let mut row = Row::new(at(0, 64 * KIB), true);
        let mut end = 64 * KIB;
        while let Some(longer) = row.with(at(end, 68 * KIB)) {
            row = longer;
            end += 68 * KIB;
        }
        assert_eq!(row.len(), 64 * KIB + 14 * 68 * KIB);
        assert!(takes(row, at(end, PIECE - row.len())) && !takes(row, at(end, PIECE - row.len() + 1)));
        assert!(!takes(row, at(end + 4 * KIB, 4 * KIB)) && !takes(row, at(end - 4 * KIB, 4 * KIB)));
        assert!(!takes(row, at(end, 0)));
    }

    #[test]
    fn a_direct_transfer_ends_a_row_in_the_middle_of_a_block() {
        assert!(!takes(Row::new(at(0, 100), true), at(100, 100)));
        assert!(takes(Row::new(at(0, 100), false), at(100, 100)));
    }

    #[test]
    fn a_row_has_so_many_operations_at_most() {
        let mut row = Row::new(at(0, 1), false);
        for i in 1..MOST {
            row = row.with(at(i, 1)).expect("they follow each other");
        }
        assert!(!takes(row, at(MOST, 1)));
    }
}
