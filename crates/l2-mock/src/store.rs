//! The adapter.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Context, Driver, Found, Get, GetItem, GetSink, Keys, L2Desc, L2List, L2Remove, L2Store,
    L2Usage, ListPage, Loaded, MemoryKinds, Miss, PartUsage, Probe, Put, PutItem, PutSink, StoreUsage, Timer,
    closed,
};
use parking_lot::Mutex;

use crate::ceiling::{Ceiling, Meter};
use crate::objects::{Object, Objects, unhex};
use crate::{Damage, Faults, MockConfig, MockStats};

/// The most keys of one batch.
const MAX_BATCH: usize = 4096;

/// A store in memory. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Mock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    desc: L2Desc,
    driver: Driver,
    device: Arc<Device>,
}

/// What driver tasks share; they outlive the callers.
#[derive(Debug)]
struct Device {
    timer: Arc<dyn Timer>,
    objects: Objects,
    ceiling: Ceiling,
    meter: Meter,
    hang: Hang,
    delay: Duration,
    stores: Faulty,
    loads: Faulty,
}

impl Mock {
    /// An empty store.
    ///
    /// # Errors
    /// `Invalid` if a setting is; see [`MockConfig::validate`].
    pub fn open(config: &MockConfig, cx: Context) -> Result<Self> {
        config.validate()?;
        let device = Device {
            timer: Arc::clone(&cx.timer),
            objects: Objects::new(config.capacity()),
            ceiling: Ceiling::new(config.bytes_per_second()),
            meter: Meter::default(),
            hang: Hang::default(),
            delay: Duration::from_millis(config.delay_ms),
            stores: Faulty::new(config.fail_store),
            loads: Faulty::new(config.fail_load),
        };
        let desc = L2Desc {
            name: config.name.clone(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: MAX_BATCH,
            durable: false,
            shared: false,
        };
        Ok(Self(Arc::new(Inner { desc, driver: Driver::new(cx), device: Arc::new(device) })))
    }

    /// The adapter, with everything it offers.
    pub fn adapter(&self) -> Adapter {
        let inner = &self.0;
        Adapter {
            store: Arc::clone(inner) as _,
            remove: Some(Arc::clone(inner) as _),
            list: Some(Arc::clone(inner) as _),
            usage: Some(Arc::clone(inner) as _),
            quotas: None,
        }
    }

    /// What was moved, and how fast.
    pub fn stats(&self) -> MockStats {
        self.0.device.meter.stats(self.0.device.timer.now())
    }

    /// Damages what is kept under `key`; whether there was anything.
    pub fn damage(&self, key: &ObjectKey, damage: Damage) -> bool {
        self.0.device.objects.damage(key, damage)
    }

    /// Swaps what is kept under two keys; false, and nothing done, if either is not there.
    pub fn swap(&self, a: &ObjectKey, b: &ObjectKey) -> bool {
        self.0.device.objects.swap(a, b)
    }

    /// Makes the device hang before it touches any more buffers, until [`Self::resume`].
    pub fn hang(&self) {
        self.0.device.hang.0.lock().0 = true;
    }

    /// Ends [`Self::hang`].
    pub fn resume(&self) {
        let wake = {
            let mut hang = self.0.device.hang.0.lock();
            hang.0 = false;
            std::mem::take(&mut hang.1)
        };
        wake.into_iter().for_each(Waker::wake);
    }
}

#[async_trait]
impl L2Store for Inner {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        let (device, sink) = (Arc::clone(&self.device), done.clone());
        let work = async move {
            let busy = device.begin().await;
            for (position, item) in request.items.into_iter().enumerate() {
                busy.0.put(position, item, &sink).await;
            }
        };
        self.driver.run("store in mock", request.deadline, done, work).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        let (device, sink) = (Arc::clone(&self.device), done.clone());
        let work = async move {
            let busy = device.begin().await;
            for (position, item) in request.items.into_iter().enumerate() {
                if sink.is_open(position) {
                    let answer = busy.0.get(item).await;
                    sink.answer(position, answer);
                }
            }
        };
        self.driver.run("load from mock", request.deadline, done, work).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let look = async {
            self.device.start().await;
            request.keys.iter().map(|key| Ok(self.device.objects.get(key).map(|o| o.found()))).collect()
        };
        let found = self.driver.call("look up in mock", request.deadline, look).await;
        found.unwrap_or_else(|e| request.keys.iter().map(|_| Err(e.clone())).collect())
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.driver.shutdown(deadline).await?;
        self.device.objects.clear();
        let stats = self.device.meter.stats(self.device.timer.now());
        tracing::info!(
            name = self.desc.name,
            stored_bytes = stats.stored_bytes,
            loaded_bytes = stats.loaded_bytes,
            reached_gb = stats.reached_gb(),
            "mock adapter shut down"
        );
        Ok(())
    }
}

