//! L1 alone: reservations, commits, pins, exact eviction.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{CHUNK, SECOND, is_filled_with, keys, layouts, manager, settle, store};
use kvstrata_core::{ErrorKind, KeyMask, Layout};
use kvstrata_manager::{Committed, Grant, Layouts, Options, Reserved, Wait};

const LRU: [&str; 3] = ["lru", "default", "default"];

fn l1(chunks: usize) -> kvstrata_manager::Manager {
    manager(chunks, 0, LRU, Options::default())
}

#[tokio::test]
async fn what_is_committed_is_read_and_what_is_dropped_is_never_seen() {
    let m = l1(4);
    let k = keys(1, 3);
    let rq = m.request(SECOND);
    let mut reserved = m.try_reserve(&rq, &k, &KeyMask::all(3), &layouts(), Grant::Whole);
    assert!(m.read(&rq, &k).mask().is_clear(), "a reservation is invisible");
    let Some(Reserved::Granted(mut last)) = reserved.pop() else { panic!() };
    last.buf().as_mut_slice().unwrap().fill(9);
    assert_eq!(m.commit(vec![last]), [Committed::Resident]);
    assert_eq!((m.usage().reserved, m.usage().cache.buffers), (2, 3));
    drop(reserved);
    let u = m.usage();
    assert_eq!((u.reserved, u.cache.buffers, u.stats.aborts), (0, 1, 2));
    let hits = m.read(&rq, &k);
    assert_eq!(hits.mask().iter().collect::<Vec<_>>(), [2]);
    assert!(is_filled_with(hits.buf(2).unwrap(), 9));
}

#[tokio::test]
async fn one_writer_per_key_and_none_for_a_resident_one() {
    let m = l1(4);
    let k = keys(1, 1);
    let rq = m.request(SECOND);
    let all = KeyMask::all(1);
    let first = m.try_reserve(&rq, &k, &all, &layouts(), Grant::Whole);
    assert!(matches!(m.try_reserve(&rq, &k, &all, &layouts(), Grant::Whole)[0], Reserved::Busy));
    drop(first);
    assert_eq!(store(&m, &k), 1, "an aborted key can be written again");
    assert!(matches!(m.try_reserve(&rq, &k, &all, &layouts(), Grant::Whole)[0], Reserved::Resident));
    let none = KeyMask::none(1);
    assert!(matches!(
        m.try_reserve(&rq, &keys(2, 1), &none, &layouts(), Grant::Whole)[0],
        Reserved::Unwanted
    ));
}

#[tokio::test]
async fn eviction_takes_exactly_what_is_needed_and_the_tail_of_a_chain_first() {
    let m = l1(4);
    let (a, b) = (keys(1, 4), keys(2, 1));
    store(&m, &a);
    store(&m, &b);
    let rq = m.request(SECOND);
    assert_eq!(m.read(&rq, &a).mask().iter().collect::<Vec<_>>(), [0, 1, 2], "the last chunk of a went");
    assert_eq!((m.usage().stats.evicted, m.usage().stats.evicted_bytes), (1, CHUNK as u64));
    m.touch(&rq, &a, &KeyMask::all(4));
    store(&m, &keys(3, 1));
    assert!(m.read(&rq, &b).mask().is_clear(), "a was touched, so b was the oldest");
}

