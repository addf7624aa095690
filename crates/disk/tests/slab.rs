//! The slab layout: against a map, against `du`, and against what may happen to its files.

mod common;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{key, load, object, payload, put, settings, store_payload};
use kvstrata_core::{ErrorKind, Result};
use kvstrata_disk::{
    Begin, Durability, FileState, FsckOptions, FsckReport, HEADER_BYTES, Settings, Store, StoreLayout,
    Writer, choose_layout, fsck, list, names, walk,
};
use kvstrata_io::{Disk, Fault, FsType, OpKind, OsDisk, OsOptions, Rule, SimDisk, SimOptions};
use kvstrata_l2::{Miss, Stored};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn slab(root: &Path, id: u64, capacity: u64) -> Settings {
    Settings { layout: Some(StoreLayout::Slab), capacity: Some(capacity), ..settings(root, id) }
}

fn os() -> Arc<OsDisk> {
    Arc::new(OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("a thread"))
}

/// What `du` says, in bytes.
fn du(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path).expect("an entry");
    let below = meta.is_dir().then(|| {
        std::fs::read_dir(path).expect("a directory").map(|e| du(&e.expect("an entry").path())).sum::<u64>()
    });
    meta.blocks() * 512 + below.unwrap_or(0)
}

fn checked<D: Disk>(disk: &D, root: &Path, repair: bool) -> FsckReport {
    let options = FsckOptions { payloads: true, repair, tmp: None, writer: Writer { pid: 7, id: 1 << 60 } };
    fsck(disk, root, &options, |_, _| ()).expect("a check")
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        n: u64,
        v: u64,
        len: usize,
        digest: bool,
    },
    Get(u64),
    Remove(u64),
    /// A clean restart, or one after a kill; with a capacity of so many MiB.
    Reopen {
        clean: bool,
        capacity: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = prop_oneof![Just(1usize), Just(4096), Just(5000), Just(70_000), Just(300_000)];
    let op = prop_oneof![
        8 => (0u64..24, 0u64..3, len, prop::bool::weighted(0.8))
            .prop_map(|(n, v, len, digest)| Op::Put { n, v, len, digest }),
        3 => (0u64..24).prop_map(Op::Get),
        2 => (0u64..24).prop_map(Op::Remove),
        1 => (any::<bool>(), 1u64..4).prop_map(|(clean, capacity)| Op::Reopen { clean, capacity }),
    ];
    prop::collection::vec(op, 1..120)
}

/// The store is a map that may forget what it must, its directory never takes more than it may, and a check finds nothing.
fn is_a_map(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (root, disk) = (dir.path().join("kv"), os());
    let (mut runs, mut capacity) = (1, MIB);
    let open = |id, capacity| Store::open(Arc::clone(&disk), slab(&root, id, capacity)).expect("the store");
    let mut store = open(1, capacity);
    let mut model: HashMap<u64, (u64, usize)> = HashMap::new();
    for op in ops {
        match op {
            Op::Put { n, v, len, digest } => {
                let bytes = payload(n, v, len);
                let mut new = object(n, &bytes);
                new.digest = new.digest.filter(|_| digest);
                match put(&store, new, &bytes) {
                    Ok(Stored::Written) => drop(model.insert(n, (v, len))),
                    // Of objects without digests only the lengths are compared: what is there stays.
                    Ok(Stored::Present) => {
                        let old = model.get(&n).copied();
                        prop_assert!(
                            old.is_some_and(|old| old.1 == len && (old.0 == v || !digest)),
                            "{old:?}"
                        );
                    }
                    Err(e) => prop_assert_eq!(e.kind(), ErrorKind::NoSpace),
                }
            }
            Op::Get(n) => {
                let (v, len) = model.get(&n).copied().unwrap_or((0, 1));
                match load(&store, n, len) {
                    Ok(bytes) => prop_assert_eq!(bytes, payload(n, v, len)),
                    Err(Miss::Absent) => {}
                    Err(miss) => prop_assert!(false, "key {n} is a miss: {miss:?}"),
                }
            }
            Op::Remove(n) => {
                let there = store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
                prop_assert!(!there || model.contains_key(&n));
                model.remove(&n);
            }
            Op::Reopen { clean, capacity: mib } => {
                let (before, same) = (store.usage(), mib * MIB == capacity);
                if clean {
                    store.close();
                }
                drop(store);
                prop_assert!(checked(&*disk, &root, false).is_clean());
                runs += 1;
                capacity = mib * MIB;
                store = open(runs, capacity);
                let after = store.usage();
                prop_assert!(!same || (after.objects, after.used) == (before.objects, before.used));
                prop_assert_eq!(store.stats().forgotten, before.objects - after.objects);
            }
        }
        let (usage, real) = (store.usage(), du(&root));
        prop_assert!(real <= capacity, "{real} of {capacity} bytes are taken");
        prop_assert!(usage.used + store.overhead_bytes() <= capacity);
        prop_assert_eq!(usage.capacity, Some(capacity));
    }
    let keys: Vec<_> = (0..24).map(key).collect();
    let mut used = 0;
    for (n, found) in (0..24).zip(store.probe(&keys).expect("a store in service")) {
        if let Some(found) = found {
            prop_assert_eq!(model.get(&n).map(|(_, len)| *len as u64), Some(found.len));
            let (v, len) = model[&n];
            prop_assert_eq!(load(&store, n, len).expect("it is there"), payload(n, v, len));
            used += (HEADER_BYTES + found.len).next_multiple_of(4096);
        }
    }
    prop_assert_eq!(store.usage().used, used);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_store_of_segments_is_a_map_that_may_forget(ops in ops()) {
        is_a_map(ops)?;
    }
}

