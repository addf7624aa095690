//! A disk that fails and fills up.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{key, load, payload, settings, store_payload};
use kvstrata_core::ErrorKind;
use kvstrata_disk::{Durability, Settings, Store};
use kvstrata_io::{Disk, Fault, OpKind, Rule, SimDisk, SimOptions};
use kvstrata_l2::{Miss, Stored};

const LEN: usize = 9000;
const ROOT: &str = "/kv";
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn open(disk: &SimDisk, id: u64) -> Arc<Store<SimDisk>> {
    Store::open(Arc::new(disk.clone()), settings(Path::new(ROOT), id)).expect("the store")
}

fn is_empty(disk: &SimDisk, dir: &str) -> bool {
    disk.list(&Path::new(ROOT).join(dir)).expect("a directory").is_empty()
}

#[test]
fn a_full_device_declines_stores_and_goes_on_loading() {
    let disk = SimDisk::new(SimOptions { capacity: 200 << 10, ..SimOptions::default() });
    let store = open(&disk, 1);
    let mut stored = 0;
    let e = loop {
        match store_payload(&store, stored, 0, LEN) {
            Ok(_) => stored += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
    assert!(stored > 5);
    assert_eq!((store.usage().objects, store.usage().declined), (stored, 1));
    assert!(is_empty(&disk, "tmp"), "a declined store leaves nothing");
    (0..stored).for_each(|n| assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN)));
    assert!(store.hold(&key(0)).unwrap().remove(&key(0)).unwrap());
    assert_eq!(store_payload(&store, stored, 0, LEN).unwrap(), Stored::Written);
}

#[test]
fn whatever_fails_in_a_store_leaves_nothing() {
    use OpKind::{Open, RenameNew, Write};
    for (kinds, times) in [(&[Open][..], 1), (&[Write][..], 1), (&[RenameNew][..], 1)] {
        for errno in [EIO, ENOSPC] {
            let disk = SimDisk::default();
            let store = open(&disk, 1);
            store_payload(&store, 0, 0, LEN).unwrap();
            let before = store.usage();
            disk.faults().add(Rule::new(Fault::Errno(errno)).on(kinds).times(times));
            let e = store_payload(&store, 1, 0, LEN).unwrap_err();
            let kind = if errno == ENOSPC { ErrorKind::NoSpace } else { ErrorKind::Io };
            assert_eq!(e.kind(), kind, "{kinds:?}: {e}");
            assert_eq!((store.usage().used, store.usage().objects), (before.used, 1), "{kinds:?}");
            assert!(is_empty(&disk, "tmp"), "{kinds:?}");
            assert_eq!(load(&store, 1, LEN).unwrap_err(), Miss::Absent);
            assert_eq!(store_payload(&store, 1, 0, LEN).unwrap(), Stored::Written);
            assert_eq!(load(&store, 1, LEN).unwrap(), payload(1, 0, LEN));
        }
    }
}

#[test]
fn a_replacement_that_fails_leaves_the_old_object_or_none() {
    let disk = SimDisk::default();
    let store = open(&disk, 1);
    store_payload(&store, 0, 0, LEN).unwrap();
    disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Write]).times(1));
    store_payload(&store, 0, 1, LEN).unwrap_err();
    assert_eq!(load(&store, 0, LEN).unwrap(), payload(0, 0, LEN), "the old one was not touched");
    disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Rename]).times(1));
    store_payload(&store, 0, 1, LEN).unwrap_err();
    assert_eq!((load(&store, 0, LEN).unwrap_err(), store.usage().used), (Miss::Absent, 0));
    assert_eq!(store_payload(&store, 0, 1, LEN).unwrap(), Stored::Written);
}

#[test]
fn names_that_cannot_be_made_durable_are_not_stored() {
    let disk = SimDisk::default();
    let durable = Settings { durability: Durability::Full, ..settings(Path::new(ROOT), 1) };
    let store = Store::open(Arc::new(disk.clone()), durable).unwrap();
    for kind in [OpKind::SyncFile, OpKind::SyncDir] {
        disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[kind]).times(1));
        store_payload(&store, 0, 0, LEN).unwrap_err();
        assert_eq!((store.usage().used, store.usage().objects), (0, 0), "{kind:?}");
    }
    assert_eq!(store_payload(&store, 0, 0, LEN).unwrap(), Stored::Written);
}

#[test]
fn what_cannot_be_deleted_stays_counted_and_the_limit_holds() {
    let disk = SimDisk::default();
    let capacity = 128 << 10;
    let limited = Settings { capacity: Some(capacity), ..settings(Path::new(ROOT), 1) };
    let store = Store::open(Arc::new(disk.clone()), limited).unwrap();
    (0..20).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    let fired = disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Unlink]).at(".kv").times(2));
    assert_eq!(store_payload(&store, 20, 0, LEN).unwrap(), Stored::Written, "the next victims make room");
    assert_eq!((fired.count(), store.stats().stuck), (2, 2));
    assert!(store.usage().used + store.overhead_bytes() <= capacity);
    let files = store.usage().objects + store.stats().stuck;
    assert_eq!(store.usage().used, files * (4096 + 12288), "their bytes are taken still");
}

#[test]
fn a_refused_class_of_operations_is_given_up_and_a_missing_file_is_not_a_refusal() {
    let disk = SimDisk::new(SimOptions { no_atime: false, direct: false, ..SimOptions::default() });
    let direct = Settings { direct: kvstrata_disk::Wanted::Try, ..settings(Path::new(ROOT), 1) };
    let store = Store::open(Arc::new(disk), direct).unwrap();
    assert_eq!((store.direct(), store.no_atime()), ((false, false), false), "probed at the start");
    assert_eq!(store_payload(&store, 0, 0, LEN).unwrap(), Stored::Written);
    assert!(load(&store, 0, LEN).is_ok());

    let disk = SimDisk::default();
    let store = open(&disk, 1);
    (0..2).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    let file = |n| kvstrata_disk::names::object_path(Path::new(ROOT), key(n).fingerprint256());
    disk.unlink(&file(0)).unwrap();
    assert_eq!(load(&store, 0, LEN).unwrap_err(), Miss::Absent);
    assert!(store.no_atime(), "a file that is gone says nothing about access times");
    disk.faults().add(Rule::new(Fault::Errno(1)).on(&[OpKind::Open]).times(1));
    assert!(load(&store, 1, LEN).is_ok(), "EPERM is answered by opening without");
    assert_eq!((store.no_atime(), store.stats().no_atime_refused), (false, 1));
    for required in [true, false] {
        let disk =
            SimDisk::new(SimOptions { direct: !required, no_atime: required, ..SimOptions::default() });
        let wanted = kvstrata_disk::Wanted::Require;
        let all = Settings { direct: wanted, no_atime: wanted, ..settings(Path::new(ROOT), 1) };
        let e = Store::open(Arc::new(disk.clone()), all).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        assert!(disk.list(Path::new(ROOT)).is_err(), "a refused store leaves nothing behind");
    }
}
