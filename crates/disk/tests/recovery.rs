//! What a start makes of what it finds.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{key, load, object, payload, put, settings, store_payload};
use kvstrata_core::{ErrorKind, Layout, Namespace};
use kvstrata_disk::{FileState, FsckOptions, Settings, Store, Writer, fsck, names};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{Miss, Stored};

const LEN: usize = 9000;

struct Place {
    _dir: tempfile::TempDir,
    root: PathBuf,
    disk: Arc<OsDisk>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("a thread");
        Self { root: dir.path().join("kv"), _dir: dir, disk: Arc::new(disk) }
    }

    fn open(&self, id: u64) -> Arc<Store<OsDisk>> {
        Store::open(Arc::clone(&self.disk), settings(&self.root, id)).expect("the store")
    }

    fn file(&self, n: u64) -> PathBuf {
        names::object_path(&self.root, key(n).fingerprint256())
    }

    fn quarantined(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(names::QUARANTINE)).expect("the quarantine");
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect()
    }

    /// Makes directories old enough for a snapshot to be believed, as they are in real life.
    fn age(&self) {
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        for top in dirs(&self.root) {
            for leaf in dirs(&top) {
                fs::File::open(leaf).and_then(|d| d.set_modified(long_ago)).expect("an older directory");
            }
        }
    }
}

fn dirs(path: &Path) -> Vec<PathBuf> {
    let fan = |p: &PathBuf| p.is_dir() && p.file_name().is_some_and(|n| n.len() == 2);
    fs::read_dir(path).expect("a directory").map(|e| e.expect("an entry").path()).filter(fan).collect()
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
}

fn check(place: &Place, repair: bool) -> kvstrata_disk::FsckReport {
    let options = FsckOptions { payloads: true, repair, tmp: None, writer: Writer { pid: 1, id: 99 } };
    fsck(&*place.disk, &place.root, &options, |_, _| ()).expect("a check")
}

#[test]
fn a_killed_writer_leaves_its_objects_and_nothing_else() {
    let place = Place::new();
    let store = place.open(1);
    (0..20).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    let unfinished = place.root.join(names::TMP).join(names::temp_name(7, 1 << 32, 1000));
    fs::write(&unfinished, [1; 100]).unwrap();
    let foreign = place.root.join(names::TMP).join("notes.txt");
    fs::write(&foreign, "mine").unwrap();
    drop(store);

    let store = place.open(2);
    assert_eq!((store.usage().objects, store.stats().recovered_scan), (20, 20));
    assert!(!unfinished.exists() && foreign.exists(), "only files of dead writers are removed");
    (0..20).for_each(|n| assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN)));
    assert_eq!(store_payload(&store, 3, 0, LEN).unwrap(), Stored::Present);
}

#[test]
fn a_snapshot_saves_the_headers_from_being_read() {
    let place = Place::new();
    let store = place.open(1);
    (0..20).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    place.age();
    store.close();
    drop(store);
    // A header that is never read cannot be missed; the digest still guards the payload.
    flip(&place.file(4), 20);

    let store = place.open(2);
    assert_eq!((store.stats().recovered_snapshot, store.stats().recovered_scan), (20, 0));
    (0..20).for_each(|n| assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN)));
    // What happens after the snapshot is found by its directory's time: a new object, a removal, a replacement.
    store_payload(&store, 20, 0, LEN).unwrap();
    store_payload(&store, 5, 1, LEN).unwrap();
    assert!(store.hold(&key(6)).unwrap().remove(&key(6)).unwrap());
    drop(store);

    let store = place.open(3);
    let stats = store.stats();
    assert_eq!((stats.recovered_snapshot, stats.recovered_scan), (18, 2));
    assert_eq!(load(&store, 20, LEN).unwrap(), payload(20, 0, LEN));
    assert_eq!(load(&store, 5, LEN).unwrap(), payload(5, 1, LEN));
    assert_eq!(load(&store, 6, LEN).unwrap_err(), Miss::Absent);
}

