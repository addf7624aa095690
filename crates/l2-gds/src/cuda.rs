//! CUDA's answer to what the adapter needs of GPUs.

use std::any::Any;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_cuda::{Cuda, Device, DeviceRegion, EventUse, PinnedRegion, Stream, Transfer};
use kvstrata_mem::Region;

use crate::device::{Copies, Direction, Event, Gpus, Mark};

/// An engine's events are those of [`kvstrata_cuda`].
impl Event for kvstrata_cuda::Event {}

/// The GPUs that this process sees.
///
/// # Errors
/// `Unavailable` without a driver or a device, with the reason.
pub fn cuda() -> Result<Arc<dyn Gpus>> {
    let devices = Cuda::open()?.devices()?;
    Ok(Arc::new(CudaGpus { devices }))
}

#[derive(Debug)]
struct CudaGpus {
    devices: Vec<Arc<Device>>,
}

impl CudaGpus {
    fn device(&self, ordinal: u32) -> Result<&Arc<Device>> {
        self.devices.get(ordinal as usize).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "use GPU", "this process sees no GPU of this ordinal")
                .with("ordinal", ordinal)
                .with("gpus", self.devices.len())
        })
    }
}

// SAFETY: the regions and streams of `kvstrata_cuda` are what they say, and a stream's work is done when it is synchronised.
unsafe impl Gpus for CudaGpus {
    fn ordinals(&self) -> Vec<u32> {
        self.devices.iter().map(|d| d.ordinal()).collect()
    }

    fn owner(&self, region: &dyn Region) -> Result<u32> {
        self.device(0)?.owner_of(region.base())
    }

    fn pinned(&self, bytes: usize) -> Result<Arc<dyn Region>> {
        Ok(PinnedRegion::new(self.device(0)?, bytes)?)
    }

    fn memory(&self, ordinal: u32, bytes: usize) -> Result<Arc<dyn Region>> {
        Ok(DeviceRegion::new(self.device(ordinal)?, bytes)?)
    }

    fn copies(&self, ordinal: u32) -> Result<Box<dyn Copies>> {
        let stream = self.device(ordinal)?.stream()?;
        Ok(Box::new(CudaCopies { marks: VecDeque::new(), free: Vec::new(), last: 0, stream }))
    }

    fn within(&self, ordinal: u32, work: &mut dyn FnMut()) -> Result<()> {
        let _current = self.device(ordinal)?.make_current()?;
        work();
        Ok(())
    }
}

#[derive(Debug)]
struct CudaCopies {
    /// Marks that may not be reached yet, in order.
    marks: VecDeque<(Mark, kvstrata_cuda::Event)>,
    free: Vec<kvstrata_cuda::Event>,
    last: u64,
    stream: Stream,
}

fn event(event: &dyn Event) -> Result<&kvstrata_cuda::Event> {
    let any: &dyn Any = event;
    any.downcast_ref()
        .ok_or_else(|| Error::invalid("order copies", "a CUDA event is expected for CUDA memory"))
}

impl Copies for CudaCopies {
    unsafe fn copy(&mut self, _: Direction, to: NonNull<u8>, from: NonNull<u8>, bytes: usize) -> Result<()> {
        // SAFETY: as the caller's: both ends stay good until the stream has passed this.
        unsafe { self.stream.copy(Transfer { to, from, bytes }) }
    }

    fn after(&mut self, at: &dyn Event) -> Result<()> {
        self.stream.wait(event(at)?)
    }

    fn signal(&mut self, at: &dyn Event) -> Result<()> {
        self.stream.record(event(at)?)
    }

    fn mark(&mut self) -> Result<Mark> {
        let event = match self.free.pop() {
            Some(event) => event,
            None => self.stream.device().event(EventUse::Here)?,
        };
        self.stream.record(&event)?;
        self.last += 1;
        self.marks.push_back((Mark(self.last), event));
        Ok(Mark(self.last))
    }

    fn reached(&mut self, mark: Mark) -> Result<()> {
        // A mark that is not there any more lies before one that was reached.
        if let Some((_, event)) = self.marks.iter().find(|(at, _)| *at == mark) {
            event.synchronize()?;
        }
        while self.marks.front().is_some_and(|(at, _)| *at <= mark) {
            self.free.extend(self.marks.pop_front().map(|(_, event)| event));
        }
        Ok(())
    }

    fn drain(&mut self) {
        if let Err(error) = self.stream.synchronize() {
            // A context in which a kernel or a copy failed does nothing any more: nothing touches memory either.
            tracing::warn!(%error, "a stream of copies ended with an error");
        }
    }
}

impl Drop for CudaCopies {
    fn drop(&mut self) {
        self.drain();
    }
}
