//! Histories of a store of segments, and every disk that a loss of power at any moment may leave behind: each is opened,
//! none gives a wrong byte (of objects without a digest neither), none takes more than the limit, and what was promised is
//! there.

mod common;
#[path = "common/events.rs"]
mod events;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use common::{key, load, object, payload, put_if, settings, store_payload};
use events::{Event, Events, Rng, What, resident};
use kvstrata_core::ErrorKind;
use kvstrata_disk::{Durability, FileState, FsckOptions, Settings, Store, StoreLayout, Writer, fsck};
use kvstrata_io::{CrashOptions, Disk, FileKind, SimDisk};
use kvstrata_l2::{Miss, Stored};

const ROOT: &str = "/kv";
const KEYS: u64 = 7;
/// Six or seven blocks of objects fit.
const CAPACITY: u64 = 128 << 10;

/// The odd keys are stored without a digest.
fn vouched(n: u64) -> bool {
    n.is_multiple_of(2)
}

fn len(n: u64) -> usize {
    [300, 4096, 9000, 16_000][n as usize % 4]
}

struct History {
    disk: SimDisk,
    store: Option<Arc<Store<SimDisk>>>,
    durability: Durability,
    runs: u64,
    events: Events,
}

fn with(durability: Durability, id: u64) -> Settings {
    let layout = Some(StoreLayout::Slab);
    Settings { layout, capacity: Some(CAPACITY), durability, ..settings(Path::new(ROOT), id) }
}

fn du(disk: &SimDisk, dir: &Path) -> u64 {
    let below = disk.list(dir).expect("a directory").into_iter().map(|entry| {
        let path = dir.join(&entry.name);
        if entry.kind == FileKind::Dir {
            du(disk, &path)
        } else {
            disk.metadata(&path).expect("a file").allocated
        }
    });
    disk.metadata(dir).expect("a directory").allocated + below.sum::<u64>()
}

impl History {
    fn new(durability: Durability) -> Self {
        let mut new =
            Self { disk: SimDisk::default(), store: None, durability, runs: 0, events: Events::default() };
        new.open();
        new
    }

    fn store(&self) -> &Arc<Store<SimDisk>> {
        self.store.as_ref().expect("it is open")
    }

    fn open(&mut self) {
        self.runs += 1;
        let store = Store::open(Arc::new(self.disk.clone()), with(self.durability, self.runs));
        self.store = Some(store.expect("nothing is wrong with the disk"));
    }

    /// Everything so far is durable.
    fn rest(&mut self) {
        self.disk.checkpoint();
        self.events.rest();
    }

    fn put(&mut self, n: u64, v: u64, wanted: bool) {
        let (begun, bytes) = (self.disk.recorded(), payload(n, v, len(n)));
        let mut new = object(n, &bytes);
        new.digest = new.digest.filter(|_| vouched(n));
        let what = match put_if(self.store(), new, &bytes, wanted) {
            // Without a digest, equal lengths are all that a store compares.
            Ok(Some(Stored::Present)) if !vouched(n) => return,
            Ok(Some(_)) => What::Stored(v),
            Ok(None) => What::Unwanted(v),
            Err(e) => return assert_eq!(e.kind(), ErrorKind::NoSpace),
        };
        self.events.add(Event { n, begun, done: self.disk.recorded(), what });
    }

    /// Does something, and notes what went because of it.
    fn watched(&mut self, what: impl FnOnce(&mut Self)) {
        let (begun, before) = (self.disk.recorded(), resident(self.store(), KEYS));
        let from = self.events.len();
        what(self);
        let (done, after) = (self.disk.recorded(), resident(self.store(), KEYS));
        self.events.gone(before.difference(&after).copied(), from, begun, done);
        assert!(du(&self.disk, Path::new(ROOT)) <= CAPACITY);
    }

    fn step(&mut self, rng: &mut Rng) {
        let (n, v) = (rng.below(KEYS), rng.below(3));
        match rng.below(16) {
            0..9 => self.put(n, v, true),
            9 => self.put(n, v, false),
            10..13 => {
                let hold = self.store().hold(&key(n)).expect("a free key");
                hold.remove(&key(n)).expect("a removal");
            }
            13 => self.store().write_snapshot(),
            clean => {
                if clean == 14 {
                    self.store().close();
                }
                self.store = None;
                self.open();
            }
        }
    }

