//! Quotas of tenants, by cache salt.

use crate::common::{CHUNK, Held, SECOND, keys_of, layouts, manager, store};
use kvstrata_core::{ErrorKind, KeyMask};
use kvstrata_l2::TenantUsage;
use kvstrata_manager::{Grant, Manager, Options, Reserved, TierId};

const ISOLATED: [&str; 3] = ["IsolatedLRU", "default", "default"];

fn chunks(n: usize) -> u64 {
    (n * CHUNK) as u64
}

fn held_by(m: &Manager, salt: &str) -> usize {
    let tenants = m.tenants(TierId::L1).unwrap();
    tenants.iter().find(|t| t.salt == salt).map_or(0, |t| t.used as usize / CHUNK)
}

#[tokio::test]
async fn a_flood_never_evicts_another_tenant_below_its_quota() {
    let m = manager(12, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "a", Some(chunks(4))).unwrap();
    m.set_quota(TierId::L1, "b", Some(chunks(6))).unwrap();
    assert_eq!(store(&m, &keys_of("a", 1, 4)), 4);
    // b takes what is free, beyond its quota, and gives that back first.
    for chain in 2..40 {
        store(&m, &keys_of("b", chain, 3));
        assert_eq!(held_by(&m, "a"), 4, "after chain {chain}");
    }
    assert_eq!(held_by(&m, "b"), 8);
    // Without a quota one has what is left, and no more.
    for chain in 40..60 {
        store(&m, &keys_of("", chain, 3));
        assert_eq!((held_by(&m, "a"), held_by(&m, "b")), (4, 6), "after chain {chain}");
    }
    assert_eq!(held_by(&m, ""), 2);
    let rq = m.request(SECOND);
    assert_eq!(m.read(&rq, &keys_of("a", 1, 4)).mask().count(), 4);
}

#[tokio::test]
async fn a_tenant_whose_room_is_all_promised_to_others_is_refused() {
    let m = manager(4, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "a", Some(chunks(4))).unwrap();
    assert_eq!(store(&m, &keys_of("a", 1, 4)), 4);
    let rq = m.request(SECOND);
    let r = m.try_reserve(&rq, &keys_of("new", 1, 1), &KeyMask::all(1), &layouts(), Grant::Whole);
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace), "{r:?}");
    assert_eq!((held_by(&m, "a"), m.usage().stats.evicted), (4, 0));
    // The promise ends with the quota.
    m.set_quota(TierId::L1, "a", None).unwrap();
    assert_eq!(store(&m, &keys_of("new", 1, 1)), 1);
    assert_eq!((held_by(&m, "a"), held_by(&m, "new")), (3, 1));
}

