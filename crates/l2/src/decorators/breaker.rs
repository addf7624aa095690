//! A circuit breaker around an adapter.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result, Retry, panic_text};
use parking_lot::Mutex;

use super::circuit::{Admit, BreakerOptions, BreakerView, Circuit, Pass, Tally};
use crate::{
    Adapter, Answer, Context, Fail, Found, Get, GetSink, Keys, L2Desc, L2List, L2Remove, L2Store, ListPage,
    Probe, Put, PutSink, Receive, Sink, Stored, Timer, timed_out, until,
};

/// An adapter behind a circuit breaker.
///
/// Closed, calls go through. After failures in a row, or too many within a while, it opens: calls are answered at once with
/// `Unavailable` and advice when to come again, buffers handed back. After a cool-down one store or load at a time goes
/// through; what it does closes the breaker or opens it for twice as long.
///
/// - A key that was written or loaded is a success. `Io`, `TimedOut`, `Unavailable`, `Corrupt` and `Internal` are failures.
///   All else proves nothing: misses, what was stored already, no room, too busy, and lookups that work, all of which may
///   be answered from memory while the device is dead.
/// - A hang is a failure when the call's deadline passes, if the call had [`BreakerOptions::patience`]: that an adapter
///   does not keep shorter deadlines proves nothing. A call whose deadline had passed before is not counted.
/// - A call that its caller drops proves what it was answered, and no more.
/// - While it is half open, only stores and loads wait for each other, because only they can close it. Lookups, removals and
///   listings go through, and open it again when they fail.
/// - A panic in a call is a failure; its keys are answered with `Internal`.
#[derive(Clone, Debug)]
pub struct Breaker {
    /// The adapter behind it, with the abilities of the one inside.
    pub adapter: Adapter,
    /// Where it stands.
    pub state: Arc<BreakerState>,
}

/// A breaker's state, shared with whoever shows it.
#[derive(Debug)]
pub struct BreakerState {
    timer: Arc<dyn Timer>,
    circuit: Mutex<Circuit>,
}

impl Breaker {
    /// Puts a closed breaker around `inner`.
    ///
    /// # Errors
    /// As [`BreakerOptions::validate`].
    pub fn new(inner: Adapter, options: BreakerOptions, cx: &Context) -> Result<Self> {
        options.validate()?;
        let timer = Arc::clone(&cx.timer);
        let circuit = Mutex::new(Circuit::new(options, timer.now()));
        let state = Arc::new(BreakerState { timer, circuit });
        // Every ability by name: a new one does not compile until it is forwarded here.
        let Adapter { store, remove, list, usage, quotas } = inner;
        let adapter = Adapter {
            store: Arc::new(BreakerStore { inner: store, state: Arc::clone(&state) }),
            remove: remove.map(|inner| Arc::new(BreakerRemove { inner, state: Arc::clone(&state) }) as _),
            list: list.map(|inner| Arc::new(BreakerList { inner, state: Arc::clone(&state) }) as _),
            usage,
            quotas,
        };
        Ok(Self { adapter, state })
    }
}

impl BreakerState {
    /// Now.
    pub fn view(&self) -> BreakerView {
        self.circuit.lock().view(self.timer.now())
    }

    fn admit(
        self: &Arc<Self>,
        operation: &'static str,
        kind: Admit,
        deadline: Instant,
    ) -> Result<Option<Counted>> {
        let now = self.timer.now();
        if deadline <= now {
            // It will time out, whatever the adapter does.
            return Ok(None);
        }
        let mut circuit = self.circuit.lock();
        match circuit.admit(now, kind, deadline) {
            Ok(pass) => {
                let patient = deadline.since(now) >= circuit.options().patience;
                let (state, tally) = (Arc::clone(self), Tally::default());
                Ok(Some(Counted { state, pass, tally, patient, abandoned: false, open: true }))
            }
            Err(again) => {
                let why = "the circuit breaker is open, because the adapter failed before";
                Err(Error::new(ErrorKind::Unavailable, operation, why).retrying(Retry::After(again)))
            }
        }
    }
}

