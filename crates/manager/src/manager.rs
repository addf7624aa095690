//! The thin driver: one lock around the machine, and tokio around that.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::{Affinity, Error, ErrorKind, Instant, KeyMask, ObjectKey, Result};
use kvstrata_evict::{Admission, Contained, EvictionPolicy};
use kvstrata_l2::{Adapter, Call, Context, Put, PutDigest, PutItem, PutSink, Stored, Timer, all};
use kvstrata_mem::sync::{Mutex, RwLock};
use kvstrata_mem::{Allocate, SpaceWatch};
use kvstrata_policy::{L2Id, LoadTime, PrefetchPolicy, StorePolicy};
use tokio::sync::{Notify, watch};

use crate::adapters::Attached;
use crate::guard::{Hit, Hits};
use crate::machine::{Effect, Machine, Room};
use crate::room::Waiters;
use crate::{
    Committed, Deleted, Fault, Grant, Layouts, ManagerUsage, Options, Part, Request, Reservation, Reserved,
    StoredHook, TierId, Wait,
};

/// What a manager is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where stored and retained chunks live; its limit is the cache budget.
    pub cache: Arc<dyn Allocate>,
    /// Where temporary chunks live; its limit is the staging budget.
    pub staging: Arc<dyn Allocate>,
    /// Who leaves L1 first.
    pub eviction: Box<dyn EvictionPolicy>,
    /// Who comes into L1.
    pub admission: Box<dyn Admission>,
    /// Where chunks are stored.
    pub store: Box<dyn StorePolicy>,
    /// From where they are loaded.
    pub prefetch: Box<dyn PrefetchPolicy>,
    /// Time, and where tasks run. The adapters' own context must have the same timer: deadlines are read on it.
    pub cx: Context,
}

/// The storage manager. Clones are handles of the same one.
#[derive(Clone)]
pub struct Manager(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    machine: Mutex<Machine>,
    pub(crate) cache: Arc<dyn Allocate>,
    pub(crate) staging: Arc<dyn Allocate>,
    pub(crate) prefetch: Contained<dyn PrefetchPolicy>,
    /// Said once.
    pub(crate) prefetch_out: std::sync::Once,
    pub(crate) adapters: RwLock<Vec<Attached>>,
    pub(crate) timer: Arc<dyn Timer>,
    pub(crate) cx: Context,
    room: Arc<Waiters>,
    retry: Arc<Notify>,
    /// Told when a store operation ended, for those who wait for quiet.
    pub(crate) quiet: Notify,
    gone: watch::Sender<bool>,
    next_request: AtomicU64,
    pub(crate) next_tier: AtomicU64,
}

/// An adapter that takes new work.
pub(crate) struct Serving {
    pub(crate) id: L2Id,
    pub(crate) adapter: Adapter,
    pub(crate) weight: u32,
    pub(crate) load_time: Option<LoadTime>,
}

impl Inner {
    /// One critical section, and then what it left to do.
    pub(crate) fn with<R>(self: &Arc<Self>, f: impl FnOnce(&mut Machine) -> R) -> R {
        let (result, effects, due, roomier) = {
            let mut machine = self.machine.lock();
            let before = machine.next_due();
            let result = f(&mut machine);
            machine.contain();
            let due = machine.next_due();
            (
                result,
                std::mem::take(&mut machine.effects),
                due != before,
                std::mem::take(&mut machine.roomier),
            )
        };
        if due {
            self.retry.notify_one();
        }
        for effect in effects {
            self.perform(effect);
        }
        if roomier {
            self.room.tell();
        }
        result
    }