/// Mixed lengths for long: what is not used of the segments stays small.
#[test]
fn long_churn_of_mixed_lengths_keeps_it_full() {
    let disk = Arc::new(SimDisk::new(SimOptions { record: false, ..SimOptions::default() }));
    let store = Store::open(disk, slab(Path::new("/kv"), 1, 64 * MIB)).expect("a store");
    let room = 64 * MIB - store.overhead_bytes();
    let (mut x, mut least, mut sum) = (7u64, u64::MAX, 0);
    for n in 0..3000u64 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let len =
            [4096, 60_000, 262_144, 1 << 20, 100 + (x >> 40) as usize % 700_000][(x >> 33) as usize % 5];
        assert_eq!(store_payload(&store, n, 0, len).expect("room"), Stored::Written);
        if n % 3 == 0 {
            // Some are used again, so that they do not go in the order that they came in.
            let recent = n.saturating_sub((x >> 20) % 60);
            let found = store.probe(&[key(recent)]).expect("in service")[0];
            found.map(|f| load(&store, recent, f.len as usize).expect("it is there"));
        }
        if n > 500 {
            least = least.min(store.usage().used);
            sum += store.usage().used;
        }
    }
    let (mean, least) = (sum as f64 / 2499.0 / room as f64, least as f64 / room as f64);
    println!("of {room} bytes, {mean:.3} are used on average, {least:.3} at least");
    assert!(mean > 0.95 && least > 0.90, "{mean} {least}");
}

#[test]
fn a_store_keeps_its_layout() {
    let disk = Arc::new(SimDisk::default());
    let root = Path::new("/kv");
    drop(Store::open(Arc::clone(&disk), slab(root, 1, MIB)).expect("a store"));
    let files = Settings { layout: Some(StoreLayout::Files), ..slab(root, 2, MIB) };
    let e = Store::open(Arc::clone(&disk), files).expect_err("another layout");
    assert_eq!(e.kind(), ErrorKind::Mismatch);
    assert!(e.to_string().contains("field: layout, stored: slab, wanted: file-per-object"), "{e}");
    let own = Settings { layout: None, ..slab(root, 3, MIB) };
    assert_eq!(Store::open(Arc::clone(&disk), own).expect("the store").layout(), StoreLayout::Slab);
    let unlimited = Settings { capacity: None, ..slab(root, 4, MIB) };
    let e = Store::open(Arc::clone(&disk), unlimited).expect_err("no limit");
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("capacity"), "{e}");
    let e = Store::open(disk, slab(Path::new("/other"), 5, 100 << 10)).expect_err("too small");
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("131072"), "{e}");
}

