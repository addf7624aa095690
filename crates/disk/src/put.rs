//! Stores: the steps around the moving of bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{Digest, Error, ErrorKind, Result};
use kvstrata_evict::Removal;
use kvstrata_io::{Disk, Open};
use kvstrata_l2::{Found, Miss, Stored};

use crate::fanout::Publish;
use crate::index::{Asker, Object, Place};
use crate::names::{fan, leaf_path, object_path};
use crate::recover::{Looked, look_at};
use crate::settings::count;
use crate::store::{Hold, NewObject, Store, access};
use crate::{Durability, HEADER_BYTES, Header};

/// How a store begins.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are claims, and they move on at once")]
pub enum Begin<D: Disk> {
    /// The same object is there.
    Present,
    /// It is to be written.
    Claimed(Claim<D>),
    /// Somebody works on the key: [`Store::hold_then`], then [`Hold::begin`].
    Busy,
    /// It is not taken.
    Refused(Error),
}

/// An object that is being written. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub struct Claim<D: Disk> {
    hold: Hold<D>,
    pub(crate) object: NewObject,
    /// The object that this one replaces, pinned.
    pub(crate) old: Option<u32>,
    pub(crate) slot: Option<u32>,
    pub(crate) generation: u64,
    namespace: u32,
    pub(crate) charge: u64,
    reserved: u64,
    temp: Option<PathBuf>,
    /// Where it is being written, in a store of segments.
    pub(crate) place: Option<u64>,
}

/// The place of an object that is being written, its header written.
#[derive(Debug)]
pub struct Created<D: Disk> {
    /// The file. Many objects may lie in it.
    pub file: Arc<D::File>,
    /// Where in the file the payload goes, a multiple of 4096.
    pub offset: u64,
    /// Whether it bypasses the page cache: then the transfer is a multiple of 4096 bytes long.
    pub direct: bool,
}

enum Check {
    Present,
    Write { old: Option<u32>, slot: u32 },
}

impl<D: Disk> Store<D> {
    /// Begins to store a batch, in one short critical section. The answers are in the order of the objects.
    pub fn begin(self: &Arc<Self>, objects: &[NewObject]) -> Vec<Begin<D>> {
        let namespaces: Vec<_> = {
            let manifest = self.manifest.lock();
            objects.iter().map(|o| manifest.namespace_of(&o.key)).collect()
        };
        let mut out: Vec<_> = objects.iter().map(|_| Begin::Busy).collect();
        let mut index = self.index.lock();
        if let Err(e) = self.in_service(&index) {
            drop(index);
            objects.iter().for_each(|_| count(&self.counts.failed));
            return objects.iter().map(|_| Begin::Refused(e.clone())).collect();
        }
        let request = index.request();
        // Tail first: within a request the last chunk is the first to go.
        for (at, object) in objects.iter().enumerate().rev() {
            out[at] = match &namespaces[at] {
                Err(e) => Begin::Refused(e.clone()),
                Ok(_) if !index.hold(object.key.fingerprint()) => Begin::Busy,
                Ok(namespace) => {
                    let cx = access(request, at, objects.len());
                    match self.check(&mut index, object, &cx) {
                        Check::Write { old, slot } => {
                            let hold = Hold::new(self, &object.key);
                            Begin::Claimed(Claim::new(hold, object.clone(), *namespace, old, slot))
                        }
                        Check::Present => {
                            // Nobody can have begun to wait: the lock was held all the time.
                            index.pass_on(object.key.fingerprint());
                            Begin::Present
                        }
                    }
                }
            };
        }
        drop(index);
        for begin in &out {
            match begin {
                Begin::Present => count(&self.counts.present),
                Begin::Refused(_) => count(&self.counts.failed),
                _ => {}
            }
        }
        out
    }

    fn check(
        &self,
        index: &mut crate::index::Index<crate::store::Waiter<D>>,
        new: &NewObject,
        cx: &kvstrata_evict::Access,
    ) -> Check {
        let old = index.find(&new.key).map(|(slot, o)| (slot, o.found));
        if let Some((slot, found)) = old {
            if found == new.found() {
                index.touch(slot, cx);
                // Another writer of the directory may have removed it: the file is looked at first.
                if !self.shared {
                    return Check::Present;
                }
            }
            index.pin(slot);
        }
        let object = Object {
            key: new.key.clone(),
            found: new.found(),
            place: Place::default(),
            generation: 0,
            charge: self.charge(new.len),
            used_at: 0,
        };
        Check::Write { old: old.map(|(slot, _)| slot), slot: index.begin(object, cx) }
    }
}

