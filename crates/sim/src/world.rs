//! A manager, its adapters and its engines, and what is done to them.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{ChunkHash, Clock, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_io::Crash;
use kvstrata_l2::Timer;
use kvstrata_manager::{
    Committed, Grant, Hits, Layouts, LoadAnswer, LoadMode, Manager, ManagerUsage, Options, Parts, Request,
    Reserved, TierId, Wait,
};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_testkit::payload;
use kvstrata_testkit::rng::Rng;
use parking_lot::Mutex;

use crate::exec::Executor;
use crate::note::noting;
use crate::oracle::Oracle;
use crate::plan::{CHAINS, LONGEST, Setup, Step};
use crate::plant::{Deaf, Plant, keeping};
use crate::tier::{MODEL, Tier};

const UNIT: u64 = 4096;
/// The longest that anything in order may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Salts of the chains, in turn.
const SALTS: [&str; 3] = ["", "a", "b"];

pub(crate) struct World {
    exec: Executor,
    rng: Rng,
    setup: Setup,
    plant: Option<Plant>,
    layouts: Vec<Layout>,
    keys: Vec<Vec<ObjectKey>>,
    oracle: Oracle,
    manager: Option<Manager>,
    tiers: Vec<Tier>,
}

impl World {
    pub(crate) fn new(setup: &Setup, plant: Option<Plant>) -> Self {
        let chain = |chain: u64| {
            let salt = SALTS[chain as usize % SALTS.len()];
            let scope = KeyScope::new(MODEL, KvRank::single(), 0, salt).expect("a good scope");
            let key = |i: u64| {
                let mut hash = [0; 32];
                (hash[0], hash[1]) = (chain as u8, i as u8);
                ObjectKey::new(&scope, ChunkHash::from(hash))
            };
            (0..LONGEST).map(key).collect()
        };
        let tiers = setup.tiers.iter().enumerate().map(|(at, plan)| Tier::new(at, *plan));
        let layout = |units: u64| Layout::opaque(units * UNIT - 96 * (units - 1)).expect("a good layout");
        let mut world = Self {
            exec: Executor::new(),
            rng: Rng::new(setup.order),
            setup: setup.clone(),
            plant,
            layouts: (1..=3).map(layout).collect(),
            keys: (0..CHAINS).map(chain).collect(),
            oracle: Oracle::default(),
            manager: None,
            tiers: tiers.collect(),
        };
        world.open();
        world
    }

    pub(crate) fn verdict(&self) -> Option<String> {
        self.oracle.verdict()
    }

    pub(crate) fn trace(&self) -> u64 {
        self.exec.trace()
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        self.oracle.counts()
    }

    fn manager(&self) -> Manager {
        self.manager.clone().expect("open between restarts")
    }

    fn batch(&self, chain: u64, from: u64, len: u64) -> (Vec<ObjectKey>, Layouts) {
        let chain = chain as usize;
        let (from, to) = (from.min(LONGEST - 1) as usize, (from + len).min(LONGEST) as usize);
        let layout = self.layouts[chain % self.layouts.len()].clone();
        (self.keys[chain][from..to.max(from + 1)].to_vec(), layout.into())
    }

    // ---- starts and ends -----------------------------------------------------------------------------------------

    fn open(&mut self) {
        let s = &self.setup;
        let region = HeapRegion::new(((s.cache + s.staging) * UNIT) as usize).expect("memory");
        let slab = Slab::new(vec![region]).expect("a region");
        let mut eviction = kvstrata_evict::by_name(s.eviction).expect("a known name");
        if self.plant == Some(Plant::PinsIgnored) {
            eviction = Box::new(Deaf(eviction));
        }
        let parts = Parts {
            cache: slab.pool("cache", s.cache * UNIT),
            staging: slab.pool("staging", s.staging * UNIT),
            eviction,
            admission: kvstrata_evict::admission_by_name(s.admission).expect("a known name"),
            store: kvstrata_policy::store_by_name(s.store).expect("a known name"),
            prefetch: kvstrata_policy::prefetch_by_name(s.prefetch).expect("a known name"),
            cx: self.exec.context(),
        };
        let options = Options {
            typical_chunk: UNIT,
            lookup_l1: !s.buffer_only,
            digests: self.plant != Some(Plant::NoDigests),
            ..Options::default()
        };
        self.manager = Some(Manager::new(parts, options).expect("good options"));
        for at in 0..self.tiers.len() {
            if self.tiers[at].present {
                self.add(at);
            }
        }
    }

