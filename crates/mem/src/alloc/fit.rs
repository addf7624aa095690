//! Where free memory lies: an exact best fit over several spans of units.
//!
//! A hole shorter than 1 GiB stands in a list of holes of exactly its length; a three-level bitmap over those lengths
//! finds the shortest one that fits in a handful of instructions, however many shorter holes there are. The few longer
//! holes (a terabyte has room for a thousand) stand in a sorted array. So the answer is always the shortest hole that is long enough: nothing is rounded up
//! to a size class, an exact hole is always used, and a request fails only if no hole can hold it. (Allocators with
//! rounded classes, TLSF and its relatives, refuse a request whose only hole shares the request's class.)
//!
//! Each unit has a four-byte boundary tag outside the memory itself: the first and the last unit of a hole name it, so
//! that a piece given back finds its neighbours at once. Tags are 0.1 % of the memory they describe, and are themselves
//! untouched until a hole begins or ends there.
//!
//! The same calls in the same order always give the same answers.

/// Holes from this many units on stand in the sorted array: 64 lengths to a word, and two levels of 64 words.
const LARGE: u32 = 64 * 64 * 64;

/// "No hole": index 0 of the hole table is never used.
const NONE: u32 = 0;

/// A piece of a span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    /// Which span.
    pub(super) span: u32,
    /// Its first unit.
    pub(super) start: u32,
}

#[derive(Clone, Copy, Default, Debug)]
struct Hole {
    span: u32,
    start: u32,
    units: u32,
    /// Neighbours in the list of this length, or the next unused table entry.
    prev: u32,
    next: u32,
}

impl Hole {
    fn end(&self) -> u32 {
        self.start + self.units
    }
}

#[derive(Default)]
struct Span {
    /// The address of the first unit, in units: what alignment is reckoned from.
    origin: u64,
    /// For each unit, the hole that begins or ends there. Empty: the span is gone.
    tags: Vec<u32>,
}

/// Free units of all spans.
pub(super) struct Fit {
    spans: Vec<Span>,
    gone: Vec<u32>,
    holes: Vec<Hole>,
    unused: u32,
    count: usize,
    heads: Vec<u32>,
    lengths: Lengths,
    /// Length and index of each long hole, in ascending order.
    large: Vec<(u32, u32)>,
}

impl Fit {
    pub(super) fn new() -> Self {
        Self {
            spans: Vec::new(),
            gone: Vec::new(),
            holes: vec![Hole::default()],
            unused: NONE,
            count: 0,
            heads: vec![NONE; LARGE as usize],
            lengths: Lengths::new(),
            large: Vec::new(),
        }
    }

    /// A new span, free from end to end. `origin` is the address of its first unit, in units.
    pub(super) fn add(&mut self, units: u32, origin: u64) -> u32 {
        let span = Span { origin, tags: vec![NONE; units as usize] };
        let index = match self.gone.pop() {
            Some(index) => {
                self.spans[index as usize] = span;
                index
            }
            None => {
                self.spans.push(span);
                self.spans.len() as u32 - 1
            }
        };
        self.insert(index, 0, units);
        index
    }

    /// Removes a span if all of it is free.
    pub(super) fn remove(&mut self, span: u32) -> bool {
        let tags = &self.spans[span as usize].tags;
        let hole = tags[0];
        if hole == NONE || self.holes[hole as usize].units as usize != tags.len() {
            return false;
        }
        self.unlink(hole);
        self.retire(hole);
        self.spans[span as usize] = Span::default();
        self.gone.push(span);
        true
    }

    /// The units of the longest span.
    pub(super) fn longest_span(&self) -> usize {
        self.spans.iter().map(|s| s.tags.len()).max().unwrap_or(0)
    }

    /// Whether a span could hold such a piece if it were empty.
    pub(super) fn could_ever(&self, units: u32, align: u32) -> bool {
        let fits = |s: &Span| aligned(s.origin, 0, align) + u64::from(units) <= s.tags.len() as u64;
        self.spans.iter().any(fits)
    }

