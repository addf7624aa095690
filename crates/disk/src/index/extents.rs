//! Where in the segments there is room: an exact best fit over holes that are joined as soon as they touch, and the answer
//! to what has to go if there is room enough but nowhere in one piece. Places and lengths are in 4 KiB units.

use std::collections::{BTreeMap, BTreeSet};

/// An extent whose object is not found any more, and whose removal is not in the log yet: nothing may be written there.
pub(crate) const LEAVING: u32 = u32::MAX;
/// Holes that are looked at for the one that the least recently used objects lie beside.
const LOOKED_AT: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Taken {
    units: u32,
    /// Whose it is, or [`LEAVING`].
    slot: u32,
}

/// The segments that there are, what is taken of them, and what is free.
#[derive(Debug)]
pub(crate) struct Extents {
    /// Units of a whole segment.
    segment: u64,
    /// Units of each segment that is there.
    segments: Vec<u32>,
    taken: BTreeMap<u64, Taken>,
    /// By length, then by place.
    holes: BTreeSet<(u32, u64)>,
    free: u64,
}

impl Extents {
    pub(crate) fn new(segment: u64) -> Self {
        Self { segment, segments: Vec::new(), taken: BTreeMap::new(), holes: BTreeSet::new(), free: 0 }
    }

    /// The next segment is there: all of it is free but its first unit.
    pub(crate) fn grow(&mut self, units: u32) {
        let first = self.segments.len() as u64 * self.segment + 1;
        self.segments.push(units);
        self.add_hole(first, first + u64::from(units) - 1);
    }