    fn perform(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::Put { tier, op, items, affinity } => self.put(tier, op, items, affinity),
            Effect::Remove { tier, key } => self.undo(tier, key),
            Effect::Hook { hook, key } => {
                if catch_unwind(AssertUnwindSafe(|| hook.stored(&key))).is_err() {
                    tracing::error!(%key, "a completion hook panicked");
                    self.with(|m| m.stats.hook_panics += 1);
                }
            }
        }
    }

    /// Takes away what was stored after it had been deleted. Counted as a store in flight until then.
    fn undo(self: &Arc<Self>, tier: L2Id, key: ObjectKey) {
        let undo = Arc::new(Undo { inner: Arc::clone(self), tier, open: AtomicBool::new(true) });
        let Some(remove) = self.adapter(tier).and_then(|a| a.remove) else { return };
        let deadline = self.timer.now() + self.machine.lock().options.store_timeout;
        let late = Arc::clone(&undo);
        let work = async move {
            let answers = remove.remove([key.clone()].into(), deadline).await;
            let failed = answers.iter().find_map(|a| a.as_ref().err());
            if let Some(error) = failed {
                tracing::warn!(%key, %error, "a deleted key stays in an adapter that was storing it");
            }
            undo.ended(failed.is_none() && !answers.is_empty());
        };
        self.bounded(deadline, work, move || late.ended(false));
    }

    fn put(
        self: &Arc<Self>,
        tier: L2Id,
        op: u64,
        items: Vec<(ObjectKey, kvstrata_core::Layout, kvstrata_mem::ReadBuf)>,
        affinity: Affinity,
    ) {
        let inner = Arc::clone(self);
        let receiver = move |position, answer: Result<Stored>| {
            let now = inner.timer.now();
            inner.with(|m| m.stored(now, op, position, answer));
            inner.quiet.notify_waiters();
        };
        let sink = PutSink::new(items.len(), Arc::new(receiver));
        let Some(adapter) = self.adapter(tier) else {
            return sink
                .answer_rest(|_| Err(Error::new(ErrorKind::Closed, "store", "the adapter was removed")));
        };
        let deadline = self.timer.now() + self.machine.lock().options.store_timeout;
        let items = items
            .into_iter()
            .map(|(key, layout, buf)| PutItem { key, layout, digest: PutDigest::None, buf })
            .collect();
        let late = sink.clone();
        let work = async move { adapter.store.put(Put { items, deadline, affinity }, sink).await };
        self.bounded(deadline, work, move || {
            late.answer_rest(|_| {
                Err(Error::new(ErrorKind::TimedOut, "store", "the adapter did not answer in time"))
            });
        });
    }

    /// Runs an adapter's call as a task of its own. If it has not ended by its deadline, `late` answers in its place; the
    /// call is left to finish, since its buffers are the driver's until it does.
    pub(crate) fn bounded(
        &self,
        deadline: Instant,
        work: impl Future<Output = ()> + Send + 'static,
        late: impl FnOnce() + Send + 'static,
    ) {
        let timer = Arc::clone(&self.timer);
        let mut gone = self.gone.subscribe();
        self.cx.spawn.spawn(Box::pin(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                biased;
                () = &mut work => return,
                () = timer.sleep_until(deadline) => late(),
            }
            tokio::select! {
                biased;
                () = work => {}
                _ = gone.wait_for(|gone| *gone) => {}
            }
        }));
    }

    /// Shuts an adapter down, and waits no longer than until `deadline` whatever it does.
    pub(crate) async fn end(&self, adapter: &Adapter, deadline: Instant) -> Result<()> {
        tokio::select! {
            biased;
            ended = adapter.store.shutdown(deadline) => ended,
            () = self.timer.sleep_until(deadline) => {
                let e = Error::new(ErrorKind::TimedOut, "shut down", "the adapter did not end in time");
                Err(e.with("adapter", &adapter.store.desc().name))
            }
        }
    }

    pub(crate) fn adapter(&self, tier: L2Id) -> Option<Adapter> {
        self.adapters.read().iter().find(|a| a.id == tier).map(|a| a.adapter.clone())
    }

    /// The adapters that take new work, in order.
    pub(crate) fn serving(&self) -> Vec<Serving> {
        let now = self.timer.now();
        let tiers: Vec<_> = {
            let machine = self.machine.lock();
            let live = machine.tiers.iter().filter(|t| t.serves());
            live.map(|t| (t.id, t.weight, t.pace.and_then(|p| p.lately(now)))).collect()
        };
        let adapters = self.adapters.read();
        let adapter = |id| adapters.iter().find(|a| a.id == id).map(|a| a.adapter.clone());
        tiers
            .into_iter()
            .filter_map(|(id, weight, load_time)| {
                Some(Serving { id, adapter: adapter(id)?, weight, load_time })
            })
            .collect()
    }

    /// Waits until `done` says so or `deadline` passes; whether it said so.
    pub(crate) async fn quiet(
        self: &Arc<Self>,
        deadline: Instant,
        mut done: impl FnMut(&mut Machine) -> bool,
    ) -> bool {
        loop {
            let told = self.quiet.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if self.with(&mut done) {
                return true;
            }
            tokio::select! {
                biased;
                () = told => {}
                () = self.timer.sleep_until(deadline) => return self.with(&mut done),
            }
        }
    }
}

