//! The one place where digests are made and checked.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Affinity, Digest, Error, ErrorKind, Instant, Layout, ObjectKey, Result};
use kvstrata_mem::RegionKind;

use crate::{
    Adapter, Answer, CheckStats, Context, Found, Get, GetSink, Keys, L2Desc, L2Remove, L2Store, Loaded, Miss,
    Probe, Put, PutDigest, PutSink, Receive, Stored, all, digest_of_filled, until,
};

/// Whether digests are made and checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Every store carries a digest, and every load is checked.
    #[default]
    On,
    /// A choice that shows: loads are marked and counted as unverified, and stores carry a digest only if it is given.
    Off,
}

/// A handle on an adapter that goes on top of everything: decorators, fault injectors, the backend.
///
/// - It splits batches at the adapter's `max_batch`, and refuses repeated keys, buffers that are not as long as their
///   layout, and memory that the adapter does not take, each as that key's answer.
/// - A store gets the digest of its payload unless it brings one: made when the adapter comes to it
///   ([`PutItem::digest`](crate::PutItem::digest)), of the bytes that are there then.
/// - A load whose length or digest is wrong becomes a miss. The bad object is removed first, so that the next store is
///   not told that the key is there already. (An object stored anew between the load and the removal goes with it: one
///   more miss, never a wrong byte.)
/// - An object of another layout is a miss, and stays.
///
/// It does not bound waits: adapters do, and the manager on top.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The adapter with its checks. Abilities are those of the adapter inside.
    pub adapter: Adapter,
    /// What was counted.
    pub stats: Arc<CheckStats>,
}

impl Checked {
    /// Puts the checks on top of `inner`.
    pub fn new(inner: Adapter, verify: Verify, cx: Context) -> Self {
        let stats = Arc::<CheckStats>::default();
        let max_batch = inner.store.desc().max_batch.max(1);
        let desc = L2Desc { max_batch: usize::MAX, ..inner.store.desc().clone() };
        let remove = inner.remove.map(|inner| Arc::new(Split { inner, max_batch }) as Arc<dyn L2Remove>);
        let judge =
            Judge { verify, kinds: desc.kinds, remove: remove.clone(), cx, stats: Arc::clone(&stats) };
        let store = Arc::new(CheckedStore { inner: inner.store, max_batch, desc, judge: Arc::new(judge) });
        Self {
            adapter: Adapter { store, remove, list: inner.list, usage: inner.usage, quotas: inner.quotas },
            stats,
        }
    }
}

#[derive(Debug)]
struct CheckedStore {
    inner: Arc<dyn L2Store>,
    max_batch: usize,
    desc: L2Desc,
    judge: Arc<Judge>,
}

