//! Workers: who registered, how its chunks look, and over which connections it speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Instant, Layout, Result};

use crate::api::EngineDriven;
use crate::gather::Open;
use crate::service::ClientId;

/// A registered worker.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) kind: Kind,
    pub(crate) model: Arc<str>,
    pub(crate) world_size: i64,
    /// What one chunk is on one shard.
    pub(crate) layout: Layout,
    pub(crate) last_seen: Instant,
    /// Silence means something only of those who said before that they live.
    pub(crate) pinged: bool,
}

/// Who moves a worker's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// The worker itself, in the shared pool.
    Engine(Arc<EngineDriven>, Arc<[u64]>, Arc<str>),
    /// This side, which has the worker's own memory open.
    Server(Arc<Open>),
}

impl Kind {
    /// The mode's name, tokens per block, whether there is one plane, and the layers.
    pub(crate) fn summary(&self) -> (&'static str, i64, bool, i64) {
        match self {
            Self::Engine(engine, ..) => ("engine_driven", engine.block_size, engine.mla, engine.layers),
            Self::Server(open) => {
                let groups = &open.paged.groups;
                let layers = groups.iter().map(|g| g.tensors.len()).sum::<usize>() as i64;
                ("lmcache_driven", groups[0].tokens as i64, groups[0].planes == 1, layers)
            }
        }
    }
}

/// The most workers that are remembered. A machine has a few.
const MOST: usize = 4096;

/// All workers, and the connections of each, which outlive its registration.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    all: BTreeMap<i64, Worker>,
    clients: BTreeMap<ClientId, BTreeSet<i64>>,
    connections: BTreeMap<i64, BTreeSet<ClientId>>,
    /// Instances that pinged and are not registered, and were told so once.
    strangers: BTreeSet<i64>,
}

impl Workers {
    pub(crate) fn get_mut(&mut self, instance: i64) -> Option<&mut Worker> {
        self.all.get_mut(&instance)
    }

    pub(crate) fn register(&mut self, instance: i64, worker: Worker) -> Result<()> {
        if self.all.len() >= MOST && !self.all.contains_key(&instance) {
            // Those that are gone are remembered only for what they said of their model.
            let gone = self.all.iter().filter(|(i, _)| !self.connections.contains_key(i));
            let Some((&oldest, _)) = gone.min_by_key(|(_, w)| w.last_seen) else {
                let e = Error::new(ErrorKind::Busy, "register worker", "there are too many workers");
                return Err(e.with("limit", MOST));
            };
            self.all.remove(&oldest);
        }
        self.strangers.remove(&instance);
        self.all.insert(instance, worker);
        Ok(())
    }

    pub(crate) fn unregister(&mut self, instance: i64) -> Option<Worker> {
        self.all.remove(&instance)
    }

    /// The worker spoke over this connection.
    pub(crate) fn heard(&mut self, client: ClientId, instance: i64) {
        if self.clients.entry(client).or_default().insert(instance) {
            self.connections.entry(instance).or_default().insert(client);
        }
    }

    /// What a ping of an instance that is not registered is told: no, and yes the next time. A client of LMCache's registers
    /// again when a ping succeeds after one that failed, and a server that was killed and is back before the next ping has
    /// forgotten a worker that does not know it.
    pub(crate) fn stranger(&mut self, instance: i64) -> bool {
        self.strangers.remove(&instance) || self.strangers.len() >= MOST || !self.strangers.insert(instance)
    }

    /// A connection has ended; the workers that have none left.
    pub(crate) fn disconnected(&mut self, client: ClientId) -> Vec<i64> {
        let instances = self.clients.remove(&client).unwrap_or_default();
        let alone = |instance: &i64| {
            let Some(left) = self.connections.get_mut(instance) else { return true };
            left.remove(&client);
            let alone = left.is_empty();
            if alone {
                self.connections.remove(instance);
            }
            alone
        };
        instances.into_iter().filter(alone).collect()
    }

    pub(crate) fn connected(&self, instance: i64) -> bool {
        self.connections.contains_key(&instance)
    }

    /// Whether a worker has no connection. If its memory is open here, it is closed, and the worker has to register again.
    pub(crate) fn left_alone(&mut self, instance: i64) -> bool {
        let alone = !self.connected(instance);
        if alone && matches!(self.all.get(&instance), Some(Worker { kind: Kind::Server(_), .. })) {
            self.all.remove(&instance);
        }
        alone
    }

    /// How the chunks of a model look, if any worker of it is registered.
    pub(crate) fn layout(&self, model: &str, world_size: i64) -> Option<Layout> {
        let of = |w: &&Worker| *w.model == *model && w.world_size == world_size;
        self.all.values().find(of).map(|w| w.layout.clone())
    }

    /// Takes out the workers that have been silent for too long.
    pub(crate) fn silent(&mut self, now: Instant, reap: Duration, grace: Duration) -> Vec<i64> {
        let connections = &self.connections;
        let stale = |i: &i64, w: &mut Worker| {
            let patience = if w.pinged || !connections.contains_key(i) { reap } else { grace };
            w.last_seen + patience <= now
        };
        self.all.extract_if(.., stale).map(|(instance, _)| instance).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Worker)> {
        self.all.iter().map(|(i, w)| (*i, w))
    }
}
