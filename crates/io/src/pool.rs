//! An engine of plain threads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::queue::{Counts, Queues, Task};
use crate::{CompletionSink, EngineStats, IoEngine, IoOp, Job, Rejected};

/// Carries out one transfer: all of it, up to the end of the file.
pub(crate) type Transfer<F> = Box<dyn Fn(&mut IoOp<F>) -> io::Result<usize> + Send + Sync>;

/// Threads that make blocking calls.
///
/// Of `n` threads, `n - 1` may write (one if there is only one): however many stores are stuck in a slow device, a load
/// finds a thread. Threads that have nothing to do sleep.
///
/// Dropping the pool finishes what was submitted and joins the threads; a call that the kernel never ends holds that up
/// for ever. Whoever must not wait asks [`drain`](Self::drain) first, and [`detach`](Self::detach)es the pool if that
/// fails: the threads then end by themselves, and keep their buffers until they do.
pub struct ThreadPool<F> {
    shared: Arc<Shared<F>>,
    threads: Vec<JoinHandle<()>>,
    detached: std::sync::atomic::AtomicBool,
}

struct Shared<F> {
    queues: Mutex<Queues<F>>,
    /// Something can be started, or the pool was closed.
    work: Condvar,
    /// Nothing waits or runs.
    idle: Condvar,
    counts: Counts,
    transfer: Transfer<F>,
    /// How many tasks of the second class may run at once.
    rest: usize,
}

impl<F: Send + Sync + fmt::Debug + 'static> ThreadPool<F> {
    /// A pool of `threads` threads named `name` and a number (Linux shows the first 15 bytes).
    ///
    /// # Errors
    /// `InvalidInput` for no threads; what the system says if it refuses one.
    pub(crate) fn new(name: &str, threads: usize, transfer: Transfer<F>) -> io::Result<Self> {
        if threads == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pool needs at least one thread"));
        }
        let shared = Arc::new(Shared {
            queues: Mutex::new(Queues::new()),
            work: Condvar::new(),
            idle: Condvar::new(),
            counts: Counts::default(),
            transfer,
            rest: (threads - 1).max(1),
        });
        // If a thread is refused, dropping the pool ends those that were started.
        let mut pool = Self { shared, threads: Vec::with_capacity(threads), detached: false.into() };
        for i in 0..threads {
            let shared = Arc::clone(&pool.shared);
            pool.threads
                .push(thread::Builder::new().name(format!("{name}-{i}")).spawn(move || shared.run())?);
        }
        Ok(pool)
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Waits until nothing waits or runs, at most this long; whether that came about. Meant to follow
    /// [`close`](IoEngine::close).
    pub fn drain(&self, at_most: Duration) -> bool {
        let mut queues = self.shared.queues.lock();
        let busy = |q: &mut Queues<F>| !(q.is_empty() && q.running == 0);
        !self.shared.idle.wait_while_for(&mut queues, busy, at_most).timed_out()
    }

    /// Closes the pool, and lets its threads end by themselves instead of being joined when it is dropped.
    pub fn detach(&self) {
        self.close();
        self.detached.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl ThreadPool<()> {
    /// A pool for jobs alone: blocking work that is no transfer between a file and a buffer.
    ///
    /// # Errors
    /// `InvalidInput` for no threads; what the system says if it refuses one.
    pub fn for_jobs(name: &str, threads: usize) -> io::Result<Self> {
        Self::new(name, threads, Box::new(|_| Err(io::ErrorKind::Unsupported.into())))
    }
}

impl<F: 'static> Shared<F> {
    fn run(&self) {
        let mut queues = self.queues.lock();
        loop {
            let rest = queues.running_rest < self.rest;
            if let Some(task) = queues.pop(rest, |_| 0) {
                let first = task.first();
                drop(queues);
                self.counts.carry_out(task, |op| Some((self.transfer)(op)));
                queues = self.queues.lock();
                queues.ended(first);
                if !first && !queues.rest.is_empty() {
                    // This thread may go on to a load: another one, asleep because too many were writing, is needed.
                    self.work.notify_one();
                }
                if queues.running == 0 && queues.is_empty() {
                    self.idle.notify_all();
                }
            } else if queues.closed && queues.is_empty() {
                // Others may sleep because the second class had all its threads: there is nothing left for them either.
                self.work.notify_all();
                return;
            } else {
                self.work.wait(&mut queues);
            }
        }
    }

    fn wake(&self, tasks: usize, threads: usize) {
        if tasks >= threads {
            self.work.notify_all();
        } else {
            for _ in 0..tasks {
                self.work.notify_one();
            }
        }
    }
}