/// A call that is counted, once; dropped without a result, it proves nothing.
#[derive(Debug)]
struct Counted {
    state: Arc<BreakerState>,
    pass: Pass,
    tally: Tally,
    /// Whether it has time enough for a time-out to mean something.
    patient: bool,
    /// Whether the caller dropped it, so that keys are answered by the drop.
    abandoned: bool,
    open: bool,
}

impl Counted {
    fn key<T>(&mut self, answer: &Result<T>, success: bool) {
        match answer {
            Ok(_) if success => self.tally.good += 1,
            Err(e) if self.is_failure(e) => self.tally.bad += 1,
            _ => {}
        }
    }

    fn is_failure(&self, e: &Error) -> bool {
        match e.kind() {
            ErrorKind::TimedOut => self.patient,
            ErrorKind::Internal => !self.abandoned,
            kind => matches!(kind, ErrorKind::Io | ErrorKind::Unavailable | ErrorKind::Corrupt),
        }
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.open) {
            self.state.circuit.lock().settle(self.state.timer.now(), self.pass, self.tally);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.settle();
    }
}

/// An answer that says something of the adapter.
trait Tells: Fail {
    fn tell(&self, to: &mut Counted);
}

impl Tells for Result<Stored> {
    fn tell(&self, to: &mut Counted) {
        to.key(self, matches!(self, Ok(Stored::Written)));
    }
}

impl Tells for Answer {
    fn tell(&self, to: &mut Counted) {
        match self {
            Answer::Loaded(_) => to.tally.good += 1,
            Answer::Failed(e, _) if to.is_failure(e) => to.tally.bad += 1,
            Answer::Miss(..) | Answer::Failed(..) => {}
        }
    }
}

/// Listens to the answers of a call on their way.
struct Listen<T: Tells> {
    done: Sink<T>,
    heard: Arc<Mutex<Heard>>,
}

struct Heard {
    call: Counted,
    left: u64,
}

impl<T: Tells> Receive<T> for Listen<T> {
    fn answer(&self, position: usize, answer: T) {
        {
            let mut heard = self.heard.lock();
            answer.tell(&mut heard.call);
            heard.left = heard.left.saturating_sub(1);
            if heard.left == 0 {
                heard.call.settle();
            }
        }
        self.done.answer(position, answer);
    }
}

/// Marks a call as abandoned when it is dropped while it is armed.
struct Abandon(Option<Arc<Mutex<Heard>>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(heard) = &self.0 {
            heard.lock().call.abandoned = true;
        }
    }
}

/// What a panic said.
fn panicked(operation: &'static str, payload: &(dyn Any + Send)) -> Error {
    let said = panic_text(payload).unwrap_or("nothing");
    Error::new(ErrorKind::Internal, operation, "the adapter panicked").with("panic", said)
}

/// Polls a call so that a panic in it ends the call and nothing else.
async fn caught<R>(operation: &'static str, call: impl Future<Output = R>) -> Result<R> {
    let mut call = Box::pin(call);
    let out = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(out)) => Poll::Ready(Ok(out)),
        Err(payload) => Poll::Ready(Err(panicked(operation, &*payload))),
    })
    .await;
    if let Err(error) = &out {
        tracing::error!(%error, "a panic in an adapter was caught");
    }
    out
}

#[derive(Debug)]
struct BreakerStore {
    inner: Arc<dyn L2Store>,
    state: Arc<BreakerState>,
}

