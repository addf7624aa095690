//! Counts and latencies of an adapter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use kvstrata_core::{ErrorKind, Instant, Result};

use super::histogram::{Histogram, HistogramCounts};
use crate::{
    Adapter, Answer, Context, Found, Get, GetSink, Keys, L2Desc, L2List, L2Remove, L2Store, ListPage, Miss,
    Probe, Put, PutSink, Receive, Stored, Timer,
};

/// How a key's call may end: well, there already, a miss by its reason, or an error by its kind.
const OUTCOMES: [&str; OTHER + 1] = [
    "ok",
    "present",
    "absent",
    "truncated",
    "digest",
    "header",
    "foreign",
    "layout",
    "stale",
    "invalid",
    "not_found",
    "no_space",
    "busy",
    "timed_out",
    "unavailable",
    "corrupt",
    "mismatch",
    "io",
    "closed",
    "unsupported",
    "internal",
    "other",
];
const OK: usize = 0;
const PRESENT: usize = 1;
const ABSENT: usize = 2;
const ERRORS: usize = ABSENT + Miss::ALL.len();
const OTHER: usize = ERRORS + 12;

fn of_error(kind: ErrorKind) -> usize {
    use ErrorKind as K;
    ERRORS
        + match kind {
            K::Invalid => 0,
            K::NotFound => 1,
            K::NoSpace => 2,
            K::Busy => 3,
            K::TimedOut => 4,
            K::Unavailable => 5,
            K::Corrupt => 6,
            K::Mismatch => 7,
            K::Io => 8,
            K::Closed => 9,
            K::Unsupported => 10,
            K::Internal => 11,
            _ => 12,
        }
}

/// What is counted of one kind of call.
#[derive(Debug, Default)]
struct Op {
    calls: AtomicU64,
    keys: AtomicU64,
    outcomes: [AtomicU64; OUTCOMES.len()],
    bytes: AtomicU64,
    latency: Histogram,
}

/// The counts of one kind of call at one moment. They only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpCounts {
    /// Calls.
    pub calls: u64,
    /// Keys that were asked for.
    pub keys: u64,
    outcomes: [u64; OUTCOMES.len()],
    /// Payload bytes written or loaded.
    pub bytes: u64,
    /// How long each key took, from the call to its answer. Of lookups, removals and listings: how long each call took.
    pub latency: HistogramCounts,
}

impl OpCounts {
    /// Keys by how they ended: `ok`, `present`, the reason of a miss ([`Miss::name`]), or the kind of an error
    /// ([`ErrorKind::name`]).
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(self.outcomes)
    }

    /// Keys that ended so; 0 for what is no outcome.
    pub fn outcome(&self, name: &str) -> u64 {
        self.outcomes().find(|(is, _)| *is == name).map_or(0, |(_, n)| n)
    }

    /// Keys that have ended.
    pub fn ended(&self) -> u64 {
        self.outcomes.iter().sum()
    }
}

impl Op {
    fn begin(&self, keys: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.keys.fetch_add(keys as u64, Ordering::Relaxed);
    }

    fn end(&self, outcome: usize) {
        self.outcomes[outcome].fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> OpCounts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        OpCounts {
            // First what has ended, so that no more keys have ended than were asked for.
            outcomes: std::array::from_fn(|i| self.outcomes[i].load(Ordering::Acquire)),
            latency: self.latency.counts(),
            bytes: get(&self.bytes),
            keys: get(&self.keys),
            calls: get(&self.calls),
        }
    }
}

/// What a meter has counted, shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Meter {
    put: Op,
    get: Op,
    probe: Op,
    remove: Op,
    list: Op,
}

/// A meter at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MeterCounts {
    /// Stores.
    pub put: OpCounts,
    /// Loads.
    pub get: OpCounts,
    /// Lookups.
    pub probe: OpCounts,
    /// Removals.
    pub remove: OpCounts,
    /// Listings; each counts as one key.
    pub list: OpCounts,
}

impl Meter {
    /// Now.
    pub fn counts(&self) -> MeterCounts {
        MeterCounts {
            put: self.put.counts(),
            get: self.get.counts(),
            probe: self.probe.counts(),
            remove: self.remove.counts(),
            list: self.list.counts(),
        }
    }
}

/// An adapter whose calls are counted and timed.
#[derive(Clone, Debug)]
pub struct Metered {
    /// The adapter with its meter, with the abilities of the one inside.
    pub adapter: Adapter,
    /// What was counted.
    pub meter: Arc<Meter>,
}

