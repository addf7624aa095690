//! What happens to a store besides storing and loading: others tidy up in its directory or open it at the same moment,
//! settings change, files cannot be deleted.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{key, load, payload, settings, store_payload};
use kvstrata_core::{ErrorKind, Layout, Namespace};
use kvstrata_disk::{Begin, Settings, Store, names};
use kvstrata_io::{Disk, Fault, IoEngine, OpKind, Open, Rule, SimDisk, SimMode, SimOptions};
use kvstrata_l2::{Miss, Stored};

const LEN: usize = 9000;
const CHARGE: u64 = 4096 + 12288;
const ROOT: &str = "/kv";
const EIO: i32 = 5;
const ENOENT: i32 = 2;

fn open(disk: &SimDisk, id: u64) -> Arc<Store<SimDisk>> {
    limited(disk, id, None)
}

fn limited(disk: &SimDisk, id: u64, capacity: Option<u64>) -> Arc<Store<SimDisk>> {
    let settings = Settings { capacity, ..settings(Path::new(ROOT), id) };
    Store::open(Arc::new(disk.clone()), settings).expect("the store")
}

fn at(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn fill(store: &Arc<Store<SimDisk>>, numbers: std::ops::Range<u64>) {
    numbers.for_each(|n| assert_eq!(store_payload(store, n, 0, LEN).unwrap(), Stored::Written));
}

fn file(n: u64) -> PathBuf {
    names::object_path(Path::new(ROOT), key(n).fingerprint256())
}

fn touch(disk: &SimDisk, path: &Path) {
    disk.create_dir_all(path.parent().expect("a directory")).unwrap();
    let file = disk.open(path, Open { write: true, create_new: true, ..Open::default() }).unwrap();
    disk.write_all_at(&file, 0, &[1; 5000]).unwrap();
}

/// Lets so much happen on the disk that a snapshot believes the times of directories before.
fn age(disk: &SimDisk) {
    let path = Path::new("/clock");
    let file = disk.open(path, Open { write: true, create_new: true, ..Open::default() }).unwrap();
    (0..4000).for_each(|_| disk.write_all_at(&file, 0, &[1]).unwrap());
    disk.unlink(path).unwrap();
}

/// Runs `what` once, in the middle of the next operation of this kind on a path with `part` in it.
fn meanwhile(disk: &SimDisk, kind: OpKind, part: &'static str, what: impl Fn() + Send + Sync + 'static) {
    let left = AtomicU64::new(1);
    disk.faults().hook(move |op| {
        if op.kind == kind && op.path.to_string_lossy().contains(part) && left.swap(0, Relaxed) == 1 {
            what();
        }
        None
    });
}

fn namespace(model: &str) -> Namespace {
    let layout = Layout::opaque(4096).expect("a layout");
    Namespace { model: model.into(), world_size: 1, chunk_tokens: 256, hash_schema: 1, layout }
}

// --- others open it at the same moment --------------------------------------------------------------------------------

#[test]
fn a_lock_on_a_file_that_was_taken_away_is_no_lock() {
    let disk = SimDisk::default();
    let third = disk.clone();
    drop(open(&disk, 1));
    let kept = Arc::new(kept::Slot::default());
    let keep = Arc::clone(&kept);
    // Whoever made the lock file failed, takes it away again, and a third one opens the store.
    meanwhile(&disk, OpKind::Lock, names::LOCK, move || {
        third.unlink(&at(names::LOCK)).unwrap();
        keep.put(open(&third, 3));
    });
    let e = Store::open(Arc::new(disk.clone()), settings(Path::new(ROOT), 2)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    let third = kept.take().expect("it is open");
    fill(&third, 0..1);
    drop(third);
    open(&disk, 4);
}

/// A place to keep what a hook made.
mod kept {
    use std::sync::Mutex;

    pub(crate) struct Slot<T>(Mutex<Option<T>>);

    impl<T> Default for Slot<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }

    impl<T> Slot<T> {
        pub(crate) fn put(&self, value: T) {
            *self.0.lock().expect("no panic") = Some(value);
        }

        pub(crate) fn take(&self) -> Option<T> {
            self.0.lock().expect("no panic").take()
        }
    }
}

#[test]
fn what_another_described_before_the_lock_was_ours_is_kept() {
    let disk = SimDisk::default();
    let with = |id, model| Settings { namespaces: vec![namespace(model)], ..settings(Path::new(ROOT), id) };
    for fresh in [true, false] {
        let other = disk.clone();
        let (theirs, ours) = if fresh { ("a", "b") } else { ("c", "d") };
        meanwhile(&disk, OpKind::Lock, names::LOCK, move || {
            drop(Store::open(Arc::new(other.clone()), with(2, theirs)).expect("nobody has it yet"));
        });
        let store = Store::open(Arc::new(disk.clone()), with(1, ours)).unwrap();
        disk.faults().clear();
        let models: Vec<_> = store.manifest().namespaces.into_iter().map(|n| n.model).collect();
        assert!(models.iter().any(|m| m == theirs) && models.iter().any(|m| m == ours), "{models:?}");
    }
}

// --- others tidy up ---------------------------------------------------------------------------------------------------

#[test]
fn directories_that_somebody_removed_are_made_again() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..1);
    disk.unlink(&file(0)).unwrap();
    disk.remove_dir(file(0).parent().unwrap()).unwrap();
    assert_eq!(load(&store, 0, LEN).unwrap_err(), Miss::Absent);
    fill(&store, 0..1);
    disk.remove_dir(&at(names::TMP)).unwrap();
    fill(&store, 1..2);
    // A bad object does not vanish from the account because it cannot be set aside.
    disk.remove_dir(&at(names::QUARANTINE)).unwrap();
    let bad = disk.open(&file(1), Open { write: true, ..Open::default() }).unwrap();
    disk.set_len(&bad, 100).unwrap();
    assert_eq!(load(&store, 1, LEN).unwrap_err(), Miss::Truncated);
    assert_eq!(disk.list(&at(names::QUARANTINE)).unwrap().len(), 1);
    fill(&store, 1..2);
    assert_eq!(load(&store, 1, LEN).unwrap(), payload(1, 0, LEN));
}

