//! A process that stores is killed at random moments, and what it leaves is looked at.

mod child;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvstrata_disk::names::{QUARANTINE, SNAPSHOT, TMP};
use kvstrata_disk::{FileState, FsckOptions, FsckReport, Writer, fsck};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_testkit::rng::Rng;
use serde::Serialize;
use tempfile::TempDir;

pub use child::{ChildArgs, LayoutName, Syncs, Through, child};

use crate::report::{Progress, number, table};
use crate::shelf::{BATCH, Got, How, Shelf, du, id_of, layout, names, scope};

const SIGKILL: i32 = 9;
/// A directory without eviction is left for a new one when it holds so many objects.
const ENOUGH: u64 = 1500;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program whose subcommand `child` is killed.
    pub program: PathBuf,
    /// Kills.
    pub rounds: u64,
    /// What every choice is made from.
    pub seed: u64,
    /// The longest life of a process, in milliseconds.
    pub longest_ms: u64,
    /// Only places of this layout.
    pub layout: Option<LayoutName>,
    /// Only places with so many paths.
    pub paths: Option<usize>,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Processes killed.
    pub kills: u64,
    /// Of those, killed before the store was open.
    pub while_opening: u64,
    /// Stores opened again.
    pub reopened: u64,
    /// Of those, without the snapshot, which was deleted.
    pub without_snapshot: u64,
    /// Objects taken from a snapshot.
    pub from_snapshot: u64,
    /// Objects whose header was read.
    pub from_headers: u64,
    /// Objects loaded and compared byte by byte.
    pub verified: u64,
    /// Their bytes.
    pub verified_bytes: u64,
    /// Keys that a process said were stored.
    pub acknowledged: u64,
    /// Keys that were stored without a word about it before the kill.
    pub unacknowledged: u64,
    /// Keys that were acknowledged, and evicted since.
    pub evicted: u64,
    /// Keys that were removed; none may be there in any later opening.
    pub removed: u64,
    /// Unfinished files, all cleaned up by the next opening.
    pub unfinished: u64,
    /// Objects under their name that were not whole.
    pub torn: u64,
    /// The most that a directory took of its capacity, in percent.
    pub fullest_percent: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Everything that did not hold.
    pub failures: Vec<String>,
}

/// A directory and what is known of it.
struct Place {
    name: &'static str,
    layout: LayoutName,
    paths: usize,
    capacity: u64,
    /// Whether objects have to leave.
    churn: bool,
    sync: Syncs,
    through: Through,
    dir: TempDir,
    next: u64,
    /// Keys that are stored, in the order they were acknowledged in.
    stored: BTreeMap<u64, u64>,
    acks: u64,
    /// Keys that were removed or evicted. No number is used twice, so none of them ever comes back.
    gone: BTreeSet<u64>,
}

impl Place {
    fn new(
        name: &'static str,
        (layout, paths): (LayoutName, usize),
        capacity: u64,
        churn: bool,
        sync: Syncs,
        through: Through,
    ) -> Self {
        Self {
            name,
            layout,
            paths,
            capacity,
            churn,
            sync,
            through,
            dir: tempfile::tempdir().expect("a directory"),
            next: 0,
            stored: BTreeMap::new(),
            acks: 0,
            gone: BTreeSet::new(),
        }
    }

    fn how(&self, writer: u64) -> How {
        How {
            dir: self.dir.path().into(),
            paths: self.paths,
            layout: self.layout.into(),
            capacity: self.capacity,
            sync: self.sync.into(),
            writer,
            shared: false,
        }
    }

    /// What the process said; whether it had opened the store.
    fn hear(&mut self, said: &str, report: &mut Report) -> bool {
        let mut opened = false;
        // A last line without its end was cut by the kill.
        for line in said.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
            let mut words = line.split(' ');
            let what = words.next();
            for id in words.filter_map(|w| w.parse::<u64>().ok()) {
                self.next = self.next.max(id + 1);
                match what {
                    Some("stored") => {
                        self.acks += 1;
                        self.stored.insert(id, self.acks);
                        report.acknowledged += 1;
                    }
                    // From here until it is done, nobody knows.
                    Some("removing") => drop(self.stored.remove(&id)),
                    Some("removed") => report.removed += u64::from(self.gone.insert(id)),
                    _ => report.failures.push(format!("{}: a process said {line:?}", self.name)),
                }
            }
            opened |= what == Some("open");
        }
        opened
    }
}

