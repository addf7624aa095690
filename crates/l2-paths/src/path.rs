//! One path: what is behind it, and whether it is in service.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use kvstrata_core::{Error, Instant, ObjectKey, Result};
use kvstrata_l2::{Adapter, Breaker, BreakerState, Context, L2List, L2Remove, Limited, Phase, StoreUsage};
use kvstrata_policy::Place;
use parking_lot::Mutex;

use crate::PathsOptions;

/// Opens a path's store again. What blocks is kept away from the tasks of the caller.
#[async_trait]
pub trait OpenPath: Send + Sync + fmt::Debug + 'static {
    /// The store, opened.
    ///
    /// # Errors
    /// Whatever keeps it from opening; it is tried again later.
    async fn open(&self) -> Result<Adapter>;
}

/// A path to begin with.
#[derive(Debug)]
pub struct Member {
    /// What it is called, its share, and the devices whose path it is.
    pub place: Place,
    /// Its store, or why it could not be opened.
    pub adapter: Result<Adapter>,
    /// How it is opened later: if it could not be, or if it is out for long. Without it, it is not.
    pub open: Option<Arc<dyn OpenPath>>,
}

/// Where a path stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// It stores and loads.
    Live,
    /// It failed: its objects are misses, stores go elsewhere, and now and then one is tried.
    Out,
    /// It works again, and what was removed or stored elsewhere meanwhile is being taken off it.
    Returning,
    /// Its store is not open.
    Closed,
}

impl PathState {
    /// The names of all of them.
    pub const NAMES: [&'static str; 4] =
        [Self::Live.name(), Self::Out.name(), Self::Returning.name(), Self::Closed.name()];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Out => "out",
            Self::Returning => "returning",
            Self::Closed => "closed",
        }
    }
}

/// A path at one moment.
#[derive(Clone, Debug)]
pub struct PathView {
    /// What it is called, its share, and the devices whose path it is.
    pub place: Place,
    /// Where it stands.
    pub state: PathState,
    /// How full it is; all 0 while it is closed.
    pub usage: StoreUsage,
    /// Keys that it failed, those refused while it was out left aside.
    pub errors: u64,
    /// How often it was taken out.
    pub outages: u64,
    /// Why it is closed, if it is.
    pub why: Option<Error>,
}

/// A store that is open, behind its breaker.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) adapter: Adapter,
    pub(crate) breaker: Arc<BreakerState>,
}

impl Door {
    pub(crate) fn new(inner: Adapter, options: &PathsOptions, cx: &Context) -> Result<Arc<Self>> {
        let inner = match &options.limit {
            Some(limit) => Limited::new(inner, limit.clone(), cx)?.adapter,
            None => inner,
        };
        let Breaker { adapter, state } = Breaker::new(inner, options.breaker.clone(), cx)?;
        if adapter.remove.is_none() || adapter.list.is_none() {
            let why = "a store that is one of several paths can remove and list what it has";
            return Err(Error::new(kvstrata_core::ErrorKind::Unsupported, "open path", why));
        }
        Ok(Arc::new(Self { adapter, breaker: state }))
    }

    pub(crate) fn remove(&self) -> &dyn L2Remove {
        self.adapter.remove.as_deref().expect("checked when it was opened")
    }

    pub(crate) fn list(&self) -> &dyn L2List {
        self.adapter.list.as_deref().expect("checked when it was opened")
    }
}

/// What a call may do with a path.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Live(Arc<Door>),
    /// It is out, and one call may be tried.
    Trial(Arc<Door>),
    None,
}

/// What a path's look found out that somebody has to act on.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A trial worked.
    Returns(Arc<Door>),
    /// It has been out for so long that its store is opened again.
    Reopens(Arc<Door>),
}

#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) place: Place,
    pub(crate) open: Option<Arc<dyn OpenPath>>,
    pub(crate) errors: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    standing: PathState,
    door: Option<Arc<Door>>,
    why: Option<Error>,
    /// What was removed, or stored elsewhere, and may be here still.
    gone: HashSet<ObjectKey>,
    /// How often more was removed than is remembered.
    forgotten: u64,
    full_until: Instant,
    outages: u64,
    /// The breaker's trips from which on the store is opened again.
    reopen_at: u64,
}

/// Trials that fail before a store is opened again.
const TRIALS: u64 = 3;

