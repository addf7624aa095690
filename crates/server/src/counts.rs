//! What is counted of requests beside the totals of [`Counts`](crate::Counts): by operation, by model, by how lookups ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_l2::{Histogram, HistogramCounts};
use parking_lot::Mutex;

use crate::api::Request;
use crate::lookup::Found;
use crate::status::add;

/// Models and salts are the clients' words. Beyond so many pairs the next ones are counted together, under [`OTHERS`].
const MOST_TENANTS: usize = 256;

/// The model name that stands for those beyond the limit. No model can have it.
const OTHERS: &str = "@others";

macro_rules! operations {
    ($($name:literal: $pattern:pat,)*) => {
        const OPERATIONS: &[&str] = &[$($name),*];

        /// The operation's name.
        fn name(request: &Request) -> &'static str {
            match request { $($pattern => $name,)* }
        }
    };
}

operations! {
    "register_kv_cache": Request::RegisterKvCache(_),
    "unregister_kv_cache": Request::UnregisterKvCache(_),
    "store": Request::Store { .. },
    "retrieve": Request::Retrieve { .. },
    "lookup": Request::Lookup(_),
    "query_prefetch_status": Request::QueryPrefetchStatus(_),
    "wait_prefetch_status": Request::WaitPrefetchStatus(..),
    "free_lookup_locks": Request::FreeLookupLocks(_),
    "end_session": Request::EndSession(_),
    "register_kv_cache_engine_driven_context": Request::RegisterEngineDriven(_),
    "unregister_kv_cache_engine_driven_context": Request::UnregisterEngineDriven(_),
    "prepare_store": Request::PrepareStore(..),
    "commit_store": Request::CommitStore { .. },
    "prepare_retrieve": Request::PrepareRetrieve(..),
    "commit_retrieve": Request::CommitRetrieve(..),
    "clear": Request::Clear { .. },
    "get_chunk_size": Request::GetChunkSize,
    "ping": Request::Ping(_),
    "report_block_allocation": Request::ReportBlockAllocation { .. },
    "noop": Request::Noop,
    "get_experimental": Request::GetExperimental,
    "subscribe_kv_events": Request::SubscribeKvEvents { .. },
}

/// Why a lookup found no more than it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookupEnd {
    /// It found the whole prompt.
    Whole,
    /// Some shard has the next chunk in no tier.
    Absent,
    /// The next chunk was there and could not be loaded: no room, too late, or the tier failed.
    NotLoaded,
    /// No worker has said yet how the model's chunks look.
    NoWorker,
    /// The prompt does not fill a chunk.
    TooShort,
}

impl LookupEnd {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Whole, Self::Absent, Self::NotLoaded, Self::NoWorker, Self::TooShort];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Absent => "absent",
            Self::NotLoaded => "not_loaded",
            Self::NoWorker => "no_worker",
            Self::TooShort => "too_short",
        }
    }
}

/// The requests of one operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OperationCounts {
    /// Its name on the wire.
    pub name: &'static str,
    /// Of those, requests that were answered with no.
    pub refused: u64,
    /// From the request to its answer.
    pub latency: HistogramCounts,
}

/// What was looked up and read of one model under one salt.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TenantCounts {
    /// The model; `@others` stands for those beyond the number that is kept apart.
    pub model: String,
    /// The cache salt.
    pub salt: String,
    /// Lookups that ended.
    pub lookups: u64,
    /// Tokens of whole chunks that were looked up.
    pub requested_tokens: u64,
    /// Of those, tokens that were found.
    pub hit_tokens: u64,
    /// Of those, tokens that every shard had in L1.
    pub hit_l1_tokens: u64,
    /// Objects that were found in L1, over all shards.
    pub hit_l1_keys: u64,
    /// Objects that were loaded from L2, over all shards.
    pub hit_l2_keys: u64,
    /// Chunks that workers stored.
    pub stored_chunks: u64,
    /// Chunks that workers read.
    pub retrieved_chunks: u64,
}

/// The counts at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct RequestCounts {
    /// By operation; those that nobody has asked for yet are there, too.
    pub operations: Vec<OperationCounts>,
    /// By model and salt, in that order.
    pub tenants: Vec<TenantCounts>,
    /// From the beginning of a lookup to its end, loads from L2 included.
    pub lookup_latency: HistogramCounts,
    /// Lookups by how they ended, in the order of [`LookupEnd::ALL`].
    pub lookup_ends: [(LookupEnd, u64); 5],
}

#[derive(Debug, Default)]
struct Operation {
    refused: AtomicU64,
    latency: Histogram,
}

/// One operation's place among the counters.
#[derive(Clone, Copy)]
pub(crate) struct Place(usize);

impl Place {
    /// The operation's name.
    pub(crate) fn name(self) -> &'static str {
        OPERATIONS[self.0]
    }
}

/// A tenant: the model, and the cache salt.
type Tenant = (String, String);

