//! The window arithmetic against what it says, word for word.

use std::num::NonZeroUsize;

use kvstrata_core::KeyMask;
use kvstrata_policy::{Row, fold, unfold, whole_columns};
use proptest::prelude::*;

type Cells = (Vec<bool>, Option<usize>);

/// "Servable iff the last `min(window, L)` chunks are present."
fn servable((present, window): &Cells, len: usize) -> bool {
    let last = window.unwrap_or(len).min(len);
    (len - last..len).all(|i| present[i])
}

fn naive_fold(cells: &[Cells], chunks: usize) -> usize {
    (0..=chunks).rev().find(|len| cells.iter().all(|row| servable(row, *len))).unwrap()
}

/// Rows of one length, mostly present, so that hits of every length occur. Chunks past one word of a mask too.
fn cells() -> impl Strategy<Value = (usize, Vec<Cells>)> {
    let window = prop::option::of(1usize..9);
    (0usize..100, 0.5f64..1.0).prop_flat_map(move |(chunks, filled)| {
        let row = (prop::collection::vec(prop::bool::weighted(filled), chunks), window.clone());
        (Just(chunks), prop::collection::vec(row, 1..6))
    })
}

fn with_rows<R>(cells: &[Cells], f: impl FnOnce(&[Row<'_>]) -> R) -> R {
    let masks: Vec<KeyMask> = cells.iter().map(|(present, _)| present.iter().copied().collect()).collect();
    let row = |(present, (_, w)): (_, &Cells)| Row { present, window: w.and_then(NonZeroUsize::new) };
    f(&masks.iter().zip(cells).map(row).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn fold_finds_the_longest_that_every_row_serves((chunks, cells) in cells()) {
        prop_assert_eq!(with_rows(&cells, fold), naive_fold(&cells, chunks));
    }

    #[test]
    fn unfold_keeps_what_the_hit_needs_and_no_more((chunks, cells) in cells()) {
        let hit = with_rows(&cells, fold);
        let kept: Vec<Cells> = cells.iter().map(|(present, window)| {
            let mask = unfold(hit, window.and_then(NonZeroUsize::new), chunks);
            let from = window.map_or(0, |w| hit.saturating_sub(w));
            assert_eq!(mask.iter().collect::<Vec<_>>(), (from..hit).collect::<Vec<_>>());
            assert!(mask.iter().all(|i| present[i]), "a hit needs only what is present");
            ((0..chunks).map(|i| mask.get(i)).collect(), *window)
        }).collect();
        prop_assert_eq!(with_rows(&kept, fold), hit, "what is kept serves the same prefix");
    }

    #[test]
    fn more_chunks_never_make_a_shorter_hit((chunks, mut cells) in cells(), row: prop::sample::Index, at: prop::sample::Index) {
        let before = with_rows(&cells, fold);
        let row = row.index(cells.len());
        if chunks > 0 {
            cells[row].0[at.index(chunks)] = true;
        }
        prop_assert!(with_rows(&cells, fold) >= before);
    }

    #[test]
    fn full_attention_alone_is_the_longest_common_prefix((_, mut cells) in cells()) {
        cells.iter_mut().for_each(|(_, window)| *window = None);
        prop_assert_eq!(with_rows(&cells, fold), with_rows(&cells, whole_columns).prefix());
    }

    #[test]
    fn whole_columns_are_those_that_every_row_has((chunks, cells) in cells()) {
        let whole = with_rows(&cells, whole_columns);
        prop_assert_eq!(whole.len(), chunks);
        for i in 0..chunks {
            prop_assert_eq!(whole.get(i), cells.iter().all(|(present, _)| present[i]));
        }
    }
}

#[test]
fn without_rows_there_is_nothing() {
    assert_eq!((fold(&[]), whole_columns(&[]).len()), (0, 0));
}

#[test]
#[should_panic(expected = "rows of different lengths")]
fn rows_have_one_length() {
    let (a, b) = (KeyMask::all(3), KeyMask::all(4));
    fold(&[Row { present: &a, window: None }, Row { present: &b, window: None }]);
}