#[test]
fn a_listing_reads_the_headers_that_the_snapshot_does_not_vouch_for() {
    let place = Place::new();
    let all = || {
        let (mut keys, mut bad) = (Vec::new(), Vec::new());
        kvstrata_disk::list(&*place.disk, &place.root, |shown| {
            match shown {
                Ok((key, found)) => keys.push((key, found.len)),
                Err(miss) => bad.push(miss),
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        keys.sort_by_key(|(key, _)| key.fingerprint());
        (keys, bad)
    };
    let wanted = |numbers: &mut dyn Iterator<Item = u64>| {
        let mut keys: Vec<_> = numbers.map(|n| (key(n), LEN as u64)).collect();
        keys.sort_by_key(|(key, _)| key.fingerprint());
        keys
    };
    let store = place.open(1);
    (0..20).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    assert_eq!(all(), (wanted(&mut (0..20)), vec![]), "a store in use, without a snapshot");
    place.age();
    store.close();
    drop(store);
    flip(&place.file(4), 20);
    assert_eq!(all(), (wanted(&mut (0..20)), vec![]), "no header is read");
    fs::remove_file(place.file(7)).unwrap();
    fs::remove_file(place.root.join(names::SNAPSHOT)).unwrap();
    assert_eq!(all(), (wanted(&mut (0..20).filter(|n| ![4, 7].contains(n))), vec![Miss::Header]));

    let mut first = 0;
    let stop = |_| {
        first += 1;
        ControlFlow::Break(())
    };
    kvstrata_disk::list(&*place.disk, &place.root, stop).unwrap();
    assert_eq!(first, 1);
    let e = kvstrata_disk::list(&*place.disk, &place.root.join(names::TMP), |_| ControlFlow::Break(()));
    assert_eq!(e.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_snapshot_of_a_store_in_use_leaves_out_what_is_under_way() {
    let place = Place::new();
    let store = place.open(1);
    (0..3).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    place.age();
    // Somebody holds key 1 while the snapshot is taken: whatever happens to it afterwards may not show in a time.
    let hold = store.hold(&key(1)).unwrap();
    store.write_snapshot();
    drop(hold);
    assert_eq!(store.stats().snapshots, 1);
    drop(store);
    let store = place.open(2);
    assert_eq!((store.stats().recovered_snapshot, store.stats().recovered_scan), (2, 1));
    (0..3).for_each(|n| assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN)));
}

#[test]
fn a_rotten_snapshot_is_as_good_as_none() {
    let place = Place::new();
    let store = place.open(1);
    (0..5).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    place.age();
    store.close();
    drop(store);
    let snapshot = place.root.join(names::SNAPSHOT);
    flip(&snapshot, 200);
    assert!(matches!(check(&place, false).snapshot, FileState::Bad(_)));
    let store = place.open(2);
    assert_eq!((store.stats().recovered_snapshot, store.stats().recovered_scan), (0, 5));
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let place = Place::new();
    let open = |id, capacity| {
        Store::open(Arc::clone(&place.disk), Settings { capacity, ..settings(&place.root, id) }).unwrap()
    };
    let store = open(1, None);
    (0..40).for_each(|n| assert_eq!(store_payload(&store, n, 0, 16 << 10).unwrap(), Stored::Written));
    (0..5).for_each(|n| drop(load(&store, n, 16 << 10).unwrap()));
    place.age();
    store.close();
    drop(store);
    // More than the new capacity was found: the store is trimmed, and what was used last stays.
    let capacity = 512 << 10;
    let store = open(2, Some(capacity));
    let usage = store.usage();
    assert!(usage.used + store.overhead_bytes() <= capacity && usage.objects > 5, "{usage:?}");
    assert!(usage.evicted >= 20, "{usage:?}");
    (0..5).for_each(|n| assert!(load(&store, n, 16 << 10).is_ok(), "object {n} was used last"));
    assert_eq!(load(&store, 5, 16 << 10).unwrap_err(), Miss::Absent, "the oldest went");
}

#[test]
fn what_a_start_finds_damaged_is_set_aside_with_the_reason_and_healed_by_the_next_store() {
    let place = Place::new();
    let store = place.open(1);
    (0..6).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    drop(store);
    flip(&place.file(0), 70);
    fs::OpenOptions::new().write(true).open(place.file(1)).unwrap().set_len(5000).unwrap();
    fs::OpenOptions::new().write(true).open(place.file(2)).unwrap().set_len(10).unwrap();
    fs::copy(place.file(5), place.file(3)).unwrap();
    flip(&place.file(4), 4096 + 100);

    let report = check(&place, false);
    let mut reasons: Vec<_> = report.bad.iter().map(|(_, miss)| *miss).collect();
    reasons.sort();
    assert_eq!(reasons, [Miss::Truncated, Miss::Truncated, Miss::Digest, Miss::Header, Miss::Foreign]);
    assert_eq!((report.objects, report.bytes, report.faults()), (1, LEN as u64, 5));

    let store = place.open(2);
    assert_eq!(store.usage().objects, 2, "a flipped payload is the digest's business");
    let mut found = place.quarantined();
    found.iter_mut().for_each(|n| drop(n.drain(..n.rfind('.').expect("a reason") + 1)));
    found.sort();
    assert_eq!(found, ["foreign", "header", "truncated", "truncated"]);
    assert_eq!(load(&store, 4, LEN).unwrap_err(), Miss::Digest);
    for n in 0..4 {
        assert_eq!(load(&store, n, LEN).unwrap_err(), Miss::Absent);
        assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written);
        assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN));
    }
}

