//! The adapter.

use std::collections::VecDeque;
use std::pin::Pin as Pinned;
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Namespace, Result};
use kvstrata_disk::{NewObject, Settings, Store, StoreLayout, StoreStats, Writer};
use kvstrata_io::{Disk, IoEngine, OsDisk, OsOptions};
use kvstrata_l2::{
    Adapter, Answer, Context, Driver, Found, Get, GetSink, Idle, Keys, L2Desc, L2List, L2Quotas, L2Remove,
    L2Store, L2Usage, ListPage, MemoryKinds, Miss, PartUsage, Pass, Probe, Put, PutSink, StoreUsage, Timer,
    closed, latch, timed_out, until,
};
use kvstrata_mem::Allocate;
use parking_lot::Mutex;

use crate::FsConfig;
use crate::batch::{Incoming, Outgoing};
use crate::jobs::{Loading, Storing, spawn_loads, wrong_length};

/// What the adapter is given instead of reaching for it.
#[derive(Debug)]
pub struct FsContext<D: Disk> {
    /// The file system, whose engine has the threads that load and store.
    pub disk: Arc<D>,
    /// The clock of all deadlines, and where the tasks that watch them run.
    pub l2: Context,
    /// Who writes: the process and a number drawn at random.
    pub writer: Writer,
    /// What will be stored; a store that was written with other settings is refused.
    pub namespaces: Vec<Namespace>,
}

/// An adapter over one directory. Cheap to clone.
#[derive(Debug)]
pub struct FsStore<D: Disk>(Arc<Inner<D>>);

impl<D: Disk> Clone for FsStore<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<D: Disk> {
    desc: L2Desc,
    store: Arc<Store<D>>,
    driver: Driver,
    /// How many loads of one request run at once.
    threads: usize,
}

/// Opens an adapter over this machine's file systems, with an engine and `num_workers` threads of its own. `memory` is where
/// the buffers come from: io_uring registers it.
///
/// # Errors
/// As [`FsStore::open`].
pub fn open_os(
    config: &FsConfig,
    l2: Context,
    writer: Writer,
    namespaces: Vec<Namespace>,
    memory: Option<Arc<dyn Allocate>>,
) -> Result<FsStore<OsDisk>> {
    config.validate()?;
    let options = OsOptions {
        engine: config.engine(),
        threads: config.num_workers,
        depth: config.iouring_queue_depth,
        memory,
        thread_name: "kvs-fs".into(),
        ..OsOptions::default()
    };
    let disk = OsDisk::new(options).map_err(|e| Error::io("start disk threads", e))?;
    // A link to the directory is followed once, here: the store itself opens no links.
    let base_path = std::fs::canonicalize(&config.base_path).unwrap_or_else(|_| config.base_path.clone());
    let config = FsConfig { base_path, ..config.clone() };
    FsStore::open(&config, FsContext { disk: Arc::new(disk), l2, writer, namespaces })
}

impl<D: Disk> FsStore<D> {
    /// Opens the store in `base_path`, or makes one. Blocks while the index is recovered.
    ///
    /// # Errors
    /// Before anything is changed: `Invalid` names the key and what would be accepted; `Mismatch` what differs from the
    /// store that is there; `Busy` if another adapter or process has it open; `NoSpace`, `Io` as the device says.
    pub fn open(config: &FsConfig, cx: FsContext<D>) -> Result<Self> {
        config.validate()?;
        for (key, why) in config.without_effect() {
            tracing::warn!(adapter = %config.name, "{key} has no effect: {why}");
        }
        let capacity = config.capacity()?;
        let layout = config.layout_on(&*cx.disk)?;
        if layout == StoreLayout::Slab && config.relative_tmp_dir.is_some() {
            tracing::warn!(adapter = %config.name, "relative_tmp_dir has no effect: nothing is written beside the slab layout");
        }
        let store = Store::open(
            cx.disk,
            Settings {
                root: config.base_path.clone(),
                layout: Some(layout),
                tmp: config.relative_tmp_dir.clone(),
                capacity,
                policy: config.policy()?,
                quotas: config.quotas()?,
                durability: config.durability(),
                direct: config.direct(layout),
                no_atime: config.no_atime.0,
                writer: cx.writer,
                namespaces: cx.namespaces,
                shared: config.shared,
            },
        )
        .map_err(|e| e.with("adapter", &config.name))?;
        Ok(Self::over(store, &config.name, cx.l2, config.num_workers))
    }

    /// An adapter over a store that is open already, with an eviction policy of the caller's perhaps. `threads` loads of one
    /// request run at once.
    pub fn over(store: Arc<Store<D>>, name: &str, l2: Context, threads: usize) -> Self {
        let desc = L2Desc {
            name: name.into(),
            alignment: 4096,
            kinds: MemoryKinds::HOST,
            max_batch: 4096,
            durable: true,
            shared: store.is_shared(),
        };
        Self(Arc::new(Inner { desc, store, driver: Driver::new(l2), threads: threads.max(1) }))
    }

