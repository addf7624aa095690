//! One world: the whole stack over one medium, engines at work, faults of one class or of all, until enough took effect.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::{Instant, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_disk::{FsckOptions, Writer, fsck};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{Adapter, Breaker, BreakerOptions, Context, LimitOptions, Phase, Timer};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector};
use kvstrata_l2_fs::{FsConfig, open_os};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_l2_paths::{Member, Paths, PathsOptions};
use kvstrata_manager::{
    AdapterOptions, Grant, Hits, InFlight, Layouts, LoadAnswer, LoadMode, Manager, Options, Parts, Reserved,
    Wait,
};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_policy::{Place, Sharding};
use kvstrata_testkit::rng::Rng;
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::outcome::Outcome;
use super::{INJECTED, Medium, Unit};

const MS: Duration = Duration::from_millis(1);
/// The longest that anything in order may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Keys that are loaded; older ones are deleted.
const WINDOW: u64 = 192;
/// There are so many keys; they are used again and again. A multiple of all lengths' runs.
const KEYS: u64 = 16 * RUN * LENGTHS.len() as u64;
/// Keys of one batch.
const BATCH: u64 = 8;
/// Payload bytes; a run of [`RUN`] keys has the same, so that there is something to swap with.
const LENGTHS: [u64; 3] = [4096, 3000, 1024];
const RUN: u64 = 16;
const CACHE: u64 = 512 << 10;
const STAGING: u64 = 1 << 20;

