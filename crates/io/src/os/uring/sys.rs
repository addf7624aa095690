//! The ring: every call of the kernel's that it takes.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write as _};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, Probe, opcode};

/// Room in the tables of registered memory and files. The kernel's limit for buffers; unused entries cost a pointer.
pub(super) const BUFFERS: u32 = 1 << 14;
pub(super) const FILES: u32 = 1 << 10;

/// The user data of the read that waits for a [`Bell`].
const BELL: u64 = u64::MAX;

/// Wakes the thread that waits in the kernel.
#[derive(Debug)]
pub(super) struct Bell(File);

impl Bell {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: takes no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: fresh, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    pub(super) fn ring(&self) {
        // It fails only if it has rung 2^64 - 2 times and nobody came.
        drop((&self.0).write(&1u64.to_ne_bytes()));
    }
}

/// A file, as the kernel is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// By its descriptor.
    Open(i32),
    /// By its place in the table.
    Registered(u32),
}

/// One transfer.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) read: bool,
    pub(super) file: Target,
    pub(super) offset: u64,
    pub(super) memory: Memory,
}

/// Where the bytes of a transfer lie.
#[derive(Debug)]
pub(super) enum Memory {
    /// In one place.
    Whole {
        at: NonNull<u8>,
        len: u32,
        /// The entry of the table of registered memory that has all of it.
        buffer: Option<u16>,
    },
    /// In several, in this order.
    Several(Vec<libc::iovec>),
}

/// One of several places.
pub(super) fn place(at: NonNull<u8>, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at.as_ptr().cast(), iov_len: len }
}

/// A ring that only the thread that made it uses.
pub(super) struct Ring {
    ring: IoUring,
    /// Where the kernel writes when the bell rings; given up if the ring goes while it may still.
    rung: ManuallyDrop<Box<u64>>,
    listening: bool,
    /// The lists of places of transfers under way, by their numbers.
    lists: Vec<Vec<libc::iovec>>,
}

/// What the kernel has finished.
pub(super) struct Finished {
    pub(super) number: u32,
    pub(super) moved: Result<usize>,
}

