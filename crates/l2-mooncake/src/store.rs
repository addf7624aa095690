//! The adapter.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{
    Adapter, Answer, Context, Driver, Found, Get, GetSink, Keys, L2Desc, L2Remove, L2Store, MemoryKinds,
    Pass, Probe, Put, PutSink, timed_out, until,
};
use kvstrata_mem::{Allocate, MemfdRegion, Region, RegionOptions, RegionWatch, Slab};
use tokio::sync::oneshot;

use crate::config::MooncakeConfig;
use crate::gate::Gate;
use crate::lanes::Lanes;
use crate::objects::{Form, Objects};
use crate::route::{Counted, Route, RouteCounts, RouteStats};

/// What the adapter is given instead of reaching for it.
#[derive(Clone, Debug)]
pub struct MooncakeContext {
    /// The clock of all deadlines, and where the tasks that watch them run.
    pub l2: Context,
    /// A number that no other process has.
    pub run: u64,
    /// The memory that buffers come from, if it is known: it is made known to the transport at the start. Other memory is
    /// at its first use.
    pub memory: Option<Arc<dyn Allocate>>,
}

/// An adapter over a Mooncake cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MooncakeStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    desc: L2Desc,
    driver: Driver,
    objects: Arc<Objects>,
    lookup: Arc<Lanes>,
    retrieve: Arc<Lanes>,
    store: Arc<Lanes>,
    delete: Arc<Lanes>,
    config: MooncakeConfig,
}

/// Registers regions as they come and go.
struct Watch(Weak<dyn Route>, MemoryKinds);

impl RegionWatch for Watch {
    fn added(&self, region: &Arc<dyn Region>) {
        let Some(route) = self.0.upgrade().filter(|_| self.1.takes(region.kind())) else { return };
        if let Err(error) = route.register(region) {
            tracing::warn!(%error, ?region, "Mooncake does not know the memory yet; it is tried again at the first use");
        }
    }

    fn removed(&self, region: &Arc<dyn Region>) {
        if let Some(route) = self.0.upgrade() {
            route.unregister(region);
        }
    }
}

impl MooncakeStore {
    /// Opens an adapter over the way that the settings choose. Blocks while the cluster is looked for.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted; `Unavailable` if there is no way, or no master, with what was
    /// tried; `Mismatch` for a client of an unknown release.
    pub fn open(config: &MooncakeConfig, cx: &MooncakeContext) -> Result<Self> {
        config.validate()?;
        for (key, why) in config.without_effect() {
            tracing::warn!(adapter = %config.name, "{key} has no effect: {why}");
        }
        Self::over(crate::choose::route(config, cx.run)?, config, cx)
    }

    /// An adapter over a way of the caller's.
    ///
    /// # Errors
    /// `Invalid` for bad settings; what the system says if there is no memory or no thread.
    pub fn over(route: Arc<dyn Route>, config: &MooncakeConfig, cx: &MooncakeContext) -> Result<Self> {
        config.validate()?;
        let form = config.form();
        // Each key of ours is two of the store's, where it has a description.
        let per_key = if form == Form::Described { 2 } else { 1 };
        let desc = L2Desc {
            name: config.name.clone(),
            alignment: 64,
            kinds: route.kinds(),
            max_batch: (route.max_keys() / per_key).max(1),
            durable: true,
            shared: true,
        };
        let bytes = config.scratch_bytes();
        let scratch = MemfdRegion::new("kvstrata-mooncake", bytes, &RegionOptions::default())?;
        let scratch: Arc<dyn Region> = scratch;
        if let Err(error) = route.register(&scratch) {
            tracing::warn!(%error, "Mooncake does not know the descriptions' memory yet");
        }
        let scratch = Slab::new(vec![scratch])?.pool("descriptions", bytes as u64);
        if let Some(memory) = &cx.memory {
            memory.watch_regions(Arc::new(Watch(Arc::downgrade(&route), desc.kinds)));
        }
        let shared = Arc::new(Lanes::start("kvs-mc", config.num_workers)?);
        let lanes = |name: &str, own: Option<usize>| match own {
            Some(threads) => Lanes::start(name, threads).map(Arc::new),
            None => Ok(Arc::clone(&shared)),
        };
        let own = config.per_op_workers;
        let way = route.describe();
        let objects = Objects {
            route: Counted { inner: route, stats: Arc::new(RouteStats::default()) },
            form,
            prefix: config.key_prefix.clone(),
            scratch,
            gate: Gate::default(),
        };
        let inner = Inner {
            desc,
            driver: Driver::new(cx.l2.clone()),
            objects: Arc::new(objects),
            lookup: lanes("kvs-mc-look", own.lookup)?,
            retrieve: lanes("kvs-mc-get", own.retrieve)?,
            store: lanes("kvs-mc-put", own.store)?,
            delete: lanes("kvs-mc-del", own.delete)?,
            config: config.clone(),
        };
        tracing::info!(adapter = %config.name, form = ?form, "Mooncake Store {way}");
        Ok(Self(Arc::new(inner)))
    }

    /// The adapter with everything it offers.
    pub fn adapter(&self) -> Adapter {
        Adapter {
            store: Arc::new(self.clone()),
            remove: Some(Arc::new(self.clone())),
            list: None,
            usage: None,
            quotas: None,
        }
    }