impl BreakerStore {
    /// Makes a call whose answers go to a sink.
    async fn call<T: Tells, F: Future<Output = ()> + Send>(
        &self,
        operation: &'static str,
        deadline: Instant,
        (keys, done): (usize, Sink<T>),
        counted: Counted,
        call: impl FnOnce(Sink<T>) -> F + Send,
    ) {
        let answered = done.answered();
        let heard = Arc::new(Mutex::new(Heard { call: counted, left: keys as u64 }));
        let sink = Sink::new(keys, Arc::new(Listen { done: done.clone(), heard: Arc::clone(&heard) }));
        let timer = &*self.state.timer;
        // Made where it is polled, so that a panic in the making is caught too.
        let mut call = Box::pin(caught(operation, async move { call(sink).await }));
        // After the call, so that it is dropped before.
        let mut abandon = Abandon(Some(Arc::clone(&heard)));
        let mut out = until(timer, deadline, call.as_mut()).await;
        if out.is_none() {
            // The adapter has yet to answer; the judgement does not wait for it.
            {
                let mut heard = heard.lock();
                let left = std::mem::take(&mut heard.left);
                if heard.call.patient {
                    heard.call.tally.bad += left;
                }
                heard.call.settle();
            }
            out = Some(call.as_mut().await);
        }
        // What a panic left behind of the call is dropped, and answers its keys; a task of its own may still answer some.
        drop(call);
        match out {
            Some(Err(e)) => {
                if until(timer, deadline, pin!(answered)).await.is_none() {
                    done.answer_rest(|_| T::failed(e.clone()));
                }
            }
            _ => answered.await,
        }
        abandon.0 = None;
    }
}

#[async_trait]
impl L2Store for BreakerStore {
    fn desc(&self) -> &L2Desc {
        self.inner.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store behind breaker";
        let (keys, deadline) = (request.items.len(), request.deadline);
        match self.state.admit(OP, Admit::Trial, deadline) {
            Ok(Some(counted)) => {
                self.call(OP, deadline, (keys, done), counted, |sink| self.inner.put(request, sink)).await;
            }
            Ok(None) => self.inner.put(request, done).await,
            Err(e) => {
                drop(request);
                done.answer_rest(|_| Err(e.clone()));
            }
        }
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load behind breaker";
        let (keys, deadline) = (request.items.len(), request.deadline);
        match self.state.admit(OP, Admit::Trial, deadline) {
            Ok(Some(counted)) => {
                self.call(OP, deadline, (keys, done), counted, |sink| self.inner.get(request, sink)).await;
            }
            Ok(None) => self.inner.get(request, done).await,
            Err(e) => request.refuse(&done, &e),
        }
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        const OP: &str = "look up behind breaker";
        let (keys, deadline) = (request.keys.len(), request.deadline);
        per_key(&self.state, OP, keys, deadline, async { self.inner.probe(request).await }).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        caught("shut adapter down", async { self.inner.shutdown(deadline).await }).await?
    }
}

/// Makes a call that answers when it ends. It holds no buffers, so at its deadline it is given up.
async fn per_key<R>(
    state: &Arc<BreakerState>,
    operation: &'static str,
    keys: usize,
    deadline: Instant,
    call: impl Future<Output = Vec<Result<R>>>,
) -> Vec<Result<R>> {
    let all = |e: &Error| (0..keys).map(|_| Err(e.clone())).collect();
    let mut counted = match state.admit(operation, Admit::Aside, deadline) {
        Ok(Some(counted)) => counted,
        Ok(None) => return caught(operation, call).await.unwrap_or_else(|e| all(&e)),
        Err(e) => return all(&e),
    };
    let out = until(&*state.timer, deadline, pin!(caught(operation, call))).await;
    let answers = out.unwrap_or_else(|| Err(timed_out(operation, deadline))).unwrap_or_else(|e| all(&e));
    for answer in &answers {
        counted.key(answer, false);
    }
    answers
}

struct BreakerRemove {
    inner: Arc<dyn L2Remove>,
    state: Arc<BreakerState>,
}

#[async_trait]
impl L2Remove for BreakerRemove {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let n = keys.len();
        let call = async { self.inner.remove(keys, deadline).await };
        per_key(&self.state, "remove behind breaker", n, deadline, call).await
    }
}

struct BreakerList {
    inner: Arc<dyn L2List>,
    state: Arc<BreakerState>,
}

#[async_trait]
impl L2List for BreakerList {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        const OP: &str = "list behind breaker";
        let mut counted = self.state.admit(OP, Admit::Aside, Instant::FAR_FUTURE)?;
        let page = caught(OP, async { self.inner.list(cursor, limit).await }).await.and_then(|page| page);
        if let Some(counted) = &mut counted {
            counted.key(&page, false);
        }
        page
    }
}
