//! One allocator over several regions, and the accounts of its pools.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use kvstrata_core::{Error, ErrorKind, Result};

use super::fit::{Fit, Piece};
use super::{Pool, RegionWatch, SpaceWatch, UNIT, Usage};
use crate::sync::Mutex;
use crate::{Extent, Region, RegionId};

/// How full a slab is, whichever pools its buffers are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlabUsage {
    /// Bytes of all regions.
    pub capacity: u64,
    /// Bytes handed out.
    pub used: u64,
    /// The most bytes that one buffer could get now.
    pub largest_hole: u64,
    /// Free stretches. Many holes with a small [`Self::largest_hole`] are what fragmentation looks like.
    pub holes: u64,
}

/// An allocator over regions.
///
/// It gives each request the shortest hole that can hold it, so a request fails only if no hole can. One lock guards the
/// holes and the accounts of the pools together: a buffer costs one short critical section when it comes and one when it
/// goes, and a limit holds exactly.
///
/// Regions are added at run time with [`Self::add_region`] and removed, once empty, with [`Self::remove_region`]. Growing
/// in steps is only needed for memory that is paid for when it is mapped (pinned, prefaulted, explicit huge pages): an
/// ordinary [`crate::MmapRegion`] is committed page by page as it is first written, and the allocator itself never
/// touches a region's bytes.
pub struct Slab {
    state: Mutex<State>,
    /// Held while regions come and go and while the watches are told. Locked before `state`, never the other way round.
    watches: Mutex<Vec<Arc<dyn RegionWatch>>>,
}

struct State {
    fit: Fit,
    regions: Vec<Option<Arc<dyn Region>>>,
    /// Where in `regions` each one stands.
    places: HashMap<RegionId, u32, FixedState>,
    /// By the number of the pool.
    accounts: Vec<Option<Account>>,
    space: Option<SpaceWatches>,
    capacity: u64,
    used: u64,
}

/// By the number of the pool that the watch was given to.
type SpaceWatches = Arc<[(u32, Arc<dyn SpaceWatch>)]>;

struct Account {
    limit: u64,
    used: u64,
    peak: u64,
    buffers: u64,
}

/// Why nothing was taken.
pub(super) enum Refusal {
    /// The pool's limit.
    Limit(Usage),
    /// Below the limit, but no hole can hold it.
    Memory(SlabUsage),
    /// More than the limit, even if nothing else were there.
    AboveLimit(u64),
    /// More than any region could hold, even if nothing else were there.
    AboveRegions(u64),
}

impl State {
    fn regions(&self) -> impl Iterator<Item = &Arc<dyn Region>> {
        self.regions.iter().flatten()
    }

    fn account(&mut self, pool: u32) -> &mut Account {
        self.accounts[pool as usize].as_mut().expect("a pool keeps its account while it lives")
    }

    fn longest_region(&self) -> u64 {
        self.fit.longest_span() as u64 * UNIT as u64
    }

    fn usage(&self) -> SlabUsage {
        SlabUsage {
            capacity: self.capacity,
            used: self.used,
            largest_hole: u64::from(self.fit.longest_hole()) * UNIT as u64,
            holes: self.fit.holes() as u64,
        }
    }
}

impl Account {
    fn usage(&self) -> Usage {
        Usage { used: self.used, limit: self.limit, peak: self.peak, buffers: self.buffers }
    }
}

impl Slab {
    /// An allocator over these regions.
    ///
    /// # Errors
    /// `Invalid` if there are none, or for what [`Self::add_region`] refuses.
    pub fn new(regions: Vec<Arc<dyn Region>>) -> Result<Arc<Self>> {
        if regions.is_empty() {
            return Err(Error::invalid("make slab", "a slab needs at least one region"));
        }
        let state = State {
            fit: Fit::new(),
            regions: Vec::new(),
            places: HashMap::with_hasher(FixedState::default()),
            accounts: Vec::new(),
            space: None,
            capacity: 0,
            used: 0,
        };
        let slab = Self { state: Mutex::new(state), watches: Mutex::new(Vec::new()) };
        regions.into_iter().try_for_each(|r| slab.add_region(r))?;
        Ok(Arc::new(slab))
    }

