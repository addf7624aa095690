//! The dispatcher: requests in, replies out, no wire.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use kvstrata_core::chunk::ChunkHasher;
use kvstrata_core::{Error, Instant, Result};
use kvstrata_l2::{Context, Timer};
use kvstrata_manager::{Manager, Request as Circumstances};
use parking_lot::Mutex;

use crate::Options;
use crate::api::{Key, Reply, Request};
use crate::counts::{LookupEnd, RequestCounters, RequestCounts, Tokens};
use crate::events::{EventLog, Subscription};
use crate::holdings::{Held, Holdings};
use crate::lookup::{Asked, Found, Job};
use crate::session::Sessions;
use crate::status::{Counters, PinAges, Status, WorkerStatus, add};
use crate::warm::Warm;
use crate::watch::RequestWatch;
use crate::workers::Workers;

/// One client connection, as its wire numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u64);

/// A reply that takes time. It ends by a deadline of its own.
pub type Later = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

/// A service's answer to a request.
pub enum Answer {
    /// At once.
    Now(Reply),
    /// When it is known. Nothing else waits for it.
    Later(Later),
    /// Again and again, until one side ends it.
    Stream(Subscription),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(reply) => f.debug_tuple("Now").field(reply).finish(),
            Self::Later(_) => f.write_str("Later"),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// The cache server without its wires. Clones are handles of the same one.
#[derive(Clone)]
pub struct Service(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) manager: Manager,
    pub(crate) cx: Context,
    pub(crate) options: Options,
    pub(crate) hasher: ChunkHasher,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) workers: Mutex<Workers>,
    pub(crate) holdings: Mutex<Holdings>,
    pub(crate) warm: Mutex<Warm>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) counters: Counters,
    pub(crate) tally: RequestCounters,
    pub(crate) watch: OnceLock<Arc<dyn RequestWatch>>,
}

impl Service {
    /// A service over a manager. `cx` is where its waits run and what its deadlines are read on: the manager's own.
    ///
    /// # Errors
    /// `Invalid` for options that make no sense together.
    pub fn new(manager: Manager, cx: Context, options: Options) -> Result<Self> {
        options.check()?;
        let hasher = ChunkHasher::lmcache(options.chunk_tokens)?;
        let events = EventLog::new(options.event_log, options.incarnation);
        manager.watch_l1(Arc::clone(&events) as Arc<dyn kvstrata_manager::L1Watch>);
        let inner = Arc::new(Inner {
            manager,
            events,
            cx,
            hasher,
            sessions: Mutex::default(),
            workers: Mutex::default(),
            holdings: Mutex::default(),
            warm: Mutex::default(),
            counters: Counters::default(),
            tally: RequestCounters::default(),
            watch: OnceLock::new(),
            options,
        });
        inner.cx.spawn.spawn(Box::pin(keep_house(Arc::downgrade(&inner))));
        Ok(Self(inner))
    }

    /// Serves one request. Never blocks: what takes longer than hashing a prompt is answered later.
    ///
    /// # Errors
    /// Why it cannot be served; the wire then says no in the operation's own way. Nothing is left held.
    pub fn call(&self, client: ClientId, request: Request) -> Result<Answer> {
        let this = &self.0;
        add(&this.counters.requests, 1);
        let (place, begun) = (RequestCounters::place(&request), this.now());
        let teller = self.teller(&request, place.name());
        match self.answer(client, request) {
            // A stream lasts as long as its follower: how long says nothing.
            Ok(answer @ (Answer::Now(_) | Answer::Stream(_))) => {
                let took = this.now() - begun;
                this.tally.answered(place, took, false);
                teller.tell(took, None);
                Ok(answer)
            }
            Ok(Answer::Later(later)) => {
                let inner = Arc::clone(this);
                Ok(Answer::Later(Box::pin(async move {
                    let reply = later.await;
                    let took = inner.now() - begun;
                    inner.tally.answered(place, took, reply.is_err());
                    teller.tell(took, reply.as_ref().err());
                    reply
                })))
            }
            Err(e) => {
                let took = this.now() - begun;
                this.tally.answered(place, took, true);
                teller.tell(took, Some(&e));
                add(&this.counters.refused, 1);
                Err(e)
            }
        }
    }

