//! How much of a prefix is usable when its chunks are kept in pieces.
//!
//! With several object groups (layers that share one attention window) and several ranks, one chunk of tokens is several
//! objects: a *row* per group and rank, a *column* per chunk. A prefix of `L` chunks is usable if every row can serve it.
//! Full attention needs all `L`; a sliding window of `w` chunks needs the last `w` of them, whatever is before. So a
//! longer prefix may be usable where a shorter one is not, and the rows cannot be looked at one by one.
//!
//! ```
//! use kvstrata_core::KeyMask;
//! use kvstrata_policy::{fold, unfold, whole_columns, Row};
//! use std::num::NonZeroUsize;
//!
//! let full: KeyMask = [true, true, true, true, false].into_iter().collect();
//! let sliding: KeyMask = [false, false, true, true, true].into_iter().collect();
//! let window = NonZeroUsize::new(2);
//! let rows = [Row { present: &full, window: None }, Row { present: &sliding, window }];
//! let hit = fold(&rows);
//! assert_eq!(hit, 4);
//! assert_eq!(unfold(hit, None, 5), KeyMask::first(4, 5));
//! assert_eq!(unfold(hit, window, 5).iter().collect::<Vec<_>>(), [2, 3], "all that is to be loaded of this row");
//! assert_eq!(whole_columns(&rows).iter().collect::<Vec<_>>(), [2, 3]);
//! ```

use std::num::NonZeroUsize;

use kvstrata_core::KeyMask;

/// One object group of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Which of its chunks are somewhere.
    pub present: &'a KeyMask,
    /// How many chunks at the end of a prefix its layers attend to; `None` for full attention.
    pub window: Option<NonZeroUsize>,
}

/// How many chunks of a prefix of `hit` a row with this window needs.
fn needed(hit: usize, window: Option<NonZeroUsize>) -> usize {
    window.map_or(hit, |w| hit.min(w.get()))
}

/// The "prefix" answer: the longest prefix, in chunks, that every row can serve; 0 without rows. Takes one step per cell
/// at most.
///
/// # Panics
/// If the rows have different lengths.
pub fn fold(rows: &[Row<'_>]) -> usize {
    let chunks = rows.first().map_or(0, |row| row.present.len());
    assert!(rows.iter().all(|row| row.present.len() == chunks), "rows of different lengths");
    // Per row, how many chunks in sequence are present up to here.
    let mut runs = vec![0; rows.len()];
    let mut hit = 0;
    for chunk in 0..chunks {
        let mut servable = true;
        for (row, run) in rows.iter().zip(&mut runs) {
            *run = if row.present.get(chunk) { *run + 1 } else { 0 };
            servable &= *run >= needed(chunk + 1, row.window);
            if row.window.is_none() && *run == 0 {
                return hit;
            }
        }
        if servable {
            hit = chunk + 1;
        }
    }
    hit
}

/// The chunks that a row with this window needs for a prefix of `hit`, of `chunks` in all: what is kept or loaded of it.
/// The rest of the row is of no use to this request.
///
/// # Panics
/// If `hit` is more than `chunks`.
pub fn unfold(hit: usize, window: Option<NonZeroUsize>, chunks: usize) -> KeyMask {
    let mut row = KeyMask::first(hit, chunks);
    row.subtract(&KeyMask::first(hit - needed(hit, window), chunks));
    row
}

/// The "full" answer: the columns that every row has, gaps and windows regardless; nothing without rows.
///
/// # Panics
/// If the rows have different lengths.
pub fn whole_columns(rows: &[Row<'_>]) -> KeyMask {
    let Some((first, rest)) = rows.split_first() else { return KeyMask::default() };
    let mut whole = first.present.clone();
    rest.iter().for_each(|row| whole.intersect(row.present));
    whole
}
