//! Stretches of memory that stay where they are.

use std::alloc::Layout;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstrata_core::{Error, ErrorKind, Result};

/// What may be done with a region's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RegionKind {
    /// Host memory that only this process maps: it may be borrowed as `&[u8]`.
    Private,
    /// Host memory that another process may write at any time: raw copies only.
    Shared,
    /// Memory of a device: the CPU never touches it.
    Device,
}

/// Tells regions of one process apart; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(u64);

impl RegionId {
    /// An id that no other region of this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number, for logs and for drivers that key registrations by it.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A stretch of memory.
///
/// # Safety
/// `base()..base() + len()` is mapped, readable and writable (by the CPU, or by the device for [`RegionKind::Device`]),
/// initialised, aligned to 4 KiB at `base()`, and does not move until the value is dropped. `base`, `len` and `kind`
/// never change. Two regions never overlap.
pub unsafe trait Region: Send + Sync + fmt::Debug + 'static {
    /// The region's id.
    fn id(&self) -> RegionId;
    /// The first byte.
    fn base(&self) -> NonNull<u8>;
    /// The size in bytes, a multiple of 4 KiB.
    fn len(&self) -> usize;
    /// What may be done with the bytes.
    fn kind(&self) -> RegionKind;
    /// The descriptor of the memfd or shared-memory object behind the region, if others may map it.
    fn shared_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Never: a region has bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Zeroed memory from the global allocator, for tests and tools (works under Miri).
pub struct HeapRegion {
    id: RegionId,
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned by the value and reached only through `Region`, whose users synchronise.
unsafe impl Send for HeapRegion {}
// SAFETY: as above.
unsafe impl Sync for HeapRegion {}

impl HeapRegion {
    /// A region of `len` bytes.
    ///
    /// # Errors
    /// `Invalid` unless `len` is a positive multiple of 4 KiB; `NoSpace` if the allocator has no such piece.
    pub fn new(len: usize) -> Result<Arc<dyn Region>> {
        const OP: &str = "allocate heap region";
        if len == 0 || !len.is_multiple_of(4096) {
            return Err(Error::invalid(OP, "a region is a positive multiple of 4096 bytes").with("len", len));
        }
        let layout = Layout::from_size_align(len, 4096).map_err(|e| Error::invalid(OP, e.to_string()))?;
        // SAFETY: the layout has a size above zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base)
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, OP, "out of memory").with("len", len))?;
        Ok(Arc::new(Self { id: RegionId::unique(), base, layout }))
    }
}

impl Drop for HeapRegion {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: allocated for the lifetime of the value, zeroed, aligned to 4 KiB.
unsafe impl Region for HeapRegion {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.layout.size()
    }
    fn kind(&self) -> RegionKind {
        RegionKind::Private
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl fmt::Debug for HeapRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeapRegion({} bytes)", self.layout.size())
    }
}