    /// The adapter with everything it offers.
    pub fn adapter(&self) -> Adapter {
        let store = &self.0.store;
        Adapter {
            store: Arc::new(self.clone()),
            remove: Some(Arc::new(self.clone())),
            list: Some(Arc::new(self.clone())),
            usage: Some(Arc::new(self.clone())),
            quotas: store.keeps_quotas().then(|| Arc::clone(store) as Arc<dyn L2Quotas>),
        }
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<Store<D>> {
        &self.0.store
    }

    /// The clock of all deadlines.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        self.0.driver.timer()
    }

    /// Why the adapter is out of service, if it is: see [`Store::fault`].
    pub fn fault(&self) -> Option<Error> {
        self.0.store.fault()
    }

    /// What the store counted.
    pub fn stats(&self) -> StoreStats {
        self.0.store.stats()
    }

    fn begin_put(&self, request: Put, done: &PutSink, pass: &Pass) -> Idle {
        let (job, idle) = latch(Some(pass.clone()));
        let mut objects = Vec::with_capacity(request.items.len());
        let mut bufs = Vec::with_capacity(request.items.len());
        for (position, item) in request.items.into_iter().enumerate() {
            let bytes = item.layout.bytes();
            if item.buf.len() as u64 != bytes {
                done.answer(position, Err(wrong_length("store object", item.buf.len(), bytes)));
                continue;
            }
            if !MemoryKinds::HOST.takes(item.buf.region().kind()) {
                done.answer(position, Err(not_host("store object")));
                continue;
            }
            objects.push(NewObject {
                key: item.key,
                layout: item.layout.id(),
                len: bytes,
                digest: item.digest,
            });
            bufs.push((position, item.buf));
        }
        let begun = self.0.store.begin(&objects);
        // Head first, so that what a deadline or a limit cuts off is the tail.
        let mut together = Outgoing::new();
        for ((object, begin), (position, buf)) in objects.into_iter().zip(begun).zip(bufs) {
            let store = Arc::clone(&self.0.store);
            let storing = Storing { store, buf, position, done: done.clone(), job: job.clone() };
            storing.go(object, begin, &mut together);
        }
        together.submit(&self.0.store);
        idle
    }

    fn begin_get(&self, request: Get, done: &GetSink, pass: &Pass) -> Idle {
        let (job, idle) = latch(Some(pass.clone()));
        let mut wanted = Vec::with_capacity(request.items.len());
        let mut bufs = Vec::with_capacity(request.items.len());
        for (position, item) in request.items.into_iter().enumerate() {
            let bytes = item.layout.bytes();
            if item.buf.len() as u64 != bytes {
                let e = wrong_length("load object", item.buf.len(), bytes);
                done.answer(position, Answer::Failed(e, Some(item.buf)));
                continue;
            }
            if !MemoryKinds::HOST.takes(item.buf.region().kind()) {
                done.answer(position, Answer::Failed(not_host("load object"), Some(item.buf)));
                continue;
            }
            wanted.push((item.key, item.layout.id()));
            bufs.push((position, bytes, item.buf));
        }
        let pins = match self.0.store.pin(&wanted) {
            Ok(pins) => pins,
            Err(e) => {
                for (position, _, buf) in bufs {
                    done.answer(position, Answer::Failed(e.clone(), Some(buf)));
                }
                return idle;
            }
        };
        let (mut loads, mut together) = (VecDeque::new(), Incoming::new());
        for ((position, bytes, buf), pin) in bufs.into_iter().zip(pins) {
            match pin {
                Ok(pin) if pin.is_settled() && pin.found().len != bytes => {
                    done.answer(position, Answer::Miss(Miss::Layout, Some(buf)));
                }
                Ok(pin) => {
                    let store = Arc::clone(&self.0.store);
                    let load = Loading { store, pin, buf, position, done: done.clone(), job: job.clone() };
                    if let Err(load) = together.add(load) {
                        loads.push_back(load);
                    }
                }
                Err(miss) => {
                    done.answer(position, Answer::Miss(miss, Some(buf)));
                }
            }
        }
        together.submit(&self.0.store);
        spawn_loads(&self.0.store, loads, self.0.threads);
        idle
    }
}

