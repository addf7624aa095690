//! Handing out pieces of regions, within limits.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kvstrata_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::{Extent, Home, Region, WriteBuf};

/// The unit of allocation in bytes.
pub const UNIT: usize = 4096;

/// How full an allocator is, in bytes. Whole units count, and a buffer counts until its last handle is gone.
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
pub trait RegionWatch: Send + Sync + 'static {
    /// The region may hold buffers from now on.
    fn added(&self, region: &Arc<dyn Region>);
    /// The region holds no buffers any more and is about to be unmapped.
    fn removed(&self, region: &Arc<dyn Region>);
}

/// Learns that bytes became free. Called outside every lock of the allocator, from whichever thread dropped a buffer.
pub trait SpaceWatch: Send + Sync + 'static {
    /// At least `bytes` bytes were given back.
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

/// An allocator over regions.
pub struct Slab {
    regions: Vec<Arc<dyn Region>>,
    free: Mutex<Free>,
}

/// Free extents by region and offset.
#[derive(Default)]
struct Free {
    holes: BTreeMap<(usize, usize), usize>,
}

impl Slab {
    /// An allocator over these regions.
    ///
    /// # Errors
    /// `Invalid` if there are none.
    pub fn new(regions: Vec<Arc<dyn Region>>) -> Result<Arc<Self>> {
        if regions.is_empty() {
            return Err(Error::invalid("make slab", "a slab needs at least one region"));
        }
        let holes = regions.iter().enumerate().map(|(i, r)| ((i, 0), r.len())).collect();
        Ok(Arc::new(Self { regions, free: Mutex::new(Free { holes }) }))
    }

    /// A part of the slab with a hard limit of its own, in bytes. The limits of all pools may add up to more than the
    /// slab has; each is a ceiling, not a promise.
    pub fn pool(self: &Arc<Self>, name: &'static str, limit: u64) -> Arc<Pool> {
        Arc::new(Pool(Arc::new(PoolHome {
            name,
            slab: Arc::clone(self),
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            watches: Mutex::new(Vec::new()),
            watched: AtomicUsize::new(0),
        })))
    }

    fn take(&self, bytes: usize) -> Option<(usize, Extent)> {
        let mut free = self.free.lock();
        let (&(region, offset), &len) = free.holes.iter().find(|(_, len)| **len >= bytes)?;
        free.holes.remove(&(region, offset));
        if len > bytes {
            free.holes.insert((region, offset + bytes), len - bytes);
        }
        Some((region, Extent { offset, capacity: bytes }))
    }

    fn give(&self, region: &Arc<dyn Region>, extent: Extent) {
        let i = self.regions.iter().position(|r| r.id() == region.id()).expect("a region of this slab");
        let mut free = self.free.lock();
        let (mut start, mut len) = (extent.offset, extent.capacity);
        if let Some(next) = free.holes.remove(&(i, start + len)) {
            len += next;
        }
        if let Some((&(r, before), &n)) = free.holes.range(..(i, start)).next_back()
            && r == i
            && before + n == start
        {
            free.holes.remove(&(i, before));
            (start, len) = (before, n + len);
        }
        free.holes.insert((i, start), len);
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("regions", &self.regions).finish_non_exhaustive()
    }
}

/// A part of a [`Slab`] with a hard limit.
pub struct Pool(Arc<PoolHome>);

struct PoolHome {
    name: &'static str,
    slab: Arc<Slab>,
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    buffers: AtomicU64,
    watches: Mutex<Vec<Arc<dyn SpaceWatch>>>,
    watched: AtomicUsize,
}

impl Home for PoolHome {
    fn release(&self, region: &Arc<dyn Region>, extent: Extent) {
        self.slab.give(region, extent);
        let bytes = extent.capacity as u64;
        self.used.fetch_sub(bytes, Ordering::AcqRel);
        self.buffers.fetch_sub(1, Ordering::Relaxed);
        if self.watched.load(Ordering::Acquire) > 0 {
            let watches = self.watches.lock().clone();
            watches.iter().for_each(|w| w.freed(bytes));
        }
    }
}

impl Allocate for Pool {
    fn reserve(&self, bytes: usize, align: usize) -> Result<WriteBuf> {
        const OP: &str = "reserve memory";
        let home = &self.0;
        if bytes == 0 || !align.is_power_of_two() || align > UNIT {
            return Err(Error::invalid(
                OP,
                "a buffer has at least one byte and a power-of-two alignment up to 4096",
            )
            .with("bytes", bytes)
            .with("align", align));
        }
        let units = bytes.next_multiple_of(UNIT);
        if units as u64 > home.limit {
            return Err(Error::invalid(OP, "the buffer is larger than the whole pool")
                .with("pool", home.name)
                .with("bytes", units)
                .with("limit", home.limit));
        }
        let no_space = || {
            Error::new(ErrorKind::NoSpace, OP, "the pool is full")
                .with("pool", home.name)
                .with("bytes", units)
        };
        home.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |u| {
                Some(u + units as u64).filter(|n| *n <= home.limit)
            })
            .map_err(|_| no_space())?;
        let Some((region, extent)) = home.slab.take(units) else {
            home.used.fetch_sub(units as u64, Ordering::AcqRel);
            return Err(no_space());
        };
        home.peak.fetch_max(home.used.load(Ordering::Relaxed), Ordering::Relaxed);
        home.buffers.fetch_add(1, Ordering::Relaxed);
        let region = Arc::clone(&home.slab.regions[region]);
        // SAFETY: the extent was just taken from the slab's free list and comes back to it through the home.
        Ok(unsafe { WriteBuf::from_extent(Arc::clone(home) as Arc<dyn Home>, region, extent, bytes) })
    }

    fn usage(&self) -> Usage {
        Usage {
            used: self.0.used.load(Ordering::Acquire),
            limit: self.0.limit,
            peak: self.0.peak.load(Ordering::Relaxed),
            buffers: self.0.buffers.load(Ordering::Relaxed),
        }
    }

    fn regions(&self) -> Vec<Arc<dyn Region>> {
        self.0.slab.regions.clone()
    }

    fn watch_regions(&self, watch: Arc<dyn RegionWatch>) {
        self.0.slab.regions.iter().for_each(|r| watch.added(r));
    }

    fn watch_space(&self, watch: Arc<dyn SpaceWatch>) {
        let mut watches = self.0.watches.lock();
        watches.push(watch);
        self.0.watched.store(watches.len(), Ordering::Release);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {:?})", self.0.name, self.usage())
    }
}
