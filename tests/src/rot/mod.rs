//! Files of a store rot while it is closed and while it is open: nothing wrong is ever delivered, every fault is found for a
//! reason that is counted or does no harm, and the next store heals it.

mod damage;
pub mod segments;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvstrata_disk::names::{MANIFEST, QUARANTINE, SNAPSHOT, object_name, object_path};
use kvstrata_l2::Miss;
use kvstrata_l2_fs::{LayoutChoice, Sync};
use kvstrata_testkit::rng::Rng;
use serde::Serialize;
use tempfile::TempDir;

pub use damage::Rot;

use crate::report::{Progress, number, table};
use crate::shelf::{BATCH, Got, How, Shelf, key, names, scope};

/// Objects of the store.
const OBJECTS: u64 = 192;
/// Faults of one round, at most.
const ROUND: u64 = 48;
/// Numbers of keys that are never stored, but by the names of strange files.
const NEVER: u64 = 1 << 32;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Paths with a store each.
    pub paths: usize,
    /// Faults put in place.
    pub faults: u64,
    /// What every choice is made from.
    pub seed: u64,
}

/// How the store was found after the fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It was open all the time.
    Open,
    /// It was closed, and opened with its snapshot.
    Snapshot,
    /// It was closed, and opened without its snapshot.
    Scan,
}

impl State {
    const ALL: [Self; 3] = [Self::Open, Self::Snapshot, Self::Scan];
}

/// What came of the faults of one class.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Count {
    /// Put in place.
    pub faults: u64,
    /// Found, by reason.
    pub found: BTreeMap<String, u64>,
    /// Did no harm: the right bytes were delivered.
    pub harmless: u64,
    /// Of those, found out later, when the store was opened without its snapshot and the header was read.
    pub found_later: u64,
    /// Loads that deliver after the next store.
    pub healed: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Object faults by class.
    pub classes: BTreeMap<Rot, Count>,
    /// Object faults in all.
    pub faults: u64,
    /// Of those: while the store was open, while it was closed and kept its snapshot, and lost it.
    pub states: [u64; 3],
    /// Files that were none of the store's.
    pub strangers: u64,
    /// Snapshots that were damaged.
    pub snapshots: u64,
    /// Loads that delivered, each compared byte by byte.
    pub verified: u64,
    /// Deliveries of other bytes.
    pub wrong: u64,
    /// Stores opened.
    pub opened: u64,
    /// Classes that cannot happen here, and why.
    pub not_run: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Everything that did not hold.
    pub failures: Vec<String>,
}

/// Lets a store rot.
pub fn run(options: &Options, progress: &mut Progress) -> Report {
    let start = Instant::now();
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let report = runtime.block_on(async {
        let mut world = World::new(dir, options);
        if let Err(e) = world.fill().await {
            world.report.failures.push(e);
        }
        while world.report.faults < options.faults && world.report.failures.len() < 20 {
            let faults = ROUND.min(options.faults - world.report.faults);
            if let Err(e) = world.round(faults).await {
                world.report.failures.push(e);
                break;
            }
            let said = format!("{} chunks compared", number(world.report.verified));
            progress.reached(world.report.faults, &said);
        }
        world.report
    });
    Report { seconds: start.elapsed().as_secs_f64(), ..report }
}

struct World {
    dir: TempDir,
    paths: usize,
    rng: Rng,
    shelf: Option<Shelf>,
    scope: std::sync::Arc<kvstrata_core::KeyScope>,
    rounds: u64,
    never: u64,
    /// Damage that did no harm and is there still.
    latent: BTreeMap<u64, Rot>,
    report: Report,
}

/// The counts that a round's misses must show up in.
#[derive(Clone, Copy)]
struct Before {
    misses: u64,
    failed: u64,
    quarantined: u64,
}

impl World {
    fn new(dir: TempDir, options: &Options) -> Self {
        let report = Report { seed: options.seed, ..Report::default() };
        Self {
            dir,
            paths: options.paths,
            rng: Rng::new(options.seed),
            shelf: None,
            scope: scope(),
            rounds: 0,
            never: NEVER,
            latent: BTreeMap::new(),
            report,
        }
    }

