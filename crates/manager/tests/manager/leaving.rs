//! Deletions and the end, with adapters that do not answer.

use std::time::Duration;

use crate::common::{Held, SECOND, keys, manager, settle, store};
use kvstrata_core::ErrorKind;
use kvstrata_manager::Options;

const CACHE: [&str; 3] = ["lru", "default", "default"];

#[tokio::test(start_paused = true)]
async fn one_that_hangs_takes_no_time_from_the_others_when_keys_are_deleted_and_at_the_end() {
    let (hung, good) = (Held::new("hung"), Held::new("good"));
    *hung.deaf.lock() = true;
    let m = manager(4, 4, CACHE, Options { store_attempts: 1, ..Options::default() });
    m.add_adapter(hung.removing(), 1).unwrap();
    m.add_adapter(good.removing(), 1).unwrap();
    let k = keys(1, 2);
    store(&m, &k);
    settle().await;
    good.accept();
    let deleted = m.delete(&m.request(SECOND), &k).await;
    assert!(deleted.l2.is_full() && deleted.failed.iter().all(|(name, _)| name == "hung"), "{deleted:?}");
    assert_eq!(*good.removed.lock(), k);
    let start = tokio::time::Instant::now();
    assert_eq!(m.shutdown(4 * SECOND).await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() <= 4 * SECOND + Duration::from_millis(1));
    assert_eq!(*good.ended.lock(), Some(start), "the good one was told at once");
}

#[tokio::test(start_paused = true)]
async fn what_is_undone_is_waited_for_and_what_could_not_be_is_counted() {
    let (slow, unable) = (Held::new("slow"), Held::new("unable"));
    let m = manager(4, 4, CACHE, Options { store_attempts: 1, ..Options::default() });
    m.add_adapter(slow.removing(), 1).unwrap();
    m.add_adapter(unable.adapter(), 1).unwrap();
    let k = keys(1, 1);
    store(&m, &k);
    settle().await;
    m.delete(&m.request(SECOND), &k).await;
    *slow.deaf.lock() = true;
    slow.accept();
    unable.accept();
    settle().await;
    assert_eq!((m.usage().storing, m.usage().stats.undo_failures), (1, 1), "one cannot, one has not yet");
    assert!(m.flush(SECOND).await.is_err());
    // What does not answer is given up in time.
    m.flush(2 * Options::default().store_timeout).await.unwrap();
    assert_eq!((m.usage().storing, m.usage().stats.undo_failures), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_whose_store_ends_during_the_shutdown_is_still_taken_away() {
    let held = Held::new("h");
    let m = manager(4, 4, CACHE, Options { store_attempts: 1, ..Options::default() });
    m.add_adapter(held.removing(), 1).unwrap();
    let k = keys(1, 1);
    store(&m, &k);
    settle().await;
    m.delete(&m.request(SECOND), &k).await;
    held.removed.lock().clear();
    let ending = tokio::spawn({
        let m = m.clone();
        async move { m.shutdown(4 * SECOND).await }
    });
    settle().await;
    assert_eq!((held.accept(), *held.ended.lock()), (1, None), "it is not told while it stores");
    ending.await.unwrap().unwrap();
    assert_eq!((&*held.removed.lock(), m.usage().stats.undo_failures), (&k, 0));
    assert!(held.ended.lock().is_some());
}
