//! Several adapters that share the keys and the loads.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Held, SECOND, keys, layouts, manager, settle, store};
use kvstrata_core::ObjectKey;
use kvstrata_manager::{LoadMode, Loading, Manager, Options};

/// Starts to load what L2 has of `keys`; the answers are the test's to give.
async fn loading(m: &Manager, keys: &[ObjectKey], within: Duration) -> Loading {
    let rq = m.request(within);
    let lookup = m.lookup(&rq, &keys.into()).await;
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    loading
}

fn held(adapters: [&Arc<Held>; 2]) -> [usize; 2] {
    adapters.map(|a| a.gets.lock().len())
}

#[tokio::test]
async fn striped_stores_each_key_once_by_weight_and_all_are_found() {
    let (light, heavy) = (Held::new("light"), Held::new("heavy"));
    let m = manager(40, 0, ["lru", "striped", "default"], Options::default());
    m.add_adapter(light.adapter(), 1).unwrap();
    m.add_adapter(heavy.adapter(), 1000).unwrap();
    assert_eq!(store(&m, &keys(1, 40)), 40);
    settle().await;
    let (few, many) = (light.accept(), heavy.accept());
    assert_eq!(few + many, 40);
    assert!(few <= 2, "{few} of 40 for one part in a thousand");
    m.clear();
    let lookup = m.lookup(&m.request(SECOND), &keys(1, 40)[..].into()).await;
    assert_eq!((lookup.l1().count(), lookup.l2().count()), (0, 40));
}

/// Two adapters with everything; nothing stays in L1.
async fn mirrored() -> (Manager, [Arc<Held>; 2]) {
    let adapters = [Held::new("first"), Held::new("second")];
    let m = manager(8, 64, ["lru", "default", "fastest"], Options::default());
    for a in &adapters {
        m.add_adapter(a.adapter(), 1).unwrap();
    }
    assert_eq!(store(&m, &keys(1, 8)), 8);
    settle().await;
    adapters.iter().for_each(|a| assert_eq!(a.accept(), 8));
    m.clear();
    (m, adapters)
}

#[tokio::test(start_paused = true)]
async fn fastest_learns_who_is_fast_and_forgets_it_in_time() {
    let (m, [a, b]) = mirrored().await;
    let k = keys(1, 8);
    let all = loading(&m, &k, SECOND).await;
    assert_eq!(held([&a, &b]), [4, 4], "nothing is known");
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_eq!(b.serve(), 4);
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(a.serve(), 4);
    assert!(all.finish().await.misses.is_empty());

    let all = loading(&m, &k, SECOND).await;
    assert_eq!(held([&a, &b]), [0, 8], "eight from b are there before one from a");
    b.serve();
    drop(all);

    let soon = Duration::from_millis(100);
    b.has.lock().clear();
    let none = loading(&m, &k, soon).await;
    assert_eq!((held([&a, &b]), none.finish().await.misses.len()), ([0, 0], 8), "a takes longer than that");

    tokio::time::advance(Duration::from_secs(31)).await;
    let _all = loading(&m, &k, soon).await;
    assert_eq!(held([&a, &b]), [8, 0], "what a takes is not known any more");
}

#[tokio::test(start_paused = true)]
async fn misses_make_nobody_fast_and_a_wait_in_vain_makes_slow() {
    let (m, [a, b]) = mirrored().await;
    let k = keys(1, 8);
    let all = loading(&m, &k, SECOND).await;
    tokio::time::advance(Duration::from_millis(10)).await;
    a.serve();
    b.has.lock().clear();
    b.serve();
    assert_eq!(all.finish().await.misses.len(), 4);
    // What b knows is back, and it is as unknown as before: half of the keys.
    *b.has.lock() = a.has.lock().clone();
    let all = loading(&m, &k, SECOND).await;
    assert_eq!(held([&a, &b]), [4, 4]);
    a.serve();
    assert_eq!(all.finish().await.misses.len(), 4, "b never answers");
    settle().await;
    b.gets.lock().clear();
    let _all = loading(&m, &k, SECOND).await;
    assert_eq!(held([&a, &b]), [8, 0]);
}