/// What the answers of a request need to be judged, whoever is still there to wait.
struct Judge {
    verify: Verify,
    kinds: crate::MemoryKinds,
    remove: Option<Arc<dyn L2Remove>>,
    cx: Context,
    stats: Arc<CheckStats>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge")
            .field("verify", &self.verify)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl L2Store for CheckedStore {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store chunk";
        let Put { items, deadline, affinity } = request;
        let judge = &self.judge;
        let answered = done.answered();
        let mut seen = HashSet::with_capacity(items.len());
        let mut accepted = Vec::with_capacity(items.len());
        for (position, mut item) in items.into_iter().enumerate() {
            let kind = item.buf.region().kind();
            let first = seen.insert(item.key.fingerprint());
            let fit = judge.fits(OP, &item.key, &item.layout, item.buf.len(), kind, first);
            if judge.verify == Verify::On && item.digest == PutDigest::None && kind != RegionKind::Device {
                item.digest = PutDigest::Due;
            }
            match fit {
                Ok(()) => accepted.push((position, item)),
                Err(e) => {
                    CheckStats::add(&judge.stats.refused, 1);
                    CheckStats::add(&judge.stats.put_failed, 1);
                    done.answer(position, Err(e));
                }
            }
        }
        let mut calls = Vec::with_capacity(1);
        for part in parts(accepted, self.max_batch) {
            let items = part.iter().map(|(position, item)| (*position, item.layout.bytes())).collect();
            let to = Forward { items, done: done.clone(), stats: Arc::clone(&judge.stats) };
            let sink = PutSink::new(part.len(), Arc::new(to));
            let items = part.into_iter().map(|(_, item)| item).collect();
            calls.push(self.inner.put(Put { items, deadline, affinity }, sink));
        }
        // Held no longer than the adapter holds its own: dropped answers must reach the receiver.
        drop(done);
        all(calls).await;
        answered.await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load chunk";
        let Get { items, deadline, affinity } = request;
        let judge = &self.judge;
        let answered = done.answered();
        let mut seen = HashSet::with_capacity(items.len());
        let mut accepted = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            let kind = item.buf.region().kind();
            let first = seen.insert(item.key.fingerprint());
            match judge.fits(OP, &item.key, &item.layout, item.buf.len(), kind, first) {
                Ok(()) => accepted.push((position, item)),
                Err(e) => {
                    CheckStats::add(&judge.stats.refused, 1);
                    CheckStats::add(&judge.stats.get_failed, 1);
                    done.answer(position, Answer::Failed(e, Some(item.buf)));
                }
            }
        }
        let mut calls = Vec::with_capacity(1);
        for part in parts(accepted, self.max_batch) {
            let items = part.iter().map(|(p, item)| (*p, item.key.clone(), item.layout.clone())).collect();
            let to = Check { items, deadline, done: done.clone(), judge: Arc::clone(judge) };
            let sink = GetSink::new(part.len(), Arc::new(to));
            let items = part.into_iter().map(|(_, item)| item).collect();
            calls.push(self.inner.get(Get { items, deadline, affinity }, sink));
        }
        drop(done);
        all(calls).await;
        answered.await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        if request.keys.len() <= self.max_batch {
            return self.inner.probe(request).await;
        }
        let Probe { keys, deadline, affinity } = request;
        let ask = |part: &[ObjectKey], affinity: Affinity| {
            self.inner.probe(Probe { keys: Keys::from(part), deadline, affinity })
        };
        all(keys.chunks(self.max_batch).map(|part| ask(part, affinity)).collect()).await.concat()
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }
}

impl Judge {
    fn fits(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        layout: &Layout,
        len: usize,
        kind: RegionKind,
        first: bool,
    ) -> Result<()> {
        let refuse = |kind, why: &str| Err(Error::new(kind, operation, why).with("key", key));
        if !first {
            return refuse(ErrorKind::Invalid, "the key appears in the batch already");
        }
        if len as u64 != layout.bytes() {
            return refuse(ErrorKind::Invalid, "the buffer is not as long as its layout says")
                .map_err(|e| e.with("buffer", len).with("layout", layout.bytes()));
        }
        if !self.kinds.takes(kind) {
            return refuse(ErrorKind::Unsupported, "the adapter does not take memory of this kind")
                .map_err(|e| e.with("kind", format_args!("{kind:?}")));
        }
        Ok(())
    }

    /// Whether the loaded bytes are those of the key: `Ok(verified)`, or the reason for a miss.
    fn check(&self, key: &ObjectKey, layout: &Layout, loaded: &Loaded) -> Result<bool, Miss> {
        let Loaded { buf, found, passed, .. } = loaded;
        if found.layout.is_some_and(|id| id != layout.id()) {
            return Err(Miss::Layout);
        }
        if found.len != layout.bytes() || buf.len() as u64 != found.len {
            return Err(Miss::Truncated);
        }
        let unverified = |counter| {
            CheckStats::add(counter, 1);
            Ok(false)
        };
        let stats = &*self.stats;
        if self.verify == Verify::Off {
            return unverified(&stats.unverified_off);
        }
        let Some(kept) = found.digest else {
            return unverified(&stats.unverified_no_digest);
        };
        let digest = match passed {
            Some(crc) if buf.region().kind() == RegionKind::Device => {
                Ok(Digest::bind(*crc, key, layout.id(), found.len))
            }
            _ => digest_of_filled(key, layout.id(), buf),
        };
        match digest {
            Ok(digest) if digest == kept => {
                CheckStats::add(&stats.verified, 1);
                Ok(true)
            }
            Ok(_) => Err(Miss::Digest),
            // Device memory that no CPU saw being filled is all that a digest is not made of.
            Err(_) => unverified(&stats.unverified_device),
        }
    }

