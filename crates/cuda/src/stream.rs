//! Streams.

use core::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use kvstrata_core::Result;

use crate::api::{Api, Code};
use crate::{Device, Event};

/// A stream as other libraries know it: an engine's, or cuFile's argument.
pub type RawStream = *mut c_void;

/// Work for a device, in order.
pub struct Stream {
    raw: CUstream,
    /// Destroyed with the value; not so an engine's.
    owned: bool,
    device: Arc<Device>,
}

// SAFETY: a stream may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Device {
    /// A new stream, which does not wait for the default one.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(self: &Arc<Self>) -> Result<Stream> {
        const OP: &str = "make CUDA stream";
        const NON_BLOCKING: u32 = 1;
        let _current = self.enter(OP)?;
        let mut raw: CUstream = std::ptr::null_mut();
        // SAFETY: the place outlives the call.
        self.api().check(OP, unsafe { (self.api().stream_create)(&raw mut raw, NON_BLOCKING) })?;
        Ok(Stream { raw, owned: true, device: Arc::clone(self) })
    }

    /// A stream that somebody else made, an engine for instance. Null is the default stream.
    ///
    /// # Safety
    /// It is a stream of this device's primary context, and outlives the result.
    pub unsafe fn foreign_stream(self: &Arc<Self>, raw: RawStream) -> Stream {
        Stream { raw: raw.cast(), owned: false, device: Arc::clone(self) }
    }
}

impl Stream {
    pub(crate) fn raw_stream(&self) -> CUstream {
        self.raw
    }

    /// As other libraries know it. Good while this value lives.
    pub fn raw(&self) -> RawStream {
        self.raw.cast()
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Marks the place after all that was given to the stream so far.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, event: &Event) -> Result<()> {
        const OP: &str = "record CUDA event";
        let _current = self.device.enter(OP)?;
        // SAFETY: both live as long as the values.
        self.device.api().check(OP, unsafe { (self.device.api().event_record)(event.raw(), self.raw) })
    }

    /// What is given to the stream from now on waits until the event is reached. The host waits for nothing.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<()> {
        const OP: &str = "let CUDA stream wait";
        let _current = self.device.enter(OP)?;
        // SAFETY: both live as long as the values; the driver keeps what the stream still needs of the event.
        self.device.api().check(OP, unsafe { (self.device.api().stream_wait)(self.raw, event.raw(), 0) })
    }

    /// Calls `f` once everything that was given to the stream so far is done, with what went wrong in it, from a thread of
    /// the driver's that everything after it waits for: so `f` is short, and calls nothing of CUDA. A panic in it ends there.
    ///
    /// # Errors
    /// What the driver says; then `f` is dropped and not called.
    pub fn notify(&self, f: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
        const OP: &str = "add callback to CUDA stream";
        struct Call {
            api: Api,
            f: Box<dyn FnOnce(Result<()>) + Send>,
        }
        unsafe extern "C" fn call(_: CUstream, code: Code, data: *mut c_void) {
            // SAFETY: the box that `notify` gave away; the driver calls once.
            let Call { api, f } = *unsafe { Box::from_raw(data.cast::<Call>()) };
            let done = catch_unwind(AssertUnwindSafe(|| f(api.check("work in CUDA stream", code))));
            if done.is_err() {
                tracing::error!("a callback of a CUDA stream panicked");
            }
        }
        let _current = self.device.enter(OP)?;
        let data = Box::into_raw(Box::new(Call { api: *self.device.api(), f: Box::new(f) }));
        // SAFETY: the stream lives as long as the value, and the box until the call.
        let code = unsafe { (self.device.api().stream_callback)(self.raw, call, data.cast(), 0) };
        self.device.api().check(OP, code).inspect_err(|_| {
            // SAFETY: the driver did not take it.
            drop(unsafe { Box::from_raw(data) });
        })
    }

    /// Whether everything that was given to it is done.
    ///
    /// # Errors
    /// What went wrong in the stream, or what the driver says.
    pub fn is_idle(&self) -> Result<bool> {
        const OP: &str = "ask CUDA stream";
        let _current = self.device.enter(OP)?;
        // SAFETY: the stream lives as long as the value.
        match unsafe { (self.device.api().stream_query)(self.raw) } {
            Code::NOT_READY => Ok(false),
            code => self.device.api().check(OP, code).map(|()| true),
        }
    }

    /// Blocks until everything that was given to it is done: for tests, benches, and the end.
    ///
    /// # Errors
    /// As [`Self::is_idle`].
    pub fn synchronize(&self) -> Result<()> {
        const OP: &str = "wait for CUDA stream";
        let _current = self.device.enter(OP)?;
        // SAFETY: the stream lives as long as the value.
        self.device.api().check(OP, unsafe { (self.device.api().stream_synchronize)(self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned
            && let Ok(_current) = self.device.enter("destroy CUDA stream")
        {
            // SAFETY: made by `stream`, and destroyed once; what was given to it is still done.
            let _ = unsafe { (self.device.api().stream_destroy)(self.raw) };
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:p})", self.raw)
    }
}
