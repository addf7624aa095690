//! Looking up and loading.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, KeyMask, ObjectKey, Result};
use kvstrata_evict::Access;
use kvstrata_l2::{Adapter, Answer, Call, Found, Get, GetItem, GetSink, Keys, Miss, Probe, all, timed_out};
use kvstrata_mem::sync::Mutex;
use kvstrata_mem::{UNIT, WriteBuf};
use kvstrata_policy::{Admit, L2Id, Plan, TierView};
use tokio::sync::mpsc;

use crate::guard::Hit;
use crate::machine::Arrival;
use crate::manager::{Inner, Serving};
use crate::pace::{Lap, Took};
use crate::{Hits, Layouts, LoadMode, Manager, Pin, Request, TierId};

/// What is where, for one batch. The L1 hits are pinned in here.
pub struct Lookup {
    keys: Keys,
    rq: Request,
    hits: Hits,
    tiers: Vec<(Serving, KeyMask)>,
}

impl Lookup {
    /// The pinned L1 hits.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Keys that are in L1.
    pub fn l1(&self) -> KeyMask {
        self.hits.mask()
    }

    /// Keys that some adapter has and L1 has not.
    pub fn l2(&self) -> KeyMask {
        let mut found = KeyMask::none(self.keys.len());
        self.tiers.iter().for_each(|(_, has)| found.union(has));
        found
    }

    /// How many chunks from the front are somewhere: the prefix an engine can use.
    pub fn prefix(&self) -> usize {
        let mut any = self.l1();
        any.union(&self.l2());
        any.prefix()
    }

    /// Keeps the L1 hits only.
    pub fn into_hits(self) -> Hits {
        self.hits
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("l1", &self.l1()).field("l2", &self.l2()).finish()
    }
}

/// One key's answer to a load.
#[derive(Debug)]
pub enum LoadAnswer {
    /// The bytes, pinned.
    Hit(Pin),
    /// It is not there. In modes of a prefix also every key behind the first gap ([`Miss::Absent`]).
    Miss(Miss),
    /// It could not be had: an error of the adapter, no room in L1, or no answer by the deadline.
    Failed(Error),
}

/// The answers of a load as they arrive. Dropping it lets go of what has arrived; what is in flight ends on its own.
pub struct Loading {
    inner: Arc<Inner>,
    rq: Request,
    ready: VecDeque<(usize, LoadAnswer)>,
    arriving: mpsc::UnboundedReceiver<(usize, LoadAnswer)>,
    /// Keys without an answer yet.
    waiting: KeyMask,
}

/// A finished load.
#[derive(Debug)]
pub struct Loaded {
    /// What arrived, pinned.
    pub hits: Hits,
    /// What did not, and why: position and answer (never a hit).
    pub misses: Vec<(usize, LoadAnswer)>,
}

impl Loading {
    /// The next answer; `None` when every key has one. At the request's deadline the keys without an answer are answered
    /// with `TimedOut`.
    pub async fn next(&mut self) -> Option<(usize, LoadAnswer)> {
        if let Some(answer) = self.ready.pop_front() {
            return Some(answer);
        }
        if self.waiting.is_clear() {
            return None;
        }
        let arrived = tokio::select! {
            biased;
            arrived = self.arriving.recv() => arrived,
            () = self.inner.timer.sleep_until(self.rq.deadline) => None,
        };
        match arrived {
            Some((position, answer)) => {
                self.waiting.clear(position);
                if matches!(&answer, LoadAnswer::Failed(e) if e.kind() == ErrorKind::TimedOut) {
                    self.inner.with(|m| m.stats.load_timeouts += 1);
                }
                Some((position, answer))
            }
            None => {
                let deadline = self.rq.deadline;
                let late = |i| (i, LoadAnswer::Failed(timed_out("load", deadline)));
                self.ready.extend(self.waiting.iter().map(late));
                self.inner.with(|m| m.stats.load_timeouts += self.waiting.count() as u64);
                self.waiting = KeyMask::none(self.waiting.len());
                self.ready.pop_front()
            }
        }
    }

    /// Waits for every answer.
    pub async fn finish(mut self) -> Loaded {
        let mut hits =
            Hits { hits: (0..self.waiting.len()).map(|_| None).collect(), inner: Arc::clone(&self.inner) };
        let mut misses = Vec::new();
        while let Some((position, answer)) = self.next().await {
            match answer {
                LoadAnswer::Hit(pin) => hits.adopt(position, pin),
                other => misses.push((position, other)),
            }
        }
        Loaded { hits, misses }
    }
}

impl fmt::Debug for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loading({} ready, {} waiting)", self.ready.len(), self.waiting.count())
    }
}

