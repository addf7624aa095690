//! The store: the index, the room on the device, and who may work on which key.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvstrata_core::{Digest, Error, ErrorKind, LayoutId, Namespace, ObjectKey, Result};
use kvstrata_evict::{Access, Removal};
use kvstrata_io::{Disk, IoEngine};
use kvstrata_l2::{Found, L2Quotas, ListPage, Miss, StoreUsage, TenantUsage};
use parking_lot::Mutex;

use crate::fanout::{Fanout, Grown};
use crate::index::{Asker, Index, Object, Room, Victim};
use crate::modes::Modes;
use crate::names::{QUARANTINE, object_name, temp_name};
use crate::open::fits;
use crate::settings::{Counts, count};
use crate::slab::Slab;
use crate::slab::format::extent_of;
use crate::{Durability, HEADER_BYTES, Header, Manifest, StoreLayout, StoreStats, Writer};

/// Told when a key is free; it gets the key.
pub(crate) type Waiter<D> = Box<dyn FnOnce(Hold<D>) + Send>;

/// An object that is to be stored.
#[derive(Clone, Debug)]
pub struct NewObject {
    /// Its name.
    pub key: ObjectKey,
    /// What its bytes are.
    pub layout: LayoutId,
    /// How many.
    pub len: u64,
    /// The digest to keep with it.
    pub digest: Option<Digest>,
}

impl NewObject {
    pub(crate) fn found(&self) -> Found {
        Found { len: self.len, layout: Some(self.layout), digest: self.digest }
    }
}

/// An open store of one directory.
///
/// It knows what there is and where, keeps the limit, and makes names appear and vanish. Payload bytes are moved by the
/// adapter, between the steps: [`crate::Pin::open`] → read → [`crate::Pin::finish`], and [`crate::Claim::create`] → write
/// → [`crate::Claim::publish`]. Everything but the lookups blocks and belongs on an engine's thread.
#[derive(Debug)]
pub struct Store<D: Disk> {
    pub(crate) disk: Arc<D>,
    pub(crate) root: PathBuf,
    pub(crate) tmp: PathBuf,
    pub(crate) block: u64,
    pub(crate) index: Mutex<Index<Waiter<D>>>,
    pub(crate) keeps_quotas: bool,
    /// Whether it was said that the store is out of service.
    pub(crate) fault_said: AtomicBool,
    pub(crate) fanout: Fanout,
    /// Segments instead of a file for each object.
    pub(crate) slab: Option<Slab<D>>,
    pub(crate) modes: Modes,
    pub(crate) counts: Counts,
    pub(crate) manifest: Mutex<Manifest>,
    /// Held by whoever writes the manifest, so that nobody waits for the disk who only reads it.
    pub(crate) manifest_writer: Mutex<()>,
    pub(crate) durability: Durability,
    pub(crate) writer: Writer,
    pub(crate) serial: AtomicU64,
    pub(crate) snapshot_bytes: Mutex<u64>,
    /// Directories with more in them than the index knows: no snapshot vouches for them.
    pub(crate) unsettled: Mutex<HashSet<[u8; 2]>>,
    pub(crate) changes: AtomicU64,
    pub(crate) snapshotting: AtomicBool,
    /// Open and locked as long as the store is in use.
    pub(crate) lock: Mutex<Option<D::File>>,
    /// Whether other processes may have the directory open too.
    pub(crate) shared: bool,
    /// The file that says that this writer of a shared directory lives, open and locked.
    pub(crate) live: Mutex<Option<(PathBuf, D::File)>>,
}

