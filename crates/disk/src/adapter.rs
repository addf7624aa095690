//! The adapter over a store, whatever moves its bytes.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Error, Instant, Result};
use kvstrata_io::{Disk, Job};
use kvstrata_l2::{
    Adapter, Context, Driver, Found, Get, GetSink, Idle, Keys, L2Desc, L2List, L2Quotas, L2Remove, L2Store,
    L2Usage, ListPage, PartUsage, Pass, Probe, Put, PutSink, StoreUsage, Timer, closed, latch, timed_out,
    until,
};
use parking_lot::Mutex;

use crate::Store;

/// Moves bytes between requests' buffers and a store's files.
///
/// Obligations, beside those of [`L2Store`] for the requests it is handed:
///
/// 1. The latch that `begin_put` and `begin_get` return holds the pass, and is idle when no key's buffer is touched any more.
/// 2. Neither blocks: what waits for a device runs on threads of the mover's.
pub trait Mover: fmt::Debug + Send + Sync + 'static {
    /// The file system of the store.
    type Disk: Disk;

    /// The store.
    fn store(&self) -> &Arc<Store<Self::Disk>>;
    /// Begins to store what is asked for. Each key is answered, or left to its deadline.
    fn begin_put(self: &Arc<Self>, request: Put, done: &PutSink, pass: &Pass) -> Idle;
    /// Begins to load what is asked for. Each key is answered, or left to its deadline.
    fn begin_get(self: &Arc<Self>, request: Get, done: &GetSink, pass: &Pass) -> Idle;
    /// Runs a job that blocks; `urgent` ones overtake the rest.
    ///
    /// # Errors
    /// Hands the job back if the threads are shutting down.
    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job>;
    /// How many jobs of one request run at once.
    fn width(&self) -> usize;
}

/// A store as an adapter. Cheap to clone.
#[derive(Debug)]
pub struct StoreAdapter<M: Mover>(Arc<Inner<M>>);

impl<M: Mover> Clone for StoreAdapter<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<M: Mover> {
    desc: L2Desc,
    driver: Driver,
    mover: Arc<M>,
}

impl<M: Mover> StoreAdapter<M> {
    /// An adapter over the mover's store.
    pub fn new(desc: L2Desc, mover: M, l2: Context) -> Self {
        Self(Arc::new(Inner { desc, driver: Driver::new(l2), mover: Arc::new(mover) }))
    }

    /// The adapter with everything it offers.
    pub fn adapter(&self) -> Adapter {
        let store = self.store();
        Adapter {
            store: Arc::new(self.clone()),
            remove: Some(Arc::new(self.clone())),
            list: Some(Arc::new(self.clone())),
            usage: Some(Arc::new(self.clone())),
            quotas: store.keeps_quotas().then(|| Arc::clone(store) as Arc<dyn L2Quotas>),
        }
    }

    /// What moves the bytes.
    pub fn mover(&self) -> &M {
        &self.0.mover
    }

    /// The clock of all deadlines.
    pub fn timer(&self) -> &Arc<dyn Timer> {
        self.0.driver.timer()
    }

    fn store(&self) -> &Arc<Store<M::Disk>> {
        self.0.mover.store()
    }

    /// Waits for `jobs`, and takes what they left in `answers`; what they did not get to is late, or was refused.
    async fn collect<T>(
        &self,
        operation: &'static str,
        deadline: Instant,
        mut jobs: Idle,
        answers: &Mutex<Vec<Option<Result<T>>>>,
    ) -> Vec<Result<T>> {
        let late = match until(&**self.timer(), deadline, Pin::new(&mut jobs)).await {
            // A job that the threads refused was dropped.
            Some(()) => closed(operation),
            None => timed_out(operation, deadline),
        };
        answers.lock().iter_mut().map(|answer| answer.take().unwrap_or_else(|| Err(late.clone()))).collect()
    }