    fn how(&self, writer: u64) -> How {
        How {
            dir: self.dir.path().into(),
            paths: self.paths,
            layout: LayoutChoice::Files,
            capacity: 0,
            sync: Sync::None,
            writer,
            shared: false,
        }
    }

    /// A key's file on the path that has it; on the first one if none has.
    fn path(&self, id: u64) -> PathBuf {
        let key = key(&self.scope, id);
        let mut on: Vec<PathBuf> =
            self.how(0).dirs().iter().map(|dir| object_path(dir, key.fingerprint256())).collect();
        let at = on.iter().position(|path| path.exists()).unwrap_or(0);
        on.swap_remove(at)
    }

    fn quarantine(&self) -> Vec<String> {
        self.how(0).dirs().iter().flat_map(|dir| names(&dir.join(QUARANTINE))).collect()
    }

    fn shelf(&self) -> Result<&Shelf, String> {
        self.shelf.as_ref().ok_or_else(|| "the store is closed".into())
    }

    fn open(&mut self) -> Result<(), String> {
        if self.shelf.is_none() {
            let writer = self.rng.bits();
            let how = self.how(writer);
            self.shelf = Some(Shelf::open(&how).map_err(|e| format!("the store does not open: {e}"))?);
            self.report.opened += 1;
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), String> {
        match self.shelf.take() {
            Some(shelf) => shelf.close().await.map_err(|e| format!("the store does not close: {e}")),
            None => Ok(()),
        }
    }

    async fn fill(&mut self) -> Result<(), String> {
        self.open()?;
        self.store_all().await
    }

    /// Stores every key; what is there already is not written.
    async fn store_all(&mut self) -> Result<(), String> {
        let ids: Vec<u64> = (0..OBJECTS).collect();
        for batch in ids.chunks(BATCH) {
            for (id, answer) in batch.iter().zip(self.shelf()?.put(&self.scope, batch).await) {
                if let Err(e) = answer {
                    self.report.failures.push(format!("key {id} cannot be stored again: {e}"));
                }
            }
        }
        Ok(())
    }

    /// Loads every key, and what came of it.
    async fn load_all(&mut self) -> Result<Vec<Got>, String> {
        let ids: Vec<u64> = (0..OBJECTS).collect();
        let mut all = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH) {
            all.extend(self.shelf()?.get(&self.scope, batch).await);
        }
        for (id, got) in all.iter().enumerate() {
            match got {
                Got::Right => self.report.verified += 1,
                Got::Wrong(how) => {
                    self.report.wrong += 1;
                    self.report.failures.push(format!("key {id}: {how}"));
                }
                Got::Miss(_) | Got::Failed(_) => {}
            }
        }
        Ok(all)
    }

    async fn round(&mut self, faults: u64) -> Result<(), String> {
        let state = State::ALL[(self.rounds % 3) as usize];
        self.rounds += 1;
        if state != State::Open {
            self.close().await?;
        }
        let damaged = self.damage(faults, state).map_err(|e| format!("damaging files: {e}"))?;
        let never = self.strange(state).map_err(|e| format!("strange files: {e}"))?;
        let aside: BTreeSet<String> = self.quarantine().into_iter().collect();
        self.open()?;
        let before = self.counts()?;
        let all = self.load_all().await?;
        self.account(&damaged, state, &all, &aside, before)?;
        self.never_stored(never).await?;

        self.store_all().await?;
        let all = self.load_all().await?;
        for (id, got) in all.iter().enumerate() {
            match (got, damaged.get(&(id as u64))) {
                (Got::Right, Some(rots)) => {
                    for rot in rots {
                        self.report.classes.entry(*rot).or_default().healed += 1;
                    }
                }
                (Got::Right, None) => {}
                (other, rots) => self
                    .report
                    .failures
                    .push(format!("key {id} is not healed by a store ({state:?}, {rots:?}): {other:?}")),
            }
        }
        let out = self.shelf()?.buffers();
        if out > 0 {
            self.report.failures.push(format!("{out} buffers are out"));
        }
        Ok(())
    }