    /// Adds a region. The watches are told first, so that whoever registers memory has done so before a buffer lies in
    /// it.
    ///
    /// # Errors
    /// `Invalid` if the slab has the region already, or if it is not whole 4 KiB units (at most 2^32 - 1 of them) at a
    /// 4 KiB boundary.
    pub fn add_region(&self, region: Arc<dyn Region>) -> Result<()> {
        const OP: &str = "add region to slab";
        let origin = region.base().addr().get();
        let units = u32::try_from(region.len() / UNIT).unwrap_or(0);
        if units == 0 || !region.len().is_multiple_of(UNIT) || !origin.is_multiple_of(UNIT) {
            let message =
                "a region is 1 to 2^32 - 1 units of 4096 bytes at an address that is a multiple of 4096";
            return Err(Error::invalid(OP, message).with("len", region.len()).with("base", origin));
        }
        let watches = self.watches.lock();
        if self.state.lock().places.contains_key(&region.id()) {
            return Err(
                Error::invalid(OP, "the slab has this region already").with("region", region.id().get())
            );
        }
        watches.iter().for_each(|w| w.added(&region));
        let bytes = region.len() as u64;
        let told = {
            let mut state = self.state.lock();
            let place = state.fit.add(units, (origin / UNIT) as u64);
            state.places.insert(region.id(), place);
            let place = place as usize;
            if place == state.regions.len() {
                state.regions.push(None);
            }
            state.regions[place] = Some(region);
            state.capacity += bytes;
            state.space.clone()
        };
        drop(watches);
        tell(told, bytes);
        Ok(())
    }

    /// Takes an empty region out, tells the watches, and hands it back.
    ///
    /// # Errors
    /// `NotFound` if the slab has no such region; `Busy` while buffers lie in it.
    pub fn remove_region(&self, id: RegionId) -> Result<Arc<dyn Region>> {
        const OP: &str = "remove region from slab";
        let watches = self.watches.lock();
        let region = {
            let mut state = self.state.lock();
            let Some(&place) = state.places.get(&id) else {
                return Err(Error::new(ErrorKind::NotFound, OP, "the slab has no such region")
                    .with("region", id.get()));
            };
            if !state.fit.remove(place) {
                return Err(
                    Error::new(ErrorKind::Busy, OP, "buffers lie in the region").with("region", id.get())
                );
            }
            state.places.remove(&id);
            let region = state.regions[place as usize].take().expect("each place has its region");
            state.capacity -= region.len() as u64;
            region
        };
        watches.iter().for_each(|w| w.removed(&region));
        Ok(region)
    }

    /// A part of the slab with a hard limit of its own, in bytes; 0 gives nothing. The limits of all pools may add up
    /// to more than the slab has; each is a ceiling, not a promise.
    pub fn pool(self: &Arc<Self>, name: &'static str, limit: u64) -> Arc<Pool> {
        let account = Account { limit, used: 0, peak: 0, buffers: 0 };
        let mut state = self.state.lock();
        let number = state.accounts.iter().position(Option::is_none).unwrap_or_else(|| {
            state.accounts.push(None);
            state.accounts.len() - 1
        });
        state.accounts[number] = Some(account);
        drop(state);
        Pool::new(name, Arc::clone(self), number as u32)
    }

    /// How full the slab is.
    pub fn usage(&self) -> SlabUsage {
        self.state.lock().usage()
    }

    /// The regions buffers may lie in now.
    pub fn regions(&self) -> Vec<Arc<dyn Region>> {
        self.state.lock().regions().cloned().collect()
    }

    /// Tells `watch` of every region there is, and of all that come and go from now on; of the last ones when the slab
    /// itself goes, after the last buffer and before they are unmapped.
    pub fn watch_regions(&self, watch: Arc<dyn RegionWatch>) {
        let mut watches = self.watches.lock();
        self.regions().iter().for_each(|r| watch.added(r));
        watches.push(watch);
    }

