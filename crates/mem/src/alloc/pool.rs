//! Parts of a slab with hard limits.

use std::fmt;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};

use super::slab::Refusal;
use super::{Allocate, RegionWatch, Slab, SpaceWatch, UNIT, Usage};
use crate::{Extent, Home, Region, WriteBuf};

/// The greatest alignment that can be asked for: a huge page.
const MAX_ALIGN: usize = 2 << 20;

/// A part of a [`Slab`] with a hard limit.
///
/// A pool may be dropped while its buffers live: they go back to the slab when they are dropped.
pub struct Pool(Arc<PoolHome>);

struct PoolHome {
    name: &'static str,
    slab: Arc<Slab>,
    number: u32,
}

impl Pool {
    pub(super) fn new(name: &'static str, slab: Arc<Slab>, number: u32) -> Arc<Self> {
        Arc::new(Self(Arc::new(PoolHome { name, slab, number })))
    }

    /// The name it was made with.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The slab it is a part of.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.0.slab
    }

    /// Changes the limit, in bytes. A limit below what is used takes nothing away: nothing more is handed out until
    /// enough has come back.
    pub fn set_limit(&self, limit: u64) {
        self.0.slab.set_limit(self.0.number, limit);
    }

    #[cold]
    fn refused(&self, bytes: usize, align: usize, why: &Refusal) -> Error {
        const OP: &str = "reserve memory";
        let error = match why {
            Refusal::Limit(usage) => Error::new(ErrorKind::NoSpace, OP, "the pool is full")
                .with("used", usage.used)
                .with("limit", usage.limit),
            Refusal::Memory(usage) => {
                Error::new(ErrorKind::NoSpace, OP, "no hole in the memory is large enough")
                    .with("largest_hole", usage.largest_hole)
                    .with("used", usage.used)
                    .with("capacity", usage.capacity)
            }
            Refusal::AboveLimit(limit) => {
                Error::invalid(OP, "the buffer is larger than the whole pool").with("limit", limit)
            }
            Refusal::AboveRegions(longest) => {
                Error::invalid(OP, "no region could hold the buffer, even if empty")
                    .with("largest_region", longest)
            }
        };
        error.with("pool", self.0.name).with("bytes", bytes).with("align", align)
    }
}

impl Home for PoolHome {
    fn release(&self, region: &Arc<dyn Region>, extent: Extent) {
        self.slab.give(self.number, region.id(), extent);
    }
}

impl Drop for PoolHome {
    fn drop(&mut self) {
        self.slab.close_account(self.number);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.0.slab.forget_watches(self.0.number);
    }
}

impl Allocate for Pool {
    fn reserve(&self, bytes: usize, align: usize) -> Result<WriteBuf> {
        let home = &self.0;
        if bytes == 0 || !align.is_power_of_two() || align > MAX_ALIGN {
            let message = "a buffer has at least one byte, and a power-of-two alignment up to 2097152";
            return Err(Error::invalid("reserve memory", message).with("bytes", bytes).with("align", align));
        }
        let Ok(units) = u32::try_from(bytes.div_ceil(UNIT)) else {
            return Err(self.refused(bytes, align, &Refusal::AboveRegions(home.slab.longest_region())));
        };
        let (region, extent) = home
            .slab
            .take(home.number, units, align.div_ceil(UNIT) as u32)
            .map_err(|why| self.refused(bytes, align, &why))?;
        // SAFETY: the slab gave this extent of its region to nobody else, it is at least `bytes` long, and it goes back
        // to the slab through the home alone.
        Ok(unsafe { WriteBuf::from_extent(Arc::clone(home) as Arc<dyn Home>, region, extent, bytes) })
    }

    fn usage(&self) -> Usage {
        self.0.slab.pool_usage(self.0.number)
    }

    fn regions(&self) -> Vec<Arc<dyn Region>> {
        self.0.slab.regions()
    }

    fn watch_regions(&self, watch: Arc<dyn RegionWatch>) {
        self.0.slab.watch_regions(watch);
    }

    fn watch_space(&self, watch: Arc<dyn SpaceWatch>) {
        self.0.slab.watch_space(self.0.number, watch);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {:?})", self.0.name, self.usage())
    }
}
