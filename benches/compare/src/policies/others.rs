//! foyer, quick_cache and moka, each set up for one thread and one shard.

use super::{Cache, Contestant};
use foldhash::fast::FixedState;
use foyer_memory::{CacheBuilder, CacheProperties, EvictionConfig};
use foyer_memory::{FifoConfig, LfuConfig, LruConfig, S3FifoConfig, SieveConfig};
use moka::policy::EvictionPolicy;
use quick_cache::{OptionsBuilder, UnitWeighter, sync, unsync};
use std::hint::black_box;

type Foyer = foyer_memory::Cache<u64, u32, FixedState, CacheProperties>;
type Quick = sync::Cache<u64, u32, UnitWeighter, FixedState>;
type QuickUnsync = unsync::Cache<u64, u32, UnitWeighter, FixedState>;
type Moka = moka::sync::Cache<u64, u32, FixedState>;

pub(crate) fn contestants() -> Vec<Contestant> {
    macro_rules! theirs {
        ($($of:literal $policy:literal in $family:literal: $make:expr),*) => { vec![$(
            Contestant {
                of: $of, policy: $policy, family: $family, make: |entries| Box::new($make(entries)),
            },
        )*] };
    }
    theirs!(
        "foyer" "FIFO" in "FIFO": |n| foyer(n, FifoConfig::default()),
        "foyer" "LRU" in "LRU": |n| foyer(n, LruConfig::default()),
        "moka" "LRU" in "LRU": |n| moka(n, EvictionPolicy::lru()),
        "foyer" "SIEVE" in "SIEVE": |n| foyer(n, SieveConfig),
        "foyer" "S3-FIFO" in "S3-FIFO": |n| foyer(n, S3FifoConfig::default()),
        "quick_cache" "its own" in "S3-FIFO": quick,
        "quick_cache, no lock" "its own" in "S3-FIFO": quick_unsync,
        "foyer" "W-TinyLFU" in "TinyLFU": |n| foyer(n, LfuConfig::default()),
        "moka" "TinyLFU" in "TinyLFU": |n| moka(n, EvictionPolicy::tiny_lfu())
    )
}

fn foyer(entries: usize, policy: impl Into<EvictionConfig>) -> Foyer {
    let builder = CacheBuilder::new(entries).with_shards(1).with_eviction_config(policy);
    builder.with_hash_builder(FixedState::default()).build()
}

fn options(entries: usize) -> quick_cache::Options {
    let mut options = OptionsBuilder::new();
    options.shards(1).estimated_items_capacity(entries).weight_capacity(entries as u64);
    options.build().expect("both capacities are given")
}

fn quick(entries: usize) -> Quick {
    Quick::with_options(options(entries), UnitWeighter, FixedState::default(), Default::default())
}

fn quick_unsync(entries: usize) -> QuickUnsync {
    QuickUnsync::with_options(options(entries), UnitWeighter, FixedState::default(), Default::default())
}

fn moka(entries: usize, policy: EvictionPolicy) -> Moka {
    let builder = moka::sync::Cache::builder().max_capacity(entries as u64).initial_capacity(entries);
    builder.eviction_policy(policy).build_with_hasher(FixedState::default())
}

impl Cache for Foyer {
    fn get(&mut self, key: u64) -> bool {
        Self::get(self, &key).is_some_and(|entry| black_box(*entry.value()) < u32::MAX)
    }
    fn insert(&mut self, key: u64, value: u32) {
        drop(Self::insert(self, key, value));
    }
    fn remove(&mut self, key: u64) {
        drop(Self::remove(self, &key));
    }
}

impl Cache for Quick {
    fn get(&mut self, key: u64) -> bool {
        Self::get(self, &key).is_some_and(|value| black_box(value) < u32::MAX)
    }
    fn insert(&mut self, key: u64, value: u32) {
        Self::insert(self, key, value);
    }
    fn remove(&mut self, key: u64) {
        Self::remove(self, &key);
    }
}

impl Cache for QuickUnsync {
    fn get(&mut self, key: u64) -> bool {
        Self::get(self, &key).is_some_and(|&value| black_box(value) < u32::MAX)
    }
    fn insert(&mut self, key: u64, value: u32) {
        Self::insert(self, key, value);
    }
    fn remove(&mut self, key: u64) {
        Self::remove(self, &key);
    }
}

impl Cache for Moka {
    fn get(&mut self, key: u64) -> bool {
        Self::get(self, &key).is_some_and(|value| black_box(value) < u32::MAX)
    }
    fn insert(&mut self, key: u64, value: u32) {
        Self::insert(self, key, value);
    }
    fn remove(&mut self, key: u64) {
        Self::invalidate(self, &key);
    }
    fn settle(&mut self) {
        self.run_pending_tasks();
    }
}
