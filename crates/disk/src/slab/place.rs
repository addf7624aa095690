//! Stores and loads of a store of segments: the steps that differ from those with a file per object.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_evict::Removal;
use kvstrata_io::{Disk, IoEngine};
use kvstrata_l2::Stored;
use kvstrata_mem::{Allocate, ReadBuf};

use super::Entry;
use super::format::Record;
use super::geometry::UNIT;
use crate::HEADER_BYTES;
use crate::index::{Asker, Leaving, Object};
use crate::load::{Opened, Pin};
use crate::put::{Claim, Created};
use crate::settings::count;
use crate::store::Store;

/// A place whose header is to be written together with the payload.
#[derive(Debug)]
pub struct Placed<D: Disk> {
    /// Where the payload goes.
    pub created: Created<D>,
    /// The header block, 4096 bytes.
    pub header: ReadBuf,
    /// Where it goes in the file of `created`.
    pub header_at: u64,
}

impl From<Leaving> for Entry {
    fn from(gone: Leaving) -> Self {
        Self {
            record: Record::Remove { fingerprint: gone.fingerprint, generation: gone.generation },
            slot: None,
            frees: Some(gone.at),
            vouched: gone.vouched,
            done: None,
        }
    }
}

impl From<Object> for Entry {
    fn from(object: Object) -> Self {
        let vouched = object.found.digest.is_some();
        Self { record: Record::Insert(object), slot: None, frees: None, vouched, done: None }
    }
}

impl<D: Disk> Store<D> {
    /// Makes one more segment, unless somebody has done so since there were `before`. Whether there is one more. Blocks.
    fn grow(&self, before: u64) -> io::Result<bool> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let _alone = slab.growing.lock();
        let there = self.index.lock().extents().segments();
        if there != before || there >= slab.geometry.segments() {
            return Ok(there != before);
        }
        match slab.segments.make(&*self.disk, there, &slab.geometry, slab.store_id) {
            Ok(()) => {
                let units = (slab.geometry.len_of(there) / UNIT) as u32;
                self.index.lock().extents().grow(units);
                Ok(true)
            }
            // Others have taken what was there: the store lives with what it has.
            Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Finds a place, evicting what has to go; without waiting only if `wait` is off: `None` then, if there is none at once.
    fn find_place(
        self: &Arc<Self>,
        charge: u64,
        slot: u32,
        generation: u64,
        wait: bool,
    ) -> Result<Option<u64>> {
        /// Others may be faster again and again.
        const ROUNDS: u32 = 256;
        let slab = self.slab.as_ref().expect("a store of segments");
        let io = |e| Error::io("store object", e).with("root", self.root.display());
        let full = |what: &str| {
            Error::new(ErrorKind::NoSpace, "store object", what)
                .with("bytes", charge)
                .with("capacity", slab.geometry.capacity)
        };
        if charge > slab.geometry.largest() {
            return Err(full("the object is larger than a segment").with("segment", slab.geometry.largest()));
        }
        for _ in 0..ROUNDS {
            let (at, segments) = {
                let mut index = self.index.lock();
                (index.place(charge, slot, generation), index.extents().segments())
            };
            if at.is_some() || !wait {
                return Ok(at);
            }
            if slab.frees_places() {
                self.commit().map_err(io)?;
                continue;
            }
            if self.grow(segments).map_err(io)? {
                continue;
            }
            let Some(leaving) = self.index.lock().make_place(charge, Asker::Writes(slot)) else { break };
            self.changes.fetch_add(leaving.len() as u64, Ordering::Relaxed);
            leaving.into_iter().for_each(|gone| slab.push(gone.into()));
        }
        self.in_service(&self.index.lock())?;
        Err(full("the store is full and nothing can be evicted").with("used", self.usage().used))
    }

    /// Sets the bytes of several objects aside, in this order, evicting what has to go: with one write of the log for all
    /// of them in a store of segments. What came of each. Blocks.
    pub fn reserve_all(self: &Arc<Self>, claims: &mut [&mut Claim<D>]) -> Vec<Result<()>> {
        if let Some(slab) = &self.slab {
            let mut fit: Vec<_> =
                claims.iter_mut().filter(|c| c.charge <= slab.geometry.largest()).map(|c| &mut **c).collect();
            // Whoever has no room after this says why, or makes it for itself.
            drop(self.make_room_for_all(&mut fit));
        }
        claims.iter_mut().map(|claim| claim.reserve()).collect()
    }

    fn make_room_for_all(self: &Arc<Self>, claims: &mut [&mut Claim<D>]) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        if self.place_all(claims) {
            return Ok(());
        }
        if slab.frees_places() {
            self.commit()?;
        }
        loop {
            let segments = self.index.lock().extents().segments();
            if self.place_all(claims) {
                return Ok(());
            }
            if !self.grow(segments)? {
                break;
            }
        }
        let lacking = claims.iter().filter(|claim| claim.place.is_none());
        let lacking = lacking.map(|claim| (claim.charge, claim.slot.expect("not yet published")));
        let leaving = self.index.lock().make_places(lacking);
        self.changes.fetch_add(leaving.len() as u64, Ordering::Relaxed);
        leaving.into_iter().for_each(|gone| slab.push(gone.into()));
        self.commit()?;
        self.place_all(claims);
        Ok(())
    }

