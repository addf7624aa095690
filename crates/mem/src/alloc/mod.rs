//! Handing out pieces of regions, within limits.

mod fit;
mod pool;
mod slab;

use std::fmt;
use std::sync::Arc;

use kvstrata_core::Result;

pub use pool::Pool;
pub use slab::{Slab, SlabUsage};

use crate::{Region, WriteBuf};

/// The unit of allocation in bytes.
pub const UNIT: usize = 4096;

/// How full an allocator is, in bytes. Whole units count, and a buffer counts until its last handle is gone. All four
/// numbers are of the same moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Handed out.
    pub used: u64,
    /// The hard limit.
    pub limit: u64,
    /// The most that was ever handed out at once.
    pub peak: u64,
    /// Buffers handed out.
    pub buffers: u64,
}

/// Learns of regions as they come and go: io_uring, cuFile, Mooncake and CUDA register them.
///
/// Each watch hears of each region once when it comes and once when it goes, one call at a time. A call may take long
/// (registering memory does): meanwhile buffers are handed out and taken back as usual, and only other changes of the
/// set of regions wait. So a watch must not add or remove regions or watches itself.
pub trait RegionWatch: Send + Sync + 'static {
    /// The region may hold buffers from now on. A region that joins a running slab holds none before every watch
    /// has returned from this.
    fn added(&self, region: &Arc<dyn Region>);
    /// The region holds no buffers any more and is about to be unmapped.
    fn removed(&self, region: &Arc<dyn Region>);
}

/// Learns that bytes became free. Called outside every lock of the allocator, from whichever thread dropped a buffer.
pub trait SpaceWatch: Send + Sync + 'static {
    /// At least `bytes` bytes were given back, by a buffer of this pool or of another one of the same slab (what is
    /// short may be either the pool's limit or the slab's memory), or came with a higher limit or a new region.
    fn freed(&self, bytes: u64);
}

/// A source of buffers.
pub trait Allocate: Send + Sync + fmt::Debug + 'static {
    /// A buffer of `bytes` bytes whose address is a multiple of `align` (a power of two; at least 4 KiB is always given).
    ///
    /// # Errors
    /// `NoSpace` if the limit or the memory is exhausted (never anything retried or evicted in here); `Invalid` for 0
    /// bytes, a bad alignment, or more bytes than there could ever be.
    fn reserve(&self, bytes: usize, align: usize) -> Result<WriteBuf>;
    /// How full it is.
    fn usage(&self) -> Usage;
    /// The regions buffers may lie in now.
    fn regions(&self) -> Vec<Arc<dyn Region>>;
    /// Tells `watch` of every region there is, and of all that come and go from now on.
    fn watch_regions(&self, watch: Arc<dyn RegionWatch>);
    /// Tells `watch` whenever bytes are given back.
    fn watch_space(&self, watch: Arc<dyn SpaceWatch>);
}