    /// Damages objects; each has one fault, or is the other one of an exchange.
    fn damage(&mut self, faults: u64, state: State) -> std::io::Result<BTreeMap<u64, Vec<Rot>>> {
        let mut damaged: BTreeMap<u64, Vec<Rot>> = BTreeMap::new();
        let mut tries = 0;
        let mut done = 0;
        while done < faults && tries < faults * 20 {
            tries += 1;
            let rot = Rot::ALL[self.rng.below(Rot::ALL.len() as u64) as usize];
            let [id, other] = [self.rng.below(OBJECTS), self.rng.below(OBJECTS)];
            let taken = |id| damaged.contains_key(&id) || self.latent.contains_key(&id);
            if taken(id) || rot.takes_two() && (id == other || taken(other)) {
                continue;
            }
            let (at, from) = (self.path(id), self.path(other));
            if !rot.happen(&mut self.rng, &at, &from)? {
                if rot == Rot::Unreadable && self.report.not_run.is_empty() {
                    self.report.not_run.push("unreadable: this process may read every file".into());
                }
                continue;
            }
            damaged.insert(id, vec![rot]);
            if matches!(rot, Rot::SwappedNames | Rot::SwappedBytes) {
                damaged.insert(other, vec![rot]);
            }
            done += 1;
        }
        for rots in damaged.values() {
            for rot in rots {
                self.report.classes.entry(*rot).or_default().faults += 1;
                self.report.faults += 1;
                self.report.states[state as usize] += 1;
            }
        }
        Ok(damaged)
    }

    /// Files that nobody asked for, and what happens to the snapshot; the number of a key that a strange file is named after.
    fn strange(&mut self, state: State) -> std::io::Result<Option<u64>> {
        let dirs = self.how(0).dirs();
        let root = dirs[self.rounds as usize % dirs.len()].clone();
        self.never += 1;
        let never = self.path(self.never);
        let beside = self.path(self.rng.clone().below(OBJECTS));
        let made = damage::stranger(&mut self.rng, &root, &beside, &never)?;
        self.report.strangers += 1;
        match state {
            State::Open => {}
            State::Snapshot if self.rng.percent(30) => {
                self.report.snapshots += u64::from(damage::snapshot(&mut self.rng, &root.join(SNAPSHOT))?);
            }
            State::Snapshot => {}
            State::Scan => dirs.iter().try_for_each(|dir| std::fs::remove_file(dir.join(SNAPSHOT)))?,
        }
        debug_assert!(root.join(MANIFEST).exists(), "the store described itself");
        Ok((made == never).then_some(self.never))
    }

    fn counts(&self) -> Result<Before, String> {
        let shelf = self.shelf()?;
        let checks = shelf.checked.stats.counts();
        let quarantined = shelf.sum(|stats| stats.quarantined);
        Ok(Before { misses: checks.misses.iter().sum(), failed: checks.get_failed, quarantined })
    }

    /// Every fault has to show, for a reason that is counted, or do no harm.
    fn account(
        &mut self,
        damaged: &BTreeMap<u64, Vec<Rot>>,
        state: State,
        all: &[Got],
        aside: &BTreeSet<String>,
        before: Before,
    ) -> Result<(), String> {
        let quarantine = self.quarantine();
        let set_aside: Vec<&String> = quarantine.iter().filter(|name| !aside.contains(*name)).collect();
        let (mut misses, mut failed) = (0, 0);
        for (id, got) in all.iter().enumerate() {
            let rots = damaged.get(&(id as u64));
            misses += u64::from(matches!(got, Got::Miss(_)));
            failed += u64::from(matches!(got, Got::Failed(_)));
            let Some(rots) = rots else {
                if state != State::Open
                    && matches!(got, Got::Miss(Miss::Absent))
                    && let Some(rot) = self.latent.remove(&(id as u64))
                {
                    self.report.classes.entry(rot).or_default().found_later += 1;
                } else if !matches!(got, Got::Right | Got::Wrong(_)) {
                    let what = format!("key {id} was not damaged ({state:?}): {got:?}");
                    self.report.failures.push(what);
                }
                continue;
            };
            let object = object_name(key(&self.scope, id as u64).fingerprint256());
            // What the start has set aside, it has for a reason.
            let why = set_aside.iter().find(|name| name.starts_with(&object));
            let why = why
                .and_then(|name| Path::new(name).extension())
                .map(|why| why.to_string_lossy().into_owned());
            let reason = match (got, why) {
                (Got::Right | Got::Wrong(_), _) => None,
                (Got::Failed(e), _) => Some(format!("error: {}", e.kind().name())),
                (Got::Miss(Miss::Absent), Some(why)) => Some(format!("{why} at the start")),
                (Got::Miss(miss), _) => Some(miss.name().to_owned()),
            };
            for rot in rots {
                let count = self.report.classes.entry(*rot).or_default();
                match &reason {
                    None => {
                        count.harmless += 1;
                        self.latent.insert(id as u64, *rot);
                    }
                    Some(reason) => *count.found.entry(reason.clone()).or_default() += 1,
                }
                // An object that is not there for no reason was forgotten, not found out.
                if reason.as_deref() == Some("absent") && *rot != Rot::Missing {
                    let what = format!("key {id} ({rot:?}, {state:?}) is gone, and nobody said why");
                    self.report.failures.push(what);
                }
                if reason.is_none() && !rot.spares_payload() && *rot != Rot::Zeros {
                    let what =
                        format!("key {id} ({rot:?}, {state:?}) was delivered although its file is damaged");
                    self.report.failures.push(what);
                }
            }
        }
        let now = self.counts()?;
        let counted = (now.misses - before.misses, now.failed - before.failed);
        if counted != (misses, failed) {
            let what =
                format!("{misses} misses and {failed} failures were seen, and {counted:?} were counted");
            self.report.failures.push(what);
        }
        let aside_now = set_aside.len() as u64;
        if state == State::Open && now.quarantined - before.quarantined != aside_now {
            let what = format!(
                "{aside_now} files are in quarantine, and {} were counted",
                now.quarantined - before.quarantined
            );
            self.report.failures.push(what);
        }
        Ok(())
    }