#[test]
fn a_new_store_gets_the_layout_that_fits_where_it_is() {
    let on = |fs: &str, capacity| {
        let fs = FsType::by_name(fs).expect("a known file system");
        let disk = SimDisk::new(SimOptions { fs, ..SimOptions::default() });
        choose_layout(&disk, Path::new("/kv"), capacity).expect("a file system")
    };
    assert_eq!(on("ext4", Some(1 << 30)).0, StoreLayout::Slab);
    for (fs, capacity, why) in [
        ("nfs", Some(1 << 30), "nfs"),
        ("lustre", Some(1 << 30), "other machines"),
        ("ext4", None, "no limit"),
        ("xfs", Some(MIB), "below"),
    ] {
        let (layout, said) = on(fs, capacity);
        assert_eq!(layout, StoreLayout::Files, "{fs}");
        assert!(said.contains(why), "{said}");
    }
}

/// Others take the space: stores are declined or make do with what is there, and loads go on.
#[test]
fn a_full_file_system_declines_stores() {
    let disk = Arc::new(SimDisk::new(SimOptions { capacity: 64 * MIB, ..SimOptions::default() }));
    let store = Store::open(Arc::clone(&disk), slab(Path::new("/kv"), 1, 16 * MIB)).expect("a store");
    disk.faults().add(Rule::new(Fault::Errno(28)).on(&[OpKind::Allocate]));
    assert_eq!(store_payload(&store, 1, 0, 5000).unwrap_err().kind(), ErrorKind::NoSpace);
    disk.faults().clear();
    assert_eq!(store_payload(&store, 1, 0, 5000).unwrap(), Stored::Written);
    assert_eq!(store.usage().declined, 1);
    disk.faults().add(Rule::new(Fault::Errno(28)).on(&[OpKind::Write]));
    assert_eq!(store_payload(&store, 2, 0, 5000).unwrap_err().kind(), ErrorKind::NoSpace);
    disk.faults().clear();
    assert_eq!(load(&store, 1, 5000).unwrap(), payload(1, 0, 5000));
    assert_eq!(load(&store, 2, 5000).unwrap_err(), Miss::Absent);
    assert_eq!((store.usage().objects, store.usage().used), (1, 12288));
}

/// A log that cannot be written fails the store, and nothing of it is found, not after a restart either.
#[test]
fn a_record_that_is_not_written_is_an_object_that_is_not_stored() {
    let disk = Arc::new(SimDisk::default());
    let root = Path::new("/kv");
    let synced = |id| Settings { durability: Durability::Full, ..slab(root, id, MIB) };
    let store = Store::open(Arc::clone(&disk), synced(1)).expect("a store");
    store_payload(&store, 1, 0, 5000).expect("room");
    for kind in [OpKind::Write, OpKind::SyncFile] {
        disk.faults().hook(move |op| {
            let is_log = op.path.to_str().is_some_and(|path| path.contains("log-"));
            (op.kind == kind && is_log).then_some(Fault::Errno(5))
        });
        assert_eq!(store_payload(&store, 2, 0, 5000).unwrap_err().kind(), ErrorKind::Io);
        disk.faults().clear();
        assert_eq!(load(&store, 2, 5000).unwrap_err(), Miss::Absent);
        assert_eq!(load(&store, 1, 5000).unwrap(), payload(1, 0, 5000));
    }
    assert_eq!(store_payload(&store, 3, 0, 5000).unwrap(), Stored::Written);
    assert_eq!(store.usage().used, 2 * 12288);
    drop(store);
    let store = Store::open(disk, synced(2)).expect("the store");
    assert_eq!(load(&store, 2, 5000).unwrap_err(), Miss::Absent);
    assert_eq!(load(&store, 3, 5000).unwrap(), payload(3, 0, 5000));
    assert_eq!(store.usage().objects, 2);
}

