//! One operation as several transfers: what is asked of the kernel next, and what its answers add up to.

use std::io::{Error, ErrorKind, Result};

use crate::whole::resume;

/// Operations are cut into pieces of this many bytes, so that a budget of a few megabytes fits operations of any size, and
/// a load waits behind no more of a store than one piece.
pub(super) const PIECE: usize = 1 << 20;

/// How often a piece is asked for again after `EAGAIN`: the kernel was short of something.
const PATIENCE: u32 = 64;

/// What is left of an operation.
#[derive(Debug)]
pub(super) struct Progress {
    len: usize,
    read: bool,
    direct: bool,
    /// The first byte that no piece was cut from yet.
    cut: usize,
    /// Pieces under way.
    pieces: u32,
    /// Where the file ended, for reads.
    end: Option<usize>,
    error: Option<Error>,
}

/// A part of an operation's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    start: usize,
    len: usize,
    done: usize,
    refused: u32,
}

/// What an answer of the kernel means for a piece.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// It is asked for again, from where it stands.
    Again(Piece),
    /// It is over.
    Over,
}

impl Piece {
    /// Where in the operation the next transfer of it starts, and how long that is.
    pub(super) fn range(&self, direct: bool) -> (usize, usize) {
        let at = resume(self.done, direct);
        (self.start + at, self.len - at)
    }
}

impl Progress {
    pub(super) fn new(len: usize, read: bool, direct: bool) -> Self {
        Self { len, read, direct, cut: 0, pieces: 0, end: None, error: None }
    }

    /// How long the next piece will be; 0 if there is none.
    pub(super) fn next_len(&self) -> usize {
        if self.error.is_some() || self.end.is_some() { 0 } else { (self.len - self.cut).min(PIECE) }
    }

    /// Cuts off the next piece, which there is.
    pub(super) fn cut(&mut self) -> Piece {
        let piece = Piece { start: self.cut, len: self.next_len(), done: 0, refused: 0 };
        self.cut += piece.len;
        self.pieces += 1;
        piece
    }

