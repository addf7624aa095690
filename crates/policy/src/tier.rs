//! What a policy may know of a tier.

use std::time::Duration;

use kvstrata_core::KeyMask;

/// The number a manager gives an adapter when it is added; never reused within one manager.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct L2Id(pub u32);

/// A live adapter at the moment of a decision.
#[derive(Clone, Copy, Debug)]
pub struct TierView<'a> {
    /// Its number.
    pub id: L2Id,
    /// Its name: stable over restarts, unique among the live ones; placement by hashing goes by it.
    pub name: &'a str,
    /// Its share of the keys where a policy spreads them; 1 unless configured.
    pub weight: u32,
    /// Whether it takes stores now (a breaker that is open says no).
    pub stores: bool,
    /// Whether it serves loads now.
    pub loads: bool,
    /// Which keys of the batch it said it has. Empty for store decisions.
    pub found: &'a KeyMask,
    /// What its loads take lately, if that is known.
    pub load_time: Option<LoadTime>,
}

/// What the loads of a batch take, as a straight line: tiers differ both in how soon they begin and in how fast they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LoadTime {
    /// From submission to the first chunk.
    pub first: Duration,
    /// From each chunk to the next.
    pub each: Duration,
}

impl LoadTime {
    /// From submission to the chunk that has `before` others of its batch before it.
    pub fn behind(self, before: usize) -> Duration {
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        self.first.saturating_add(self.each.saturating_mul(before))
    }
}
