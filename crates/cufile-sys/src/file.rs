//! Files and memory that the driver knows, and transfers between them.

use core::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::driver::have;
use crate::status::{check, check_count};
use crate::{Descr, DescrHandle, Driver, Failure, Handle, HandleType};

/// A registered file. Deregistered, then closed, when dropped.
///
/// That a file can be registered proves nothing about the way its bytes will go.
#[derive(Debug)]
pub struct FileHandle {
    // Dropped after `drop` has deregistered the handle: the descriptor is used by it, and the driver by both.
    handle: Handle,
    file: OwnedFd,
    driver: Arc<Driver>,
}

// SAFETY: the library's calls may come from any thread; a handle is a number to it.
unsafe impl Send for FileHandle {}
// SAFETY: as above; transfers with one handle may run at the same time.
unsafe impl Sync for FileHandle {}

impl FileHandle {
    /// Registers an open file: with O_DIRECT if its bytes are to go past the page cache.
    ///
    /// # Errors
    /// What the library says: `HANDLE_NOT_REGISTERED` where udev has no record of the file's block device.
    pub fn register(driver: &Arc<Driver>, file: impl Into<OwnedFd>) -> Result<Self, Failure> {
        const CALL: &str = "cuFileHandleRegister";
        let function = have(CALL, driver.calls().handle_register)?;
        have("cuFileHandleDeregister", driver.calls().handle_deregister)?;
        let file = file.into();
        let mut descr = Descr {
            kind: HandleType::OPAQUE_FD,
            handle: DescrHandle { fd: file.as_raw_fd() },
            fs_ops: std::ptr::null(),
        };
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: both outlive the call, and the descriptor is open.
        check(CALL, unsafe { function(&raw mut handle, &raw mut descr) })?;
        Ok(Self { handle, file, driver: Arc::clone(driver) })
    }

    /// The number that the library knows the file by.
    pub fn raw(&self) -> Handle {
        self.handle
    }

    /// Reads into memory, and waits for it. Returns how many bytes came: fewer at the end of the file.
    ///
    /// Waits as long as the device takes: call it from a thread that may.
    ///
    /// # Safety
    /// `base + offset..` is good to be written for `len` bytes, by a GPU's memory or the host's; for a GPU's, its context is the thread's
    /// current one. Nobody else uses these bytes meanwhile.
    ///
    /// # Errors
    /// What the library or the system says.
    pub unsafe fn read(
        &self,
        base: NonNull<u8>,
        offset: usize,
        len: usize,
        at: u64,
    ) -> Result<usize, Failure> {
        const CALL: &str = "cuFileRead";
        let function = have(CALL, self.driver.calls().read)?;
        let (at, offset) = offsets(CALL, at, offset)?;
        // SAFETY: the handle is registered, and the caller says that the memory is good.
        let answer = unsafe { function(self.handle, base.as_ptr().cast::<c_void>(), len, at, offset) };
        check_count(CALL, answer, last_errno)
    }

    /// Writes from memory, and waits for it. Returns how many bytes went.
    ///
    /// # Safety
    /// As [`Self::read`], but that the bytes are read.
    ///
    /// # Errors
    /// What the library or the system says.
    pub unsafe fn write(
        &self,
        base: NonNull<u8>,
        offset: usize,
        len: usize,
        at: u64,
    ) -> Result<usize, Failure> {
        const CALL: &str = "cuFileWrite";
        let function = have(CALL, self.driver.calls().write)?;
        let (at, offset) = offsets(CALL, at, offset)?;
        // SAFETY: the handle is registered, and the caller says that the memory is good.
        let answer = unsafe { function(self.handle, base.as_ptr().cast::<c_void>(), len, at, offset) };
        check_count(CALL, answer, last_errno)
    }
}

/// Offsets as the library takes them, or what is wrong with them.
fn offsets(call: &'static str, at: u64, offset: usize) -> Result<(i64, i64), Failure> {
    let at =
        i64::try_from(at).map_err(|_| Failure::argument(call, "the offset in the file is above 2^63"))?;
    let offset =
        i64::try_from(offset).map_err(|_| Failure::argument(call, "the offset in memory is above 2^63"))?;
    Ok((at, offset))
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

impl AsFd for FileHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for FileHandle {
    fn drop(&mut self) {
        if let Some(deregister) = self.driver.calls().handle_deregister {
            // SAFETY: registered once by this value, and no transfer borrows it any more.
            unsafe { deregister(self.handle) };
        }
    }
}

/// Memory that the driver has pinned for transfers. Deregistered when dropped.
#[derive(Debug)]
pub struct RegisteredBuffer {
    base: NonNull<u8>,
    len: usize,
    driver: Arc<Driver>,
}

// SAFETY: an address that is never read through here.
unsafe impl Send for RegisteredBuffer {}
// SAFETY: as above.
unsafe impl Sync for RegisteredBuffer {}

impl RegisteredBuffer {
    /// Registers `len` bytes. Once per region, not once per transfer: it is slow.
    ///
    /// # Safety
    /// The bytes stay mapped until the value is dropped, and no transfer uses them then. For a GPU's, its context is the
    /// thread's current one, here and when the value is dropped.
    ///
    /// # Errors
    /// What the library says: `MEMORY_ALREADY_REGISTERED` the second time.
    pub unsafe fn register(driver: &Arc<Driver>, base: NonNull<u8>, len: usize) -> Result<Self, Failure> {
        const CALL: &str = "cuFileBufRegister";
        const NO_FLAGS: c_int = 0;
        let function = have(CALL, driver.calls().buf_register)?;
        have("cuFileBufDeregister", driver.calls().buf_deregister)?;
        // SAFETY: the caller says that the bytes are mapped.
        check(CALL, unsafe { function(base.as_ptr().cast::<c_void>(), len, NO_FLAGS) })?;
        Ok(Self { base, len, driver: Arc::clone(driver) })
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for RegisteredBuffer {
    fn drop(&mut self) {
        if let Some(deregister) = self.driver.calls().buf_deregister {
            // SAFETY: registered once by this value; the caller of `register` keeps it mapped until now.
            let _ = unsafe { deregister(self.base.as_ptr().cast::<c_void>()) };
        }
    }
}
