//! The paths together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use kvstrata_core::{Affinity, Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Call, Context, Driver, Found, Get, GetSink, Keys, L2Desc, L2Store, MemoryKinds, Probe, Put,
    PutSink, all,
};
use kvstrata_policy::{Place, Places, Sharding};
use parking_lot::Mutex;

use crate::path::{Door, Path, PathState, Way};
use crate::{Member, PathView, PathsOptions};

/// Several stores as one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Paths(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    desc: L2Desc,
    pub(crate) cx: Context,
    pub(crate) driver: Driver,
    pub(crate) places: Places,
    pub(crate) paths: Vec<Path>,
    pub(crate) options: PathsOptions,
    pub(crate) quotas: Mutex<Quotas>,
    /// Stores that no path had room for.
    pub(crate) declined: AtomicU64,
}

/// Quotas that were set since the start: a path that opens later gets them.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    pub(crate) default: Option<Option<u64>>,
    pub(crate) own: BTreeMap<String, Option<u64>>,
}

impl Paths {
    /// These stores as one adapter of this name. Those that could not be opened are opened in the background.
    ///
    /// # Errors
    /// `Invalid` if there is no path, if two have one name, or for an option; `Unsupported` for a store that cannot remove
    /// or list; the first path's error if none is open, and that of one that could not be opened and cannot be later.
    pub fn new(
        name: &str,
        sharding: Sharding,
        members: Vec<Member>,
        options: PathsOptions,
        cx: Context,
    ) -> Result<Self> {
        const OP: &str = "open paths";
        options.validate()?;
        if members.is_empty() {
            return Err(Error::invalid(OP, "there is at least one path").with("paths", "[]"));
        }
        let places: Vec<Place> = members.iter().map(|member| member.place.clone()).collect();
        for (i, place) in places.iter().enumerate() {
            if places[..i].iter().any(|other| other.name == place.name) {
                return Err(Error::invalid(OP, "two paths have one name").with("path", &place.name));
            }
        }
        let mut desc: Option<L2Desc> = None;
        let mut first = None;
        let mut paths = Vec::with_capacity(members.len());
        for Member { place, adapter, open } in members {
            let about = |e: Error| e.with("path", &place.name);
            let door = match adapter {
                Ok(adapter) => {
                    desc = Some(match desc {
                        Some(desc) => both(desc, adapter.store.desc()),
                        None => adapter.store.desc().clone(),
                    });
                    Ok(Door::new(adapter, &options, &cx).map_err(about)?)
                }
                Err(e) if open.is_none() => return Err(about(e)),
                Err(e) => {
                    tracing::warn!(path = %place.name, error = %e, "a path could not be opened; it is tried again");
                    first.get_or_insert_with(|| about(e.clone()));
                    Err(e)
                }
            };
            paths.push(Path::new(place, door, open));
        }
        let Some(desc) = desc else {
            return Err(first.expect("every path failed, and there is one"));
        };
        let inner = Arc::new(Inner {
            desc: L2Desc { name: name.to_owned(), ..desc },
            driver: Driver::new(cx.clone()),
            cx,
            places: Places::new(sharding, places),
            paths,
            options,
            quotas: Mutex::default(),
            declined: AtomicU64::new(0),
        });
        for at in 0..inner.paths.len() {
            if inner.paths[at].door().is_none() {
                inner.reopen(at);
            }
        }
        Ok(Self(inner))
    }

    /// The adapter. It keeps quotas if every path that is open does.
    pub fn adapter(&self) -> Adapter {
        let inner = &self.0;
        let mut doors = inner.paths.iter().filter_map(Path::door);
        let keeps = doors.all(|door| door.adapter.quotas.is_some());
        Adapter {
            store: Arc::new(self.clone()),
            remove: Some(Arc::new(self.clone())),
            list: Some(Arc::new(self.clone())),
            usage: Some(Arc::clone(inner) as _),
            quotas: keeps.then(|| Arc::clone(inner) as _),
        }
    }

    /// How a path is chosen.
    pub fn sharding(&self) -> Sharding {
        self.0.places.sharding()
    }

    /// Each path as it is now.
    pub fn views(&self) -> Vec<PathView> {
        self.0.paths.iter().map(Path::view).collect()
    }
}

/// What holds of both.
fn both(a: L2Desc, b: &L2Desc) -> L2Desc {
    L2Desc {
        alignment: a.alignment.max(b.alignment),
        kinds: MemoryKinds {
            private: a.kinds.private && b.kinds.private,
            shared: a.kinds.shared && b.kinds.shared,
            device: a.kinds.device && b.kinds.device,
        },
        max_batch: a.max_batch.min(b.max_batch),
        durable: a.durable && b.durable,
        shared: a.shared || b.shared,
        ..a
    }
}

pub(crate) fn none_open(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "every path is out of service")
}

/// The paths as one call finds them.
#[derive(Debug)]
pub(crate) struct Ways(pub(crate) Vec<Way>);

impl Ways {
    pub(crate) fn is_live(&self, at: usize) -> bool {
        matches!(self.0[at], Way::Live(_))
    }

    pub(crate) fn live(&self, at: usize) -> Option<&Arc<Door>> {
        match &self.0[at] {
            Way::Live(door) => Some(door),
            _ => None,
        }
    }

    pub(crate) fn trials(&self) -> impl Iterator<Item = (usize, &Arc<Door>)> {
        self.0.iter().enumerate().filter_map(|(at, way)| match way {
            Way::Trial(door) => Some((at, door)),
            _ => None,
        })
    }
}

