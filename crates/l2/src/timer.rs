//! A clock that can be waited on.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use kvstrata_core::{Clock, Instant};

/// A clock whose time can be waited for. Adapters and decorators get one; under tokio's paused time it is virtual.
pub trait Timer: Clock {
    /// Resolves at `at`, at once if that has passed.
    fn sleep_until(&self, at: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// tokio's clock, counted from when this value was made.
#[derive(Clone, Copy, Debug)]
pub struct TokioTimer(tokio::time::Instant);

impl TokioTimer {
    /// A timer that starts now.
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for TokioTimer {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Timer for TokioTimer {
    fn sleep_until(&self, at: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // tokio's timer counts milliseconds and no more than some years; a far deadline is a wait that never ends.
        let wait = at.since(self.now()).min(Duration::from_secs(30 * 365 * 86_400));
        Box::pin(tokio::time::sleep(wait))
    }
}
