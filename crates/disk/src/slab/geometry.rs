//! What a store of a given size is made of. Everything follows from the capacity and the length of a segment, so that the
//! same settings give the same places at every start.

use kvstrata_core::{Error, Result};

/// What is allocated in: one block of direct I/O.
pub(crate) const UNIT: u64 = 4096;
/// The smallest store that this layout is made for; below it what describes the objects would take more than they do.
pub(crate) const LEAST: u64 = 128 << 10;
/// A log record with its longest scope fits in so many bytes.
const LEAST_LOG: u64 = UNIT;
/// No log is longer: a start has all of it in memory.
pub(super) const MOST_LOG: u64 = 1 << 30;
const SEGMENTS: std::ops::RangeInclusive<u64> = 1 << 30..=4 << 30;

/// The parts of a store, in bytes. All are multiples of 4096.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// The most that the directory may take.
    pub(crate) capacity: u64,
    /// The length of a segment; the last one is shorter.
    pub(crate) segment: u64,
    /// All segments together, the block at the start of each included.
    pub(crate) data: u64,
    /// The longest log. For a moment there are two.
    pub(crate) log: u64,
    /// The longest snapshot. For a moment there are two.
    pub(crate) snapshot: u64,
    /// The longest manifest. For a moment there are two.
    pub(crate) manifest: u64,
}

impl Geometry {
    /// The parts of a store of `capacity` bytes on a file system with blocks of `block` bytes; `segment` is what the store
    /// was made with.
    ///
    /// # Errors
    /// `Invalid` if the store is too small.
    pub(crate) fn plan(capacity: u64, block: u64, segment: Option<u64>) -> Result<Self> {
        let down = |bytes: u64| bytes / block * block;
        let described = down((capacity / 64).max(64 << 10).max(16 * block));
        let manifest = down(if described >= 1 << 20 { 32 << 10 } else { 8 << 10 }).max(block);
        let rest = described - 2 * manifest;
        // In a small store objects need the room more.
        let share = if described >= 1 << 20 { 4 } else { 8 };
        let log = down((rest / share).min(MOST_LOG)).max(LEAST_LOG).max(block);
        let snapshot = down((rest - 2 * log) / 2);
        let segment = segment
            .unwrap_or_else(|| (capacity / 64).next_power_of_two().clamp(*SEGMENTS.start(), *SEGMENTS.end()));
        let names = (capacity / segment + 1) * 64;
        let directories = 2 * block + names.next_multiple_of(block);
        let data = down(capacity.saturating_sub(described + directories));
        if capacity < LEAST || data < 4 * block {
            return Err(Error::invalid(
                "open store",
                "the slab layout needs a limit of at least 131072 bytes (more where blocks are larger than 4096); \
                 `files` has no such minimum",
            )
            .with("capacity", capacity));
        }
        Ok(Self { capacity, segment, data, log, snapshot, manifest })
    }

    /// How many segments there are.
    pub(crate) fn segments(&self) -> u64 {
        self.data.div_ceil(self.segment)
    }

    /// The length of a segment; 0 for one that there is not.
    pub(crate) fn len_of(&self, segment: u64) -> u64 {
        self.data.saturating_sub(segment * self.segment).min(self.segment)
    }

    /// The segment that a place is in, and where in it.
    pub(crate) fn locate(&self, at: u64) -> (u64, u64) {
        (at / self.segment, at % self.segment)
    }

    /// Whether an extent lies in a segment, behind its first block.
    pub(crate) fn holds(&self, at: u64, bytes: u64) -> bool {
        let (segment, within) = self.locate(at);
        let end = within.checked_add(bytes);
        at.is_multiple_of(UNIT) && within >= UNIT && end.is_some_and(|end| end <= self.len_of(segment))
    }

    /// The most bytes that one object may take.
    pub(crate) fn largest(&self) -> u64 {
        self.len_of(0) - UNIT
    }

    /// The most objects: a snapshot of all of them fits.
    pub(crate) fn objects(&self) -> u64 {
        let pages = self.snapshot / UNIT;
        (pages - 1 - 2 * Self::tables(pages)) * super::pages::PER_PAGE as u64
    }

    /// Of a snapshot's pages, how many at most say which models and tenants there are; and as many, which layouts.
    pub(crate) fn tables(pages: u64) -> u64 {
        (pages / 16).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_any_size_are_within_it() {
        for block in [4096, 65_536] {
            for capacity in [2 << 20, (5 << 20) + 12_345, 1 << 30, 100 << 30, 1 << 40, 1 << 45] {
                let g = Geometry::plan(capacity, block, None).unwrap();
                let all = g.data + 2 * (g.log + g.snapshot + g.manifest) + 2 * block + g.segments() * 64;
                assert!(all <= capacity, "{g:?}");
                assert!(g.data * 100 >= capacity * if capacity >= 1 << 30 { 98 } else { 40 }, "{g:?}");
                let last = g.segments() - 1;
                assert_eq!((0..=last).map(|n| g.len_of(n)).sum::<u64>(), g.data);
                assert_eq!(g.len_of(last + 1), 0);
                assert!(g.holds(UNIT, g.largest()) && !g.holds(UNIT, g.largest() + UNIT));
                assert!(!g.holds(0, UNIT) && !g.holds(UNIT + 1, UNIT) && !g.holds(u64::MAX - 4095, UNIT));
                assert!(g.objects() * 32 * 1024 >= g.data / 2, "objects of 64 KiB fill it: {g:?}");
            }
        }
        assert!(Geometry::plan(LEAST, 4096, None).is_ok());
        assert!(Geometry::plan(LEAST - 1, 4096, None).unwrap_err().to_string().contains("capacity"));
    }

    #[test]
    fn another_capacity_leaves_places_where_they_are() {
        let small = Geometry::plan(3 << 30, 4096, None).unwrap();
        let large = Geometry::plan(900 << 30, 4096, Some(small.segment)).unwrap();
        assert_eq!(small.segment, large.segment);
        assert_eq!(small.locate(small.segment + 8192), large.locate(small.segment + 8192));
        assert_eq!(Geometry::plan(900 << 30, 4096, None).unwrap().segment, 4 << 30);
    }
}
