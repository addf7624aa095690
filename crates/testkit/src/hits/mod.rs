//! What a cache of a given size and policy would hit on a trace, without a cache: no bytes, no manager, only the policies
//! themselves and the order of events.
//!
//! ```
//! use kvstrata_testkit::hits::{Cache, Lookups, Order};
//! use kvstrata_testkit::trace::Synthetic;
//!
//! let trace = Synthetic { requests: 200, ..Synthetic::default() }.generate()?;
//! let mut lru = Cache::new(kvstrata_evict::by_name("LRU").unwrap(), 500, 65536)?;
//! let mut lookups = Lookups::new("example", None)?;
//! for request in trace {
//!     lru.request(&lookups.next(&request), Order::Batch);
//! }
//! assert!(lru.tally().object_hit_ratio() > 0.4);
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! Beside the policies stands [`Belady`], the best that anybody who knew the future could do.

mod belady;
mod cache;
mod lookup;
#[cfg(test)]
mod tests;

pub use belady::{Belady, NextUses};
pub use cache::{Cache, Order};
pub use lookup::{Lookup, Lookups};

/// What a cache did, in blocks and tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Blocks asked for.
    pub accesses: u64,
    /// Of them those that were there.
    pub hits: u64,
    /// Of those the ones without a gap before them in their request: what an engine can use.
    pub prefix_hits: u64,
    /// Blocks taken in. Each is written once.
    pub written: u64,
    /// Blocks that were missing and not taken in: nothing could go for them, or the admission rule was against them.
    pub declined: u64,
    /// Tokens of the prefixes that the cache behind the front answered, beyond what the front did.
    pub tokens_saved: u64,
    /// Tokens of the prefixes that the front answered.
    pub tokens_front: u64,
}

impl Tally {
    /// Hits over accesses.
    pub fn object_hit_ratio(&self) -> f64 {
        self.hits as f64 / self.accesses.max(1) as f64
    }

    /// Prefix hits over accesses.
    pub fn prefix_hit_ratio(&self) -> f64 {
        self.prefix_hits as f64 / self.accesses.max(1) as f64
    }

    /// Tokens that no engine had to compute, thanks to the front or the cache.
    pub fn tokens_not_recomputed(&self) -> u64 {
        self.tokens_front + self.tokens_saved
    }

    /// Blocks taken in per token that the cache, not the front, saved; `None` if it saved none.
    pub fn written_per_token_saved(&self) -> Option<f64> {
        (self.tokens_saved > 0).then(|| self.written as f64 / self.tokens_saved as f64)
    }

    /// Adds a request's answers: which blocks were there, first to last.
    fn answered(&mut self, lookup: &Lookup, there: &[bool]) {
        let prefix = there.iter().take_while(|h| **h).count();
        self.accesses += there.len() as u64;
        self.hits += there.iter().filter(|h| **h).count() as u64;
        self.prefix_hits += prefix as u64;
        let front = lookup.tokens(0);
        self.tokens_front += front;
        self.tokens_saved += lookup.tokens(prefix) - front;
    }
}