    pub(super) fn take(
        &self,
        pool: u32,
        units: u32,
        align: u32,
    ) -> Result<(Arc<dyn Region>, Extent), Refusal> {
        let bytes = u64::from(units) * UNIT as u64;
        let state = &mut *self.state.lock();
        let account =
            state.accounts[pool as usize].as_mut().expect("a pool keeps its account while it lives");
        let used = account.used + bytes;
        if used > account.limit {
            return Err(match account.limit {
                limit if bytes > limit => Refusal::AboveLimit(limit),
                _ => Refusal::Limit(account.usage()),
            });
        }
        let Some(piece) = state.fit.take(units, align) else {
            return Err(match state.fit.could_ever(units, align) {
                true => Refusal::Memory(state.usage()),
                false => Refusal::AboveRegions(state.longest_region()),
            });
        };
        account.used = used;
        account.peak = account.peak.max(used);
        account.buffers += 1;
        state.used += bytes;
        let region = state.regions[piece.span as usize].as_ref().expect("each place has its region");
        let extent = Extent { offset: piece.start as usize * UNIT, capacity: bytes as usize };
        Ok((Arc::clone(region), extent))
    }

    pub(super) fn give(&self, pool: u32, region: RegionId, extent: Extent) {
        let bytes = extent.capacity as u64;
        let told = {
            let mut state = self.state.lock();
            let span = state.places[&region];
            let start = (extent.offset / UNIT) as u32;
            state.fit.give(Piece { span, start }, (extent.capacity / UNIT) as u32);
            state.used -= bytes;
            let account = state.account(pool);
            account.used -= bytes;
            account.buffers -= 1;
            state.space.clone()
        };
        tell(told, bytes);
    }

    pub(super) fn longest_region(&self) -> u64 {
        self.state.lock().longest_region()
    }

    pub(super) fn pool_usage(&self, pool: u32) -> Usage {
        self.state.lock().account(pool).usage()
    }

    pub(super) fn set_limit(&self, pool: u32, limit: u64) {
        let (told, more) = {
            let mut state = self.state.lock();
            let before = std::mem::replace(&mut state.account(pool).limit, limit);
            (state.space.clone(), limit.saturating_sub(before))
        };
        if more > 0 {
            tell(told, more);
        }
    }

    pub(super) fn watch_space(&self, pool: u32, watch: Arc<dyn SpaceWatch>) {
        let mut state = self.state.lock();
        let old = state.space.take();
        state.space = Some(old.iter().flat_map(|w| w.iter()).cloned().chain([(pool, watch)]).collect());
        drop(state);
        drop(old);
    }

    /// Nobody reserves from the pool any more; its buffers may live on.
    pub(super) fn forget_watches(&self, pool: u32) {
        let mut state = self.state.lock();
        let old = state.space.take();
        let kept: SpaceWatches = old.iter().flat_map(|w| w.iter()).filter(|w| w.0 != pool).cloned().collect();
        state.space = (!kept.is_empty()).then_some(kept);
        drop(state);
        // A watch may drop buffers of its own: not under the lock.
        drop(old);
    }

    /// The pool and all its buffers are gone.
    pub(super) fn close_account(&self, pool: u32) {
        self.state.lock().accounts[pool as usize] = None;
    }
}

fn tell(watches: Option<SpaceWatches>, bytes: u64) {
    watches.iter().flat_map(|w| w.iter()).for_each(|(_, w)| w.freed(bytes));
}

impl Drop for Slab {
    fn drop(&mut self) {
        // Whoever registered a region lets go of it while it is still mapped.
        let regions = self.regions();
        for watch in self.watches.get_mut() {
            regions.iter().for_each(|r| watch.removed(r));
        }
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("regions", &self.regions()).field("usage", &self.usage()).finish()
    }
}
