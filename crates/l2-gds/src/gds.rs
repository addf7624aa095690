//! The adapter.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use kvstrata_core::{Error, ErrorKind, Namespace, Result};
use kvstrata_disk::{
    Mover, NewObject, Settings, Store, StoreAdapter, StoreLayout, StoreStats, Wanted, Writer, names,
};
use kvstrata_io::{IoEngine, Job, Mount, OsDisk, OsOptions, ThreadPool};
use kvstrata_l2::{
    Adapter, Answer, Context, Get, GetSink, Idle, L2Desc, MemoryKinds, Miss, Pass, Put, PutDigest, PutSink,
    latch,
};
use kvstrata_mem::{Allocate, Region, RegionWatch};

use crate::bounce::Bounce;
use crate::cufile::{Cufile, driver, library};
use crate::device::Gpus;
use crate::jobs::{Loading, Route, Storing};
use crate::measure::Bench;
use crate::order::{Order, Orders};
use crate::transfer::By;
use crate::way::{Asked, Choice, Facts, Way, choose, decided, in_memory};
use crate::{GdsConfig, Prober};

/// What the adapter is given instead of reaching for it.
#[derive(Debug)]
pub struct GdsContext {
    /// The file system, whose engine moves what passes the host. [`os_disk`] makes one.
    pub disk: Arc<OsDisk>,
    /// The clock of all deadlines, and where the tasks that watch them run.
    pub l2: Context,
    /// Who writes: the process and a number drawn at random.
    pub writer: Writer,
    /// What will be stored; a store that was written with other settings is refused.
    pub namespaces: Vec<Namespace>,
    /// The GPUs ([`crate::cuda()`]), or why there are none.
    pub gpus: Result<Arc<dyn Gpus>>,
    /// How cuFile is tried before it is used.
    pub prober: Prober,
    /// The memory that buffers come from, if it is known: cuFile registers a GPU's regions once.
    pub memory: Option<Arc<dyn Allocate>>,
    /// What engines say about single buffers. Share one among the adapters of an engine.
    pub orders: Arc<Orders>,
}

/// An adapter over one directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GdsStore(StoreAdapter<Inner>);

/// Dropped in this order: cuFile lets go of files and memory before they are closed and unmapped.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) ways: BTreeMap<u32, Choice>,
    pub(crate) workers: ThreadPool<()>,
    width: usize,
    cufile: Option<Arc<Cufile>>,
    bounce: Option<Bounce>,
    gpus: Result<Arc<dyn Gpus>>,
    orders: Arc<Orders>,
    /// Whether files hold many objects, so that they stay registered.
    pub(crate) keeps_files: bool,
    pub(crate) by: By,
    pub(crate) store: Arc<Store<OsDisk>>,
}

/// A disk for [`GdsContext::disk`], with as many threads as the settings ask for.
///
/// # Errors
/// What the system says if it refuses a thread.
pub fn os_disk(config: &GdsConfig) -> Result<Arc<OsDisk>> {
    let options =
        OsOptions { threads: config.threads(), thread_name: "kvs-gds-io".into(), ..OsOptions::default() };
    OsDisk::new(options).map(Arc::new).map_err(|e| Error::io("start disk threads", e))
}