    /// How many holes there are.
    pub(super) fn holes(&self) -> usize {
        self.count
    }

    /// The units of the longest hole.
    pub(super) fn longest_hole(&self) -> u32 {
        self.large.last().map_or_else(|| self.lengths.last(), |(units, _)| *units)
    }

    /// Takes `units` units whose address is a multiple of `align` units (a power of two) out of the shortest hole that
    /// can hold them.
    pub(super) fn take(&mut self, units: u32, align: u32) -> Option<Piece> {
        let (index, start) = if align == 1 {
            let index = self.shortest(units)?;
            (index, self.holes[index as usize].start)
        } else {
            self.shortest_aligned(units, align)?
        };
        let hole = self.holes[index as usize];
        self.unlink(index);
        let rest = hole.end() - (start + units);
        if start > hole.start {
            self.link(index, Hole { units: start - hole.start, ..hole });
            if rest > 0 {
                self.insert(hole.span, start + units, rest);
            }
        } else if rest > 0 {
            self.link(index, Hole { start: start + units, units: rest, ..hole });
        } else {
            self.retire(index);
        }
        Some(Piece { span: hole.span, start })
    }

    /// Takes a piece back and joins it with the holes beside it.
    pub(super) fn give(&mut self, piece: Piece, units: u32) {
        let Piece { span, mut start } = piece;
        let tags = &self.spans[span as usize].tags;
        let end = start + units;
        debug_assert!(tags[start as usize..end as usize].iter().all(|t| *t == NONE), "freed twice");
        let before = if start == 0 { NONE } else { tags[start as usize - 1] };
        let after = tags.get(end as usize).copied().unwrap_or(NONE);
        let mut total = units;
        if before != NONE {
            self.unlink(before);
            let hole = &self.holes[before as usize];
            start = hole.start;
            total += hole.units;
        }
        if after != NONE {
            self.unlink(after);
            total += self.holes[after as usize].units;
        }
        let index = match (before, after) {
            (NONE, NONE) => return self.insert(span, start, total),
            (NONE, after) => after,
            (before, NONE) => before,
            (before, after) => {
                self.retire(after);
                before
            }
        };
        self.link(index, Hole { span, start, units: total, ..Hole::default() });
    }

    fn shortest(&self, units: u32) -> Option<u32> {
        if let Some(length) = self.lengths.at_least(units) {
            return Some(self.heads[length as usize]);
        }
        self.large_from(units).first().map(|(_, index)| *index)
    }

    /// Like [`Self::shortest`], but a hole that is long enough may still lie badly: looks at one after another, until a
    /// hole of `units + align - 1` ends the search at the latest.
    fn shortest_aligned(&self, units: u32, align: u32) -> Option<(u32, u32)> {
        let place = |index: u32| {
            let hole = &self.holes[index as usize];
            let start = aligned(self.spans[hole.span as usize].origin, hole.start, align);
            (start + u64::from(units) <= u64::from(hole.end())).then_some((index, start as u32))
        };
        let mut least = units;
        while let Some(length) = self.lengths.at_least(least) {
            let mut index = self.heads[length as usize];
            while index != NONE {
                if let Some(found) = place(index) {
                    return Some(found);
                }
                index = self.holes[index as usize].next;
            }
            least = length + 1;
        }
        self.large_from(units).iter().find_map(|(_, index)| place(*index))
    }

    fn large_from(&self, units: u32) -> &[(u32, u32)] {
        &self.large[self.large.partition_point(|hole| hole.0 < units)..]
    }

    fn insert(&mut self, span: u32, start: u32, units: u32) {
        let index = if self.unused == NONE {
            self.holes.push(Hole::default());
            self.holes.len() as u32 - 1
        } else {
            let index = self.unused;
            self.unused = self.holes[index as usize].next;
            index
        };
        self.count += 1;
        self.link(index, Hole { span, start, units, ..Hole::default() });
    }

