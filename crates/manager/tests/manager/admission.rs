//! Chunks that an admission rule keeps out of L1.

use std::sync::Arc;

use crate::common::{Held, SECOND, admitting, keys, layouts, settle, store};
use crate::l2::{CACHE, Calls, store_with};
use kvstrata_core::KeyMask;
use kvstrata_manager::{Grant, Options, Reserved};

#[tokio::test]
async fn what_is_not_admitted_passes_through_to_l2_and_evicts_nobody() {
    let held = Held::new("h");
    let m = admitting("second_sighting", 2, 4, CACHE, Options::default());
    m.add_adapter(held.adapter(), 1).unwrap();
    let hook = Arc::<Calls>::default();
    store(&m, &keys(1, 2));
    settle().await;
    held.accept();
    let new = keys(2, 2);
    store_with(&m, &new, &hook);
    settle().await;
    assert_eq!((m.usage().stats.evicted, m.usage().staging.buffers, m.usage().resident), (0, 2, 4));
    assert_eq!(held.accept(), 2);
    let u = m.usage();
    assert_eq!((u.resident, u.staging.used, u.stats.lost, hook.0.lock().len()), (2, 0, 0, 2));
    // A later request for it brings it in.
    let rq = m.request(SECOND);
    store(&m, &new);
    settle().await;
    held.accept();
    assert_eq!((m.usage().resident, m.usage().stats.evicted), (2, 2));
    assert_eq!(m.read(&rq, &new).mask().count(), 2);
}

#[tokio::test]
async fn without_an_l2_what_is_not_admitted_is_not_even_written() {
    let m = admitting("second_sighting", 2, 0, CACHE, Options::default());
    store(&m, &keys(1, 2));
    let rq = m.request(SECOND);
    let new = keys(2, 2);
    m.read(&rq, &new);
    let r = m.try_reserve(&rq, &new, &KeyMask::all(2), &layouts(), Grant::Whole);
    assert!(r.iter().all(|r| matches!(r, Reserved::NotAdmitted)), "{r:?}");
    assert_eq!((m.usage().stats.not_admitted, m.usage().stats.evicted), (2, 0));
}

#[tokio::test]
async fn a_whole_batch_needs_cache_for_what_is_admitted_and_staging_for_the_rest() {
    let held = Held::new("h");
    let m = admitting("second_sighting", 2, 4, CACHE, Options::default());
    m.add_adapter(held.adapter(), 1).unwrap();
    let rq = m.request(SECOND);
    store(&m, &keys(1, 2));
    settle().await;
    held.accept();
    let whole = |n| {
        let new = keys(2, n);
        m.try_reserve(&rq, &new, &KeyMask::all(new.len()), &layouts(), Grant::Whole)
    };
    let r = whole(4);
    assert!(r.iter().all(|r| matches!(r, Reserved::Granted(_))), "all of it passes through: {r:?}");
    drop(r);
    let r = whole(5);
    assert!(r.iter().all(|r| matches!(r, Reserved::Refused(_))), "more than the staging budget: {r:?}");
    assert_eq!((m.usage().reserved, m.usage().staging.used, m.usage().stats.evicted), (0, 0, 0));
    assert_eq!(m.usage().resident, 2);
}

#[tokio::test]
async fn nothing_stays_behind_a_chunk_that_only_passes_through() {
    let held = Held::new("h");
    let m = admitting("second_sighting", 2, 8, CACHE, Options::default());
    m.add_adapter(held.adapter(), 1).unwrap();
    store(&m, &keys(1, 2));
    settle().await;
    held.accept();
    // The first of a chain passes through, and is still on its way when it is asked for again.
    let chain = keys(2, 3);
    store(&m, &chain[..1]);
    settle().await;
    m.read(&m.request(SECOND), &chain);
    let rq = m.request(SECOND);
    m.read(&rq, &chain);
    let r = m.try_reserve(&rq, &chain, &KeyMask::all(3), &layouts(), Grant::Whole);
    assert!(matches!(r[0], Reserved::Resident), "it is here until its store ends: {r:?}");
    assert_eq!(
        (m.usage().staging.buffers, m.usage().stats.evicted),
        (3, 0),
        "and the rest passes through, too"
    );
    drop(r);
    // The same while somebody is still writing it.
    held.accept();
    let other = keys(3, 3);
    let writing = m.try_reserve(&rq, &other[..1], &KeyMask::all(1), &layouts(), Grant::Whole);
    m.read(&m.request(SECOND), &other);
    let rq = m.request(SECOND);
    m.read(&rq, &other);
    let r = m.try_reserve(&rq, &other, &KeyMask::all(3), &layouts(), Grant::Whole);
    assert!(matches!(r[0], Reserved::Busy), "{r:?}");
    assert_eq!((m.usage().staging.buffers, m.usage().stats.evicted), (3, 0));
    drop((writing, r));
    assert_eq!((m.usage().staging.used, m.usage().reserved), (0, 0));
}
