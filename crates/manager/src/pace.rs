//! What loads of an adapter take lately: measured on the manager's timer, used by the prefetch policy.

use std::time::Duration;

use kvstrata_core::Instant;
use kvstrata_policy::LoadTime;

/// How long a measurement counts. After that the adapter is unknown again and is tried, so that one that was slow for a
/// while is not avoided for ever.
const COUNTS_FOR: Duration = Duration::from_secs(30);
/// A new batch moves the average by one part in this many.
const SMOOTH: u32 = 8;

/// The moving average over the batches of one adapter.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    time: LoadTime,
    at: Instant,
}

impl Pace {
    pub(crate) fn lately(self, now: Instant) -> Option<LoadTime> {
        (now.since(self.at) < COUNTS_FOR).then_some(self.time)
    }
}

/// What one answer says about the time that loads take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    /// The chunk is here.
    This,
    /// It was waited for until the deadline: at least this.
    AtLeastThis,
    /// Nothing was loaded. That is often answered at once, and must not make an adapter look fast.
    Nothing,
}

/// One batch on its way.
pub(crate) struct Lap {
    start: Instant,
    open: usize,
    arrived: u32,
    first: Instant,
    last: Instant,
    late: bool,
}

impl Lap {
    pub(crate) fn of(keys: usize, start: Instant) -> Self {
        Self { start, open: keys, arrived: 0, first: start, last: start, late: false }
    }

    /// A key was answered; whether it was the last.
    pub(crate) fn answered(&mut self, now: Instant, took: Took) -> bool {
        self.open -= 1;
        if took != Took::Nothing {
            if self.arrived == 0 {
                self.first = now;
            }
            self.arrived += 1;
            self.last = now;
            self.late |= took == Took::AtLeastThis;
        }
        self.open == 0
    }

    /// The average with this batch in it.
    pub(crate) fn joins(&self, before: Option<Pace>) -> Option<Pace> {
        if self.arrived == 0 {
            return before;
        }
        let first = self.first.since(self.start);
        let each = self.last.since(self.first).checked_div(self.arrived - 1);
        let time = match before.and_then(|p| p.lately(self.last)) {
            // A single chunk does not say how fast it goes on: no faster than it began, to be safe.
            None => LoadTime { first, each: each.unwrap_or(first) },
            Some(old) => LoadTime {
                first: self.average(old.first, first),
                each: each.map_or(old.each, |each| self.average(old.each, each)),
            },
        };
        Some(Pace { time, at: self.last })
    }

    /// A wait that was broken off may have been short; it never makes an adapter look faster.
    fn average(&self, old: Duration, new: Duration) -> Duration {
        let average = (old * (SMOOTH - 1) + new) / SMOOTH;
        if self.late { average.max(old) } else { average }
    }
}
