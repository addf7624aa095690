//! Transfers by the workers themselves: they fill and read the manager's own buffers in shared memory.

use std::ops::Range;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, KeyMask, KeyScope, Layout, Result, TensorDesc};
use kvstrata_manager::{Committed, Grant, Layouts, Reservation, Reserved};
use kvstrata_mem::ReadBuf;

use crate::api::{EngineDriven, Key, Reply, Slot, torch_dtype};
use crate::chain;
use crate::holdings::{Held, TransferId};
use crate::service::{ClientId, Inner};
use crate::status::add;
use crate::workers::{Kind, Worker};

const REGISTER: &str = "register worker";

/// How an engine-driven worker's chunks look: shape, and the layout that it is.
fn layout(r: &EngineDriven, chunk_tokens: usize) -> Result<(Vec<u64>, Layout)> {
    let positive = |field: &'static str, n: i64| {
        let bad = || Error::invalid(REGISTER, "that has to be positive").with(field, n);
        u64::try_from(n).ok().filter(|n| *n > 0).ok_or_else(bad)
    };
    let dtype = torch_dtype(&r.dtype).ok_or_else(|| {
        Error::invalid(REGISTER, "that is no element type this server knows by torch's name")
            .with("dtype_str", &r.dtype)
    })?;
    let slots = positive("num_physical_slots", r.slots.unwrap_or(chunk_tokens as i64))?;
    let mut shape = vec![positive("num_layers", r.layers)?, slots, positive("hidden_dim_size", r.hidden)?];
    if !r.mla {
        shape.insert(0, 2);
    }
    let layout = Layout::new(vec![TensorDesc { dtype, shape: shape.clone() }])?;
    Ok((shape, layout))
}

impl Inner {
    pub(crate) fn register_engine(&self, client: ClientId, r: EngineDriven) -> Result<Reply> {
        let Some(pool) = &self.options.pool else {
            let m = "the pool is not in shared memory, and the pickled data path is not taken: give the server a --shm-name";
            return Err(Error::new(ErrorKind::Unsupported, REGISTER, m));
        };
        let mapped = Reply::Pool { name: pool.name.clone(), bytes: pool.bytes };
        let (shape, layout) = layout(&r, self.options.chunk_tokens)?;
        // Refused now rather than with its first key.
        KeyScope::new(&r.model, kvstrata_core::KvRank::single(), 0, "")?;
        if !(1..=255).contains(&r.world_size) {
            return Err(
                Error::invalid(REGISTER, "a world has 1 to 255 shards").with("world_size", r.world_size)
            );
        }
        let now = self.now();
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.get_mut(r.instance)
            && worker.layout == layout
            && *worker.model == *r.model
            && worker.world_size == r.world_size
            && matches!(worker.kind, Kind::Engine(..))
        {
            worker.last_seen = now;
            workers.heard(client, r.instance);
            return Ok(mapped);
        }
        let worker = Worker {
            model: r.model.as_str().into(),
            world_size: r.world_size,
            layout,
            last_seen: now,
            pinged: false,
            kind: Kind::Engine(Arc::new(r.clone()), shape.into(), r.dtype.as_str().into()),
        };
        tracing::info!(
            instance = r.instance, model = r.model, world_size = r.world_size, layout = ?worker.layout,
            "a worker registered"
        );
        workers.register(r.instance, worker)?;
        workers.heard(client, r.instance);
        Ok(mapped)
    }

    /// The worker, which has just been heard of.
    pub(crate) fn worker(&self, client: ClientId, instance: i64) -> Result<Worker> {
        let now = self.now();
        let mut workers = self.workers.lock();
        let unknown = || {
            Error::new(ErrorKind::NotFound, "find worker", "no such worker is registered (any more)")
                .with("instance_id", instance)
        };
        let worker = workers.get_mut(instance).ok_or_else(unknown)?;
        worker.last_seen = now;
        let worker = worker.clone();
        workers.heard(client, instance);
        Ok(worker)
    }

    /// The one shard that a transfer is of, and its chunks.
    pub(crate) fn one_shard(&self, key: &Key, worker: &Worker) -> Result<(Arc<KeyScope>, Range<usize>)> {
        if key.worker.is_none() {
            return Err(Error::invalid("read key", "a transfer is of one shard").with("worker_id", "none"));
        }
        if *worker.model != *key.model || worker.world_size != key.world_size {
            let e = Error::invalid("read key", "the worker registered for another model");
            return Err(e.with("model_name", &key.model).with("world_size", key.world_size));
        }
        Ok((key.scope(key.ranks()?.start, 0)?, key.chunks(self.options.chunk_tokens)?))
    }