impl<D: Disk> FsStore<D> {
    /// Looks for what the index does not have: another writer of the directory may have stored it.
    async fn look(
        &self,
        request: Probe,
        found: Vec<Option<Found>>,
        pass: Pass,
    ) -> Vec<Result<Option<Found>>> {
        const OP: &str = "look objects up";
        let Probe { keys, deadline, .. } = request;
        let missing: VecDeque<usize> = (0..keys.len()).filter(|i| found[*i].is_none()).collect();
        let jobs = missing.len().min(self.0.threads);
        let missing = Arc::new(Mutex::new(missing));
        let answers: Vec<Option<Result<Option<Found>>>> =
            found.into_iter().map(|f| f.map(|f| Ok(Some(f)))).collect();
        let answers = Arc::new(Mutex::new(answers));
        let (job, mut idle) = latch(Some(pass));
        for _ in 0..jobs {
            let (missing, answers, keys) = (Arc::clone(&missing), Arc::clone(&answers), keys.clone());
            let (job, store) = (job.clone(), Arc::clone(&self.0.store));
            let look = move || {
                while let Some(i) = { missing.lock().pop_front() } {
                    let found = store.look(&keys[i]);
                    answers.lock()[i] = Some(found);
                }
                drop(job);
            };
            // What a closed engine drops is answered below.
            drop(self.0.store.disk().engine().spawn(true, Box::new(look)));
        }
        drop(job);
        let late = match until(&**self.0.driver.timer(), deadline, Pinned::new(&mut idle)).await {
            Some(()) => closed(OP),
            None => {
                // Nobody waits for the rest.
                missing.lock().clear();
                timed_out(OP, deadline)
            }
        };
        answers.lock().iter_mut().map(|a| a.take().unwrap_or_else(|| Err(late.clone()))).collect()
    }
}

fn not_host(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, operation, "this adapter moves bytes from and to host memory only")
}

#[async_trait]
impl<D: Disk> L2Store for FsStore<D> {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store objects";
        let deadline = request.deadline;
        // Before any job begins, so that a shutdown either refuses the request or waits for it.
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => {
                drop(request);
                return done.answer_rest(|_| Err(e.clone()));
            }
        };
        let idle = self.begin_put(request, &done, &pass);
        self.0.driver.watch(pass, OP, deadline, done, idle).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load objects";
        let deadline = request.deadline;
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => {
                for (position, item) in request.items.into_iter().enumerate() {
                    done.answer(position, Answer::Failed(e.clone(), Some(item.buf)));
                }
                return;
            }
        };
        let idle = self.begin_get(request, &done, &pass);
        self.0.driver.watch(pass, OP, deadline, done, idle).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let pass = match self.0.driver.enter("look objects up", request.deadline) {
            Ok(pass) => pass,
            Err(e) => return request.keys.iter().map(|_| Err(e.clone())).collect(),
        };
        match self.0.store.probe(&request.keys) {
            Ok(found) if self.0.store.is_shared() => self.look(request, found, pass).await,
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(e) => request.keys.iter().map(|_| Err(e.clone())).collect(),
        }
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.driver.shutdown(deadline).await?;
        let store = Arc::clone(&self.0.store);
        let (job, mut idle) = latch(None);
        let close = Box::new(move || {
            store.close();
            drop(job);
        });
        if let Err(close) = self.0.store.disk().engine().spawn(false, close) {
            // The engine went first; the snapshot is written here instead.
            close();
        }
        until(&**self.0.driver.timer(), deadline, Pinned::new(&mut idle))
            .await
            .ok_or_else(|| timed_out("shut adapter down", deadline))
    }
}

#[async_trait]
impl<D: Disk> L2Remove for FsStore<D> {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        const OP: &str = "remove objects";
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return keys.iter().map(|_| Err(e.clone())).collect(),
        };
        let answers: Arc<Mutex<Vec<Option<Result<bool>>>>> = Arc::new(Mutex::new(vec![None; keys.len()]));
        let (job, mut idle) = latch(Some(pass));
        for (at, key) in keys.iter().cloned().enumerate() {
            let (answers, job, store) = (Arc::clone(&answers), job.clone(), Arc::clone(&self.0.store));
            store.clone().hold_then(&key.clone(), move |hold| {
                // The wait for the key may have ended here and now: removing blocks, so it is an engine's work.
                drop(store.disk().engine().spawn(
                    false,
                    Box::new(move || {
                        let removed = hold.remove(&key);
                        drop(hold);
                        answers.lock()[at] = Some(removed);
                        drop(job);
                    }),
                ));
            });
        }
        drop(job);
        let late = match until(&**self.0.driver.timer(), deadline, Pinned::new(&mut idle)).await {
            // A job that the engine refused was dropped.
            Some(()) => closed(OP),
            None => timed_out(OP, deadline),
        };
        answers.lock().iter_mut().map(|a| a.take().unwrap_or_else(|| Err(late.clone()))).collect()
    }
}

#[async_trait]
impl<D: Disk> L2List for FsStore<D> {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        if self.0.driver.is_closed() {
            return Err(closed("list objects"));
        }
        self.0.store.list(cursor, limit)
    }
}

impl<D: Disk> L2Usage for FsStore<D> {
    fn usage(&self) -> StoreUsage {
        self.0.store.usage()
    }

    fn parts(&self) -> Vec<PartUsage> {
        Vec::new()
    }
}
