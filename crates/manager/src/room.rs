//! Those who wait for room in L1.

use kvstrata_mem::SpaceWatch;
use kvstrata_mem::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Those who wait for room in L1.
#[derive(Default)]
pub(crate) struct Waiters {
    notify: Notify,
    waiting: AtomicUsize,
}

impl Waiters {
    /// Counts a waiter for as long as the guard lives, so that telling costs nothing when nobody waits.
    pub(crate) fn enter(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    /// There may be room now.
    pub(crate) fn tell(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        }
    }
}

impl SpaceWatch for Waiters {
    fn freed(&self, _bytes: u64) {
        self.tell();
    }
}

/// One waiter for room, counted while it waits.
pub(crate) struct Waiting<'a>(&'a Waiters);

impl Waiting<'_> {
    /// Resolves when there may be room.
    pub(crate) fn told(&self) -> Notified<'_> {
        self.0.notify.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
