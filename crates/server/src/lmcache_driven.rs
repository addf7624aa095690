//! Transfers by the server: it copies between an engine's paged KV cache and the pool.

use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, KeyMask, KeyScope, Result};
use kvstrata_manager::{Grant, Layouts, Reserved};
use tokio::sync::oneshot;

use crate::api::{Key, LmcacheDriven, Reply};
use crate::chain;
use crate::gather::{Open, abandoned};
use crate::paged::Paged;
use crate::service::{Answer, ClientId, Inner, Service};
use crate::status::add;
use crate::workers::{Kind, Worker};

const REGISTER: &str = "register KV cache";

impl Inner {
    pub(crate) fn register_kv_cache(&self, client: ClientId, r: LmcacheDriven) -> Result<Reply> {
        KeyScope::new(&r.model, kvstrata_core::KvRank::single(), 0, "")?;
        if !(1..=255).contains(&r.world_size) {
            let e = Error::invalid(REGISTER, "a world has 1 to 255 shards");
            return Err(e.with("world_size", r.world_size));
        }
        let paged = Paged::new(&r, self.options.chunk_tokens)?;
        let most = self.manager.usage().cache.limit;
        if paged.layout.bytes() > most {
            let e = Error::invalid(REGISTER, "a chunk of this cache does not fit in L1");
            return Err(e.with("bytes", paged.layout.bytes()).with("limit", most));
        }
        let now = self.now();
        let known = |worker: &Worker| {
            let same = matches!(&worker.kind, Kind::Server(open) if open.paged == paged);
            same && *worker.model == *r.model && worker.world_size == r.world_size
        };
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.get_mut(r.instance).filter(|w| known(w)) {
            worker.last_seen = now;
            workers.heard(client, r.instance);
            return Ok(Reply::None);
        }
        drop(workers);
        let layout = paged.layout.clone();
        let open = Open::new(paged, self.options.chunk_tokens)?;
        tracing::info!(
            instance = r.instance,
            model = r.model,
            world_size = r.world_size,
            ?layout,
            "a worker registered its KV cache"
        );
        let worker = Worker {
            model: r.model.as_str().into(),
            world_size: r.world_size,
            layout,
            last_seen: now,
            pinged: false,
            kind: Kind::Server(Arc::new(open)),
        };
        let mut workers = self.workers.lock();
        workers.register(r.instance, worker)?;
        workers.heard(client, r.instance);
        Ok(Reply::None)
    }

    /// The worker's memory. One that transfers by itself has none here.
    fn memory(worker: &Worker) -> Result<Arc<Open>> {
        match &worker.kind {
            Kind::Server(open) => Ok(Arc::clone(open)),
            Kind::Engine(..) => {
                Err(Error::invalid("transfer blocks", "this worker registered for transfers of its own"))
            }
        }
    }

    /// Copies the blocks of a range that are not in the cache yet. Published together when all of them are copied, and not at
    /// all if the worker went meanwhile or was told no: it may have used its blocks for something else by then.
    pub(crate) fn store(
        self: &Arc<Self>,
        client: ClientId,
        key: &Key,
        instance: i64,
        blocks: Vec<Vec<i64>>,
    ) -> Result<Answer> {
        let worker = self.worker(client, instance)?;
        let open = Self::memory(&worker)?;
        let (scope, range) = self.one_shard(key, &worker)?;
        open.paged.check_blocks(&blocks, range.len(), self.options.chunk_tokens)?;
        let (hashes, rq) = self.hashed(client, key, range.end)?;
        self.stores_for(key, &scope);
        let keys = chain::keys(&scope, &hashes[range.clone()]);
        let mut wanted = KeyMask::none(keys.len());
        (0..keys.len()).filter(|i| !open.is_null(&blocks, *i, self.options.null_block)).for_each(|i| {
            wanted.set(i);
        });
        let rq = rq.starting_at(range.start as u32);
        let layouts = Layouts::from(worker.layout.clone());
        let reserved = self.manager.try_reserve(&rq, &keys, &wanted, &layouts, Grant::Part);
        let (mut granted, mut refused) = (Vec::new(), Vec::new());
        for (i, reserved) in reserved.into_iter().enumerate() {
            match reserved {
                Reserved::Granted(chunk) => granted.push((i, chunk)),
                Reserved::Refused(e) => refused.push(e),
                Reserved::Unwanted | Reserved::NotAdmitted | Reserved::Resident | Reserved::Busy => {}
            }
        }
        if let Some(e) = refused.pop() {
            add(&self.counters.chunks_declined, refused.len() as u64 + 1);
            tracing::warn!(request = key.request, chunks = refused.len() + 1, error = %e, "a store was declined");
            if granted.is_empty() {
                return Err(e);
            }
        }
        if granted.is_empty() {
            return Ok(Answer::Now(Reply::Transferred(true)));
        }
        add(&self.counters.stores_prepared, 1);
        let (inner, key) = (Arc::clone(self), key.clone());
        let until = rq.deadline;
        Ok(self.copy(move |told: oneshot::Sender<Result<Reply>>| async move {
            let work = async {
                for (i, chunk) in &mut granted {
                    if told.is_closed() {
                        return Err(abandoned("the client has gone"));
                    }
                    if inner.now() >= until {
                        return Err(abandoned("the copy took too long"));
                    }
                    open.gather(&blocks, *i, chunk.buf())?;
                    tokio::task::yield_now().await;
                }
                if told.is_closed() || inner.now() >= until {
                    return Err(abandoned("the client has gone, or was kept waiting for too long"));
                }
                Ok(())
            };
            if let Err(e) = work.await {
                add(&inner.counters.stores_aborted, 1);
                drop(granted);
                let _ = told.send(Err(e));
                return;
            }
            let positions: Vec<usize> = granted.iter().map(|(i, _)| range.start + i).collect();
            inner.publish(&key, &hashes, positions, granted.into_iter().map(|(_, chunk)| chunk).collect());
            let _ = told.send(Ok(Reply::Transferred(true)));
        }))
    }