/// Plays a unit to its end. `done` grows by the faults that took effect.
pub(super) fn play(unit: &Unit, margin: Duration, done: &AtomicU64) -> Outcome {
    let mut builder = match unit.medium {
        // Time passes when nobody has anything to do, and no call can be late but by its own fault.
        Medium::Memory => tokio::runtime::Builder::new_current_thread(),
        Medium::Files => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_time();
    match unit.medium {
        Medium::Memory => builder.start_paused(true),
        Medium::Files => builder.worker_threads(2),
    };
    let runtime = builder.build().expect("a runtime");
    runtime.block_on(async {
        let world = World::open(unit, margin);
        world.work(done).await;
        world.end().await
    })
}

/// The directories of a unit's stores.
fn dirs(unit: &Unit, dir: &Path) -> Vec<PathBuf> {
    match unit.paths {
        1 => vec![dir.to_path_buf()],
        n => (0..n).map(|n| dir.join(format!("path-{n}"))).collect(),
    }
}

/// A store on files, or several with a path each; `faulty` goes around the first one, where the faults are of one path.
fn on_files(
    unit: &Unit,
    dir: &Path,
    breaker: &BreakerOptions,
    cx: &Context,
    faulty: impl FnOnce(Adapter) -> Adapter,
) -> Adapter {
    let writer = Writer { pid: std::process::id(), id: unit.seed };
    let open = |dir: PathBuf| {
        let max_capacity_gb = 0.25 / unit.paths as f64;
        let config = FsConfig { max_capacity_gb, layout: unit.layout.into(), ..FsConfig::new(dir) };
        open_os(&config, cx.clone(), writer, vec![], None).expect("a new store").adapter()
    };
    let mut each: Vec<Adapter> = dirs(unit, dir).into_iter().map(open).collect();
    if each.len() == 1 {
        return each.remove(0);
    }
    if unit.one_path {
        let first = faulty(each.remove(0));
        each.insert(0, first);
    }
    let member = |(n, adapter): (usize, Adapter)| Member {
        place: Place { name: n.to_string(), weight: 1, devices: vec![] },
        adapter: Ok(adapter),
        open: None,
    };
    let members = each.into_iter().enumerate().map(member).collect();
    // As soon as the breaker tries again, so that faults go on.
    let options = PathsOptions {
        breaker: breaker.clone(),
        full_for: breaker.cool_down,
        reopen_after: breaker.cool_down_max,
        ..PathsOptions::default()
    };
    Paths::new("fs", Sharding::ByKey, members, options, cx.clone()).expect("good options").adapter()
}

struct World {
    unit: Unit,
    margin: Duration,
    timer: Arc<dyn Timer>,
    manager: Manager,
    injector: Injector,
    lister: Adapter,
    slab: Arc<Slab>,
    dir: Option<TempDir>,
    scope: Arc<KeyScope>,
    next: AtomicU64,
    tail: AtomicU64,
    turns: AtomicU64,
    seen: Mutex<Seen>,
}

/// What engines saw.
#[derive(Default)]
struct Seen {
    committed: HashSet<u64>,
    outcome: Outcome,
}

impl World {
    fn open(unit: &Unit, margin: Duration) -> Arc<Self> {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let dir = (unit.medium == Medium::Files).then(|| tempfile::tempdir().expect("a directory"));
        let breaker = BreakerOptions {
            consecutive: 12,
            ratio: 0.9,
            window: 100 * MS,
            patience: 5 * MS,
            at_least: 200,
            cool_down: 2 * MS,
            cool_down_max: 16 * MS,
        };
        let classes = unit.class.map_or(Fault::ALL.to_vec(), |class| vec![class]);
        let config = FaultConfig {
            // Some deadlines are shorter, so that there are delays that change an answer.
            delay_ms: if dir.is_some() { 20 } else { 40 },
            hang_ms: Some(if dir.is_some() { 250 } else { 400 }),
            ..FaultConfig::new(unit.rate(), (unit.seed >> 1) as i64, &classes)
        };
        let mut injector = None;
        let mut faulty = |inner| {
            let faulty = Injector::new(inner, &config, cx.clone()).expect("good settings");
            injector.insert(faulty).adapter()
        };
        let adapter = match &dir {
            None => {
                let mock = Mock::open(&MockConfig::new(0.25, 1000.0), cx.clone()).expect("good settings");
                faulty(mock.adapter())
            }
            Some(dir) if unit.one_path => on_files(unit, dir.path(), &breaker, &cx, faulty),
            Some(dir) => faulty(on_files(unit, dir.path(), &breaker, &cx, |adapter| adapter)),
        };
        let injector = injector.expect("one of the stores has faults");
        // The manager lists nothing, so its breaker does not stand before a listing.
        let lister = Breaker::new(adapter.clone(), breaker.clone(), &cx).expect("good options").adapter;
        let region = HeapRegion::new((CACHE + STAGING) as usize).expect("memory");
        let slab = Slab::new(vec![region]).expect("a region");
        let (store, prefetch) = if unit.buffer_only { ("skip_l1", "default") } else { ("default", "retain") };
        let parts = Parts {
            cache: slab.pool("cache", CACHE),
            staging: slab.pool("staging", STAGING),
            eviction: kvstrata_evict::by_name("lru").expect("a known name"),
            admission: kvstrata_evict::admission_by_name("always").expect("a known name"),
            store: kvstrata_policy::store_by_name(store).expect("a known name"),
            prefetch: kvstrata_policy::prefetch_by_name(prefetch).expect("a known name"),
            cx: cx.clone(),
        };
        let options = Options {
            store_attempts: 2,
            store_backoff: 2 * MS,
            store_backoff_max: 10 * MS,
            // Over files as long as a busy machine may take, and shorter than a hang.
            store_timeout: if unit.medium == Medium::Files { 200 } else { 50 } * MS,
            lookup_l1: !unit.buffer_only,
            typical_chunk: LENGTHS[0],
            ..Options::default()
        };
        let manager = Manager::new(parts, options).expect("good options");
        let options = AdapterOptions {
            weight: 1,
            breaker: Some(breaker),
            // Room for what hangs: a limit that is always reached would leave nothing to inject into.
            limit: InFlight::Of(LimitOptions::new(4 << 20)),
            stores: true,
        };
        manager.add_adapter(adapter, options).expect("the first of its name");
        Arc::new(Self {
            unit: unit.clone(),
            margin,
            timer: Arc::clone(&cx.timer),
            manager,
            injector,
            lister,
            slab,
            dir,
            scope: KeyScope::new("model", KvRank::single(), 0, "").expect("a good scope"),
            next: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    /// The faults that are waited for and took effect.
    fn effective(&self) -> u64 {
        let counts = self.injector.counts();
        self.unit.class.map_or(counts.total(), |class| counts.of(class)).effective
    }

    fn batch(&self, ids: std::ops::Range<u64>) -> (Vec<ObjectKey>, Layouts) {
        let keys = ids.clone().map(|id| trace::key(&self.scope, id % KEYS)).collect();
        let layout = |id: u64| {
            let bytes = LENGTHS[(id % KEYS / RUN % LENGTHS.len() as u64) as usize];
            Layout::opaque(bytes).expect("a good layout")
        };
        (keys, Layouts::Each(ids.map(layout).collect()))
    }

    // ---- engines -------------------------------------------------------------------------------------------------

    async fn work(self: &Arc<Self>, done: &AtomicU64) {
        let engines = if self.unit.medium == Medium::Files { 16 } else { 6 };
        let tasks: Vec<_> = (0..engines)
            .map(|n| {
                let world = Arc::clone(self);
                tokio::spawn(async move {
                    let mut rng = Rng::new(world.unit.seed.wrapping_add(n));
                    while world.goes_on() {
                        world.turn(&mut rng).await;
                        // Pauses make the engines meet in other ways, and outlast an open breaker.
                        if rng.percent(30) {
                            tokio::time::sleep(rng.below(5) as u32 * MS).await;
                        }
                    }
                })
            })
            .collect();
        let mut told = 0;
        for task in tasks {
            let mut task = task;
            loop {
                let ended = tokio::time::timeout(PATIENCE, &mut task).await;
                let now = self.effective();
                let more = now - std::mem::replace(&mut told, now);
                done.fetch_add(more, Ordering::Relaxed);
                match ended {
                    Ok(Ok(())) => break,
                    Ok(Err(e)) => {
                        self.wrong(format!("an engine ended by {e}"));
                        break;
                    }
                    // While faults take effect, engines are at work.
                    Err(_) if more > 0 => {}
                    Err(_) => {
                        task.abort();
                        // What it holds of the world is given back before the world is taken apart.
                        drop(tokio::time::timeout(PATIENCE, &mut task).await);
                        self.seen.lock().outcome.late += 1;
                        self.wrong("an engine waits and does not end".into());
                        break;
                    }
                }
            }
        }
    }

    fn goes_on(&self) -> bool {
        let turns = self.turns.fetch_add(1, Ordering::Relaxed);
        // A path that is out is left alone while the others go on: most turns meet no fault then.
        let each = if self.unit.one_path { 10_000 } else { 100 };
        let most = 20_000 + self.unit.goal * each;
        if turns == most {
            let (goal, now) = (self.unit.goal, self.effective());
            self.wrong(format!("{turns} turns were not enough for {goal} faults: {now} took effect"));
        }
        turns < most && self.effective() < self.unit.goal && self.seen.lock().outcome.failures.len() < 20
    }

    async fn turn(&self, rng: &mut Rng) {
        let next = self.next.load(Ordering::Relaxed);
        let len = 1 + rng.below(BATCH);
        let within = match &self.dir {
            Some(_) if rng.percent(25) => 10,
            Some(_) => 100,
            None => 10 + rng.below(60) as u32,
        } * MS;
        let from = next.saturating_sub(WINDOW) + rng.below(next.clamp(1, WINDOW));
        match rng.below(100) {
            0..30 => {
                let from = self.next.fetch_add(len, Ordering::Relaxed);
                self.store(from..from + len, within, rng.percent(5)).await;
            }
            30..42 => self.store(from..from + len, within, rng.percent(5)).await,
            42..82 => self.load(from..from + len, within, rng.bits()).await,
            82..90 => {
                let tail = self.tail.load(Ordering::Relaxed);
                // What leaves the window is deleted; sometimes something in it.
                let ids = if tail + WINDOW + BATCH < next {
                    self.tail.store(tail + BATCH, Ordering::Relaxed);
                    tail..tail + BATCH
                } else {
                    from..from + 1
                };
                let rq = self.manager.request(within);
                self.manager.delete(&rq, &self.batch(ids).0).await;
                self.ended("delete", rq.deadline);
            }
            90..97 => {
                if let Some(list) = &self.lister.list {
                    // A listing has no deadline of its own; a page is an answer or an error.
                    drop(list.list(None, 16).await);
                }
            }
            _ => drop(self.manager.clear()),
        }
    }

    async fn store(&self, ids: std::ops::Range<u64>, within: Duration, gives_up: bool) {
        let (keys, layouts) = self.batch(ids.clone());
        let rq = self.manager.request(within);
        let all = KeyMask::all(keys.len());
        let reserved =
            self.manager.reserve(&rq, &keys, &all, &layouts, Grant::Part, Wait::UntilDeadline).await;
        self.ended("reserve", rq.deadline);
        let mut filled = Vec::new();
        for (id, reserved) in ids.zip(reserved) {
            if let Reserved::Granted(mut chunk) = reserved {
                let key = chunk.key().clone();
                payload::write(&key, chunk.buf()).expect("host memory");
                if gives_up {
                    // An engine that goes away is in the middle of it: nobody may ever see these bytes.
                    chunk.buf().as_mut_slice().expect("host memory").fill(0xa5);
                }
                filled.push((id % KEYS, chunk));
            }
        }
        if !gives_up {
            self.seen.lock().committed.extend(filled.iter().map(|(id, _)| *id));
            self.manager.commit(filled.into_iter().map(|(_, chunk)| chunk).collect());
        }
    }

    async fn load(&self, ids: std::ops::Range<u64>, within: Duration, roll: u64) {
        let (keys, layouts) = self.batch(ids.clone());
        let keys: kvstrata_l2::Keys = keys.into();
        let rq = self.manager.request(within);
        let lookup = self.manager.lookup(&rq, &keys).await;
        self.ended("look up", rq.deadline);
        let mode = if roll & 3 == 0 { LoadMode::Prefix } else { LoadMode::Any };
        let mut loading = self.manager.load(lookup, &layouts, mode);
        if roll & 0x70 == 0 {
            // An engine that goes away with the first answer.
            if let Some((at, LoadAnswer::Hit(pin))) = loading.next().await {
                self.hit(ids.start + at as u64, &keys[at], pin.buf());
            }
            return self.ended("load", rq.deadline);
        }
        let loaded = loading.finish().await;
        self.ended("load", rq.deadline);
        self.check(ids.start, &keys, &loaded.hits);
        if roll & 0x700 == 0 {
            tokio::time::sleep(3 * MS).await;
            // What is pinned has not changed meanwhile.
            self.check(ids.start, &keys, &loaded.hits);
        }
    }

    // ---- what is watched -----------------------------------------------------------------------------------------

    fn check(&self, first: u64, keys: &[ObjectKey], hits: &Hits) {
        for (at, key) in keys.iter().enumerate() {
            if let Some(buf) = hits.buf(at) {
                self.hit(first + at as u64, key, buf);
            }
        }
    }

    fn hit(&self, id: u64, key: &ObjectKey, buf: &kvstrata_mem::ReadBuf) {
        let verified = payload::verify(key, buf).expect("host memory");
        let mut seen = self.seen.lock();
        seen.outcome.verified += 1;
        if let Err(bytes) = verified {
            seen.outcome.wrong_bytes += bytes.count;
            seen.outcome.failures.push(format!("{}: {key}: {bytes}", self.unit));
        } else if !seen.committed.contains(&(id % KEYS)) {
            seen.outcome.failures.push(format!("{}: {key} was found and never stored", self.unit));
        }
    }

    fn ended(&self, what: &str, deadline: Instant) {
        let now = self.timer.now();
        if now > deadline {
            let late = now.since(deadline);
            let mut seen = self.seen.lock();
            seen.outcome.latest = seen.outcome.latest.max(late);
            if late > self.margin {
                seen.outcome.late += 1;
                seen.outcome.failures.push(format!("{}: {what} ended {late:?} late", self.unit));
            }
        }
    }

    fn wrong(&self, what: String) {
        self.seen.lock().outcome.failures.push(format!("{}: {what}", self.unit));
    }

    fn leak(&self, what: String) {
        self.seen.lock().outcome.leaks += 1;
        self.wrong(format!("left behind: {what}"));
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    async fn end(self: Arc<Self>) -> Outcome {
        self.injector.arm(false);
        self.injector.release();
        if let Err(e) = self.manager.flush(PATIENCE).await {
            self.leak(format!("{e}"));
        }
        self.rest().await;
        self.heal().await;
        self.rest().await;
        self.manager.clear();
        let used = self.manager.usage().cache;
        if (used.used, used.buffers) != (0, 0) {
            self.leak(format!("after a clear L1 has {} bytes in {} buffers", used.used, used.buffers));
        }
        self.collect();
        if let Err(e) = self.manager.shutdown(PATIENCE).await {
            self.wrong(format!("the shutdown failed: {e}"));
        }
        self.after().await;
        let world = match Arc::try_unwrap(self) {
            Ok(world) => world,
            Err(world) => {
                world.leak("an engine that does not end even when it is aborted".into());
                return std::mem::take(&mut world.seen.lock().outcome);
            }
        };
        let Self { manager, injector, lister, slab, seen, dir, unit, .. } = world;
        drop((manager, injector, lister));
        let tasks = tokio::runtime::Handle::current().metrics();
        let gone = || tasks.num_alive_tasks() == 0 && slab.usage().used == 0;
        for _ in 0..2000 {
            if gone() {
                break;
            }
            tokio::time::sleep(MS).await;
        }
        let mut outcome = seen.into_inner().outcome;
        if !gone() {
            outcome.leaks += 1;
            let (tasks, used) = (tasks.num_alive_tasks(), slab.usage());
            outcome.failures.push(format!("{unit}: left behind: {tasks} tasks and {used:?}"));
        }
        drop(dir);
        outcome
    }

    /// Waits until nothing is held, and says what still is.
    async fn rest(&self) {
        let end = self.timer.now() + PATIENCE;
        let held = || {
            let u = self.manager.usage();
            let l = u.adapters[0].in_flight.unwrap_or_default();
            let stray = u.cache.buffers.abs_diff(u.resident as u64);
            let manager = [u.pinned as u64, u.reserved as u64, u.storing as u64, u.staging.used, stray];
            (manager, [l.loads_in_flight, l.stores_in_flight, l.loads_waiting, l.stores_waiting])
        };
        while held() != ([0; 5], [0; 4]) && self.timer.now() < end {
            tokio::time::sleep(5 * MS).await;
        }
        let (manager, limit) = held();
        if (manager, limit) != ([0; 5], [0; 4]) {
            self.leak(format!(
                "[pinned, reserved, storing, staging bytes, stray buffers] {manager:?}, \
                 [bytes in flight of loads and stores, waiting] {limit:?}"
            ));
        }
    }

    /// With the faults gone, what was damaged is found out by a load, and healed by the next store.
    async fn heal(&self) {
        let next = self.next.load(Ordering::Relaxed);
        let ids: Vec<u64> = (next.saturating_sub(64)..next).collect();
        for _ in 0..200 {
            // The breaker lets one call through, and closes.
            tokio::time::sleep(20 * MS).await;
            let breaker = self.manager.usage().adapters[0].breaker;
            if breaker.is_none_or(|b| b.phase == Phase::Closed) {
                break;
            }
            self.all_of(&ids[..1]).await;
        }
        self.manager.clear();
        let found = self.all_of(&ids).await;
        self.manager.clear();
        for batch in ids.chunks(BATCH as usize) {
            self.store(batch[0]..batch[batch.len() - 1] + 1, PATIENCE, false).await;
        }
        if let Err(e) = self.manager.flush(PATIENCE).await {
            self.wrong(format!("{e}"));
        }
        self.manager.clear();
        let healed = self.all_of(&ids).await;
        self.seen.lock().outcome.restored += (healed - found.min(healed)) as u64;
        if healed != ids.len() {
            self.wrong(format!("{} of {} keys cannot be stored any more", ids.len() - healed, ids.len()));
        }
    }

    /// How many of the keys can be loaded.
    async fn all_of(&self, ids: &[u64]) -> usize {
        let mut there = 0;
        for batch in ids.chunks(BATCH as usize) {
            let (keys, layouts) = self.batch(batch[0]..batch[batch.len() - 1] + 1);
            let keys: kvstrata_l2::Keys = keys.into();
            let lookup = self.manager.lookup(&self.manager.request(PATIENCE), &keys).await;
            let loaded = self.manager.load(lookup, &layouts, LoadMode::Any).finish().await;
            self.check(batch[0], &keys, &loaded.hits);
            there += loaded.hits.mask().count();
        }
        there
    }

    /// Takes down what the parts counted.
    fn collect(&self) {
        let u = self.manager.usage();
        let mut seen = self.seen.lock();
        for fault in &u.faults {
            seen.outcome.failures.push(format!("{}: a policy panicked: {fault:?}", self.unit));
        }
        seen.outcome.count(&self.injector.counts(), &u.stats, &u.adapters[0]);
    }

    /// What a closed store looks like from outside.
    async fn after(&self) {
        let Some(dir) = &self.dir else { return };
        let options = FsckOptions {
            payloads: false,
            repair: false,
            tmp: None,
            writer: Writer { pid: std::process::id(), id: self.unit.seed },
        };
        let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("a thread");
        for dir in dirs(&self.unit, dir.path()) {
            match fsck(&disk, &dir, &options, |_, _| {}) {
                Ok(report) if report.is_clean() && report.strangers.is_empty() => {}
                Ok(report) => self.wrong(format!("the store that was closed is not in order: {report:?}")),
                Err(e) => self.wrong(format!("the store that was closed cannot be checked: {e}")),
            }
        }
    }
}

/// Whether a panic is one that was injected.
pub(super) fn is_injected(text: &str) -> bool {
    text.starts_with(INJECTED)
}
