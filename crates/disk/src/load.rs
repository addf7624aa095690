//! Loads: the steps around the moving of bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kvstrata_core::{Error, LayoutId, ObjectKey};
use kvstrata_evict::Removal;
use kvstrata_io::{Disk, Open};
use kvstrata_l2::{Found, Miss};

use crate::index::Place;
use crate::names::{object_name, object_path};
use crate::settings::count;
use crate::shared::is_gone;
use crate::store::{Hold, Store, access, read_header};
use crate::{Fault as HeaderFault, HEADER_BYTES};

/// Why a load did not give its bytes.
#[derive(Debug)]
pub enum Fault {
    /// The object is not there, or is bad.
    Miss(Miss),
    /// The device failed.
    Failed(Error),
}

/// An object that is being loaded: it is not evicted, and its slot is not reused, until this is dropped.
#[derive(Debug)]
pub struct Pin<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    /// Its place in the index, which objects of other writers do not have.
    pub(crate) slot: Option<u32>,
    pub(crate) key: ObjectKey,
    pub(crate) found: Found,
    pub(crate) place: Place,
    pub(crate) charge: u64,
}

/// An object opened for a load: the payload goes from [`Self::offset`] on to the caller's buffer.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// The file. Many objects may lie in it.
    pub file: Arc<D::File>,
    /// Where in the file the payload starts, a multiple of 4096.
    pub offset: u64,
    /// Whether it bypasses the page cache: then the transfer is a multiple of 4096 bytes long.
    pub direct: bool,
    pub(crate) no_atime: bool,
}

impl<D: Disk> Store<D> {
    /// Finds objects and pins them, in one short critical section. The answers are in the order of the keys.
    ///
    /// # Errors
    /// [`Self::fault`].
    pub fn pin(
        self: &Arc<Self>,
        wanted: &[(ObjectKey, LayoutId)],
    ) -> kvstrata_core::Result<Vec<Result<Pin<D>, Miss>>> {
        let mut out: Vec<_> = wanted.iter().map(|_| Err(Miss::Absent)).collect();
        {
            let mut index = self.index.lock();
            self.in_service(&index)?;
            let request = index.request();
            // Tail first: within a request the last chunk is the first to go.
            for (at, (key, layout)) in wanted.iter().enumerate().rev() {
                let cx = access(request, at, wanted.len());
                let known = index.find(key).map(|(slot, o)| (slot, o.found, o.place, o.charge));
                let known =
                    known.filter(|(_, found, ..)| found.layout.is_none_or(|stored| stored == *layout));
                let Some((slot, found, place, charge)) = known else {
                    if self.shared {
                        out[at] = Ok(Pin::unseen(self, key, *layout));
                    } else if index.find(key).is_some() {
                        out[at] = Err(Miss::Layout);
                    }
                    continue;
                };
                index.touch(slot, &cx);
                index.pin(slot);
                let store = Arc::clone(self);
                out[at] = Ok(Pin { store, slot: Some(slot), key: key.clone(), found, place, charge });
            }
        }
        out.iter().filter_map(|o| o.as_ref().err()).for_each(|m| self.missed(*m));
        Ok(out)
    }

    pub(crate) fn missed(&self, miss: Miss) {
        let c = &self.counts;
        count(match miss {
            Miss::Truncated => &c.miss_truncated,
            Miss::Header | Miss::Digest => &c.miss_header,
            Miss::Foreign => &c.miss_foreign,
            Miss::Layout => &c.miss_layout,
            Miss::Stale => &c.miss_stale,
            _ => &c.miss_absent,
        });
    }
}