    fn add(&mut self, at: usize) {
        let cx = self.exec.context();
        let manager = self.manager();
        let keeps = self.plant == Some(Plant::BuffersKept);
        let oracle = self.oracle.clone();
        let tier = &mut self.tiers[at];
        if tier.open.is_some() {
            return;
        }
        match tier.adapter(&cx, &self.layouts) {
            Ok(opened) => {
                let adapter = opened.adapter.clone();
                let adapter = if keeps { keeping(adapter) } else { adapter };
                match manager.add_adapter(noting(adapter, &oracle), tier.options(at as u32 + 1)) {
                    Ok(id) => {
                        tier.opened(id, opened);
                        tier.present = true;
                    }
                    Err(e) => self.oracle.wrong(format!("an adapter could not be added: {e}")),
                }
            }
            Err(e) => self.oracle.wrong(format!("a store could not be opened: {e}")),
        }
    }

    /// Everything comes to rest, and is looked at.
    fn rest(&mut self) {
        self.tiers.iter_mut().for_each(Tier::heal);
        let end = self.exec.now() + PATIENCE;
        while self.oracle.clients() > 0 && self.exec.now() < end && self.verdict().is_none() {
            self.turn(end);
        }
        if self.oracle.clients() > 0 {
            return self.oracle.wrong(format!("{} engines never ended", self.oracle.clients()));
        }
        let manager = self.manager();
        self.within(
            "flush",
            PATIENCE,
            async move { manager.flush(PATIENCE).await.map_err(|e| e.to_string()) },
        );
        // A removal that did not end in time is tried again, and now nothing is in its way.
        for at in 0..self.tiers.len() {
            if self.tiers[at].open.as_ref().is_some_and(|open| open.leaving)
                && let Err(e) = self.remove(at, PATIENCE)
            {
                self.oracle.wrong(format!("tier {at} could not be removed: {e}"));
            }
        }
        // What nobody waits for any more, such as the loads of an engine that went away, ends by itself; a call whose fault was
        // chosen before the faults were switched off may begin to hang only now.
        let end = self.exec.now() + PATIENCE;
        self.tiers.iter_mut().for_each(Tier::heal);
        while self.turn(end) {
            self.tiers.iter_mut().for_each(Tier::heal);
        }
        self.look();
        self.oracle.at_rest();
        let u = self.manager().usage();
        let held = (u.pinned, u.reserved, u.storing, u.staging.used, u.staging.buffers);
        if held != (0, 0, 0, 0, 0) {
            self.oracle.wrong(format!(
                "held at rest (pinned, reserved, storing, staging bytes and buffers): {held:?}"
            ));
        }
        if u.cache.buffers != u.resident as u64 {
            self.oracle.wrong(format!(
                "{} buffers for {} chunks, {} tasks",
                u.cache.buffers,
                u.resident,
                self.exec.tasks()
            ));
        }
        let tenants: u64 =
            self.manager().tenants(TierId::L1).expect("L1 counts").iter().map(|t| t.used).sum();
        if tenants != u.cache.used {
            self.oracle.wrong(format!("tenants hold {tenants} bytes of {}", u.cache.used));
        }
    }

    /// Shuts everything down in order.
    fn close(&mut self) {
        self.rest();
        let manager = self.manager.take().expect("open between restarts");
        manager.clear();
        if manager.usage().cache.used != 0 {
            self.oracle.wrong(format!("{} bytes stay after a clear", manager.usage().cache.used));
        }
        self.within("shut down", PATIENCE, async move {
            manager.shutdown(PATIENCE).await.map_err(|e| e.to_string())
        });
        let end = self.exec.now() + PATIENCE;
        while self.exec.tasks() > 0 && self.turn(end) {}
        if self.exec.tasks() > 0 {
            self.oracle.wrong(format!("{} tasks never ended", self.exec.tasks()));
        }
        self.tiers.iter_mut().for_each(|tier| tier.open = None);
    }

