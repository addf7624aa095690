//! Whole histories of a store, and every disk that a loss of power at any moment of them may leave behind: recovery opens
//! each of them, whatever was lost, torn or reordered, and so it does when it was itself cut short.

mod common;
#[path = "common/events.rs"]
mod events;

use std::collections::BTreeSet;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{key, load, object, payload, settings, store_payload};
use events::{Event, Events, Rng, What, resident};
use kvstrata_core::{ErrorKind, Layout, Namespace};
use kvstrata_disk::{Begin, Durability, FsckOptions, Settings, Store, Writer, fsck, names};
use kvstrata_io::{CrashOptions, Disk, FileKind, Open, SimDisk};
use kvstrata_l2::{Miss, Stored};

const ROOT: &str = "/kv";
const KEYS: u64 = 6;
/// Where files are written before they are published.
const TMPS: [Option<&str>; 3] = [None, Some("other"), Some("third")];
const BLOCK: u64 = 4096;

/// All versions of a key are as long; one, two, three and five blocks with the header's.
fn len(n: u64) -> usize {
    [300, 4096, 8192, 16_000][n as usize % 4]
}

fn namespace(n: usize) -> Namespace {
    let model = ["org/model", "b", "c"][n].into();
    let layout = Layout::opaque(4096).expect("a layout");
    Namespace { model, world_size: 1, chunk_tokens: 256, hash_schema: 1, layout }
}

/// A store that goes through a history, and what its callers know of it.
struct History {
    name: String,
    disk: SimDisk,
    store: Option<Arc<Store<SimDisk>>>,
    durability: Durability,
    capacity: Option<u64>,
    runs: u64,
    events: Events,
    described: Vec<(usize, usize, usize)>,
    /// From when on which directory for unfinished files was asked for.
    tmps: Vec<(usize, usize)>,
    rotten: Vec<u64>,
}

fn with(h: &History, id: u64, tmp: usize) -> Settings {
    let tmp = TMPS[tmp].map(PathBuf::from);
    Settings { tmp, capacity: h.capacity, durability: h.durability, ..settings(Path::new(ROOT), id) }
}

fn listed(store: &Arc<Store<SimDisk>>) -> BTreeSet<[u8; 32]> {
    let (mut all, mut from) = (BTreeSet::new(), None);
    loop {
        let page = store.list(from.as_deref(), 4).expect("a listing");
        all.extend(page.entries.iter().map(|(key, _)| *key.fingerprint256()));
        match page.next {
            Some(next) => from = Some(next),
            None => return all,
        }
    }
}

impl History {
    fn new(name: String, durability: Durability, capacity: Option<u64>) -> Self {
        let disk = SimDisk::default();
        let mut new = Self {
            name,
            disk,
            store: None,
            durability,
            capacity,
            runs: 0,
            events: Events::default(),
            described: Vec::new(),
            tmps: Vec::new(),
            rotten: Vec::new(),
        };
        new.open(0);
        new
    }

    fn store(&self) -> &Arc<Store<SimDisk>> {
        self.store.as_ref().expect("it is open")
    }

    fn open(&mut self, tmp: usize) {
        self.runs += 1;
        self.tmps.push((self.disk.recorded(), tmp));
        let store = Store::open(Arc::new(self.disk.clone()), with(self, self.runs, tmp));
        self.store = Some(store.expect("nothing is wrong with the disk"));
    }

    /// Everything so far is durable, and so long ago that a snapshot believes the times of directories.
    fn rest(&mut self) {
        let clock = Path::new("/clock");
        let how = Open { write: true, create_new: true, ..Open::default() };
        let file = self.disk.open(clock, how).expect("a file");
        (0..4000).for_each(|_| self.disk.write_all_at(&file, 0, &[1]).expect("a write"));
        self.disk.unlink(clock).expect("a removal");
        self.disk.checkpoint();
        self.events.rest();
        self.described.iter_mut().for_each(|d| (d.0, d.1) = (0, 0));
        self.tmps.iter_mut().for_each(|t| t.0 = 0);
    }

