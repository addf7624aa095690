//! Looking a prompt up: jobs, their answers, and the locks that come with them.

use std::ops::Range;
use std::sync::Arc;

use kvstrata_core::{Instant, KeyScope, Layout, Result};
use kvstrata_l2::{Call, Keys, all};
use kvstrata_manager::{Hits, Layouts, LoadMode, Manager, Request as Circumstances, TierId};
use kvstrata_mem::ReadBuf;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::Key;
use crate::chain;
use crate::counts::LookupEnd;

/// A lookup on its way, or over and not yet let go of.
#[derive(Debug, Default)]
pub(crate) struct Job {
    state: Mutex<State>,
    pub(crate) ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    found: Option<Found>,
    /// The answer was given out. The locks stay.
    told: bool,
}

/// What a lookup found: the longest prefix that every shard has, pinned.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) chunks: usize,
    /// Of those, what was in L1 on every shard.
    pub(crate) l1_chunks: usize,
    /// Objects of those that were in L1, over all shards, and those that L2 gave.
    pub(crate) l1_keys: usize,
    pub(crate) l2_keys: usize,
    /// What every shard had in some tier before anything was loaded.
    had: usize,
    at: Instant,
    shards: Vec<Shard>,
}

#[derive(Debug)]
struct Shard {
    scope: Arc<KeyScope>,
    hits: Hits,
    /// How many readers have still to come, per chunk.
    locks: Vec<u32>,
}

impl Job {
    pub(crate) fn finish(&self, found: Found) {
        self.state.lock().found = Some(found);
        self.ended.notify_waiters();
    }

    /// The answer, which is given out once: chunks, once it is over; then 0, as of a job that nobody knows.
    pub(crate) fn answer(&self) -> Option<usize> {
        let mut state = self.state.lock();
        let chunks = state.found.as_ref()?.chunks;
        Some(if std::mem::replace(&mut state.told, true) { 0 } else { chunks })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().found.is_some()
    }

    /// The pinned buffers of a range on one shard, if the lookup has them all.
    pub(crate) fn bufs(&self, scope: &KeyScope, range: Range<usize>) -> Option<Vec<ReadBuf>> {
        let state = self.state.lock();
        let shard = state.found.as_ref()?.shards.iter().find(|s| *s.scope == *scope)?;
        range.map(|i| shard.hits.buf(i).cloned()).collect()
    }

    /// Takes `readers` locks of each chunk of a range back, on this shard or on all; what nobody will read any more.
    pub(crate) fn unlock(&self, scope: Option<&KeyScope>, range: Range<usize>, readers: u32) -> Vec<Hits> {
        let mut state = self.state.lock();
        let shards = state.found.iter_mut().flat_map(|f| &mut f.shards);
        let mut free = Vec::new();
        for shard in shards.filter(|s| scope.is_none_or(|scope| *s.scope == *scope)) {
            let range = range.start.min(shard.locks.len())..range.end.min(shard.locks.len());
            shard.locks[range.clone()].iter_mut().for_each(|n| *n = n.saturating_sub(readers));
            // Mostly all of them are free at once, and go in one step.
            let mut at = range.start;
            while at < range.end {
                let same =
                    shard.locks[at..range.end].iter().take_while(|n| (**n == 0) == (shard.locks[at] == 0));
                let next = at + same.count();
                if shard.locks[at] == 0 {
                    free.push(shard.hits.take(at..next));
                }
                at = next;
            }
        }
        free
    }

    /// Lets go of everything if the lookup ended before `since`; whether it held anything.
    pub(crate) fn expire(&self, since: Instant) -> Vec<Hits> {
        let mut state = self.state.lock();
        let late = state.found.as_mut().filter(|f| f.at <= since);
        late.map(|f| std::mem::take(&mut f.shards)).into_iter().flatten().map(|s| s.hits).collect()
    }

    /// Since when it keeps what it keeps.
    pub(crate) fn pinned_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.found.as_ref().filter(|f| f.shards.iter().any(|s| s.hits.mask().count() > 0)).map(|f| f.at)
    }

    pub(crate) fn pins(&self) -> usize {
        let state = self.state.lock();
        state.found.iter().flat_map(|f| &f.shards).map(|s| s.hits.mask().count()).sum()
    }
}

/// What is asked of a lookup.
pub(crate) struct Asked {
    pub(crate) scopes: Vec<Arc<KeyScope>>,
    pub(crate) hashes: Arc<Vec<[u8; 32]>>,
    pub(crate) chunks: usize,
    pub(crate) layout: Layout,
    pub(crate) readers: u32,
}

impl Asked {
    /// The shards that a key means.
    pub(crate) fn scopes(key: &Key) -> Result<Vec<Arc<KeyScope>>> {
        key.ranks()?.map(|rank| key.scope(rank, 0)).collect()
    }
}

impl Found {
    /// Nothing.
    pub(crate) fn nothing(at: Instant) -> Self {
        Self { chunks: 0, l1_chunks: 0, l1_keys: 0, l2_keys: 0, had: 0, at, shards: Vec::new() }
    }

    /// Why it is no more, of so many chunks.
    pub(crate) fn end(&self, wanted: usize) -> LookupEnd {
        if self.chunks >= wanted {
            LookupEnd::Whole
        } else if self.chunks < self.had {
            LookupEnd::NotLoaded
        } else {
            LookupEnd::Absent
        }
    }

    /// Asks L1, and L2 for what is missing there, and loads that: all by the request's deadline.
    pub(crate) async fn find(manager: &Manager, rq: &Circumstances, asked: &Asked) -> Self {
        let hashes = &asked.hashes[..asked.chunks];
        let keys: Vec<Keys> = asked.scopes.iter().map(|s| chain::keys(s, hashes).into()).collect();
        let lookups = keys
            .iter()
            .map(|keys| Box::pin(manager.lookup(rq, keys)) as Call<'_, kvstrata_manager::Lookup>)
            .collect();
        let lookups = all(lookups).await;
        // A shard is of no use where another one has nothing.
        let prefix = lookups.iter().map(kvstrata_manager::Lookup::prefix).min().unwrap_or(0);
        if prefix == 0 {
            return Self::nothing(manager.now());
        }
        let layouts = Layouts::from(asked.layout.clone());
        let load = |lookup| {
            Box::pin(manager.load(lookup, &layouts, LoadMode::Prefix).finish())
                as Call<'_, kvstrata_manager::Loaded>
        };
        let loaded = all(lookups.into_iter().map(load).collect()).await;
        let chunks = loaded.iter().map(|l| l.hits.mask().prefix()).min().unwrap_or(0);
        let from_l1 = |hits: &Hits| (0..chunks).take_while(|i| hits.source(*i) == Some(TierId::L1)).count();
        let in_l1 = |hits: &Hits| (0..chunks).filter(|i| hits.source(*i) == Some(TierId::L1)).count();
        let l1_keys: usize = loaded.iter().map(|l| in_l1(&l.hits)).sum();
        let l2_keys = chunks * loaded.len() - l1_keys;
        let l1_chunks = loaded.iter().map(|l| from_l1(&l.hits)).min().unwrap_or(0);
        let shards = asked.scopes.iter().zip(loaded).map(|(scope, mut loaded)| Shard {
            scope: Arc::clone(scope),
            hits: loaded.hits.take(0..chunks),
            locks: vec![asked.readers; chunks],
        });
        let at = manager.now();
        Self { chunks, l1_chunks, l1_keys, l2_keys, had: prefix, at, shards: shards.collect() }
    }
}