impl Manager {
    /// Says what is where: L1 in one step, and only for what L1 lacks, every adapter. An adapter that does not answer in
    /// half of the request's time has nothing.
    pub async fn lookup(&self, rq: &Request, keys: &Keys) -> Lookup {
        let hits = self.read(rq, keys);
        let missing: Vec<usize> = (0..keys.len()).filter(|i| hits.hits[*i].is_none()).collect();
        let mut lookup = Lookup { keys: Arc::clone(keys), rq: *rq, hits, tiers: Vec::new() };
        if missing.is_empty() {
            return lookup;
        }
        let asked: Keys = if missing.len() == keys.len() {
            Arc::clone(keys)
        } else {
            missing.iter().map(|i| keys[*i].clone()).collect()
        };
        let adapters = self.0.serving();
        // An adapter that does not answer must leave time to load from those that did.
        let now = self.0.timer.now();
        let probe_deadline = now + rq.deadline.since(now) / 2;
        let probes = adapters.iter().map(|tier| {
            let probe = Probe { keys: Arc::clone(&asked), deadline: probe_deadline, affinity: rq.affinity };
            Box::pin(async {
                tokio::select! {
                    biased;
                    found = tier.adapter.store.probe(probe) => found,
                    () = self.0.timer.sleep_until(probe_deadline) => Vec::new(),
                }
            }) as Call<'_, Vec<Result<Option<Found>>>>
        });
        let answers = all(probes.collect()).await;
        for (tier, found) in adapters.into_iter().zip(answers) {
            let mut has = KeyMask::none(keys.len());
            for (answer, position) in found.into_iter().zip(&missing) {
                if matches!(answer, Ok(Some(_))) {
                    has.set(*position);
                }
            }
            lookup.tiers.push((tier, has));
        }
        let l2_hits = lookup.l2().count() as u64;
        self.0.with(|m| {
            m.stats.l2_hits += l2_hits;
            m.stats.misses += missing.len() as u64 - l2_hits;
        });
        lookup
    }

    /// Loads what a lookup found. Each key is answered as it arrives, L1 hits at once; a prefix is a good answer, and so
    /// is what came by the deadline.
    pub fn load(&self, lookup: Lookup, layouts: &Layouts, mode: LoadMode) -> Loading {
        let Lookup { keys, rq, mut hits, tiers } = lookup;
        let resident = hits.mask();
        let views: Vec<TierView<'_>> = tiers
            .iter()
            .map(|(tier, found)| TierView {
                id: tier.id,
                name: &tier.adapter.store.desc().name,
                weight: tier.weight,
                stores: true,
                loads: true,
                found,
                load_time: tier.load_time,
            })
            .collect();
        let within = rq.deadline.since(self.0.timer.now());
        let plan = self.0.prefetch.call(|p| p.plan(&keys, &resident, &views, Some(within)));
        let Plan { mut sources, admit } = plan.unwrap_or_else(|| {
            self.0.prefetch_out.call_once(|| {
                let panic = self.0.prefetch.fault();
                tracing::error!(panic, "nothing is loaded from L2 any more: the prefetch policy panicked");
            });
            Plan { sources: Vec::new(), admit: Admit::Temporary }
        });
        let admit = if mode == LoadMode::Warm { Admit::Retained } else { admit };
        let prefix = mode != LoadMode::Any;
        sources.resize(keys.len(), None);
        let (send, arriving) = mpsc::unbounded_channel();
        let mut ready = VecDeque::new();
        let mut waiting = KeyMask::none(keys.len());
        let inner = Arc::clone(&self.0);
        let mut other_layout = KeyMask::none(keys.len());
        inner.with(|m| {
            for (i, hit) in hits.hits.iter().enumerate() {
                let entry = hit.as_ref().and_then(|h| m.index.get(h.handle?));
                if entry.is_some_and(|e| e.layout.id() != layouts.at(i).id()) {
                    other_layout.set(i);
                }
            }
        });
        for (i, hit) in std::mem::take(&mut hits.hits).into_iter().enumerate() {
            let Some(hit) = hit else { continue };
            let pin = Pin::new(hit, Arc::clone(&inner));
            ready.push_back((
                i,
                if other_layout.get(i) { LoadAnswer::Miss(Miss::Layout) } else { LoadAnswer::Hit(pin) },
            ));
        }
        let gap = (0..keys.len()).find(|i| !resident.get(*i) && sources[*i].is_none()).unwrap_or(keys.len());
        if prefix {
            sources[gap..].fill(None);
        }
        let mut batches: Vec<Vec<(usize, GetItem)>> = tiers.iter().map(|_| Vec::new()).collect();
        let mut full: Option<Error> = None;
        for (i, source) in sources.iter().enumerate().filter(|(i, _)| !resident.get(*i)) {
            let Some(tier) = source.and_then(|id| tiers.iter().position(|(tier, _)| tier.id == id)) else {
                ready.push_back((i, LoadAnswer::Miss(Miss::Absent)));
                continue;
            };
            let layout = layouts.at(i).clone();
            let room = match &full {
                Some(e) => Err(e.clone()),
                None => inner.landing_room(admit, &keys[i], layout.bytes()),
            };
            match room {
                Ok(buf) => {
                    waiting.set(i);
                    batches[tier].push((i, GetItem { key: keys[i].clone(), layout, buf }));
                }
                // In a prefix nothing behind the first chunk without room is of use.
                Err(e) => {
                    inner.with(|m| m.stats.load_no_space += 1);
                    if prefix {
                        full = Some(e.clone());
                    }
                    ready.push_back((i, LoadAnswer::Failed(e)));
                }
            }
        }
        for ((tier, _), items) in tiers.into_iter().zip(batches) {
            let max = tier.adapter.store.desc().max_batch.max(1);
            let mut items = items.into_iter().peekable();
            while items.peek().is_some() {
                let batch = items.by_ref().take(max).collect();
                inner.get(tier.id, &tier.adapter, batch, &keys, &rq, admit, &send);
            }
        }
        Loading { inner, rq, ready, arriving, waiting }
    }
}