    /// Stores versions of keys at once; the last one is published first.
    fn put(&mut self, all: &[(u64, u64)], wanted: bool) {
        let begun = self.disk.recorded();
        let store = Arc::clone(self.store());
        let bytes: Vec<_> = all.iter().map(|(n, v)| payload(*n, *v, len(*n))).collect();
        let objects: Vec<_> = all.iter().zip(&bytes).map(|((n, _), bytes)| object(*n, bytes)).collect();
        let mut written = Vec::new();
        for ((begin, (n, v)), bytes) in store.begin(&objects).into_iter().zip(all).zip(&bytes) {
            match begin {
                Begin::Present => written.push((*n, *v, None)),
                Begin::Claimed(mut claim) => match claim.reserve() {
                    Err(e) => assert_eq!(claim.give_up(e).kind(), ErrorKind::NoSpace),
                    Ok(()) => {
                        let created = claim.create().expect("a file");
                        store.disk().write_all_at(&created.file, created.offset, bytes).expect("a write");
                        written.push((*n, *v, Some((claim, created))));
                    }
                },
                other => panic!("nobody else works on {n}: {other:?}"),
            }
        }
        for (n, v, claimed) in written.into_iter().rev() {
            let stored = match claimed {
                None => Some(Stored::Present),
                Some((claim, created)) => {
                    claim.publish_if(created, || wanted).expect("a disk without faults")
                }
            };
            let what = if stored.is_some() { What::Stored(v) } else { What::Unwanted(v) };
            self.events.add(Event { n, begun, done: self.disk.recorded(), what });
        }
    }

    /// Cuts a file under the open store, which a load finds.
    fn rot(&mut self, n: u64) {
        let path = names::object_path(Path::new(ROOT), key(n).fingerprint256());
        let Ok(file) = self.disk.open(&path, Open { write: true, ..Open::default() }) else { return };
        let begun = self.disk.recorded();
        self.disk.set_len(&file, 4100).expect("a shorter file");
        assert_eq!(load(self.store(), n, len(n)).unwrap_err(), Miss::Truncated);
        self.rotten.push(n);
        self.events.add(Event { n, begun, done: self.disk.recorded(), what: What::Gone });
    }

    /// Does something, and notes which objects went without being asked to.
    fn watched(&mut self, what: impl FnOnce(&mut Self)) {
        let (begun, before) = (self.disk.recorded(), resident(self.store(), KEYS));
        let from = self.events.len();
        what(self);
        let (done, after) = (self.disk.recorded(), resident(self.store(), KEYS));
        self.events.gone(before.difference(&after).copied(), from, begun, done);
    }

    fn step(&mut self, rng: &mut Rng) {
        let begun = self.disk.recorded();
        let (n, v) = (rng.below(KEYS), rng.below(3));
        match rng.below(20) {
            0..8 => self.put(&[(n, v)], true),
            8..10 => self.put(&[(n, v), ((n + 1) % KEYS, v)], true),
            10 => self.put(&[(n, v)], false),
            11..14 => {
                let removed = self.store().hold(&key(n)).expect("a free key").remove(&key(n));
                if removed.expect("a disk without faults") {
                    let done = self.disk.recorded();
                    self.events.add(Event { n, begun, done, what: What::Gone });
                }
            }
            14 => self.rot(n),
            15 => self.store().write_snapshot(),
            16 => {
                let new = rng.below(3) as usize;
                self.store().add_namespace(&namespace(new)).expect("an equal description");
                self.described.push((begun, self.disk.recorded(), new));
            }
            clean => {
                if clean < 19 {
                    self.store().close();
                }
                self.store = None;
                let tmp = self.tmps.last().map_or(0, |(_, tmp)| *tmp);
                self.open(if rng.below(2) == 0 { rng.below(3) as usize } else { tmp });
            }
        }
    }

    /// What replaces an object has its bytes on the device first, if it is to wait for them.
    fn allowed(&self, n: u64, after: usize) -> (BTreeSet<u64>, bool) {
        self.events.allowed(n, after, self.durability, self.durability != Durability::None)
    }
}

/// What lies on the device.
#[derive(Default)]
struct Survey {
    objects: BTreeSet<[u8; 32]>,
    /// Bytes taken, and what they would be if no file had holes.
    least: u64,
    most: u64,
    strangers: Vec<PathBuf>,
}

impl Survey {
    fn of(disk: &SimDisk, tmp: usize) -> Self {
        let mut survey = Self::default();
        survey.enter(disk, Path::new(ROOT), &Path::new(ROOT).join(TMPS[tmp].unwrap_or(names::TMP)));
        survey
    }