#[tokio::test]
async fn pinned_chunks_stay_and_leave_no_pin_behind() {
    let m = l1(2);
    let a = keys(1, 2);
    store(&m, &a);
    let rq = m.request(SECOND);
    let hits = m.read(&rq, &a);
    assert_eq!(m.usage().pinned, 2);
    let refused = m.try_reserve(&rq, &keys(2, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    assert!(matches!(&refused[0], Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace));
    assert_eq!(m.usage().stats.declined, 1);
    drop(hits);
    assert_eq!(m.usage().pinned, 0);
    assert_eq!(store(&m, &keys(2, 1)), 1);
}

#[tokio::test]
async fn part_grants_a_prefix_and_whole_grants_all_or_nothing() {
    let m = l1(2);
    let k = keys(1, 3);
    let rq = m.request(SECOND);
    let part = m.try_reserve(&rq, &k, &KeyMask::all(3), &layouts(), Grant::Part);
    let granted: Vec<bool> = part.iter().map(|r| matches!(r, Reserved::Granted(_))).collect();
    assert_eq!(granted, [true, true, false]);
    drop(part);
    let never = m.try_reserve(&rq, &k, &KeyMask::all(3), &layouts(), Grant::Whole);
    assert!(never.iter().all(|r| matches!(r, Reserved::Refused(e) if e.kind() == ErrorKind::Invalid)));
    let a = keys(2, 2);
    store(&m, &a);
    let hits = m.read(&rq, &a[..1]);
    let whole = m.try_reserve(&rq, &k[..2], &KeyMask::all(2), &layouts(), Grant::Whole);
    assert!(whole.iter().all(|r| matches!(r, Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace)));
    assert_eq!(
        (m.usage().reserved, m.usage().stats.evicted),
        (0, 0),
        "a batch that cannot fit evicts nothing"
    );
    drop(hits);
    let whole = m.try_reserve(&rq, &k[..2], &KeyMask::all(2), &layouts(), Grant::Whole);
    assert!(whole.iter().all(|r| matches!(r, Reserved::Granted(_))));
}

#[tokio::test]
async fn nothing_is_evicted_for_what_is_refused_nor_from_a_batch_for_the_rest_of_it() {
    let m = l1(3);
    let (a, b) = (keys(1, 2), keys(2, 1));
    store(&m, &b);
    store(&m, &a);
    let rq = m.request(SECOND);
    let held = m.read(&rq, &a);
    let two = Layouts::from(Layout::opaque(2 * CHUNK as u64).unwrap());
    let r = m.try_reserve(&rq, &keys(3, 1), &KeyMask::all(1), &two, Grant::Part);
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace), "{r:?}");
    assert_eq!(m.usage().stats.evicted, 0, "one chunk is not enough, so it stays");
    // Only what the batch has already could go for the second one.
    let batch = [b, keys(4, 1)].concat();
    let r = m.try_reserve(&rq, &batch, &KeyMask::all(2), &layouts(), Grant::Whole);
    assert!(matches!(r[..], [Reserved::Resident, Reserved::Refused(_)]), "{r:?}");
    assert_eq!(m.usage().stats.evicted, 0);
    drop(held);
    let r = m.try_reserve(&rq, &batch, &KeyMask::all(2), &layouts(), Grant::Whole);
    assert!(matches!(r[..], [Reserved::Resident, Reserved::Granted(_)]), "{r:?}");
}

#[tokio::test]
async fn a_size_that_never_fits_is_invalid_and_not_waited_for() {
    let m = l1(2);
    let big = Layouts::from(Layout::opaque(3 * CHUNK as u64).unwrap());
    let rq = m.request(Duration::from_secs(3600));
    let r = m.reserve(&rq, &keys(1, 1), &KeyMask::all(1), &big, Grant::Part, Wait::UntilDeadline).await;
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::Invalid), "{r:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_waits_for_room_and_not_past_its_deadline() {
    let m = l1(1);
    let a = keys(1, 1);
    store(&m, &a);
    let rq = m.request(SECOND);
    let hits = m.read(&rq, &a);
    let b = keys(2, 1);
    let begun = tokio::time::Instant::now();
    let late = m.reserve(&rq, &b, &KeyMask::all(1), &layouts(), Grant::Part, Wait::UntilDeadline).await;
    assert!(matches!(&late[0], Reserved::Refused(_)));
    assert_eq!(begun.elapsed().as_millis(), 1000);

    let waiter = {
        let m = m.clone();
        tokio::spawn(async move {
            let rq = m.request(SECOND);
            m.reserve(&rq, &b, &KeyMask::all(1), &layouts(), Grant::Part, Wait::UntilDeadline).await
        })
    };
    settle().await;
    assert!(!waiter.is_finished());
    drop(hits);
    assert!(matches!(waiter.await.unwrap()[0], Reserved::Granted(_)), "the pin's end made room");
}

