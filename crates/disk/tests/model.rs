//! The store against a map, and its account against `du`.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use common::{key, load, payload, settings, store_payload};
use kvstrata_core::{ErrorKind, Layout};
use kvstrata_disk::{Settings, Store};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{Miss, Stored};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Put {
        n: u64,
        v: u64,
        len: usize,
    },
    Get(u64),
    Remove(u64),
    /// A clean restart, or one after a kill.
    Reopen {
        clean: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few keys and versions, so that puts meet what is there.
    let op = prop_oneof![
        6 => (0u64..12, 0u64..3, prop_oneof![Just(1usize), Just(4096), Just(5000), Just(70_000)])
            .prop_map(|(n, v, len)| Op::Put { n, v, len }),
        3 => (0u64..12).prop_map(Op::Get),
        2 => (0u64..12).prop_map(Op::Remove),
        1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
    ];
    prop::collection::vec(op, 1..60)
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

fn check(ops: Vec<Op>, capacity: Option<u64>, base: &Path) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir_in(base).expect("a directory");
    let root = dir.path().join("kv");
    let disk = Arc::new(OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("a thread"));
    let mut runs = 0;
    let mut open = || {
        runs += 1;
        Store::open(Arc::clone(&disk), Settings { capacity, ..settings(&root, runs) }).expect("the store")
    };
    let mut store = open();
    let mut model: HashMap<u64, (u64, usize)> = HashMap::new();
    for op in ops {
        match op {
            Op::Put { n, v, len } => match store_payload(&store, n, v, len) {
                Ok(stored) => {
                    let before = model.insert(n, (v, len));
                    if capacity.is_none() {
                        // One byte of two versions may be the same byte.
                        let same = before.is_some_and(|(bv, bl)| payload(n, bv, bl) == payload(n, v, len));
                        prop_assert_eq!(stored == Stored::Present, same, "key {} version {}", n, v);
                    }
                }
                Err(e) => {
                    prop_assert_eq!(e.kind(), ErrorKind::NoSpace);
                    prop_assert!(capacity.is_some());
                    // What it would have replaced may be there still, or was evicted for it.
                }
            },
            Op::Get(n) => {
                let (v, len) = model.get(&n).copied().unwrap_or((0, 1));
                match load(&store, n, len) {
                    Ok(bytes) => prop_assert_eq!(bytes, payload(n, v, len)),
                    Err(Miss::Absent) => prop_assert!(capacity.is_some() || !model.contains_key(&n)),
                    Err(miss) => prop_assert!(false, "key {n} is a miss: {miss:?}"),
                }
            }
            Op::Remove(n) => {
                let there = store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
                let known = model.remove(&n).is_some();
                prop_assert!(there == known || (capacity.is_some() && !there));
            }
            Op::Reopen { clean } => {
                let before = store.usage();
                if clean {
                    store.close();
                }
                let after_close = store.usage();
                drop(store);
                store = open();
                prop_assert_eq!(store.usage().objects, after_close.objects);
                prop_assert!(capacity.is_some() || before.used == store.usage().used);
            }
        }
        let (used, real) = (store.usage().used + store.overhead_bytes(), du(&root));
        prop_assert!(used.abs_diff(real) <= 4096, "counted {used}, taken {real}");
        if let Some(capacity) = capacity {
            prop_assert!(real <= capacity, "{real} of {capacity} bytes are taken");
        }
    }
    if capacity.is_none() {
        let keys: Vec<_> = (0..12).map(key).collect();
        for (n, found) in (0..12).zip(store.probe(&keys).expect("a store in service")) {
            let len = found.map(|f| f.len as usize);
            prop_assert_eq!(len, model.get(&n).map(|(_, len)| *len));
            prop_assert!(
                found.is_none_or(|f| f.layout == Some(Layout::opaque(f.len).expect("a layout").id()))
            );
        }
    }
    Ok(())
}

#[test]
fn an_object_whose_key_is_held_is_not_evicted() {
    let disk = Arc::new(kvstrata_io::SimDisk::default());
    let capacity = Some(256 << 10);
    let store = Store::open(disk, Settings { capacity, ..settings(Path::new("/kv"), 1) }).expect("a store");
    store_payload(&store, 0, 0, 5000).expect("room");
    let hold = store.hold(&key(0)).expect("a free key");
    (1..40).for_each(|n| assert_eq!(store_payload(&store, n, 0, 5000).expect("room"), Stored::Written));
    assert!(hold.remove(&key(0)).expect("a removal"), "it is the holder's to remove");
    drop(hold);
    store_payload(&store, 0, 1, 5000).expect("room");
    (1..40).for_each(|n| assert_eq!(store_payload(&store, n, 1, 5000).expect("room"), Stored::Written));
    assert_eq!(load(&store, 0, 5000).unwrap_err(), Miss::Absent, "as any other, later");
}