impl GdsStore {
    /// Opens the store in `gds_path`, or makes one. Blocks while the index is recovered and the ways are tried.
    ///
    /// # Errors
    /// Before anything is changed: `Invalid` names the key and what would be accepted; `Unavailable` what is missing for GPU
    /// memory; `Mismatch` what differs from the store that is there; `Busy` if somebody else has it open. Then
    /// `Unavailable` if a way is asked for that is not there, and `NoSpace`, `Io` as the device says.
    pub fn open(config: &GdsConfig, cx: GdsContext) -> Result<Self> {
        config.validate()?;
        let about = |e: Error| e.with("adapter", &config.name);
        if let Err(e) = &cx.gpus
            && !config.allow_host
        {
            let e = e.clone().with("gds_path", config.gds_path.display());
            return Err(about(e.with("allow_host", "true would let it work on host memory")));
        }
        for (key, why) in config.without_effect() {
            tracing::warn!(adapter = %config.name, "{key} has no effect: {why}");
        }
        let in_memory = in_memory(&file_system(&config.gds_path));
        let direct = match config.direct() {
            // There is no cache to go past, and one thread of a ring would copy for all that is in flight.
            Wanted::Try if in_memory => Wanted::Off,
            wanted => wanted,
        };
        let by = if in_memory || direct == Wanted::Off { By::Caller } else { By::Engine };
        let store = Store::open(
            cx.disk,
            Settings {
                root: config.gds_path.clone(),
                layout: None,
                tmp: None,
                capacity: config.capacity()?,
                policy: config.limits().policy()?,
                quotas: config.limits().quotas()?,
                durability: config.durability(),
                direct,
                no_atime: kvstrata_disk::Wanted::Try,
                writer: cx.writer,
                namespaces: cx.namespaces,
                shared: false,
            },
        )
        .map_err(about)?;
        let keeps_files = store.layout() == StoreLayout::Slab;
        let workers = ThreadPool::for_jobs("kvs-gds", config.threads())
            .map_err(|e| about(Error::io("start threads", e)))?;
        let (mut ways, mut bounce, mut cufile) = (BTreeMap::new(), None, None);
        if let Ok(gpus) = &cx.gpus {
            let found = Opening {
                asked: config.asked(),
                bytes: config.bounce_bytes(),
                gpus,
                store: &store,
                prober: &cx.prober,
                l2: &cx.l2,
                writer: cx.writer,
            }
            .ways()
            .map_err(about)?;
            (ways, bounce, cufile) = (found.ways, found.bounce, found.cufile.map(Arc::new));
        }
        if let (Some(cufile), Some(memory)) = (&cufile, &cx.memory) {
            memory.watch_regions(Arc::new(Registers(Arc::downgrade(cufile))));
        }
        for (gpu, choice) in &ways {
            tracing::info!(adapter = %config.name, path = %config.gds_path.display(), gpu, "GPU memory goes by {choice}");
        }
        let desc = L2Desc {
            name: config.name.clone(),
            alignment: 4096,
            kinds: MemoryKinds { device: !ways.is_empty(), ..MemoryKinds::HOST },
            max_batch: 4096,
            durable: true,
            shared: false,
        };
        let (gpus, orders) = (cx.gpus, cx.orders);
        let inner = Inner {
            ways,
            workers,
            width: config.threads(),
            cufile,
            bounce,
            gpus,
            orders,
            keeps_files,
            by,
            store,
        };
        Ok(Self(StoreAdapter::new(desc, inner, cx.l2)))
    }

    /// The adapter with everything it offers.
    pub fn adapter(&self) -> Adapter {
        self.0.adapter()
    }

    fn inner(&self) -> &Inner {
        self.0.mover()
    }

    /// The way of each GPU's memory, by ordinal, and why it is that. Empty where there is no CUDA: host memory alone is
    /// taken then.
    pub fn ways(&self) -> &BTreeMap<u32, Choice> {
        &self.inner().ways
    }

    /// Where an engine says when buffers may be touched.
    pub fn orders(&self) -> &Arc<Orders> {
        &self.inner().orders
    }

    /// How many files and memory regions cuFile knows of by this adapter.
    pub fn registered(&self) -> (usize, usize) {
        self.inner().cufile.as_ref().map_or((0, 0), |cufile| cufile.registered())
    }

    /// The threads that carry requests out: whatever moves bytes, one of them waits for it.
    pub fn threads(&self) -> &ThreadPool<()> {
        &self.inner().workers
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<Store<OsDisk>> {
        &self.inner().store
    }

    /// What the store counted.
    pub fn stats(&self) -> StoreStats {
        self.inner().store.stats()
    }
}

impl Mover for Inner {
    type Disk = OsDisk;

    fn store(&self) -> &Arc<Store<OsDisk>> {
        &self.store
    }

    fn begin_put(self: &Arc<Self>, request: Put, done: &PutSink, pass: &Pass) -> Idle {
        let (job, idle) = latch(Some(pass.clone()));
        let Put { items, deadline, affinity } = request;
        let (mut objects, mut rest) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for (position, item) in items.into_iter().enumerate() {
            let order = self.orders.take(&item.buf);
            let route = fits("store object", item.buf.len(), item.layout.bytes())
                .and_then(|()| self.route(item.buf.region().kind(), &affinity));
            match route {
                Ok(route) => {
                    let (layout, len, digest) = (item.layout.id(), item.layout.bytes(), item.digest.known());
                    // The bounce makes its own as the bytes pass.
                    let due = item.digest == PutDigest::Due && !matches!(route, Route::Bounce(_));
                    objects.push(NewObject { key: item.key, layout, len, digest });
                    rest.push((position, item.buf, due, route, order));
                }
                Err(e) => drop(done.answer(position, Err(e))),
            }
        }
        let begun = self.store.begin(&objects);
        // Head first, so that what a deadline or a limit cuts off is the tail.
        for ((object, begin), (position, buf, due, route, order)) in objects.into_iter().zip(begun).zip(rest)
        {
            let (inner, done, job) = (Arc::clone(self), done.clone(), job.clone());
            Storing { inner, buf, object, due, route, order, position, until: deadline, done, job }.go(begin);
        }
        idle
    }

