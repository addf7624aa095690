//! Owned pieces of a region: written by one, then read by many.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};

use crate::{Region, RegionKind, UNIT};

/// Where in its region a buffer lies, in bytes. `capacity` is what was set aside for it: whole 4 KiB units.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// From the region's base.
    pub offset: usize,
    /// Bytes set aside, at least the buffer's length.
    pub capacity: usize,
}

/// Who takes an extent back. Called once per extent, from whichever thread drops the last handle.
pub trait Home: Send + Sync + 'static {
    /// The extent is free again.
    fn release(&self, region: &Arc<dyn Region>, extent: Extent);
}

/// The one owner of an extent; gives it back when dropped.
struct Block {
    home: Arc<dyn Home>,
    region: Arc<dyn Region>,
    extent: Extent,
}

impl Block {
    fn ptr(&self) -> NonNull<u8> {
        // Address arithmetic: for Rust, an address of a device points at nothing that it could be `add`ed within.
        // Whoever made the block vouched that the extent lies in the region, so the sum does not saturate.
        self.region.base().map_addr(|base| base.saturating_add(self.extent.offset))
    }

    fn read_at(&self, len: usize, at: usize, to: &mut [u8]) -> Result<()> {
        if at.checked_add(to.len()).is_none_or(|end| end > len) {
            return Err(outside("read from buffer", at, to.len(), len));
        }
        if self.region.kind() == RegionKind::Device {
            return Err(not_host("read from buffer"));
        }
        // SAFETY: `at` is inside the buffer.
        let from = unsafe { self.ptr().add(at) };
        // SAFETY: both sides are valid for that many bytes; `to` is a unique borrow, so it is no part of this buffer.
        unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// The caller holds the only handle, or one that nobody writes through.
    fn visit(&self, len: usize, mut f: impl FnMut(&[u8])) -> Result<()> {
        if self.region.kind() == RegionKind::Private {
            // SAFETY: private host memory, initialised, at least `len` bytes long, and not written during the call.
            f(unsafe { std::slice::from_raw_parts(self.ptr().as_ptr(), len) });
            return Ok(());
        }
        if self.region.kind() == RegionKind::Device {
            return Err(not_host("read from buffer"));
        }
        let mut copy = [0; 16 << 10];
        for at in (0..len).step_by(copy.len()) {
            let n = copy.len().min(len - at);
            self.read_at(len, at, &mut copy[..n])?;
            f(&copy[..n]);
        }
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.release(&self.region, self.extent);
    }
}

fn not_host(op: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, op, "the buffer lies in device memory, which the CPU does not touch")
}

fn outside(op: &'static str, at: usize, n: usize, len: usize) -> Error {
    Error::invalid(op, "the range is outside the buffer").with("at", at).with("bytes", n).with("len", len)
}

/// A buffer with one owner who fills it. Dropped = freed.
pub struct WriteBuf {
    block: Block,
    len: usize,
}

impl WriteBuf {
    /// Makes a buffer of `len` bytes over an extent.
    ///
    /// # Safety
    /// The extent lies in `region`, is at least `len` bytes long, and belongs to nobody else until `home` gets it back.
    pub unsafe fn from_extent(
        home: Arc<dyn Home>,
        region: Arc<dyn Region>,
        extent: Extent,
        len: usize,
    ) -> Self {
        debug_assert!(len <= extent.capacity && extent.offset + extent.capacity <= region.len());
        Self { block: Block { home, region, extent }, len }
    }

    /// The bytes that were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes set aside: direct I/O may transfer up to this many.
    pub fn capacity(&self) -> usize {
        self.block.extent.capacity
    }