    fn answer(&self, client: ClientId, request: Request) -> Result<Answer> {
        let this = &self.0;
        match request {
            Request::Lookup(key) => this.lookup(client, &key).map(Answer::Now),
            Request::QueryPrefetchStatus(id) => Ok(Answer::Now(this.lookup_status(&id))),
            Request::WaitPrefetchStatus(id, wait) => Ok(this.wait_for_lookup(&id, wait)),
            Request::FreeLookupLocks(key) => this.free_locks(&key).map(Answer::Now),
            Request::EndSession(id) => Ok(Answer::Now(this.end_session(&id))),
            Request::RegisterEngineDriven(r) => this.register_engine(client, r).map(Answer::Now),
            Request::UnregisterEngineDriven(i) | Request::UnregisterKvCache(i) => {
                Ok(Answer::Now(this.unregister(i)))
            }
            Request::PrepareStore(key, i) => this.prepare_store(client, &key, i).map(Answer::Now),
            Request::CommitStore { key, instance, payload } => {
                this.commit_store(client, &key, instance, payload.len()).map(Answer::Now)
            }
            Request::PrepareRetrieve(key, i) => this.prepare_retrieve(client, &key, i).map(Answer::Now),
            Request::CommitRetrieve(key, i) => this.commit_retrieve(client, &key, i).map(Answer::Now),
            Request::Clear { .. } => Ok(Answer::Now(this.clear())),
            Request::GetChunkSize => Ok(Answer::Now(Reply::Int(this.options.chunk_tokens as u64))),
            Request::Ping(instance) => {
                Ok(Answer::Now(Reply::Bool(instance.is_none_or(|i| this.ping(client, i)))))
            }
            Request::ReportBlockAllocation { .. } => Ok(Answer::Now(Reply::None)),
            Request::Noop => Ok(Answer::Now(Reply::Text("OK".into()))),
            Request::GetExperimental => {
                let offers = if this.events.enabled() { vec!["kv_event_stream".into()] } else { Vec::new() };
                Ok(Answer::Now(Reply::Texts(offers)))
            }
            Request::RegisterKvCache(r) => this.register_kv_cache(client, *r).map(Answer::Now),
            Request::Store { key, instance, blocks, .. } => this.store(client, &key, instance, blocks),
            Request::Retrieve { key, instance, blocks, skip, .. } => {
                this.retrieve(client, &key, instance, blocks, skip)
            }
            Request::SubscribeKvEvents { instance, model, cursor, max_events } => {
                this.events.follow(instance, &model, cursor, max_events).map(Answer::Stream)
            }
        }
    }

    /// Counts a request that could not even be read.
    pub fn unreadable(&self) {
        add(&self.0.counters.requests, 1);
        add(&self.0.counters.refused, 1);
    }

    /// A connection has ended. Workers that have no other one are taken to be gone if they do not come back soon, and so
    /// are the requests that nobody else asked about.
    pub fn disconnected(&self, client: ClientId) {
        let alone = self.0.workers.lock().disconnected(client);
        let (inner, grace) = (Arc::downgrade(&self.0), self.0.options.disconnect_grace);
        let (timer, until) = (Arc::clone(&self.0.cx.timer), self.0.now() + grace);
        self.0.cx.spawn.spawn(Box::pin(async move {
            timer.sleep_until(until).await;
            let Some(inner) = inner.upgrade() else { return };
            for instance in alone {
                if inner.workers.lock().left_alone(instance) {
                    inner.give_back(instance);
                }
            }
            // Freed outside of the lock.
            let sessions = inner.sessions.lock().left_alone(client);
            add(&inner.counters.sessions_expired, sessions.len() as u64);
        }));
    }

    /// The manager under it.
    pub fn manager(&self) -> &Manager {
        &self.0.manager
    }

    /// How it treats its clients.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// What it has counted of its clients' requests.
    pub fn request_counts(&self) -> RequestCounts {
        self.0.tally.counts()
    }

