//! Bytes in flight, and who waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kvstrata_core::Instant;
use parking_lot::Mutex;

use super::limited::{LimitCounts, LimitOptions};

/// What the bytes are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Load,
    Store,
}

#[derive(Debug)]
pub(super) struct Budget {
    options: LimitOptions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in flight, by kind.
    used: [u64; 2],
    /// The same bytes, by the deadline of the call they are for.
    due: BTreeMap<Instant, u64>,
    /// Bytes that wait or are about to, by kind.
    waiting: [u64; 2],
    queues: [VecDeque<Waiter>; 2],
    granted: Vec<u64>,
    next: u64,
    counts: LimitCounts,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    bytes: u64,
    due: Instant,
    waker: Waker,
}

impl State {
    fn fits(&self, options: &LimitOptions, kind: Kind, bytes: u64) -> bool {
        let used = self.used[0] + self.used[1];
        if used == 0 {
            // Alone, even what is larger than the limit may go.
            return true;
        }
        let within = |used: u64, limit: u64| used.checked_add(bytes).is_some_and(|sum| sum <= limit);
        within(used, options.in_flight)
            && (kind == Kind::Load
                || within(self.used[Kind::Store as usize], options.in_flight - options.for_loads))
    }

    fn take(&mut self, kind: Kind, due: Instant, bytes: u64) {
        self.used[kind as usize] += bytes;
        if bytes > 0 {
            *self.due.entry(due).or_default() += bytes;
        }
    }

    fn give_back(&mut self, kind: Kind, due: Instant, bytes: u64) {
        self.used[kind as usize] -= bytes;
        if let Some(held) = self.due.get_mut(&due) {
            *held -= bytes;
            if *held == 0 {
                self.due.remove(&due);
            }
        }
    }

    /// Whether nobody is before a newcomer of this kind.
    fn is_next(&self, kind: Kind) -> bool {
        self.queues[Kind::Load as usize].is_empty()
            && (kind == Kind::Load || self.queues[Kind::Store as usize].is_empty())
    }

    /// Gives what is free to those who wait: loads first, and in the order they came.
    fn grant(&mut self, options: &LimitOptions) -> Vec<Waker> {
        let mut wake = Vec::new();
        for kind in [Kind::Load, Kind::Store] {
            while let Some(front) = self.queues[kind as usize].front() {
                if !self.fits(options, kind, front.bytes) {
                    // Stores do not overtake a load that waits for more.
                    return wake;
                }
                if let Some(waiter) = self.queues[kind as usize].pop_front() {
                    self.take(kind, waiter.due, waiter.bytes);
                    self.granted.push(waiter.id);
                    wake.push(waiter.waker);
                }
            }
        }
        wake
    }
}

impl Budget {
    pub(super) fn new(options: LimitOptions) -> Self {
        Self { options, state: Mutex::default() }
    }

    pub(super) fn options(&self) -> &LimitOptions {
        &self.options
    }

    pub(super) fn counts(&self) -> LimitCounts {
        let state = self.state.lock();
        LimitCounts {
            loads_in_flight: state.used[Kind::Load as usize],
            stores_in_flight: state.used[Kind::Store as usize],
            loads_waiting: state.waiting[Kind::Load as usize],
            stores_waiting: state.waiting[Kind::Store as usize],
            ..state.counts
        }
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut LimitCounts)) {
        count(&mut self.state.lock().counts);
    }

    /// How many of the parts of a request, from the first, may wait for their turn. Those count as waiting from now on.
    pub(super) fn enter(self: &Arc<Self>, kind: Kind, parts: impl Iterator<Item = u64>) -> (usize, Waiting) {
        let mut state = self.state.lock();
        let mut room = self.options.waiting.saturating_sub(state.waiting[kind as usize]);
        if state.is_next(kind) {
            let used: u64 = state.used.iter().sum();
            let limit = match kind {
                Kind::Load => self.options.in_flight,
                Kind::Store => self.options.in_flight - self.options.for_loads,
            };
            let own = if kind == Kind::Load { used } else { state.used[Kind::Store as usize] };
            room += limit.saturating_sub(own).min(self.options.in_flight.saturating_sub(used));
        }
        let alone = state.used == [0, 0] && state.is_next(kind);
        let (mut accepted, mut bytes) = (0, 0u64);
        for (i, part) in parts.enumerate() {
            if bytes.saturating_add(part) > room && !(i == 0 && alone) {
                break;
            }
            accepted += 1;
            bytes += part;
        }
        state.waiting[kind as usize] += bytes;
        drop(state);
        (accepted, Waiting { budget: Arc::clone(self), kind, bytes })
    }

    /// Waits for `bytes` to be free, for a call with this deadline.
    pub(super) fn acquire(self: &Arc<Self>, kind: Kind, due: Instant, bytes: u64) -> Acquire {
        Acquire { budget: Arc::clone(self), kind, due, bytes, id: None }
    }

    /// Whether most of what is in flight belongs to calls whose deadlines were before `time`.
    pub(super) fn mostly_due_before(&self, time: Instant) -> bool {
        let state = self.state.lock();
        let overdue: u64 = state.due.range(..time).map(|(_, bytes)| bytes).sum();
        overdue > state.used.iter().sum::<u64>() / 2
    }

    pub(super) fn release(&self, kind: Kind, due: Instant, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let wake = {
            let mut state = self.state.lock();
            state.give_back(kind, due, bytes);
            state.grant(&self.options)
        };
        wake.into_iter().for_each(Waker::wake);
    }
}

/// Bytes of a request that wait; what is left when it is dropped waits no more.
#[derive(Debug)]
pub(super) struct Waiting {
    budget: Arc<Budget>,
    kind: Kind,
    bytes: u64,
}

impl Waiting {
    /// So many have gone on their way.
    pub(super) fn less(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.budget.state.lock().waiting[self.kind as usize] -= bytes;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.less(self.bytes);
    }
}

/// See [`Budget::acquire`]. Once it is ready, the bytes are the caller's to release.
#[derive(Debug)]
pub(super) struct Acquire {
    budget: Arc<Budget>,
    kind: Kind,
    due: Instant,
    bytes: u64,
    id: Option<u64>,
}

impl Future for Acquire {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.budget.state.lock();
        let queue = this.kind as usize;
        let Some(id) = this.id else {
            if state.is_next(this.kind) && state.fits(&this.budget.options, this.kind, this.bytes) {
                state.take(this.kind, this.due, this.bytes);
                return Poll::Ready(());
            }
            let id = state.next;
            state.next += 1;
            let waker = cx.waker().clone();
            state.queues[queue].push_back(Waiter { id, bytes: this.bytes, due: this.due, waker });
            this.id = Some(id);
            return Poll::Pending;
        };
        if let Some(at) = state.granted.iter().position(|g| *g == id) {
            state.granted.swap_remove(at);
            this.id = None;
            return Poll::Ready(());
        }
        if let Some(waiter) = state.queues[queue].iter_mut().find(|w| w.id == id) {
            waiter.waker.clone_from(cx.waker());
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let wake = {
            let mut state = self.budget.state.lock();
            match state.granted.iter().position(|g| *g == id) {
                Some(at) => {
                    state.granted.swap_remove(at);
                    state.give_back(self.kind, self.due, self.bytes);
                }
                None => state.queues[self.kind as usize].retain(|w| w.id != id),
            }
            // Who waited behind it may go now.
            state.grant(&self.budget.options)
        };
        wake.into_iter().for_each(Waker::wake);
    }
}