/// Where processes store.
fn places() -> Vec<Place> {
    let (files, slab) = ((LayoutName::Files, 1), (LayoutName::Slab, 1));
    let (files3, slab3) = ((LayoutName::Files, 3), (LayoutName::Slab, 3));
    let (small, roomy) = (4 << 20, 1 << 30);
    vec![
        Place::new("files, adapter, sync none, 4 MiB", files, small, true, Syncs::None, Through::Adapter),
        Place::new("slab, adapter, sync none, 4 MiB", slab, small, true, Syncs::None, Through::Adapter),
        Place::new("files, manager, sync full, roomy", files, roomy, false, Syncs::Full, Through::Manager),
        Place::new("slab, manager, sync full, roomy", slab, roomy, false, Syncs::Full, Through::Manager),
        Place::new("3 paths of files, 12 MiB", files3, 3 * small, true, Syncs::None, Through::Adapter),
        Place::new("3 paths of slab, roomy", slab3, roomy, false, Syncs::Data, Through::Manager),
        Place::new("files, manager, sync none, 4 MiB", files, small, true, Syncs::None, Through::Manager),
        Place::new("slab, manager, sync none, 4 MiB", slab, small, true, Syncs::None, Through::Manager),
        Place::new("files, adapter, sync data, roomy", files, roomy, false, Syncs::Data, Through::Adapter),
        Place::new("slab, adapter, sync data, roomy", slab, roomy, false, Syncs::Data, Through::Adapter),
        Place::new("3 paths of files, roomy", files3, roomy, false, Syncs::Full, Through::Manager),
        Place::new("3 paths of slab, 12 MiB", slab3, 3 * small, true, Syncs::None, Through::Adapter),
    ]
}

