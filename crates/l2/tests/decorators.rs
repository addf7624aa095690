//! What each decorator adds, under virtual time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, Result, Retry};
use kvstrata_l2::{
    Adapter, Answer, Breaker, BreakerOptions, Checked, Context, Found, Get, GetItem, GetSink, L2Desc,
    L2Quotas, L2Store, LimitOptions, Limited, MemoryKinds, Metered, Phase, Probe, Put, PutSink, Stored,
    TenantUsage, Verify,
};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::rng::Rng;
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

const LEN: usize = 4096;
const MS: Duration = Duration::from_millis(1);

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
            arena: Arena::new(Memory::Private, 2 << 20).unwrap(),
            scope: KeyScope::new("m", KvRank::single(), 0, "").unwrap(),
        }
    }

    fn usual() -> Self {
        Self::new(&MockConfig::new(1.0, 100.0))
    }

    fn now(&self) -> Instant {
        self.cx.timer.now()
    }

    async fn pass(&self, time: Duration) {
        self.cx.timer.sleep_until(self.now() + time).await;
    }

    async fn put(
        &self,
        adapter: &Adapter,
        ids: impl IntoIterator<Item = u64>,
        wait: Duration,
    ) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(LEN as u64).unwrap();
        let key = |id| trace::key(&self.scope, id);
        let items: Vec<_> =
            ids.into_iter().map(|id| self.arena.item(&key(id), &key(id), &layout).unwrap()).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Put { items, deadline: self.now() + wait, affinity: Affinity::default() };
        adapter.store.put(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(|a| a.expect("an answer")).collect()
    }

    async fn get(
        &self,
        adapter: &Adapter,
        ids: impl IntoIterator<Item = u64>,
        wait: Duration,
    ) -> Vec<Answer> {
        let layout = Layout::opaque(LEN as u64).unwrap();
        let item = |id| {
            let buf = self.arena.empty(LEN).unwrap();
            GetItem { key: trace::key(&self.scope, id), layout: layout.clone(), buf }
        };
        let items: Vec<_> = ids.into_iter().map(item).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = GetSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Get { items, deadline: self.now() + wait, affinity: Affinity::default() };
        adapter.store.get(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(|a| a.expect("an answer")).collect()
    }

    async fn probe(
        &self,
        adapter: &Adapter,
        ids: impl IntoIterator<Item = u64>,
    ) -> Vec<Result<Option<Found>>> {
        let keys = ids.into_iter().map(|id| trace::key(&self.scope, id)).collect();
        let request = Probe { keys, deadline: self.now() + 10 * MS, affinity: Affinity::default() };
        adapter.store.probe(request).await
    }

    fn breaker(&self, inner: Adapter, consecutive: u32) -> Breaker {
        let options = BreakerOptions {
            consecutive,
            patience: 5 * MS,
            cool_down: 100 * MS,
            cool_down_max: 400 * MS,
            ..BreakerOptions::default()
        };
        Breaker::new(inner, options, &self.cx).unwrap()
    }

    fn limited(&self, in_flight: usize, waiting: usize) -> Limited {
        let options = LimitOptions { waiting: waiting as u64, ..LimitOptions::new(in_flight as u64) };
        Limited::new(self.mock.adapter(), options, &self.cx).unwrap()
    }
}