impl<D: Disk> Hold<D> {
    /// Begins to store an object under the held key. Never [`Begin::Busy`].
    pub fn begin(self, object: &NewObject) -> Begin<D> {
        let store = Arc::clone(&self.store);
        let namespace = match store.manifest.lock().namespace_of(&object.key) {
            Ok(namespace) => namespace,
            Err(e) => {
                count(&store.counts.failed);
                return Begin::Refused(e);
            }
        };
        let mut index = store.index.lock();
        if let Err(e) = store.in_service(&index) {
            drop(index);
            count(&store.counts.failed);
            return Begin::Refused(e);
        }
        let request = index.request();
        let check = store.check(&mut index, object, &access(request, 0, 1));
        drop(index);
        match check {
            Check::Write { old, slot } => {
                Begin::Claimed(Claim::new(self, object.clone(), namespace, old, slot))
            }
            Check::Present => {
                count(&store.counts.present);
                Begin::Present
            }
        }
    }
}

impl<D: Disk> Claim<D> {
    fn new(hold: Hold<D>, object: NewObject, namespace: u32, old: Option<u32>, slot: u32) -> Self {
        let (generation, charge) = (hold.store.generation(), hold.store.charge(object.len));
        Self {
            hold,
            object,
            old,
            slot: Some(slot),
            generation,
            namespace,
            charge,
            reserved: 0,
            temp: None,
            place: None,
        }
    }

    pub(crate) fn store(&self) -> &Arc<Store<D>> {
        &self.hold.store
    }

    pub(crate) fn io_error(&self, e: io::Error) -> Error {
        Error::io("store object", e).with("key", &self.object.key).with("root", self.store().root.display())
    }

    /// What is stored.
    pub fn object(&self) -> &NewObject {
        &self.object
    }

    /// Whether another object of this key is there: then [`Self::set_digest`] may say that nothing has to be written.
    pub fn replaces(&self) -> bool {
        self.old.is_some()
    }

    /// Gives the digest, before [`Self::create`], where it is made only after the store began: when the object's turn comes, or
    /// when its payload is seen on its way from memory that the CPU does not touch. Returns whether the same object is there
    /// already; then the claim is dropped, and nothing is written. (Of a shared directory [`Self::is_there`] says that.)
    pub fn set_digest(&mut self, digest: Digest) -> bool {
        self.object.digest = Some(digest);
        let store = Arc::clone(self.store());
        let mut index = store.index.lock();
        index.set_digest(self.slot.expect("not yet published"), digest);
        // Unless a load has found it to be bad meanwhile.
        let there = index.find(&self.object.key).map(|(slot, there)| (slot, there.found));
        let same = |(slot, found): &(u32, Found)| Some(*slot) == self.old && *found == self.object.found();
        let Some((slot, _)) = there.filter(same).filter(|_| !store.shared) else { return false };
        let request = index.request();
        index.touch(slot, &access(request, 0, 1));
        count(&store.counts.present);
        true
    }

    /// Sets the bytes aside, evicting what has to go. Blocks.
    ///
    /// # Errors
    /// `NoSpace` if everything is in use or promised to other tenants, or the object can never fit; [`Store::fault`].
    pub fn reserve(&mut self) -> Result<()> {
        let store = Arc::clone(self.store());
        if store.slab.is_some() {
            return self.reserve_place(true).map(|_| ());
        }
        let need = self.charge + store.fanout.slack(self.object.key.fingerprint256(), store.block);
        let slot = self.slot.expect("not yet published");
        store.make_room(need, Asker::Writes(slot))?;
        self.reserved = need;
        Ok(())
    }

