//! The threads that wait for calls.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that run jobs in order. They end when this is dropped and what was pushed has run.
pub(crate) struct Lanes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Lanes {
    /// So many threads.
    ///
    /// # Errors
    /// If the system starts no more of them.
    pub(crate) fn start(name: &str, threads: usize) -> Result<Self> {
        let lanes = Self(Arc::default());
        for i in 0..threads {
            let shared = Arc::clone(&lanes.0);
            std::thread::Builder::new()
                .name(format!("{name}-{i}"))
                .spawn(move || shared.run())
                .map_err(|e| Error::io("start thread", e).with("threads", threads))?;
        }
        Ok(lanes)
    }

    pub(crate) fn push(&self, job: impl FnOnce() + Send + 'static) {
        self.0.queue.lock().jobs.push_back(Box::new(job));
        self.0.more.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.jobs.pop_front() {
                        Some(job) => break job,
                        None if queue.closed => return,
                        None => self.more.wait(&mut queue),
                    }
                }
            };
            // A job that panics has answered its keys by dropping them; the thread goes on with the next.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of the mooncake adapter panicked");
            }
        }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.more.notify_all();
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({} jobs wait)", self.0.queue.lock().jobs.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panic_costs_one_job_and_what_was_pushed_runs() {
        let lanes = Lanes::start("test", 1).unwrap();
        let (to, from) = mpsc::channel();
        lanes.push(|| panic!("a defect"));
        lanes.push(move || to.send(7).unwrap());
        drop(lanes);
        assert_eq!(from.recv(), Ok(7));
    }
}