#[tokio::test]
async fn what_was_set_aside_and_given_back_does_not_count_towards_a_quota() {
    let m = manager(4, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "a", Some(chunks(2))).unwrap();
    m.set_quota(TierId::L1, "b", Some(chunks(3))).unwrap();
    assert_eq!(store(&m, &keys_of("b", 1, 3)), 3);
    let rq = m.request(SECOND);
    let one = |n| m.try_reserve(&rq, &keys_of("a", n, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    (0..5).for_each(|n| drop(one(n)));
    assert_eq!(store(&m, &keys_of("a", 9, 2)), 2, "the quotas exceed the budget, and a stays within its own");
}

#[tokio::test]
async fn without_a_quota_the_default_applies_and_none_means_sharing() {
    let m = manager(6, 0, ISOLATED, Options::default());
    store(&m, &keys_of("a", 1, 3));
    store(&m, &keys_of("b", 1, 3));
    assert_eq!((held_by(&m, "a"), held_by(&m, "b")), (3, 3), "nobody has a quota, and nobody is wiped");
    m.set_default_quota(TierId::L1, Some(chunks(2))).unwrap();
    assert_eq!((held_by(&m, "a"), held_by(&m, "b")), (3, 3), "a change drops nothing");
    store(&m, &keys_of("c", 1, 2));
    assert_eq!((held_by(&m, "a"), held_by(&m, "b"), held_by(&m, "c")), (2, 2, 2));
}

#[tokio::test]
async fn quotas_are_listed_with_what_is_used_and_strangers_are_forgotten() {
    let m = manager(2, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "b", Some(chunks(1))).unwrap();
    store(&m, &keys_of("a", 1, 1));
    let row = |salt: &str, used, quota| TenantUsage { salt: salt.into(), used, quota };
    assert_eq!(m.tenants(TierId::L1).unwrap(), [row("a", chunks(1), None), row("b", 0, Some(chunks(1)))]);
    m.set_quota(TierId::L1, "b", None).unwrap();
    m.set_quota(TierId::L1, "nobody", None).unwrap();
    m.delete(&m.request(SECOND), &keys_of("a", 1, 1)).await;
    assert_eq!(m.tenants(TierId::L1).unwrap(), []);
}

#[tokio::test]
async fn a_tier_without_quotas_says_what_it_would_take() {
    let m = manager(2, 0, ["LRU", "default", "default"], Options::default());
    let e = m.set_quota(TierId::L1, "a", Some(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.to_string().contains("LRU") && e.to_string().contains("IsolatedLRU"), "{e}");
    store(&m, &keys_of("a", 1, 2));
    assert_eq!(held_by(&m, "a"), 2, "usage is counted all the same");
    let id = m.add_adapter(Held::new("h").adapter(), 1).unwrap();
    let e = m.set_quota(TierId::L2(id), "a", Some(1)).unwrap_err();
    assert!(e.to_string().contains("(tier: h)"), "{e}");
    let e = m.tenants(TierId::L2(kvstrata_manager::L2Id(77))).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn made_up_salts_that_only_pass_through_leave_nothing() {
    let m =
        crate::common::admitting("second_sighting", 2, 8, ["LRU", "default", "default"], Options::default());
    let held = Held::new("h");
    m.add_adapter(held.adapter(), 1).unwrap();
    store(&m, &keys_of("", 1, 2));
    crate::common::settle().await;
    held.accept();
    for n in 0..50 {
        assert_eq!(store(&m, &keys_of(&format!("salt-{n}"), 1, 2)), 2);
        assert_eq!(m.tenants(TierId::L1).unwrap().len(), 1, "what passes through is nobody's");
        crate::common::settle().await;
        held.accept();
    }
    assert_eq!((held_by(&m, ""), m.usage().staging.used), (2, 0));
}

#[tokio::test]
async fn what_is_set_aside_counts_as_its_tenants_before_it_is_committed() {
    // Overcommitted: a has all of it and may, b may have a half.
    let m = manager(8, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "a", Some(chunks(8))).unwrap();
    m.set_quota(TierId::L1, "b", Some(chunks(4))).unwrap();
    assert_eq!(store(&m, &keys_of("a", 1, 8)), 8);
    let rq = m.request(SECOND);
    let r = m.try_reserve(&rq, &keys_of("b", 1, 8), &KeyMask::all(8), &layouts(), Grant::Part);
    let granted = r.iter().filter(|r| matches!(r, Reserved::Granted(_))).count();
    assert_eq!((granted, held_by(&m, "a")), (4, 4), "no more than its quota, committed or not");
    drop(r);
    assert_eq!((held_by(&m, "a"), m.usage().reserved, m.tenants(TierId::L1).unwrap().len()), (4, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_ends_wakes_who_waits_for_room() {
    let m = manager(2, 0, ISOLATED, Options::default());
    m.set_quota(TierId::L1, "a", Some(chunks(2))).unwrap();
    assert_eq!(store(&m, &keys_of("a", 1, 2)), 2);
    let (waiting, rq) = (m.clone(), m.request(100 * SECOND));
    let start = tokio::time::Instant::now();
    let reserve = tokio::spawn(async move {
        let keys = keys_of("b", 1, 1);
        let wait = kvstrata_manager::Wait::UntilDeadline;
        let r = waiting.reserve(&rq, &keys, &KeyMask::all(1), &layouts(), Grant::Whole, wait).await;
        matches!(r[0], Reserved::Granted(_))
    });
    tokio::time::sleep(SECOND).await;
    m.set_quota(TierId::L1, "a", None).unwrap();
    assert!(reserve.await.unwrap());
    assert!(start.elapsed() < 2 * SECOND, "not at its deadline");
}