impl<D: Disk> Store<D> {
    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where files may lie for a while that are no objects: what has a name of [`temp_name`] is
    /// removed by the next start if it is still there.
    pub fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// How its objects lie in files.
    pub fn layout(&self) -> StoreLayout {
        if self.slab.is_some() { StoreLayout::Slab } else { StoreLayout::Files }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<D> {
        &self.disk
    }

    /// What the store says of itself.
    pub fn manifest(&self) -> Manifest {
        self.manifest.lock().clone()
    }

    /// Whether loads and stores bypass the page cache now.
    pub fn direct(&self) -> (bool, bool) {
        (self.modes.direct_read.on(), self.modes.direct_write.on())
    }

    /// Whether loads leave access times alone now.
    pub fn no_atime(&self) -> bool {
        self.modes.no_atime.on()
    }

    /// What the store itself takes on the device, in bytes: directories, manifest, index snapshot. It counts towards the
    /// limit, and is not in [`Self::usage`], which is about objects.
    pub fn overhead_bytes(&self) -> u64 {
        self.index.lock().overhead()
    }

    /// How full it is.
    pub fn usage(&self) -> StoreUsage {
        let index = self.index.lock();
        StoreUsage {
            used: index.used(),
            capacity: index.capacity(),
            objects: index.len() as u64,
            evicted: index.evicted,
            declined: self.counts.declined.load(Ordering::Relaxed),
        }
    }

    /// What it counted since it was opened.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            direct_read_refused: self.modes.direct_read.refusals(),
            direct_write_refused: self.modes.direct_write.refusals(),
            no_atime_refused: self.modes.no_atime.refusals(),
            policy_panics: self.fault().is_some().into(),
            ..self.counts.snapshot()
        }
    }

    /// Why the store is out of service, if it is: its eviction policy panicked, and nobody can tell any more what should
    /// stay. Stores, loads and lookups are refused then; objects can be listed and removed, and the others lie untouched
    /// until the store is opened anew.
    pub fn fault(&self) -> Option<Error> {
        self.in_service(&self.index.lock()).err()
    }

    pub(crate) fn in_service(&self, index: &Index<Waiter<D>>) -> Result<()> {
        let Some(e) = index.fault() else { return Ok(()) };
        let e = e.with("root", self.root.display());
        if !self.fault_said.swap(true, Ordering::Relaxed) {
            tracing::error!(error = %e, "the store is out of service until it is opened anew");
        }
        Err(e)
    }

    /// Whether the policy keeps tenants apart: then the store's [`L2Quotas`] have an effect.
    pub fn keeps_quotas(&self) -> bool {
        self.keeps_quotas
    }

    /// Describes a model's objects from now on.
    ///
    /// # Errors
    /// `Mismatch` naming the field if the model is described differently already; `Io` if the manifest cannot be written.
    pub fn add_namespace(&self, namespace: &Namespace) -> Result<()> {
        let _alone = self.manifest_writer.lock();
        let described = if self.shared { Some(self.described()?) } else { None };
        let mut with = described.as_ref().map_or_else(|| self.manifest(), |(_, manifest)| manifest.clone());
        if with.add(namespace)? {
            if let Some(slab) = &self.slab {
                fits(&with, &slab.geometry)?;
            }
            with.write(&*self.disk, &self.root, &self.temp_path())?;
        }
        *self.manifest.lock() = with;
        Ok(())
    }

    /// Which keys are there, in order, in one short critical section.
    ///
    /// # Errors
    /// [`Self::fault`].
    pub fn probe(&self, keys: &[ObjectKey]) -> Result<Vec<Option<Found>>> {
        let mut out = Vec::with_capacity(keys.len());
        let mut index = self.index.lock();
        self.in_service(&index)?;
        let request = index.request();
        for (at, key) in keys.iter().enumerate() {
            let found = index.find(key).map(|(_, object)| object.found);
            if found.is_none() {
                index.missed(key, &access(request, at, keys.len()));
            }
            out.push(found);
        }
        Ok(out)
    }

    /// A page of what is there. The cursor is opaque.
    ///
    /// # Errors
    /// `Invalid` for a cursor that is none of ours, and for a page of no entries.
    pub fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        let from = cursor.map_or(Ok(0), str::parse).map_err(|_| {
            Error::invalid("list store", "the cursor is not one that a listing gave")
                .with("cursor", cursor.unwrap_or(""))
        })?;
        if limit == 0 {
            return Err(Error::invalid("list store", "a page has at least one entry").with("limit", limit));
        }
        let index = self.index.lock();
        let (objects, next) = index.page(from, limit);
        let entries = objects.into_iter().map(|o| (o.key.clone(), o.found)).collect();
        Ok(ListPage { entries, next: next.map(|n| n.to_string()) })
    }

    pub(crate) fn temp_path(&self) -> PathBuf {
        self.tmp.join(temp_name(self.writer.pid, self.writer.id, self.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// Unique per object this run writes, and not met in other runs but by chance.
    pub(crate) fn generation(&self) -> u64 {
        if self.slab.is_some() {
            // Goes on where the last run stopped: of two objects in one place, the newer one is told.
            return self.serial.fetch_add(1, Ordering::Relaxed);
        }
        self.writer.id.wrapping_add(self.serial.fetch_add(1, Ordering::Relaxed))
    }

    /// What an object of `len` payload bytes takes on the device.
    pub(crate) fn charge(&self, len: u64) -> u64 {
        if self.slab.is_some() {
            return extent_of(len);
        }
        (HEADER_BYTES + len).next_multiple_of(self.block)
    }

    // --- room ----------------------------------------------------------------------------------------------------

    /// Sets bytes aside, evicting and deleting what has to go. Blocks.
    pub(crate) fn make_room(self: &Arc<Self>, need: u64, asker: Asker) -> Result<()> {
        // A reservation fails after an eviction only if the device would not delete; then the next victims are tried.
        for _ in 0..8 {
            let room = self.index.lock().reserve(need, asker);
            match room {
                Room::Ready => return Ok(()),
                Room::Purge(bad) => self.purge(bad),
                Room::Evict { victims, added } => {
                    if self.evict(victims, |index, freed| index.settle(need, added, freed)) {
                        return Ok(());
                    }
                }
                Room::Full => break,
            }
        }
        self.in_service(&self.index.lock())?;
        let usage = self.usage();
        Err(Error::new(ErrorKind::NoSpace, "store object", "the store is full and nothing can be evicted")
            .with("bytes", need)
            .with("used", usage.used)
            .with("overhead", self.overhead_bytes())
            .with("capacity", usage.capacity.unwrap_or(u64::MAX)))
    }

    pub(crate) fn purge(&self, bad: Vec<(OsString, u64)>) {
        for (name, bytes) in bad {
            match self.disk.unlink(&self.root.join(QUARANTINE).join(&name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => self.stuck(None, &e),
                _ => self.index.lock().free(bytes),
            }
            count(&self.counts.deleted);
        }
    }

    /// Takes detached victims off the device, settles the account, and lets go of their keys.
    pub(crate) fn evict<R>(
        self: &Arc<Self>,
        victims: Vec<Victim>,
        settle: impl FnOnce(&mut Index<Waiter<D>>, u64) -> R,
    ) -> R {
        let mut freed = 0;
        for victim in &victims {
            match self.take_out(victim.object.key.fingerprint256(), None) {
                Ok(()) => freed += victim.object.charge,
                Err(e) => self.stuck(Some(victim.object.key.fingerprint256()), &e),
            }
        }
        self.changes.fetch_add(victims.len() as u64, Ordering::Relaxed);
        let settled = settle(&mut self.index.lock(), freed);
        victims.iter().for_each(|v| self.release(v.object.key.fingerprint()));
        settled
    }

    /// The device would not delete: the bytes stay counted until the next start. The object that they are of may be there
    /// still, so no snapshot vouches for its directory.
    pub(crate) fn stuck(&self, object: Option<&[u8; 32]>, e: &io::Error) {
        count(&self.counts.stuck);
        if let Some([top, leaf, ..]) = object {
            self.unsettled.lock().insert([*top, *leaf]);
        }
        tracing::warn!(root = %self.root.display(), error = %e, "an object cannot be deleted; its bytes stay taken");
    }

    pub(crate) fn grown(&self, by: Grown) {
        if by != 0 {
            self.index.lock().overhead_grown(by);
        }
    }

    pub(crate) fn take_out(&self, fingerprint: &[u8; 32], to: Option<&Path>) -> io::Result<()> {
        let (done, grown) = self.fanout.take_out(&*self.disk, fingerprint, to);
        self.grown(grown);
        done
    }

    /// Takes a bad object's file out of the way: to quarantine, or off the device if that does not work. `charge` bytes
    /// are counted for it.
    pub(crate) fn condemn(&self, fingerprint: &[u8; 32], charge: u64, why: Miss, what: &str) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{:016x}-{serial}.{}", object_name(fingerprint), self.writer.id, why.name());
        let to = self.root.join(QUARANTINE).join(&name);
        if why != Miss::Absent {
            tracing::warn!(object = %object_name(fingerprint), reason = why.name(), "bad object set aside: {what}");
        }
        match self.take_out(fingerprint, Some(&to)) {
            Ok(()) if self.disk.metadata(&to).is_ok() => {
                count(&self.counts.quarantined);
                self.index.lock().quarantine(name.into(), charge);
            }
            // It was gone before it could be moved.
            Ok(()) => self.index.lock().free(charge),
            Err(_) => match self.take_out(fingerprint, None) {
                Ok(()) => {
                    count(&self.counts.deleted);
                    self.index.lock().free(charge);
                }
                Err(e) => self.stuck(Some(fingerprint), &e),
            },
        }
    }

    // --- keys ----------------------------------------------------------------------------------------------------

    /// Takes the right to write or remove a key, if nobody has it.
    pub fn hold(self: &Arc<Self>, key: &ObjectKey) -> Option<Hold<D>> {
        self.index.lock().hold(key.fingerprint()).then(|| Hold::new(self, key))
    }

    /// Takes a key as soon as whoever has it lets go; `then` runs on an engine's thread, or here and now if the key is
    /// free.
    pub fn hold_then(self: &Arc<Self>, key: &ObjectKey, then: impl FnOnce(Hold<D>) + Send + 'static) {
        let mut index = self.index.lock();
        if index.hold(key.fingerprint()) {
            drop(index);
            then(Hold::new(self, key));
        } else {
            index.wait(key.fingerprint(), Box::new(then));
        }
    }

    fn release(self: &Arc<Self>, print: u128) {
        loop {
            let Some(next) = self.index.lock().pass_on(print) else { return };
            let store = Arc::clone(self);
            // Not called from here: a long queue would be as many stack frames. So would be the holds of jobs that a closed
            // engine drops: there is none until the job runs.
            let job = Box::new(move || next(Hold { store, print }));
            if self.disk.engine().spawn(false, job).is_ok() {
                return;
            }
        }
    }
}

impl<D: Disk> L2Quotas for Store<D> {
    fn set_quota(&self, salt: &str, bytes: Option<u64>) -> Result<()> {
        self.index.lock().set_quota(salt, bytes)
    }

    fn set_default_quota(&self, bytes: Option<u64>) -> Result<()> {
        self.index.lock().set_default_quota(bytes)
    }

    fn tenants(&self) -> Vec<TenantUsage> {
        self.index.lock().tenants()
    }
}

pub(crate) fn access(request: u64, position: usize, chain: usize) -> Access {
    Access { request, position: position as u32, chain: chain as u32 }
}

/// The right to write or remove one key. Dropped, it passes to whoever waits.
#[derive(Debug)]
pub struct Hold<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    print: u128,
}

impl<D: Disk> Hold<D> {
    pub(crate) fn new(store: &Arc<Store<D>>, key: &ObjectKey) -> Self {
        Self { store: Arc::clone(store), print: key.fingerprint() }
    }

    /// Removes the key's object; whether there was one. Blocks.
    ///
    /// # Errors
    /// `Io` if the file could not be removed: the object is not found any more, and its bytes stay taken until a restart.
    pub fn remove(&self, key: &ObjectKey) -> Result<bool> {
        debug_assert_eq!(key.fingerprint(), self.print, "the key that is held");
        let object: Object = {
            let mut index = self.store.index.lock();
            let Some((slot, _)) = index.find(key) else {
                drop(index);
                return self.store.remove_unknown(key);
            };
            if self.store.slab.is_some() {
                let gone = index.vacate(slot, Removal::Deleted);
                drop(index);
                let written = self.store.write_removal(gone);
                count(&self.store.counts.removed);
                return written.map(|()| true).map_err(|e| Error::io("remove object", e).with("key", key));
            }
            index.detach(slot, Removal::Deleted)
        };
        self.store.changes.fetch_add(1, Ordering::Relaxed);
        match self.store.take_out(key.fingerprint256(), None) {
            Ok(()) => {
                self.store.index.lock().free(object.charge);
                count(&self.store.counts.removed);
                Ok(true)
            }
            Err(e) => {
                self.store.stuck(Some(key.fingerprint256()), &e);
                Err(Error::io("remove object", e).with("key", key))
            }
        }
    }
}

impl<D: Disk> Drop for Hold<D> {
    fn drop(&mut self) {
        self.store.release(self.print);
    }
}

/// Reads the header of an open object.
pub(crate) fn read_header<D: Disk>(
    disk: &D,
    file: &D::File,
    at: u64,
) -> io::Result<Result<Header, crate::Fault>> {
    let mut block = crate::Block::zeroed();
    disk.read_exact_at(file, at, block.bytes_mut())?;
    Ok(Header::decode(&block))
}