fn failed(answer: &Answer) -> Option<ErrorKind> {
    match answer {
        Answer::Failed(e, _) => Some(e.kind()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_adapter_is_left_alone_and_taken_back_when_it_wakes() {
    let rig = Rig::usual();
    let Breaker { adapter, state } = rig.breaker(rig.mock.adapter(), 3);
    assert!(rig.put(&adapter, 0..2, 10 * MS).await.iter().all(Result::is_ok));
    rig.mock.hang();
    for n in 0..3 {
        assert_eq!(state.view().phase, Phase::Closed, "after {n}");
        assert_eq!(failed(&rig.get(&adapter, [0], 10 * MS).await[0]), Some(ErrorKind::TimedOut));
    }
    let opened = rig.now();
    assert_eq!((state.view().phase, state.view().trips, state.view().since), (Phase::Open, 1, opened));
    // Refused at once, with advice, and the buffers come back.
    let answers = rig.get(&adapter, 0..2, 1000 * MS).await;
    for answer in &answers {
        let Answer::Failed(e, Some(_)) = answer else { panic!("{answer:?}") };
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::After(100 * MS)));
    }
    drop(answers);
    assert_eq!(
        rig.put(&adapter, [5], 1000 * MS).await[0].as_ref().unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(rig.probe(&adapter, [0]).await[0].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!((rig.now(), state.view().refused), (opened, 3));
    // A trial that hangs opens it again, for longer.
    rig.pass(100 * MS).await;
    assert_eq!(state.view().phase, Phase::HalfOpen);
    let (trial, other) = tokio::join!(rig.get(&adapter, [0], 10 * MS), rig.get(&adapter, [1], 10 * MS));
    assert_eq!(
        (failed(&trial[0]), failed(&other[0])),
        (Some(ErrorKind::TimedOut), Some(ErrorKind::Unavailable))
    );
    drop((trial, other));
    rig.pass(199 * MS).await;
    assert_eq!((state.view().phase, state.view().trips), (Phase::Open, 2));
    rig.mock.resume();
    rig.pass(MS).await;
    assert!(matches!(rig.get(&adapter, [0], 10 * MS).await[0], Answer::Loaded(_)));
    assert_eq!(state.view().phase, Phase::Closed);
    adapter.store.shutdown(rig.now() + 100 * MS).await.unwrap();
    assert_eq!(rig.arena.in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_failure_does_not_open_it() {
    let rig = Rig::new(&MockConfig::new(8192.0 / f64::from(1 << 30), 100.0));
    let Breaker { adapter, state } = rig.breaker(rig.mock.adapter(), 1);
    assert!(matches!(rig.get(&adapter, [9], 10 * MS).await[0], Answer::Miss(..)));
    let stored = rig.put(&adapter, 0..3, 10 * MS).await;
    assert_eq!(stored[2].as_ref().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(rig.put(&adapter, [3], 10 * MS).await[0].as_ref().unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(rig.probe(&adapter, [9]).await[0].as_ref().unwrap().is_none());
    rig.pass(MS).await;
    let late = rig.get(&adapter, [0], Duration::ZERO).await;
    assert_eq!(failed(&late[0]), Some(ErrorKind::TimedOut), "too late before it began");
    assert_eq!((state.view().phase, state.view().trips), (Phase::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn panics_are_answered_and_open_it_and_it_closes_when_they_end() {
    let rig = Rig::usual();
    let panics = Op::ALL.map(|op| Rule::new(op, Fault::Panic));
    let config = FaultConfig::scripted(panics.to_vec());
    let injector = Injector::new(rig.mock.adapter(), &config, rig.cx.clone()).unwrap();
    let Breaker { adapter, state } = rig.breaker(injector.adapter(), 4);
    let answers = rig.put(&adapter, 0..3, 10 * MS).await;
    assert!(
        answers.iter().all(|a| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::Internal)),
        "{answers:?}"
    );
    let answers = rig.get(&adapter, 0..3, 10 * MS).await;
    assert!(answers.iter().all(|a| failed(a) == Some(ErrorKind::Internal)), "{answers:?}");
    assert_eq!(rig.probe(&adapter, [0]).await[0].as_ref().unwrap_err().kind(), ErrorKind::Internal);
    let removed =
        adapter.remove.as_ref().unwrap().remove([trace::key(&rig.scope, 0)].into(), rig.now() + MS).await;
    let e = removed[0].as_ref().unwrap_err();
    assert!(e.kind() == ErrorKind::Internal && e.to_string().contains("remove panics"), "{e}");
    assert_eq!((state.view().phase, rig.arena.in_use()), (Phase::Open, 0));
    injector.arm(false);
    rig.pass(100 * MS).await;
    // A lookup that works is no proof, and lets the next call try.
    assert!(rig.probe(&adapter, [0]).await[0].is_ok());
    assert_eq!(state.view().phase, Phase::HalfOpen);
    assert_eq!(rig.put(&adapter, [0], 10 * MS).await[0].as_ref().unwrap(), &Stored::Written);
    assert_eq!(state.view().phase, Phase::Closed);
}

/// Breaks its obligations: it never answers.
#[derive(Debug)]
struct Stuck(L2Desc);

impl Stuck {
    fn adapter() -> Adapter {
        let desc = L2Desc {
            name: "stuck".into(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: 10,
            durable: false,
            shared: false,
        };
        Adapter { store: Arc::new(Self(desc)), remove: None, list: None, usage: None, quotas: None }
    }
}

#[async_trait]
impl L2Store for Stuck {
    fn desc(&self) -> &L2Desc {
        &self.0
    }
    async fn put(&self, _: Put, _: PutSink) {
        panic!("nothing is stored in this test")
    }
    async fn get(&self, request: Get, done: GetSink) {
        std::future::pending::<()>().await;
        drop((request, done));
    }
    async fn probe(&self, _: Probe) -> Vec<Result<Option<Found>>> {
        std::future::pending().await
    }
    async fn shutdown(&self, _: Instant) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_counts_when_the_deadline_passes_whether_or_not_the_adapter_answers() {
    let rig = Rig::usual();
    let Breaker { adapter, state } = rig.breaker(Stuck::adapter(), 2);
    assert_eq!(rig.probe(&adapter, [0]).await[0].as_ref().unwrap_err().kind(), ErrorKind::TimedOut);
    let get = tokio::time::timeout(11 * MS, rig.get(&adapter, [0], 10 * MS));
    assert!(get.await.is_err(), "answering is the adapter's duty");
    assert_eq!((state.view().phase, state.view().trips), (Phase::Open, 1));
    assert_eq!(rig.arena.in_use(), 0, "the call was given up, and all it had with it");
}

#[tokio::test(start_paused = true)]
async fn deadlines_shorter_than_the_patience_open_it_for_nobody() {
    let rig = Rig::new(&MockConfig { delay_ms: 4, ..MockConfig::new(1.0, 100.0) });
    let Breaker { adapter, state } = rig.breaker(rig.mock.adapter(), 5);
    assert!(rig.put(&adapter, [0], 10 * MS).await[0].is_ok());
    for _ in 0..20 {
        assert_eq!(failed(&rig.get(&adapter, [0], MS).await[0]), Some(ErrorKind::TimedOut));
        rig.pass(10 * MS).await;
    }
    assert_eq!((state.view().phase, state.view().trips), (Phase::Closed, 0));
    assert!(matches!(rig.get(&adapter, [0], 10 * MS).await[0], Answer::Loaded(_)));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_caller_drops_proves_nothing() {
    let rig = Rig::usual();
    let Breaker { adapter, state } = rig.breaker(Stuck::adapter(), 1);
    for _ in 0..5 {
        let get = tokio::time::timeout(MS, rig.get(&adapter, 0..3, 10 * MS));
        assert!(get.await.is_err(), "the adapter is stuck");
    }
    assert_eq!((state.view().phase, state.view().trips, rig.arena.in_use()), (Phase::Closed, 0, 0));
}

/// Fewer calls fit into the limit than open the breaker.
#[tokio::test(start_paused = true)]
async fn a_hang_that_fills_the_limit_opens_the_breaker_all_the_same() {
    for waiting in [0, 4 * LEN] {
        let rig = Rig::usual();
        let limited = rig.limited(2 * LEN, waiting);
        let Breaker { adapter, state } = rig.breaker(limited.adapter, 5);
        assert!(rig.put(&adapter, [0], 10 * MS).await[0].is_ok());
        rig.mock.hang();
        for n in 0..5 {
            assert_eq!(state.view().phase, Phase::Closed, "after {n}");
            drop(rig.get(&adapter, [0], 10 * MS).await);
            rig.pass(10 * MS).await;
        }
        assert_eq!((state.view().phase, rig.arena.in_use()), (Phase::Open, 2));
        rig.mock.resume();
        rig.pass(200 * MS).await;
        assert!(matches!(rig.get(&adapter, [0], 10 * MS).await[0], Answer::Loaded(_)));
        assert_eq!((state.view().phase, rig.arena.in_use()), (Phase::Closed, 0));
    }
}

/// Far more is asked of it than it can do: what it is late with is not long overdue, so those who wait are told `Busy`.
#[tokio::test(start_paused = true)]
async fn a_slow_adapter_with_a_full_limit_does_not_open_the_breaker() {
    let rig = Arc::new(Rig::new(&MockConfig { delay_ms: 40, ..MockConfig::new(1.0, 100.0) }));
    let limited = rig.limited(2 * LEN, 6 * LEN);
    let Breaker { adapter, state } = rig.breaker(limited.adapter, 5);
    assert!(rig.put(&adapter, [0], 100 * MS).await[0].is_ok());
    let (mut loaded, mut busy) = (0, 0);
    for _ in 0..5 {
        let calls: Vec<_> = (0..16)
            .map(|_| {
                let (rig, adapter) = (Arc::clone(&rig), adapter.clone());
                tokio::spawn(async move { rig.get(&adapter, [0], 100 * MS).await.remove(0) })
            })
            .collect();
        for call in calls {
            let answer = call.await.unwrap();
            loaded += u32::from(matches!(answer, Answer::Loaded(_)));
            busy += u32::from(failed(&answer) == Some(ErrorKind::Busy));
        }
        // The next ones come while the last two of these are late.
        rig.pass(5 * MS).await;
    }
    let counts = limited.state.counts();
    assert!(loaded >= 15 && busy >= 50 && counts.expired > 0 && counts.refused > 0, "{loaded} {counts:?}");
    assert_eq!((state.view().phase, state.view().trips), (Phase::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_in_flight_than_the_limit_and_loads_go_first() {
    // 4 KiB take 1 ms, beyond a burst of 2 ms.
    let rig = Rig::new(&MockConfig::new(1.0, 4096e3 / f64::from(1 << 30)));
    let limited = rig.limited(8 * LEN, 100 * LEN);
    let (adapter, state) = (&limited.adapter, &limited.state);
    assert!(rig.put(adapter, 0..4, 1000 * MS).await.iter().all(Result::is_ok));
    rig.pass(100 * MS).await;
    let start = rig.now();
    let took = async |call: &mut (dyn Future<Output = ()> + Unpin)| {
        call.await;
        rig.now() - start
    };
    let watch = async {
        let (mut peak, mut waiting) = (0, 0);
        for _ in 0..40 {
            let counts = state.counts();
            peak = peak.max(counts.loads_in_flight + counts.stores_in_flight);
            waiting = waiting.max(counts.stores_waiting);
            assert!(counts.stores_in_flight <= 6 * LEN as u64, "a quarter is kept for loads: {counts:?}");
            rig.pass(MS).await;
        }
        (peak, waiting)
    };
    let mut stores = Box::pin(async {
        assert!(rig.put(adapter, 10..40, 1000 * MS).await.iter().all(Result::is_ok));
    });
    let mut loads = Box::pin(async {
        rig.pass(2 * MS).await;
        let answers = rig.get(adapter, 0..4, 1000 * MS).await;
        assert!(answers.iter().all(|a| matches!(a, Answer::Loaded(_))));
    });
    let ((peak, waiting), stored, loaded) = tokio::join!(watch, took(&mut stores), took(&mut loads));
    assert!(peak <= 8 * LEN as u64 && peak > 6 * LEN as u64, "{peak}");
    assert!(waiting >= 20 * LEN as u64, "{waiting}");
    assert!(loaded < 25 * MS && stored > 30 * MS, "{loaded:?} {stored:?}");
    let counts = state.counts();
    assert_eq!(
        (counts.stores_in_flight, counts.loads_in_flight, counts.stores_waiting, counts.refused),
        (0, 0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_hung_device_holds_counts_until_it_wakes() {
    let rig = Rig::usual();
    let limited = rig.limited(8 * LEN, 4 * LEN);
    let (adapter, state) = (&limited.adapter, &limited.state);
    assert!(rig.put(adapter, 0..2, 10 * MS).await.iter().all(Result::is_ok));
    rig.mock.hang();
    // Six of them go, four wait, and the rest is refused at once.
    let answers = rig.put(adapter, 10..26, 10 * MS).await;
    let kinds: Vec<ErrorKind> = answers.into_iter().map(|a| a.unwrap_err().kind()).collect();
    assert_eq!(kinds[..6], [ErrorKind::TimedOut; 6]);
    assert_eq!(kinds[6..], [ErrorKind::Busy; 10]);
    let counts = state.counts();
    assert_eq!(
        (counts.stores_in_flight, counts.stores_waiting),
        (6 * LEN as u64, 0),
        "timed out, and still held"
    );
    assert_eq!((counts.expired, counts.refused), (4, 6));
    assert_eq!(rig.arena.in_use(), 6, "no more memory than the limit");
    // Whatever is tried now takes no more memory, and ends by its deadline.
    for _ in 0..5 {
        let start = rig.now();
        let stored = rig.put(adapter, 30..32, 10 * MS).await;
        assert!(
            stored.iter().all(|a| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut)),
            "{stored:?}"
        );
        assert!(rig.now() - start <= 11 * MS);
    }
    let loads = rig.get(adapter, 0..2, 10 * MS).await;
    assert!(
        loads.iter().all(|a| failed(a) == Some(ErrorKind::TimedOut)),
        "loads have a part of their own: {loads:?}"
    );
    drop(loads);
    assert_eq!((rig.arena.in_use(), state.counts().loads_in_flight), (8, 2 * LEN as u64));
    rig.mock.resume();
    rig.pass(MS).await;
    assert_eq!(
        (rig.arena.in_use(), state.counts().stores_in_flight, state.counts().loads_in_flight),
        (0, 0, 0)
    );
    assert!(rig.put(adapter, 10..26, 10 * MS).await[..8].iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_leaves_no_trace_and_the_oversized_go_alone() {
    let rig = Rig::usual();
    // Less than one object: each goes alone.
    let limited = rig.limited(1000, 10 * LEN);
    let (adapter, state) = (&limited.adapter, &limited.state);
    assert!(rig.put(adapter, 0..3, 10 * MS).await.iter().all(Result::is_ok));
    rig.mock.hang();
    {
        let first = rig.get(adapter, [0], 500 * MS);
        let second = rig.get(adapter, [1], 500 * MS);
        let both = async { tokio::join!(first, second) };
        assert!(tokio::time::timeout(MS, both).await.is_err(), "the device hangs");
    }
    let counts = state.counts();
    assert_eq!((counts.loads_in_flight, counts.loads_waiting), (LEN as u64, 0), "{counts:?}");
    rig.mock.resume();
    rig.pass(MS).await;
    assert_eq!((state.counts().loads_in_flight, rig.arena.in_use()), (0, 0));
    assert!(matches!(rig.get(adapter, [2], 10 * MS).await[0], Answer::Loaded(_)));
    for (options, field) in [
        (LimitOptions::new(0), "in_flight"),
        (LimitOptions { for_loads: 8, ..LimitOptions::new(8) }, "for_loads"),
    ] {
        let e = options.validate().unwrap_err();
        assert_eq!(e.context().next().unwrap().0, field, "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_key_is_counted_by_its_outcome_and_timed_when_it_is_answered() {
    let rig = Rig::new(&MockConfig { delay_ms: 40, ..MockConfig::new(1.0, 100.0) });
    let Metered { adapter, meter } = Metered::new(rig.mock.adapter(), &rig.cx);
    rig.put(&adapter, 0..3, 100 * MS).await;
    rig.put(&adapter, 2..4, 100 * MS).await;
    rig.put(&adapter, [9], 10 * MS).await;
    rig.get(&adapter, 0..6, 100 * MS).await;
    rig.probe(&adapter, 0..2).await;
    let remove = adapter.remove.as_ref().unwrap();
    let keys = [0, 77].map(|id| trace::key(&rig.scope, id));
    remove.remove(keys.into(), rig.now() + 100 * MS).await;
    adapter.list.as_ref().unwrap().list(None, 0).await.unwrap_err();
    adapter.list.as_ref().unwrap().list(None, 10).await.unwrap();

    let counts = meter.counts();
    let put = counts.put;
    assert_eq!((put.calls, put.keys, put.ended(), put.bytes), (3, 6, 6, 4 * LEN as u64));
    assert_eq!((put.outcome("ok"), put.outcome("present"), put.outcome("timed_out")), (4, 1, 1));
    assert_eq!((put.latency.count(), put.outcome("no such outcome")), (6, 0));
    let quick = put.latency.quantile(1.0 / 6.0).unwrap();
    let slow = put.latency.quantile(1.0).unwrap();
    assert!(quick >= 10 * MS && quick < 20 * MS && slow >= 40 * MS && slow <= 55 * MS, "{quick:?} {slow:?}");
    let get = counts.get;
    assert_eq!((get.outcome("ok"), get.outcome("absent"), get.bytes), (4, 2, 4 * LEN as u64));
    assert_eq!((counts.probe.calls, counts.probe.keys, counts.probe.outcome("timed_out")), (1, 2, 2));
    assert_eq!((counts.remove.outcome("ok"), counts.remove.outcome("absent")), (1, 1));
    assert_eq!(
        (counts.list.outcome("ok"), counts.list.outcome("invalid"), counts.list.latency.count()),
        (1, 1, 2)
    );
}

/// Everything at once over an adapter that fails, lies, hangs and panics: each key is answered once and in time, never with
/// a wrong byte, and when the faults end, all memory is back, nothing is in flight, and the breaker closes by itself.
#[tokio::test(start_paused = true)]
async fn a_storm_of_faults_passes_and_leaves_nothing_behind() {
    for seed in 1..=6u64 {
        let rig = Arc::new(Rig::usual());
        let all = FaultConfig::new(0.2, seed as i64, &Fault::ALL);
        let config = FaultConfig { hang_ms: Some(80), ..all };
        let injector = Injector::new(rig.mock.adapter(), &config, rig.cx.clone()).unwrap();
        let options = LimitOptions { waiting: 12 * LEN as u64, ..LimitOptions::new(16 * LEN as u64) };
        let limited = Limited::new(injector.adapter(), options, &rig.cx).unwrap();
        let breaker = rig.breaker(limited.adapter, 2);
        let metered = Metered::new(breaker.adapter, &rig.cx);
        let checked = Checked::new(metered.adapter, Verify::On, rig.cx.clone());
        let adapter = checked.adapter.clone();
        let task = |n: u64| {
            let (rig, adapter) = (Arc::clone(&rig), adapter.clone());
            let mut rng = Rng::new(seed * 100 + n);
            async move {
                for _ in 0..150 {
                    let first = rng.below(30);
                    let ids = first..first + 1 + rng.below(6);
                    let wait = (1 + rng.below(40) as u32) * MS;
                    let start = rig.now();
                    match rng.below(10) {
                        0..4 => drop(rig.put(&adapter, ids, wait).await),
                        4..9 => {
                            for (id, answer) in ids.clone().zip(rig.get(&adapter, ids, wait).await) {
                                if let Answer::Loaded(loaded) = answer {
                                    let key = trace::key(&rig.scope, id);
                                    assert!(loaded.verified);
                                    assert_eq!(payload::verify(&key, &loaded.buf.seal(LEN)).unwrap(), Ok(()));
                                }
                            }
                        }
                        _ => {
                            assert_eq!(
                                rig.probe(&adapter, ids.clone()).await.len() as u64,
                                ids.end - ids.start
                            );
                            drop(adapter.list.as_ref().unwrap().list(None, 10).await);
                        }
                    }
                    // The clock counts in milliseconds; a listing has no deadline, and waits for a delay at most.
                    assert!(
                        rig.now() - start <= wait.max(10 * MS) + 12 * MS,
                        "late by {:?}",
                        rig.now() - start - wait
                    );
                    rig.pass(rng.below(20) as u32 * MS).await;
                }
            }
        };
        let tasks: Vec<_> = (0..4).map(|n| tokio::spawn(task(n))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(breaker.state.view().trips > 0, "there was something to survive");
        injector.arm(false);
        rig.pass(1000 * MS).await;
        assert_eq!(rig.put(&adapter, [99], 10 * MS).await[0].as_ref().unwrap(), &Stored::Written);
        assert_eq!(breaker.state.view().phase, Phase::Closed);
        let counts = limited.state.counts();
        assert_eq!((counts.loads_in_flight, counts.stores_in_flight), (0, 0));
        assert_eq!((counts.loads_waiting, counts.stores_waiting, rig.arena.in_use()), (0, 0, 0));
        let counts = metered.meter.counts();
        for op in [counts.put, counts.get] {
            assert_eq!((op.ended(), op.latency.count()), (op.keys, op.keys), "each key ends once");
        }
        let injected = injector.counts();
        assert!(injected.iter().all(|(_, n)| n.effective <= n.injected) && injected.total().effective > 50);
        adapter.store.shutdown(rig.now() + 100 * MS).await.unwrap();
    }
}

#[tokio::test]
async fn no_ability_is_lost_and_none_appears() {
    struct Quotas;
    impl L2Quotas for Quotas {
        fn set_quota(&self, _: &str, _: Option<u64>) -> Result<()> {
            Ok(())
        }
        fn set_default_quota(&self, _: Option<u64>) -> Result<()> {
            Ok(())
        }
        fn tenants(&self) -> Vec<TenantUsage> {
            Vec::new()
        }
    }
    let rig = Rig::usual();
    let full = Adapter { quotas: Some(Arc::new(Quotas)), ..rig.mock.adapter() };
    let bare = Adapter { remove: None, list: None, usage: None, quotas: None, ..rig.mock.adapter() };
    for (inner, has) in [(full, true), (bare, false)] {
        let limit = Limited::new(inner.clone(), LimitOptions::new(1 << 20), &rig.cx).unwrap().adapter;
        let fault = Injector::new(inner.clone(), &FaultConfig::default(), rig.cx.clone()).unwrap().adapter();
        let meter = Metered::new(inner.clone(), &rig.cx).adapter;
        for adapter in [limit, fault, meter, rig.breaker(inner, 1).adapter] {
            let Adapter { store, remove, list, usage, quotas } = &adapter;
            assert_eq!(
                [remove.is_some(), list.is_some(), usage.is_some(), quotas.is_some()],
                [has; 4],
                "{adapter:?}"
            );
            assert_eq!(store.desc(), rig.mock.adapter().store.desc());
        }
    }
}
