//! An adapter on a live cluster, with memory for it and payloads that can be told apart.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvstrata_core::{Affinity, ChunkHash, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Get, GetItem, Probe, Put, PutDigest, PutItem, Stored, Verify,
};
use kvstrata_l2_mooncake::{MooncakeConfig, MooncakeStore};
use kvstrata_mem::{Allocate, Pool};
use kvstrata_testkit::payload;

use crate::common;

/// One adapter with memory for it.
pub(crate) struct Rig {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) cx: Context,
    pub(crate) store: MooncakeStore,
    pub(crate) adapter: Adapter,
    pub(crate) pool: Arc<Pool>,
}

impl Rig {
    pub(crate) fn open(config: &MooncakeConfig, bytes: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let cx = Context::tokio(runtime.handle().clone());
        let pool = common::shared_pool(bytes);
        let mut own = common::context(cx.clone());
        own.memory = Some(Arc::clone(&pool) as Arc<dyn Allocate>);
        let config = MooncakeConfig {
            key_prefix: format!("{}{}/", config.key_prefix, common::run()),
            ..config.clone()
        };
        let store = MooncakeStore::open(&config, &own)?;
        let adapter =
            Checked::new(store.adapter(), if config.digests { Verify::On } else { Verify::Off }, cx.clone())
                .adapter;
        Ok(Self { runtime, cx, store, adapter, pool })
    }

    pub(crate) fn within(&self, limit: Duration) -> Instant {
        self.cx.timer.now() + limit
    }

    pub(crate) fn put_as(
        &self,
        keys: &[ObjectKey],
        content: &[ObjectKey],
        len: usize,
        limit: Duration,
    ) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(len as u64).expect("a layout");
        let item = |(key, content): (&ObjectKey, &ObjectKey)| {
            let mut buf = self.pool.reserve(len, 4096).expect("room");
            payload::write(content, &mut buf).expect("a payload");
            PutItem { key: key.clone(), layout: layout.clone(), digest: PutDigest::None, buf: buf.seal(len) }
        };
        let items = keys.iter().zip(content).map(item).collect();
        let (answers, sink) = collect(keys.len());
        let request = Put { items, deadline: self.within(limit), affinity: Affinity::default() };
        self.runtime.block_on(self.adapter.store.put(request, sink));
        take(&answers)
    }

    pub(crate) fn put(&self, keys: &[ObjectKey], len: usize) -> Vec<Result<Stored>> {
        self.put_as(keys, keys, len, Duration::from_secs(60))
    }

    /// Each right, or why not.
    pub(crate) fn get(
        &self,
        keys: &[ObjectKey],
        len: usize,
        limit: Duration,
    ) -> Vec<std::result::Result<(), String>> {
        let layout = Layout::opaque(len as u64).expect("a layout");
        let item = |key: &ObjectKey| GetItem {
            key: key.clone(),
            layout: layout.clone(),
            buf: self.pool.reserve(len, 4096).expect("room"),
        };
        let (answers, sink) = collect(keys.len());
        let request = Get {
            items: keys.iter().map(item).collect(),
            deadline: self.within(limit),
            affinity: Affinity::default(),
        };
        self.runtime.block_on(self.adapter.store.get(request, sink));
        let judge = |(key, answer): (&ObjectKey, Answer)| match answer {
            Answer::Loaded(loaded) => {
                let buf = loaded.buf.seal(len);
                assert_eq!(
                    payload::verify(key, &buf).expect("host memory"),
                    Ok(()),
                    "wrong bytes under {key}"
                );
                Ok(())
            }
            Answer::Miss(miss, _) => Err(miss.name().to_owned()),
            Answer::Failed(e, _) => Err(e.kind().name().to_owned()),
        };
        keys.iter().zip(take::<Answer>(&answers)).map(judge).collect()
    }

    pub(crate) fn found(&self, keys: &[ObjectKey]) -> Vec<Result<bool>> {
        let request = Probe {
            keys: keys.into(),
            deadline: self.within(Duration::from_secs(20)),
            affinity: Affinity::default(),
        };
        let found = self.runtime.block_on(self.adapter.store.probe(request));
        found.into_iter().map(|f| f.map(|f| f.is_some())).collect()
    }

    /// All buffers are back, sooner or later, and the adapter ends.
    pub(crate) fn finish(self) {
        let back = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            self.pool.usage().buffers == 0
        });
        assert!(back, "{} buffers are still out", self.pool.usage().buffers);
        let deadline = self.within(Duration::from_secs(20));
        self.runtime.block_on(self.adapter.store.shutdown(deadline)).expect("a shutdown");
    }
}

type Answers<T> = Arc<Mutex<Vec<Option<T>>>>;

fn collect<T: kvstrata_l2::Fail>(n: usize) -> (Answers<T>, kvstrata_l2::Sink<T>) {
    let answers: Answers<T> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
    let to = Arc::clone(&answers);
    let sink =
        kvstrata_l2::Sink::new(n, Arc::new(move |i: usize, a: T| to.lock().expect("answers")[i] = Some(a)));
    (answers, sink)
}

fn take<T>(answers: &Answers<T>) -> Vec<T> {
    answers.lock().expect("answers").drain(..).map(|a| a.expect("an answer")).collect()
}

pub(crate) fn keys(of: &str, ids: std::ops::Range<u32>) -> Vec<ObjectKey> {
    let scope = KeyScope::new(of, KvRank::single(), 0, "").expect("a scope");
    ids.map(|id| ObjectKey::new(&scope, ChunkHash::new(&id.to_be_bytes()).expect("a hash"))).collect()
}
