//! `kvstrata bench l2`: one adapter's stores, lookups, loads and deletes, with plain calls beside them.

mod device;
mod figures;
mod gpu;
mod plain;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use kvstrata_config::{AdapterSettings, BuildContext, ByteSize, Machine, Registry, Resolved, Sources};
use kvstrata_core::{Affinity, Error, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_io::{Disk, OsDisk, OsOptions};
use kvstrata_l2::{
    Answer, Checked, Get, GetItem, Keys, L2Remove, Probe, Put, PutDigest, PutItem, Stored, Verify,
};
use kvstrata_mem::{ReadBuf, WriteBuf};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::{payload, trace};

use self::device::Device;
use self::figures::{DeviceFigures, Figures, Phase, PlainFigures, cpu_seconds};
use self::plain::{Manner, Plain};
use super::report::{self, Progress};

#[derive(Subcommand, Debug)]
pub(crate) enum BenchCommand {
    L2(L2Args),
    Gpu(gpu::GpuArgs),
}

/// Measure one adapter, with plain file calls beside it
///
/// Every round stores all keys, looks them up, loads them and deletes them, batch by batch, with digests made and checked.
/// Every loaded byte is compared with what was stored, outside of the times. For an adapter over files, each batch is also
/// written and read by plain pwrite and pread: the same bytes, on the same path, with the adapter's number of threads and
/// its O_DIRECT, one file per object; and it is written to and read from one file that is there already, all requests of a
/// batch at once: that is what the device gives. The three take turns at going first. The ratio is that of the same round, and
/// the median of the rounds is reported, because other work on the machine comes and goes. At the end `fio`, if it is
/// installed, goes through that file with requests of the same size and as many at once.
///
/// What was stored is deleted again; other objects of the store are left alone.
///
/// Example: kvstrata bench l2 --l2-adapter '{"type":"fs","base_path":"/var/cache/kv"}' --keys 256 --size 1MiB --batch 32
#[derive(Args, Debug)]
pub(crate) struct L2Args {
    /// The adapter's settings, as in the configuration
    #[arg(long, value_name = "JSON")]
    l2_adapter: String,
    /// Objects in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Bytes per object
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    size: ByteSize,
    /// Objects per call
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// How often all of it is done
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Neither make nor check digests, to see what they cost
    #[arg(long)]
    no_digests: bool,
    /// Write the figures here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Far above what a batch takes; a device that hangs ends the bench.
const WITHIN: Duration = Duration::from_secs(600);

/// One side's stores and loads.
struct Side {
    store: Phase,
    load: Phase,
}

impl Side {
    fn new() -> Self {
        Self { store: Phase::new(), load: Phase::new() }
    }
}

/// Who moves a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Plain,
    Device,
}

/// All three, another one first each time.
fn in_turn(turn: usize) -> [Who; 3] {
    let mut all = [Who::Ours, Who::Plain, Who::Device];
    all.rotate_left(turn % 3);
    all
}

/// The bench in progress.
struct Bench {
    cx: BuildContext,
    adapter: Checked,
    remove: Arc<dyn L2Remove>,
    arena: Arena,
    keys: Vec<ObjectKey>,
    batch: usize,
    layout: Layout,
    len: usize,
    plain: Option<Plain>,
    device: Option<Device>,
    ours: Side,
    theirs: Side,
    devices: Side,
    /// What `fio` writes and reads.
    fio: [Option<f64>; 2],
    lookup: Phase,
    delete: Phase,
    failed: [u64; 4],
    first_failure: Option<String>,
    wrong_bytes: u64,
    stop: Arc<AtomicBool>,
}

pub(crate) async fn run(command: BenchCommand) -> Result<bool> {
    match command {
        BenchCommand::L2(args) => run_l2(args).await,
        BenchCommand::Gpu(args) => gpu::run(args).await,
    }
}

async fn run_l2(args: L2Args) -> Result<bool> {
    let (name, settings) = the_adapter(&args.l2_adapter)?;
    if args.size.0 == 0 {
        return Err(Error::invalid("bench", "an object has at least one byte").with("--size", 0).into());
    }
    let layout = Layout::opaque(args.size.0).context("--size")?;
    let batch = args.batch.min(args.keys) as usize;
    let charge = args.size.0.saturating_add(4096).next_multiple_of(4096);
    let memory = charge.saturating_mul(2 * batch as u64);
    if memory > Machine::here().memory {
        return Err(Error::invalid(
            "bench",
            "two batches are more than this machine's memory: lower --batch or --size",
        )
        .with("batch", batch)
        .with("size", args.size)
        .into());
    }
    let total = charge.saturating_mul(u64::from(args.keys));
    let manner = Manner::of(&settings);
    if let Some(manner) = &manner {
        check_space(manner, total)?;
    }
    let cx = BuildContext::tokio(tokio::runtime::Handle::current());
    let scope = KeyScope::new(&format!("kvstrata-bench-{:016x}", cx.run), KvRank::single(), 0, "")?;
    let adapter = Registry::builtin().build(&name, &settings, &cx)?;
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    let manner = manner.map(|manner| manner.once_open(&settings, &disk));
    let verify = if args.no_digests { Verify::Off } else { Verify::On };
    let adapter = Checked::new(adapter, verify, cx.l2.clone());
    let Some(remove) = adapter.adapter.remove.clone() else {
        bail!("the adapter cannot delete what a bench stores; nothing was stored");
    };
    let mut bench = Bench {
        arena: Arena::new(Memory::Private, usize::try_from(memory).context("--batch")?)?,
        keys: (0..u64::from(args.keys)).map(|i| trace::key(&scope, i)).collect(),
        batch,
        len: usize::try_from(args.size.0).context("--size")?,
        layout,
        plain: None,
        device: None,
        ours: Side::new(),
        theirs: Side::new(),
        devices: Side::new(),
        fio: [None; 2],
        lookup: Phase::new(),
        delete: Phase::new(),
        failed: [0; 4],
        first_failure: None,
        wrong_bytes: 0,
        stop: Arc::default(),
        cx,
        adapter,
        remove,
    };
    let done = match bench.check_room(total) {
        Ok(()) => bench.all(args.rounds, manner.as_ref()).await,
        Err(e) => Err(e),
    };
    // Whatever happened, what was stored goes, and the store is closed in order.
    bench.remove_all().await;
    let figures = done.map(|()| bench.figures(&args, &name, &settings));
    drop((bench.plain.take(), bench.device.take()));
    let closed = bench.adapter.adapter.store.shutdown(bench.deadline()).await;
    let figures = figures?;
    closed?;
    if !report::to_stdout(args.json.as_ref()) {
        figures.print();
    }
    if let Some(why) = &bench.first_failure {
        eprintln!("kvstrata: the first failure: {why}");
    }
    if let Some(path) = &args.json {
        report::write_json(path, &figures)?;
    }
    Ok(figures.wrong_bytes == 0 && figures.failures() == 0)
}

/// The one adapter that the text describes, checked as in a configuration.
fn the_adapter(json: &str) -> Result<(String, AdapterSettings)> {
    let flag = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
    // L1 plays no part; a size that every machine has passes the checks.
    let flags =
        vec![flag("l2-adapter", json), flag("l1-size-gb", "0.001"), flag("l1-staging-size-gb", "0.001")];
    let sources = Sources { flags, ..Sources::default() };
    let resolved = Resolved::load(&sources, &Machine::here(), &Registry::builtin())?;
    for warning in &resolved.warnings {
        if warning.origin.starts_with("adapter") {
            tracing::warn!("{warning}");
        }
    }
    let mut adapters = resolved.settings.adapters();
    match (adapters.pop(), adapters.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(Error::invalid("bench", "--l2-adapter is one adapter's settings").into()),
    }
}

/// Refuses what the file system has no room for, before anything is made there.
fn check_space(manner: &Manner, total: u64) -> Result<()> {
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    let at = manner.base_path.ancestors().find(|p| p.exists());
    let Some(Ok(space)) = at.map(|p| disk.space(p)) else { return Ok(()) };
    // All three keep all objects for the length of a round.
    let need = total.saturating_mul(3);
    if space.total > 0 && space.available < need {
        return Err(Error::invalid(
            "bench",
            "the file system has no room for --keys times --size, three times",
        )
        .with("base_path", manner.base_path.display())
        .with("needed", report::bytes(need))
        .with("available", report::bytes(space.available))
        .into());
    }
    Ok(())
}

impl Bench {
    fn deadline(&self) -> kvstrata_core::Instant {
        self.cx.l2.timer.now() + WITHIN
    }

    /// Refuses what would push other objects, or its own, out of the adapter.
    fn check_room(&self, total: u64) -> Result<()> {
        let Some(usage) = self.adapter.adapter.usage.as_ref().map(|u| u.usage()) else { return Ok(()) };
        match usage.capacity {
            Some(capacity) if usage.used.saturating_add(total) > capacity => {
                Err(Error::invalid("bench", "--keys times --size do not fit into the adapter's capacity")
                    .with("needed", report::bytes(total))
                    .with("used", report::bytes(usage.used))
                    .with("capacity", report::bytes(capacity))
                    .into())
            }
            _ => Ok(()),
        }
    }

    async fn all(&mut self, rounds: u32, manner: Option<&Manner>) -> Result<()> {
        let stop = Arc::clone(&self.stop);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.store(true, Ordering::Relaxed);
            }
        });
        if let Some(manner) = manner {
            self.plain = Some(Plain::start(manner, self.cx.run)?);
            let buf = self.arena.filled(&self.keys[0], self.len)?;
            self.device = Some(Device::start(manner, self.cx.run, self.keys.len(), &buf)?);
        }
        let starts: Vec<usize> = (0..self.keys.len()).step_by(self.batch).collect();
        let mut progress = Progress::new("bench", u64::from(rounds) * 4 * starts.len() as u64);
        for round in 0..rounds as usize {
            let phases = [&mut self.ours.store, &mut self.ours.load, &mut self.lookup, &mut self.delete];
            phases
                .into_iter()
                .chain([&mut self.theirs.store, &mut self.theirs.load])
                .chain([&mut self.devices.store, &mut self.devices.load])
                .for_each(Phase::begin_round);
            for what in [Step::Store, Step::Lookup, Step::Load, Step::Delete] {
                for (n, first) in starts.iter().enumerate() {
                    if self.stop.load(Ordering::Relaxed) {
                        bail!("interrupted");
                    }
                    let keys = *first..(first + self.batch).min(self.keys.len());
                    // Who goes first changes, so that neither always finds what the other left in the caches.
                    let turn = round + n;
                    match what {
                        Step::Store => self.store(keys, turn).await?,
                        Step::Lookup => self.look_up(keys).await,
                        Step::Load => self.load(keys, turn).await?,
                        Step::Delete => self.delete(keys).await?,
                    }
                    progress.step(1);
                }
            }
        }
        if let Some(device) = &self.device {
            self.fio = [true, false].map(|write| device.fio(write, self.batch));
        }
        Ok(())
    }

    async fn store(&mut self, range: std::ops::Range<usize>, turn: usize) -> Result<()> {
        let bufs: Vec<ReadBuf> = self.keys[range.clone()]
            .iter()
            .map(|k| self.arena.filled(k, self.len))
            .collect::<Result<_, _>>()?;
        for who in in_turn(turn) {
            let mut cpu = -cpu_seconds();
            if who == Who::Ours {
                let items: Vec<PutItem> = self.keys[range.clone()]
                    .iter()
                    .zip(&bufs)
                    .map(|(key, buf)| PutItem {
                        key: key.clone(),
                        layout: self.layout.clone(),
                        digest: PutDigest::None,
                        buf: buf.clone(),
                    })
                    .collect();
                let (sink, answers) = collect(items.len());
                let request = Put { items, deadline: self.deadline(), affinity: Affinity::default() };
                let begun = Instant::now();
                self.adapter.adapter.store.put(request, sink).await;
                let took = begun.elapsed();
                cpu += cpu_seconds();
                let mut stored = 0;
                for answer in take(&answers) {
                    match answer {
                        Some(Ok(Stored::Written)) => stored += self.len as u64,
                        Some(Ok(Stored::Present)) => {
                            self.failure(0, "store: a key of this run was there already")
                        }
                        Some(Err(e)) => self.failure(0, &e.to_string()),
                        None => self.failure(0, "store: a key was not answered"),
                    }
                }
                self.ours.store.record(took, stored, cpu);
            } else if let (Who::Plain, Some(plain)) = (who, &self.plain) {
                let took = plain.store(range.start, bufs.clone())?;
                cpu += cpu_seconds();
                self.theirs.store.record(took, (bufs.len() * self.len) as u64, cpu);
            } else if let (Who::Device, Some(device)) = (who, &self.device) {
                let took = device.store(range.start, bufs.clone())?;
                cpu += cpu_seconds();
                self.devices.store.record(took, (bufs.len() * self.len) as u64, cpu);
            }
        }
        Ok(())
    }

    async fn look_up(&mut self, range: std::ops::Range<usize>) {
        let keys: Keys = self.keys[range].into();
        let n = keys.len() as u64;
        let request = Probe { keys, deadline: self.deadline(), affinity: Affinity::default() };
        let begun = Instant::now();
        let answers = self.adapter.adapter.store.probe(request).await;
        let took = begun.elapsed();
        self.lookup.record(took, n, 0.0);
        for answer in answers {
            match answer {
                Ok(Some(_)) => {}
                Ok(None) => self.failure(1, "look up: a stored key is not found"),
                Err(e) => self.failure(1, &e.to_string()),
            }
        }
    }

    async fn load(&mut self, range: std::ops::Range<usize>, turn: usize) -> Result<()> {
        for who in in_turn(turn) {
            if who != Who::Ours && self.plain.is_none() {
                continue;
            }
            // They hold bytes that no key has, so that what nobody loaded shows.
            let bufs: Vec<WriteBuf> =
                range.clone().map(|_| self.arena.empty(self.len)).collect::<Result<_, _>>()?;
            let mut cpu = -cpu_seconds();
            if who == Who::Ours {
                let items: Vec<GetItem> = self.keys[range.clone()]
                    .iter()
                    .zip(bufs)
                    .map(|(key, buf)| GetItem { key: key.clone(), layout: self.layout.clone(), buf })
                    .collect();
                let (sink, answers) = collect(items.len());
                let request = Get { items, deadline: self.deadline(), affinity: Affinity::default() };
                let begun = Instant::now();
                self.adapter.adapter.store.get(request, sink).await;
                let took = begun.elapsed();
                cpu += cpu_seconds();
                let mut loaded = 0;
                for (i, answer) in take(&answers).into_iter().enumerate() {
                    match answer {
                        Some(Answer::Loaded(found)) => {
                            loaded += self.len as u64;
                            self.compare(range.start + i, found.buf)?;
                        }
                        Some(Answer::Miss(why, _)) => {
                            self.failure(2, &format!("load: {} object", why.name()))
                        }
                        Some(Answer::Failed(e, _)) => self.failure(2, &e.to_string()),
                        None => self.failure(2, "load: a key was not answered"),
                    }
                }
                self.ours.load.record(took, loaded, cpu);
            } else if let (Who::Device, Some(device)) = (who, &self.device) {
                let took = device.load(range.start, bufs)?;
                cpu += cpu_seconds();
                self.devices.load.record(took, (range.len() * self.len) as u64, cpu);
            } else if let (Who::Plain, Some(plain)) = (who, &self.plain) {
                let (took, bufs) = plain.load(range.start, bufs)?;
                cpu += cpu_seconds();
                self.theirs.load.record(took, (bufs.len() * self.len) as u64, cpu);
                for (i, buf) in bufs.into_iter().enumerate() {
                    self.compare(range.start + i, buf)?;
                }
            }
        }
        Ok(())
    }

    fn compare(&mut self, key: usize, buf: WriteBuf) -> Result<()> {
        if let Err(wrong) = payload::verify(&self.keys[key], &buf.seal(self.len))? {
            self.wrong_bytes += wrong.count;
        }
        Ok(())
    }

    async fn delete(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        let keys: Keys = self.keys[range.clone()].into();
        let begun = Instant::now();
        let answers = self.remove.remove(keys, self.deadline()).await;
        self.delete.record(begun.elapsed(), range.len() as u64, 0.0);
        for answer in answers {
            match answer {
                Ok(true) => {}
                Ok(false) => self.failure(3, "delete: a stored key is not there"),
                Err(e) => self.failure(3, &e.to_string()),
            }
        }
        self.plain.as_ref().map_or(Ok(()), |plain| plain.delete(range.start, range.len()))
    }

    async fn remove_all(&self) {
        for keys in self.keys.chunks(self.batch) {
            for failed in
                self.remove.remove(keys.into(), self.deadline()).await.iter().filter_map(|a| a.as_ref().err())
            {
                tracing::warn!(error = %failed, "an object of the bench stays");
            }
        }
    }

    fn failure(&mut self, step: usize, why: &str) {
        self.failed[step] += 1;
        self.first_failure.get_or_insert_with(|| why.to_owned());
    }

    fn figures(&self, args: &L2Args, name: &str, settings: &AdapterSettings) -> Figures {
        let (ours, theirs) = (&self.ours, &self.theirs);
        let kind = settings.kind();
        let gb = settings.keys().get("mock_bandwidth_gb").and_then(serde_json::Value::as_f64);
        Figures {
            schema_version: 1,
            adapter: if name == kind { name.to_owned() } else { format!("{name} ({kind})") },
            keys: u64::from(args.keys),
            size: args.size.0,
            batch: self.batch as u64,
            rounds: u64::from(args.rounds),
            digests: !args.no_digests,
            store_gbps: ours.store.gbps(),
            load_gbps: ours.load.gbps(),
            lookup_us_per_key: self.lookup.us_each(),
            delete_us_per_key: self.delete.us_each(),
            store_ratio: self.plain.as_ref().map(|_| ours.store.ratio_to(&theirs.store)),
            load_ratio: self.plain.as_ref().map(|_| ours.load.ratio_to(&theirs.load)),
            store_us: ours.store.batches(),
            lookup_us: self.lookup.batches(),
            load_us: ours.load.batches(),
            delete_us: self.delete.batches(),
            store_cpu_s_per_gb: ours.store.cpu_per_gb(),
            load_cpu_s_per_gb: ours.load.cpu_per_gb(),
            plain: self.plain.as_ref().map(|plain| PlainFigures {
                threads: plain.threads(),
                direct_read: plain.direct.0,
                direct_write: plain.direct.1,
                store_gbps: theirs.store.gbps(),
                load_gbps: theirs.load.gbps(),
                store_us: theirs.store.batches(),
                load_us: theirs.load.batches(),
                store_cpu_s_per_gb: theirs.store.cpu_per_gb(),
                load_cpu_s_per_gb: theirs.load.cpu_per_gb(),
            }),
            device: self.device.as_ref().map(|device| DeviceFigures {
                direct: device.direct,
                store_gbps: self.devices.store.gbps(),
                load_gbps: self.devices.load.gbps(),
                store_percent: 100.0 * ours.store.ratio_to(&self.devices.store),
                load_percent: 100.0 * ours.load.ratio_to(&self.devices.load),
                fio_store_gbps: self.fio[0],
                fio_load_gbps: self.fio[1],
            }),
            // A gb of the setting is 2^30 bytes.
            bandwidth_limit_gbps: gb.map(|gb| gb * f64::from(1 << 30) / 1e9),
            failed_stores: self.failed[0],
            failed_lookups: self.failed[1],
            failed_loads: self.failed[2],
            failed_deletes: self.failed[3],
            unverified_loads: self.adapter.stats.counts().unverified(),
            wrong_bytes: self.wrong_bytes,
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Store,
    Lookup,
    Load,
    Delete,
}

type Answers<T> = Arc<Mutex<Vec<Option<T>>>>;

/// A sink that keeps the answers.
fn collect<T: kvstrata_l2::Fail>(n: usize) -> (kvstrata_l2::Sink<T>, Answers<T>) {
    let answers: Answers<T> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
    let to = Arc::clone(&answers);
    let keep = move |i: usize, answer: T| {
        to.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(answer);
    };
    (kvstrata_l2::Sink::new(n, Arc::new(keep)), answers)
}

fn take<T>(answers: &Answers<T>) -> Vec<Option<T>> {
    std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner))
}