impl Inner {
    pub(crate) fn look(self: &Arc<Self>) -> Ways {
        let looked = self.paths.iter().enumerate().map(|(at, path)| {
            let (way, turn) = path.look();
            if let Some(turn) = turn
                && !self.driver.is_closed()
            {
                self.turn(at, turn);
            }
            way
        });
        Ways(looked.collect())
    }

    /// Asks some paths for some keys each, at once. What fails is not found.
    async fn ask(
        &self,
        keys: &[ObjectKey],
        wanted: Vec<(usize, Vec<usize>)>,
        (deadline, affinity): (Instant, Affinity),
    ) -> Vec<(usize, Vec<(usize, Result<Option<Found>>)>)> {
        let calls: Vec<Call<'_, _>> = wanted
            .into_iter()
            .filter_map(|(at, positions)| self.paths[at].door().map(|door| (at, positions, door)))
            .map(|(at, positions, door)| {
                let keys: Keys = positions.iter().map(|i| keys[*i].clone()).collect();
                Box::pin(async move {
                    let found = door.adapter.store.probe(Probe { keys, deadline, affinity }).await;
                    (at, positions.into_iter().zip(found).collect::<Vec<_>>())
                }) as Call<'_, _>
            })
            .collect();
        all(calls).await
    }

    /// On which of these paths each key is, of those that are live and answer in time.
    pub(crate) async fn holders(
        &self,
        keys: &[ObjectKey],
        on: &[usize],
        deadline: Instant,
    ) -> Vec<Vec<(usize, Found)>> {
        let live = on.iter().filter(|at| self.paths[**at].standing() == PathState::Live);
        let wanted = live.map(|at| (*at, (0..keys.len()).collect())).collect();
        self.held(keys, wanted, deadline).await
    }

    /// As [`Self::holders`], with the keys that each path is asked for.
    pub(crate) async fn held(
        &self,
        keys: &[ObjectKey],
        wanted: Vec<(usize, Vec<usize>)>,
        deadline: Instant,
    ) -> Vec<Vec<(usize, Found)>> {
        let mut held = vec![Vec::new(); keys.len()];
        for (at, answers) in self.ask(keys, wanted, (deadline, Affinity::default())).await {
            for (i, answer) in answers {
                if let Ok(Some(found)) = answer {
                    held[i].push((at, found));
                }
            }
        }
        held
    }
}

#[async_trait]
impl L2Store for Paths {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        let pass = match self.0.driver.enter("store on paths", request.deadline) {
            Ok(pass) => pass,
            Err(e) => {
                drop(request);
                return done.answer_rest(|_| Err(e.clone()));
            }
        };
        let answered = done.answered();
        let inner = Arc::clone(&self.0);
        // A task of its own, so that what goes elsewhere does so whether or not anybody waits.
        self.0.cx.spawn.spawn(Box::pin(async move {
            let _pass = pass;
            inner.put_all(request, done).await;
        }));
        answered.await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        let pass = match self.0.driver.enter("load from paths", request.deadline) {
            Ok(pass) => pass,
            Err(e) => return request.refuse(&done, &e),
        };
        let answered = done.answered();
        let inner = Arc::clone(&self.0);
        self.0.cx.spawn.spawn(Box::pin(async move {
            let _pass = pass;
            inner.get_all(request, done).await;
        }));
        answered.await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        const OP: &str = "look up on paths";
        let Probe { keys, deadline, affinity } = request;
        let _pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return keys.iter().map(|_| Err(e.clone())).collect(),
        };
        let ways = self.0.look();
        let mut out: Vec<Option<Result<Option<Found>>>> = vec![None; keys.len()];
        let mut wanted = vec![Vec::new(); self.0.paths.len()];
        let mut asked = vec![usize::MAX; keys.len()];
        for (i, key) in keys.iter().enumerate() {
            if let Some(at) = self.0.places.choose(key.fingerprint(), &affinity, |at| ways.is_live(at)) {
                wanted[at].push(i);
                asked[i] = at;
            }
        }
        // Where a key would go first, and then wherever it is not.
        for round in 0..2 {
            let parts = std::mem::replace(&mut wanted, vec![Vec::new(); self.0.paths.len()]);
            let parts = parts.into_iter().enumerate().filter(|(_, keys)| !keys.is_empty()).collect();
            for (_, answers) in self.0.ask(&keys, parts, (deadline, affinity)).await {
                for (i, answer) in answers {
                    let better = match (&out[i], &answer) {
                        (Some(Ok(Some(_))), _) => false,
                        (_, Ok(Some(_))) | (None, _) => true,
                        // One path's failure is not the tier's: the key is on none that works.
                        (Some(Err(_)), Ok(None)) => true,
                        _ => false,
                    };
                    if better {
                        out[i] = Some(answer);
                    }
                }
            }
            if round == 0 {
                let missing = out.iter().enumerate().filter(|(_, out)| !matches!(out, Some(Ok(Some(_)))));
                for (i, _) in missing {
                    let others = (0..self.0.paths.len()).filter(|at| ways.is_live(*at) && *at != asked[i]);
                    others.for_each(|at| wanted[at].push(i));
                }
            }
        }
        out.into_iter().map(|answer| answer.unwrap_or_else(|| Err(none_open(OP)))).collect()
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        // The gate is closed by the first poll of the first; a path that hangs keeps no other from closing in time.
        let mut calls: Vec<Call<'_, Result<()>>> = vec![Box::pin(self.0.driver.shutdown(deadline))];
        for door in self.0.paths.iter().filter_map(Path::door) {
            calls.push(Box::pin(async move { door.adapter.store.shutdown(deadline).await }));
        }
        all(calls).await.into_iter().collect()
    }
}
