//! The adapter.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Namespace, Result};
use kvstrata_disk::{Mover, NewObject, Settings, Store, StoreAdapter, StoreLayout, StoreStats, Writer};
use kvstrata_io::{Disk, IoEngine, Job, OsDisk, OsOptions};
use kvstrata_l2::{
    Adapter, Answer, Context, Get, GetSink, Idle, L2Desc, MemoryKinds, Miss, Pass, Put, PutDigest, PutSink,
    Timer, latch,
};
use kvstrata_mem::Allocate;

use crate::FsConfig;
use crate::batch::Incoming;
use crate::groups::Groups;
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
pub struct FsStore<D: Disk>(StoreAdapter<Host<D>>);

impl<D: Disk> Clone for FsStore<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Host memory, by the disk's own engine.
#[derive(Debug)]
struct Host<D: Disk> {
    store: Arc<Store<D>>,
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
                policy: config.limits().policy()?,
                quotas: config.limits().quotas()?,
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
        Self(StoreAdapter::new(desc, Host { store, threads: threads.max(1) }, l2))
    }

    /// The adapter with everything it offers.
    pub fn adapter(&self) -> Adapter {
        self.0.adapter()
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<Store<D>> {
        &self.0.mover().store
    }

    /// The clock of all deadlines.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        self.0.timer()
    }

    /// Why the adapter is out of service, if it is: see [`Store::fault`].
    pub fn fault(&self) -> Option<Error> {
        self.store().fault()
    }

    /// What the store counted.
    pub fn stats(&self) -> StoreStats {
        self.store().stats()
    }
}

impl<D: Disk> Mover for Host<D> {
    type Disk = D;

    fn store(&self) -> &Arc<Store<D>> {
        &self.store
    }

    fn begin_put(self: &Arc<Self>, request: Put, done: &PutSink, pass: &Pass) -> Idle {
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
                digest: item.digest.known(),
            });
            bufs.push((position, item.buf, item.digest == PutDigest::Due));
        }
        let begun = self.store.begin(&objects);
        // Head first, so that what a deadline or a limit cuts off is the tail.
        let mut ready = VecDeque::with_capacity(begun.len());
        for ((object, begin), (position, buf, due)) in objects.into_iter().zip(begun).zip(bufs) {
            let store = Arc::clone(&self.store);
            let storing = Storing { store, buf, due, position, done: done.clone(), job: job.clone() };
            ready.extend(storing.go(object, begin));
        }
        match self.store.layout() {
            StoreLayout::Files => ready.into_iter().for_each(|(claim, storing)| storing.spawn(claim)),
            StoreLayout::Slab => Groups::begin(&self.store, ready),
        }
        idle
    }

    fn begin_get(self: &Arc<Self>, request: Get, done: &GetSink, pass: &Pass) -> Idle {
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
        let pins = match self.store.pin(&wanted) {
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
                    let store = Arc::clone(&self.store);
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
        together.submit(&self.store, self.threads);
        spawn_loads(&self.store, loads, self.threads);
        idle
    }

    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job> {
        self.store.disk().engine().spawn(urgent, job)
    }

    fn width(&self) -> usize {
        self.threads
    }
}

fn not_host(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, operation, "this adapter moves bytes from and to host memory only")
}
