//! Prompts that are loaded ahead of time: from L2 into L1, where they stay, with nobody who reads them yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{Call, Keys, all};
use kvstrata_manager::{Layouts, LoadMode};

use crate::Service;
use crate::api::Key;
use crate::chain::{self, Chain};
use crate::lookup::Asked;
use crate::status::add;

/// How far loading a prompt ahead of time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warmed {
    /// It is not over.
    Pending,
    /// It is over.
    Completed {
        /// Objects that are in L1 now, over all shards.
        found: usize,
        /// Objects of the prompt, over all shards.
        total: usize,
    },
}

/// The most loads that are remembered: those under way, and those that nobody asked about since they ended.
const MOST: usize = 1024;

/// All of them, by number: the older ones first.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    all: BTreeMap<u64, Warmed>,
    next: u64,
}

impl Warm {
    /// Remembers one more that is under way.
    fn begin(&mut self) -> Result<u64> {
        if self.all.len() >= MOST {
            let over = |(n, state): (&u64, &Warmed)| (*state != Warmed::Pending).then_some(*n);
            let Some(oldest) = self.all.iter().find_map(over) else {
                let e = Error::new(ErrorKind::Busy, "load ahead of time", "too many loads are under way");
                return Err(e.with("limit", MOST));
            };
            self.all.remove(&oldest);
        }
        self.next += 1;
        self.all.insert(self.next, Warmed::Pending);
        Ok(self.next)
    }
}

impl Service {
    /// Begins to load what L2 has of a prompt into L1, where it stays as what workers store does: its name, and its chunks.
    /// `None` for a prompt that fills no chunk. The key's range does not matter, nor does its request.
    ///
    /// # Errors
    /// `Invalid` for a key that cannot be, `Unavailable` if no worker has said how chunks of the model look, `Busy` if
    /// too many such loads are under way.
    pub fn prefetch(&self, key: &Key) -> Result<Option<(String, usize)>> {
        let this = &self.0;
        let key = Key { worker: None, start: 0, end: key.tokens.len() as i64, ..key.clone() };
        let chunks = key.chunks(this.options.chunk_tokens)?.end;
        let scopes = Asked::scopes(&key)?;
        let layout = this.workers.lock().layout(&key.model, key.world_size).ok_or_else(|| {
            let m =
                "no worker has said how chunks of this model look: it has registered no KV cache here yet";
            Error::new(ErrorKind::Unavailable, "load ahead of time", m)
                .with("model_name", &key.model)
                .with("world_size", key.world_size)
        })?;
        if chunks == 0 {
            return Ok(None);
        }
        let mut chain = Chain::default();
        add(&this.counters.chunks_hashed, chain.cover(&this.hasher, &key.tokens, chunks) as u64);
        let number = this.warm.lock().begin()?;
        let inner = Arc::clone(this);
        this.cx.spawn.spawn(Box::pin(async move {
            let rq = inner.manager.request(inner.options.wait_max);
            let (manager, layouts) = (&inner.manager, Layouts::from(layout));
            let shards: Vec<Keys> = scopes.iter().map(|s| chain::keys(s, chain.hashes()).into()).collect();
            let load = |keys| {
                let (rq, layouts) = (&rq, &layouts);
                Box::pin(async move {
                    let lookup = manager.lookup(rq, keys).await;
                    manager.load(lookup, layouts, LoadMode::Warm).finish().await.hits.mask().count()
                }) as Call<'_, usize>
            };
            let found = all(shards.iter().map(load).collect()).await.iter().sum();
            let done = Warmed::Completed { found, total: chunks * shards.len() };
            if let Some(state) = inner.warm.lock().all.get_mut(&number) {
                *state = done;
            }
        }));
        Ok(Some((name(this.options.incarnation, number), chunks)))
    }

    /// How far a load has come that [`prefetch`](Self::prefetch) began. One that is over is told once.
    pub fn prefetched(&self, name: &str) -> Option<Warmed> {
        let (run, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let (run, number) = (u64::from_str_radix(run, 16).ok()?, number.parse().ok()?);
        if run != self.0.options.incarnation {
            return None;
        }
        let mut warm = self.0.warm.lock();
        let state = *warm.all.get(&number)?;
        if state != Warmed::Pending {
            warm.all.remove(&number);
        }
        Some(state)
    }
}

const PREFIX: &str = "prefetch-";

/// Another run of the server gives other names.
fn name(run: u64, number: u64) -> String {
    format!("{PREFIX}{run:x}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_is_over_makes_room_and_those_under_way_do_not() {
        let mut warm = Warm::default();
        let numbers: Vec<u64> = (0..MOST).map(|_| warm.begin().unwrap()).collect();
        assert_eq!(warm.begin().unwrap_err().kind(), ErrorKind::Busy);
        for n in [7, 5] {
            warm.all.insert(numbers[n], Warmed::Completed { found: 0, total: 1 });
        }
        let next = warm.begin().unwrap();
        assert!(!warm.all.contains_key(&numbers[5]) && warm.all.contains_key(&numbers[7]));
        assert_eq!((warm.all.len(), warm.all[&next]), (MOST, Warmed::Pending));
    }
}