    fn enter(&mut self, disk: &SimDisk, dir: &Path, tmp: &Path) {
        let root = Path::new(ROOT);
        let meta = disk.metadata(dir).expect("a directory");
        (self.least, self.most) = (self.least + meta.allocated, self.most + meta.allocated);
        for entry in disk.list(dir).expect("a directory") {
            let path = dir.join(&entry.name);
            let depth = path.strip_prefix(root).expect("below the root").components().count();
            if entry.kind == FileKind::Dir {
                let fan = entry.name.len() == 2 && depth < 3;
                if !fan && path != tmp && path != root.join(names::QUARANTINE) {
                    self.strangers.push(path.clone());
                }
                self.enter(disk, &path, tmp);
                continue;
            }
            let meta = disk.metadata(&path).expect("a file");
            self.least += meta.allocated;
            self.most += meta.allocated.max(meta.len.next_multiple_of(BLOCK));
            let own = [names::LOCK, names::MANIFEST, names::SNAPSHOT].map(|name| root.join(name));
            match names::parse_object_name(&entry.name) {
                Some(print) if depth == 3 => drop(self.objects.insert(print)),
                _ if own.contains(&path) || dir == root.join(names::QUARANTINE) => {}
                _ => self.strangers.push(path),
            }
        }
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    images: u64,
    /// Among them, those of recoveries that were cut short.
    again: u64,
    loaded: u64,
    /// Loads of what had to be there.
    promised: u64,
    /// Objects whose bytes did not reach the device.
    torn: u64,
    absent: u64,
    /// Objects that no header was read of.
    vouched: u64,
    quarantined: u64,
    orphans: u64,
    trimmed: u64,
    /// Evictions in all: for a snapshot's room too.
    evicted: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, o: Self) {
        self.images += o.images;
        self.again += o.again;
        self.loaded += o.loaded;
        self.promised += o.promised;
        self.torn += o.torn;
        self.absent += o.absent;
        self.vouched += o.vouched;
        self.quarantined += o.quarantined;
        self.orphans += o.orphans;
        self.trimmed += o.trimmed;
        self.evicted += o.evicted;
    }
}

/// Opens an image and holds everything in it against what the history allows.
fn verify(
    h: &History,
    disk: &SimDisk,
    id: u64,
    after: usize,
    tmp: usize,
    evicted: bool,
    story: &str,
) -> Tally {
    let at = || format!("{}, after {after} changes: {story}", h.name);
    let store = match Store::open(Arc::new(disk.clone()), with(h, id, tmp)) {
        Ok(store) => store,
        Err(e) => panic!("{}: it does not open: {e}", at()),
    };
    let (usage, stats) = (store.usage(), store.stats());
    let mut tally = Tally {
        images: 1,
        vouched: stats.recovered_snapshot,
        quarantined: stats.quarantined,
        orphans: stats.deleted,
        trimmed: usage.evicted,
        ..Tally::default()
    };

    let manifest = store.manifest();
    for (begun, done, n) in &h.described {
        let known = manifest.namespaces.contains(&namespace(*n));
        assert!(known || after < *done, "{}: the description of {n} is lost", at());
        assert!(!known || h.described.iter().any(|d| d.2 == *n && d.0 <= after), "{}: {begun}", at());
    }

    let survey = Survey::of(disk, tmp);
    assert!(survey.strangers.is_empty(), "{}: {:?} are left", at(), survey.strangers);
    assert_eq!(listed(&store), survey.objects, "{}: the index is not the directory", at());
    let counted = usage.used + store.overhead_bytes();
    assert!(survey.least <= counted, "{}: {} bytes are taken, {counted} counted", at(), survey.least);
    // A snapshot vouches for lengths, and a file's bytes need not have come as far.
    let exact = h.durability != Durability::None || stats.recovered_snapshot == 0;
    assert!(counted <= survey.most || !exact, "{}: {} are taken, {counted} counted", at(), survey.most);
    assert!(h.capacity.is_none_or(|c| counted <= c), "{}: {counted} bytes", at());

    for n in 0..KEYS {
        let (versions, required) = h.allowed(n, after);
        match load(&store, n, len(n)) {
            Ok(bytes) => {
                let right = versions.iter().any(|v| bytes == payload(n, *v, len(n)));
                assert!(right, "{}: key {n} has other bytes than those of {versions:?}", at());
                tally.loaded += 1;
                tally.promised += u64::from(required);
            }
            Err(miss) => {
                let lost = required && usage.evicted == 0 && !evicted;
                assert!(!lost, "{}: key {n} is lost ({miss:?}), of versions {versions:?}", at());
                let whole = h.durability != Durability::None && !h.rotten.contains(&n);
                assert!(miss == Miss::Absent || !whole, "{}: key {n} is bad: {miss:?}", at());
                tally.torn += u64::from(miss != Miss::Absent);
                tally.absent += u64::from(miss == Miss::Absent);
                // As the layer above does with what it found bad.
                store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
            }
        }
    }
    store.close();
    tally.evicted = store.usage().evicted;
    let options = FsckOptions { payloads: true, repair: false, tmp: None, writer: Writer { pid: 7, id: 1 } };
    let report = fsck(disk, Path::new(ROOT), &options, |_, _| ()).expect("a check");
    assert!(report.is_clean() && report.strangers.is_empty(), "{}: {report:?}", at());
    tally
}