    /// What it holds and has counted.
    pub fn status(&self) -> Status {
        let this = &self.0;
        let (sessions, jobs) = {
            let sessions = this.sessions.lock();
            (sessions.len(), sessions.jobs().cloned().collect::<Vec<_>>())
        };
        let now = this.now();
        let (leases, quarantined, write, read) = {
            let holdings = this.holdings.lock();
            let (write, read) = holdings.oldest();
            (holdings.live(), holdings.quarantined(), write, read)
        };
        // A lease says when it ends, and each began one time limit before.
        let since = |expires: Option<Instant>, lease| expires.map(|e| (now + lease).since(e));
        let oldest = PinAges {
            lookup: jobs.iter().filter_map(|j| j.pinned_since()).min().map(|at| now.since(at)),
            write: since(write, this.options.write_lease),
            read: since(read, this.options.read_lease),
        };
        let workers = {
            let workers = this.workers.lock();
            let status = |(instance, w): (i64, &crate::workers::Worker)| {
                let (mode, block_size, mla, layers) = w.kind.summary();
                WorkerStatus {
                    instance,
                    mode,
                    model: Arc::clone(&w.model),
                    world_size: w.world_size,
                    layout: w.layout.clone(),
                    block_size,
                    mla,
                    layers,
                    connected: workers.connected(instance),
                }
            };
            workers.iter().map(status).collect()
        };
        Status {
            chunk_tokens: this.options.chunk_tokens,
            sessions,
            lookups_running: jobs.iter().filter(|j| !j.is_over()).count(),
            locked_chunks: jobs.iter().map(|j| j.pins()).sum(),
            leases,
            quarantined,
            followers: this.events.followers(),
            oldest,
            workers,
            counts: this.counters.counts(),
        }
    }

    /// Gives everything back that sessions and workers hold. For the end, when no client is served any more.
    pub fn close(&self) {
        let sessions = self.0.sessions.lock().drain();
        drop(sessions);
        let instances: Vec<i64> = self.0.workers.lock().iter().map(|(i, _)| i).collect();
        instances.into_iter().for_each(|i| drop(self.0.unregister(i)));
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({} sessions)", self.0.sessions.lock().len())
    }
}

impl Inner {
    pub(crate) fn now(&self) -> Instant {
        self.cx.timer.now()
    }

    /// Puts the hashes of a key's chunks in its session, which begins here if it is new, and returns them with what policies
    /// are to see of the session.
    pub(crate) fn hashed(
        &self,
        client: ClientId,
        key: &Key,
        chunks: usize,
    ) -> Result<(Arc<Vec<[u8; 32]>>, Circumstances)> {
        let (now, most) = (self.now(), self.options.max_sessions);
        let begin = || self.manager.request(self.options.lookup_timeout);
        // Hashed outside of the lock, since a long prompt takes its time.
        let (mut chain, circumstances) = {
            let mut sessions = self.sessions.lock();
            let session = sessions.enter(&key.request, client, now, most, begin)?;
            (session.chain.clone(), session.circumstances)
        };
        let made = chain.cover(&self.hasher, &key.tokens, chunks);
        add(&self.counters.chunks_hashed, made as u64);
        let hashes = Arc::clone(chain.hashes());
        if let Ok(session) = self.sessions.lock().enter(&key.request, client, now, most, || circumstances) {
            session.chain = chain;
        }
        Ok((hashes, Circumstances { deadline: now + self.options.lookup_timeout, ..circumstances }))
    }