#[test]
fn an_unfinished_file_that_goes_by_itself_or_stays_is_no_reason_not_to_open() {
    for errno in [ENOENT, EIO] {
        let disk = SimDisk::default();
        fill(&open(&disk, 1), 0..3);
        touch(&disk, &at(names::TMP).join(names::temp_name(7, 1, 1)));
        disk.faults().add(Rule::new(Fault::Errno(errno)).on(&[OpKind::Unlink]).at("0000000001-1.kvtmp"));
        let store = open(&disk, 2);
        let stays = if errno == EIO { 8192 } else { 0 };
        assert_eq!((store.usage().objects, store.usage().used), (3, 3 * CHARGE + stays), "errno {errno}");
    }
}

#[test]
fn another_temporary_directory_leaves_nothing_in_the_one_before() {
    let disk = SimDisk::default();
    let open = |id, tmp: Option<&str>| {
        let tmp = tmp.map(PathBuf::from);
        Store::open(Arc::new(disk.clone()), Settings { tmp, ..settings(Path::new(ROOT), id) }).unwrap()
    };
    let mut before = "tmp".to_owned();
    for (id, next) in [(1, Some("a")), (2, Some("b/c")), (3, None), (4, Some("tmp")), (5, Some("d"))] {
        fill(&open(10 * id, Some(&before)), id * 10..id * 10 + 1);
        let left = at(&before).join(names::temp_name(7, id, 1));
        touch(&disk, &left);
        drop(open(10 * id + 1, next));
        assert!(disk.metadata(&left).is_err(), "{before} is cleared for {next:?}");
        before = next.unwrap_or("tmp").to_owned();
    }
    let store = open(99, Some("d"));
    assert_eq!((store.usage().objects, store.manifest().tmp), (5, Some(PathBuf::from("d"))));
}

// --- files that cannot be deleted, and too many of them ----------------------------------------------------------------

#[test]
fn bad_objects_go_before_good_ones_when_a_start_finds_too_much() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..8);
    drop(store);
    (0..100).for_each(|n| touch(&disk, &at(names::QUARANTINE).join(format!("{n}.header"))));
    let store = limited(&disk, 2, Some(600 << 10));
    assert_eq!((store.usage().objects, store.usage().evicted), (8, 0));
    assert!(store.usage().used + store.overhead_bytes() <= 600 << 10);
    assert!(!disk.list(&at(names::QUARANTINE)).unwrap().is_empty(), "and no more than has to");
}

#[test]
fn a_file_that_may_not_be_read_is_set_aside_and_the_next_store_heals_it() {
    const EACCES: i32 = 13;
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..2);
    let refuse = |n: u64| {
        disk.faults().add(Rule::new(Fault::Errno(EACCES)).on(&[OpKind::Open]).at(file(n)).times(1));
    };
    // Found by a load, by a start that reads headers, and by a store that it is in the way of.
    refuse(0);
    assert_eq!(load(&store, 0, LEN).unwrap_err(), Miss::Header);
    fill(&store, 0..1);
    drop(store);
    refuse(1);
    let store = open(&disk, 2);
    assert_eq!((store.usage().objects, store.stats().quarantined), (1, 1));
    fill(&store, 1..2);
    touch(&disk, &file(2));
    refuse(2);
    fill(&store, 2..3);
    (0..3).for_each(|n| assert!(load(&store, n, LEN).is_ok(), "{n}"));
    assert_eq!((store.usage().objects, store.stats().quarantined), (3, 2));
    assert_eq!(store.usage().used, 5 * CHARGE + 8192, "what is set aside counts");
}