/// A store that is being undone. Dropped without an end, because the adapter panicked or there is none, it was not.
struct Undo {
    inner: Arc<Inner>,
    tier: L2Id,
    open: AtomicBool,
}

impl Undo {
    fn ended(&self, gone: bool) {
        if self.open.swap(false, Ordering::Relaxed) {
            self.inner.with(|m| m.undone(self.tier, gone));
            self.inner.quiet.notify_waiters();
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.ended(false);
    }
}

pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the manager is shutting down")
}

impl Manager {
    /// A manager without adapters yet.
    ///
    /// # Errors
    /// `Invalid` if an option is out of range.
    pub fn new(parts: Parts, options: Options) -> Result<Self> {
        if options.store_attempts == 0 {
            return Err(
                Error::invalid("make manager", "a store is tried at least once").with("store_attempts", 0)
            );
        }
        let (cache, staging) = (Arc::clone(&parts.cache), Arc::clone(&parts.staging));
        let machine = Machine::new(cache, staging, parts.eviction, parts.admission, parts.store, options);
        let inner = Arc::new(Inner {
            machine: Mutex::new(machine),
            cache: parts.cache,
            staging: parts.staging,
            prefetch: Contained::new(parts.prefetch),
            prefetch_out: std::sync::Once::new(),
            adapters: RwLock::default(),
            timer: Arc::clone(&parts.cx.timer),
            cx: parts.cx,
            room: Arc::default(),
            retry: Arc::default(),
            quiet: Notify::new(),
            gone: watch::Sender::new(false),
            next_request: AtomicU64::new(1),
            next_tier: AtomicU64::new(0),
        });
        for pool in [&inner.cache, &inner.staging] {
            pool.watch_space(Arc::clone(&inner.room) as Arc<dyn SpaceWatch>);
        }
        inner.cx.spawn.spawn(Box::pin(retries(Arc::downgrade(&inner), Arc::clone(&inner.retry))));
        Ok(Self(inner))
    }

    /// Has `watch` told of what comes into L1 and leaves it from now on. There is one at most; a later one takes its place.
    pub fn watch_l1(&self, watch: Arc<dyn crate::L1Watch>) {
        self.0.with(|m| m.index.watch = Some(watch));
    }

    /// Starts a request that must be over in `within`.
    pub fn request(&self, within: Duration) -> Request {
        Request {
            id: self.0.next_request.fetch_add(1, Ordering::Relaxed),
            deadline: self.0.timer.now() + within,
            affinity: Affinity::default(),
            first: 0,
        }
    }

    /// Now, on the timer that deadlines are read on.
    pub fn now(&self) -> Instant {
        self.0.timer.now()
    }

    // ---- storing -----------------------------------------------------------------------------------------------

    /// Sets buffers aside for the `wanted` keys of a batch: consecutive chunks of one chain, first to last. What is
    /// resident or being written by somebody else is skipped. `grant` and `wait` say what happens when L1 is full; under
    /// [`Grant::Part`] a wait ends with the first key that gets room.
    ///
    /// # Panics
    /// If `wanted` has another length than `keys`.
    pub async fn reserve(
        &self,
        rq: &Request,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        grant: Grant,
        wait: Wait,
    ) -> Vec<Reserved> {
        loop {
            let waiting = self.0.room.enter();
            let told = waiting.told();
            let mut told = std::pin::pin!(told);
            // Listening starts before the try, so that room that comes free in between is not missed.
            told.as_mut().enable();
            let reserved = self.reserve_once(rq, keys, wanted, layouts, grant);
            let granted = reserved.iter().any(|r| matches!(r, Reserved::Granted(_)));
            let full =
                reserved.iter().any(|r| matches!(r, Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace));
            if wait == Wait::No || granted || !full || self.0.timer.now() >= rq.deadline {
                return self.counted(reserved);
            }
            drop(reserved);
            let last = tokio::select! {
                biased;
                () = told => false,
                () = self.0.timer.sleep_until(rq.deadline) => true,
            };
            if last {
                return self.counted(self.reserve_once(rq, keys, wanted, layouts, grant));
            }
            // Being told is a hint. Many small frees are answered by one try, not by one each.
            let soon = self.0.timer.now() + Duration::from_micros(100);
            self.0.timer.sleep_until(soon.min(rq.deadline)).await;
        }
    }