    fn kill(&mut self, crash: Crash) {
        self.exec.kill();
        self.oracle.killed();
        self.manager = None;
        self.tiers.iter_mut().for_each(|tier| tier.crash(crash));
        // What engines held is dropped with them.
        self.exec.kill();
        self.oracle.killed();
    }

    /// The last rest, and what only then can be asked.
    pub(crate) fn end(&mut self) {
        if self.verdict().is_some() {
            return;
        }
        self.rest();
        for chain in 0..CHAINS {
            self.load(chain, LONGEST, true, PATIENCE, 0, false);
        }
        self.rest();
        // With nothing in the way a deletion is complete.
        let manager = self.manager();
        let keys: Vec<ObjectKey> = self.keys[0].clone();
        let oracle = self.oracle.clone();
        self.within("delete", PATIENCE, async move {
            let rq = manager.request(PATIENCE);
            let deleted = manager.delete(&rq, &keys).await;
            if !deleted.failed.is_empty() {
                return Err(format!("{:?}", deleted.failed));
            }
            let lookup = manager.lookup(&rq, &keys.into()).await;
            if lookup.prefix() + lookup.l1().count() + lookup.l2().count() > 0 {
                oracle.wrong("deleted keys are found".into());
            }
            Ok(())
        });
        self.close();
    }

    // ---- steps ---------------------------------------------------------------------------------------------------

    pub(crate) fn step(&mut self, step: &Step) {
        match *step {
            Step::Store { chain, from, len, whole, wait, within, hold, leave } => {
                let within = Duration::from_millis(within);
                self.store(chain, from, len, whole, wait, within, hold, leave);
            }
            Step::Load { chain, len, any, within, hold, early } => {
                self.load(chain, len, any, Duration::from_millis(within), hold, early);
            }
            Step::Read { chain, len, hold } => self.read(chain, len, hold),
            Step::Touch { chain, len } => {
                let (keys, _) = self.batch(chain, 0, len);
                let m = self.manager();
                m.touch(&m.request(PATIENCE), &keys, &KeyMask::all(keys.len()));
            }
            Step::Delete { chain, from, len, within } => {
                let (keys, _) = self.batch(chain, from, len);
                let within = Duration::from_millis(within);
                self.oracle.deletes(&keys);
                self.client(within, "delete", move |m, rq, _, _| async move {
                    m.delete(&rq, &keys).await;
                });
            }
            Step::Clear => {
                self.manager().clear();
            }
            Step::Quota { chain, units } => {
                let salt = SALTS[chain as usize % SALTS.len()];
                // Only one policy keeps quotas.
                drop(self.manager().set_quota(TierId::L1, salt, units.map(|u| u * UNIT)));
            }
            Step::Faults { tier, on } => self.tiers[tier].faults(on),
            Step::Hang { tier, on } => self.tiers[tier].hang(on),
            Step::Add { tier } => self.add(tier),
            Step::Remove { tier, within } => drop(self.remove(tier, Duration::from_millis(within))),
            Step::Run { turns } => {
                let limit = self.exec.now();
                for _ in 0..turns {
                    if !self.turn(limit) {
                        break;
                    }
                }
            }
            Step::Wait { ms } => {
                let until = self.exec.now() + Duration::from_millis(ms);
                while self.turn(until) {}
            }
            Step::Restart => {
                self.close();
                self.open();
            }
            Step::Kill { crash, seed } => {
                self.kill(match crash {
                    0 => Crash::Keep,
                    1 => Crash::Lose,
                    _ => Crash::Chance(seed),
                });
                self.open();
            }
        }
        self.look();
    }

