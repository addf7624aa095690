//! A GPU in host memory. Its memory says that it is a device's, so nothing here may touch it but its copies, and these are
//! made later, by a thread of each queue: whoever looks too early finds the old bytes.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2_gds::{Copies, Direction, Event, Gpus, Mark};
use kvstrata_mem::{HeapRegion, MmapRegion, Region, RegionId, RegionKind, RegionOptions};

/// The GPU, and what becomes of its copies.
#[derive(Debug, Default)]
pub(crate) struct Pretend {
    /// Copies to go before one fails; `u64::MAX` and more: none does.
    pub(crate) fail_in: AtomicU64,
    /// Queues that are there.
    pub(crate) queues: Arc<AtomicU64>,
}

impl Pretend {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { fail_in: AtomicU64::new(u64::MAX), ..Self::default() })
    }
}

/// Host memory that says that it is a device's.
#[derive(Debug)]
pub(crate) struct Memory(Arc<MmapRegion>);

impl Memory {
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        Ok(Self(MmapRegion::new(bytes, &RegionOptions::default())?))
    }
}

// SAFETY: the region inside is one.
unsafe impl Region for Memory {
    fn id(&self) -> RegionId {
        self.0.id()
    }
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn kind(&self) -> RegionKind {
        RegionKind::Device
    }
    fn shared_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

// SAFETY: regions are of `kvstrata_mem`, and a queue ends what it began before `drain` returns.
unsafe impl Gpus for Pretend {
    fn ordinals(&self) -> Vec<u32> {
        vec![0]
    }
    fn owner(&self, _: &dyn Region) -> Result<u32> {
        Ok(0)
    }
    fn pinned(&self, bytes: usize) -> Result<Arc<dyn Region>> {
        HeapRegion::new(bytes)
    }
    fn memory(&self, _: u32, bytes: usize) -> Result<Arc<dyn Region>> {
        Ok(Arc::new(Memory::new(bytes)?))
    }
    fn copies(&self, _: u32) -> Result<Box<dyn Copies>> {
        let left = self.fail_in.load(Relaxed);
        Ok(Box::new(Queue::new(Arc::clone(&self.queues), left)))
    }
    fn within(&self, _: u32, work: &mut dyn FnMut()) -> Result<()> {
        work();
        Ok(())
    }
}

/// Reached or not. Never recorded counts as reached, as in CUDA.
#[derive(Debug, Default)]
pub(crate) struct Flag(pub(crate) Arc<(Mutex<(u64, u64)>, Condvar)>);

impl Event for Flag {}

impl Flag {
    /// From now on it is reached with the next [`Self::reach`].
    pub(crate) fn arm(&self) {
        self.0.0.lock().unwrap().0 += 1;
    }
    pub(crate) fn reach(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.1 = state.0;
        self.0.1.notify_all();
    }
    pub(crate) fn wait(&self) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |(armed, reached)| reached < armed).unwrap());
    }
}

type Work = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Queue {
    work: Option<Sender<Work>>,
    thread: Option<std::thread::JoinHandle<()>>,
    done: Arc<(Mutex<u64>, Condvar)>,
    last: u64,
    left: u64,
    alive: Arc<AtomicU64>,
}

impl Queue {
    fn new(alive: Arc<AtomicU64>, left: u64) -> Self {
        let (work, queue) = channel::<Work>();
        let thread = std::thread::spawn(move || queue.into_iter().for_each(|work| work()));
        alive.fetch_add(1, Relaxed);
        Self { work: Some(work), thread: Some(thread), done: Arc::default(), last: 0, left, alive }
    }

    fn push(&self, work: impl FnOnce() + Send + 'static) {
        self.work.as_ref().expect("open").send(Box::new(work)).expect("the thread lives");
    }
}

struct Ends(NonNull<u8>, NonNull<u8>);
// SAFETY: whoever queues a copy keeps both ends.
unsafe impl Send for Ends {}

fn flag(event: &dyn Event) -> Result<Flag> {
    let any: &dyn Any = event;
    let flag: &Flag =
        any.downcast_ref().ok_or_else(|| Error::invalid("order copies", "another kind of event"))?;
    Ok(Flag(Arc::clone(&flag.0)))
}

impl Copies for Queue {
    unsafe fn copy(&mut self, _: Direction, to: NonNull<u8>, from: NonNull<u8>, len: usize) -> Result<()> {
        if self.left == 0 {
            return Err(Error::new(ErrorKind::Io, "copy", "the pretended GPU fails"));
        }
        self.left = if self.left == u64::MAX { u64::MAX } else { self.left - 1 };
        let ends = Ends(to, from);
        self.push(move || {
            let Ends(to, from) = { ends };
            std::thread::sleep(Duration::from_micros(200));
            // SAFETY: as the caller of `copy` promises.
            unsafe { to.as_ptr().copy_from_nonoverlapping(from.as_ptr(), len) };
        });
        Ok(())
    }
    fn after(&mut self, event: &dyn Event) -> Result<()> {
        let flag = flag(event)?;
        self.push(move || flag.wait());
        Ok(())
    }
    fn signal(&mut self, event: &dyn Event) -> Result<()> {
        let flag = flag(event)?;
        flag.arm();
        self.push(move || flag.reach());
        Ok(())
    }
    fn mark(&mut self) -> Result<Mark> {
        self.last += 1;
        let (done, mark) = (Arc::clone(&self.done), self.last);
        self.push(move || {
            *done.0.lock().unwrap() = mark;
            done.1.notify_all();
        });
        Ok(Mark(mark))
    }
    fn reached(&mut self, mark: Mark) -> Result<()> {
        let done = self.done.0.lock().unwrap();
        drop(self.done.1.wait_while(done, |done| *done < mark.0).unwrap());
        Ok(())
    }
    fn drain(&mut self) {
        let mark = self.mark().expect("a mark");
        self.reached(mark).expect("an end");
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        drop(self.work.take());
        self.thread.take().expect("joined once").join().expect("a thread that ends");
        self.alive.fetch_sub(1, Relaxed);
    }
}
