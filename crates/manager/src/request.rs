//! What callers say with a request, and what they are told.

use std::time::Duration;

use kvstrata_core::{Affinity, Error, Instant, KeyMask, Layout, ObjectKey};
use kvstrata_evict::Access;

use crate::Reservation;

/// The circumstances of one engine request: all calls made for it carry the same one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Counts requests; eviction policies see it.
    pub id: u64,
    /// When every call made for the request must have ended, on the manager's timer.
    pub deadline: Instant,
    /// The device it comes from.
    pub affinity: Affinity,
    /// The position of a batch's first key in the request's chain of chunks; the keys after it follow one by one.
    pub first: u32,
}

impl Request {
    /// The same request, for a batch that starts at this position of its chain.
    #[must_use]
    pub fn starting_at(mut self, position: u32) -> Self {
        self.first = position;
        self
    }

    pub(crate) fn access(&self, keys: usize) -> Access {
        Access { request: self.id, position: self.first, chain: self.first + keys as u32 }
    }

    /// The same request from this device.
    #[must_use]
    pub fn from_device(mut self, affinity: Affinity) -> Self {
        self.affinity = affinity;
        self
    }
}

/// The layouts of a batch.
#[derive(Clone, Debug)]
pub enum Layouts {
    /// All keys have this one.
    All(Layout),
    /// One per key, in order.
    Each(Vec<Layout>),
}

impl Layouts {
    /// The layout of the key at `position`.
    ///
    /// # Panics
    /// If there is one per key, and none for this one.
    pub fn at(&self, position: usize) -> &Layout {
        match self {
            Self::All(l) => l,
            Self::Each(v) => &v[position],
        }
    }
}

impl From<Layout> for Layouts {
    fn from(l: Layout) -> Self {
        Self::All(l)
    }
}

/// What a reservation does when L1 is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Answers at once.
    No,
    /// Waits until there is room, at most until the request's deadline.
    UntilDeadline,
}

/// How much of a batch a reservation must get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    /// As many keys from the front as there is room for.
    Part,
    /// All keys that are neither resident nor being written, or none.
    Whole,
}

/// One key's answer to a reservation.
#[derive(Debug)]
pub enum Reserved {
    /// The buffer is the caller's to fill and commit.
    Granted(Reservation),
    /// The key was not asked for.
    Unwanted,
    /// An admission rule keeps the key out of L1, and there is no L2 to pass it on to.
    NotAdmitted,
    /// The key is in L1 already.
    Resident,
    /// Somebody else is writing the key.
    Busy,
    /// No room, or a size that can never fit; the error says which.
    Refused(Error),
}

/// One key's answer to a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Committed {
    /// The key can be read from L1, and is on its way to L2.
    Resident,
    /// The key became resident while it was written; the second copy was discarded.
    Duplicate,
    /// It was handed to L2 only, or, with no L2 to take it, dropped: an admission policy kept it out of L1, or L1 is no
    /// more than a buffer here.
    Passed,
}

/// A tier: where the bytes of a hit came from, or whose quotas are meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TierId {
    /// Host memory.
    L1,
    /// The adapter with this number.
    L2(kvstrata_policy::L2Id),
}

/// How a load treats a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadMode {
    /// Nothing behind the first missing chunk is loaded: it would be useless to an engine that needs a prefix.
    Prefix,
    /// Every key that somebody has is loaded.
    Any,
    /// As `Prefix`, and what is loaded stays in L1 if there is room, whatever the prefetch policy says: for those who load
    /// ahead of time, and read nothing.
    Warm,
}

/// How keys were deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// Was in L1.
    pub l1: KeyMask,
    /// Was in some L2.
    pub l2: KeyMask,
    /// Adapters that could not delete: no such ability, or an error.
    pub failed: Vec<(String, String)>,
}

/// How the manager treats stores that fail, and what L1 is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How often a failed store of a key is tried in all, per adapter; at least 1.
    pub store_attempts: u32,
    /// The wait before the second try; doubles with each further one. An error's own advice goes before it.
    pub store_backoff: Duration,
    /// The longest wait that doubling leads to. An error that advises to wait longer is final.
    pub store_backoff_max: Duration,
    /// How long an adapter may take for one batch of stores, queueing included.
    pub store_timeout: Duration,
    /// Whether lookups answer from L1. Off where L1 is a staging buffer only.
    pub lookup_l1: bool,
    /// The usual size of a chunk in bytes, for admission rules that weigh what they have not seen yet.
    pub typical_chunk: u64,
    /// Whether digests are made and checked. Off only by choice; usage and metrics show it.
    pub digests: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store_attempts: 3,
            store_backoff: Duration::from_millis(50),
            store_backoff_max: Duration::from_secs(2),
            store_timeout: Duration::from_secs(30),
            lookup_l1: true,
            typical_chunk: 1 << 20,
            digests: true,
        }
    }
}

/// Called when a committed key can be read from L2. At most once per commit of a key, never for a key that was refused,
/// was a duplicate, or that no adapter took. Called without any lock held; a panic in it is contained and counted.
pub trait StoredHook: Send + Sync + 'static {
    /// `key` can be read from L2 now.
    fn stored(&self, key: &ObjectKey);
}

/// Told which chunks lookups find in L1, as that changes; chunks that only pass through are not among them.
///
/// 1. Changes of one key come in the order in which they happen, each once: the first is that it came.
/// 2. A call is made with L1's lock held. It has to be quick, and must not call the manager.
pub trait L1Watch: Send + Sync + 'static {
    /// A chunk can be found in L1 now.
    fn came(&self, key: &ObjectKey);
    /// It is not found there any more: evicted, deleted, or cleared.
    fn left(&self, key: &ObjectKey);
}

impl<F: Fn(&ObjectKey) + Send + Sync + 'static> StoredHook for F {
    fn stored(&self, key: &ObjectKey) {
        self(key);
    }
}
