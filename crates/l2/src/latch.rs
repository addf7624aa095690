//! Counts the jobs of a request that still hold its buffers, for adapters whose devices answer from threads of their own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kvstrata_mem::sync::Mutex;

use crate::Pass;

/// One job that holds buffers of a request. Clones are further jobs.
#[derive(Debug)]
pub struct Job(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    jobs: usize,
    waiting: Option<Waker>,
    /// The request's; it goes with the last job.
    pass: Option<Pass>,
}

/// Resolves when the last job of a request is gone.
#[derive(Debug)]
pub struct Idle(Arc<Shared>);

/// The first job of a request, and the wait for all of them. With the request's pass a shutdown waits for them too,
/// whoever else does.
///
/// ```
/// use kvstrata_l2::latch;
///
/// let (first, idle) = latch(None);
/// let second = first.clone();
/// drop((first, second)); // The device is done with both.
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(idle);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn latch(pass: Option<Pass>) -> (Job, Idle) {
    let shared = Arc::new(Shared(Mutex::new(State { jobs: 1, waiting: None, pass })));
    (Job(Arc::clone(&shared)), Idle(shared))
}

impl Clone for Job {
    fn clone(&self) -> Self {
        self.0.0.lock().jobs += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let (wake, pass) = {
            let mut state = self.0.0.lock();
            state.jobs -= 1;
            if state.jobs > 0 {
                return;
            }
            (state.waiting.take(), state.pass.take())
        };
        drop(pass);
        if let Some(waker) = wake {
            waker.wake();
        }
    }
}

impl Future for Idle {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.0.lock();
        if state.jobs == 0 {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_job_ends_the_wait() {
        let (first, mut idle) = latch(None);
        let second = first.clone();
        let poll = |idle: &mut Idle| Pin::new(idle).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        drop(first);
        assert!(!poll(&mut idle));
        drop(second);
        assert!(poll(&mut idle));
    }
}
