//! A device that hangs because all threads that work for it are busy.

use std::fmt;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

use super::Device;

/// Work of a thread.
type Job = Box<dyn FnOnce() + Send>;

/// Hangs a device by keeping all threads busy that move its bytes; made from whatever hands them their work.
pub struct BusyThreads {
    threads: usize,
    spawn: Box<dyn Fn(Job) + Send + Sync>,
    held: Mutex<Vec<Sender<()>>>,
}

impl BusyThreads {
    /// So many threads, which do what `spawn` is given before anything else that waits.
    pub fn new(threads: usize, spawn: impl Fn(Job) + Send + Sync + 'static) -> Self {
        Self { threads, spawn: Box::new(spawn), held: Mutex::default() }
    }
}

impl fmt::Debug for BusyThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = self.held.lock().len();
        f.debug_struct("BusyThreads")
            .field("threads", &self.threads)
            .field("busy", &busy)
            .finish_non_exhaustive()
    }
}

impl Device for BusyThreads {
    fn hang(&self) {
        let mut held = self.held.lock();
        for _ in 0..self.threads {
            let (release, gate) = channel::<()>();
            let (up, started) = channel();
            (self.spawn)(Box::new(move || {
                up.send(()).expect("the test waits");
                gate.recv().ok();
            }));
            // This thread has ended what it did before.
            started.recv().expect("a free thread");
            held.push(release);
        }
    }

    fn resume(&self) {
        self.held.lock().clear();
    }
}

impl Drop for BusyThreads {
    fn drop(&mut self) {
        self.resume();
    }
}