/// Between an object's record and its being found the log may be written anew: its snapshot has the object all the same, and
/// not the one before it, even if that was used after the new one began.
#[test]
fn the_log_is_written_anew_while_an_object_is_about_to_be_found() {
    for (wanted, right) in [(true, Ok(payload(1, 1, 9000))), (false, Ok(payload(1, 0, 5000)))] {
        let disk = Arc::new(SimDisk::default());
        let open = |id| Store::open(Arc::clone(&disk), slab(Path::new("/kv"), id, MIB)).expect("the store");
        let store = open(1);
        store_payload(&store, 1, 0, 5000).expect("room");
        let bytes = payload(1, 1, 9000);
        let Some(Begin::Claimed(mut claim)) = store.begin(&[object(1, &bytes)]).pop() else {
            panic!("another version is there");
        };
        claim.reserve().expect("room");
        let created = claim.create().expect("a place");
        store.disk().write_all_at(&created.file, created.offset, &bytes).expect("a write");
        assert_eq!(load(&store, 1, 5000).expect("the one before"), payload(1, 0, 5000));
        let anew = || {
            store.write_snapshot();
            wanted
        };
        let published = claim.publish_if(created, anew).expect("a log");
        assert_eq!(published, wanted.then_some(Stored::Written));
        // What has happened goes to the log with the next record.
        store_payload(&store, 2, 0, 1).expect("room");
        drop(store);
        let store = open(2);
        assert_eq!(load(&store, 1, right.as_ref().map_or(0, Vec::len)), right);
        assert_eq!(store.usage().objects, 2);
    }
}

// --- what happens to files -----------------------------------------------------------------------------------------------

struct Filled {
    _dir: tempfile::TempDir,
    root: PathBuf,
    disk: Arc<OsDisk>,
}

impl Filled {
    /// A closed store of twenty objects; the odd ones have no digest.
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let filled = Self { root: dir.path().join("kv"), disk: os(), _dir: dir };
        let store = filled.open(1);
        for n in 0..20 {
            let bytes = payload(n, 0, 9000);
            let mut new = object(n, &bytes);
            new.digest = new.digest.filter(|_| n % 2 == 0);
            assert_eq!(put(&store, new, &bytes).expect("room"), Stored::Written);
        }
        store.close();
        filled
    }

    fn open(&self, id: u64) -> Arc<Store<OsDisk>> {
        Store::open(Arc::clone(&self.disk), slab(&self.root, id, 2 * MIB)).expect("the store")
    }

    fn file(&self, begins: &str) -> PathBuf {
        let entries = std::fs::read_dir(self.root.join("slab")).expect("a directory");
        let mut found = entries.map(|e| e.expect("an entry").path());
        found
            .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(begins)))
            .expect("a file")
    }

    fn place(&self, n: u64) -> (PathBuf, u64) {
        let mut place = None;
        walk(&*self.disk, &self.root, |listed| {
            if listed.object.is_ok_and(|(k, _)| k == key(n)) {
                place = Some((listed.path, listed.at));
            }
        })
        .expect("a store");
        place.expect("it is there")
    }

    /// The keys that are loaded right; whatever is not has to be a miss.
    fn right(&self, store: &Arc<Store<OsDisk>>) -> Vec<u64> {
        let right = |n: &u64| match load(store, *n, 9000) {
            Ok(bytes) => {
                assert_eq!(bytes, payload(*n, 0, 9000), "key {n}");
                true
            }
            Err(_) => false,
        };
        (0..20).filter(right).collect()
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("a file");
    file.write_all_at(bytes, at).expect("a write");
}