    fn allowed(&self, n: u64, after: usize) -> (BTreeSet<u64>, bool) {
        let full = self.durability == Durability::Full;
        let (versions, required) = self.events.allowed(n, after, self.durability, full);
        (versions, required && full)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    images: u64,
    loaded: u64,
    unvouched: u64,
    promised: u64,
    torn: u64,
    absent: u64,
    forgotten: u64,
}

fn verify(h: &History, disk: &SimDisk, id: u64, after: usize, story: &str, tally: &mut Tally) {
    let at = || format!("{:?}, after {after} changes: {story}", h.durability);
    let store = match Store::open(Arc::new(disk.clone()), with(h.durability, id)) {
        Ok(store) => store,
        Err(e) => panic!("{}: it does not open: {e}", at()),
    };
    let taken = du(disk, Path::new(ROOT));
    assert!(taken <= CAPACITY, "{}: {taken} bytes", at());
    tally.images += 1;
    tally.forgotten += store.stats().forgotten;
    for n in 0..KEYS {
        let (versions, required) = h.allowed(n, after);
        match load(&store, n, len(n)) {
            Ok(bytes) => {
                let right = versions.iter().any(|v| bytes == payload(n, *v, len(n)));
                assert!(right, "{}: key {n} has other bytes than those of {versions:?}", at());
                tally.loaded += 1;
                tally.unvouched += u64::from(!vouched(n));
                tally.promised += u64::from(required);
            }
            Err(miss) => {
                assert!(!required, "{}: key {n} is lost ({miss:?}), of versions {versions:?}", at());
                let whole = h.durability == Durability::Full;
                assert!(miss == Miss::Absent || !whole, "{}: key {n} is bad: {miss:?}", at());
                tally.torn += u64::from(miss != Miss::Absent);
                tally.absent += u64::from(miss == Miss::Absent);
                store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
            }
        }
    }
    assert_eq!(store_payload(&store, 0, 9, len(0)).expect("room"), Stored::Written);
    assert_eq!(load(&store, 0, len(0)).expect("it is there"), payload(0, 9, len(0)));
    store.close();
    let options = FsckOptions { payloads: true, repair: false, tmp: None, writer: Writer { pid: 7, id: 1 } };
    let report = fsck(disk, Path::new(ROOT), &options, |_, _| ()).expect("a check");
    // A header whose write was lost says nothing of a payload whose digest is right.
    let bad = if h.durability == Durability::Full { report.bad.len() } else { 0 };
    let clean =
        report.snapshot == FileState::Good && report.orphans.is_empty() && report.strangers.is_empty();
    assert!(clean && bad == 0, "{}: {report:?}", at());
}

fn histories(durability: Durability) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..3 {
        let (mut h, rng) = (History::new(durability), &mut Rng(seed));
        if seed > 0 {
            (0..KEYS).for_each(|n| h.watched(|h| h.put(n, 0, true)));
        }
        h.rest();
        (0..16).for_each(|_| h.watched(|h| h.step(rng)));
        h.store = None;
        // The log's records are shorter than a sector's tear is wide, or not.
        let unit = if seed % 2 == 0 { 512 } else { 4096 };
        let options = CrashOptions { window: 2, samples: 2, seed, unit };
        for (number, image) in h.disk.crash_images(options).enumerate() {
            let id = 1000 * (number as u64 + 1);
            verify(&h, &image.disk, id, image.after, &image.story, &mut tally);
            if number % 97 == 0 {
                // And when opening it was cut short.
                let few = CrashOptions { window: 1, samples: 1, ..options };
                for (n, again) in image.disk.crash_images(few).enumerate().take(60) {
                    let story = format!("{}; then, after {} more: {}", image.story, again.after, again.story);
                    let mut second = Tally::default();
                    verify_again(&h, &again.disk, id + 1 + n as u64, image.after, &story, &mut second);
                    tally.images += second.images;
                }
            }
        }
    }
    println!("{durability:?}: {tally:?}");
    assert!(tally.images > 1000 && tally.loaded > 2000 && tally.unvouched > 500, "{tally:?}");
    assert!(tally.absent > 500, "{tally:?}");
    tally
}

/// What the second opening wrote is not in the history: only bytes are looked at.
fn verify_again(h: &History, disk: &SimDisk, id: u64, after: usize, story: &str, tally: &mut Tally) {
    let store = Store::open(Arc::new(disk.clone()), with(h.durability, id)).expect(story);
    tally.images += 1;
    for n in 0..KEYS {
        if let Ok(bytes) = load(&store, n, len(n)) {
            let (mut versions, _) = h.allowed(n, after);
            versions.insert(9);
            let right = versions.iter().any(|v| bytes == payload(n, *v, len(n)));
            assert!(right, "{:?}: {story}: key {n}", h.durability);
        }
    }
}

#[test]
fn every_image_of_a_store_that_syncs_nothing_is_opened() {
    assert!(
        histories(Durability::None).torn > 0,
        "bytes that did not reach the device are told by their digest"
    );
}

#[test]
fn every_image_of_a_store_that_syncs_bytes_is_opened() {
    histories(Durability::Data);
}

#[test]
fn every_image_of_a_store_that_syncs_everything_has_what_it_promised() {
    let tally = histories(Durability::Full);
    assert!(tally.promised > 500 && tally.torn == 0, "{tally:?}");
}
