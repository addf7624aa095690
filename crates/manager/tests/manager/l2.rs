//! The way to L2 and back, with an adapter that the test drives.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{CHUNK, Held, SECOND, is_filled_with, keys, layouts, manager, settle, store};
use kvstrata_core::{ErrorKind, KeyMask, ObjectKey};
use kvstrata_l2::Keys;
use kvstrata_manager::{
    Committed, Grant, LoadAnswer, LoadMode, Manager, Options, Reserved, StoredHook, TierId, Wait,
};
use parking_lot::Mutex;

pub(crate) const CACHE: [&str; 3] = ["lru", "default", "default"];
const RETAIN: [&str; 3] = ["lru", "default", "retain"];
const BUFFER: [&str; 3] = ["noop", "skip_l1", "default"];

fn with(held: &Arc<Held>, chunks: usize, policies: [&str; 3], options: Options) -> Manager {
    let m = manager(chunks, chunks, policies, options);
    m.add_adapter(held.adapter(), 1).unwrap();
    m
}

fn shared(keys: &[ObjectKey]) -> Keys {
    keys.into()
}

#[derive(Default)]
pub(crate) struct Calls(pub(crate) Mutex<Vec<String>>);

impl StoredHook for Calls {
    fn stored(&self, key: &ObjectKey) {
        self.0.lock().push(key.hash().to_string());
    }
}

pub(crate) fn store_with(m: &Manager, keys: &[ObjectKey], hook: &Arc<Calls>) {
    let rq = m.request(SECOND);
    let all = KeyMask::all(keys.len());
    let filled =
        m.try_reserve(&rq, keys, &all, &layouts(), Grant::Part).into_iter().filter_map(|r| match r {
            Reserved::Granted(chunk) => Some(chunk),
            _ => None,
        });
    m.commit_with(filled.collect(), Some(Arc::clone(hook) as Arc<dyn StoredHook>));
}

#[tokio::test]
async fn a_full_l1_hit_never_asks_l2() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    let k = keys(1, 3);
    store(&m, &k);
    let rq = m.request(SECOND);
    let lookup = m.lookup(&rq, &shared(&k)).await;
    assert_eq!((lookup.prefix(), lookup.l2().count(), *held.probes.lock()), (3, 0, 0));
    let lookup = m.lookup(&rq, &shared(&keys(1, 4))).await;
    assert_eq!((lookup.prefix(), *held.probes.lock()), (3, 1));
}

#[tokio::test]
async fn a_chunk_in_flight_is_not_evicted_and_its_end_makes_room() {
    let held = Held::new("h");
    let m = with(&held, 2, CACHE, Options::default());
    store(&m, &keys(1, 2));
    settle().await;
    assert_eq!((held.puts.lock().len(), m.usage().pinned, m.usage().storing), (2, 2, 2));
    assert_eq!(store(&m, &keys(2, 1)), 0);
    let m2 = m.clone();
    let waiting = tokio::spawn(async move {
        let rq = m2.request(SECOND);
        let all = KeyMask::all(1);
        m2.reserve(&rq, &keys(2, 1), &all, &layouts(), Grant::Part, Wait::UntilDeadline).await
    });
    settle().await;
    assert_eq!(held.accept(), 2);
    assert!(matches!(waiting.await.unwrap()[0], Reserved::Granted(_)));
    assert_eq!((m.usage().pinned, m.usage().storing, m.usage().stats.stored), (0, 0, 2));
}

#[tokio::test]
async fn the_hook_comes_once_per_key_after_the_store_and_never_for_a_failure_or_a_duplicate() {
    let held = Held::new("h");
    let m = with(&held, 8, CACHE, Options { store_attempts: 1, ..Options::default() });
    let hook = Arc::<Calls>::default();
    store_with(&m, &keys(1, 2), &hook);
    settle().await;
    assert!(hook.0.lock().is_empty(), "nothing is in L2 yet");
    held.accept();
    assert_eq!(hook.0.lock().clone(), ["0100", "0101"]);
    store_with(&m, &keys(1, 2), &hook);
    store_with(&m, &keys(2, 1), &hook);
    settle().await;
    held.refuse(ErrorKind::Io);
    settle().await;
    assert_eq!(hook.0.lock().len(), 2, "neither the duplicates nor the failure");
    assert_eq!(m.usage().stats.store_gave_up, 1);
}