    /// Returns an unlinked table entry.
    fn retire(&mut self, index: u32) {
        self.holes[index as usize].next = self.unused;
        self.unused = index;
        self.count -= 1;
    }

    /// Enters a hole under its length and marks its ends.
    fn link(&mut self, index: u32, hole: Hole) {
        let tags = &mut self.spans[hole.span as usize].tags;
        tags[hole.start as usize] = index;
        tags[hole.end() as usize - 1] = index;
        let mut next = NONE;
        if hole.units < LARGE {
            let head = &mut self.heads[hole.units as usize];
            next = std::mem::replace(head, index);
            if next == NONE {
                self.lengths.set(hole.units);
            } else {
                self.holes[next as usize].prev = index;
            }
        } else {
            let at = self.large.partition_point(|entry| *entry < (hole.units, index));
            self.large.insert(at, (hole.units, index));
        }
        self.holes[index as usize] = Hole { prev: NONE, next, ..hole };
    }

    /// The reverse of [`Self::link`]; the entry keeps its place and length.
    fn unlink(&mut self, index: u32) {
        let hole = self.holes[index as usize];
        let tags = &mut self.spans[hole.span as usize].tags;
        tags[hole.start as usize] = NONE;
        tags[hole.end() as usize - 1] = NONE;
        if hole.units >= LARGE {
            let at = self.large.partition_point(|entry| *entry < (hole.units, index));
            self.large.remove(at);
            return;
        }
        if hole.next != NONE {
            self.holes[hole.next as usize].prev = hole.prev;
        }
        if hole.prev != NONE {
            self.holes[hole.prev as usize].next = hole.next;
        } else {
            self.heads[hole.units as usize] = hole.next;
            if hole.next == NONE {
                self.lengths.clear(hole.units);
            }
        }
    }
}

/// The first unit from `start` on whose address is a multiple of `align` units.
fn aligned(origin: u64, start: u32, align: u32) -> u64 {
    (origin + u64::from(start)).next_multiple_of(u64::from(align)) - origin
}

/// The set of lengths below [`LARGE`] that some hole has.
struct Lengths {
    bits: Vec<u64>,
    /// Which words of `bits` are not zero.
    words: [u64; 64],
    /// Which of `words` are not zero.
    groups: u64,
}

impl Lengths {
    fn new() -> Self {
        Self { bits: vec![0; 64 * 64], words: [0; 64], groups: 0 }
    }

    fn set(&mut self, length: u32) {
        let (group, word) = (length as usize / 64 / 64, length as usize / 64);
        self.bits[word] |= 1 << (length % 64);
        self.words[group] |= 1 << (word % 64);
        self.groups |= 1 << group;
    }

    fn clear(&mut self, length: u32) {
        let (group, word) = (length as usize / 64 / 64, length as usize / 64);
        self.bits[word] &= !(1 << (length % 64));
        if self.bits[word] == 0 {
            self.words[group] &= !(1 << (word % 64));
        }
        if self.words[group] == 0 {
            self.groups &= !(1 << group);
        }
    }

    /// The least length in the set that is not below `length`.
    fn at_least(&self, length: u32) -> Option<u32> {
        if length >= LARGE {
            return None;
        }
        let (group, word) = (length as usize / 64 / 64, length as usize / 64);
        let here = from(self.bits[word], length as usize % 64);
        if here != 0 {
            return Some(word as u32 * 64 + here.trailing_zeros());
        }
        let here = from(self.words[group], word % 64 + 1);
        let word = if here != 0 {
            group * 64 + here.trailing_zeros() as usize
        } else {
            let groups = from(self.groups, group + 1);
            if groups == 0 {
                return None;
            }
            let group = groups.trailing_zeros() as usize;
            group * 64 + self.words[group].trailing_zeros() as usize
        };
        Some(word as u32 * 64 + self.bits[word].trailing_zeros())
    }

