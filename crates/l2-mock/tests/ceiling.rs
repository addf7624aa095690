//! What the mock adds to a plain store, under virtual time.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Affinity, ErrorKind, KeyScope, KvRank, Layout, Result};
use kvstrata_l2::{Answer, Context, Get, GetItem, GetSink, Put, PutSink, Stored};
use kvstrata_l2_mock::{Faults, Mock, MockConfig};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::trace;
use parking_lot::Mutex;

const MIB: usize = 1 << 20;

struct Rig {
    mock: Mock,
    cx: Context,
    arena: Arena,
    scope: Arc<KeyScope>,
}

impl Rig {
    fn new(config: &MockConfig) -> Self {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        Self {
            mock: Mock::open(config, cx.clone()).unwrap(),
            cx,
            arena: Arena::new(Memory::Private, 32 * MIB).unwrap(),
            scope: KeyScope::new("m", KvRank::single(), 0, "").unwrap(),
        }
    }

    async fn put(&self, ids: std::ops::Range<u64>, len: usize, wait: Duration) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(len as u64).unwrap();
        let item = |id| trace::key(&self.scope, id);
        let items = ids.map(|id| self.arena.item(&item(id), &item(id), &layout).unwrap()).collect::<Vec<_>>();
        let got = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |i: usize, a| to.lock().push((i, a))));
        let request = Put { items, deadline: self.cx.timer.now() + wait, affinity: Affinity::default() };
        self.mock.adapter().store.put(request, sink).await;
        let mut got = std::mem::take(&mut *got.lock());
        got.sort_by_key(|(i, _)| *i);
        got.into_iter().map(|(_, a)| a).collect()
    }

    async fn get(&self, id: u64, len: usize) -> Answer {
        let layout = Layout::opaque(len as u64).unwrap();
        let item = GetItem { key: trace::key(&self.scope, id), layout, buf: self.arena.empty(len).unwrap() };
        let got = Arc::new(Mutex::new(None));
        let to = Arc::clone(&got);
        let sink = GetSink::new(1, Arc::new(move |_, a| *to.lock() = Some(a)));
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        let request = Get { items: vec![item], deadline, affinity: Affinity::default() };
        self.mock.adapter().store.get(request, sink).await;
        got.lock().take().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn the_ceiling_is_kept_by_many_small_transfers_and_what_was_reached_is_reported() {
    // 1 gb per second: 16 MiB take 15.625 ms.
    let rig = Rig::new(&MockConfig::new(1.0, 1.0));
    let start = rig.cx.timer.now();
    for round in 0..16 {
        let ids = round * 16..(round + 1) * 16;
        assert!(rig.put(ids, MIB / 16, Duration::from_secs(60)).await.iter().all(Result::is_ok));
    }
    let took = rig.cx.timer.now() - start;
    // One burst of 2 ms comes for free, and the clock counts in milliseconds.
    assert!(took >= Duration::from_micros(13_625) && took <= Duration::from_millis(17), "{took:?}");
    let stats = rig.mock.stats();
    assert_eq!((stats.stored_bytes, stats.loaded_bytes), (16 << 20, 0));
    assert!((0.9..=1.15).contains(&stats.reached_gb()), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_above_what_the_ceiling_lets_through_by_its_deadline_is_answered_in_part() {
    let rig = Rig::new(&MockConfig::new(1.0, 1.0));
    // 16 MiB in 8 ms at 1 gb per second: the first half, and a burst.
    let answers = rig.put(0..16, MIB, Duration::from_millis(8)).await;
    let stored = answers.iter().take_while(|a| a.is_ok()).count();
    assert!((6..=11).contains(&stored), "{stored} of 16");
    let timed_out = |a: &Result<Stored>| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut);
    assert!(answers[stored..].iter().all(timed_out));
}

#[tokio::test(start_paused = true)]
async fn delays_and_failures_come_as_configured() {
    let config = MockConfig {
        fail_store: Faults::EveryNth(3),
        fail_load: Faults::EveryNth(2),
        delay_ms: 40,
        ..MockConfig::new(1.0, 100.0)
    };
    let rig = Rig::new(&config);
    let start = rig.cx.timer.now();
    let answers = rig.put(0..6, 5000, Duration::from_secs(60)).await;
    assert!(rig.cx.timer.now() - start >= Duration::from_millis(40));
    let failed: Vec<usize> = (0..6).filter(|i| answers[*i].is_err()).collect();
    assert_eq!(failed, [2, 5]);
    assert_eq!(answers[2].as_ref().unwrap_err().kind(), ErrorKind::Io);
    assert!(matches!(rig.get(0, 5000).await, Answer::Loaded(_)));
    assert!(matches!(rig.get(0, 5000).await, Answer::Failed(e, Some(_)) if e.kind() == ErrorKind::Io));
    assert!(matches!(rig.get(2, 5000).await, Answer::Miss(..)), "a failed store left nothing");
    let stats = rig.mock.stats();
    assert_eq!((stats.failed_stores, stats.failed_loads), (2, 1));
    assert_eq!(rig.mock.adapter().usage.unwrap().usage().used, 4 * 5000);
}