#[tokio::test]
async fn a_hook_that_panics_changes_nothing() {
    let held = Held::new("h");
    let m = with(&held, 8, CACHE, Options::default());
    let rq = m.request(SECOND);
    let k = keys(1, 1);
    let Some(Reserved::Granted(chunk)) =
        m.try_reserve(&rq, &k, &KeyMask::all(1), &layouts(), Grant::Part).into_iter().next()
    else {
        panic!()
    };
    m.commit_with(vec![chunk], Some(Arc::new(|_: &ObjectKey| panic!("a hook's own defect"))));
    settle().await;
    held.accept();
    let u = m.usage();
    assert_eq!((u.stats.hook_panics, u.pinned, u.storing, u.stats.stored), (1, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_store_is_retried_within_bounds_and_then_let_go_visibly() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options { store_attempts: 3, ..Options::default() });
    store(&m, &keys(1, 1));
    for attempt in 1..=3u32 {
        settle().await;
        assert_eq!(held.refuse(ErrorKind::Io), 1, "attempt {attempt}");
        assert_eq!(m.usage().pinned, 0, "not pinned while it waits");
        tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
    }
    settle().await;
    let u = m.usage();
    assert_eq!((held.puts.lock().len(), u.storing, u.pinned, u.resident), (0, 0, 0, 1));
    assert_eq!((u.stats.store_failures, u.stats.store_retries, u.stats.store_gave_up), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_evicted_before_its_retry_is_final_where_it_was_stored() {
    let (one, two) = (Held::new("one"), Held::new("two"));
    let m = with(&one, 2, CACHE, Options { store_backoff: SECOND, ..Options::default() });
    m.add_adapter(two.adapter(), 1).unwrap();
    let hook = Arc::<Calls>::default();
    store_with(&m, &keys(1, 2), &hook);
    settle().await;
    one.accept();
    two.refuse(ErrorKind::Io);
    let flush = tokio::spawn({
        let m = m.clone();
        async move { m.flush(60 * SECOND).await }
    });
    assert!(hook.0.lock().is_empty(), "the second adapter may still take them");
    assert_eq!(m.clear(), 2);
    assert_eq!(hook.0.lock().len(), 2, "they can be read from the first");
    let begun = tokio::time::Instant::now();
    flush.await.unwrap().unwrap();
    assert!(begun.elapsed() < 10 * SECOND, "the end of a retry is told to those who wait for quiet");
    assert_eq!((m.usage().stats.lost, m.usage().storing), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_hangs_in_a_lookup_leaves_time_to_load_from_the_others() {
    #[derive(Debug)]
    struct Deaf(kvstrata_l2::L2Desc);
    #[async_trait::async_trait]
    impl kvstrata_l2::L2Store for Deaf {
        fn desc(&self) -> &kvstrata_l2::L2Desc {
            &self.0
        }
        async fn put(&self, _: kvstrata_l2::Put, done: kvstrata_l2::PutSink) {
            drop(done);
        }
        async fn get(&self, _: kvstrata_l2::Get, done: kvstrata_l2::GetSink) {
            drop(done);
        }
        async fn probe(
            &self,
            _: kvstrata_l2::Probe,
        ) -> Vec<kvstrata_core::Result<Option<kvstrata_l2::Found>>> {
            std::future::pending().await
        }
        async fn shutdown(&self, _: kvstrata_core::Instant) -> kvstrata_core::Result<()> {
            std::future::pending().await
        }
    }
    let held = Held::new("h");
    let (m, k) = stored(&held, 2, CACHE).await;
    let deaf = Deaf(kvstrata_l2::L2Desc { name: "deaf".into(), ..held.adapter().store.desc().clone() });
    let deaf =
        kvstrata_l2::Adapter { store: Arc::new(deaf), remove: None, list: None, usage: None, quotas: None };
    m.add_adapter(deaf, 1).unwrap();
    let rq = m.request(SECOND);
    let lookup = m.lookup(&rq, &shared(&k)).await;
    assert_eq!(lookup.l2().count(), 2);
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    held.serve();
    assert_eq!(loading.finish().await.hits.mask().count(), 2);
    let begun = tokio::time::Instant::now();
    assert_eq!(m.shutdown(SECOND).await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(begun.elapsed(), SECOND, "nor does it hold up a shutdown");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_will_not_pass_is_not_retried() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    store(&m, &keys(1, 1));
    settle().await;
    held.refuse(ErrorKind::Invalid);
    tokio::time::sleep(SECOND).await;
    assert_eq!((held.puts.lock().len(), m.usage().stats.store_gave_up), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_never_answers_is_answered_for_at_its_deadline() {
    let held = Held::new("h");
    let options = Options { store_timeout: SECOND, store_attempts: 1, ..Options::default() };
    let m = with(&held, 4, BUFFER, options);
    store(&m, &keys(1, 2));
    tokio::time::sleep(2 * SECOND).await;
    let u = m.usage();
    assert_eq!((u.storing, u.pinned, u.resident, u.stats.lost), (0, 0, 0, 2));
    assert_eq!(u.cache.buffers, 2, "the driver still has the buffers");
    held.accept();
    assert_eq!(m.usage().cache.used, 0, "and gives them back when it is done");
}

// ---- buffer only: noop and skip_l1 -----------------------------------------------------------------------------------

#[tokio::test]
async fn buffer_only_leaves_l1_after_the_last_of_all_adapters() {
    let (one, two) = (Held::new("one"), Held::new("two"));
    let m = with(&one, 4, BUFFER, Options::default());
    m.add_adapter(two.adapter(), 1).unwrap();
    store(&m, &keys(1, 3));
    settle().await;
    one.accept();
    assert_eq!(m.usage().resident, 3, "the second adapter does not have them yet");
    two.accept();
    let u = m.usage();
    assert_eq!((u.resident, u.cache.used, u.pinned), (0, 0, 0));
}

#[tokio::test]
async fn buffer_only_does_not_leak_when_stores_fail() {
    let held = Held::new("h");
    let m = with(&held, 4, BUFFER, Options { store_attempts: 1, ..Options::default() });
    store(&m, &keys(1, 4));
    settle().await;
    held.refuse(ErrorKind::Io);
    let u = m.usage();
    assert_eq!((u.resident, u.cache.used, u.stats.lost), (0, 0, 4));
    assert_eq!(store(&m, &keys(2, 4)), 4, "the room is there again");
}

#[tokio::test]
async fn buffer_only_without_any_adapter_drops_what_is_committed_at_once() {
    let m = manager(2, 0, BUFFER, Options::default());
    let rq = m.request(SECOND);
    let Some(Reserved::Granted(chunk)) =
        m.try_reserve(&rq, &keys(1, 1), &KeyMask::all(1), &layouts(), Grant::Part).into_iter().next()
    else {
        panic!()
    };
    assert_eq!(m.commit(vec![chunk]), [Committed::Passed]);
    assert_eq!((m.usage().cache.used, m.usage().stats.lost), (0, 1));
}

#[tokio::test]
async fn a_reader_keeps_a_chunk_that_has_left_l1() {
    let held = Held::new("h");
    let m = with(&held, 4, BUFFER, Options::default());
    let k = keys(1, 1);
    store(&m, &k);
    let rq = m.request(SECOND);
    let hits = m.read(&rq, &k);
    settle().await;
    held.accept();
    assert!(m.read(&rq, &k).mask().is_clear());
    assert!(is_filled_with(hits.buf(0).unwrap(), 0));
    assert_eq!(m.usage().cache.buffers, 1);
    drop(hits);
    assert_eq!(m.usage().cache.used, 0);
}

#[tokio::test]
async fn staging_only_lookups_never_answer_from_l1() {
    let held = Held::new("h");
    let m = with(&held, 4, BUFFER, Options { lookup_l1: false, ..Options::default() });
    let k = keys(1, 2);
    store(&m, &k);
    let rq = m.request(SECOND);
    assert!(m.read(&rq, &k).mask().is_clear());
    settle().await;
    held.accept();
    let lookup = m.lookup(&rq, &shared(&k)).await;
    assert_eq!((lookup.l1().count(), lookup.l2().count()), (0, 2));
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    held.serve();
    let loaded = loading.finish().await;
    assert!((0..2).all(|i| is_filled_with(loaded.hits.buf(i).unwrap(), i as u8)));
    assert_eq!((m.usage().cache.used, m.usage().staging.buffers), (0, 2), "nothing is written back");
    drop(loaded);
    assert_eq!(m.usage().staging.used, 0);
}

// ---- loads -----------------------------------------------------------------------------------------------------------

/// A manager whose L2 has a chain, and whose L1 is empty.
async fn stored(held: &Arc<Held>, n: u8, policies: [&str; 3]) -> (Manager, Vec<ObjectKey>) {
    let m = with(held, 8, policies, Options::default());
    let k = keys(1, n);
    store(&m, &k);
    settle().await;
    held.accept();
    m.clear();
    (m, k)
}

#[tokio::test]
async fn each_key_is_answered_as_it_arrives() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 3, CACHE).await;
    let rq = m.request(SECOND);
    let lookup = m.lookup(&rq, &shared(&k)).await;
    let mut loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    let rest = held.gets.lock().split_off(1);
    held.serve();
    let (position, answer) = loading.next().await.unwrap();
    assert!(position == 0 && matches!(&answer, LoadAnswer::Hit(p) if matches!(p.source(), TierId::L2(_))));
    held.gets.lock().extend(rest);
    held.serve();
    assert_eq!(loading.next().await.unwrap().0, 1);
    assert_eq!(loading.next().await.unwrap().0, 2);
    assert!(loading.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_a_prefix_is_the_answer_and_late_bytes_leak_nothing() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 3, RETAIN).await;
    let rq = m.request(SECOND);
    let lookup = m.lookup(&rq, &shared(&k)).await;
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    let rest = held.gets.lock().split_off(1);
    held.serve();
    let begun = tokio::time::Instant::now();
    let loaded = loading.finish().await;
    assert_eq!(begun.elapsed().as_millis(), 1000);
    assert_eq!((loaded.hits.mask().prefix(), loaded.misses.len(), m.usage().stats.load_timeouts), (1, 2, 2));
    held.gets.lock().extend(rest);
    held.serve();
    drop(loaded);
    settle().await;
    let u = m.usage();
    assert_eq!((u.pinned, u.cache.buffers), (0, u.resident as u64));
}

#[tokio::test]
async fn what_is_retained_stays_in_l1_and_what_is_temporary_does_not() {
    for (policies, resident) in [(RETAIN, 2), (CACHE, 0)] {
        let held = Held::new("h");
        let (m, k) = stored(&held, 2, policies).await;
        let rq = m.request(SECOND);
        let loading = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
        settle().await;
        held.serve();
        let loaded = loading.finish().await;
        assert_eq!(loaded.hits.mask().count(), 2);
        drop(loaded);
        let u = m.usage();
        assert_eq!((u.resident, u.pinned, u.staging.used), (resident, 0, 0));
    }
}

#[tokio::test]
async fn a_chunk_deleted_while_it_is_loaded_does_not_come_back() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 2, RETAIN).await;
    let rq = m.request(SECOND);
    let loading = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
    settle().await;
    m.delete(&rq, &k).await;
    held.serve();
    let loaded = loading.finish().await;
    assert_eq!(loaded.hits.mask().count(), 2, "its reader may finish");
    assert!(m.read(&rq, &k).mask().is_clear());
    drop(loaded);
    assert_eq!((m.usage().cache.used, m.usage().pinned), (0, 0));
}

#[tokio::test]
async fn bytes_of_another_layout_are_a_miss_in_l1_too() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    let k = keys(1, 2);
    store(&m, &k);
    let rq = m.request(SECOND);
    let other = kvstrata_manager::Layouts::from(kvstrata_core::Layout::opaque(100).unwrap());
    let loaded = m.load(m.lookup(&rq, &shared(&k)).await, &other, LoadMode::Any).finish().await;
    assert!(loaded.hits.mask().is_clear());
    assert!(matches!(loaded.misses[0].1, LoadAnswer::Miss(kvstrata_l2::Miss::Layout)));
    settle().await;
    held.accept();
    assert_eq!(m.usage().pinned, 0);
}

#[tokio::test]
async fn two_loads_of_one_key_leave_one_copy() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 1, RETAIN).await;
    let rq = m.request(SECOND);
    let a = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
    let b = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
    settle().await;
    assert_eq!(held.serve(), 2);
    let (a, b) = (a.finish().await, b.finish().await);
    assert!(a.hits.buf(0).unwrap().same(b.hits.buf(0).unwrap()));
    drop((a, b));
    assert_eq!((m.usage().cache.buffers, m.usage().pinned), (1, 0));
}

#[tokio::test]
async fn a_prefix_load_stops_at_the_first_gap_and_any_does_not() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 3, CACHE).await;
    held.has.lock().remove(&k[1]);
    for (mode, asked) in [(LoadMode::Prefix, 1), (LoadMode::Any, 2)] {
        let rq = m.request(SECOND);
        let loading = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), mode);
        settle().await;
        assert_eq!(held.serve(), asked);
        assert_eq!(loading.finish().await.hits.mask().count(), asked);
    }
}