impl Metered {
    /// Puts a meter around `inner`.
    pub fn new(inner: Adapter, cx: &Context) -> Self {
        let meter = Arc::<Meter>::default();
        // Every ability by name: a new one does not compile until it is forwarded here.
        let Adapter { store, remove, list, usage, quotas } = inner;
        let gauge = || Gauge { timer: Arc::clone(&cx.timer), meter: Arc::clone(&meter) };
        let adapter = Adapter {
            store: Arc::new(MeteredStore { inner: store, gauge: gauge() }),
            remove: remove.map(|inner| Arc::new(MeteredRemove { inner, gauge: gauge() }) as _),
            list: list.map(|inner| Arc::new(MeteredList { inner, gauge: gauge() }) as _),
            usage,
            quotas,
        };
        Self { adapter, meter }
    }
}

#[derive(Clone, Debug)]
struct Gauge {
    timer: Arc<dyn Timer>,
    meter: Arc<Meter>,
}

/// Counts the answers of a call on their way.
struct Count<T: crate::Fail> {
    gauge: Gauge,
    op: fn(&Meter) -> &Op,
    start: Instant,
    /// The bytes of each key.
    bytes: Vec<u64>,
    done: crate::Sink<T>,
}

impl<T: crate::Fail> Count<T> {
    fn count(&self, position: usize, outcome: usize) {
        let op = (self.op)(&self.gauge.meter);
        op.latency.record(self.gauge.timer.now().since(self.start));
        if outcome == OK {
            op.bytes.fetch_add(self.bytes[position], Ordering::Relaxed);
        }
        op.end(outcome);
    }
}

impl Receive<Result<Stored>> for Count<Result<Stored>> {
    fn answer(&self, position: usize, answer: Result<Stored>) {
        self.count(
            position,
            match &answer {
                Ok(Stored::Written) => OK,
                Ok(Stored::Present) => PRESENT,
                Err(e) => of_error(e.kind()),
            },
        );
        self.done.answer(position, answer);
    }
}

impl Receive<Answer> for Count<Answer> {
    fn answer(&self, position: usize, answer: Answer) {
        self.count(
            position,
            match &answer {
                Answer::Loaded(_) => OK,
                Answer::Miss(miss, _) => ABSENT + *miss as usize,
                Answer::Failed(e, _) => of_error(e.kind()),
            },
        );
        self.done.answer(position, answer);
    }
}

impl Gauge {
    /// Times a call that answers when it ends.
    async fn call<R>(&self, op: &Op, keys: usize, call: impl Future<Output = R>) -> R {
        op.begin(keys);
        let start = self.timer.now();
        let out = call.await;
        op.latency.record(self.timer.now().since(start));
        out
    }
}

fn end_all<R>(op: &Op, answers: &[Result<R>], is_there: impl Fn(&R) -> bool) {
    for answer in answers {
        op.end(match answer {
            Ok(there) if is_there(there) => OK,
            Ok(_) => ABSENT,
            Err(e) => of_error(e.kind()),
        });
    }
}

#[derive(Debug)]
struct MeteredStore {
    inner: Arc<dyn L2Store>,
    gauge: Gauge,
}

impl MeteredStore {
    fn count<T>(&self, op: fn(&Meter) -> &Op, bytes: Vec<u64>, done: crate::Sink<T>) -> crate::Sink<T>
    where
        T: crate::Fail,
        Count<T>: Receive<T>,
    {
        op(&self.gauge.meter).begin(bytes.len());
        let (keys, start) = (bytes.len(), self.gauge.timer.now());
        crate::Sink::new(keys, Arc::new(Count { gauge: self.gauge.clone(), op, start, bytes, done }))
    }
}

#[async_trait]
impl L2Store for MeteredStore {
    fn desc(&self) -> &L2Desc {
        self.inner.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        let answered = done.answered();
        let bytes = request.items.iter().map(|item| item.buf.len() as u64).collect();
        self.inner.put(request, self.count(|m| &m.put, bytes, done)).await;
        answered.await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        let answered = done.answered();
        let bytes = request.items.iter().map(|item| item.buf.len() as u64).collect();
        self.inner.get(request, self.count(|m| &m.get, bytes, done)).await;
        answered.await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let op = &self.gauge.meter.probe;
        let found = self.gauge.call(op, request.keys.len(), self.inner.probe(request)).await;
        end_all(op, &found, Option::is_some);
        found
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }
}

struct MeteredRemove {
    inner: Arc<dyn L2Remove>,
    gauge: Gauge,
}

#[async_trait]
impl L2Remove for MeteredRemove {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let op = &self.gauge.meter.remove;
        let removed = self.gauge.call(op, keys.len(), self.inner.remove(keys, deadline)).await;
        end_all(op, &removed, |was_there| *was_there);
        removed
    }
}

struct MeteredList {
    inner: Arc<dyn L2List>,
    gauge: Gauge,
}

#[async_trait]
impl L2List for MeteredList {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        let op = &self.gauge.meter.list;
        let page = self.gauge.call(op, 1, self.inner.list(cursor, limit)).await;
        op.end(page.as_ref().map_or_else(|e| of_error(e.kind()), |_| OK));
        page
    }
}