    fn begin_get(self: &Arc<Self>, request: Get, done: &GetSink, pass: &Pass) -> Idle {
        let (job, idle) = latch(Some(pass.clone()));
        let Get { items, deadline, affinity } = request;
        let (mut wanted, mut rest) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for (position, item) in items.into_iter().enumerate() {
            let order = self.orders.take(&item.buf);
            let route = fits("load object", item.buf.len(), item.layout.bytes())
                .and_then(|()| self.route(item.buf.region().kind(), &affinity));
            match route {
                Ok(route) => {
                    wanted.push((item.key, item.layout.id()));
                    rest.push((position, item.layout.bytes(), item.buf, route, order));
                }
                Err(e) => drop(done.answer(position, Answer::Failed(e, Some(item.buf)))),
            }
        }
        let pins = match self.store.pin(&wanted) {
            Ok(pins) => pins,
            Err(e) => {
                for (position, _, buf, ..) in rest {
                    done.answer(position, Answer::Failed(e.clone(), Some(buf)));
                }
                return idle;
            }
        };
        for ((position, bytes, buf, route, order), pin) in rest.into_iter().zip(pins) {
            match pin {
                Ok(pin) if pin.found().len != bytes => {
                    done.answer(position, Answer::Miss(Miss::Layout, Some(buf)));
                }
                Ok(pin) => {
                    let (inner, done, job) = (Arc::clone(self), done.clone(), job.clone());
                    Loading { inner, pin, buf, route, order, position, until: deadline, done, job }.spawn();
                }
                Err(miss) => {
                    done.answer(position, Answer::Miss(miss, Some(buf)));
                }
            }
        }
        idle
    }

    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job> {
        self.workers.spawn(urgent, job)
    }

    fn width(&self) -> usize {
        self.width
    }
}

impl Inner {
    pub(crate) fn bounce(&self) -> Result<&Bounce> {
        self.bounce.as_ref().ok_or_else(|| absent("bounce buffers"))
    }

    pub(crate) fn cufile(&self) -> Result<&Cufile> {
        self.cufile.as_deref().ok_or_else(|| absent("cuFile"))
    }

    pub(crate) fn gpus(&self) -> Result<&Arc<dyn Gpus>> {
        self.gpus.as_ref().map_err(Clone::clone)
    }

    /// Runs `work`, which has no stream, where `order` wants it: this thread waits, not the engine's.
    pub(crate) fn in_order<T>(
        &self,
        ordinal: u32,
        order: &Order,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if order.after.is_none() && order.signal.is_none() {
            return work();
        }
        let mut copies = self.gpus()?.copies(ordinal)?;
        if let Some(event) = &order.after {
            copies.after(&**event)?;
            let mark = copies.mark()?;
            copies.reached(mark)?;
        }
        let done = work()?;
        if let Some(event) = &order.signal {
            copies.signal(&**event)?;
        }
        Ok(done)
    }
}

fn absent(what: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "move GPU memory", "the adapter chose a way that it did not open")
        .with("needs", what)
}

fn fits(operation: &'static str, buf: usize, layout: u64) -> Result<()> {
    if buf as u64 == layout {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, operation, "the buffer is not as long as the layout says")
        .with("buffer", buf)
        .with("layout", layout))
}

/// Tells an adapter's cuFile of memory as long as there is one.
struct Registers(Weak<Cufile>);

impl RegionWatch for Registers {
    fn added(&self, region: &Arc<dyn Region>) {
        if let Some(cufile) = self.0.upgrade() {
            cufile.added(region);
        }
    }

    fn removed(&self, region: &Arc<dyn Region>) {
        if let Some(cufile) = self.0.upgrade() {
            cufile.removed(region);
        }
    }
}