    /// Begins a lookup. Whatever becomes of it, there is a job under the session's name before this returns, since the
    /// client asks for its answer next.
    fn lookup(self: &Arc<Self>, client: ClientId, key: &Key) -> Result<Reply> {
        let job = Arc::new(Job::default());
        let asked = self.asked(client, key);
        let (now, most) = (self.now(), self.options.max_sessions);
        let replaced = {
            let begin = || self.manager.request(self.options.lookup_timeout);
            let mut sessions = self.sessions.lock();
            let session = sessions.enter(&key.request, client, now, most, begin)?;
            if let Ok((Some(asked), _)) = &asked {
                session.scopes.clone_from(&asked.scopes);
            }
            session.job.replace(Arc::clone(&job))
        };
        drop(replaced);
        let (asked, rq) = match asked {
            Ok((Some(asked), rq)) => (asked, rq),
            Ok((None, _)) => {
                job.finish(Found::nothing(now));
                self.tally.lookup_ended(if key.chunks(self.options.chunk_tokens)?.end > 0 {
                    LookupEnd::NoWorker
                } else {
                    LookupEnd::TooShort
                });
                return Ok(Reply::None);
            }
            Err(e) => {
                job.finish(Found::nothing(now));
                return Err(e);
            }
        };
        let inner = Arc::clone(self);
        // Chunks that come back from L2 are news to those who follow.
        let tokens = self.events.on().then(|| key.tokens.clone());
        let (model, salt) = (key.model.clone(), key.salt.clone());
        let mut work = Box::pin(async move {
            let (hashes, chunk) = (&asked.hashes, inner.options.chunk_tokens);
            let bound = tokens.as_ref().map(|t| inner.events.bind(hashes, t, chunk, 0..asked.chunks));
            let found = Found::find(&inner.manager, &rq, &asked).await;
            drop(bound);
            let tokens = |chunks: usize| (chunks * inner.options.chunk_tokens) as u64;
            add(&inner.counters.lookups, 1);
            add(&inner.counters.lookup_tokens, tokens(asked.chunks));
            add(&inner.counters.hit_tokens, tokens(found.chunks));
            add(&inner.counters.hit_l1_tokens, tokens(found.l1_chunks));
            let tokens = Tokens { chunks: asked.chunks, per_chunk: inner.options.chunk_tokens };
            inner.tally.looked_up(&model, &salt, tokens, &found, inner.now() - now);
            job.finish(found);
        });
        // What L1 has needs no task of its own.
        let mut cx = TaskContext::from_waker(Waker::noop());
        if work.as_mut().poll(&mut cx) == Poll::Pending {
            self.cx.spawn.spawn(work);
        }
        Ok(Reply::None)
    }

    /// What a lookup's key asks for; nothing, if no worker has said yet how the model's chunks look.
    fn asked(&self, client: ClientId, key: &Key) -> Result<(Option<Asked>, Circumstances)> {
        let readers = u32::try_from(key.readers).ok().filter(|n| *n > 0).ok_or_else(|| {
            let m = "a lookup says how many workers will read: clients since 0.5.5 do";
            Error::invalid("look up", m).with("num_kv_readers", key.readers)
        })?;
        // A lookup is of the whole prefix, wherever its range begins.
        let chunks = key.chunks(self.options.chunk_tokens)?.end;
        let scopes = Asked::scopes(key)?;
        let (hashes, rq) = self.hashed(client, key, chunks)?;
        let layout = self.workers.lock().layout(&key.model, key.world_size);
        let Some(layout) = layout else {
            tracing::debug!(
                model = key.model,
                world_size = key.world_size,
                "no worker of this model is registered"
            );
            return Ok((None, rq));
        };
        Ok(((chunks > 0).then_some(Asked { scopes, hashes, chunks, layout, readers }), rq))
    }

    fn job(&self, id: &str) -> Option<Arc<Job>> {
        self.sessions.lock().get(id).and_then(|s| s.job.clone())
    }

    fn lookup_status(&self, id: &str) -> Reply {
        match self.job(id) {
            // As LMCache answers for what it does not know.
            None => Reply::Int(0),
            Some(job) => job.answer().map_or(Reply::None, |chunks| Reply::Int(chunks as u64)),
        }
    }

    fn wait_for_lookup(&self, id: &str, wait: Duration) -> Answer {
        let Some(job) = self.job(id) else { return Answer::Now(Reply::Int(0)) };
        if job.is_over() {
            return Answer::Now(self.lookup_status(id));
        }
        let timer: Arc<dyn Timer> = Arc::clone(&self.cx.timer);
        let until = self.now() + wait.min(self.options.wait_max);
        Answer::Later(Box::pin(async move {
            let ended = job.ended.notified();
            let mut ended = std::pin::pin!(ended);
            ended.as_mut().enable();
            if !job.is_over() {
                tokio::select! {
                    biased;
                    () = ended => {}
                    () = timer.sleep_until(until) => {}
                }
            }
            Ok(job.answer().map_or(Reply::None, |chunks| Reply::Int(chunks as u64)))
        }))
    }

    fn free_locks(&self, key: &Key) -> Result<Reply> {
        let range = key.chunks(self.options.chunk_tokens)?;
        let readers = u32::try_from(key.readers).unwrap_or(0).max(1);
        let scopes = Asked::scopes(key)?;
        if let Some(job) = self.job(&key.request) {
            for scope in &scopes {
                drop(job.unlock(Some(scope), range.clone(), readers));
            }
        }
        Ok(Reply::None)
    }

