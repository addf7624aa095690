//! What adapters told the manager, noted on the way.

use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Instant, ObjectKey, Result};
use kvstrata_l2::{Adapter, Found, Get, GetSink, L2Desc, L2Store, Probe, Put, PutSink, Stored};

use crate::oracle::Oracle;

/// Tells the oracle of every key that the adapter says it has stored.
pub(crate) fn noting(adapter: Adapter, oracle: &Oracle) -> Adapter {
    let Adapter { store, remove, list, usage, quotas } = adapter;
    let store = Arc::new(Noting { inner: store, oracle: oracle.clone() });
    Adapter { store, remove, list, usage, quotas }
}

#[derive(Debug)]
struct Noting {
    inner: Arc<dyn L2Store>,
    oracle: Oracle,
}

#[async_trait]
impl L2Store for Noting {
    fn desc(&self) -> &L2Desc {
        self.inner.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        let keys: Vec<ObjectKey> = request.items.iter().map(|item| item.key.clone()).collect();
        let (oracle, answered, count) = (self.oracle.clone(), done.answered(), keys.len());
        let receiver = move |at: usize, answer: Result<Stored>| {
            let key = answer.is_ok().then(|| keys[at].clone());
            // Noted first: the hook may be called before this returns.
            if let Some(key) = &key {
                oracle.stored(key, true);
            }
            if !done.answer(at, answer)
                && let Some(key) = &key
            {
                oracle.stored(key, false);
            }
        };
        let sink = PutSink::new(count, Arc::new(receiver));
        self.inner.put(request, sink).await;
        answered.await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        self.inner.get(request, done).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.inner.probe(request).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }
}