    /// The region the buffer lies in.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.block.region
    }

    /// Where in the region it lies.
    pub fn extent(&self) -> Extent {
        self.block.extent
    }

    /// The first byte, for drivers. The pointer is good for [`Self::capacity`] bytes while this value lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.block.ptr()
    }

    /// The bytes, if they are private host memory.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        (self.region().kind() == RegionKind::Private).then(|| {
            // SAFETY: private host memory, initialised, and ours alone until sealed.
            unsafe { std::slice::from_raw_parts_mut(self.block.ptr().as_ptr(), self.len) }
        })
    }

    /// Copies `src` to `at`. Works for shared memory too.
    ///
    /// # Errors
    /// `Invalid` outside the buffer, `Unsupported` for device memory.
    pub fn write_at(&mut self, at: usize, src: &[u8]) -> Result<()> {
        if at.checked_add(src.len()).is_none_or(|end| end > self.len) {
            return Err(outside("write to buffer", at, src.len(), self.len));
        }
        if self.region().kind() == RegionKind::Device {
            return Err(not_host("write to buffer"));
        }
        // SAFETY: `at` is inside the buffer.
        let to = unsafe { self.block.ptr().add(at) };
        // SAFETY: both sides are valid for that many bytes, and `src` is a borrow, so it is no part of this buffer.
        unsafe { to.as_ptr().copy_from_nonoverlapping(src.as_ptr(), src.len()) };
        Ok(())
    }

    /// Copies the bytes from `at` on into `to`: what a driver filled in can be checked before it is sealed.
    ///
    /// # Errors
    /// As [`ReadBuf::read_at`].
    pub fn read_at(&self, at: usize, to: &mut [u8]) -> Result<()> {
        self.block.read_at(self.len, at, to)
    }

    /// Shows the bytes piece by piece, as [`ReadBuf::visit`] does.
    ///
    /// # Errors
    /// `Unsupported` for device memory.
    pub fn visit(&self, f: impl FnMut(&[u8])) -> Result<()> {
        self.block.visit(self.len, f)
    }

    /// Ends the writing. Only the first `len` bytes are the payload. In host memory the rest of its last 4 KiB is cleared,
    /// because direct I/O writes whole blocks, and memory that was used before may hold another tenant's bytes.
    ///
    /// # Panics
    /// If `len` exceeds [`Self::len`].
    pub fn seal(self, len: usize) -> ReadBuf {
        assert!(len <= self.len, "sealing {len} of {} bytes", self.len);
        let end = len.next_multiple_of(UNIT).min(self.capacity());
        if end > len && self.region().kind() != RegionKind::Device {
            // SAFETY: `len` is within the extent.
            let rest = unsafe { self.block.ptr().add(len) };
            // SAFETY: the bytes from `len` to `end` are within the extent, which is ours alone until sealed.
            unsafe { rest.as_ptr().write_bytes(0, end - len) };
        }
        ReadBuf { block: Arc::new(self.block), len }
    }
}

impl fmt::Debug for WriteBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteBuf({} bytes at {:?} of {:?})", self.len, self.block.extent, self.block.region.id())
    }
}

/// A buffer that is read and no longer written. Each clone is a pin; the last one to go frees the extent.
#[derive(Clone)]
pub struct ReadBuf {
    block: Arc<Block>,
    len: usize,
}

impl ReadBuf {
    /// The payload's size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the payload has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes set aside.
    pub fn capacity(&self) -> usize {
        self.block.extent.capacity
    }

    /// The region the buffer lies in.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.block.region
    }

    /// Where in the region it lies.
    pub fn extent(&self) -> Extent {
        self.block.extent
    }

    /// The first byte, for drivers that read. Good for [`Self::capacity`] bytes while this value lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.block.ptr()
    }

    /// How many handles there are, this one included.
    pub fn pins(&self) -> usize {
        Arc::strong_count(&self.block)
    }

    /// Whether both are handles of the same buffer.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.block, &other.block)
    }

    /// The payload, if it is private host memory.
    pub fn as_slice(&self) -> Option<&[u8]> {
        (self.region().kind() == RegionKind::Private).then(|| {
            // SAFETY: private host memory, initialised, and nobody writes it after the seal.
            unsafe { std::slice::from_raw_parts(self.block.ptr().as_ptr(), self.len) }
        })
    }

    /// Copies the bytes from `at` on into `to`. Works for shared memory too.
    ///
    /// # Errors
    /// `Invalid` outside the payload, `Unsupported` for device memory.
    pub fn read_at(&self, at: usize, to: &mut [u8]) -> Result<()> {
        self.block.read_at(self.len, at, to)
    }

    /// Shows the payload piece by piece, in order: whole for private memory, through a 16 KiB copy for shared memory.
    ///
    /// # Errors
    /// `Unsupported` for device memory.
    pub fn visit(&self, f: impl FnMut(&[u8])) -> Result<()> {
        self.block.visit(self.len, f)
    }
}

impl fmt::Debug for ReadBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.block;
        write!(
            f,
            "ReadBuf({} bytes at {:?} of {:?}, {} pins)",
            self.len,
            b.extent,
            b.region.id(),
            self.pins()
        )
    }
}