    /// Gives each its place, as far as there are places; whether all have one.
    fn place_all(&self, claims: &mut [&mut Claim<D>]) -> bool {
        let mut index = self.index.lock();
        for claim in claims.iter_mut().filter(|claim| claim.place.is_none()) {
            let slot = claim.slot.expect("not yet published");
            claim.place = index.place(claim.charge, slot, claim.generation);
            if claim.place.is_none() {
                return false;
            }
        }
        true
    }

    /// The object in a slot is not found any more, because it is bad or not wanted; nobody waits for its place.
    pub(crate) fn forget(&self, gone: Leaving) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        if let Some(slab) = &self.slab {
            slab.push(gone.into());
        }
    }

    /// Writes that an object is gone. Blocks.
    pub(crate) fn write_removal(self: &Arc<Self>, gone: Leaving) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.write_record(gone.into())
    }
}

impl<D: Disk> Claim<D> {
    /// Sets the bytes aside if nothing has to be waited for. Only a store of segments can say so; else [`Self::reserve`].
    pub fn try_reserve(&mut self) -> bool {
        self.store().slab.is_some() && self.reserve_place(false).is_ok_and(|placed| placed)
    }

    pub(crate) fn reserve_place(&mut self, wait: bool) -> Result<bool> {
        let store = Arc::clone(self.store());
        let slot = self.slot.expect("not yet published");
        if self.place.is_none() {
            self.place = store.find_place(self.charge, slot, self.generation, wait)?;
        }
        Ok(self.place.is_some())
    }

    /// The reserved place and the header that goes there, if they are at hand without waiting; else [`Self::create`]. Both
    /// are to be written before [`Self::publish`].
    pub fn try_create(&mut self) -> Option<Placed<D>> {
        let store = self.store();
        let slab = store.slab.as_ref()?;
        let (segment, within) = slab.geometry.locate(self.place?);
        let direct = store.modes.direct_write.on();
        let file = slab.segments.opened(segment, direct)?;
        let mut header = slab.headers.reserve(HEADER_BYTES as usize, UNIT as usize).ok()?;
        header.write_at(0, self.header().encode().bytes()).ok()?;
        Some(Placed {
            created: Created { file, offset: within + HEADER_BYTES, direct },
            header: header.seal(HEADER_BYTES as usize),
            header_at: within,
        })
    }

