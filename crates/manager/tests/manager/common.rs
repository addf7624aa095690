//! An adapter whose every answer the test gives, and a manager over it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, KeyMask, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_evict::{Admission, EvictionPolicy};
use kvstrata_l2::{
    Adapter, Answer, Context, Found, Get, GetItem, GetSink, Keys, L2Desc, L2Remove, L2Store, Loaded,
    MemoryKinds, Miss, Probe, Put, PutItem, PutSink, Stored,
};
use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved};
use kvstrata_mem::{HeapRegion, ReadBuf, Slab};
use kvstrata_policy::{PrefetchPolicy, StorePolicy};
use parking_lot::Mutex;

/// The size of every chunk in these tests.
pub(crate) const CHUNK: usize = 4096;

/// Keys of one chain: the chunk at position `n` is `chain`, `n`.
pub(crate) fn keys(chain: u8, n: u8) -> Vec<ObjectKey> {
    keys_of("", chain, n)
}

/// The same of a tenant.
pub(crate) fn keys_of(salt: &str, chain: u8, n: u8) -> Vec<ObjectKey> {
    let scope = KeyScope::new("m", KvRank::single(), 0, salt).unwrap();
    (0..n).map(|i| ObjectKey::new(&scope, kvstrata_core::ChunkHash::new(&[chain, i]).unwrap())).collect()
}

pub(crate) fn layouts() -> Layouts {
    Layout::opaque(CHUNK as u64).unwrap().into()
}

/// Holds every put and get until the test answers it.
#[derive(Debug)]
pub(crate) struct Held {
    desc: L2Desc,
    pub(crate) puts: Mutex<Vec<(PutItem, PutSink, usize)>>,
    pub(crate) gets: Mutex<Vec<(GetItem, GetSink, usize)>>,
    /// What it says it has.
    pub(crate) has: Mutex<HashMap<ObjectKey, (Vec<u8>, Found)>>,
    pub(crate) probes: Mutex<usize>,
    pub(crate) removed: Mutex<Vec<ObjectKey>>,
    /// Does not answer removals.
    pub(crate) deaf: Mutex<bool>,
    /// When it was shut down.
    pub(crate) ended: Mutex<Option<tokio::time::Instant>>,
}

impl Held {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        let desc = L2Desc {
            name: name.into(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: 1024,
            durable: false,
            shared: false,
        };
        Arc::new(Self {
            desc,
            puts: Mutex::default(),
            gets: Mutex::default(),
            has: Mutex::default(),
            probes: Mutex::default(),
            removed: Mutex::default(),
            deaf: Mutex::default(),
            ended: Mutex::default(),
        })
    }

    pub(crate) fn adapter(self: &Arc<Self>) -> Adapter {
        Adapter {
            store: Arc::clone(self) as Arc<dyn L2Store>,
            remove: None,
            list: None,
            usage: None,
            quotas: None,
        }
    }

    /// The same, able to remove.
    pub(crate) fn removing(self: &Arc<Self>) -> Adapter {
        Adapter { remove: Some(Arc::clone(self) as Arc<dyn L2Remove>), ..self.adapter() }
    }

    /// Takes everything that is held.
    pub(crate) fn accept(&self) -> usize {
        let held = std::mem::take(&mut *self.puts.lock());
        let n = held.len();
        for (mut item, sink, at) in held {
            let bytes = item.buf.as_slice().unwrap().to_vec();
            let digest = item.digest().unwrap();
            let found = Found { len: bytes.len() as u64, layout: Some(item.layout.id()), digest };
            self.has.lock().insert(item.key.clone(), (bytes, found));
            drop(item);
            sink.answer(at, Ok(Stored::Written));
        }
        n
    }

    /// Fails everything that is held.
    pub(crate) fn refuse(&self, kind: ErrorKind) -> usize {
        let held = std::mem::take(&mut *self.puts.lock());
        let n = held.len();
        for (item, sink, at) in held {
            drop(item);
            sink.answer(at, Err(Error::new(kind, "store", "the test says no")));
        }
        n
    }