impl Inner {
    /// A buffer for a chunk on its way up. A full staging budget is not waited for: what fills it are loads that must be
    /// read first, often the caller's own.
    fn landing_room(self: &Arc<Self>, admit: Admit, key: &ObjectKey, bytes: u64) -> Result<WriteBuf> {
        if admit == Admit::Retained
            && let Some(room) = self.with(|m| m.landing_room(key, bytes))
        {
            return room;
        }
        self.staging.reserve(usize::try_from(bytes).unwrap_or(usize::MAX), UNIT)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call site; the batch's parts belong to different owners"
    )]
    fn get(
        self: &Arc<Self>,
        tier: L2Id,
        adapter: &Adapter,
        items: Vec<(usize, GetItem)>,
        keys: &Keys,
        rq: &Request,
        admit: Admit,
        send: &mpsc::UnboundedSender<(usize, LoadAnswer)>,
    ) {
        let (positions, items): (Vec<usize>, Vec<GetItem>) = items.into_iter().unzip();
        let layouts: Vec<_> = items.iter().map(|i| i.layout.clone()).collect();
        let (inner, keys, send, cx) =
            (Arc::clone(self), Arc::clone(keys), send.clone(), rq.access(keys.len()));
        let epoch = self.with(|m| m.epoch);
        let lap = Mutex::new(Lap::of(items.len(), self.timer.now()));
        let receiver = move |at: usize, answer: Answer| {
            let took = match &answer {
                Answer::Loaded(_) => Took::This,
                Answer::Failed(e, _) if e.kind() == ErrorKind::TimedOut => Took::AtLeastThis,
                Answer::Miss(..) | Answer::Failed(..) => Took::Nothing,
            };
            {
                let mut lap = lap.lock();
                if lap.answered(inner.timer.now(), took) {
                    inner.with(|m| {
                        m.tiers.iter_mut().filter(|t| t.id == tier).for_each(|t| t.pace = lap.joins(t.pace))
                    });
                }
            }
            let position = positions[at];
            let answer = match answer {
                Answer::Loaded(loaded) => {
                    let len = layouts[at].bytes() as usize;
                    let arrival = Arrival {
                        key: keys[position].clone(),
                        parent: position.checked_sub(1).map(|p| keys[p].clone()),
                        layout: layouts[at].clone(),
                        buf: loaded.buf.seal(len),
                        cx: Access { position: cx.position + position as u32, ..cx },
                    };
                    LoadAnswer::Hit(inner.arrive(tier, arrival, admit, epoch))
                }
                Answer::Miss(why, buf) => {
                    drop(buf);
                    inner.with(|m| m.stats.load_misses += 1);
                    LoadAnswer::Miss(why)
                }
                Answer::Failed(e, buf) => {
                    drop(buf);
                    // Whoever waits for it counts what is late.
                    if e.kind() != ErrorKind::TimedOut {
                        inner.with(|m| m.stats.load_failures += 1);
                    }
                    LoadAnswer::Failed(e)
                }
            };
            // A caller who stopped listening gets nothing, and the pin ends here.
            let _ = send.send((position, answer));
        };
        let sink = GetSink::new(items.len(), Arc::new(receiver));
        let late = sink.clone();
        let (adapter, deadline, affinity) = (adapter.clone(), rq.deadline, rq.affinity);
        let work = async move { adapter.store.get(Get { items, deadline, affinity }, sink).await };
        self.bounded(deadline, work, move || {
            late.answer_rest(|_| Answer::Failed(timed_out("load", deadline), None));
        });
    }

    fn arrive(self: &Arc<Self>, tier: L2Id, arrival: Arrival, admit: Admit, epoch: u64) -> Pin {
        let (handle, buf) = self.with(|m| {
            m.stats.loaded += 1;
            m.stats.loaded_bytes += arrival.buf.len() as u64;
            match admit {
                Admit::Temporary => (None, arrival.buf),
                Admit::Retained => m.admit(arrival, epoch),
            }
        });
        Pin::new(Hit { buf, handle, source: TierId::L2(tier) }, Arc::clone(self))
    }
}
