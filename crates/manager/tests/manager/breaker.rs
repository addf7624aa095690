//! Adapters that hang, fail or panic, behind their breakers, beside one that works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{ErrorKind, Instant, Result};
use kvstrata_l2::{
    Adapter, BreakerOptions, Found, Get, GetSink, L2Desc, L2Store, LimitOptions, Phase, Probe, Put, PutSink,
};
use kvstrata_manager::{AdapterOptions, InFlight, LoadMode, Manager, ManagerUsage, Options};

use crate::common::{CHUNK, Held, SECOND, keys, layouts, manager, settle, store};

const CACHE: [&str; 3] = ["lru", "default", "default"];

fn tripping() -> AdapterOptions {
    let breaker =
        BreakerOptions { consecutive: 2, cool_down: Duration::from_secs(1), ..BreakerOptions::default() };
    AdapterOptions { breaker: Some(breaker), ..AdapterOptions::default() }
}

fn phase(u: &ManagerUsage, name: &str) -> Phase {
    u.adapters.iter().find(|a| a.name == name).unwrap().breaker.unwrap().phase
}

/// How many of a chain a load brings.
async fn loaded(m: &Manager, chain: u8, n: u8, within: Duration, serve: &Held) -> usize {
    let rq = m.request(within);
    let lookup = m.lookup(&rq, &keys(chain, n)[..].into()).await;
    let loading = m.load(lookup, &layouts(), LoadMode::Prefix);
    settle().await;
    serve.serve();
    loading.finish().await.hits.mask().count()
}

#[tokio::test(start_paused = true)]
async fn a_hung_adapter_is_left_alone_and_comes_back_by_itself() {
    let (good, hung) = (Held::new("good"), Held::new("hung"));
    let m = manager(64, 64, CACHE, Options { store_attempts: 1, ..Options::default() });
    m.add_adapter(good.adapter(), tripping()).unwrap();
    m.add_adapter(hung.adapter(), tripping()).unwrap();
    for chain in 0..2 {
        store(&m, &keys(chain, 2));
        settle().await;
        good.accept();
    }
    assert_eq!((phase(&m.usage(), "hung"), hung.puts.lock().len()), (Phase::Closed, 4));
    tokio::time::sleep(Options::default().store_timeout + Duration::from_millis(1)).await;
    settle().await;
    assert_eq!((phase(&m.usage(), "hung"), phase(&m.usage(), "good")), (Phase::Open, Phase::Closed));
    // It is not offered anything, and the other one goes on.
    store(&m, &keys(2, 2));
    settle().await;
    assert_eq!((good.accept(), hung.puts.lock().len()), (2, 4));
    let u = m.usage();
    assert_eq!((u.stats.store_skipped, u.stats.stored, u.storing), (2, 6, 0));
    m.clear();
    assert_eq!(loaded(&m, 2, 2, SECOND, &good).await, 2, "within the deadline");
    // After the cool-down one store goes through, and that it is taken closes the breaker.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(phase(&m.usage(), "hung"), Phase::HalfOpen);
    hung.puts.lock().clear();
    store(&m, &keys(3, 1));
    settle().await;
    assert_eq!(hung.accept(), 1);
    assert_eq!(phase(&m.usage(), "hung"), Phase::Closed);
    assert_eq!(good.accept(), 1);
    assert_eq!(m.usage().pinned, 0, "nothing is held");
}

#[tokio::test(start_paused = true)]
async fn what_a_hung_adapter_holds_is_bounded_and_the_rest_of_l1_goes_on() {
    let hung = Held::new("hung");
    let m = manager(16, 0, CACHE, Options { store_attempts: 1, ..Options::default() });
    let limit = LimitOptions { in_flight: 4 * CHUNK as u64, for_loads: 0, waiting: 2 * CHUNK as u64 };
    m.add_adapter(hung.adapter(), AdapterOptions { limit: InFlight::Of(limit), ..tripping() }).unwrap();
    for chain in 0..100 {
        assert_eq!(store(&m, &keys(chain, 2)), 2, "chain {chain}");
        settle().await;
        let u = m.usage();
        assert!(u.pinned <= 6, "{} chunks are held", u.pinned);
    }
    let u = m.usage();
    assert_eq!((u.pinned, u.stats.declined, u.resident), (6, 0, 16));
    let in_flight = u.adapters[0].in_flight.unwrap();
    assert_eq!((in_flight.stores_in_flight, in_flight.stores_waiting), (4 * CHUNK as u64, 2 * CHUNK as u64));
    assert!(in_flight.refused > 100 && u.stats.store_gave_up > 100, "refused visibly: {in_flight:?}");
    drop(hung);
}

/// Panics in every call while the switch is on.
#[derive(Debug)]
struct Panicking(Arc<Held>, AtomicBool);

impl Panicking {
    fn check(&self) {
        assert!(!self.1.load(Ordering::Relaxed), "this adapter panics");
    }
}

#[async_trait]
impl L2Store for Panicking {
    fn desc(&self) -> &L2Desc {
        self.0.desc()
    }
    async fn put(&self, request: Put, done: PutSink) {
        self.check();
        self.0.put(request, done).await;
    }
    async fn get(&self, request: Get, done: GetSink) {
        self.check();
        self.0.get(request, done).await;
    }
    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.check();
        self.0.probe(request).await
    }
    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.shutdown(deadline).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_adapter_that_panics_is_left_alone_and_comes_back_by_itself() {
    let (good, bad) = (Held::new("good"), Held::new("bad"));
    let m = manager(16, 16, CACHE, Options { store_attempts: 1, ..Options::default() });
    m.add_adapter(good.adapter(), tripping()).unwrap();
    let panicking = Arc::new(Panicking(Arc::clone(&bad), AtomicBool::new(true)));
    let adapter =
        Adapter { store: Arc::clone(&panicking) as _, remove: None, list: None, usage: None, quotas: None };
    m.add_adapter(adapter, tripping()).unwrap();
    for chain in 0..3 {
        store(&m, &keys(chain, 2));
        settle().await;
        assert_eq!(good.accept(), 2);
    }
    let u = m.usage();
    assert_eq!(
        (phase(&u, "bad"), phase(&u, "good"), u.storing, u.pinned),
        (Phase::Open, Phase::Closed, 0, 0)
    );
    m.clear();
    for chain in 0..3 {
        assert_eq!(loaded(&m, chain, 2, SECOND, &good).await, 2);
    }
    panicking.1.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    store(&m, &keys(7, 1));
    settle().await;
    assert_eq!((bad.accept(), good.accept()), (1, 1));
    assert_eq!(phase(&m.usage(), "bad"), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_an_error_with_advice_and_a_closed_one_changes_nothing() {
    let bad = Held::new("bad");
    let m = manager(16, 0, CACHE, Options { store_attempts: 1, ..Options::default() });
    let id = m.add_adapter(bad.adapter(), tripping()).unwrap();
    for chain in 0..2 {
        store(&m, &keys(chain, 1));
        settle().await;
        bad.refuse(ErrorKind::Io);
    }
    let u = m.usage();
    assert_eq!((phase(&u, "bad"), u.adapters[0].meter.put.outcome("io")), (Phase::Open, 2));
    m.remove_adapter(id, SECOND).await.unwrap();
    m.add_adapter(bad.adapter(), AdapterOptions { breaker: None, ..tripping() }).unwrap();
    for chain in 2..9 {
        store(&m, &keys(chain, 1));
        settle().await;
        assert_eq!(bad.refuse(ErrorKind::Io), 1);
    }
    assert!(m.usage().adapters[0].breaker.is_none());
}