#[tokio::test(start_paused = true)]
async fn what_another_writer_commits_is_room_for_those_who_wait() {
    let m = l1(1);
    let rq = m.request(SECOND);
    let Some(Reserved::Granted(chunk)) =
        m.try_reserve(&rq, &keys(1, 1), &KeyMask::all(1), &layouts(), Grant::Part).pop()
    else {
        panic!()
    };
    let begun = tokio::time::Instant::now();
    let waiter = tokio::spawn({
        let m = m.clone();
        async move {
            let rq = m.request(SECOND);
            m.reserve(&rq, &keys(2, 1), &KeyMask::all(1), &layouts(), Grant::Part, Wait::UntilDeadline).await
        }
    });
    settle().await;
    m.commit(vec![chunk]);
    assert!(matches!(waiter.await.unwrap()[0], Reserved::Granted(_)));
    assert!(begun.elapsed() < SECOND / 2, "told, not timed out");
}

#[tokio::test]
async fn deleted_and_cleared_chunks_are_gone_for_lookups_but_not_for_readers() {
    let m = l1(4);
    let a = keys(1, 3);
    store(&m, &a);
    let rq = m.request(SECOND);
    let hits = m.read(&rq, &a[..2]);
    let deleted = m.delete(&rq, &a[..1]).await;
    assert!(deleted.l1.get(0) && deleted.l2.is_clear() && deleted.failed.is_empty());
    assert_eq!(m.clear(), 2);
    assert!(m.read(&rq, &a).mask().is_clear());
    assert!(is_filled_with(hits.buf(0).unwrap(), 0) && is_filled_with(hits.buf(1).unwrap(), 1));
    assert_eq!(m.usage().cache.buffers, 2, "what is read stays in memory");
    assert_eq!(store(&m, &a[..1]), 1, "the name is free again");
    drop(hits);
    assert_eq!((m.usage().cache.buffers, m.usage().pinned, m.usage().resident), (1, 0, 1));
}

#[tokio::test]
async fn noop_evicts_nothing_and_answers_no_space() {
    let m = manager(2, 0, ["noop", "default", "default"], Options::default());
    store(&m, &keys(1, 2));
    let rq = m.request(SECOND);
    let r = m.try_reserve(&rq, &keys(2, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace));
    assert_eq!(m.usage().stats.evicted, 0);
}

#[tokio::test]
async fn after_shutdown_reservations_are_refused_and_pins_still_hold() {
    let m = l1(2);
    let a = keys(1, 1);
    store(&m, &a);
    let rq = m.request(SECOND);
    let hits = m.read(&rq, &a);
    m.shutdown(SECOND).await.unwrap();
    let r = m.try_reserve(&rq, &keys(2, 1), &KeyMask::all(1), &layouts(), Grant::Part);
    assert!(matches!(&r[0], Reserved::Refused(e) if e.kind() == ErrorKind::Closed));
    assert!(is_filled_with(hits.buf(0).unwrap(), 0));
    drop((hits, m));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_store_read_and_drop_at_random_leave_nothing_behind() {
    let m = l1(64);
    let tasks: Vec<_> = (0..4u8)
        .map(|t| {
            let m = m.clone();
            tokio::spawn(async move {
                for round in 0..200u8 {
                    let k = keys(round % 7 + t % 2, 20);
                    let rq = m.request(SECOND);
                    let hits = m.read(&rq, &k);
                    for i in hits.mask().iter() {
                        assert!(is_filled_with(hits.buf(i).unwrap(), i as u8));
                    }
                    store(&m, &k);
                    m.touch(&rq, &k, &hits.mask());
                    if round % 16 == 3 {
                        m.delete(&rq, &k[10..]).await;
                    }
                }
            })
        })
        .collect();
    for t in tasks {
        t.await.unwrap();
    }
    let u = m.usage();
    assert_eq!((u.pinned, u.reserved, u.storing), (0, 0, 0));
    assert_eq!(u.cache.buffers, u.resident as u64);
    m.clear();
    assert_eq!(m.usage().cache.used, 0);
    drop(Arc::new(m));
}