    /// What the end of the key's session marks as used has this shard, too.
    pub(crate) fn stores_for(&self, key: &Key, scope: &Arc<KeyScope>) {
        if let Some(session) = self.sessions.lock().get_mut(&key.request)
            && !session.scopes.contains(scope)
        {
            session.scopes.push(Arc::clone(scope));
        }
    }

    /// Publishes what was stored, and counts it. `positions` are the chunks' in the prompt.
    pub(crate) fn publish(
        &self,
        key: &Key,
        hashes: &[[u8; 32]],
        positions: Vec<usize>,
        granted: Vec<Reservation>,
    ) {
        let bytes: u64 = granted.iter().map(|g| g.layout().bytes()).sum();
        let bound = self.events.bind(hashes, &key.tokens, self.options.chunk_tokens, positions);
        let chunks = self.manager.commit(granted).iter().filter(|c| **c != Committed::Duplicate).count();
        drop(bound);
        add(&self.counters.stores_committed, 1);
        add(&self.counters.stored_chunks, chunks as u64);
        self.tally.stored(&key.model, &key.salt, chunks);
        add(&self.counters.stored_bytes, bytes);
    }

    pub(crate) fn prepare_store(&self, client: ClientId, key: &Key, instance: i64) -> Result<Reply> {
        let worker = self.worker(client, instance)?;
        let (shape, dtype) = engine(&worker)?;
        let (scope, range) = self.one_shard(key, &worker)?;
        let (hashes, rq) = self.hashed(client, key, range.end)?;
        self.stores_for(key, &scope);
        let keys = chain::keys(&scope, &hashes[range.clone()]);
        let rq = rq.starting_at(range.start as u32);
        let layouts = Layouts::from(worker.layout.clone());
        let reserved = self.manager.try_reserve(&rq, &keys, &KeyMask::all(keys.len()), &layouts, Grant::Part);
        let (mut granted, mut slots, mut indices, mut refused) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, reserved) in reserved.into_iter().enumerate() {
            match reserved {
                Reserved::Granted(mut chunk) => {
                    let buf = chunk.buf();
                    slots.push(slot(shape, dtype, buf.extent().offset, buf.len()));
                    indices.push(i as u64);
                    granted.push(chunk);
                }
                Reserved::Refused(e) => refused.push(e),
                Reserved::Unwanted | Reserved::NotAdmitted | Reserved::Resident | Reserved::Busy => {}
            }
        }
        if let Some(e) = refused.first() {
            add(&self.counters.chunks_declined, refused.len() as u64);
            tracing::warn!(request = key.request, chunks = refused.len(), error = %e, "a store was declined");
            if granted.is_empty() {
                // Not the same as having it all: the client is told that it was not stored.
                return Ok(Reply::PrepareStore(None));
            }
        }
        if !granted.is_empty() {
            add(&self.counters.stores_prepared, 1);
            let expires = self.now() + self.options.write_lease;
            let id = TransferId::new(instance, true, key);
            self.holdings.lock().grant(id, expires, Held::Write(granted));
        }
        Ok(Reply::PrepareStore(Some((slots, indices))))
    }

    pub(crate) fn commit_store(
        &self,
        client: ClientId,
        key: &Key,
        instance: i64,
        payload: usize,
    ) -> Result<Reply> {
        self.worker(client, instance)?;
        let settled = self.holdings.lock().settle(TransferId::new(instance, true, key), self.now());
        let aborted = || add(&self.counters.stores_aborted, 1);
        let granted = match settled {
            Ok(Held::Write(granted)) => granted,
            Ok(Held::Read(_)) => unreachable!("its name says which it is"),
            Err(e) => {
                if e.kind() == ErrorKind::TimedOut {
                    aborted();
                }
                return Err(e);
            }
        };
        if payload > 0 {
            aborted();
            let m = "pickled bytes are not taken: the pool is in shared memory";
            return Err(Error::new(ErrorKind::Unsupported, "commit store", m).with("bytes", payload));
        }
        if self.events.on() {
            let range = key.chunks(self.options.chunk_tokens)?;
            let (hashes, _) = self.hashed(client, key, range.end)?;
            self.publish(key, &hashes, range.collect(), granted);
        } else {
            self.publish(key, &[], Vec::new(), granted);
        }
        Ok(Reply::Bool(true))
    }

    pub(crate) fn prepare_retrieve(&self, client: ClientId, key: &Key, instance: i64) -> Result<Reply> {
        let worker = self.worker(client, instance)?;
        let (shape, dtype) = engine(&worker)?;
        let (scope, range) = self.one_shard(key, &worker)?;
        let Some(bufs) = self.bufs(client, key, &worker, &scope, &range)? else {
            add(&self.counters.retrieves_missed, 1);
            return Ok(Reply::PrepareRetrieve(None));
        };
        let slots = bufs.iter().map(|b| slot(shape, dtype, b.extent().offset, b.len())).collect();
        let expires = self.now() + self.options.read_lease;
        self.holdings.lock().grant(TransferId::new(instance, false, key), expires, Held::Read(bufs));
        add(&self.counters.retrieves_prepared, 1);
        Ok(Reply::PrepareRetrieve(Some(slots)))
    }

    /// The buffers of a range on one shard, if all of them are here and are what the worker's chunks are.
    pub(crate) fn bufs(
        &self,
        client: ClientId,
        key: &Key,
        worker: &Worker,
        scope: &Arc<KeyScope>,
        range: &Range<usize>,
    ) -> Result<Option<Vec<ReadBuf>>> {
        let job = self.sessions.lock().get(&key.request).and_then(|s| s.job.clone());
        let bufs = match job.and_then(|job| job.bufs(scope, range.clone())) {
            Some(bufs) => Some(bufs),
            // Nobody looked it up, or the locks are gone: what is in L1 is still good.
            None => self.resident(client, key, scope, range)?,
        };
        let bytes = worker.layout.bytes();
        Ok(bufs.filter(|b| !b.is_empty() && b.iter().all(|b| b.len() as u64 == bytes)))
    }

    /// The buffers of a range on one shard, if all of them are in L1.
    fn resident(
        &self,
        client: ClientId,
        key: &Key,
        scope: &Arc<KeyScope>,
        range: &Range<usize>,
    ) -> Result<Option<Vec<ReadBuf>>> {
        let (hashes, rq) = self.hashed(client, key, range.end)?;
        let keys = chain::keys(scope, &hashes[range.clone()]);
        let hits = self.manager.read(&rq.starting_at(range.start as u32), &keys);
        Ok((0..keys.len()).map(|i| hits.buf(i).cloned()).collect())
    }

    pub(crate) fn commit_retrieve(&self, client: ClientId, key: &Key, instance: i64) -> Result<Reply> {
        let worker = self.worker(client, instance)?;
        let (scope, range) = self.one_shard(key, &worker)?;
        let held = self.holdings.lock().settle(TransferId::new(instance, false, key), self.now())?;
        let Held::Read(bufs) = held else { unreachable!("its name says which it is") };
        add(&self.counters.retrieves_committed, 1);
        add(&self.counters.retrieved_chunks, bufs.len() as u64);
        self.tally.retrieved(&key.model, &key.salt, bufs.len());
        add(&self.counters.retrieved_bytes, bufs.iter().map(|b| b.len() as u64).sum());
        drop(bufs);
        let job = self.sessions.lock().get(&key.request).and_then(|s| s.job.clone());
        if let Some(job) = job {
            drop(job.unlock(Some(&scope), range, 1));
        }
        Ok(Reply::Bool(true))
    }
}

/// Shape and element type of an engine-driven worker's chunks.
fn engine(worker: &Worker) -> Result<(&Arc<[u64]>, &Arc<str>)> {
    match &worker.kind {
        Kind::Engine(_, shape, dtype) => Ok((shape, dtype)),
        Kind::Server(_) => {
            Err(Error::invalid("prepare transfer", "this worker registered for transfers by the server"))
        }
    }
}

fn slot(shape: &Arc<[u64]>, dtype: &Arc<str>, offset: usize, len: usize) -> Slot {
    Slot { offset: offset as u64, length: len as u64, shape: Arc::clone(shape), dtype: Arc::clone(dtype) }
}