    /// An adapter is taken out. If that takes longer than it may, it stays out of use and is tried again at its next
    /// removal.
    fn remove(&mut self, at: usize, within: Duration) -> Result<(), String> {
        let Some(open) = &mut self.tiers[at].open else { return Ok(()) };
        open.leaving = true;
        let id = open.id;
        let manager = self.manager();
        let done: Arc<Mutex<Option<Result<(), String>>>> = Arc::default();
        let said = Arc::clone(&done);
        let deadline = self.exec.now() + within;
        let (oracle, exec) = (self.oracle.clone(), self.exec.clone());
        let client = oracle.client();
        kvstrata_l2::Spawn::spawn(
            &self.exec,
            Box::pin(async move {
                let removed = manager.remove_adapter(id, within).await;
                oracle.ended("remove adapter", deadline, exec.now());
                *said.lock() = Some(removed.map_err(|e| e.to_string()));
                drop(client);
            }),
        );
        let limit = deadline;
        while done.lock().is_none() {
            if !self.turn(limit) {
                break;
            }
        }
        let removed = done.lock().take().unwrap_or_else(|| Err("it never ended".into()));
        if removed.is_ok() {
            (self.tiers[at].open, self.tiers[at].present) = (None, false);
        }
        removed
    }

    #[expect(clippy::too_many_arguments, reason = "they are the step's fields")]
    fn store(
        &mut self,
        chain: u64,
        from: u64,
        len: u64,
        whole: bool,
        wait: bool,
        within: Duration,
        hold: u64,
        leave: u64,
    ) {
        let (keys, layouts) = self.batch(chain, from, len);
        let grant = if whole { Grant::Whole } else { Grant::Part };
        let wait = if wait { Wait::UntilDeadline } else { Wait::No };
        self.client(within, "reserve", move |m, rq, oracle, exec| async move {
            let rq = rq.starting_at(from.min(LONGEST - 1) as u32);
            let all = KeyMask::all(keys.len());
            let reserved = m.reserve(&rq, &keys, &all, &layouts, grant, wait).await;
            oracle.ended("reserve", rq.deadline, exec.now());
            let granted = reserved.into_iter().filter_map(|r| match r {
                Reserved::Granted(chunk) => Some(chunk),
                _ => None,
            });
            let mut kept = Vec::new();
            for (n, mut chunk) in granted.enumerate() {
                let key = chunk.key().clone();
                payload::write(&key, chunk.buf()).expect("host memory");
                if leave == 0 || !(n as u64 + 1).is_multiple_of(leave) {
                    kept.push(chunk);
                }
            }
            exec.sleep_until(exec.now() + Duration::from_millis(hold)).await;
            let stored: Vec<ObjectKey> = kept.iter().map(|chunk| chunk.key().clone()).collect();
            let commit = oracle.commit(stored.iter());
            let hook = oracle.clone();
            let answers = m.commit_with(kept, Some(Arc::new(move |key: &ObjectKey| hook.hook(commit, key))));
            for (key, answer) in stored.iter().zip(answers) {
                if answer == Committed::Duplicate {
                    oracle.silent(commit, key);
                }
            }
        });
    }

    fn load(&mut self, chain: u64, len: u64, any: bool, within: Duration, hold: u64, early: bool) {
        let (keys, layouts) = self.batch(chain, 0, len);
        let mode = if any { LoadMode::Any } else { LoadMode::Prefix };
        self.client(within, "load", move |m, rq, oracle, exec| async move {
            let keys: kvstrata_l2::Keys = keys.into();
            let lookup = m.lookup(&rq, &keys).await;
            oracle.ended("look up", rq.deadline, exec.now());
            let mut loading = m.load(lookup, &layouts, mode);
            if early {
                // An engine that goes away with the first answer.
                if let Some((at, LoadAnswer::Hit(pin))) = loading.next().await {
                    oracle.hit(&keys[at], pin.buf());
                }
                return oracle.ended("load", rq.deadline, exec.now());
            }
            let loaded = loading.finish().await;
            oracle.ended("load", rq.deadline, exec.now());
            check(&oracle, &keys, &loaded.hits);
            exec.sleep_until(exec.now() + Duration::from_millis(hold)).await;
            // What is pinned has not changed meanwhile.
            check(&oracle, &keys, &loaded.hits);
        });
    }

