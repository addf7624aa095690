//! A limit on the bytes in flight to and from an adapter.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result};

use super::budget::{Budget, Kind};
use crate::{
    Adapter, Answer, Call, Context, Found, Get, GetItem, GetSink, L2Desc, L2Store, Probe, Put, PutItem,
    PutSink, Receive, Stored, Timer, all, timed_out,
};

/// How many bytes may be in flight, and how many may wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitOptions {
    /// Bytes of loads and stores together that the adapter may hold at a time. A single larger object goes alone.
    pub in_flight: u64,
    /// Of those, what stores never take.
    pub for_loads: u64,
    /// Bytes that may wait, of loads and of stores each.
    pub waiting: u64,
}

impl LimitOptions {
    /// So many bytes in flight, of which a quarter is kept for loads, and as many waiting.
    pub const fn new(in_flight: u64) -> Self {
        Self { in_flight, for_loads: in_flight / 4, waiting: in_flight }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` with the field and what it takes.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, value: u64, message: &str| {
            Err(Error::invalid("make limit of bytes in flight", message).with(field, value))
        };
        if self.in_flight == 0 {
            return bad("in_flight", 0, "at least one byte may be in flight");
        }
        if self.for_loads >= self.in_flight {
            return bad("for_loads", self.for_loads, "less is kept for loads than may be in flight");
        }
        Ok(())
    }
}

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitCounts {
    /// Bytes of loads in flight.
    pub loads_in_flight: u64,
    /// Bytes of stores in flight.
    pub stores_in_flight: u64,
    /// Bytes of loads that wait.
    pub loads_waiting: u64,
    /// Bytes of stores that wait.
    pub stores_waiting: u64,
    /// Keys refused at once, because too much waits already.
    pub refused: u64,
    /// Keys whose deadline passed while they waited.
    pub expired: u64,
}

/// A limit's state, shared with whoever shows it.
#[derive(Debug)]
pub struct LimitState(Arc<Budget>);

impl LimitState {
    /// Now.
    pub fn counts(&self) -> LimitCounts {
        self.0.counts()
    }
}

/// An adapter that is given only so many bytes at a time.
///
/// Loads go before stores. What cannot go at once waits, and is answered with `Busy` when its deadline comes first. Only so
/// many bytes wait; the rest of a batch is answered with `Busy` at once, from the end, buffers handed back. Where most of
/// what is in flight has been overdue for half the time that the call had, the answer is `TimedOut` instead: then it is
/// the adapter that does not answer, and not others who keep it busy, and a breaker around the limit has to hear of it.
///
/// Bytes are in flight until their key is answered or, where the answer leaves the buffer with the adapter (a time-out),
/// until the adapter has dropped the request's sink. So what a hung device holds counts until it wakes, and the memory that
/// it can take is bounded. Batches are handed on in parts of a quarter of the limit.
#[derive(Clone, Debug)]
pub struct Limited {
    /// The adapter behind the limit, with the abilities of the one inside.
    pub adapter: Adapter,
    /// What is in flight.
    pub state: Arc<LimitState>,
}

impl Limited {
    /// Puts a limit around `inner`.
    ///
    /// # Errors
    /// As [`LimitOptions::validate`].
    pub fn new(inner: Adapter, options: LimitOptions, cx: &Context) -> Result<Self> {
        options.validate()?;
        let budget = Arc::new(Budget::new(options));
        // Every ability by name: a new one does not compile until it is forwarded here. Those hold no buffers.
        let Adapter { store, remove, list, usage, quotas } = inner;
        let store = LimitedStore { inner: store, timer: Arc::clone(&cx.timer), budget: Arc::clone(&budget) };
        let adapter = Adapter { store: Arc::new(store), remove, list, usage, quotas };
        Ok(Self { adapter, state: Arc::new(LimitState(budget)) })
    }
}

#[derive(Debug)]
struct LimitedStore {
    inner: Arc<dyn L2Store>,
    timer: Arc<dyn Timer>,
    budget: Arc<Budget>,
}

/// Something with a size, and its position in the batch.
type Part<I> = Vec<(usize, I)>;

impl LimitedStore {
    /// Hands a batch on in parts, each when its bytes are free. What is not handed on goes to `decline`.
    async fn hand_on<'a, I: Send>(
        &'a self,
        (kind, operation): (Kind, &'static str),
        deadline: Instant,
        items: Vec<I>,
        bytes: impl Fn(&I) -> u64,
        mut start: impl FnMut(Part<I>, Taken) -> Call<'a, ()>,
        mut decline: impl FnMut(Part<I>, Error),
    ) {
        let budget = &self.budget;
        let now = self.timer.now();
        let half = deadline.since(now) / 2;
        // A device that is late by less may be slow. `at` is when the call is over.
        let why = |at: Instant, message: &str| match at.as_nanos().checked_sub(half.as_nanos() as u64) {
            Some(n) if budget.mostly_due_before(Instant::from_nanos(n)) => {
                timed_out(operation, deadline).with("cause", "most bytes in flight are long overdue")
            }
            _ => Error::new(ErrorKind::Busy, operation, message),
        };
        let mut parts = split(items, budget.options().in_flight / 4, &bytes);
        let (accepted, mut waiting) = budget.enter(kind, parts.iter().map(|(_, n)| *n));
        if accepted < parts.len() {
            let e = why(now, "too many bytes wait for this adapter already");
            for (part, _) in parts.drain(accepted..).rev() {
                budget.count(|c| c.refused += part.len() as u64);
                decline(part, e.clone());
            }
        }
        let mut sleep = self.timer.sleep_until(deadline);
        let mut running: Vec<Call<'a, ()>> = Vec::new();
        while let Some((part, n)) = parts.pop_front() {
            let mut acquire = budget.acquire(kind, deadline, n);
            let in_time = poll_fn(|cx| {
                // What runs meanwhile may free what is waited for.
                running.retain_mut(|call| call.as_mut().poll(cx).is_pending());
                match Pin::new(&mut acquire).poll(cx) {
                    Poll::Ready(()) => Poll::Ready(true),
                    Poll::Pending => sleep.as_mut().poll(cx).map(|()| false),
                }
            })
            .await;
            if !in_time {
                let e = why(deadline, "the deadline passed while bytes of others were in flight");
                for (part, _) in std::iter::once((part, n)).chain(parts.drain(..)) {
                    budget.count(|c| c.expired += part.len() as u64);
                    decline(part, e.clone());
                }
                break;
            }
            waiting.less(n);
            let bytes = part.iter().map(|(_, item)| AtomicU64::new(bytes(item))).collect();
            running.push(start(part, Taken { budget: Arc::clone(budget), kind, due: deadline, bytes }));
        }
        drop(waiting);
        all(running).await;
    }
}

/// Cuts a batch into parts of at most `most` bytes each, or one item.
fn split<I>(items: Vec<I>, most: u64, bytes: impl Fn(&I) -> u64) -> VecDeque<(Part<I>, u64)> {
    let mut parts: VecDeque<(Part<I>, u64)> = VecDeque::with_capacity(1);
    for (position, item) in items.into_iter().enumerate() {
        let n = bytes(&item);
        match parts.back_mut() {
            Some((part, sum)) if sum.saturating_add(n) <= most => {
                *sum += n;
                part.push((position, item));
            }
            _ => parts.push_back((vec![(position, item)], n)),
        }
    }
    parts
}

/// The bytes of a part that are in flight. What is left when it is dropped is given back.
#[derive(Debug)]
struct Taken {
    budget: Arc<Budget>,
    kind: Kind,
    due: Instant,
    bytes: Vec<AtomicU64>,
}

impl Taken {
    fn give_back(&self, i: usize) {
        self.budget.release(self.kind, self.due, self.bytes[i].swap(0, Ordering::Relaxed));
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        (0..self.bytes.len()).for_each(|i| self.give_back(i));
    }
}

/// Receives a part's answers to a put. It lives as long as the adapter keeps the sink.
struct Stores {
    positions: Vec<usize>,
    done: PutSink,
    taken: Taken,
}

impl Receive<Result<Stored>> for Stores {
    fn answer(&self, i: usize, answer: Result<Stored>) {
        if !answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut) {
            self.taken.give_back(i);
        }
        self.done.answer(self.positions[i], answer);
    }
}

/// Receives a part's answers to a get.
struct Loads {
    positions: Vec<usize>,
    done: GetSink,
    taken: Taken,
}

impl Receive<Answer> for Loads {
    fn answer(&self, i: usize, answer: Answer) {
        if !matches!(answer, Answer::Failed(_, None) | Answer::Miss(_, None)) {
            self.taken.give_back(i);
        }
        self.done.answer(self.positions[i], answer);
    }
}

#[async_trait]
impl L2Store for LimitedStore {
    fn desc(&self) -> &L2Desc {
        self.inner.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        let Put { items, deadline, affinity } = request;
        let answered = done.answered();
        let (to, refused) = (done.clone(), done);
        let start = move |part: Part<PutItem>, taken| -> Call<'_, ()> {
            let (positions, items): (Vec<_>, Vec<_>) = part.into_iter().unzip();
            let n = items.len();
            let sink = PutSink::new(n, Arc::new(Stores { positions, done: to.clone(), taken }));
            self.inner.put(Put { items, deadline, affinity }, sink)
        };
        let decline = move |part: Part<PutItem>, e: Error| {
            for (position, item) in part {
                drop(item);
                refused.answer(position, Err(e.clone()));
            }
        };
        let what = (Kind::Store, "store within limit");
        self.hand_on(what, deadline, items, |item| item.buf.len() as u64, start, decline).await;
        answered.await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        let Get { items, deadline, affinity } = request;
        let answered = done.answered();
        let (to, refused) = (done.clone(), done);
        let start = move |part: Part<GetItem>, taken| -> Call<'_, ()> {
            let (positions, items): (Vec<_>, Vec<_>) = part.into_iter().unzip();
            let n = items.len();
            let sink = GetSink::new(n, Arc::new(Loads { positions, done: to.clone(), taken }));
            self.inner.get(Get { items, deadline, affinity }, sink)
        };
        let decline = move |part: Part<GetItem>, e: Error| {
            for (position, item) in part {
                refused.answer(position, Answer::Failed(e.clone(), Some(item.buf)));
            }
        };
        let what = (Kind::Load, "load within limit");
        self.hand_on(what, deadline, items, |item| item.buf.len() as u64, start, decline).await;
        answered.await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.inner.probe(request).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }
}
