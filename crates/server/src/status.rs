//! What a service says of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::Layout;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the start.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        impl Counters {
            pub(crate) fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Requests of all kinds.
    requests,
    /// Requests that could not be read or served, and were answered with no.
    refused,
    /// Chunks whose tokens were hashed: once per request of an engine, however often it is named.
    chunks_hashed,
    /// Lookups that ended.
    lookups,
    /// Tokens of whole chunks that were looked up.
    lookup_tokens,
    /// Of those, tokens that were found, in L1 or in L2.
    hit_tokens,
    /// Of those, tokens that were found in L1.
    hit_l1_tokens,
    /// Stores that were prepared, with buffers granted.
    stores_prepared,
    /// Stores that were committed.
    stores_committed,
    /// Chunks of those.
    stored_chunks,
    /// Bytes of those.
    stored_bytes,
    /// Stores that were prepared and never published, because their worker went, was too late, or took it back.
    stores_aborted,
    /// Chunks that were refused room.
    chunks_declined,
    /// Retrievals that were prepared.
    retrieves_prepared,
    /// Retrievals for which not everything was there.
    retrieves_missed,
    /// Retrievals that were committed.
    retrieves_committed,
    /// Chunks of those.
    retrieved_chunks,
    /// Bytes of those.
    retrieved_bytes,
    /// Leases that ran out while their worker may still have been at it.
    leases_lapsed,
    /// Workers that were forgotten because they were silent.
    workers_reaped,
    /// Sessions that ended because nobody asked about them, or nobody who did is connected any more.
    sessions_expired,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A worker as others may know it.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerStatus {
    /// The number it gave itself.
    pub instance: i64,
    /// `engine_driven` or `lmcache_driven`.
    pub mode: &'static str,
    /// The model.
    pub model: Arc<str>,
    /// Shards of the KV cache.
    pub world_size: i64,
    /// What one chunk is on one shard.
    pub layout: Layout,
    /// Tokens per block of the engine.
    pub block_size: i64,
    /// One plane instead of keys and values apart.
    pub mla: bool,
    /// Layers.
    pub layers: i64,
    /// Whether a connection of its is open.
    pub connected: bool,
}

/// How long the oldest of what is held has been held, by who holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PinAges {
    /// Chunks that a finished lookup keeps for its readers.
    pub lookup: Option<Duration>,
    /// What a worker is filling.
    pub write: Option<Duration>,
    /// What a worker is reading.
    pub read: Option<Duration>,
}

/// A service at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// Tokens per chunk.
    pub chunk_tokens: usize,
    /// Sessions.
    pub sessions: usize,
    /// Lookups that are not over.
    pub lookups_running: usize,
    /// Chunks that finished lookups keep for their readers.
    pub locked_chunks: usize,
    /// Transfers that are prepared and not committed.
    pub leases: usize,
    /// Transfers whose time ran out, and whose buffers are kept until their worker is gone.
    pub quarantined: usize,
    /// The oldest pin of each kind.
    pub oldest: PinAges,
    /// Clients that follow the events.
    pub followers: usize,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// The counts.
    pub counts: Counts,
}
