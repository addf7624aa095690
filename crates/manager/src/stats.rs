//! What happened, counted.

use kvstrata_l2::{BreakerView, CheckCounts, LimitCounts, MeterCounts, PartUsage, StoreUsage};
use kvstrata_mem::Usage;

/// Counts since the start. Every refusal and every loss has a counter of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Keys looked up.
    pub lookups: u64,
    /// Keys found in L1.
    pub l1_hits: u64,
    /// Keys that some adapter said it has.
    pub l2_hits: u64,
    /// Keys that are nowhere.
    pub misses: u64,
    /// Keys committed to L1 or handed to L2.
    pub commits: u64,
    /// Bytes of those.
    pub committed_bytes: u64,
    /// Commits of a key that had become resident meanwhile.
    pub duplicates: u64,
    /// Reservations that ended without a commit.
    pub aborts: u64,
    /// Keys that were refused room.
    pub declined: u64,
    /// Keys that an admission rule kept out of L1 and that no adapter was there to take.
    pub not_admitted: u64,
    /// Chunks evicted from L1 for room.
    pub evicted: u64,
    /// Bytes of those.
    pub evicted_bytes: u64,
    /// Keys an adapter took.
    pub stored: u64,
    /// Bytes of those.
    pub stored_bytes: u64,
    /// Keys an adapter had already.
    pub stored_present: u64,
    /// Store attempts that failed, retries included.
    pub store_failures: u64,
    /// Stores tried again.
    pub store_retries: u64,
    /// Keys given up by one adapter, for good.
    pub store_gave_up: u64,
    /// Keys that an adapter was not offered, because its breaker was open.
    pub store_skipped: u64,
    /// Keys that were deleted while an adapter stored them, and that it may still have: it cannot delete, or did not.
    pub undo_failures: u64,
    /// Keys that left L1 although no adapter took them.
    pub lost: u64,
    /// Keys loaded from L2.
    pub loaded: u64,
    /// Bytes of those.
    pub loaded_bytes: u64,
    /// Loads that failed with an error (neither a miss nor late).
    pub load_failures: u64,
    /// Loads that had no answer at their deadline, while somebody waited.
    pub load_timeouts: u64,
    /// Loads refused because there was no room for them in L1.
    pub load_no_space: u64,
    /// Loads that were misses after all; each adapter's [`AdapterUsage::checks`] has the reasons.
    pub load_misses: u64,
    /// Completion hooks that panicked.
    pub hook_panics: u64,
}

/// How full everything is, and what is held.
#[derive(Clone, Debug)]
pub struct ManagerUsage {
    /// The cache budget of L1.
    pub cache: Usage,
    /// The staging budget of L1.
    pub staging: Usage,
    /// Chunks that lookups find in L1.
    pub resident: usize,
    /// Chunks that are pinned by readers or by stores in flight.
    pub pinned: usize,
    /// Reservations that are neither committed nor dropped.
    pub reserved: usize,
    /// Stores that are in flight or wait for a retry, in keys.
    pub storing: usize,
    /// Policies that panicked, and with them what is out of service.
    pub faults: Vec<crate::Fault>,
    /// Per adapter, in order.
    pub adapters: Vec<AdapterUsage>,
    /// The counters.
    pub stats: Stats,
}

/// One adapter's part of [`ManagerUsage`].
#[derive(Clone, Debug)]
pub struct AdapterUsage {
    /// Its number.
    pub id: kvstrata_policy::L2Id,
    /// Its name.
    pub name: String,
    /// How full it is, if it says so.
    pub usage: Option<StoreUsage>,
    /// Its parts, if it is made of several and says so: the paths of one that has many.
    pub parts: Vec<PartUsage>,
    /// What the digest check counted: bytes moved, misses by reason, loads that could not be verified.
    pub checks: CheckCounts,
    /// Calls by outcome, bytes, and how long each key took.
    pub meter: MeterCounts,
    /// Where its breaker stands, if it has one.
    pub breaker: Option<BreakerView>,
    /// Bytes in flight and waiting, if they are limited.
    pub in_flight: Option<LimitCounts>,
}
