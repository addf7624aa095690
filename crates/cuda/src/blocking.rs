//! Copies that the caller waits for, between buffers and plain bytes.

use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::{Device, Transfer};

impl Device {
    /// Copies `src` into a buffer, which may lie in this device's memory, and waits: for tools and tests.
    ///
    /// # Errors
    /// `Invalid` outside the buffer; what the driver says.
    pub fn write_buf(self: &Arc<Self>, buf: &mut WriteBuf, at: usize, src: &[u8]) -> Result<()> {
        const OP: &str = "copy into GPU buffer";
        inside(OP, at, src.len(), buf.len())?;
        let to = buf.as_ptr().map_addr(|base| base.saturating_add(at));
        // SAFETY: the buffer has one owner, who lends it, and the range is within it; `src` is borrowed.
        unsafe { self.copy_and_wait(to, NonNull::from(src).cast(), src.len()) }
    }

    /// Copies bytes of a buffer, which may lie in this device's memory, to `to`, and waits: for tools and tests.
    ///
    /// # Errors
    /// As [`Self::write_buf`].
    pub fn read_buf(self: &Arc<Self>, buf: &ReadBuf, at: usize, to: &mut [u8]) -> Result<()> {
        const OP: &str = "copy out of GPU buffer";
        inside(OP, at, to.len(), buf.len())?;
        let from = buf.as_ptr().map_addr(|base| base.saturating_add(at));
        // SAFETY: nobody writes a sealed buffer, and the range is within it; `to` is borrowed alone.
        unsafe { self.copy_and_wait(NonNull::from(&mut *to).cast(), from, to.len()) }
    }

    /// # Safety
    /// Both ranges are valid, and the first is the caller's alone.
    unsafe fn copy_and_wait(
        self: &Arc<Self>,
        to: NonNull<u8>,
        from: NonNull<u8>,
        bytes: usize,
    ) -> Result<()> {
        let stream = self.stream()?;
        // SAFETY: as the caller's, and nothing goes before the wait.
        let begun = unsafe { stream.copy(Transfer { to, from, bytes }) };
        begun.and(stream.synchronize())
    }
}

fn inside(op: &'static str, at: usize, bytes: usize, len: usize) -> Result<()> {
    if at.checked_add(bytes).is_none_or(|end| end > len) {
        let e = Error::invalid(op, "the range is outside the buffer");
        return Err(e.with("at", at).with("bytes", bytes).with("len", len));
    }
    Ok(())
}
