//! What tenants are promised, against a plain account.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::common::{payload, put, settings};
use kvstrata_core::{ChunkHash, ErrorKind, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::{NewObject, Quotas, Settings, Store};
use kvstrata_io::SimDisk;
use kvstrata_l2::{L2Quotas, Stored, TenantUsage};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const SALTS: [&str; 4] = ["", "a", "b", "c"];

fn key(tenant: usize, n: u64) -> ObjectKey {
    let scope = KeyScope::new("m", KvRank::single(), 0, SALTS[tenant]).expect("a scope");
    ObjectKey::new(&scope, ChunkHash::new(&n.to_le_bytes()).expect("8 bytes"))
}

fn open(disk: &SimDisk, id: u64, policy: &str, capacity: u64, quotas: Quotas) -> Result<Arc<Store<SimDisk>>> {
    let policy = kvstrata_evict::by_name(policy).expect("a known policy");
    let capacity = Some(capacity);
    Store::open(
        Arc::new(disk.clone()),
        Settings { policy, capacity, quotas, ..settings(Path::new("/kv"), id) },
    )
}

/// Stores an object that takes `blocks` blocks, header included.
fn store_blocks(store: &Arc<Store<SimDisk>>, tenant: usize, n: u64, blocks: u64) -> Result<Stored> {
    let bytes = payload(n, tenant as u64, (blocks - 1) as usize * 4096);
    let layout = Layout::opaque(bytes.len() as u64).expect("a layout").id();
    put(store, NewObject { key: key(tenant, n), layout, len: bytes.len() as u64, digest: None }, &bytes)
}

fn found(store: &Store<SimDisk>, tenant: usize, n: u64) -> bool {
    store.probe(&[key(tenant, n)]).expect("a store in service")[0].is_some()
}

fn used(store: &Store<SimDisk>, salt: &str) -> u64 {
    store.tenants().iter().find(|t| t.salt == salt).map_or(0, |t| t.used)
}

#[test]
fn quotas_are_set_listed_and_deleted_and_count_what_a_start_finds() {
    let disk = SimDisk::default();
    let promised = Quotas { default: None, own: vec![("a".into(), 64 * KIB)] };
    let store = open(&disk, 1, "IsolatedLRU", 4096 * KIB, promised.clone()).unwrap();
    let tenant = |salt: &str, used, quota| TenantUsage { salt: salt.into(), used: used * KIB, quota };
    assert!(store.keeps_quotas());
    assert_eq!(store.tenants(), [tenant("a", 0, Some(64 * KIB))]);
    store_blocks(&store, 1, 0, 3).unwrap();
    store_blocks(&store, 2, 0, 2).unwrap();
    store_blocks(&store, 0, 0, 5).unwrap();
    store.set_quota("b", Some(5000)).unwrap();
    store.set_quota("c", Some(1)).unwrap();
    store.set_quota("c", None).unwrap();
    store.set_quota("never seen", None).unwrap();
    let all = [tenant("", 20, None), tenant("a", 12, Some(64 * KIB)), tenant("b", 8, Some(5000))];
    assert_eq!(store.tenants(), all);
    assert!(store.hold(&key(1, 0)).unwrap().remove(&key(1, 0)).unwrap());
    store.set_quota("a", None).unwrap();
    assert_eq!(store.tenants(), [all[0].clone(), all[2].clone()]);
    drop(store);

    let store = open(&disk, 2, "IsolatedLRU", 4096 * KIB, promised).unwrap();
    let all = [tenant("", 20, None), tenant("a", 0, Some(64 * KIB)), tenant("b", 8, None)];
    assert_eq!(store.tenants(), all, "what was set while the store was open is not kept");
}

#[test]
fn a_policy_that_keeps_no_tenants_apart_takes_no_quotas() {
    let own = Quotas { default: None, own: vec![("a".into(), 1)] };
    let default = Quotas { default: Some(0), own: vec![] };
    for (quotas, field) in [(own, "quotas: S3-FIFO"), (default, "default_quota: S3-FIFO")] {
        let disk = SimDisk::default();
        let e = open(&disk, 1, "S3-FIFO", 4096 * KIB, quotas).unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(field), "{e}");
        assert!(kvstrata_io::Disk::list(&disk, Path::new("/kv")).is_err(), "nothing is changed");
    }
    let store = open(&SimDisk::default(), 1, "LRU", 4096 * KIB, Quotas::default()).unwrap();
    assert!(!store.keeps_quotas());
}

#[test]
fn whoever_fills_its_quota_keeps_it_and_those_who_share_give() {
    let disk = SimDisk::default();
    let quotas = Quotas { default: None, own: vec![("a".into(), 10 * 64 * KIB)] };
    let store = open(&disk, 1, "IsolatedLRU", 2048 * KIB, quotas).unwrap();
    (0..100).for_each(|n| assert_eq!(store_blocks(&store, 2, n, 16).unwrap(), Stored::Written));
    (0..10).for_each(|n| assert_eq!(store_blocks(&store, 1, n, 16).unwrap(), Stored::Written));
    assert!((0..10).all(|n| found(&store, 1, n)), "the store was full of another's, who gave");
    (100..200).for_each(|n| assert_eq!(store_blocks(&store, 2, n, 16).unwrap(), Stored::Written));
    assert!((0..10).all(|n| found(&store, 1, n)), "to the byte is not above");
    (10..12).for_each(|n| assert_eq!(store_blocks(&store, 1, n, 16).unwrap(), Stored::Written));
    assert_eq!((0..12).filter(|n| found(&store, 1, *n)).collect::<Vec<_>>(), (2..12).collect::<Vec<_>>());
}