impl Path {
    pub(crate) fn new(place: Place, door: Result<Arc<Door>>, open: Option<Arc<dyn OpenPath>>) -> Self {
        let (standing, door, why) = match door {
            Ok(door) => (PathState::Live, Some(door), None),
            Err(e) => (PathState::Closed, None, Some(e)),
        };
        let state = State {
            standing,
            door,
            why,
            gone: HashSet::new(),
            forgotten: 0,
            full_until: Instant::ZERO,
            outages: 0,
            reopen_at: TRIALS + 1,
        };
        Self { place, open, errors: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// Where it stands now, by its breaker.
    pub(crate) fn look(&self) -> (Way, Option<Turn>) {
        let mut state = self.state.lock();
        let Some(door) = state.door.clone() else { return (Way::None, None) };
        let view = door.breaker.view();
        match (state.standing, view.phase) {
            (PathState::Live, Phase::Closed) => (Way::Live(door), None),
            (PathState::Live, _) => {
                state.standing = PathState::Out;
                state.outages += 1;
                state.reopen_at = view.trips + TRIALS;
                tracing::warn!(path = %self.place.name, "a path fails and is taken out");
                (Way::None, None)
            }
            (PathState::Out, Phase::Closed) => {
                state.standing = PathState::Returning;
                (Way::None, Some(Turn::Returns(door)))
            }
            (PathState::Out, _) if self.open.is_some() && view.trips >= state.reopen_at => {
                state.reopen_at = view.trips + TRIALS;
                (Way::None, Some(Turn::Reopens(door)))
            }
            (PathState::Out, Phase::HalfOpen) => (Way::Trial(door), None),
            _ => (Way::None, None),
        }
    }

    pub(crate) fn standing(&self) -> PathState {
        self.state.lock().standing
    }

    pub(crate) fn door(&self) -> Option<Arc<Door>> {
        self.state.lock().door.clone()
    }

    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.state.lock().full_until > now
    }

    pub(crate) fn full(&self, until: Instant) {
        self.state.lock().full_until = until;
    }

    /// Notes that what this path has of a key must not come back, unless it is live; whether it was noted.
    pub(crate) fn note_gone(&self, key: &ObjectKey, most: usize) -> bool {
        let mut state = self.state.lock();
        if state.standing == PathState::Live {
            return false;
        }
        if state.gone.len() < most {
            state.gone.insert(key.clone());
        } else if !state.gone.contains(key) {
            state.forgotten += 1;
            if state.forgotten == 1 {
                tracing::warn!(path = %self.place.name, "more was removed than is remembered: the path comes back empty");
            }
        }
        true
    }

    pub(crate) fn is_gone(&self, key: &ObjectKey) -> bool {
        let state = self.state.lock();
        state.forgotten > 0 || state.gone.contains(key)
    }

    /// Takes what must be taken off before it comes back: these keys, and everything if the number is above 0.
    pub(crate) fn take_gone(&self) -> (Vec<ObjectKey>, u64) {
        let mut state = self.state.lock();
        (state.gone.drain().collect(), state.forgotten)
    }

    /// Gives it back, because it could not be taken off.
    pub(crate) fn untake(&self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.state.lock().gone.extend(keys);
    }

    /// Everything was taken off that was there when `forgotten` was taken.
    pub(crate) fn emptied(&self, forgotten: u64) {
        self.state.lock().forgotten -= forgotten;
    }

    /// Back to service, if nothing is left to be taken off.
    pub(crate) fn comes_back(&self) -> bool {
        let mut state = self.state.lock();
        if state.standing != PathState::Returning || !state.gone.is_empty() || state.forgotten > 0 {
            return false;
        }
        state.standing = PathState::Live;
        state.full_until = Instant::ZERO;
        tracing::info!(path = %self.place.name, "a path is back");
        true
    }

    pub(crate) fn out_again(&self) {
        let mut state = self.state.lock();
        if state.standing == PathState::Returning {
            state.standing = PathState::Out;
        }
    }

    /// Its store was closed, to be opened again.
    pub(crate) fn closed(&self, why: Option<Error>) {
        let mut state = self.state.lock();
        state.standing = PathState::Closed;
        state.door = None;
        state.why = why;
    }

    pub(crate) fn opened(&self, door: Arc<Door>) {
        let mut state = self.state.lock();
        state.standing = PathState::Returning;
        state.reopen_at = TRIALS + 1;
        state.door = Some(door);
        state.why = None;
    }

    pub(crate) fn usage(&self) -> StoreUsage {
        let door = self.door();
        let usage = door.as_ref().and_then(|door| door.adapter.usage.as_ref());
        usage.map(|usage| usage.usage()).unwrap_or_default()
    }

    pub(crate) fn view(&self) -> PathView {
        let usage = self.usage();
        let state = self.state.lock();
        PathView {
            place: self.place.clone(),
            state: state.standing,
            usage,
            errors: self.errors.load(Ordering::Relaxed),
            outages: state.outages,
            why: state.why.clone(),
        }
    }
}
