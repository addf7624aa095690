//! Stretches of memory that stay where they are.

mod heap;
mod machine;
mod map;
mod mmap;
mod shared;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

pub use heap::HeapRegion;
pub use machine::machine_memory;
pub use map::{Fallback, HugePages, RegionOptions};
pub use mmap::MmapRegion;
pub use shared::{MemfdRegion, ShmRegion, Stale};

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