#[tokio::test]
async fn wrong_bytes_are_a_miss() {
    let held = Held::new("h");
    let (m, k) = stored(&held, 2, CACHE).await;
    held.has.lock().get_mut(&k[1]).unwrap().0[CHUNK / 2] ^= 1;
    let rq = m.request(SECOND);
    let loading = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
    settle().await;
    held.serve();
    let loaded = loading.finish().await;
    assert_eq!(loaded.hits.mask().iter().collect::<Vec<_>>(), [0]);
    assert!(matches!(loaded.misses[..], [(1, LoadAnswer::Miss(kvstrata_l2::Miss::Digest))]));
    assert_eq!(m.usage().stats.load_misses, 1);
}

#[tokio::test]
async fn a_full_staging_budget_gives_a_prefix_and_an_error_and_starves_nobody() {
    let held = Held::new("h");
    let m = manager(8, 2, CACHE, Options::default());
    m.add_adapter(held.adapter(), 1).unwrap();
    let k = keys(1, 4);
    store(&m, &k);
    settle().await;
    held.accept();
    m.clear();
    let rq = m.request(SECOND);
    let loading = m.load(m.lookup(&rq, &shared(&k)).await, &layouts(), LoadMode::Prefix);
    settle().await;
    held.serve();
    let loaded = loading.finish().await;
    assert_eq!(loaded.hits.mask().prefix(), 2);
    assert!(matches!(&loaded.misses[0].1, LoadAnswer::Failed(e) if e.kind() == ErrorKind::NoSpace));
    assert_eq!(store(&m, &keys(2, 8)), 8, "the cache budget is untouched");
}

