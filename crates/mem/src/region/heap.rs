//! Memory from the global allocator.

use std::alloc::Layout;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};

use super::{Region, RegionId, RegionKind};

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
    #[expect(clippy::new_ret_no_self, reason = "a region is used through its trait alone")]
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
