//! Work that outlives whoever asked for it: the tasks that own a request's buffers until the device is done.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, Waker};

use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_mem::sync::Mutex;

use crate::{Fail, Sink, Timer, TokioTimer};

/// A task for a [`Spawn`].
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks to their end, whether or not anybody waits for them. The simulation has its own.
pub trait Spawn: Send + Sync + fmt::Debug + 'static {
    /// Runs `task`. A task that panics is dropped; one that is dropped unfinished (the runtime goes) frees what it owns.
    fn spawn(&self, task: Task);
}

impl Spawn for tokio::runtime::Handle {
    fn spawn(&self, task: Task) {
        // Nobody joins it: its answers and its pass at the driver's gate say when it is done.
        drop(tokio::runtime::Handle::spawn(self, task));
    }
}

/// What adapters and decorators are given instead of reaching for it: a clock, and a place to run tasks. Everything that
/// works together gets clones of one, because deadlines are read on its timer.
#[derive(Clone, Debug)]
pub struct Context {
    /// The clock of all deadlines.
    pub timer: Arc<dyn Timer>,
    /// Where driver tasks run.
    pub spawn: Arc<dyn Spawn>,
}

impl Context {
    /// A context of a tokio runtime with its time enabled; the clock starts now.
    pub fn tokio(runtime: tokio::runtime::Handle) -> Self {
        Self { timer: Arc::new(TokioTimer::start()), spawn: Arc::new(runtime) }
    }
}

/// The error of a call whose deadline passed.
pub fn timed_out(operation: &'static str, deadline: Instant) -> Error {
    Error::new(ErrorKind::TimedOut, operation, "the deadline passed before the answer came")
        .with("deadline_ns", deadline.as_nanos())
}

/// The error of a call to a component that was shut down.
pub fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the adapter was shut down")
}

/// Waits for `work`, but no longer than until `deadline`; the work stays with the caller.
pub async fn until<F: Future + Unpin>(
    timer: &dyn Timer,
    deadline: Instant,
    mut work: F,
) -> Option<F::Output> {
    let mut sleep = timer.sleep_until(deadline);
    poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(out) => Poll::Ready(Some(out)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// How an adapter whose device is a future honours L2-1, L2-5 and its shutdown: each request becomes a task that owns the
/// buffers, so that dropping the caller's future frees nothing and loses no answer. At the deadline the task answers what
/// is left with `TimedOut`, and goes on until the device is done.
///
/// Adapters whose device answers from threads of its own hand their buffers to those threads instead, and use
/// [`Driver::call`] and [`until`] to bound their waits.
#[derive(Debug)]
pub struct Driver {
    cx: Context,
    gate: Arc<Gate>,
}

impl Driver {
    /// A driver that is open.
    pub fn new(cx: Context) -> Self {
        Self { cx, gate: Arc::default() }
    }

    /// The clock of all deadlines.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        &self.cx.timer
    }

    /// Whether [`Self::shutdown`] was called.
    pub fn is_closed(&self) -> bool {
        self.gate.0.lock().closed
    }

    /// Runs `work`, which owns the request and a clone of `done`, as a task, and waits until every key is answered. The
    /// work should ask [`Sink::claim`] before anything that must not happen to a key that has timed out.
    pub async fn run<T: Fail>(
        &self,
        operation: &'static str,
        deadline: Instant,
        done: Sink<T>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        match self.enter(operation, deadline) {
            Ok(pass) => self.watch(pass, operation, deadline, done, work).await,
            Err(e) => done.answer_rest(|_| T::failed(e.clone())),
        }
    }

    /// As [`Self::run`], with the pass of a request that has entered already: for work that is under way before it can be
    /// waited for.
    pub async fn watch<T: Fail>(
        &self,
        pass: Pass,
        operation: &'static str,
        deadline: Instant,
        done: Sink<T>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let answered = done.answered();
        let timer = Arc::clone(&self.cx.timer);
        self.cx.spawn.spawn(Box::pin(async move {
            // Dropped last to first: the buffers in `work` are free before the driver counts as idle.
            let _pass = pass;
            let done = done;
            let mut work = pin!(work);
            if until(&*timer, deadline, work.as_mut()).await.is_none() {
                done.answer_rest(|_| T::failed(timed_out(operation, deadline)));
                work.await;
            }
        }));
        answered.await;
    }

    /// Waits for `work`, which owns no buffers, until `deadline`; then it is dropped.
    ///
    /// # Errors
    /// `Closed` after a shutdown, `TimedOut` at the deadline.
    pub async fn call<R>(
        &self,
        operation: &'static str,
        deadline: Instant,
        work: impl Future<Output = R> + Send,
    ) -> Result<R> {
        let _pass = self.enter(operation, deadline)?;
        until(&*self.cx.timer, deadline, pin!(work)).await.ok_or_else(|| timed_out(operation, deadline))
    }

    /// Refuses new work and waits until the tasks that run have ended.
    ///
    /// # Errors
    /// `TimedOut` if one still runs at the deadline; the driver stays closed.
    pub async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.gate.0.lock().closed = true;
        let idle = poll_fn(|cx| {
            let mut state = self.gate.0.lock();
            if state.running == 0 {
                return Poll::Ready(());
            }
            if !state.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        });
        until(&*self.cx.timer, deadline, idle).await.ok_or_else(|| {
            timed_out("shut adapter down", deadline).with("in_flight", self.gate.0.lock().running)
        })
    }

    /// Counts a request as running until its pass, and every clone of it, is dropped.
    ///
    /// # Errors
    /// `Closed` after a shutdown, `TimedOut` if the deadline has passed.
    pub fn enter(&self, operation: &'static str, deadline: Instant) -> Result<Pass> {
        if deadline <= self.cx.timer.now() {
            return Err(timed_out(operation, deadline));
        }
        let mut state = self.gate.0.lock();
        if state.closed {
            return Err(closed(operation));
        }
        state.running += 1;
        Ok(Pass(Arc::clone(&self.gate)))
    }
}

#[derive(Debug, Default)]
struct Gate(Mutex<GateState>);

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    running: usize,
    waiting: Vec<Waker>,
}

/// Counts one piece of work as running; a shutdown waits for it.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Clone for Pass {
    fn clone(&self) -> Self {
        self.0.0.lock().running += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let wake = {
            let mut state = self.0.0.lock();
            state.running -= 1;
            if state.running > 0 { Vec::new() } else { std::mem::take(&mut state.waiting) }
        };
        wake.into_iter().for_each(Waker::wake);
    }
}
