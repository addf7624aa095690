//! A GPU for figures without one: its copies take the time that a copy engine takes, and cost the host nothing. They move no
//! bytes, so nothing is compared by it; digests are those of whatever lies in pinned memory. What the pipeline around the
//! copies costs is measured with it, beside the disk and the memory of the same machine.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_core::Result;
use kvstrata_l2_gds::{Copies, Direction, Event, Gpus, Mark};
use kvstrata_mem::{MmapRegion, Region, RegionOptions};
use parking_lot::Mutex;

use crate::pretend::Memory;

/// As measured on PCIe 5 x16: bytes a second each way, and what a copy costs beside its bytes.
const RATE: f64 = 54e9;
const EACH: Duration = Duration::from_micros(4);
/// A thread that sleeps for less is late.
const SPIN: Duration = Duration::from_micros(80);

/// The GPU: an engine for each direction, which all queues share.
#[derive(Debug, Default)]
pub(crate) struct Model {
    busy: Arc<[Mutex<Option<Instant>>; 2]>,
}

// SAFETY: regions are of `kvstrata_mem`, and queues touch no memory.
unsafe impl Gpus for Model {
    fn ordinals(&self) -> Vec<u32> {
        vec![0]
    }
    fn owner(&self, _: &dyn Region) -> Result<u32> {
        Ok(0)
    }
    fn pinned(&self, bytes: usize) -> Result<Arc<dyn Region>> {
        Ok(MmapRegion::new(bytes, &RegionOptions { prefault: true, ..RegionOptions::default() })?)
    }
    fn memory(&self, _: u32, bytes: usize) -> Result<Arc<dyn Region>> {
        Ok(Arc::new(Memory::new(bytes)?))
    }
    fn copies(&self, _: u32) -> Result<Box<dyn Copies>> {
        Ok(Box::new(Queue { busy: Arc::clone(&self.busy), done: Instant::now(), marks: Vec::new() }))
    }
    fn within(&self, _: u32, work: &mut dyn FnMut()) -> Result<()> {
        work();
        Ok(())
    }
}

#[derive(Debug)]
struct Queue {
    busy: Arc<[Mutex<Option<Instant>>; 2]>,
    /// When everything queued so far is done.
    done: Instant,
    marks: Vec<Instant>,
}

impl Copies for Queue {
    unsafe fn copy(&mut self, way: Direction, _: NonNull<u8>, _: NonNull<u8>, len: usize) -> Result<()> {
        let mut engine = self.busy[usize::from(way == Direction::ToHost)].lock();
        let begins = engine.unwrap_or(self.done).max(self.done).max(Instant::now());
        self.done = begins + EACH + Duration::from_secs_f64(len as f64 / RATE);
        *engine = Some(self.done);
        Ok(())
    }
    fn after(&mut self, _: &dyn Event) -> Result<()> {
        Ok(())
    }
    fn signal(&mut self, _: &dyn Event) -> Result<()> {
        Ok(())
    }
    fn mark(&mut self) -> Result<Mark> {
        self.marks.push(self.done);
        Ok(Mark(self.marks.len() as u64 - 1))
    }
    fn reached(&mut self, mark: Mark) -> Result<()> {
        let done = self.marks[mark.0 as usize];
        if mark.0 as usize + 1 == self.marks.len() {
            // Nobody asks for the others any more.
            self.marks.clear();
        }
        let left = done.saturating_duration_since(Instant::now());
        std::thread::sleep(left.saturating_sub(SPIN));
        while Instant::now() < done {
            std::hint::spin_loop();
        }
        Ok(())
    }
    fn drain(&mut self) {
        let mark = self.mark().expect("a mark");
        self.reached(mark).expect("an end");
    }
}