    pub(crate) fn create_in_place(&mut self) -> Result<Created<D>> {
        let store = Arc::clone(self.store());
        let slab = store.slab.as_ref().expect("a store of segments");
        let (segment, within) =
            slab.geometry.locate(self.place.expect("bytes are set aside before they are written"));
        let header = self.header().encode();
        loop {
            let (file, direct) = slab
                .segments
                .open(&*store.disk, segment, true, &store.modes)
                .map_err(|e| self.io_error(e))?;
            match store.disk.write_all_at(&file, within, header.bytes()) {
                Ok(()) => return Ok(Created { file, offset: within + HEADER_BYTES, direct }),
                Err(e) if store.modes.direct_write.refused(direct, &e, &slab.segments.path(segment)) => {}
                Err(e) => return Err(self.io_error(e)),
            }
        }
    }

    /// As [`Self::publish_if`], without waiting for the device: `then` hears what came of it, on a thread of the engine's.
    pub fn publish_then(
        self,
        created: Created<D>,
        wanted: impl FnOnce() -> bool + Send + 'static,
        then: impl FnOnce(Result<Option<Stored>>) + Send + 'static,
    ) {
        let store = Arc::clone(self.store());
        let Some(slab) = &store.slab else {
            let publish = move || then(self.publish_if(created, wanted));
            if let Err(publish) = store.disk.engine().spawn(false, Box::new(publish)) {
                publish();
            }
            return;
        };
        drop(created);
        let entry = self.insertion();
        let done = move |written| then(self.end_insertion(written, wanted));
        slab.push(Entry { done: Some(Box::new(done)), ..entry });
        store.commit_soon();
    }

    /// The record that makes it found by the next start.
    pub(crate) fn insertion(&self) -> Entry {
        let slot = self.slot.expect("not yet published");
        let object = self.store().index.lock().written(slot).clone();
        Entry { slot: Some(slot), ..Entry::from(object) }
    }

    /// The record is written, or not: the object is found from now on, or nothing is left of it.
    pub(crate) fn end_insertion(
        mut self,
        written: io::Result<()>,
        wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Stored>> {
        let store = Arc::clone(self.store());
        let slab = store.slab.as_ref().expect("a store of segments");
        store.changes.fetch_add(1, Ordering::Relaxed);
        let place = self.place.take().expect("it was written somewhere");
        if written.is_ok() && wanted() {
            let mut index = store.index.lock();
            let old = self.old.take().map(|slot| {
                let gone = index.vacate(slot, Removal::Deleted);
                index.unpin(slot);
                gone
            });
            index.publish(self.slot.take().expect("published once"), self.generation);
            drop(index);
            if let Some(gone) = old {
                store.forget(gone);
            }
            count(&store.counts.written);
            return Ok(Some(Stored::Written));
        }
        // The record may be in the log: its place is free when the log says that the object is gone.
        store.index.lock().leave(place, self.charge);
        store.forget(Leaving {
            fingerprint: *self.object.key.fingerprint256(),
            generation: self.generation,
            at: place,
            vouched: self.object.digest.is_some(),
        });
        if let (Ok(()), Some(old)) = (&written, self.old) {
            // In the log this one has taken the place of the one before, which stays.
            let stays = store.index.lock().in_log(old).cloned();
            stays.into_iter().for_each(|object| slab.push(object.into()));
        }
        match written {
            Ok(()) => {
                count(&store.counts.failed);
                Ok(None)
            }
            Err(e) => {
                let e = self.io_error(e);
                Err(self.give_up(e))
            }
        }
    }
}

impl<D: Disk> Pin<D> {
    /// The object's place, if it is at hand without waiting and a digest vouches for what lies there; else
    /// [`Self::open`].
    pub fn try_open(&mut self) -> Option<Opened<D>> {
        let store = &self.store;
        let slab = store.slab.as_ref()?;
        self.found.digest?;
        let (segment, within) = slab.geometry.locate(self.place.at);
        let direct = store.modes.direct_read.on();
        let file = slab.segments.opened(segment, direct)?;
        Some(Opened { file, offset: within + HEADER_BYTES, direct, no_atime: store.modes.no_atime.on() })
    }
}
