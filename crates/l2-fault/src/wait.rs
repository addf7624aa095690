//! Waits that a test ends.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

use kvstrata_l2::{Timer, until};
use parking_lot::Mutex;

/// Where hung calls wait. Each release lets go who waits then, and no later one.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<(u64, Vec<Waker>)>);

impl Gate {
    /// Waits for the next release, no longer than `at_most`.
    pub(crate) async fn wait(&self, timer: &dyn Timer, at_most: Option<Duration>) {
        let round = self.0.lock().0;
        let released = pin!(poll_fn(|cx| {
            let mut gate = self.0.lock();
            if gate.0 != round {
                return Poll::Ready(());
            }
            if !gate.1.iter().any(|w| w.will_wake(cx.waker())) {
                gate.1.push(cx.waker().clone());
            }
            Poll::Pending
        }));
        match at_most {
            Some(wait) => {
                until(timer, timer.now() + wait, released).await;
            }
            None => released.await,
        }
    }

    pub(crate) fn release(&self) {
        let wake = {
            let mut gate = self.0.lock();
            gate.0 += 1;
            std::mem::take(&mut gate.1)
        };
        wake.into_iter().for_each(Waker::wake);
    }
}