#[derive(Clone, Debug)]
enum Use {
    Put(u64, u64),
    Get(u64),
    Remove(u64),
    /// Pins an object, or ends the oldest pin.
    Pin(u64),
    Unpin,
}

fn uses() -> impl Strategy<Value = Vec<Use>> {
    let op = prop_oneof![
        8 => (0u64..24, 0u64..2).prop_map(|(n, v)| Use::Put(n, v)),
        4 => (0u64..24).prop_map(Use::Get),
        1 => (0u64..24).prop_map(Use::Remove),
        2 => (0u64..24).prop_map(Use::Pin),
        2 => Just(Use::Unpin),
    ];
    prop::collection::vec(op, 1..120)
}

/// Everything is there but what was used longest ago: of the objects that nobody pins, those that went are older than
/// those that stay.
fn in_order(uses: Vec<Use>) -> Result<(), TestCaseError> {
    let disk = Arc::new(kvstrata_io::SimDisk::default());
    let limited = Settings { capacity: Some(320 << 10), ..settings(Path::new("/kv"), 1) };
    let store = Store::open(disk, limited).expect("a store");
    let layout = Layout::opaque(9000).expect("a layout").id();
    // The versions, what was used last at the end.
    let mut model: Vec<(u64, u64)> = Vec::new();
    let mut pins = std::collections::VecDeque::new();
    for what in uses {
        match what {
            Use::Put(n, v) => {
                let before = store.usage().evicted;
                let known = model.iter().position(|o| *o == (n, v));
                match store_payload(&store, n, v, 9000) {
                    Ok(stored) => {
                        prop_assert_eq!(stored == Stored::Present, known.is_some());
                        model.retain(|o| o.0 != n);
                        let mut gone = store.usage().evicted - before;
                        model.retain(|o| {
                            let goes = gone > 0 && !pins.iter().any(|(p, _)| *p == o.0);
                            gone -= u64::from(goes);
                            !goes
                        });
                        prop_assert_eq!(gone, 0, "more went than could");
                        if stored == Stored::Written {
                            // What was pinned under this name was another object.
                            pins.retain(|(p, _)| *p != n);
                        }
                        model.push((n, v));
                    }
                    Err(e) => {
                        prop_assert_eq!(e.kind(), ErrorKind::NoSpace);
                        prop_assert_eq!(store.usage().evicted, before, "in vain");
                    }
                }
            }
            Use::Get(n) => match model.iter().position(|o| o.0 == n) {
                Some(at) => {
                    let (n, v) = model.remove(at);
                    prop_assert_eq!(load(&store, n, 9000).expect("it is there"), payload(n, v, 9000));
                    model.push((n, v));
                }
                None => prop_assert_eq!(load(&store, n, 9000).unwrap_err(), Miss::Absent),
            },
            Use::Remove(n) => {
                let there = store.hold(&key(n)).expect("a free key").remove(&key(n)).expect("a removal");
                prop_assert_eq!(there, model.iter().any(|o| o.0 == n));
                model.retain(|o| o.0 != n);
                // Whoever loads it now finds that it went.
                pins.retain(|(p, _)| *p != n);
            }
            Use::Pin(n) => {
                if let Some(at) = model.iter().position(|o| o.0 == n) {
                    let pin = store.pin(&[(key(n), layout)]).expect("in service").pop().expect("one answer");
                    pins.push_back((n, pin.expect("it is there")));
                    let used = model.remove(at);
                    model.push(used);
                }
            }
            Use::Unpin => drop(pins.pop_front()),
        }
        let there = store.probe(&(0..24).map(key).collect::<Vec<_>>()).expect("in service");
        for (n, found) in (0..24).zip(there) {
            prop_assert_eq!(found.is_some(), model.iter().any(|o| o.0 == n), "key {}", n);
        }
        let usage = store.usage();
        prop_assert_eq!((usage.objects, usage.used), (model.len() as u64, model.len() as u64 * 16384));
        prop_assert!(usage.used + store.overhead_bytes() <= 320 << 10);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_pinned_stays(uses in uses()) {
        in_order(uses)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_store_without_limit_is_a_map(ops in ops()) {
        check(ops, None, Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    }

    #[test]
    fn a_limit_holds_for_everything_on_the_device(ops in ops()) {
        check(ops, Some(256 << 10), Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    }
}