/// The counters. Recording takes no lock but that of the tenants, for as long as it takes to find one.
#[derive(Debug)]
pub(crate) struct RequestCounters {
    operations: Vec<Operation>,
    tenants: Mutex<BTreeMap<Tenant, Arc<Mutex<TenantCounts>>>>,
    lookup_latency: Histogram,
    lookup_ends: [AtomicU64; 5],
}

impl Default for RequestCounters {
    fn default() -> Self {
        Self {
            operations: OPERATIONS.iter().map(|_| Operation::default()).collect(),
            tenants: Mutex::default(),
            lookup_latency: Histogram::default(),
            lookup_ends: Default::default(),
        }
    }
}

impl RequestCounters {
    pub(crate) fn place(request: &Request) -> Place {
        let name = name(request);
        Place(OPERATIONS.iter().position(|n| *n == name).expect("both come of one table"))
    }

    /// A request was answered.
    pub(crate) fn answered(&self, at: Place, took: Duration, refused: bool) {
        let operation = &self.operations[at.0];
        operation.latency.record(took);
        add(&operation.refused, u64::from(refused));
    }

    fn tenant(&self, model: &str, salt: &str) -> Arc<Mutex<TenantCounts>> {
        let mut tenants = self.tenants.lock();
        let mut name = (model.to_owned(), salt.to_owned());
        if tenants.len() >= MOST_TENANTS && !tenants.contains_key(&name) {
            name = (OTHERS.into(), String::new());
        }
        Arc::clone(tenants.entry(name).or_default())
    }

    /// A lookup of so many tokens ended.
    pub(crate) fn looked_up(&self, model: &str, salt: &str, tokens: Tokens, found: &Found, took: Duration) {
        self.lookup_latency.record(took);
        self.lookup_ended(found.end(tokens.chunks));
        let tenant = self.tenant(model, salt);
        let mut t = tenant.lock();
        t.lookups += 1;
        t.requested_tokens += tokens.of(tokens.chunks);
        t.hit_tokens += tokens.of(found.chunks);
        t.hit_l1_tokens += tokens.of(found.l1_chunks);
        t.hit_l1_keys += found.l1_keys as u64;
        t.hit_l2_keys += found.l2_keys as u64;
    }

    /// A lookup ended, and asked no tier.
    pub(crate) fn lookup_ended(&self, end: LookupEnd) {
        add(&self.lookup_ends[end as usize], 1);
    }

    pub(crate) fn stored(&self, model: &str, salt: &str, chunks: usize) {
        self.tenant(model, salt).lock().stored_chunks += chunks as u64;
    }

    pub(crate) fn retrieved(&self, model: &str, salt: &str, chunks: usize) {
        self.tenant(model, salt).lock().retrieved_chunks += chunks as u64;
    }

    pub(crate) fn counts(&self) -> RequestCounts {
        let operations = OPERATIONS.iter().zip(&self.operations).map(|(name, o)| OperationCounts {
            name,
            refused: o.refused.load(Ordering::Relaxed),
            latency: o.latency.counts(),
        });
        let tenants = self.tenants.lock().clone();
        let tenants = tenants.into_iter().map(|((model, salt), counts)| TenantCounts {
            model,
            salt,
            ..counts.lock().clone()
        });
        RequestCounts {
            operations: operations.collect(),
            tenants: tenants.collect(),
            lookup_latency: self.lookup_latency.counts(),
            lookup_ends: LookupEnd::ALL
                .map(|end| (end, self.lookup_ends[end as usize].load(Ordering::Relaxed))),
        }
    }
}

/// Chunks that were asked for, and the tokens of each.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    pub(crate) chunks: usize,
    pub(crate) per_chunk: usize,
}

impl Tokens {
    fn of(self, chunks: usize) -> u64 {
        (chunks * self.per_chunk) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_limit_are_counted_together() {
        let counters = RequestCounters::default();
        for n in 0..MOST_TENANTS + 10 {
            counters.stored("m", &n.to_string(), 1);
            counters.stored("m", "0", 1);
        }
        let tenants = counters.counts().tenants;
        assert_eq!(tenants.len(), MOST_TENANTS + 1);
        let of = |model: &str, salt: &str| {
            tenants.iter().find(|t| t.model == model && t.salt == salt).unwrap().stored_chunks
        };
        assert_eq!((of("m", "0"), of("m", "255"), of(OTHERS, "")), (MOST_TENANTS as u64 + 11, 1, 10));
    }

    #[test]
    fn ends_stand_where_their_counters_are() {
        for (at, end) in LookupEnd::ALL.into_iter().enumerate() {
            assert_eq!(end as usize, at);
        }
    }

    #[test]
    fn each_operation_has_its_place() {
        let counters = RequestCounters::default();
        let ping = RequestCounters::place(&Request::Ping(None));
        counters.answered(ping, Duration::from_millis(1), false);
        counters.answered(ping, Duration::from_millis(2), true);
        for o in counters.counts().operations {
            let expected = if o.name == "ping" { (2, 1) } else { (0, 0) };
            assert_eq!((o.latency.count(), o.refused), expected, "{}", o.name);
        }
    }
}