#[test]
fn damage_under_an_open_store_is_a_miss_with_the_reason_and_healed() {
    let place = Place::new();
    let store = place.open(1);
    (0..4).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    let bytes = payload(4, 0, LEN);
    let unguarded = kvstrata_disk::NewObject { digest: None, ..object(4, &bytes) };
    put(&store, unguarded.clone(), &bytes).unwrap();
    put(&store, kvstrata_disk::NewObject { key: key(5), ..unguarded.clone() }, &bytes).unwrap();

    fs::OpenOptions::new().write(true).open(place.file(0)).unwrap().set_len(5000).unwrap();
    assert_eq!(load(&store, 0, LEN).unwrap_err(), Miss::Truncated);
    fs::remove_file(place.file(1)).unwrap();
    assert_eq!(load(&store, 1, LEN).unwrap_err(), Miss::Absent);
    // Objects without a digest have their header checked by every load.
    fs::copy(place.file(4), place.file(5)).unwrap();
    assert_eq!(load(&store, 5, LEN).unwrap_err(), Miss::Foreign);
    flip(&place.file(4), 30);
    assert_eq!(load(&store, 4, LEN).unwrap_err(), Miss::Header);
    let stats = store.stats();
    assert_eq!(
        (stats.miss_truncated, stats.miss_absent, stats.miss_foreign, stats.miss_header, stats.quarantined),
        (1, 1, 1, 1, 3)
    );
    for n in [0, 1] {
        assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written);
        assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN));
    }
    assert_eq!(put(&store, unguarded, &bytes).unwrap(), Stored::Written);
    assert_eq!(load(&store, 4, LEN).unwrap(), bytes);
}

#[test]
fn an_unknown_object_in_the_way_is_taken_if_it_is_the_same_and_replaced_or_set_aside_if_not() {
    let place = Place::new();
    let store = place.open(1);
    (0..3).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    let copies: Vec<_> = (0..3).map(|n| fs::read(place.file(n)).unwrap()).collect();
    for n in 0..3 {
        assert!(store.hold(&key(n)).unwrap().remove(&key(n)).unwrap());
    }
    let before = store.usage().used;
    // As another writer would have left them.
    copies.iter().zip(0..).for_each(|(bytes, n)| {
        fs::create_dir_all(place.file(n).parent().unwrap()).unwrap();
        fs::write(place.file(n), bytes).unwrap();
    });
    flip(&place.file(2), 9);
    assert_eq!(store_payload(&store, 0, 0, LEN).unwrap(), Stored::Present);
    assert_eq!(store_payload(&store, 1, 1, LEN).unwrap(), Stored::Written);
    assert_eq!(store_payload(&store, 2, 0, LEN).unwrap(), Stored::Written);
    for (n, v) in [(0, 0), (1, 1), (2, 0)] {
        assert_eq!(load(&store, n, LEN).unwrap(), payload(n, v, LEN));
    }
    assert_eq!(place.quarantined().len(), 1);
    assert_eq!(store.usage().used - before, 4 * (4096 + 12288), "three objects, and one set aside");
}

#[test]
fn a_store_is_open_once_and_says_what_it_is() {
    let place = Place::new();
    let namespace = Namespace {
        model: "org/model".into(),
        world_size: 1,
        chunk_tokens: 256,
        hash_schema: 1,
        layout: Layout::opaque(4096).unwrap(),
    };
    let open = |namespaces: Vec<Namespace>| {
        Store::open(Arc::clone(&place.disk), Settings { namespaces, ..settings(&place.root, 5) })
    };
    let store = open(vec![namespace.clone()]).unwrap();
    let e = open(vec![]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "{e}");
    let options = FsckOptions { payloads: false, repair: false, tmp: None, writer: Writer { pid: 1, id: 9 } };
    assert_eq!(fsck(&*place.disk, &place.root, &options, |_, _| ()).unwrap_err().kind(), ErrorKind::Busy);
    store_payload(&store, 1, 0, LEN).unwrap();
    store.close();
    let e = open(vec![Namespace { chunk_tokens: 16, ..namespace.clone() }]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Mismatch);
    assert!(e.to_string().contains("field: chunk_tokens, stored: 256, wanted: 16"), "{e}");
    let store = open(vec![]).unwrap();
    assert_eq!(store.manifest().namespaces, std::slice::from_ref(&namespace));
    assert_eq!(
        store.add_namespace(&Namespace { hash_schema: 9, ..namespace.clone() }).unwrap_err().kind(),
        ErrorKind::Mismatch
    );
    store.add_namespace(&Namespace { model: "other".into(), ..namespace }).unwrap();
    drop(store);
    assert_eq!(open(vec![]).unwrap().manifest().namespaces.len(), 2);
}

#[test]
fn a_lost_manifest_is_refused_and_repaired() {
    let place = Place::new();
    let store = place.open(1);
    (0..4).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    store.close();
    drop(store);
    fs::remove_file(place.root.join(names::MANIFEST)).unwrap();
    flip(&place.file(2), 4096);
    fs::write(place.root.join(names::TMP).join(names::temp_name(1, 2, 3)), "half").unwrap();
    let e = Store::open(Arc::clone(&place.disk), settings(&place.root, 2)).unwrap_err();
    assert!(e.kind() == ErrorKind::Mismatch && e.to_string().contains("fsck --repair"), "{e}");

    let report = check(&place, true);
    assert_eq!((report.manifest.clone(), report.bad.len(), report.orphans.len()), (FileState::Missing, 1, 1));
    assert_eq!(
        (report.faults(), report.repaired),
        (4, 4),
        "the snapshot of a store without a name is no use"
    );
    assert!(check(&place, false).is_clean());
    let store = place.open(2);
    assert_eq!(store.usage().objects, 3);
    assert_eq!(store_payload(&store, 2, 0, LEN).unwrap(), Stored::Written);
}