    /// [`Self::reserve`] with [`Wait::No`], for callers outside of async code.
    pub fn try_reserve(
        &self,
        rq: &Request,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        grant: Grant,
    ) -> Vec<Reserved> {
        self.counted(self.reserve_once(rq, keys, wanted, layouts, grant))
    }

    fn reserve_once(
        &self,
        rq: &Request,
        keys: &[ObjectKey],
        wanted: &KeyMask,
        layouts: &Layouts,
        grant: Grant,
    ) -> Vec<Reserved> {
        let rooms = self.0.with(|m| {
            if m.closed {
                keys.iter().map(|_| Room::Refused(closed("reserve"))).collect()
            } else {
                m.reserve(keys, wanted, layouts, grant, rq.access(keys.len()), rq.affinity)
            }
        });
        let guard = |room| match room {
            Room::Granted(granted) => {
                Reserved::Granted(Reservation { granted: Some(granted), inner: Arc::clone(&self.0) })
            }
            Room::Unwanted => Reserved::Unwanted,
            Room::NotAdmitted => Reserved::NotAdmitted,
            Room::Resident => Reserved::Resident,
            Room::Busy => Reserved::Busy,
            Room::Refused(e) => Reserved::Refused(e),
        };
        rooms.into_iter().map(guard).collect()
    }

    fn counted(&self, reserved: Vec<Reserved>) -> Vec<Reserved> {
        let count = |of: fn(&Reserved) -> bool| reserved.iter().filter(|r| of(r)).count() as u64;
        let declined = count(|r| matches!(r, Reserved::Refused(_)));
        let not_admitted = count(|r| matches!(r, Reserved::NotAdmitted));
        if declined + not_admitted > 0 {
            self.0.with(|m| {
                m.stats.declined += declined;
                m.stats.not_admitted += not_admitted;
            });
        }
        reserved
    }

    /// Makes filled buffers readable and sends them to L2. The reservations are chunks of one chain, first to last; the
    /// answers are in their order.
    pub fn commit(&self, reservations: Vec<Reservation>) -> Vec<Committed> {
        self.commit_with(reservations, None)
    }

    /// [`Self::commit`] with a hook that is called for each key once it can be read from L2.
    pub fn commit_with(
        &self,
        reservations: Vec<Reservation>,
        hook: Option<Arc<dyn StoredHook>>,
    ) -> Vec<Committed> {
        let granted = reservations.into_iter().filter_map(|mut r| r.granted.take()).collect();
        self.0.with(|m| m.commit(granted, hook.as_ref()))
    }

    // ---- reading -----------------------------------------------------------------------------------------------

    /// Pins what L1 has of a batch, and asks nobody else. The pinned chunks count as used only when they are touched.
    pub fn read(&self, rq: &Request, keys: &[ObjectKey]) -> Hits {
        let found = self.0.with(|m| m.read(keys, rq.access(keys.len())));
        let hit = |(handle, buf)| Hit { buf, handle: Some(handle), source: TierId::L1 };
        Hits { hits: found.into_iter().map(|f| f.map(hit)).collect(), inner: Arc::clone(&self.0) }
    }

    /// Marks keys of a batch as used, last chunk first, so that what is evicted later leaves a usable prefix. Keys that
    /// are not in L1 are passed over. Engines do this when they have stored what was missing, so that the front of a
    /// chain is always younger than its end.
    ///
    /// # Panics
    /// If `which` has another length than `keys`.
    pub fn touch(&self, rq: &Request, keys: &[ObjectKey], which: &KeyMask) {
        self.0.with(|m| m.touch(keys, which, rq.access(keys.len())));
    }

    // ---- leaving -----------------------------------------------------------------------------------------------