impl<F: Send + Sync + fmt::Debug + 'static> IoEngine for ThreadPool<F> {
    type File = F;

    fn submit(&self, ops: Vec<IoOp<F>>, sink: Arc<dyn CompletionSink<F>>) -> Result<(), Rejected<F>> {
        let n = ops.len();
        // Counted before a thread can see them, so that the count never runs below zero.
        self.shared.counts.took(&ops);
        let taken = self.shared.queues.lock().submit(ops, &sink);
        match taken {
            Ok(()) => self.shared.wake(n, self.threads.len()),
            Err(rejected) => {
                self.shared.counts.refused(&rejected.ops);
                return Err(rejected);
            }
        }
        Ok(())
    }

    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job> {
        self.shared.queues.lock().spawn(urgent, job)?;
        self.shared.work.notify_one();
        Ok(())
    }

    fn close(&self) {
        self.shared.queues.lock().closed = true;
        self.shared.work.notify_all();
    }

    fn stats(&self) -> EngineStats {
        self.shared.queues.lock().stats(&self.shared.counts)
    }
}

impl<F> Drop for ThreadPool<F> {
    fn drop(&mut self) {
        self.shared.queues.lock().closed = true;
        self.shared.work.notify_all();
        if *self.detached.get_mut() {
            return;
        }
        let me = thread::current().id();
        for thread in self.threads.drain(..) {
            // A job may own the last handle of the pool: its own thread ends after this job, and cannot wait for itself.
            if thread.thread().id() != me {
                // Panics of tasks are caught; a worker has none of its own.
                drop(thread.join());
            }
        }
    }
}

impl<F> fmt::Debug for ThreadPool<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.shared.queues.lock().stats(&self.shared.counts);
        f.debug_struct("ThreadPool").field("threads", &self.threads.len()).field("stats", &stats).finish()
    }
}

/// Tasks are opaque in logs.
impl<F> fmt::Debug for Task<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.first() { "Task(first)" } else { "Task(rest)" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// No test here transfers anything.
    fn pool(threads: usize) -> ThreadPool<()> {
        ThreadPool::new("test", threads, Box::new(|_| Ok(0))).unwrap()
    }

    fn soon<T>(from: &mpsc::Receiver<T>) -> T {
        from.recv_timeout(Duration::from_secs(30)).expect("the other side answers")
    }

    /// A job that says when it runs, and then waits until the other side lets go.
    fn held(pool: &ThreadPool<()>, urgent: bool) -> mpsc::Sender<()> {
        let (release, gate) = mpsc::channel::<()>();
        let (up, started) = mpsc::channel();
        let job: Job = Box::new(move || {
            up.send(()).unwrap();
            gate.recv().ok();
        });
        pool.spawn(urgent, job).ok().expect("the pool is open");
        soon(&started);
        release
    }

    #[test]
    fn stuck_stores_leave_a_thread_for_loads() {
        let pool = pool(3);
        let stuck = [held(&pool, false), held(&pool, false)];
        for _ in 0..3 {
            pool.spawn(false, Box::new(|| ())).ok().expect("the pool is open");
        }
        drop(held(&pool, true));
        assert_eq!(pool.stats().queued_rest, 3, "two of three threads may write");
        drop(stuck);
        assert!(pool.drain(Duration::from_secs(30)));
        assert_eq!(pool.stats(), EngineStats { finished: 6, ..EngineStats::default() });
    }

    #[test]
    fn a_store_does_not_wait_for_a_load_that_took_over_its_thread() {
        let pool = pool(2);
        let store = held(&pool, false);
        let (release, gate) = mpsc::channel::<()>();
        let (done, stored) = mpsc::channel();
        // Queued without a wake: the other thread sleeps when the store ends and its thread takes the load.
        let mut queues = pool.shared.queues.lock();
        queues.push(Task::Job(
            Box::new(move || {
                gate.recv().ok();
            }),
            true,
        ));
        queues.push(Task::Job(Box::new(move || done.send(()).unwrap()), false));
        drop(queues);
        drop(store);
        soon(&stored);
        drop(release);
        assert!(pool.drain(Duration::from_secs(30)));
    }

    #[test]
    fn the_last_handle_may_go_on_a_thread_of_the_pool() {
        let pool = Arc::new(pool(2));
        let (release, gate) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel();
        let own = Arc::clone(&pool);
        pool.spawn(
            true,
            Box::new(move || {
                gate.recv().ok();
                drop(own);
                done.send(()).unwrap();
            }),
        )
        .ok()
        .expect("the pool is open");
        drop(pool);
        drop(release);
        soon(&ended);
    }

    #[test]
    fn a_detached_pool_does_not_hold_up_its_owner() {
        let pool = pool(1);
        let (release, gate) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel();
        pool.spawn(
            true,
            Box::new(move || {
                gate.recv().ok();
                done.send(()).unwrap();
            }),
        )
        .ok()
        .expect("the pool is open");
        assert!(!pool.drain(Duration::ZERO));
        pool.detach();
        assert!(pool.spawn(true, Box::new(|| ())).is_err());
        drop(pool);
        drop(release);
        soon(&ended);
    }

    #[test]
    fn a_pool_without_threads_is_refused() {
        let e = ThreadPool::<()>::new("test", 0, Box::new(|_| Ok(0))).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    }
}
