//! An engine over one io_uring.
//!
//! One thread owns the ring. It sleeps in the kernel, which wakes it for completions and for the bell that submitters ring;
//! it never spins. Operations are cut into [`pieces`], and small ones that are [`neighbours`] in a file go together; so many
//! are under way as the [`budget`](crate::budget) says. A buffer belongs to the thread until the kernel has answered for every piece of it, whatever else happens.

mod driver;
mod fixed;
mod neighbours;
mod pieces;
mod sys;

use std::fmt;
use std::io::{self, Error};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvstrata_core::Clock;
use kvstrata_mem::{Region, RegionId, RegionKind, RegionWatch};
use parking_lot::{Condvar, Mutex};

use self::driver::Driver;
use self::fixed::Known;
pub(super) use self::fixed::Seat;
use self::sys::Bell;
use super::OsFile;
use crate::queue::Counts;
use crate::{CompletionSink, EngineStats, IoOp, Rejected};

type Sink = Arc<dyn CompletionSink<OsFile>>;

/// The handle of a ring's thread. Dropping it finishes what was submitted and joins the thread, unless it was detached.
pub(super) struct Uring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    detached: AtomicBool,
}

/// What the thread and its submitters share.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// The thread has nothing to do, or is gone.
    idle: Condvar,
    bell: Bell,
    counts: Counts,
    /// Reads and writes that have not begun, or not all of them.
    queued: [AtomicUsize; 2],
    running: AtomicUsize,
    /// What the kernel was asked for.
    transfers: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    ops: Vec<(IoOp<OsFile>, Sink)>,
    commands: Vec<Command>,
    closed: bool,
    /// The thread waits in the kernel, and wants the bell rung.
    asleep: bool,
    /// The thread has work. Set with it, taken back by the thread.
    busy: bool,
    /// The thread is gone; if for no good reason, why.
    gone: Option<Option<String>>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} operations, closed: {}, gone: {:?})", self.ops.len(), self.closed, self.gone)
    }
}

/// What the thread has to know.
#[derive(Debug)]
enum Command {
    /// A region may hold buffers now.
    Added(Known),
    /// It does not any more.
    Removed(RegionId),
    /// The file of this place of the table is closed.
    Closed(u32),
}

impl Shared {
    fn command(&self, command: Command) {
        let mut inbox = self.inbox.lock();
        if inbox.gone.is_none() {
            inbox.commands.push(command);
            self.wake(inbox);
        }
    }

    fn wake(&self, mut inbox: parking_lot::MutexGuard<'_, Inbox>) {
        inbox.busy = true;
        let asleep = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if asleep {
            self.bell.ring();
        }
    }
}

impl Uring {
    /// Starts the thread, with room for `depth` transfers at once.
    ///
    /// # Errors
    /// What the system says if it refuses the ring or the thread.
    pub(super) fn new(name: &str, depth: u32, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox::default()),
            idle: Condvar::new(),
            bell: Bell::new()?,
            counts: Counts::default(),
            queued: Default::default(),
            running: AtomicUsize::new(0),
            transfers: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let (say, made) = mpsc::sync_channel(1);
        // The thread that uses a ring makes it: the kernel holds it to that.
        let thread =
            thread::Builder::new().name(format!("{name}-ring")).spawn(move || {
                match Driver::new(theirs, depth, clock) {
                    Ok(driver) => {
                        drop(say.send(Ok(())));
                        driver.run();
                    }
                    Err(e) => drop(say.send(Err(e))),
                }
            })?;
        let uring = Self { shared, thread: Some(thread), detached: AtomicBool::new(false) };
        made.recv().unwrap_or_else(|_| Err(Error::other("the thread of the ring panicked")))?;
        Ok(uring)
    }

    /// As [`IoEngine::submit`](crate::IoEngine::submit).
    pub(super) fn submit(&self, ops: Vec<IoOp<OsFile>>, sink: &Sink) -> Result<(), Rejected<OsFile>> {
        let mut inbox = self.shared.inbox.lock();
        if inbox.closed || inbox.gone.is_some() {
            let why = inbox.gone.clone().flatten().unwrap_or_else(|| "the engine is shutting down".into());
            return Err(Rejected { ops, why: Error::other(why) });
        }
        self.shared.counts.took(&ops);
        for op in &ops {
            self.shared.queued[usize::from(!op.is_read())].fetch_add(1, Relaxed);
        }
        inbox.ops.extend(ops.into_iter().map(|op| (op, Arc::clone(sink))));
        self.shared.wake(inbox);
        Ok(())
    }

    /// Whether the thread is gone although nobody closed it.
    pub(super) fn broken(&self) -> bool {
        matches!(self.shared.inbox.lock().gone, Some(Some(_)))
    }

    pub(super) fn close(&self) {
        self.shared.inbox.lock().closed = true;
        // Also if it is awake: what waits for the bell has to end.
        self.shared.bell.ring();
    }

    pub(super) fn drain(&self, at_most: Duration) -> bool {
        let mut inbox = self.shared.inbox.lock();
        let busy = |inbox: &mut Inbox| inbox.busy && inbox.gone.is_none();
        !self.shared.idle.wait_while_for(&mut inbox, busy, at_most).timed_out()
    }

    pub(super) fn detach(&self) {
        self.close();
        self.detached.store(true, Relaxed);
    }

    pub(super) fn stats(&self) -> EngineStats {
        let [first, rest] = self.shared.queued.each_ref().map(|n| n.load(Relaxed));
        EngineStats {
            queued_first: first,
            queued_rest: rest,
            running: self.shared.running.load(Relaxed),
            ..self.shared.counts.stats()
        }
    }

    /// How many transfers the kernel was asked for.
    pub(super) fn transfers(&self) -> u64 {
        self.shared.transfers.load(Relaxed)
    }

    /// What registers memory with the ring.
    pub(super) fn region_watch(&self) -> Arc<dyn RegionWatch> {
        Arc::new(Watch(Arc::downgrade(&self.shared)))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.close();
        let Some(thread) = self.thread.take() else { return };
        // A sink may own the last handle: the thread cannot wait for itself.
        if !*self.detached.get_mut() && thread.thread().id() != thread::current().id() {
            drop(thread.join());
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring").field("stats", &self.stats()).finish()
    }
}

/// Outlives no ring: memory may be there for longer.
struct Watch(Weak<Shared>);

impl RegionWatch for Watch {
    fn added(&self, region: &Arc<dyn Region>) {
        if region.kind() != RegionKind::Device
            && let Some(ring) = self.0.upgrade()
        {
            ring.command(Command::Added(Known { id: region.id(), len: region.len() }));
        }
    }

    /// Does not wait until the kernel lets go of the pages: it keeps them itself, and no transfer names them any more.
    fn removed(&self, region: &Arc<dyn Region>) {
        if let Some(ring) = self.0.upgrade() {
            ring.command(Command::Removed(region.id()));
        }
    }
}