/// The ways that an adapter of these settings would choose in a directory that is there, by GPU, without opening it. Where
/// direct is proved, only the run at the start decides. `file` is made there and removed.
///
/// # Errors
/// Per GPU as [`choose`].
pub fn foresee(
    config: &GdsConfig,
    gpus: &dyn Gpus,
    prober: &Prober,
    file: &Path,
) -> Vec<(u32, Result<Choice>)> {
    let (asked, fs) = (config.asked(), file_system(file.parent().unwrap_or(file)));
    let one = |ordinal: u32| -> Result<Choice> {
        if let Some(choice) = decided(asked, &fs)? {
            return Ok(choice);
        }
        let found = prober.ask(file, ordinal, asked.way == Some(Way::Compat));
        match (asked.way, found) {
            (None, Ok(proof)) => {
                Ok(Choice { way: Way::Direct, why: format!("{proof}; a short run at the start decides") })
            }
            (_, found) => choose(asked, &facts(&fs, found)),
        }
    };
    gpus.ordinals().into_iter().map(|ordinal| (ordinal, one(ordinal))).collect()
}

/// The name of the file system that a directory is on, or will be.
fn file_system(dir: &Path) -> String {
    Mount::of(dir).map_or_else(|| "unknown".into(), |mount| mount.fs)
}

/// What the choice of ways is made of.
struct Opening<'a> {
    asked: Asked,
    bytes: usize,
    gpus: &'a Arc<dyn Gpus>,
    store: &'a Arc<Store<OsDisk>>,
    prober: &'a Prober,
    l2: &'a Context,
    writer: Writer,
}

struct Opened {
    ways: BTreeMap<u32, Choice>,
    bounce: Option<Bounce>,
    cufile: Option<Cufile>,
}

impl Opening<'_> {
    fn ways(&self) -> Result<Opened> {
        let fs = file_system(self.store.root());
        let decided = decided(self.asked, &fs)?;
        let (mut ways, mut bounce, mut cufile) = (BTreeMap::new(), None, None);
        // What holds for a machine is not asked for each of its GPUs anew.
        let mut refused = None;
        for ordinal in self.gpus.ordinals() {
            let choice = match (&decided, &refused) {
                (Some(choice), _) => choice.clone(),
                (None, Some(why)) => choose(self.asked, &facts(&fs, Err(String::clone(why))))?,
                (None, None) => self.try_cufile(&fs, ordinal, &mut bounce, &mut cufile, &mut refused)?,
            };
            if choice.way == Way::Bounce && bounce.is_none() {
                bounce = Some(self.bounce()?);
            }
            ways.insert(ordinal, choice);
        }
        if ways.values().all(|c| c.way == Way::Bounce) {
            cufile = None;
        }
        if ways.values().all(|c| c.way != Way::Bounce) {
            bounce = None;
        }
        Ok(Opened { ways, bounce, cufile })
    }

    fn bounce(&self) -> Result<Bounce> {
        Bounce::new(Arc::clone(self.gpus), self.bytes, Arc::clone(&self.l2.timer))
    }

    fn try_cufile(
        &self,
        fs: &str,
        ordinal: u32,
        bounce: &mut Option<Bounce>,
        cufile: &mut Option<Cufile>,
        refused: &mut Option<String>,
    ) -> Result<Choice> {
        let compat = self.asked.way == Some(Way::Compat);
        let probe = self.temp(u64::from(ordinal) * 2);
        let mut found = self.prober.ask(&probe, ordinal, compat);
        if found.is_ok() && cufile.is_none() {
            match library(&self.prober.search).and_then(|library| driver(&library, compat)) {
                Ok(driver) => *cufile = Some(Cufile::new(driver, Arc::clone(self.gpus))),
                Err(e) => found = Err(e.to_string()),
            }
        }
        if let Err(why) = &found {
            *refused = Some(why.clone());
        }
        let mut facts = facts(fs, found);
        if self.asked.way.is_none()
            && facts.direct.is_ok()
            && let Some(cufile) = cufile
        {
            let bounce = match bounce {
                Some(bounce) => bounce,
                None => bounce.insert(self.bounce()?),
            };
            let (disk, timer, gpus) = (&**self.store.disk(), &*self.l2.timer, self.gpus);
            let bench = Bench { disk, timer, gpus, bounce, cufile, ordinal };
            match bench.run(&self.temp(u64::from(ordinal) * 2 + 1)) {
                Ok(measured) => facts.measured = Some(measured),
                Err(error) => tracing::warn!(%error, gpu = ordinal, "the ways could not be measured"),
            }
        }
        choose(self.asked, &facts)
    }

    /// A file's name that only this run has, and that the next one removes if this one does not.
    fn temp(&self, count: u64) -> std::path::PathBuf {
        self.store.tmp().join(names::temp_name(self.writer.pid, !self.writer.id, count))
    }
}

/// The answer is about whichever way was asked for.
fn facts(fs: &str, found: Result<String, String>) -> Facts {
    Facts { fs: fs.to_owned(), direct: found.clone(), compat: found, measured: None }
}