    /// Segments that are there.
    pub(crate) fn segments(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Free units.
    pub(crate) fn free_units(&self) -> u64 {
        self.free
    }

    /// Of all that are there, without the first ones of the segments.
    #[cfg(test)]
    fn units(&self) -> u64 {
        self.segments.iter().map(|s| u64::from(*s) - 1).sum()
    }

    fn add_hole(&mut self, from: u64, to: u64) {
        if to > from {
            self.free += to - from;
            self.holes.insert(((to - from) as u32, from));
        }
    }

    fn remove_hole(&mut self, from: u64, to: u64) {
        if to > from {
            self.free -= to - from;
            let there = self.holes.remove(&((to - from) as u32, from));
            debug_assert!(there, "the gap between extents is a hole");
        }
    }

    /// The shortest hole that is long enough.
    pub(crate) fn take(&mut self, units: u32, slot: u32) -> Option<u64> {
        let &(len, at) = self.holes.range((units, 0)..).next()?;
        self.remove_hole(at, at + u64::from(len));
        self.add_hole(at + u64::from(units), at + u64::from(len));
        self.taken.insert(at, Taken { units, slot });
        Some(at)
    }

    /// The object is not found any more, and its place is not free yet.
    pub(crate) fn leave(&mut self, at: u64) {
        self.taken.get_mut(&at).expect("an extent that is taken").slot = LEAVING;
    }

    /// A place is free again, with the holes beside it.
    pub(crate) fn give(&mut self, at: u64) {
        let taken = self.taken.remove(&at).expect("an extent that is taken");
        let end = at + u64::from(taken.units);
        let (before, after) = (self.end_before(at), self.start_after(at));
        self.remove_hole(before, at);
        self.remove_hole(end, after);
        self.add_hole(before, after);
    }

    /// Where the extent before this place ends, or the segment begins.
    fn end_before(&self, at: u64) -> u64 {
        let least = at / self.segment * self.segment + 1;
        let before = self.taken.range(..at).next_back();
        before.map_or(least, |(start, t)| (start + u64::from(t.units)).max(least))
    }

    /// Where the next extent begins, or the segment ends.
    fn start_after(&self, at: u64) -> u64 {
        let segment = at / self.segment;
        let most = segment * self.segment + u64::from(self.segments[segment as usize]);
        self.taken.range(at + 1..).next().map_or(most, |(start, _)| (*start).min(most))
    }

    /// Which objects to move out of the way so that `units` are free in one piece: those beside a hole, in the
    /// neighbourhood where the one that was used last was used longest ago. `may` says when an object was used, or that it
    /// has to stay. Takes at most as much as is asked for, and what one object more takes.
    pub(crate) fn in_the_way(&self, units: u32, may: impl Fn(u32) -> Option<u64>) -> Option<Vec<u32>> {
        let mut best: Option<(u64, Vec<u32>)> = None;
        for (looked, (len, at)) in self.holes.iter().rev().enumerate() {
            if looked >= LOOKED_AT && best.is_some() {
                break;
            }
            if let Some(found) = self.widened(*at, *at + u64::from(*len), units, &may)
                && best.as_ref().is_none_or(|b| found.0 < b.0)
            {
                best = Some(found);
            }
        }
        best.map(|(_, slots)| slots)
    }

    /// Widens a hole over its neighbours, the one used longer ago first, until it is long enough.
    fn widened(
        &self,
        mut from: u64,
        mut to: u64,
        units: u32,
        may: &impl Fn(u32) -> Option<u64>,
    ) -> Option<(u64, Vec<u32>)> {
        let (mut newest, mut slots) = (0, Vec::new());
        let least = from / self.segment * self.segment + 1;
        let used = |slot: u32| if slot == LEAVING { None } else { may(slot) };
        while to - from < u64::from(units) {
            let left = self.taken.range(least..from).next_back();
            let left = left.and_then(|(start, t)| Some((used(t.slot)?, *start, t.slot)));
            let right =
                self.taken.get(&to).and_then(|t| Some((used(t.slot)?, to + u64::from(t.units), t.slot)));
            let (at, slot) = match (left, right) {
                (Some((a, start, slot)), Some((b, ..))) if a <= b => {
                    from = self.end_before(start);
                    (a, slot)
                }
                (Some((a, start, slot)), None) => {
                    from = self.end_before(start);
                    (a, slot)
                }
                (_, Some((b, end, slot))) => {
                    to = self.start_after(end - 1);
                    (b, slot)
                }
                (None, None) => return None,
            };
            newest = newest.max(at);
            slots.push(slot);
        }
        Some((newest, slots))
    }

    /// Takes over what a start found, in the order of places: each must lie in a segment that is there and end before the
    /// next one begins.
    pub(crate) fn fill(&mut self, found: Vec<(u64, u32, u32)>) {
        (self.free, self.holes) = (0, BTreeSet::new());
        let mut holes = Vec::new();
        let mut all = found.iter().peekable();
        for (number, units) in self.segments.iter().enumerate() {
            let start = number as u64 * self.segment;
            let end = start + u64::from(*units);
            let mut free_from = start + 1;
            while let Some((at, units, _)) = all.next_if(|(at, ..)| *at < end) {
                if *at > free_from {
                    holes.push(((*at - free_from) as u32, free_from));
                }
                free_from = at + u64::from(*units);
            }
            if end > free_from {
                holes.push(((end - free_from) as u32, free_from));
            }
        }
        debug_assert!(all.next().is_none(), "an extent outside every segment");
        self.free = holes.iter().map(|(len, _)| u64::from(*len)).sum();
        self.holes = holes.into_iter().collect();
        self.taken = found.into_iter().map(|(at, units, slot)| (at, Taken { units, slot })).collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: u64 = 256;

    fn three() -> Extents {
        let mut e = Extents::new(SEGMENT);
        [256, 256, 100].into_iter().for_each(|units| e.grow(units));
        e
    }

    /// What there must be, from one flag per unit.
    fn check(e: &Extents) {
        let mut holes = BTreeSet::new();
        for (number, units) in e.segments.iter().enumerate() {
            let start = number as u64 * SEGMENT;
            let mut flags = vec![false; *units as usize];
            flags[0] = true;
            for (at, t) in e.taken.range(start..start + SEGMENT) {
                for flag in &mut flags[(at - start) as usize..][..t.units as usize] {
                    assert!(!std::mem::replace(flag, true), "two extents in one place");
                }
            }
            let mut at = start;
            for run in flags.chunk_by(|a, b| a == b) {
                if !run[0] {
                    holes.insert((run.len() as u32, at));
                }
                at += run.len() as u64;
            }
        }
        assert_eq!(e.free, holes.iter().map(|h| u64::from(h.0)).sum::<u64>());
        assert_eq!(e.holes, holes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_one_flag_per_unit(ops in prop::collection::vec((1u32..60, any::<prop::sample::Index>(), 0u8..5), 1..200)) {
            let mut e = three();
            let mut held: Vec<(u64, u32)> = Vec::new();
            for (slot, (units, which, op)) in (0u32..).zip(ops) {
                if op < 3 {
                    let best = e.holes.iter().find(|h| h.0 >= units).copied();
                    let got = e.take(units, slot);
                    prop_assert_eq!(got, best.map(|b| b.1), "the shortest hole that is long enough");
                    held.extend(got.map(|at| (at, units)));
                } else if !held.is_empty() {
                    let (at, _) = held.swap_remove(which.index(held.len()));
                    e.leave(at);
                    e.give(at);
                }
                check(&e);
            }
            let mut again = three();
            let all = e.taken.iter().map(|(at, t)| (*at, t.units, t.slot)).collect::<Vec<_>>();
            again.fill(all);
            check(&again);
            prop_assert_eq!((&again.holes, again.free), (&e.holes, e.free));
        }

        #[test]
        fn what_is_in_the_way_makes_room(sizes in prop::collection::vec(1u32..40, 20..60), gaps in prop::collection::vec(any::<prop::sample::Index>(), 1..12), want in 1u32..90) {
            let mut e = three();
            let mut held: Vec<(u32, u64)> = (0u32..).zip(&sizes).filter_map(|(slot, n)| Some((slot, e.take(*n, slot)?))).collect();
            for gap in gaps {
                if held.len() > 1 {
                    e.give(held.swap_remove(gap.index(held.len())).1);
                }
            }
            // Every fifth has to stay.
            if let Some(slots) = e.in_the_way(want, |slot| (slot % 5 != 0).then_some(slot.into())) {
                prop_assert!(slots.iter().all(|s| s % 5 != 0));
                let freed: u32 = slots.iter().map(|s| sizes[*s as usize]).sum();
                prop_assert!(freed < want + 40, "no more than is needed and one more");
                for slot in slots {
                    e.give(held.iter().find(|h| h.0 == slot).expect("there").1);
                }
                check(&e);
                prop_assert!(e.take(want, 1000).is_some());
            }
        }
    }

    /// Mixed lengths, for long, with the oldest going first and what lies in the way then.
    #[test]
    fn churn_of_mixed_lengths_keeps_it_full() {
        let mut e = Extents::new(1 << 18);
        e.grow(1 << 18);
        let mut x = 1u64;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            x >> 33
        };
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        let mut fullest: Vec<f64> = Vec::new();
        for slot in 0..60_000u32 {
            let units = [3, 17, 65, 257, 1025, 2 + (next() % 700) as u32][(next() % 6) as usize];
            loop {
                if let Some(at) = e.take(units, slot) {
                    live.insert(slot, at);
                    break;
                }
                let go = if e.free_units() < units.into() {
                    vec![*live.keys().next().expect("something")]
                } else {
                    e.in_the_way(units, |slot| Some(slot.into())).expect("nothing is pinned")
                };
                go.iter().for_each(|slot| e.give(live.remove(slot).expect("there")));
            }
            // A use moves an object to the end of the order: it keeps its place and gets another number.
            if slot > 10_000 {
                fullest.push(1.0 - e.free_units() as f64 / e.units() as f64);
            }
        }
        let mean = fullest.iter().sum::<f64>() / fullest.len() as f64;
        let least = fullest.iter().copied().fold(1.0, f64::min);
        println!("full to {mean:.4} on average, {least:.4} at least");
        assert!(mean > 0.95 && least > 0.90, "{mean} {least}");
    }
}