/// Opens every image of a history; and now and then, every image of that.
fn crash(h: &History, options: CrashOptions) -> Tally {
    let mut tally = Tally::default();
    for (number, image) in h.disk.crash_images(options).enumerate() {
        // A number of its own for every run.
        let id = 1000 * (number as u64 + 1);
        // What was asked for last, unless that is behind us: then it may be anything.
        let asked = h.tmps.iter().rfind(|(begun, _)| *begun <= image.after).map_or(0, |(_, tmp)| *tmp);
        let settled =
            !h.tmps.iter().any(|(begun, _)| (image.after..image.after + 40).contains(&(begun + 40)));
        let tmp = if settled { number % 3 } else { asked };
        let first = verify(h, &image.disk, id, image.after, tmp, false, &image.story);
        tally += first;
        if number % 61 == 0 {
            let few = CrashOptions { window: 1, samples: 1, ..options };
            for (number, again) in image.disk.crash_images(few).enumerate() {
                let story = format!("{}; then, after {} more: {}", image.story, again.after, again.story);
                let second = verify(
                    h,
                    &again.disk,
                    id + 2 + number as u64,
                    image.after,
                    tmp,
                    first.evicted > 0,
                    &story,
                );
                tally += Tally { again: 1, ..second };
            }
        } else {
            let store = Store::open(Arc::new(image.disk), with(h, id + 1, tmp)).expect("the store");
            assert_eq!(store_payload(&store, 0, 7, len(0)).expect("room"), Stored::Written);
            assert_eq!(load(&store, 0, len(0)).expect("it is there"), payload(0, 7, len(0)));
        }
    }
    tally
}

/// Histories of one kind, by seed.
fn histories(durability: Durability, capacity: Option<u64>) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..3 {
        let name = format!("{durability:?}, {capacity:?}, seed {seed}");
        let mut history = History::new(name, durability, capacity);
        let rng = &mut Rng(seed);
        if seed > 0 {
            (0..KEYS).for_each(|n| history.watched(|h| h.put(&[(n, rng.below(3))], true)));
        }
        history.rest();
        (0..14).for_each(|_| history.watched(|h| h.step(rng)));
        history.store = None;
        tally += crash(&history, CrashOptions { window: 2, samples: 2, seed, ..CrashOptions::default() });
    }
    println!("{durability:?}, capacity {capacity:?}: {tally:?}");
    assert!(tally.images > 1000 && tally.again > 100, "{tally:?}");
    assert!(tally.loaded > 2000 && tally.promised > 500 && tally.absent > 500, "{tally:?}");
    assert!(tally.vouched > 100 && tally.orphans > 50 && tally.quarantined > 0, "{tally:?}");
    assert_eq!(tally.torn > 0, durability == Durability::None, "{tally:?}");
    tally
}

#[test]
fn every_image_of_a_store_that_syncs_nothing_is_opened() {
    histories(Durability::None, None);
}

#[test]
fn every_image_of_a_store_that_syncs_bytes_is_opened() {
    histories(Durability::Data, None);
}

#[test]
fn every_image_of_a_store_that_syncs_everything_has_what_it_promised() {
    histories(Durability::Full, None);
}

#[test]
fn every_image_of_a_store_with_a_limit_is_within_it() {
    let trimmed = [Durability::None, Durability::Full].map(|d| histories(d, Some(96 << 10)).trimmed);
    assert!(trimmed.iter().sum::<u64>() > 0, "evictions that were lost are made again");
}