/// Kills so often.
pub fn run(options: &Options, progress: &mut Progress) -> Report {
    let start = Instant::now();
    let mut rng = Rng::new(options.seed);
    let mut report = Report { seed: options.seed, ..Report::default() };
    let mut places = places();
    places.retain(|place| options.layout.is_none_or(|layout| layout == place.layout));
    places.retain(|place| options.paths.is_none_or(|paths| paths == place.paths));
    if places.is_empty() {
        report.failures.push("there is no place of this layout with so many paths; 1 and 3 are there".into());
        return report;
    }
    let turns = places.len() as u64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.expect("a runtime");
    for round in 0..options.rounds {
        let place = &mut places[(round % turns) as usize];
        let before = report.failures.len();
        if kill(options, place, &mut rng, &mut report) {
            runtime.block_on(look(place, &mut rng, &mut report));
        }
        for failure in &mut report.failures[before..] {
            *failure = format!("round {round}, {}: {failure}", place.name);
        }
        if report.failures.len() > 20 {
            break;
        }
        progress.reached(round + 1, &format!("{} objects compared", number(report.verified)));
    }
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// Starts a process and kills it; whether there is something to look at.
fn kill(options: &Options, place: &mut Place, rng: &mut Rng, report: &mut Report) -> bool {
    let life = if rng.percent(25) { rng.below(25) } else { rng.below(options.longest_ms.max(1)) };
    let spawned = Command::new(&options.program)
        .arg("child")
        .arg("--dir")
        .arg(place.dir.path())
        .args(["--capacity", &place.capacity.to_string()])
        .args(["--layout", &name_of(place.layout), "--paths", &place.paths.to_string()])
        .args(["--sync", &name_of(place.sync), "--through", &name_of(place.through)])
        .args(["--first", &place.next.to_string(), "--seed", &(rng.bits() | 1).to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => {
            report.failures.push(format!("a process could not be started: {e}"));
            return false;
        }
    };
    let (said, complained) = (listen(child.stdout.take()), listen(child.stderr.take()));
    std::thread::sleep(Duration::from_millis(life));
    let status = end(&mut child);
    let (said, complained) = (said.join().unwrap_or_default(), complained.join().unwrap_or_default());
    let opened = place.hear(&said, report);
    match status {
        Ok(status) if status.signal() == Some(SIGKILL) => {
            report.kills += 1;
            report.while_opening += u64::from(!opened);
        }
        Ok(status) => report.failures.push(format!("a process ended by itself ({status}): {complained}")),
        Err(e) => report.failures.push(format!("a process could not be killed: {e}")),
    }
    true
}

fn name_of(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

fn end(child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
    child.kill()?;
    child.wait()
}

fn listen(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(from) = from {
            let mut from = BufReader::new(from);
            while from.read_until(b'\n', &mut text).is_ok_and(|n| n > 0) {}
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn check_files(dir: &Path, payloads: bool) -> Result<FsckReport, String> {
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).map_err(|e| e.to_string())?;
    let writer = Writer { pid: std::process::id(), id: 0 };
    let options = FsckOptions { payloads, repair: false, tmp: None, writer };
    fsck(&disk, dir, &options, |_, _| {}).map_err(|e| e.to_string())
}

/// Looks at a directory whose process was killed, opens it, and looks again.
async fn look(place: &mut Place, rng: &mut Rng, report: &mut Report) {
    let (dir, dirs) = (place.dir.path().to_path_buf(), place.how(0).dirs());
    let mut wrong = Vec::new();
    // Before anybody has put anything right.
    let mut there = 0;
    // A process that was killed early has not made all of them.
    for dir in dirs.iter().filter(|dir| dir.exists()) {
        let before = match check_files(dir, true) {
            Ok(before) => before,
            Err(e) => return report.failures.push(format!("the files cannot be checked: {e}")),
        };
        there += before.objects;
        report.torn += before.bad.len() as u64;
        report.unfinished += before.orphans.len() as u64;
        if !before.bad.is_empty() {
            wrong.push(format!("torn objects: {:?}", before.bad));
        }
        if !before.strangers.is_empty() || !before.quarantined.is_empty() {
            wrong.push(format!("strange files: {:?} {:?}", before.strangers, before.quarantined));
        }
        if let FileState::Bad(why) = &before.snapshot {
            wrong.push(format!("the snapshot is bad: {why}"));
        }
        if let FileState::Bad(why) = &before.manifest {
            wrong.push(format!("the manifest is bad: {why}"));
        }
    }
    let full = |wrong: &mut Vec<String>, report: &mut Report, when: &str| match du(&dir) {
        Ok(bytes) => {
            report.fullest_percent = report.fullest_percent.max(bytes * 100 / place.capacity);
            if bytes > place.capacity {
                wrong.push(format!("{when}, du says {bytes} bytes of {}", place.capacity));
            }
        }
        Err(e) => wrong.push(format!("du: {e}")),
    };
    full(&mut wrong, report, "after the kill");
    let one = &dirs[rng.below(dirs.len() as u64) as usize];
    if rng.percent(30) && std::fs::remove_file(one.join(SNAPSHOT)).is_ok() {
        report.without_snapshot += 1;
    }
    let shelf = match Shelf::open(&place.how(rng.bits() | 1)) {
        Ok(shelf) => shelf,
        Err(e) => return report.failures.push(format!("the store does not open: {e}")),
    };
    report.reopened += 1;
    report.from_snapshot += shelf.sum(|stats| stats.recovered_snapshot);
    report.from_headers += shelf.sum(|stats| stats.recovered_scan);
    let usage = shelf.adapter.usage.as_ref().expect("files say how full they are").usage();
    if shelf.taken() > place.capacity {
        wrong.push(format!("usage is above the capacity: {usage:?}"));
    }
    if usage.objects + usage.evicted != there {
        wrong.push(format!("{there} objects are there, and the index has {usage:?}"));
    }
    full(&mut wrong, report, "after opening");
    let left = |name: &str| dirs.iter().flat_map(|dir| names(&dir.join(name))).collect::<Vec<_>>();
    let unfinished = left(TMP);
    if !unfinished.is_empty() || !left(QUARANTINE).is_empty() {
        wrong.push(format!("files stayed behind: {unfinished:?}"));
    }
    let listed: BTreeSet<u64> = match shelf.list().await {
        Ok(listed) => listed.iter().filter_map(|(key, _)| id_of(key)).collect(),
        Err(e) => return report.failures.push(format!("the store cannot be listed: {e}")),
    };
    if listed.len() as u64 != usage.objects {
        wrong.push(format!("{} keys are listed of {}", listed.len(), usage.objects));
    }
    let scope = scope();
    let ids: Vec<u64> = listed.iter().copied().collect();
    for batch in ids.chunks(BATCH) {
        for (id, got) in batch.iter().zip(shelf.get(&scope, batch).await) {
            match got {
                Got::Right => {
                    report.verified += 1;
                    report.verified_bytes += layout(*id).bytes();
                }
                other => wrong.push(format!("key {id} is listed: {other:?}")),
            }
        }
    }
    expect(place, &listed, &mut wrong, report);
    if shelf.buffers() > 0 {
        wrong.push(format!("{} buffers are out", shelf.buffers()));
    }
    // Half of the openings end without a snapshot of their own, so that an old one is found next time.
    if rng.percent(50)
        && let Err(e) = shelf.close().await
    {
        wrong.push(format!("the store does not close: {e}"));
    }
    report.failures.extend(wrong);
    place.next = place.next.max(ids.last().map_or(0, |id| id + 1));
    if !place.churn && listed.len() as u64 > ENOUGH {
        let layout = (place.layout, place.paths);
        *place = Place::new(place.name, layout, place.capacity, place.churn, place.sync, place.through);
    }
}

/// Holds what is listed against what was acknowledged.
fn expect(place: &mut Place, listed: &BTreeSet<u64>, wrong: &mut Vec<String>, report: &mut Report) {
    // Least recently used goes first, so a quarter of the room always has the newest.
    let mut newest: Vec<(u64, u64)> = place.stored.iter().map(|(id, at)| (*at, *id)).collect();
    newest.sort_unstable();
    let mut room = place.capacity / 4;
    for (_, id) in newest.into_iter().rev() {
        room = room.saturating_sub(child::charge(place.layout, id));
        if listed.contains(&id) {
            continue;
        }
        if !place.churn || room > 0 {
            wrong.push(format!("key {id} was acknowledged and is gone"));
        } else {
            report.evicted += 1;
        }
        // It is told once.
        place.stored.remove(&id);
        place.gone.insert(id);
    }
    for id in place.gone.intersection(listed) {
        wrong.push(format!("key {id} was removed or evicted and is back"));
    }
    for id in listed {
        if !place.stored.contains_key(id) {
            report.unacknowledged += 1;
            place.acks += 1;
            place.stored.insert(*id, place.acks);
        }
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let rows = [
            ("kills", number(self.kills)),
            ("  before the store was open", number(self.while_opening)),
            ("stores opened again", number(self.reopened)),
            ("  without their snapshot", number(self.without_snapshot)),
            ("objects from snapshots", number(self.from_snapshot)),
            ("objects from headers", number(self.from_headers)),
            ("objects compared", number(self.verified)),
            ("  their MiB", number(self.verified_bytes >> 20)),
            ("keys acknowledged", number(self.acknowledged)),
            ("  evicted since", number(self.evicted)),
            ("keys stored, not acknowledged", number(self.unacknowledged)),
            ("keys removed, and not back", number(self.removed)),
            ("unfinished files cleaned up", number(self.unfinished)),
            ("torn objects", number(self.torn)),
            ("fullest, by du, in percent", number(self.fullest_percent)),
            ("took, in seconds", format!("{:.1}", self.seconds)),
            ("failures", number(self.failures.len() as u64)),
        ];
        let rows: Vec<_> =
            rows.into_iter().map(|(what, n)| vec![what.to_owned(), n, String::new()]).collect();
        table(&["killed and opened again", "count", ""], &rows)
    }
}
