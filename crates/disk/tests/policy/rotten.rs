//! A policy that panics takes its store out of service, visibly, and nothing else.

use std::path::Path;
use std::sync::Arc;

use crate::common::{key, load, payload, settings, store_payload};
use kvstrata_core::{ErrorKind, Layout, Result, Retry};
use kvstrata_disk::{LoadFault, Settings, Store};
use kvstrata_evict::{Access, Entry, EvictionPolicy, Lru, Removal, Slot};
use kvstrata_io::SimDisk;
use kvstrata_l2::Stored;

/// LRU until something in it breaks.
#[derive(Debug, Default)]
struct Rotten {
    lru: Lru,
    /// Which call panics.
    at: &'static str,
}

impl Rotten {
    fn call(&mut self, what: &str) -> &mut Lru {
        assert_ne!(what, self.at, "rotten at {what}");
        &mut self.lru
    }
}

impl EvictionPolicy for Rotten {
    fn name(&self) -> &'static str {
        "rotten"
    }
    fn set_capacity(&mut self, weight: u64) {
        self.call("set_capacity").set_capacity(weight);
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.call("insert").insert(entry, cx);
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.call("touch").touch(slot, cx);
    }
    fn missed(&mut self, print: u64, cx: &Access) {
        self.call("missed").missed(print, cx);
    }
    fn pin(&mut self, slot: Slot) {
        self.call("pin").pin(slot);
    }
    fn unpin(&mut self, slot: Slot) {
        self.call("unpin").unpin(slot);
    }
    fn remove(&mut self, slot: Slot, why: Removal) {
        self.call("remove").remove(slot, why);
    }
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        self.lru.victims(want, out);
        self.call("victims");
        0
    }
    fn memory(&self) -> usize {
        self.lru.memory()
    }
}

const LEN: usize = 9000;

fn open(disk: &SimDisk, id: u64, at: &'static str, capacity: Option<u64>) -> Result<Arc<Store<SimDisk>>> {
    let policy = Box::new(Rotten { at, ..Rotten::default() });
    Store::open(Arc::new(disk.clone()), Settings { policy, capacity, ..settings(Path::new("/kv"), id) })
}

#[test]
fn a_policy_that_panics_takes_its_store_out_of_service_and_a_restart_brings_everything_back() {
    for at in ["victims", "touch", "missed", "pin", "unpin", "remove", "insert"] {
        let disk = SimDisk::default();
        let sound = open(&disk, 1, "", Some(256 << 10)).unwrap();
        (0..5).for_each(|n| assert_eq!(store_payload(&sound, n, 0, LEN).unwrap(), Stored::Written));
        sound.close();
        drop(sound);
        if at == "insert" {
            let e = open(&disk, 2, at, Some(256 << 10)).unwrap_err();
            assert!(e.to_string().contains("the eviction policy rotten panicked: "), "{e}");
        } else {
            let store = open(&disk, 2, at, Some(256 << 10)).unwrap();
            assert_eq!((store.stats().policy_panics, store.fault().is_some()), (0, false), "{at}");
            // Each of these brings one of them to its end.
            drop(store.probe(&[key(99)]));
            drop(load_any(&store, 0));
            drop(store.hold(&key(4)).unwrap().remove(&key(4)));
            let errors: Vec<_> = (10..30).filter_map(|n| store_payload(&store, n, 0, LEN).err()).collect();
            assert!(!errors.is_empty(), "{at}");
            let before = store.usage();
            for e in [&errors[0], &store.probe(&[key(0)]).unwrap_err(), &load_any(&store, 0).unwrap_err()] {
                assert_eq!((e.kind(), e.retry()), (ErrorKind::Internal, Retry::Never), "{at}: {e}");
                assert!(e.to_string().contains("the eviction policy rotten panicked: "), "{at}: {e}");
            }
            assert_eq!(store.stats().policy_panics, 1, "{at}");
            assert!(store.list(None, 100).unwrap().entries.len() as u64 == before.objects, "{at}");
            assert!(before.used <= 256 << 10, "{at}: what was set aside in vain is given back");
            store.close();
        }
        let store = open(&disk, 3, "", Some(256 << 10)).unwrap();
        (1..4).for_each(|n| assert_eq!(load(&store, n, LEN).unwrap(), payload(n, 0, LEN), "{at}"));
    }
}

fn load_any(store: &Arc<Store<SimDisk>>, n: u64) -> Result<()> {
    let layout = Layout::opaque(LEN as u64).expect("a layout").id();
    for pin in store.pin(&[(key(n), layout)])? {
        match pin.and_then(|mut pin| match pin.open() {
            Ok(_) => pin.finish(LEN as u64).map(drop).map_err(|_| kvstrata_l2::Miss::Stale),
            Err(LoadFault::Miss(miss)) => Err(miss),
            Err(LoadFault::Failed(e)) => panic!("the device failed: {e}"),
        }) {
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[test]
fn a_store_that_has_to_be_trimmed_does_not_open_with_a_policy_that_cannot() {
    let disk = SimDisk::default();
    let store = open(&disk, 1, "", None).unwrap();
    (0..20).for_each(|n| assert_eq!(store_payload(&store, n, 0, LEN).unwrap(), Stored::Written));
    store.close();
    drop(store);
    let e = open(&disk, 2, "victims", Some(128 << 10)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Internal, "{e}");
    let store = open(&disk, 3, "", None).unwrap();
    assert_eq!(store.usage().objects, 20, "nothing was touched");
}