#[test]
fn a_check_finds_what_is_damaged_and_a_repair_forgets_it() {
    let f = Filled::new();
    let report = checked(&*f.disk, &f.root, false);
    assert!(report.is_clean() && report.objects == 20 && report.unverified == 10, "{report:?}");
    let ((path, one), (_, other)) = (f.place(2), f.place(3));
    write(&path, one + HEADER_BYTES + 5000, &[0xee; 16]);
    write(&path, other + 20, &[0xee]);
    std::fs::write(f.root.join("slab/notes.txt"), "mine").expect("a file");
    std::fs::write(f.root.join("slab").join(names::temp_name(3, 3, 3)), "cut").expect("a file");
    let report = checked(&*f.disk, &f.root, true);
    let mut why: Vec<Miss> = report.bad.iter().map(|(_, miss)| *miss).collect();
    why.sort_by_key(|miss| miss.name());
    assert_eq!(why, [Miss::Digest, Miss::Header]);
    assert_eq!((report.orphans.len(), report.strangers.len(), report.repaired), (1, 1, 3), "{report:?}");
    assert!(checked(&*f.disk, &f.root, false).is_clean());
    let store = f.open(2);
    assert_eq!(f.right(&store), (0..20).filter(|n| ![2, 3].contains(n)).collect::<Vec<_>>());
}

#[test]
fn a_lost_manifest_is_made_again() {
    let f = Filled::new();
    std::fs::remove_file(f.root.join(names::MANIFEST)).expect("it is there");
    let e = Store::open(Arc::clone(&f.disk), slab(&f.root, 2, 2 * MIB)).expect_err("no manifest");
    assert!(e.to_string().contains("fsck --repair"), "{e}");
    let report = checked(&*f.disk, &f.root, true);
    assert_eq!((report.manifest, report.objects, report.repaired), (FileState::Missing, 20, 1));
    assert_eq!(f.right(&f.open(3)).len(), 20);
}

#[test]
fn a_rotten_page_of_the_snapshot_costs_its_objects_and_those_that_nothing_vouches_for() {
    let f = Filled::new();
    let snapshot = f.file("snapshot-");
    let pages = std::fs::metadata(&snapshot).expect("a file").len() / 4096;
    write(&snapshot, (pages - 1) * 4096 + 100, &[0xee; 8]);
    let report = checked(&*f.disk, &f.root, false);
    assert!(matches!(report.snapshot, FileState::Bad(_)), "{report:?}");
    let store = f.open(2);
    let right = f.right(&store);
    assert!(right.iter().all(|n| n % 2 == 0), "{right:?}");
    assert_eq!(store_payload(&store, 1, 0, 9000).expect("room"), Stored::Written, "healed");
    drop(store);
    assert!(checked(&*f.disk, &f.root, false).is_clean(), "the index was written anew");
}

#[test]
fn a_lost_snapshot_loses_what_only_it_knew() {
    let f = Filled::new();
    let store = f.open(2);
    let bytes = payload(30, 0, 9000);
    put(&store, object(30, &bytes), &bytes).expect("room");
    drop(store);
    std::fs::remove_file(f.file("snapshot-")).expect("a file");
    let store = f.open(3);
    assert!(f.right(&store).is_empty());
    assert_eq!(load(&store, 30, 9000).expect("the log has it"), bytes);
    assert_eq!(store_payload(&store, 0, 0, 9000).expect("room"), Stored::Written);
}

#[test]
fn a_torn_tail_of_the_log_is_cut_and_a_gap_is_noticed() {
    let f = Filled::new();
    let store = f.open(2);
    for n in 0..4 {
        store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
    }
    drop(store);
    let log = f.file("log-");
    let len = std::fs::metadata(&log).expect("a file").len();
    assert_eq!(len, 192 * 5, "a head and four removals");
    OpenOptions::new().write(true).open(&log).unwrap().set_len(len - 10).expect("a cut");
    let store = f.open(3);
    assert_eq!(f.right(&store), (3..20).collect::<Vec<_>>(), "what was cut off did not happen");
    drop(store);
    assert_eq!(std::fs::metadata(&log).expect("a file").len(), 192 * 4);
    write(&log, 192 + 20, &[0xee]);
    let store = f.open(4);
    // The removal of 0 is lost: it has a digest. What has none is not believed any more.
    assert_eq!(f.right(&store), [0, 4, 6, 8, 10, 12, 14, 16, 18]);
    assert_eq!(store.stats().forgotten, 9);
}