#[test]
fn what_could_not_be_deleted_counts_after_a_start_by_snapshot_too() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..3);
    disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Unlink]).at(".kv").times(1));
    store.hold(&key(1)).unwrap().remove(&key(1)).unwrap_err();
    age(&disk);
    store.close();
    drop(store);
    let store = open(&disk, 2);
    assert_eq!((store.stats().recovered_snapshot, store.stats().recovered_scan), (2, 1));
    assert_eq!((store.usage().objects, store.usage().used), (3, 3 * CHARGE), "it is there, and is found");
}

// --- the snapshot -----------------------------------------------------------------------------------------------------

#[test]
fn a_snapshot_that_is_late_does_not_write_into_a_store_that_others_have_opened() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..2);
    store.close();
    let other = open(&disk, 2);
    fill(&other, 2..4);
    store.write_snapshot();
    assert_eq!((store.stats().snapshots, store.stats().snapshots_failed), (1, 0));
    age(&disk);
    other.close();
    drop(other);
    assert_eq!(open(&disk, 3).usage().objects, 4);
}

#[test]
fn the_order_of_use_survives_a_restart_right_after_writing() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    fill(&store, 0..40);
    (0..5).for_each(|n| drop(load(&store, n, LEN).unwrap()));
    store.close();
    drop(store);
    let store = limited(&disk, 2, Some(512 << 10));
    assert_eq!(store.stats().recovered_scan, 40, "no directory's time is old enough to be believed");
    assert!(store.usage().evicted >= 15, "{:?}", store.usage());
    (0..5).for_each(|n| assert!(load(&store, n, LEN).is_ok(), "object {n} was used last"));
    assert_eq!(load(&store, 5, LEN).unwrap_err(), Miss::Absent, "the oldest went");
}

// --- an engine that was closed ----------------------------------------------------------------------------------------

#[test]
fn a_long_queue_for_a_key_ends_in_a_small_stack_when_the_engine_is_closed() {
    let disk = SimDisk::new(SimOptions { mode: SimMode::Threads(1), ..SimOptions::default() });
    let store = open(&disk, 1);
    let hold = store.hold(&key(1)).unwrap();
    let dropped = Arc::new(AtomicU64::new(0));
    for _ in 0..20_000 {
        let waiter = Counted(Arc::clone(&dropped));
        store.hold_then(&key(1), move |_| drop(waiter));
    }
    disk.engine().close();
    let small = std::thread::Builder::new().stack_size(128 << 10).spawn(move || drop(hold)).unwrap();
    small.join().unwrap();
    assert_eq!(dropped.load(Relaxed), 20_000);
    assert!(store.hold(&key(1)).is_some(), "nobody has the key");
}

struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

// --- a digest that is known only after the store began -------------------------------------------------------------

#[test]
fn a_late_digest_is_kept_and_tells_whether_the_object_is_there_already() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    let bytes = common::payload(1, 0, 5000);
    let whole = common::object(1, &bytes);
    let digest = whole.digest.expect("a digest");
    let blind = kvstrata_disk::NewObject { digest: None, ..whole.clone() };
    let begin = |object| match store.begin(&[object]).pop() {
        Some(Begin::Claimed(claim)) => claim,
        other => panic!("{other:?}"),
    };
    let mut claim = begin(blind.clone());
    assert!(!claim.set_digest(digest), "nothing is there");
    claim.reserve().unwrap();
    let created = claim.create().unwrap();
    disk.write_all_at(&created.file, created.offset, &bytes).unwrap();
    claim.publish(created).unwrap();
    assert_eq!(store.probe(&[key(1)]).unwrap()[0].unwrap().digest, Some(digest));
    assert_eq!(load(&store, 1, 5000).unwrap(), bytes);

    let mut again = begin(blind);
    assert!(again.set_digest(digest), "the same object is there");
    drop(again);
    assert_eq!((store.stats().written, store.stats().present), (1, 1));
    assert_eq!(load(&store, 1, 5000).unwrap(), bytes, "and stays");
    drop(store);
    let store = open(&disk, 2);
    assert_eq!(store.probe(&[key(1)]).unwrap()[0].unwrap().digest, Some(digest), "the header has it too");
}
