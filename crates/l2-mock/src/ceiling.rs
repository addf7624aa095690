//! The bandwidth ceiling, and what was moved under it.

use std::time::Duration;

use kvstrata_core::Instant;
use kvstrata_l2::Timer;
use parking_lot::Mutex;

/// How far transfers may run ahead of the ceiling. Timers count in milliseconds; without this, each small transfer would
/// be rounded up to one.
const BURST: Duration = Duration::from_millis(2);

/// A token bucket: over any stretch of time, at most that many bytes and one burst.
#[derive(Debug)]
pub(crate) struct Ceiling {
    bytes_per_second: f64,
    /// When everything that was let through so far would be done at the ceiling's speed.
    paid_until: Mutex<Instant>,
}

impl Ceiling {
    pub(crate) fn new(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, paid_until: Mutex::new(Instant::ZERO) }
    }

    /// Waits until `bytes` more may be moved.
    pub(crate) async fn pass(&self, bytes: u64, timer: &dyn Timer) {
        let now = timer.now();
        let until = {
            let mut paid = self.paid_until.lock();
            let oldest = now.as_nanos().saturating_sub(BURST.as_nanos() as u64);
            *paid = (*paid).max(Instant::from_nanos(oldest))
                + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
            *paid
        };
        if until > now {
            timer.sleep_until(until).await;
        }
    }
}

/// What a mock has moved.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct MockStats {
    /// Payload bytes taken in.
    pub stored_bytes: u64,
    /// Payload bytes given out.
    pub loaded_bytes: u64,
    /// Stores that failed on demand.
    pub failed_stores: u64,
    /// Loads that failed on demand.
    pub failed_loads: u64,
    /// How long at least one store or load was in flight.
    pub busy: Duration,
}

impl MockStats {
    /// The bandwidth reached while busy, in gb (2^30 bytes) per second.
    pub fn reached_gb(&self) -> f64 {
        let bytes = (self.stored_bytes + self.loaded_bytes) as f64;
        if self.busy.is_zero() { 0.0 } else { bytes / (1u64 << 30) as f64 / self.busy.as_secs_f64() }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<(MockStats, Active)>);

#[derive(Debug, Default)]
struct Active {
    requests: usize,
    since: Instant,
}

impl Meter {
    pub(crate) fn begin(&self, now: Instant) {
        let (_, active) = &mut *self.0.lock();
        if active.requests == 0 {
            active.since = now;
        }
        active.requests += 1;
    }

    pub(crate) fn end(&self, now: Instant) {
        let (stats, active) = &mut *self.0.lock();
        active.requests -= 1;
        if active.requests == 0 {
            stats.busy += now.since(active.since);
        }
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut MockStats)) {
        count(&mut self.0.lock().0);
    }

    pub(crate) fn stats(&self, now: Instant) -> MockStats {
        let (mut stats, busy_since) = {
            let state = self.0.lock();
            (state.0, (state.1.requests > 0).then_some(state.1.since))
        };
        if let Some(since) = busy_since {
            stats.busy += now.since(since);
        }
        stats
    }
}