    /// Removes a bad object, by `deadline` or not at all.
    async fn heal(&self, key: ObjectKey, miss: Miss, deadline: Instant) {
        let removed = match &self.remove {
            Some(remove) => {
                until(&*self.cx.timer, deadline, remove.remove(Keys::from([key.clone()]), deadline))
                    .await
                    .and_then(|per_key| per_key.into_iter().next())
                    .unwrap_or_else(|| Err(crate::timed_out("remove bad object", deadline)))
            }
            None => Err(Error::new(ErrorKind::Unsupported, "remove bad object", "the adapter cannot remove")),
        };
        match removed {
            Ok(_) => {
                tracing::warn!(%key, reason = miss.name(), "an object with wrong bytes was removed");
                CheckStats::add(&self.stats.healed, 1);
            }
            Err(error) => {
                tracing::warn!(%key, reason = miss.name(), %error, "an object with wrong bytes stays");
                CheckStats::add(&self.stats.unhealed, 1);
            }
        }
    }
}

/// Receives a part's answers to a put.
struct Forward {
    items: Vec<(usize, u64)>,
    done: PutSink,
    stats: Arc<CheckStats>,
}

impl Receive<Result<Stored>> for Forward {
    fn answer(&self, i: usize, answer: Result<Stored>) {
        let (position, bytes) = self.items[i];
        match answer {
            Ok(Stored::Written) => {
                CheckStats::add(&self.stats.written, 1);
                CheckStats::add(&self.stats.written_bytes, bytes);
            }
            Ok(Stored::Present) => CheckStats::add(&self.stats.present, 1),
            Err(_) => CheckStats::add(&self.stats.put_failed, 1),
        }
        self.done.answer(position, answer);
    }
}

/// Receives a part's answers to a get. It runs where the adapter answers, so that loads are checked as they come and by
/// as many threads as there are.
struct Check {
    items: Vec<(usize, ObjectKey, Layout)>,
    deadline: Instant,
    done: GetSink,
    judge: Arc<Judge>,
}

impl Receive<Answer> for Check {
    fn answer(&self, i: usize, answer: Answer) {
        let (position, key, layout) = &self.items[i];
        let stats = &*self.judge.stats;
        let answer = match answer {
            Answer::Loaded(loaded) => match self.judge.check(key, layout, &loaded) {
                Ok(verified) => {
                    CheckStats::add(&stats.loaded, 1);
                    CheckStats::add(&stats.loaded_bytes, layout.bytes());
                    Answer::Loaded(Loaded { verified, ..loaded })
                }
                Err(Miss::Layout) => Answer::Miss(Miss::Layout, Some(loaded.buf)),
                Err(miss) => {
                    stats.missed(miss);
                    let (judge, done) = (Arc::clone(&self.judge), self.done.clone());
                    let (position, key, deadline) = (*position, key.clone(), self.deadline);
                    self.judge.cx.spawn.spawn(Box::pin(async move {
                        judge.heal(key, miss, deadline).await;
                        done.answer(position, Answer::Miss(miss, Some(loaded.buf)));
                    }));
                    return;
                }
            },
            other => other,
        };
        match &answer {
            Answer::Miss(miss, _) => stats.missed(*miss),
            Answer::Failed(..) => CheckStats::add(&stats.get_failed, 1),
            Answer::Loaded(_) => {}
        }
        self.done.answer(*position, answer);
    }
}

/// Removes in parts of at most `max_batch` keys.
struct Split {
    inner: Arc<dyn L2Remove>,
    max_batch: usize,
}

#[async_trait]
impl L2Remove for Split {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        if keys.len() <= self.max_batch {
            return self.inner.remove(keys, deadline).await;
        }
        let parts = keys.chunks(self.max_batch).map(|part| self.inner.remove(Keys::from(part), deadline));
        all(parts.collect()).await.concat()
    }
}

fn parts<T>(items: Vec<T>, max: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items.into_iter();
    std::iter::from_fn(move || {
        let part: Vec<T> = rest.by_ref().take(max).collect();
        (!part.is_empty()).then_some(part)
    })
}
