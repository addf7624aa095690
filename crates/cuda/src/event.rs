//! Places in streams.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUevent;
use kvstrata_core::Result;

use crate::Device;
use crate::api::Code;

/// Who an event is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EventUse {
    /// This process.
    #[default]
    Here,
    /// This process, and others that open its handle.
    Shared,
}

/// A place in a stream: recorded, it is reached when everything that was given to the stream before is done. One that was
/// never recorded counts as reached.
pub struct Event {
    raw: CUevent,
    device: Arc<Device>,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Device {
    /// A new event. It keeps no time, and waiting for it blocks the thread rather than spinning.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(self: &Arc<Self>, shared: EventUse) -> Result<Event> {
        const OP: &str = "make CUDA event";
        const BLOCKING_SYNC: u32 = 1;
        const DISABLE_TIMING: u32 = 2;
        const INTERPROCESS: u32 = 4;
        let flags =
            BLOCKING_SYNC | DISABLE_TIMING | if shared == EventUse::Shared { INTERPROCESS } else { 0 };
        let _current = self.enter(OP)?;
        let mut raw: CUevent = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        self.api().check(OP, unsafe { (self.api().event_create)(&raw mut raw, flags) })?;
        Ok(Event { raw, device: Arc::clone(self) })
    }
}

impl Event {
    pub(crate) fn from_raw(device: &Arc<Device>, raw: CUevent) -> Self {
        Self { raw, device: Arc::clone(device) }
    }

    pub(crate) fn raw(&self) -> CUevent {
        self.raw
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether it was reached.
    ///
    /// # Errors
    /// What went wrong in the stream before it, or what the driver says.
    pub fn is_reached(&self) -> Result<bool> {
        const OP: &str = "ask CUDA event";
        let _current = self.device.enter(OP)?;
        // SAFETY: the event lives as long as the value.
        match unsafe { (self.device.api().event_query)(self.raw) } {
            Code::NOT_READY => Ok(false),
            code => self.device.api().check(OP, code).map(|()| true),
        }
    }

    /// Blocks until it is reached: as long as the work before it takes.
    ///
    /// # Errors
    /// As [`Self::is_reached`].
    pub fn synchronize(&self) -> Result<()> {
        const OP: &str = "wait for CUDA event";
        let _current = self.device.enter(OP)?;
        // SAFETY: the event lives as long as the value.
        self.device.api().check(OP, unsafe { (self.device.api().event_synchronize)(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter("destroy CUDA event") {
            // SAFETY: made or opened by this value's maker, and destroyed once; what waits for it still does.
            let _ = unsafe { (self.device.api().event_destroy)(self.raw) };
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:p})", self.raw)
    }
}