    /// Copies a range to the worker's blocks: all of it, or nothing is said to be there.
    pub(crate) fn retrieve(
        self: &Arc<Self>,
        client: ClientId,
        key: &Key,
        instance: i64,
        blocks: Vec<Vec<i64>>,
        skip: i64,
    ) -> Result<Answer> {
        let worker = self.worker(client, instance)?;
        let open = Self::memory(&worker)?;
        let (scope, range) = self.one_shard(key, &worker)?;
        let job = self.sessions.lock().get(&key.request).and_then(|s| s.job.clone());
        // Whatever becomes of it, this worker will not read again what the lookup keeps for it.
        let unlock = {
            let (scope, range) = (Arc::clone(&scope), range.clone());
            move || drop(job.map(|job| job.unlock(Some(&scope), range, 1)))
        };
        let skip =
            u64::try_from(skip).ok().filter(|n| *n <= (range.len() * self.options.chunk_tokens) as u64);
        let ready = open.paged.check_blocks(&blocks, range.len(), self.options.chunk_tokens).and_then(|()| {
            let m = "what is skipped lies in the range";
            let skip = skip.ok_or_else(|| Error::invalid("transfer blocks", m))?;
            Ok((skip, self.bufs(client, key, &worker, &scope, &range)?))
        });
        let (skip, bufs) = match ready {
            Ok((skip, bufs)) => (skip, bufs),
            Err(e) => {
                unlock();
                return Err(e);
            }
        };
        let Some(bufs) = bufs else {
            add(&self.counters.retrieves_missed, 1);
            unlock();
            return Ok(Answer::Now(Reply::Transferred(false)));
        };
        add(&self.counters.retrieves_prepared, 1);
        let inner = Arc::clone(self);
        let (until, chunk_tokens) =
            (self.now() + self.options.lookup_timeout, self.options.chunk_tokens as u64);
        let (model, salt) = (key.model.clone(), key.salt.clone());
        Ok(self.copy(move |told: oneshot::Sender<Result<Reply>>| async move {
            let work = async {
                for (i, buf) in bufs.iter().enumerate() {
                    if told.is_closed() || inner.now() >= until {
                        // The blocks may be somebody else's by now.
                        return Err(abandoned("the client has gone, or was kept waiting for too long"));
                    }
                    open.scatter(&blocks, i, buf, skip.saturating_sub(i as u64 * chunk_tokens))?;
                    tokio::task::yield_now().await;
                }
                Ok(())
            };
            let done = work.await;
            unlock();
            if done.is_ok() {
                add(&inner.counters.retrieves_committed, 1);
                add(&inner.counters.retrieved_chunks, bufs.len() as u64);
                inner.tally.retrieved(&model, &salt, bufs.len());
                add(&inner.counters.retrieved_bytes, bufs.iter().map(|b| b.len() as u64).sum());
            }
            drop(bufs);
            let _ = told.send(done.map(|()| Reply::Transferred(true)));
        }))
    }

    /// Runs a copy where waits run, so that it holds up no wire; the answer comes when it is over.
    fn copy<F>(&self, work: impl FnOnce(oneshot::Sender<Result<Reply>>) -> F) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (told, hears) = oneshot::channel();
        self.cx.spawn.spawn(Box::pin(work(told)));
        Answer::Later(Box::pin(async move {
            let lost = || Error::new(ErrorKind::Io, "transfer blocks", "the copy ended without a word");
            hears.await.unwrap_or_else(|_| Err(lost()))
        }))
    }
}

impl Service {
    /// MD5 of a worker's blocks, `per_digest` at a time: over all layers, or for each layer. Blocks for as long as it takes to
    /// read them.
    ///
    /// # Errors
    /// `NotFound` for a worker whose memory is not open here, `Invalid` for blocks that do not exist.
    pub fn checksums(
        &self,
        instance: i64,
        blocks: &[i64],
        per_digest: usize,
        layerwise: bool,
    ) -> Result<Vec<Vec<String>>> {
        let worker = self.0.workers.lock().get_mut(instance).cloned();
        let open = worker.as_ref().and_then(|w| Inner::memory(w).ok());
        let open = open.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "digest blocks", "no such worker registered its KV cache")
                .with("instance_id", instance)
        })?;
        open.checksums(blocks, per_digest, layerwise)
    }
}