    /// Deletes keys from L1 and from every adapter that can delete. Whoever reads a chunk now may finish; nobody finds it
    /// any more. A store in flight is undone when it ends.
    pub async fn delete(&self, rq: &Request, keys: &[ObjectKey]) -> Deleted {
        let l1 = self.0.with(|m| m.delete(keys));
        let mut deleted = Deleted { l1, l2: KeyMask::none(keys.len()), failed: Vec::new() };
        let adapters = self.0.adapters.read().clone();
        // All at once, so that one that hangs takes no time from the others.
        let remove = |attached: &Attached| {
            let (remove, deadline, keys) = (attached.adapter.remove.clone(), rq.deadline, keys.into());
            Box::pin(async move {
                let remove = remove.ok_or("the adapter cannot delete")?;
                tokio::select! {
                    biased;
                    answers = remove.remove(keys, deadline) => Ok(answers),
                    () = self.0.timer.sleep_until(deadline) => Err("no answer by the deadline"),
                }
            }) as Call<'_, std::result::Result<Vec<Result<bool>>, &'static str>>
        };
        let answers = all(adapters.iter().map(remove).collect()).await;
        for (Attached { adapter, .. }, answers) in adapters.iter().zip(answers) {
            let mut failed = |why: String| deleted.failed.push((adapter.store.desc().name.clone(), why));
            match answers {
                Err(why) => failed(why.into()),
                Ok(answers) => {
                    for (i, answer) in answers.into_iter().enumerate() {
                        match answer {
                            Ok(true) => deleted.l2.set(i),
                            Ok(false) => {}
                            Err(e) => failed(e.to_string()),
                        }
                    }
                }
            }
        }
        deleted
    }

    /// Empties L1; how many chunks went. What is pinned goes with its last pin; L2 keeps what it has.
    pub fn clear(&self) -> usize {
        self.0.with(Machine::clear)
    }

    // ---- the whole ---------------------------------------------------------------------------------------------

    /// How full everything is, and what is held.
    pub fn usage(&self) -> ManagerUsage {
        let adapters = self.0.adapters.read().clone().iter().map(Attached::usage).collect();
        let (cache, staging) = (self.0.cache.usage(), self.0.staging.usage());
        let prefetch =
            self.0.prefetch.fault().map(|panic| Fault { part: Part::Prefetch, panic: panic.into() });
        self.0.with(|m| ManagerUsage {
            faults: m.faults().into_iter().chain(prefetch).collect(),
            cache,
            staging,
            resident: m.index.len(),
            pinned: m.pinned,
            reserved: m.reserved(),
            storing: m.storing(),
            adapters,
            stats: m.stats,
        })
    }

    /// Waits until no store is in flight or due for a retry.
    ///
    /// # Errors
    /// `TimedOut` if that is not so after `within`.
    pub async fn flush(&self, within: Duration) -> Result<()> {
        if self.0.quiet(self.0.timer.now() + within, |m| m.storing() == 0).await {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TimedOut, "flush", "stores are still in flight"))
    }

    /// Ends everything: new reservations are refused, stores in flight are waited for, retries are given up, and the
    /// adapters are shut down. L1 stays readable for those who hold pins.
    ///
    /// # Errors
    /// `TimedOut` if something was still in flight after `within`; the first error of an adapter's own shutdown.
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        let now = self.0.timer.now();
        let (patience, deadline) = (now + within / 4 * 3, now + within);
        self.0.with(|m| {
            m.closed = true;
            m.give_up(None);
        });
        let adapters = self.0.adapters.read().clone();
        // Each for itself, so that one that hangs takes no time from the others. It may end while its own last stores are on
        // their way when a quarter of the time is left.
        let end = |attached: &Attached| {
            let (inner, id, adapter) = (Arc::clone(&self.0), attached.id, attached.adapter.clone());
            Box::pin(async move {
                inner.quiet(patience, |m| m.is_idle(id)).await;
                inner.end(&adapter, deadline).await
            }) as Call<'_, Result<()>>
        };
        let ended = all(adapters.iter().map(end).collect()).await;
        let quiet = self.0.quiet(deadline, |m| m.storing() == 0).await;
        self.0.adapters.write().clear();
        self.0.with(|m| m.tiers.clear());
        self.0.gone.send_replace(true);
        self.0.retry.notify_one();
        if !quiet {
            return Err(Error::new(ErrorKind::TimedOut, "shut down", "stores were still in flight"));
        }
        ended.into_iter().collect()
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("usage", &self.usage()).finish()
    }
}

/// Makes retries when they are due. Ends with the manager.
async fn retries(inner: std::sync::Weak<Inner>, changed: Arc<Notify>) {
    loop {
        let (timer, due) = {
            let Some(inner) = inner.upgrade() else { return };
            if *inner.gone.borrow() {
                return;
            }
            let now = inner.timer.now();
            let due = inner.with(|m| {
                m.fire(now);
                m.next_due()
            });
            inner.quiet.notify_waiters();
            (Arc::clone(&inner.timer), due)
        };
        match due {
            None => changed.notified().await,
            Some(due) => tokio::select! {
                biased;
                () = changed.notified() => {}
                () = timer.sleep_until(due) => {}
            },
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.retry.notify_one();
    }
}