#[tokio::test]
async fn a_store_that_ends_after_a_delete_is_undone() {
    // The adapter cannot remove, so what shows is that the hook stays silent and L1 lets go.
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    let hook = Arc::<Calls>::default();
    let k = keys(1, 1);
    store_with(&m, &k, &hook);
    settle().await;
    let rq = m.request(SECOND);
    let deleted = m.delete(&rq, &k).await;
    assert_eq!((deleted.l1.count(), deleted.failed.len()), (1, 1), "and it says who could not delete");
    held.accept();
    assert!(hook.0.lock().is_empty());
    assert_eq!((m.usage().resident, m.usage().cache.used), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_hook_of_a_chunk_that_leaves_with_its_last_pin_comes_if_anybody_has_it() {
    let (good, bad) = (Held::new("good"), Held::new("bad"));
    let m = with(&good, 4, CACHE, Options::default());
    m.add_adapter(bad.adapter(), 1).unwrap();
    let hook = Arc::<Calls>::default();
    let k = keys(1, 1);
    store_with(&m, &k, &hook);
    settle().await;
    // One has it, the other one waits for its next try, and a reader holds it when L1 lets go.
    good.accept();
    bad.refuse(ErrorKind::Io);
    let reader = m.read(&m.request(SECOND), &k);
    m.clear();
    assert!(hook.0.lock().is_empty());
    drop(reader);
    assert_eq!(hook.0.lock().len(), 1);
    assert_eq!((m.usage().cache.used, m.usage().stats.lost), (0, 0));
}

#[tokio::test]
async fn a_store_that_ends_after_a_clear_and_a_delete_is_undone() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    let removing = Held::new("removing");
    m.add_adapter(removing.removing(), 1).unwrap();
    let k = keys(1, 2);
    store(&m, &k);
    settle().await;
    m.clear();
    let deleted = m.delete(&m.request(SECOND), &k[..1]).await;
    assert!(deleted.l1.is_clear(), "L1 has let go of it already");
    removing.removed.lock().clear();
    held.accept();
    removing.accept();
    settle().await;
    assert_eq!(*removing.removed.lock(), k[..1], "what was deleted is taken away again, and nothing else");
    assert_eq!((m.usage().cache.used, m.usage().pinned), (0, 0));
}

// ---- adapters come and go --------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_adapter_is_removed_when_its_stores_are_done() {
    let (one, two) = (Held::new("one"), Held::new("two"));
    let m = with(&one, 4, CACHE, Options::default());
    assert_eq!(m.add_adapter(one.adapter(), 1).unwrap_err().kind(), ErrorKind::Invalid, "the name is taken");
    let id = m.add_adapter(two.adapter(), 1).unwrap();
    store(&m, &keys(1, 1));
    settle().await;
    assert_eq!(m.remove_adapter(id, SECOND).await.unwrap_err().kind(), ErrorKind::TimedOut);
    store(&m, &keys(2, 1));
    settle().await;
    assert_eq!((one.puts.lock().len(), two.puts.lock().len()), (2, 1), "no new work for the one that leaves");
    two.accept();
    m.remove_adapter(id, SECOND).await.unwrap();
    assert_eq!(m.adapters().len(), 1);
    assert_eq!(m.remove_adapter(id, SECOND).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_stores_and_says_when_they_did_not_end() {
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    store(&m, &keys(1, 1));
    settle().await;
    assert_eq!(m.flush(SECOND).await.unwrap_err().kind(), ErrorKind::TimedOut);
    let ending = tokio::spawn({
        let m = m.clone();
        async move { m.shutdown(SECOND).await }
    });
    settle().await;
    held.accept();
    ending.await.unwrap().unwrap();
    let held = Held::new("h");
    let m = with(&held, 4, CACHE, Options::default());
    store(&m, &keys(1, 1));
    settle().await;
    assert_eq!(m.shutdown(SECOND).await.unwrap_err().kind(), ErrorKind::TimedOut);
}