    /// A key that only a strange file is named after: it is not found, and can be stored.
    async fn never_stored(&mut self, id: Option<u64>) -> Result<(), String> {
        let Some(id) = id else { return Ok(()) };
        let shelf = self.shelf()?;
        let first = shelf.get(&self.scope, &[id]).await;
        let stored = shelf.put(&self.scope, &[id]).await;
        let then = shelf.get(&self.scope, &[id]).await;
        let remove = shelf.checked.adapter.remove.as_ref().expect("files can be removed");
        let removed = remove.remove([key(&self.scope, id)].into(), shelf.deadline()).await;
        let good = matches!(first[0], Got::Miss(_))
            && stored[0].is_ok()
            && matches!(then[0], Got::Right)
            && matches!(removed[0], Ok(true));
        if !good {
            let what =
                format!("key {id}, whose name a strange file had: {first:?} {stored:?} {then:?} {removed:?}");
            self.report.failures.push(what);
        }
        Ok(())
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let words = |found: &BTreeMap<String, u64>| {
            found.iter().map(|(why, n)| format!("{why} {}", number(*n))).collect::<Vec<_>>().join(", ")
        };
        let rows: Vec<_> = self
            .classes
            .iter()
            .map(|(rot, c)| {
                vec![
                    rot.name().to_owned(),
                    number(c.faults),
                    number(c.found.values().sum()),
                    number(c.harmless),
                    number(c.found_later),
                    number(c.healed),
                    words(&c.found),
                ]
            })
            .collect();
        let line = |what: &str, n: u64| format!("{what:<36}{:>10}\n", number(n));
        let [open, snapshot, scan] = self.states;
        table(&["object's file", "faults", "found", "harmless", "found later", "healed", "found as"], &rows)
            + "\n"
            + &line("faults", self.faults)
            + &line("  while the store was open", open)
            + &line("  closed, opened with its snapshot", snapshot)
            + &line("  closed, opened without", scan)
            + &line("strange files", self.strangers)
            + &line("snapshots damaged", self.snapshots)
            + &line("chunks compared", self.verified)
            + &line("wrong chunks", self.wrong)
            + &line("stores opened", self.opened)
            + &format!("{:<36}{:>10.1}\n", "took, in seconds", self.seconds)
            + &self.not_run.iter().map(|why| format!("not run: {why}\n")).collect::<String>()
    }

    /// Everything that did not hold, sums included.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.failures.clone();
        for (rot, count) in &self.classes {
            let found: u64 = count.found.values().sum();
            if found + count.harmless != count.faults || count.healed != count.faults {
                failures.push(format!("not every fault is accounted for: {}: {count:?}", rot.name()));
            }
        }
        failures
    }
}