#[async_trait]
impl L2Remove for Inner {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let work = async {
            self.device.hang.passed().await;
            keys.iter().map(|key| Ok(self.device.objects.remove(key))).collect()
        };
        let removed = self.driver.call("remove from mock", deadline, work).await;
        removed.unwrap_or_else(|e| keys.iter().map(|_| Err(e.clone())).collect())
    }
}

#[async_trait]
impl L2List for Inner {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        if self.driver.is_closed() {
            return Err(closed("list mock"));
        }
        if limit == 0 {
            return Err(Error::invalid("list mock", "a page has at least one entry").with("limit", limit));
        }
        Ok(self.device.objects.list(cursor.map(unhex).transpose()?, limit))
    }
}

impl L2Usage for Inner {
    fn usage(&self) -> StoreUsage {
        self.device.objects.usage()
    }

    fn parts(&self) -> Vec<PartUsage> {
        Vec::new()
    }
}

/// A request that counts as busy time while it lives.
struct Busy(Arc<Device>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.meter.end(self.0.timer.now());
    }
}

impl Device {
    async fn begin(self: &Arc<Self>) -> Busy {
        self.meter.begin(self.timer.now());
        let busy = Busy(Arc::clone(self));
        self.start().await;
        busy
    }

    async fn start(&self) {
        if !self.delay.is_zero() {
            self.timer.sleep_until(self.timer.now() + self.delay).await;
        }
        self.hang.passed().await;
    }

    async fn put(&self, position: usize, mut item: PutItem, done: &PutSink) {
        let digest = match item.digest() {
            Ok(digest) => digest,
            Err(e) => {
                drop(item);
                done.answer(position, Err(e));
                return;
            }
        };
        let PutItem { key, layout, buf, .. } = item;
        let fails = self.stores.next();
        if !done.is_open(position) {
            return;
        }
        if !fails && self.objects.is_stored(&key, layout.id(), digest) {
            drop(buf);
            done.answer(position, Ok(kvstrata_l2::Stored::Present));
            return;
        }
        let stored = async {
            let room = self.objects.reserve(buf.len() as u64)?;
            self.ceiling.pass(buf.len() as u64, &*self.timer).await;
            self.hang.passed().await;
            if fails {
                self.meter.count(|s| s.failed_stores += 1);
                return Err(on_demand("store in mock"));
            }
            let mut data = Vec::new();
            data.try_reserve_exact(buf.len())
                .map_err(|e| Error::new(ErrorKind::NoSpace, "store in mock", "out of memory").caused_by(e))?;
            buf.visit(|piece| data.extend_from_slice(piece))?;
            self.meter.count(|s| s.stored_bytes += data.len() as u64);
            Ok((Object { len: data.len(), data, layout: layout.id(), digest }, room))
        };
        match stored.await {
            Ok((object, room)) => {
                // The pin ends with the device's work, not after somebody heard of it.
                drop(buf);
                self.objects.publish(key, object, room, position, done);
            }
            Err(e) => {
                drop(buf);
                done.answer(position, Err(e));
            }
        }
    }

    async fn get(&self, item: GetItem) -> Answer {
        let GetItem { key, layout, mut buf } = item;
        let fails = self.loads.next();
        let Some(object) = self.objects.get(&key) else { return Answer::Miss(Miss::Absent, Some(buf)) };
        self.ceiling.pass(layout.bytes(), &*self.timer).await;
        self.hang.passed().await;
        if fails {
            self.meter.count(|s| s.failed_loads += 1);
            return Answer::Failed(on_demand("load from mock"), Some(buf));
        }
        if object.layout != layout.id() {
            return Answer::Miss(Miss::Layout, Some(buf));
        }
        if object.data.len() as u64 != layout.bytes() {
            return Answer::Miss(Miss::Truncated, Some(buf));
        }
        if let Err(e) = buf.write_at(0, &object.data) {
            return Answer::Failed(e, Some(buf));
        }
        self.meter.count(|s| s.loaded_bytes += layout.bytes());
        Answer::Loaded(Loaded::new(buf, object.found()))
    }
}

fn on_demand(operation: &'static str) -> Error {
    Error::new(ErrorKind::Io, operation, "the mock is set to fail here")
}

#[derive(Debug)]
struct Faulty {
    faults: Faults,
    keys: AtomicU64,
}

impl Faulty {
    fn new(faults: Faults) -> Self {
        Self { faults, keys: AtomicU64::new(0) }
    }

    /// Counts a key; whether it fails.
    fn next(&self) -> bool {
        self.faults.hits(self.keys.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// A switch that stops the device.
#[derive(Debug, Default)]
struct Hang(Mutex<(bool, Vec<Waker>)>);

impl Hang {
    async fn passed(&self) {
        poll_fn(|cx| {
            let mut hang = self.0.lock();
            if !hang.0 {
                return Poll::Ready(());
            }
            hang.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