    /// Makes the file under a name that nobody else has, and writes its header. Called again (after
    /// [`Self::retry`]) it begins anew. Blocks.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn create(&mut self) -> Result<Created<D>> {
        let store = Arc::clone(self.store());
        if store.slab.is_some() {
            return self.create_in_place();
        }
        debug_assert!(self.reserved > 0, "bytes are set aside before they are written");
        let header = self.header().encode();
        let mut remade = false;
        loop {
            self.discard();
            let path = store.temp_path();
            let direct = store.modes.direct_write.on();
            // Noted before it is made: a refused open may leave a file behind.
            self.temp = Some(path.clone());
            let how = Open { write: true, create_new: true, direct, ..Open::default() };
            let made = store.disk.open(&path, how).and_then(|file| {
                store.disk.write_all_at(&file, 0, header.bytes())?;
                Ok(file)
            });
            match made {
                Ok(file) => return Ok(Created { file: Arc::new(file), offset: HEADER_BYTES, direct }),
                Err(e) if store.modes.direct_write.refused(direct, &e, &path) => {}
                // Somebody tidied up, or it is gone as a whole.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !remade => {
                    remade = true;
                    store.check_home().map_err(|e| self.io_error(e))?;
                    store.disk.create_dir_all(&store.tmp).map_err(|e| self.io_error(e))?;
                }
                Err(e) => return Err(self.io_error(e)),
            }
        }
    }

    pub(crate) fn header(&self) -> Header {
        Header {
            key: self.object.key.clone(),
            len: self.object.len,
            layout: self.object.layout,
            digest: self.object.digest,
            generation: self.generation,
            namespace: self.namespace,
        }
    }

    /// The bytes to write: the payload, up to its last block for direct writes.
    pub fn transfer(&self, created: &Created<D>) -> u64 {
        if created.direct { self.object.len.next_multiple_of(4096) } else { self.object.len }
    }

    /// Whether a write that failed like this is to be tried again after [`Self::create`]: direct writes were refused.
    pub fn retry(&self, created: &Created<D>, e: &io::Error) -> bool {
        self.store().modes.direct_write.refused(created.direct, e, &self.store().root)
    }

    /// Gives the object up after a failed write; nothing is left.
    pub fn failed(self, e: io::Error) -> Error {
        let e = self.io_error(e);
        self.give_up(e)
    }

    /// Gives the object up; nothing is left. Counts the failure.
    pub fn give_up(self, e: Error) -> Error {
        let counts = &self.store().counts;
        count(if e.kind() == ErrorKind::NoSpace { &counts.declined } else { &counts.failed });
        e
    }

    /// The payload is written: makes the object appear under its name. The first valid object wins; one that this
    /// store did not know of is read far enough to say whether it is that. Blocks.
    ///
    /// # Errors
    /// `Io`, `NoSpace`: nothing is left.
    pub fn publish(self, created: Created<D>) -> Result<Stored> {
        self.publish_if(created, || true).map(|stored| stored.expect("it is wanted"))
    }

    /// As [`Self::publish`], if the object is still wanted when everything that may hang is behind it: its bytes and
    /// names are on the device, as durable as they are to be, and all that is left is that it is found. Else (`None`)
    /// nothing is left of it.
    ///
    /// # Errors
    /// As [`Self::publish`]; `wanted` was not asked then.
    pub fn publish_if(
        mut self,
        created: Created<D>,
        wanted: impl FnOnce() -> bool,
    ) -> Result<Option<Stored>> {
        if self.store().slab.is_some() {
            drop(created);
            let written = self.store().write_record(self.insertion());
            return self.end_insertion(written, wanted);
        }
        let mut wanted = Some(wanted);
        let mut ask = || wanted.take().is_some_and(|wanted| wanted());
        match self.try_publish(created, &mut ask) {
            Ok(stored) => {
                let counts = &self.store().counts;
                count(match stored {
                    Some(Stored::Written) => &counts.written,
                    Some(Stored::Present) => &counts.present,
                    None => &counts.failed,
                });
                self.store().changes.fetch_add(1, Ordering::Relaxed);
                Ok(stored)
            }
            Err(e) => {
                let e = self.io_error(e);
                Err(self.give_up(e))
            }
        }
    }

    fn try_publish(
        &mut self,
        created: Created<D>,
        wanted: &mut dyn FnMut() -> bool,
    ) -> io::Result<Option<Stored>> {
        let store = Arc::clone(self.store());
        if store.durability != Durability::None {
            store.disk.sync_file(&created.file)?;
        }
        drop(created);
        let old = self.old.take().map(|slot| {
            // From here on neither the old nor the new object is found: a load that opens the file meanwhile is stale.
            let mut index = store.index.lock();
            let old = index.detach(slot, Removal::Deleted);
            index.unpin(slot);
            old.charge
        });
        let how = if old.is_some() { Publish::Replace } else { Publish::New };
        let done = self.place(&store, how, wanted);
        if let Some(charge) = old {
            match &done {
                Ok(_) => store.index.lock().free(charge),
                Err(_) => match store.take_out(self.object.key.fingerprint256(), None) {
                    Ok(()) => store.index.lock().free(charge),
                    Err(e) => store.stuck(Some(self.object.key.fingerprint256()), &e),
                },
            }
        }
        done
    }

    fn place(
        &mut self,
        store: &Arc<Store<D>>,
        mut how: Publish,
        wanted: &mut dyn FnMut() -> bool,
    ) -> io::Result<Option<Stored>> {
        let fingerprint = *self.object.key.fingerprint256();
        let temp = self.temp.clone().expect("a file was created");
        // Each round makes what was in the way go; more rounds than that are another writer's doing.
        for _ in 0..4 {
            let (done, grown) = store.fanout.publish(&*store.disk, &temp, &fingerprint, how);
            store.grown(grown);
            // What was set aside for directories covers what they grew by; the rest goes back with the claim.
            let covered = u64::try_from(grown).unwrap_or(0).min(self.reserved.saturating_sub(self.charge));
            self.reserved -= covered;
            store.index.lock().free(covered);
            match done {
                Ok(made) => {
                    self.temp = None;
                    let synced = self.sync_names(store, &fingerprint, made);
                    if synced.is_ok() && wanted() {
                        self.found(store, self.generation, self.charge);
                        return Ok(Some(Stored::Written));
                    }
                    // Not known to be durable is not stored; nothing may be found of it.
                    if let Err(e) = store.take_out(&fingerprint, None) {
                        store.stuck(Some(&fingerprint), &e);
                        self.reserved = self.reserved.saturating_sub(self.charge);
                    }
                    return synced.map(|()| None);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.look(store, &fingerprint)? {
                    Existing::Same(_) if !wanted() => return Ok(None),
                    Existing::Same(generation) => {
                        // Another writer's object counts for that one.
                        if !store.shared {
                            self.found(store, generation, self.charge);
                        }
                        return Ok(Some(Stored::Present));
                    }
                    Existing::Other => how = Publish::Replace,
                    Existing::Gone => how = Publish::New,
                },
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    fn sync_names(&self, store: &Store<D>, fingerprint: &[u8; 32], made: bool) -> io::Result<()> {
        if store.durability != Durability::Full {
            return Ok(());
        }
        let [top, leaf, ..] = *fingerprint;
        store.disk.sync_dir(&leaf_path(&store.root, top, leaf))?;
        if made {
            store.disk.sync_dir(&store.root.join(fan(top)))?;
            store.disk.sync_dir(&store.root)?;
        }
        Ok(())
    }

    /// The object can be found; the claim keeps only what it reserved beyond the object.
    fn found(&mut self, store: &Store<D>, generation: u64, charge: u64) {
        let slot = self.slot.take().expect("published once");
        self.reserved = self.reserved.saturating_sub(charge);
        store.index.lock().publish(slot, generation);
    }

    /// Looks at a file that is in the way and that this store does not know of.
    fn look(&self, store: &Store<D>, fingerprint: &[u8; 32]) -> io::Result<Existing> {
        let path = object_path(&store.root, fingerprint);
        let looked = match look_at(&*store.disk, &path, fingerprint) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let len = store.disk.metadata(&path)?.len;
                Looked::Bad(Miss::Header, "the file may not be read", len)
            }
            looked => looked?,
        };
        match looked {
            Looked::Gone => Ok(Existing::Gone),
            Looked::Good(object, _) => {
                // Without a digest nothing says that its payload is whole; what was just written is known to be.
                let same = object.found == self.object.found() && object.found.digest.is_some();
                Ok(if same { Existing::Same(object.generation) } else { Existing::Other })
            }
            Looked::Unknown => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            Looked::Bad(why, what, len) => {
                // Its bytes were never counted; in quarantine they are.
                let charge = len.next_multiple_of(store.block);
                store.index.lock().charge(charge);
                store.condemn(fingerprint, charge, why, what);
                Ok(Existing::Gone)
            }
        }
    }

    /// Removes the unpublished file.
    fn discard(&mut self) {
        if let Some(temp) = self.temp.take()
            && let Err(e) = self.store().disk.unlink(&temp)
            && e.kind() != io::ErrorKind::NotFound
        {
            // The bytes stay taken; the next start removes what a dead writer left.
            self.store().stuck(None, &e);
            let store = Arc::clone(self.store());
            store.index.lock().charge(self.charge);
        }
    }
}

enum Existing {
    Same(u64),
    Other,
    Gone,
}

impl<D: Disk> Drop for Claim<D> {
    fn drop(&mut self) {
        self.discard();
        let mut index = self.hold.store.index.lock();
        if let Some(at) = self.place.take() {
            index.unplace(at, self.charge);
        }
        if let Some(slot) = self.slot.take() {
            index.give_up(slot);
        }
        if let Some(old) = self.old.take() {
            index.unpin(old);
        }
        index.free(std::mem::take(&mut self.reserved));
    }
}