    /// The kernel moved so many bytes of a piece, or did not.
    pub(super) fn answered(&mut self, mut piece: Piece, moved: Result<usize>) -> Next {
        let at = resume(piece.done, self.direct);
        match moved {
            Ok(n) if at + n >= piece.len => {}
            Ok(n) if at + n > piece.done => {
                piece.done = at + n;
                return Next::Again(piece);
            }
            // Nothing new: the file ends there.
            Ok(_) if self.read => {
                let end = piece.start + piece.done;
                self.end = Some(self.end.map_or(end, |e| e.min(end)));
            }
            Ok(_) => {
                let why =
                    format!("the file took no more at byte {} of {}", piece.start + piece.done, self.len);
                self.error.get_or_insert(Error::new(ErrorKind::WriteZero, why));
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => return Next::Again(piece),
            Err(e) if e.kind() == ErrorKind::WouldBlock && piece.refused < PATIENCE => {
                piece.refused += 1;
                return Next::Again(piece);
            }
            Err(e) => {
                self.error.get_or_insert(e);
            }
        }
        self.pieces -= 1;
        Next::Over
    }

    /// The result, once nothing is under way and nothing left to ask for.
    pub(super) fn result(&mut self) -> Option<Result<usize>> {
        if self.pieces > 0 || self.next_len() > 0 {
            return None;
        }
        Some(match self.error.take() {
            Some(e) => Err(e),
            None => Ok(self.end.unwrap_or(self.len)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of so many bytes that answers pieces in any order, short now and then. The result, and which bytes were moved.
    fn carry_out(
        len: usize,
        file: usize,
        read: bool,
        direct: bool,
        mut random: u64,
    ) -> (Result<usize>, Vec<bool>) {
        let mut next = move |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % n.max(1)
        };
        let mut progress = Progress::new(len, read, direct);
        let mut moved = vec![false; len];
        let mut under_way = Vec::new();
        let result = loop {
            if let Some(result) = progress.result() {
                break result;
            }
            if progress.next_len() > 0 && next(2) == 0 {
                under_way.push(progress.cut());
            }
            if under_way.is_empty() {
                continue;
            }
            let piece = under_way.swap_remove(next(under_way.len()));
            let (at, n) = piece.range(direct);
            let answer = match next(6) {
                0 => Err(Error::from_raw_os_error(libc::EINTR)),
                1 => Err(Error::from_raw_os_error(libc::EAGAIN)),
                _ => {
                    let there = if read { file.saturating_sub(at).min(n) } else { n };
                    // Short before the end, but never of everything, nor in the first block of a direct transfer.
                    let least = if direct { 4096 } else { 1 };
                    let n = if there > least && next(2) == 0 { least + next(there - least) } else { there };
                    moved[at..at + n].fill(true);
                    Ok(n)
                }
            };
            if direct {
                assert_eq!(at % 4096, 0, "direct transfers go on at block boundaries");
            }
            if let Next::Again(piece) = progress.answered(piece, answer) {
                under_way.push(piece);
            }
        };
        assert!(under_way.is_empty());
        (result, moved)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whole_up_to_the_end_of_the_file(
            len in 0..5 * PIECE,
            file in 0..5 * PIECE,
            read: bool,
            seed: u64,
        ) {
            let (result, moved) = carry_out(len, file, read, false, seed);
            let there = if read { len.min(file) } else { len };
            prop_assert_eq!(result.unwrap(), there);
            prop_assert!(moved[..there].iter().all(|m| *m));
        }
    }

    #[test]
    fn direct_transfers_go_on_at_block_boundaries_only() {
        for seed in 0..50 {
            let (result, moved) = carry_out(3 * PIECE + 4096, usize::MAX, true, true, seed);
            // A short answer in the middle of a block is asked for again; that brings the whole block or more.
            assert_eq!(result.unwrap(), 3 * PIECE + 4096);
            assert!(moved.iter().all(|m| *m));
        }
    }

    #[test]
    fn the_first_error_counts_and_nothing_more_is_asked_for() {
        let mut progress = Progress::new(4 * PIECE, false, false);
        let (a, b) = (progress.cut(), progress.cut());
        assert_eq!(progress.answered(b, Err(Error::from_raw_os_error(libc::EIO))), Next::Over);
        assert!(progress.result().is_none(), "a piece is under way: its bytes are still the kernel's");
        assert_eq!(progress.next_len(), 0);
        assert_eq!(progress.answered(a, Ok(0)), Next::Over);
        assert_eq!(progress.result().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn a_file_that_takes_nothing_ends_the_write_and_a_kernel_that_always_refuses_everything() {
        let mut progress = Progress::new(10, false, false);
        let piece = progress.cut();
        assert_eq!(progress.answered(piece, Ok(0)), Next::Over);
        assert_eq!(progress.result().unwrap().unwrap_err().kind(), ErrorKind::WriteZero);

        let mut progress = Progress::new(10, true, false);
        let mut piece = progress.cut();
        let mut asked = 1;
        while let Next::Again(again) = progress.answered(piece, Err(Error::from_raw_os_error(libc::EAGAIN))) {
            (piece, asked) = (again, asked + 1);
        }
        assert_eq!(asked, PATIENCE + 1);
        assert_eq!(progress.result().unwrap().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn the_earliest_end_is_the_end() {
        let mut progress = Progress::new(3 * PIECE, true, false);
        let pieces = [progress.cut(), progress.cut(), progress.cut()];
        assert_eq!(progress.answered(pieces[2], Ok(PIECE)), Next::Over, "the file grew meanwhile");
        assert_eq!(progress.answered(pieces[1], Ok(0)), Next::Over);
        let Next::Again(rest) = progress.answered(pieces[0], Ok(100)) else { panic!("short") };
        assert_eq!(progress.answered(rest, Ok(0)), Next::Over);
        assert_eq!(progress.result().unwrap().unwrap(), 100);
    }
}
