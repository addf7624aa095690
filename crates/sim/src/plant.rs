//! Defects to plant, so that it shows that they are found.

use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Instant, Result};
use kvstrata_evict::{Access, Entry, EvictionPolicy, Removal, Slot};
use kvstrata_l2::{Adapter, Found, Get, GetSink, L2Desc, L2Store, Probe, Put, PutItem, PutSink};

/// A defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// Nobody checks digests.
    NoDigests,
    /// The eviction policy does not hear of pins.
    PinsIgnored,
    /// Adapters never let go of the buffers of large stores.
    BuffersKept,
}

/// A policy that does not hear of pins.
#[derive(Debug)]
pub(crate) struct Deaf(pub(crate) Box<dyn EvictionPolicy>);

impl EvictionPolicy for Deaf {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn set_capacity(&mut self, weight: u64) {
        self.0.set_capacity(weight);
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.0.insert(entry, cx);
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.0.touch(slot, cx);
    }
    fn missed(&mut self, print: u64, cx: &Access) {
        self.0.missed(print, cx);
    }
    fn pin(&mut self, _: Slot) {}
    fn unpin(&mut self, _: Slot) {}
    fn remove(&mut self, slot: Slot, why: Removal) {
        self.0.remove(slot, why);
    }
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        self.0.victims(want, out)
    }
    fn memory(&self) -> usize {
        self.0.memory()
    }
}

/// An adapter that keeps a clone of what it is given.
#[derive(Debug)]
struct Keeping(Arc<dyn L2Store>);

pub(crate) fn keeping(adapter: Adapter) -> Adapter {
    let Adapter { store, remove, list, usage, quotas } = adapter;
    Adapter { store: Arc::new(Keeping(store)), remove, list, usage, quotas }
}

#[async_trait]
impl L2Store for Keeping {
    fn desc(&self) -> &L2Desc {
        self.0.desc()
    }
    async fn put(&self, request: Put, done: PutSink) {
        let large = |item: &&PutItem| item.layout.bytes() > 8192;
        request.items.iter().filter(large).for_each(|item| std::mem::forget(item.buf.clone()));
        self.0.put(request, done).await;
    }
    async fn get(&self, request: Get, done: GetSink) {
        self.0.get(request, done).await;
    }
    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.0.probe(request).await
    }
    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.shutdown(deadline).await
    }
}