#[test]
fn what_is_promised_is_not_taken_by_a_batch_in_flight_nor_by_the_snapshot() {
    let disk = SimDisk::default();
    // All but what the store itself takes is promised.
    let quotas = Quotas { default: None, own: vec![("a".into(), 1280 * KIB), ("b".into(), 256 * KIB)] };
    let store = open(&disk, 1, "IsolatedLRU", 2048 * KIB, quotas).unwrap();
    (0..20).for_each(|n| assert_eq!(store_blocks(&store, 1, n, 16).unwrap(), Stored::Written));
    let layout = Layout::opaque(15 * 4096).unwrap().id();
    let batch: Vec<_> =
        (0..64).map(|n| NewObject { key: key(2, n), layout, len: 15 * 4096, digest: None }).collect();
    let mut claims: Vec<_> = store.begin(&batch).into_iter().collect();
    let mut taken = 0;
    for begun in &mut claims {
        let kvstrata_disk::Begin::Claimed(claim) = begun else { panic!("all are new") };
        match claim.reserve() {
            Ok(()) => taken += 1,
            Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace),
        }
    }
    assert!((4..64).contains(&taken), "{taken} fit");
    store.write_snapshot();
    assert!((0..20).all(|n| found(&store, 1, n)), "a flood is refused instead");
    drop(claims);
    assert_eq!(used(&store, "b"), 0, "nothing is left of it");
}

/// A tenant's objects, the last used at the end: number, blocks, when it was written.
type Account = BTreeMap<usize, Vec<(u64, u64, u64)>>;

#[derive(Clone, Debug)]
enum Op {
    /// A tenant stores a batch.
    Put {
        tenant: usize,
        blocks: Vec<u64>,
    },
    /// A tenant stores a batch again, those still there being used by it.
    Again(usize, usize),
    Quota(usize, Option<u64>),
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let quota =
        prop_oneof![1 => Just(None), 3 => (0u64..60).prop_map(|blocks| Some(blocks * 4096 - blocks % 7))];
    let op = prop_oneof![
        12 => (0usize..4, prop::collection::vec(2u64..8, 1..5)).prop_map(|(tenant, blocks)| Op::Put { tenant, blocks }),
        3 => (0usize..4, 0usize..30).prop_map(|(tenant, at)| Op::Again(tenant, at)),
        2 => (0usize..4, quota).prop_map(|(tenant, quota)| Op::Quota(tenant, quota)),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    /// Of every tenant with a quota, what it used last and what fits into its quota is there, whoever stored what since.
    #[test]
    fn nobody_loses_what_it_is_promised(ops in ops()) {
        // Four quotas of less than 60 blocks each, and what the directories may take.
        let capacity = (240 + 160) * 4096;
        let disk = SimDisk::default();
        let mut quotas: BTreeMap<usize, u64> = BTreeMap::new();
        let mut runs = 1;
        let mut store = open(&disk, runs, "IsolatedLRU", capacity, Quotas::default()).expect("a store");
        let mut account = Account::new();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Put { tenant, blocks } => {
                    for blocks in blocks {
                        next += 1;
                        if store_blocks(&store, tenant, next, blocks).is_ok() {
                            account.entry(tenant).or_default().push((next, blocks, next));
                        }
                    }
                }
                Op::Again(tenant, at) => {
                    let objects = account.entry(tenant).or_default();
                    if at < objects.len() {
                        let (n, blocks, written) = objects.remove(at);
                        next += 1;
                        match store_blocks(&store, tenant, n, blocks) {
                            Ok(Stored::Present) => objects.push((n, blocks, written)),
                            Ok(Stored::Written) => objects.push((n, blocks, next)),
                            Err(_) => {}
                        }
                    }
                }
                Op::Quota(tenant, quota) => {
                    store.set_quota(SALTS[tenant], quota).unwrap();
                    match quota {
                        Some(bytes) => quotas.insert(tenant, bytes),
                        None => quotas.remove(&tenant),
                    };
                }
                Op::Reopen => {
                    store.close();
                    if store.stats().snapshots == 0 {
                        // Nothing but the time of writing tells the next start what was used last.
                        account.values_mut().for_each(|objects| objects.sort_by_key(|o| o.2));
                    }
                    drop(store);
                    runs += 1;
                    let own = quotas.iter().map(|(t, bytes)| (SALTS[*t].to_owned(), *bytes)).collect();
                    store = open(&disk, runs, "IsolatedLRU", capacity, Quotas { default: None, own }).expect("a store");
                }
            }
            for (tenant, quota) in &quotas {
                let mut room = quota.div_ceil(4096);
                for (n, blocks, _) in account.get(tenant).into_iter().flatten().rev() {
                    let Some(left) = room.checked_sub(*blocks) else { break };
                    room = left;
                    prop_assert!(found(&store, *tenant, *n), "tenant {} lost {}: {:?} of {:?}", tenant, n, account[tenant], store.tenants());
                }
            }
            let sum: u64 = store.tenants().iter().map(|t| t.used).sum();
            prop_assert_eq!(sum, store.usage().used);
            // Who has lost an object to its own flood, or without a quota, does not have it any more.
            for (tenant, objects) in &mut account {
                objects.retain(|(n, ..)| found(&store, *tenant, *n));
                let held: u64 = objects.iter().map(|(_, blocks, _)| blocks * 4096).sum();
                prop_assert_eq!(held, used(&store, SALTS[*tenant]));
            }
        }
    }
}
