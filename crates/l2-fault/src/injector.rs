//! The decorator.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Context, Driver, Found, Get, GetSink, L2Desc, L2Store, Probe, Put, PutSink, Sink, Timer,
    timed_out, until,
};

use crate::abilities::{List, Remove};
use crate::counts::Counters;
use crate::ledger::Ledger;
use crate::plan::{Choice, Plan};
use crate::wait::Gate;
use crate::{Fault, FaultConfig, FaultCounts, Op};

/// An adapter with faults, and what controls them. Clones are the same.
#[derive(Clone, Debug)]
pub struct Injector {
    adapter: Adapter,
    state: Arc<State>,
}

/// What calls share with the tasks that outlive them.
pub(crate) struct State {
    pub(crate) inner: Arc<dyn L2Store>,
    pub(crate) driver: Driver,
    pub(crate) plan: Plan,
    pub(crate) counters: Counters,
    pub(crate) ledger: Ledger,
    gate: Gate,
    armed: AtomicBool,
    hang: Option<Duration>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Injector {
    /// Puts faults around `inner`. Its abilities stay as they are, and have faults too.
    ///
    /// # Errors
    /// As [`FaultConfig::validate`].
    pub fn new(inner: Adapter, config: &FaultConfig, cx: Context) -> Result<Self> {
        config.validate()?;
        // Every ability by name: a new one does not compile until it is forwarded here.
        let Adapter { store, remove, list, usage, quotas } = inner;
        let state = Arc::new(State {
            inner: store,
            driver: Driver::new(cx),
            plan: Plan::new(config),
            counters: Counters::default(),
            ledger: Ledger::default(),
            gate: Gate::default(),
            armed: AtomicBool::new(true),
            hang: config.hang_ms.map(Duration::from_millis),
        });
        let adapter = Adapter {
            store: Arc::new(FaultyStore(Arc::clone(&state))),
            remove: remove.map(|inner| Arc::new(Remove { inner, state: Arc::clone(&state) }) as _),
            list: list.map(|inner| Arc::new(List { inner, state: Arc::clone(&state) }) as _),
            usage,
            quotas,
        };
        Ok(Self { adapter, state })
    }

    /// The adapter with its faults.
    pub fn adapter(&self) -> Adapter {
        self.adapter.clone()
    }

    /// How many faults there were.
    pub fn counts(&self) -> FaultCounts {
        self.state.counters.now()
    }

    /// Lets go of every call that hangs now. Later ones hang again.
    pub fn release(&self) {
        self.state.gate.release();
    }

    /// Whether new faults are injected; on at first. What is damaged already stays so.
    pub fn arm(&self, armed: bool) {
        self.state.armed.store(armed, Ordering::Relaxed);
    }
}

impl State {
    /// The faults of a call's keys.
    ///
    /// # Panics
    /// If that is the fault.
    pub(crate) fn choose<'a>(
        &self,
        op: Op,
        keys: impl ExactSizeIterator<Item = &'a ObjectKey>,
    ) -> Vec<Option<Choice>> {
        if !self.armed.load(Ordering::Relaxed) {
            return vec![None; keys.len()];
        }
        let call = self.plan.call(op, keys.len());
        let choices: Vec<_> = keys.enumerate().map(|(i, key)| self.plan.choose(call, i, key)).collect();
        if choices.iter().flatten().any(|c| c.fault == Fault::Panic) {
            self.counters.both(Fault::Panic);
            panic!("fault injection: {} panics", op.name());
        }
        choices
    }

    pub(crate) fn timer(&self) -> &dyn Timer {
        &**self.driver.timer()
    }

    /// The wait of a `delay` or a `hang`.
    pub(crate) async fn wait(&self, choice: Choice) {
        match choice.fault {
            Fault::Delay => self.timer().sleep_until(self.timer().now() + choice.delay).await,
            _ => self.gate.wait(self.timer(), self.hang).await,
        }
    }

    /// Runs `go` after the wait, as a task that owns what is in `go`. At the deadline the key at `position` is answered,
    /// and what `go` holds stays until the wait is over. A fault that ended in time changed no answer by itself.
    pub(crate) async fn after_wait<T, F>(
        self: &Arc<Self>,
        op: &'static str,
        choice: Choice,
        deadline: Instant,
        (position, done): (usize, Sink<T>),
        go: impl FnOnce() -> F + Send + 'static,
    ) where
        T: kvstrata_l2::Fail,
        F: Future<Output = ()> + Send,
    {
        let (state, sink) = (Arc::clone(self), done.clone());
        self.counters.injected(choice.fault);
        let work = async move {
            let mut wait = pin!(state.wait(choice));
            let in_time = until(state.timer(), deadline, wait.as_mut()).await.is_some();
            if in_time {
                go().await;
            } else {
                state.counters.effective(choice.fault);
                sink.answer(position, T::failed(timed_out(op, deadline)));
                wait.await;
                drop(go);
            }
        };
        // Once the store is asked, it keeps the deadline itself: two clocks over one put could tell the caller of a failure
        // and publish the object.
        self.driver.run(op, Instant::FAR_FUTURE, done, work).await;
    }
}

pub(crate) fn on_demand(kind: ErrorKind, operation: &'static str) -> Error {
    Error::new(kind, operation, "a fault was injected here")
}

#[derive(Debug)]
struct FaultyStore(Arc<State>);

#[async_trait]
impl L2Store for FaultyStore {
    fn desc(&self) -> &L2Desc {
        self.0.inner.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        crate::put::put(&self.0, request, done).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        crate::get::get(&self.0, request, done).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        crate::abilities::probe(&self.0, request).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        let mine = self.0.driver.shutdown(deadline).await;
        self.0.inner.shutdown(deadline).await?;
        mine
    }
}