    /// The engine's request is over: its locks go, and what it used is marked as used. What a worker is still writing or
    /// reading for it is the worker's own, until that commits or is gone.
    fn end_session(&self, id: &str) -> Reply {
        let session = self.sessions.lock().end(id);
        if let Some(session) = session {
            drop(session.job);
            let hashes = session.chain.hashes();
            for scope in &session.scopes {
                let keys = crate::chain::keys(scope, hashes);
                let all = kvstrata_core::KeyMask::all(keys.len());
                self.manager.touch(&session.circumstances, &keys, &all);
            }
        }
        Reply::None
    }

    fn ping(&self, client: ClientId, instance: i64) -> bool {
        let now = self.now();
        let mut workers = self.workers.lock();
        let Some(worker) = workers.get_mut(instance) else { return workers.stranger(instance) };
        worker.last_seen = now;
        worker.pinged = true;
        workers.heard(client, instance);
        true
    }

    /// Empties L1. What is held stays with those who hold it.
    fn clear(&self) -> Reply {
        let chunks = self.manager.clear();
        tracing::info!(chunks, "L1 was cleared");
        Reply::None
    }

    /// The worker says that it is done.
    pub(crate) fn unregister(&self, instance: i64) -> Reply {
        if self.workers.lock().unregister(instance).is_none() {
            tracing::warn!(instance, "a worker that is not registered unregistered");
        }
        self.give_back(instance);
        Reply::None
    }

    /// A worker is gone: what it was writing is dropped unseen, and what it was reading may be evicted again.
    fn give_back(&self, instance: i64) {
        self.events.end(instance);
        let held = self.holdings.lock().gone(instance);
        let aborted = held.iter().filter(|h| matches!(h, Held::Write(_))).count();
        if aborted > 0 {
            add(&self.counters.stores_aborted, aborted as u64);
            tracing::warn!(
                instance,
                stores = aborted,
                "a worker went without committing what it had begun to store"
            );
        }
    }

    /// What only time shows: sessions and workers that nobody hears of, and leases that ran out.
    fn sweep(&self) {
        let now = self.now();
        if !self.options.session_ttl.is_zero() {
            let expired = self.sessions.lock().expired(now, self.options.session_ttl);
            add(&self.counters.sessions_expired, expired.len() as u64);
        }
        // Freed outside of the lock.
        let jobs: Vec<_> = self.sessions.lock().jobs().cloned().collect();
        if let Some(since) = now.as_nanos().checked_sub(self.options.read_lease.as_nanos() as u64) {
            jobs.iter().for_each(|job| drop(job.expire(Instant::from_nanos(since))));
        }
        let lapsed = self.holdings.lock().lapse(now);
        if lapsed > 0 {
            add(&self.counters.leases_lapsed, lapsed as u64);
            tracing::warn!(
                lapsed,
                "transfers took too long; their buffers are kept until their workers are gone"
            );
        }
        if self.options.reap_timeout.is_zero() {
            return;
        }
        let (reap, grace) = (self.options.reap_timeout, self.options.registration_grace);
        let silent = self.workers.lock().silent(now, reap, grace);
        for instance in silent {
            add(&self.counters.workers_reaped, 1);
            tracing::warn!(instance, "a worker was silent for too long and is forgotten");
            if self.workers.lock().connected(instance) {
                // It may only be stuck, in the middle of a copy.
                self.holdings.lock().revoke(instance);
            } else {
                self.give_back(instance);
            }
        }
    }
}

/// Sweeps until the service is gone.
async fn keep_house(inner: Weak<Inner>) {
    loop {
        let (timer, next) = {
            let Some(inner) = inner.upgrade() else { return };
            inner.sweep();
            let shortest = [
                inner.options.reap_timeout,
                inner.options.session_ttl,
                inner.options.write_lease,
                inner.options.read_lease,
            ];
            let every = shortest.into_iter().filter(|d| !d.is_zero()).min().unwrap_or(Duration::MAX) / 4;
            let every = every.clamp(Duration::from_millis(10), Duration::from_secs(30));
            (Arc::clone(&inner.cx.timer), inner.now() + every)
        };
        timer.sleep_until(next).await;
    }
}