    /// Serves every load that is held.
    pub(crate) fn serve(&self) -> usize {
        let held = std::mem::take(&mut *self.gets.lock());
        let n = held.len();
        for (item, sink, at) in held {
            let mut buf = item.buf;
            let answer = match self.has.lock().get(&item.key) {
                Some((bytes, found)) => {
                    buf.write_at(0, bytes).unwrap();
                    Answer::Loaded(Loaded::new(buf, *found))
                }
                None => Answer::Miss(Miss::Absent, Some(buf)),
            };
            sink.answer(at, answer);
        }
        n
    }
}

#[async_trait]
impl L2Store for Held {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        let held = request.items.into_iter().enumerate().map(|(at, item)| (item, done.clone(), at));
        self.puts.lock().extend(held);
    }

    async fn get(&self, request: Get, done: GetSink) {
        let held = request.items.into_iter().enumerate().map(|(at, item)| (item, done.clone(), at));
        self.gets.lock().extend(held);
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        *self.probes.lock() += 1;
        let has = self.has.lock();
        request.keys.iter().map(|k| Ok(has.get(k).map(|(_, f)| *f))).collect()
    }

    async fn shutdown(&self, _deadline: Instant) -> Result<()> {
        *self.ended.lock() = Some(tokio::time::Instant::now());
        Ok(())
    }
}

#[async_trait]
impl L2Remove for Held {
    async fn remove(&self, keys: Keys, _deadline: Instant) -> Vec<Result<bool>> {
        if *self.deaf.lock() {
            std::future::pending::<()>().await;
        }
        self.removed.lock().extend(keys.iter().cloned());
        keys.iter().map(|key| Ok(self.has.lock().remove(key).is_some())).collect()
    }
}

/// A manager with room for `cache` and `staging` chunks.
pub(crate) fn manager(cache: usize, staging: usize, policies: [&str; 3], options: Options) -> Manager {
    admitting("always", cache, staging, policies, options)
}

/// The same with an admission rule.
pub(crate) fn admitting(
    admission: &str,
    cache: usize,
    staging: usize,
    policies: [&str; 3],
    options: Options,
) -> Manager {
    let [eviction, store, prefetch] = policies;
    let policies = Policies {
        eviction: kvstrata_evict::by_name(eviction).unwrap(),
        admission: kvstrata_evict::admission_by_name(admission).unwrap(),
        store: kvstrata_policy::store_by_name(store).unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name(prefetch).unwrap(),
    };
    policies.manager(cache, staging, options)
}

/// The policies of a manager.
pub(crate) struct Policies {
    pub(crate) eviction: Box<dyn EvictionPolicy>,
    pub(crate) admission: Box<dyn Admission>,
    pub(crate) store: Box<dyn StorePolicy>,
    pub(crate) prefetch: Box<dyn PrefetchPolicy>,
}

impl Policies {
    pub(crate) fn manager(self, cache: usize, staging: usize, options: Options) -> Manager {
        let slab = Slab::new(vec![HeapRegion::new((cache + staging).max(1) * CHUNK).unwrap()]).unwrap();
        let parts = Parts {
            cache: slab.pool("cache", (cache * CHUNK) as u64),
            staging: slab.pool("staging", (staging * CHUNK) as u64),
            eviction: self.eviction,
            admission: self.admission,
            store: self.store,
            prefetch: self.prefetch,
            cx: Context::tokio(tokio::runtime::Handle::current()),
        };
        Manager::new(parts, Options { typical_chunk: CHUNK as u64, ..options }).unwrap()
    }
}

/// Stores a whole batch at once, each chunk filled with its position; how many were granted.
pub(crate) fn store(m: &Manager, keys: &[ObjectKey]) -> usize {
    let rq = m.request(SECOND);
    let mut filled = Vec::new();
    let all = KeyMask::all(keys.len());
    for (i, r) in m.try_reserve(&rq, keys, &all, &layouts(), Grant::Part).into_iter().enumerate() {
        if let Reserved::Granted(mut chunk) = r {
            chunk.buf().as_mut_slice().unwrap().fill(i as u8);
            filled.push(chunk);
        }
    }
    m.commit(filled).len()
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Lets spawned tasks run.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn is_filled_with(buf: &ReadBuf, byte: u8) -> bool {
    buf.as_slice().unwrap().iter().all(|b| *b == byte)
}