impl<D: Disk> Pin<D> {
    /// What the index says of the object.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        if let Some(slab) = &self.store.slab {
            return slab.segments.path(slab.geometry.locate(self.place.at).0);
        }
        object_path(&self.store.root, self.key.fingerprint256())
    }

    /// Opens the object. Its header is not read: the index has it, and the digest tells if the file is another's. Only
    /// objects that were stored without a digest have their header checked, since nothing else would.
    ///
    /// # Errors
    /// [`Fault`]; misses are counted.
    pub fn open(&mut self) -> Result<Opened<D>, Fault> {
        if self.store.shared {
            return self.open_shared();
        }
        let opened = match self.open_file() {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(match self.store.check_home() {
                    Ok(()) => self.miss(Miss::Absent, "the file is gone"),
                    Err(e) => self.failed(e),
                });
            }
            // It stays so until the file is another.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.store.slab.is_none() => {
                return Err(self.miss(Miss::Header, "the file may not be read"));
            }
            Err(e) => return Err(self.failed(e)),
        };
        if self.found.digest.is_none() {
            self.check_header(&opened)?;
        }
        Ok(opened)
    }

    pub(crate) fn open_file(&self) -> io::Result<Opened<D>> {
        let modes = &self.store.modes;
        if let Some(slab) = &self.store.slab {
            let (segment, within) = slab.geometry.locate(self.place.at);
            let (file, direct) = slab.segments.open(&*self.store.disk, segment, false, modes)?;
            return Ok(Opened { file, offset: within + HEADER_BYTES, direct, no_atime: modes.no_atime.on() });
        }
        let path = self.path();
        loop {
            let (direct, no_atime) = (modes.direct_read.on(), modes.no_atime.on());
            match self.store.disk.open(&path, Open { direct, no_atime, ..Open::default() }) {
                Ok(file) => {
                    return Ok(Opened { file: Arc::new(file), offset: HEADER_BYTES, direct, no_atime });
                }
                Err(e) if modes.direct_read.refused(direct, &e, &path) => {}
                Err(e) if modes.no_atime.refused(no_atime, &e, &path) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// What the header says of this key's object, or what is wrong with the header.
    pub(crate) fn header_says(&mut self, opened: &Opened<D>) -> Result<Result<Found, HeaderFault>, Fault> {
        let header = match read_header(&*self.store.disk, &opened.file, opened.offset - HEADER_BYTES) {
            Ok(Ok(header)) => header,
            Ok(Err(fault)) => return Ok(Err(fault)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.miss(Miss::Truncated, "shorter than a header"));
            }
            Err(e) => return Err(self.failed(e)),
        };
        if header.key != self.key {
            return Err(self.miss(Miss::Foreign, "another key's object"));
        }
        Ok(Ok(Found { len: header.len, layout: Some(header.layout), digest: header.digest }))
    }

    fn check_header(&mut self, opened: &Opened<D>) -> Result<(), Fault> {
        let says = match self.header_says(opened)? {
            Ok(says) => says,
            Err(fault) => return Err(self.miss(Miss::Header, &fault.to_string())),
        };
        if says != self.found {
            Err(self.miss(Miss::Stale, "another object of the same key"))
        } else {
            Ok(())
        }
    }

    /// Whether a read that failed like this is to be tried again after [`Self::open`]ing anew: direct reads were refused.
    pub fn retry(&self, opened: &Opened<D>, e: &io::Error) -> bool {
        self.store.modes.direct_read.refused(opened.direct, e, &self.path())
    }

    /// The bytes to ask for: the payload, up to its last block for direct reads.
    pub fn transfer(&self, opened: &Opened<D>) -> u64 {
        if opened.direct { self.found.len.next_multiple_of(4096) } else { self.found.len }
    }

    /// The read failed.
    pub fn failed(&mut self, e: io::Error) -> Fault {
        if self.store.shared && is_gone(&e) {
            return self.gone();
        }
        count(&self.store.counts.load_failed);
        Fault::Failed(Error::io("load object", e).with("path", self.path().display()))
    }

    /// The read ended with `got` bytes: whether they are the object's.
    ///
    /// # Errors
    /// The reason of the miss, which is counted: `Truncated` if there were too few, `Stale` if the object went or was
    /// replaced meanwhile.
    pub fn finish(mut self, got: u64) -> Result<Found, Fault> {
        if got < self.found.len {
            return Err(self.miss(Miss::Truncated, "shorter than its header says"));
        }
        match self.slot.take() {
            Some(slot) if !self.store.index.lock().unpin(slot) => {
                self.store.missed(Miss::Stale);
                return Err(Fault::Miss(Miss::Stale));
            }
            Some(_) => {}
            None => count(&self.store.counts.loaded_elsewhere),
        }
        count(&self.store.counts.loaded);
        Ok(self.found)
    }

    /// Ends the pin with a miss. What turned out bad is taken out of the way, so that the next store heals it.
    pub(crate) fn miss(&mut self, miss: Miss, what: &str) -> Fault {
        let Some(slot) = self.slot.take() else { return self.unknown_is_bad(miss) };
        let print = self.key.fingerprint();
        let mut held = false;
        let mut miss = miss;
        {
            let mut index = self.store.index.lock();
            if !index.unpin(slot) {
                // It was replaced or removed; what was seen says nothing about what is there now.
                miss = Miss::Stale;
            } else if index.hold(print) {
                if self.store.slab.is_some() {
                    let gone = index.vacate(slot, Removal::Deleted);
                    index.pass_on(print);
                    drop(index);
                    tracing::warn!(object = %object_name(self.key.fingerprint256()), reason = miss.name(), "bad object forgotten: {what}");
                    count(&self.store.counts.deleted);
                    self.store.forget(gone);
                } else {
                    index.detach(slot, Removal::Deleted);
                    held = true;
                }
            }
            // Else somebody writes or removes this key just now and will find it bad, or the next load does.
        }
        if held {
            let hold = Hold::new(&self.store, &self.key);
            self.store.condemn(self.key.fingerprint256(), self.charge, miss, what);
            drop(hold);
        }
        self.store.missed(miss);
        Fault::Miss(miss)
    }
}

impl<D: Disk> Opened<D> {
    /// Whether access times are left alone.
    pub fn no_atime(&self) -> bool {
        self.no_atime
    }
}

impl<D: Disk> Drop for Pin<D> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.store.index.lock().unpin(slot);
        }
    }
}