    fn read(&mut self, chain: u64, len: u64, hold: u64) {
        let (keys, _) = self.batch(chain, 0, len);
        self.client(PATIENCE, "read", move |m, rq, oracle, exec| async move {
            let hits = m.read(&rq, &keys);
            exec.sleep_until(exec.now() + Duration::from_millis(hold)).await;
            check(&oracle, &keys, &hits);
        });
    }

    fn client<F>(
        &mut self,
        within: Duration,
        what: &'static str,
        work: impl FnOnce(Manager, Request, Oracle, Executor) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let manager = self.manager();
        let rq = manager.request(within);
        let client = self.oracle.client();
        let (oracle, exec) = (self.oracle.clone(), self.exec.clone());
        let work = work(manager, rq, self.oracle.clone(), self.exec.clone());
        kvstrata_l2::Spawn::spawn(
            &self.exec,
            Box::pin(async move {
                work.await;
                if what == "delete" {
                    oracle.ended(what, rq.deadline, exec.now());
                }
                drop(client);
            }),
        );
    }

    /// Runs a future to its end, which has to come in time and be good.
    fn within(
        &mut self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let oracle = self.oracle.clone();
        let client = oracle.client();
        kvstrata_l2::Spawn::spawn(
            &self.exec,
            Box::pin(async move {
                if let Err(e) = work.await {
                    oracle.wrong(format!("{what}: {e}"));
                }
                drop(client);
            }),
        );
        let end = self.exec.now() + limit;
        while self.oracle.clients() > 0 && self.exec.now() < end && self.turn(end) {}
        if self.oracle.clients() > 0 {
            self.oracle.wrong(format!("{what} never ended"));
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// One thing happens: a task goes on, a disk does a piece of its work, or, if there is nothing else, time passes, at
    /// most up to `limit`. Whether anything happened.
    fn turn(&mut self, limit: kvstrata_core::Instant) -> bool {
        let disks: Vec<usize> = (0..self.tiers.len()).filter(|t| self.tiers[*t].has_disk()).collect();
        let choices = self.exec.ready().min(8) + disks.len();
        let first = if choices == 0 { 0 } else { self.rng.below(choices as u64) as usize };
        if let Some(&disk) = disks.get(first)
            && self.tiers[disk].step()
        {
            return true;
        }
        self.exec.poll_one(&mut self.rng)
            || disks.iter().any(|disk| self.tiers[*disk].step())
            || self.exec.advance(limit)
    }

    // ---- what holds at every step ----------------------------------------------------------------------------------

    fn look(&self) {
        for panic in self.exec.panics() {
            if !panic.contains(crate::INJECTED) {
                self.oracle.wrong(format!("a task panicked: {panic}"));
            }
        }
        let ManagerUsage { cache, staging, adapters, faults, .. } = self.manager().usage();
        for (what, usage) in [("cache", cache), ("staging", staging)] {
            if usage.used > usage.limit {
                self.oracle.wrong(format!("{what} takes {} bytes of {}", usage.used, usage.limit));
            }
        }
        if !faults.is_empty() {
            self.oracle.wrong(format!("policies panicked: {faults:?}"));
        }
        for adapter in adapters {
            let Some(usage) = adapter.usage else { continue };
            if usage.capacity.is_some_and(|capacity| usage.used > capacity) {
                self.oracle
                    .wrong(format!("{} takes {} bytes of {:?}", adapter.name, usage.used, usage.capacity));
            }
        }
        for (at, tier) in self.tiers.iter().enumerate() {
            for (used, capacity) in tier.space().filter(|(used, capacity)| used > capacity) {
                self.oracle.wrong(format!("a disk of tier {at} has {used} bytes of {capacity}"));
            }
        }
    }
}

fn check(oracle: &Oracle, keys: &[ObjectKey], hits: &Hits) {
    for (at, key) in keys.iter().enumerate() {
        match hits.buf(at) {
            Some(buf) => oracle.hit(key, buf),
            None => oracle.missed(),
        }
    }
}