#[test]
fn a_segment_that_is_cut_or_lost_costs_its_objects() {
    let f = Filled::new();
    let (segment, places) = (f.file("segment-"), (0..20).map(|n| f.place(n).1).collect::<Vec<_>>());
    OpenOptions::new().write(true).open(&segment).unwrap().set_len(places[10] + 5000).expect("a cut");
    let store = f.open(2);
    let left: Vec<u64> = (0..20).filter(|n| places[*n as usize] < places[10]).collect();
    assert_eq!(f.right(&store), left);
    drop(store);
    std::fs::remove_file(&segment).expect("it is there");
    let store = f.open(3);
    assert!(f.right(&store).is_empty());
    assert_eq!(store_payload(&store, 0, 0, 9000).expect("room"), Stored::Written);
    let mut shown = 0;
    list(&*f.disk, &f.root, |object| {
        shown += u64::from(object.is_ok());
        std::ops::ControlFlow::Continue(())
    })
    .expect("a listing");
    assert_eq!(shown, 1);
}

#[test]
fn room_for_several_is_made_with_one_write_of_the_log() {
    const LEN: usize = 60_000;
    let disk = Arc::new(SimDisk::default());
    // Large enough that its log is not written anew just then.
    let store = Store::open(Arc::clone(&disk), slab(Path::new("/kv"), 1, 4 * MIB)).expect("the store");
    let mut n = 0;
    while store.usage().evicted == 0 {
        store_payload(&store, n, 0, LEN).expect("room");
        n += 1;
    }
    let (before, full) = (disk.recorded(), store.usage());
    // One of them can never fit, and the others do not suffer for it.
    let len = |n| if n == 1003 { 8 * MIB as usize } else { LEN };
    let new: Vec<_> = (1000..1006).map(|n| object(n, &payload(n, 0, len(n)))).collect();
    let claimed = store.begin(&new).into_iter().map(|begin| match begin {
        Begin::Claimed(claim) => claim,
        other => panic!("nobody else works on these keys: {other:?}"),
    });
    let mut claims: Vec<_> = claimed.collect();
    let room = store.reserve_all(&mut claims.iter_mut().collect::<Vec<_>>());
    assert_eq!(room[3].as_ref().expect_err("too large").kind(), ErrorKind::NoSpace);
    assert_eq!(room.iter().filter(|room| room.is_ok()).count(), 5, "{room:?}");
    assert_eq!(store.usage().evicted - full.evicted, 5, "one for each");
    assert_eq!(disk.recorded() - before, 1, "one write");
    for (claim, (n, room)) in claims.into_iter().zip((1000..).zip(&room)) {
        if room.is_err() {
            continue;
        }
        let mut claim = claim;
        let created = claim.create().expect("its place");
        store.disk().write_all_at(&created.file, created.offset, &payload(n, 0, LEN)).expect("a write");
        assert_eq!(claim.publish(created).expect("a disk without faults"), Stored::Written);
        assert_eq!(load(&store, n, LEN).expect("it is there"), payload(n, 0, LEN));
    }
}

/// Room enough, all of it beside objects that are being read: another one goes.
#[test]
fn what_lies_beside_every_hole_may_have_to_stay() {
    const LARGE: usize = 600_000;
    const SMALL: usize = 400_000;
    let store =
        Store::open(Arc::new(SimDisk::default()), slab(Path::new("/kv"), 1, 4 * MIB)).expect("the store");
    let lens = [LARGE, SMALL, LARGE, SMALL, LARGE, LARGE, LARGE];
    for (n, len) in (0..).zip(lens) {
        store_payload(&store, n, 0, len).expect("room");
    }
    for n in [1, 3] {
        assert!(store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal"));
    }
    let beside = [0, 2, 4, 6].map(|n| (key(n), object(n, &payload(n, 0, LARGE)).layout));
    let pins: Vec<_> =
        store.pin(&beside).expect("in service").into_iter().map(|pin| pin.expect("there")).collect();
    assert_eq!(store_payload(&store, 7, 0, LARGE).expect("the sixth can go"), Stored::Written);
    assert_eq!((store.usage().evicted, store.usage().objects), (1, 5));
    drop(pins);
    for n in [0, 2, 4, 6, 7] {
        assert_eq!(load(&store, n, LARGE).expect("it is there"), payload(n, 0, LARGE));
    }
}