    /// Looks for what the index does not have: another writer of the directory may have stored it.
    async fn look(
        &self,
        request: Probe,
        found: Vec<Option<Found>>,
        pass: Pass,
    ) -> Vec<Result<Option<Found>>> {
        let Probe { keys, deadline, .. } = request;
        let missing: VecDeque<usize> = (0..keys.len()).filter(|i| found[*i].is_none()).collect();
        let jobs = missing.len().min(self.0.mover.width());
        let missing = Arc::new(Mutex::new(missing));
        let answers: Vec<_> = found.into_iter().map(|found| found.map(|found| Ok(Some(found)))).collect();
        let answers = Arc::new(Mutex::new(answers));
        let (job, idle) = latch(Some(pass));
        for _ in 0..jobs {
            let (missing, answers, keys) = (Arc::clone(&missing), Arc::clone(&answers), keys.clone());
            let (job, store) = (job.clone(), Arc::clone(self.store()));
            let look = move || {
                while let Some(i) = { missing.lock().pop_front() } {
                    let found = store.look(&keys[i]);
                    answers.lock()[i] = Some(found);
                }
                drop(job);
            };
            drop(self.0.mover.spawn(true, Box::new(look)));
        }
        drop(job);
        let answers = self.collect(LOOK, deadline, idle, &answers).await;
        // Nobody waits for the rest.
        missing.lock().clear();
        answers
    }
}

const LOOK: &str = "look objects up";

#[async_trait]
impl<M: Mover> L2Store for StoreAdapter<M> {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store objects";
        let deadline = request.deadline;
        // Before any job begins, so that a shutdown either refuses the request or waits for it.
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => {
                drop(request);
                return done.answer_rest(|_| Err(e.clone()));
            }
        };
        let idle = self.0.mover.begin_put(request, &done, &pass);
        self.0.driver.watch(pass, OP, deadline, done, idle).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load objects";
        let deadline = request.deadline;
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return request.refuse(&done, &e),
        };
        let idle = self.0.mover.begin_get(request, &done, &pass);
        self.0.driver.watch(pass, OP, deadline, done, idle).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let none = |keys: &Keys, e: Error| keys.iter().map(|_| Err(e.clone())).collect();
        let pass = match self.0.driver.enter(LOOK, request.deadline) {
            Ok(pass) => pass,
            Err(e) => return none(&request.keys, e),
        };
        match self.store().probe(&request.keys) {
            Ok(found) if self.store().is_shared() => self.look(request, found, pass).await,
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(e) => none(&request.keys, e),
        }
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.driver.shutdown(deadline).await?;
        let store = Arc::clone(self.store());
        let (job, mut idle) = latch(None);
        let close = Box::new(move || {
            store.close();
            drop(job);
        });
        if let Err(close) = self.0.mover.spawn(false, close) {
            // The threads went first; the snapshot is written here instead.
            close();
        }
        until(&**self.timer(), deadline, Pin::new(&mut idle))
            .await
            .ok_or_else(|| timed_out("shut adapter down", deadline))
    }
}

#[async_trait]
impl<M: Mover> L2Remove for StoreAdapter<M> {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        const OP: &str = "remove objects";
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return keys.iter().map(|_| Err(e.clone())).collect(),
        };
        let answers = Arc::new(Mutex::new(vec![None; keys.len()]));
        let (job, idle) = latch(Some(pass));
        for (at, key) in keys.iter().cloned().enumerate() {
            let (answers, job, mover) = (Arc::clone(&answers), job.clone(), Arc::clone(&self.0.mover));
            Arc::clone(self.store()).hold_then(&key.clone(), move |hold| {
                let remove = move || {
                    let removed = hold.remove(&key);
                    drop(hold);
                    answers.lock()[at] = Some(removed);
                    drop(job);
                };
                // The wait for the key may have ended here and now: removing blocks, so it is a thread's work.
                drop(mover.spawn(false, Box::new(remove)));
            });
        }
        drop(job);
        self.collect(OP, deadline, idle, &answers).await
    }
}

#[async_trait]
impl<M: Mover> L2List for StoreAdapter<M> {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        if self.0.driver.is_closed() {
            return Err(closed("list objects"));
        }
        self.store().list(cursor, limit)
    }
}

impl<M: Mover> L2Usage for StoreAdapter<M> {
    fn usage(&self) -> StoreUsage {
        self.store().usage()
    }

    fn parts(&self) -> Vec<PartUsage> {
        Vec::new()
    }
}