    /// The greatest length in the set, or 0.
    fn last(&self) -> u32 {
        let Some(group) = self.groups.checked_ilog2() else { return 0 };
        let word = group * 64 + self.words[group as usize].ilog2();
        word * 64 + self.bits[word as usize].ilog2()
    }
}

/// The bits from `first` (at most 64) on.
fn from(bits: u64, first: usize) -> u64 {
    if first < 64 { bits & (u64::MAX << first) } else { 0 }
}

// All of this is safe code, and too much of it for Miri.
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One flag per unit: the slowest allocator that cannot be wrong.
    struct Model {
        spans: Vec<(u64, Vec<bool>)>,
    }

    impl Model {
        /// Maximal free runs as (span, start, units).
        fn runs(&self) -> Vec<(u32, u32, u32)> {
            let mut runs = Vec::new();
            for (span, (_, taken)) in self.spans.iter().enumerate() {
                let mut start = 0;
                for group in taken.chunk_by(|a, b| a == b) {
                    if !group[0] {
                        runs.push((span as u32, start, group.len() as u32));
                    }
                    start += group.len() as u32;
                }
            }
            runs
        }

        /// The length of the shortest run that can hold the piece.
        fn shortest(&self, units: u32, align: u32) -> Option<u32> {
            let fits = |&(span, start, n): &(u32, u32, u32)| {
                let origin = self.spans[span as usize].0;
                aligned(origin, start, align) + u64::from(units) <= u64::from(start + n)
            };
            self.runs().into_iter().filter(fits).map(|r| r.2).min()
        }

        fn flip(&mut self, piece: Piece, units: u32, taken: bool) {
            let range = piece.start as usize..(piece.start + units) as usize;
            for flag in &mut self.spans[piece.span as usize].1[range] {
                assert_ne!(*flag, taken, "a unit belongs to one owner at a time");
                *flag = taken;
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take { units: u32, align: u32 },
        Give(prop::sample::Index),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (1u32..40, Just(1)).prop_map(|(units, align)| Op::Take { units, align }),
            1 => (1u32..40, 1u32..6).prop_map(|(units, log)| Op::Take { units, align: 1 << log }),
            3 => any::<prop::sample::Index>().prop_map(Op::Give),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..Default::default() })]

        #[test]
        #[cfg_attr(miri, ignore = "safe code, and too slow here")]
        fn agrees_with_one_flag_per_unit(
            spans in prop::collection::vec((1u32..300, 0u64..64), 1..4),
            ops in prop::collection::vec(op(), 1..250),
        ) {
            let mut fit = Fit::new();
            let mut model = Model { spans: Vec::new() };
            for &(units, origin) in &spans {
                fit.add(units, origin);
                model.spans.push((origin, vec![false; units as usize]));
            }
            let mut live = Vec::new();
            for op in ops {
                match op {
                    Op::Take { units, align } => {
                        let want = model.shortest(units, align);
                        let got = fit.take(units, align);
                        prop_assert_eq!(got.is_some(), want.is_some(), "refuses only what fits nowhere");
                        if let Some(piece) = got {
                            let origin = model.spans[piece.span as usize].0;
                            prop_assert_eq!((origin + u64::from(piece.start)) % u64::from(align), 0);
                            let inside = |&&(span, start, n): &&(u32, u32, u32)| {
                                span == piece.span && (start..start + n).contains(&piece.start)
                            };
                            let runs = model.runs();
                            prop_assert_eq!(runs.iter().find(inside).map(|r| r.2), want, "the shortest hole");
                            model.flip(piece, units, true);
                            live.push((piece, units));
                        }
                    }
                    Op::Give(index) if !live.is_empty() => {
                        let (piece, units) = live.swap_remove(index.index(live.len()));
                        model.flip(piece, units, false);
                        fit.give(piece, units);
                    }
                    Op::Give(_) => {}
                }
                let runs = model.runs();
                prop_assert_eq!(fit.holes(), runs.len(), "neighbouring holes are one hole");
                prop_assert_eq!(fit.longest_hole(), runs.iter().map(|r| r.2).max().unwrap_or(0));
            }
            for (piece, units) in live {
                fit.give(piece, units);
            }
            prop_assert_eq!(fit.holes(), spans.len());
            for span in 0..spans.len() as u32 {
                prop_assert!(fit.remove(span), "all of it is one hole again");
            }
            prop_assert_eq!((fit.holes(), fit.longest_hole()), (0, 0));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "safe code, and too slow here")]
    fn equal_pieces_fill_a_span_to_the_last_one() {
        for units in [1, 2, 3, 7, 63, 64, 65, 1000, LARGE - 1, LARGE, LARGE + 1] {
            let mut fit = Fit::new();
            fit.add(units * 9, 5);
            let pieces: Vec<Piece> = (0..9).map(|_| fit.take(units, 1).expect("room for all")).collect();
            assert_eq!((fit.take(1, 1), fit.holes()), (None, 0), "{units} units");
            // Every second one goes and comes back: the holes fit exactly.
            pieces.iter().step_by(2).for_each(|p| fit.give(*p, units));
            pieces.iter().step_by(2).for_each(|_| assert!(fit.take(units, 1).is_some()));
            assert_eq!(fit.holes(), 0);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "safe code, and too slow here")]
    fn the_one_exact_hole_is_found_among_many_that_are_a_unit_short() {
        let mut fit = Fit::new();
        let n = 2000;
        fit.add(n * 1001 + 1001, 0);
        let pieces: Vec<_> =
            (0..n).map(|_| (fit.take(1000, 1).expect("a hole"), fit.take(1, 1).expect("a wall"))).collect();
        let exact = fit.take(1001, 1).expect("the rest");
        assert_eq!(fit.holes(), 0);
        pieces.iter().for_each(|(hole, _)| fit.give(*hole, 1000));
        assert_eq!(fit.take(1001, 1), None);
        fit.give(exact, 1001);
        assert_eq!(fit.take(1001, 1).map(|p| p.span), Some(0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "safe code, and too slow here")]
    fn lengths_are_found_across_words_and_groups() {
        let all = [1, 63, 64, 65, 4095, 4096, 4097, 70_000, LARGE - 1];
        let mut lengths = Lengths::new();
        all.iter().for_each(|n| lengths.set(*n));
        for (i, n) in all.iter().enumerate() {
            assert_eq!(lengths.at_least(if i == 0 { 0 } else { all[i - 1] + 1 }), Some(*n));
            assert_eq!(lengths.at_least(*n), Some(*n));
        }
        for (i, n) in all.iter().enumerate().rev() {
            assert_eq!(lengths.last(), *n);
            lengths.clear(*n);
            assert_eq!((lengths.at_least(*n), lengths.at_least(0).is_none()), (None, i == 0));
        }
        assert_eq!((lengths.last(), lengths.at_least(LARGE)), (0, None));
    }

    #[test]
    #[cfg_attr(miri, ignore = "safe code, and too slow here")]
    fn a_removed_span_leaves_its_place_to_the_next_one() {
        let mut fit = Fit::new();
        let first = fit.add(10, 0);
        let second = fit.add(20, 0);
        let piece = fit.take(10, 1).expect("room");
        assert_eq!(piece.span, first, "the shortest hole");
        assert!(!fit.remove(first), "in use");
        fit.give(piece, 10);
        assert!(fit.remove(first));
        assert_eq!((fit.add(30, 0), fit.longest_span()), (first, 30));
        assert!(fit.remove(second));
        assert!(fit.could_ever(30, 1) && !fit.could_ever(31, 1));
        assert!(fit.could_ever(14, 32), "from unit 0 on");
    }
}