    /// What was asked of the cluster so far.
    pub fn counts(&self) -> RouteCounts {
        self.0.objects.route.stats.counts()
    }

    /// What goes before every key.
    pub fn key_prefix(&self) -> &str {
        &self.0.objects.prefix
    }

    /// The way, in words.
    pub fn describe(&self) -> String {
        self.0.objects.route.inner.describe()
    }

    /// The deadline of an operation that moves bytes.
    fn deadline(&self, deadline: Instant) -> Instant {
        match self.0.config.transfer_timeout {
            Some(limit) => deadline.min(self.0.driver.timer().now() + limit),
            None => deadline,
        }
    }

    /// Runs `work` on a lane, whoever waits; the receiver resolves when it and all it owns are gone.
    fn run(lanes: &Lanes, pass: Pass, work: impl FnOnce() + Send + 'static) -> oneshot::Receiver<()> {
        let (end, ended) = oneshot::channel();
        lanes.push(move || {
            // Dropped last to first: what the work owns is free before the adapter counts as idle.
            let _pass = pass;
            let _end = end;
            work();
        });
        ended
    }

    /// Asks for something that gives no buffers of the caller's away.
    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        lanes: &Lanes,
        deadline: Instant,
        work: impl FnOnce(&Objects) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pass = self.0.driver.enter(operation, deadline)?;
        let (to, from) = oneshot::channel();
        let objects = Arc::clone(&self.0.objects);
        drop(Self::run(lanes, pass, move || drop(to.send(work(&objects)))));
        match until(&**self.0.driver.timer(), deadline, from).await {
            None => Err(timed_out(operation, deadline)),
            Some(Ok(answer)) => answer,
            Some(Err(_)) => {
                Err(Error::new(ErrorKind::Internal, operation, "the job ended without an answer"))
            }
        }
    }
}

#[async_trait]
impl L2Store for MooncakeStore {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store objects";
        let deadline = self.deadline(request.deadline);
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => {
                drop(request);
                return done.answer_rest(|_| Err(e.clone()));
            }
        };
        let mut items = Vec::with_capacity(request.items.len());
        for (position, item) in request.items.into_iter().enumerate() {
            match self.fits(OP, item.buf.len(), item.layout.bytes(), item.buf.region()) {
                Ok(()) => items.push((position, item)),
                Err(e) => {
                    done.answer(position, Err(e));
                }
            }
        }
        let (objects, sink) = (Arc::clone(&self.0.objects), done.clone());
        let ended = Self::run(&self.0.store, pass.clone(), move || objects.put(items, &sink));
        self.0.driver.watch(pass, OP, deadline, done, async { drop(ended.await) }).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load objects";
        let deadline = self.deadline(request.deadline);
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return request.refuse(&done, &e),
        };
        let mut items = Vec::with_capacity(request.items.len());
        for (position, item) in request.items.into_iter().enumerate() {
            match self.fits(OP, item.buf.len(), item.layout.bytes(), item.buf.region()) {
                Ok(()) => items.push((position, item)),
                Err(e) => {
                    done.answer(position, Answer::Failed(e, Some(item.buf)));
                }
            }
        }
        let (objects, sink) = (Arc::clone(&self.0.objects), done.clone());
        let ended = Self::run(&self.0.retrieve, pass.clone(), move || objects.get(items, &sink));
        self.0.driver.watch(pass, OP, deadline, done, async { drop(ended.await) }).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let keys = Arc::clone(&request.keys);
        if keys.is_empty() {
            return Vec::new();
        }
        let work = move |objects: &Objects| objects.probe(&keys);
        let found = self.ask("look objects up", &self.0.lookup, request.deadline, work).await;
        found.unwrap_or_else(|e| request.keys.iter().map(|_| Err(e.clone())).collect())
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.driver.shutdown(deadline).await?;
        let (to, from) = oneshot::channel();
        let objects = Arc::clone(&self.0.objects);
        self.0.store.push(move || {
            objects.route.inner.close();
            // Nobody may wait any more.
            let _ = to.send(());
        });
        let closed = until(&**self.0.driver.timer(), deadline, from).await;
        closed.map(drop).ok_or_else(|| timed_out("shut adapter down", deadline))
    }
}

impl MooncakeStore {
    fn fits(&self, operation: &'static str, len: usize, bytes: u64, region: &Arc<dyn Region>) -> Result<()> {
        if len as u64 != bytes {
            return Err(Error::invalid(operation, "the buffer is not as long as the layout says")
                .with("buffer", len)
                .with("layout", bytes));
        }
        if !self.0.desc.kinds.takes(region.kind()) {
            let why = "this way takes shared memory only: a memfd, or named shared memory";
            return Err(Error::new(ErrorKind::Unsupported, operation, why)
                .with("kind", format_args!("{:?}", region.kind())));
        }
        Ok(())
    }
}

#[async_trait]
impl L2Remove for MooncakeStore {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let asked = Arc::clone(&keys);
        let work = move |objects: &Objects| objects.remove(&asked);
        let removed = self.ask("remove objects", &self.0.delete, deadline, work).await;
        removed.unwrap_or_else(|e| keys.iter().map(|_| Err(e.clone())).collect())
    }
}