impl Ring {
    /// A ring for so many transfers at once, set up as well as this kernel can.
    ///
    /// # Errors
    /// What the kernel says if it refuses rings, or `Unsupported` if it is too old for what is used.
    pub(super) fn new(transfers: u32) -> Result<Self> {
        // One more for the bell.
        let entries = (transfers + 1).next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .dontfork()
            .build(entries)
            .or_else(|e| match e.raw_os_error() {
                // Before 6.1.
                Some(libc::EINVAL) => IoUring::builder().dontfork().build(entries),
                _ => Err(e),
            })?;
        let mut known = Probe::new();
        ring.submitter().register_probe(&mut known)?;
        for (code, name) in [
            (opcode::Read::CODE, "read"),
            (opcode::Write::CODE, "write"),
            (opcode::ReadFixed::CODE, "read to registered memory"),
            (opcode::WriteFixed::CODE, "write from registered memory"),
            (opcode::Readv::CODE, "read to several places"),
            (opcode::Writev::CODE, "write from several places"),
        ] {
            if !known.is_supported(code) {
                let why = format!("this kernel's rings do not {name}");
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
        }
        Ok(Self { ring, rung: ManuallyDrop::new(Box::new(0)), listening: false, lists: Vec::new() })
    }

    /// Has [`Self::wait`] return when the bell rings, once.
    pub(super) fn listen(&mut self, bell: &Bell) {
        if self.listening {
            return;
        }
        let at: *mut u64 = &raw mut **self.rung;
        let entry = opcode::Read::new(Fd(bell.0.as_raw_fd()), at.cast(), 8).build().user_data(BELL);
        // SAFETY: the eight bytes are not freed while `listening`.
        self.listening = unsafe { self.push(&entry) };
    }

    /// Asks for a transfer; whether there was room for it.
    ///
    /// # Safety
    /// Until the transfer with this number is finished, or for ever, the memory may be written by the kernel (for reads) or
    /// read (for writes), and the file stays open.
    pub(super) unsafe fn start(&mut self, number: u32, t: Transfer) -> bool {
        let entry = match t.memory {
            Memory::Whole { at, len, buffer } => whole(t.read, t.file, t.offset, at.as_ptr(), len, buffer),
            Memory::Several(places) => {
                let at = number as usize;
                if self.lists.len() <= at {
                    self.lists.resize_with(at + 1, Vec::new);
                }
                self.lists[at] = places;
                // The list stays where it is until the number is used again. The kernel looks at it no later than when it
                // takes the entry.
                several(t.read, t.file, t.offset, &self.lists[at])
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry.user_data(u64::from(number))) }
    }

    /// # Safety
    /// As the kernel demands it of the entry.
    unsafe fn push(&mut self, entry: &Entry) -> bool {
        let mut queue = self.ring.submission();
        // SAFETY: the caller's promise.
        unsafe { queue.push(entry) }.is_ok()
    }

    /// Tells the kernel what was asked for since the last time and waits until `least` transfers are finished.
    ///
    /// # Errors
    /// What the kernel says; everything that it has not taken stays asked for.
    pub(super) fn wait(&mut self, least: usize) -> Result<()> {
        self.ring.submit_and_wait(least).map(drop)
    }

    /// The next finished transfer.
    pub(super) fn finished(&mut self) -> Option<Finished> {
        loop {
            let done = self.ring.completion().next()?;
            if done.user_data() == BELL {
                self.listening = false;
                continue;
            }
            let moved = usize::try_from(done.result()).map_err(|_| Error::from_raw_os_error(-done.result()));
            return Some(Finished { number: done.user_data() as u32, moved });
        }
    }

    /// Whether the bell's read is the kernel's still.
    pub(super) fn is_listening(&self) -> bool {
        self.listening
    }

    /// Makes an empty table for registered memory.
    pub(super) fn table_of_buffers(&self) -> Result<()> {
        self.ring.submitter().register_buffers_sparse(BUFFERS)
    }

    /// Makes an empty table for registered files.
    pub(super) fn table_of_files(&self) -> Result<()> {
        self.ring.submitter().register_files_sparse(FILES)
    }

    /// Has the kernel pin the pages of `len` bytes from `base` on, at a place of the table.
    ///
    /// # Safety
    /// They are mapped during the call. (The kernel keeps the pages, wherever they are mapped later.)
    pub(super) unsafe fn register_buffer(&self, at: u16, base: NonNull<u8>, len: usize) -> Result<()> {
        let piece = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: len };
        // SAFETY: the caller's promise; a transfer that names the place has memory of its own to answer for.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(at), &[piece], None) }
    }

    /// Unpins what is at this place of the table, once no transfer uses it.
    pub(super) fn forget_buffer(&self, at: u16) -> Result<()> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: nothing is registered by this.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(at), &[nothing], None) }
    }

    /// Puts a file, or nothing, at a place of the table. The kernel keeps it open on its own.
    pub(super) fn set_file(&self, at: u32, fd: Option<i32>) -> Result<()> {
        self.ring.submitter().register_files_update(at, &[fd.unwrap_or(-1)]).map(drop)
    }
}

/// An entry for a file that is told in either way; the types that say so are the crate's own.
macro_rules! entry {
    ($op:ident, $file:expr, $offset:expr, $($argument:expr),*) => {
        match $file {
            Target::Open(fd) => opcode::$op::new(Fd(fd), $($argument),*).offset($offset).build(),
            Target::Registered(at) => opcode::$op::new(Fixed(at), $($argument),*).offset($offset).build(),
        }
    };
}

/// The entry of a transfer to or from one place.
fn whole(read: bool, file: Target, offset: u64, at: *mut u8, len: u32, buffer: Option<u16>) -> Entry {
    match (read, buffer) {
        (true, None) => entry!(Read, file, offset, at, len),
        (true, Some(buffer)) => entry!(ReadFixed, file, offset, at, len, buffer),
        (false, None) => entry!(Write, file, offset, at, len),
        (false, Some(buffer)) => entry!(WriteFixed, file, offset, at, len, buffer),
    }
}

/// The entry of a transfer to or from several.
fn several(read: bool, file: Target, offset: u64, list: &[libc::iovec]) -> Entry {
    let (at, n) = (list.as_ptr(), list.len() as u32);
    if read { entry!(Readv, file, offset, at, n) } else { entry!(Writev, file, offset, at, n) }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.listening {
            // SAFETY: the kernel is done with it, and it is dropped nowhere else.
            unsafe { ManuallyDrop::drop(&mut self.rung) };
        }
    }
}
