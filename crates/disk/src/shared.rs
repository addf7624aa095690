//! One directory that several processes have open: who lives, who describes models, and what the others did to the files.
//!
//! Nothing here replaces what makes a single writer safe: names that are the writer's own, and publication by a rename. Files
//! are the truth; the index is what this writer knows of them, and is corrected by what a load or a store finds.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, LayoutId, ObjectKey, Result, Retry};
use kvstrata_evict::Removal;
use kvstrata_io::{Disk, Open};
use kvstrata_l2::{Found, Miss};

use crate::index::Place;
use crate::load::Fault;
use crate::names::{DESCRIBE, live_name, live_name_of, object_path};
use crate::recover::{Looked, look_at};
use crate::settings::count;
use crate::store::{Hold, Store};
use crate::{Claim, Fault as HeaderFault, Manifest, Opened, Pin, Writer};

/// How often, and after what pause, the lock of the manifest is tried: whoever has it writes one small file.
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Linux's errno for a file that another machine removed.
const ESTALE: i32 = 116;

/// Whether an error says that somebody removed the file.
pub(crate) fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(ESTALE)
}

/// The right to write the manifest of a shared directory, and to say which writers are gone.
pub(crate) fn describing<D: Disk>(disk: &D, root: &Path) -> Result<D::File> {
    const OP: &str = "lock manifest";
    let path = root.join(DESCRIBE);
    let failed = |e| Error::io(OP, e).with("path", path.display());
    let existing = Open { write: true, ..Open::default() };
    let made = disk.open(&path, Open { create_new: true, ..existing });
    let file = match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => disk.open(&path, existing).map_err(failed)?,
        made => made.map_err(failed)?,
    };
    for tried in 1.. {
        match disk.try_lock(&file) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tried < TRIES => std::thread::sleep(PAUSE),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            locked => return locked.map(|()| file).map_err(failed),
        }
    }
    Err(Error::new(ErrorKind::Busy, OP, "another process has held the lock of the manifest for long")
        .with("path", path.display())
        .retrying(Retry::Later))
}

/// Says that this writer lives, until the file is dropped. To be called by who may [describe](describing).
pub(crate) fn live<D: Disk>(disk: &D, tmp: &Path, writer: Writer) -> Result<(PathBuf, D::File)> {
    const OP: &str = "open store";
    let path = tmp.join(live_name(writer.pid, writer.id));
    let failed = |e| Error::io(OP, e).with("path", path.display());
    let file = match disk.open(&path, Open { write: true, create_new: true, ..Open::default() }) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let what = "another writer has the same process and number";
            return Err(Error::new(ErrorKind::Busy, OP, what).with("path", path.display()));
        }
        made => made.map_err(failed)?,
    };
    disk.try_lock(&file).map_err(failed)?;
    Ok((path, file))
}

impl<D: Disk> Store<D> {
    /// Whether other processes may have the directory open too.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Looks for an object that another writer of a shared directory may have stored, as its header and its length say.
    /// `None` in any other directory. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn look(&self, key: &ObjectKey) -> Result<Option<Found>> {
        if !self.shared {
            return Ok(None);
        }
        match look_at(&*self.disk, &object_path(&self.root, key.fingerprint256()), key.fingerprint256()) {
            Ok(Looked::Good(object, _)) => Ok(Some(object.found)),
            Ok(_) => Ok(None),
            Err(e) if is_gone(&e) || e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(e) => Err(Error::io("look object up", e).with("key", key).with("root", self.root.display())),
        }
    }

    /// The manifest as it is now, and the right to write it.
    pub(crate) fn described(&self) -> Result<(D::File, Manifest)> {
        let lock = describing(&*self.disk, &self.root)?;
        let manifest = Manifest::read(&*self.disk, &self.root)?;
        Ok((lock, manifest.unwrap_or_else(|| self.manifest())))
    }

    /// Removes what writers left that are gone. To be called by who may [describe](describing): nobody opens meanwhile.
    pub(crate) fn remove_orphans_of_the_dead(&self, left: Vec<PathBuf>) {
        let mut of: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for path in left {
            let Some(writer) = path.file_name().and_then(live_name_of) else { continue };
            of.entry(writer).or_default().push(path);
        }
        of.remove(&live_name(self.writer.pid, self.writer.id));
        for (writer, mut files) in of {
            let path = self.tmp.join(&writer);
            let lock = match self.disk.open(&path, Open { write: true, ..Open::default() }) {
                Ok(file) => match self.disk.try_lock(&file) {
                    Ok(()) => Some(file),
                    // It lives, or nobody can tell.
                    Err(_) => continue,
                },
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(_) => continue,
            };
            // The one that says whose the others are goes last.
            files.sort_by_key(|file| *file == path);
            self.remove_unfinished(files);
            drop(lock);
        }
    }

    /// Removes an object that this writer does not know of.
    pub(crate) fn remove_unknown(&self, key: &ObjectKey) -> Result<bool> {
        let fingerprint = key.fingerprint256();
        if !self.shared || self.disk.metadata(&object_path(&self.root, fingerprint)).is_err() {
            return Ok(false);
        }
        self.take_out(fingerprint, None).map_err(|e| Error::io("remove object", e).with("key", key))?;
        count(&self.counts.removed);
        Ok(true)
    }
}

impl<D: Disk> Claim<D> {
    /// Whether the object is there already, by its file: in a shared directory another writer may have stored it, or have
    /// removed what this one stored. If so the claim is dropped, and nothing is written. `false` in any other directory: the
    /// index knows. Blocks.
    pub fn is_there(&self) -> bool {
        let store = self.store();
        if !store.shared {
            return false;
        }
        let fingerprint = self.object.key.fingerprint256();
        let looked = look_at(&*store.disk, &object_path(&store.root, fingerprint), fingerprint);
        let Ok(Looked::Good(there, _)) = looked else { return false };
        let known = || {
            let index = store.index.lock();
            let known = index.find(&self.object.key).filter(|(slot, _)| Some(*slot) == self.old);
            known.is_some_and(|(_, known)| known.generation == there.generation)
        };
        // Without a digest nothing says that a payload is whole, unless it is the one that this writer knows.
        let same = there.found == self.object.found() && (there.found.digest.is_some() || known());
        if same {
            count(&store.counts.present);
        }
        same
    }
}

impl<D: Disk> Pin<D> {
    /// The pin of an object that only its file can tell of.
    pub(crate) fn unseen(store: &std::sync::Arc<Store<D>>, key: &ObjectKey, layout: LayoutId) -> Self {
        let found = Found { len: 0, layout: Some(layout), digest: None };
        Self {
            store: std::sync::Arc::clone(store),
            slot: None,
            key: key.clone(),
            found,
            place: Place::default(),
            charge: 0,
        }
    }

    /// Whether [`Self::found`] is what will be loaded. In a shared directory it is only after [`Self::open`].
    pub fn is_settled(&self) -> bool {
        !self.store.shared
    }

    /// Opens the file and believes its header.
    pub(crate) fn open_shared(&mut self) -> Result<Opened<D>, Fault> {
        let opened = match self.open_file() {
            Ok(opened) => opened,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.forget();
                return Err(self.missed(Miss::Header));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(match self.store.check_home() {
                    Ok(()) => self.gone(),
                    Err(e) => self.failed(e),
                });
            }
            Err(e) => return Err(self.failed(e)),
        };
        let says = match self.header_says(&opened)? {
            Ok(says) => says,
            // A later version's is left alone.
            Err(HeaderFault::Version(_)) => {
                self.forget();
                return Err(self.missed(Miss::Header));
            }
            Err(fault) => return Err(self.miss(Miss::Header, &fault.to_string())),
        };
        let wanted = self.found.layout;
        if self.slot.is_some() && says != self.found {
            // Another writer put its own there.
            self.forget();
        }
        if says.layout != wanted {
            return Err(self.missed(Miss::Layout));
        }
        self.found = says;
        Ok(opened)
    }

    /// The file is not there, or not any more.
    pub(crate) fn gone(&mut self) -> Fault {
        let known = self.slot.is_some();
        self.forget();
        self.missed(if known { Miss::Stale } else { Miss::Absent })
    }

    fn missed(&mut self, miss: Miss) -> Fault {
        self.store.missed(miss);
        Fault::Miss(miss)
    }

    /// Forgets what the index says of the object: another writer removed or replaced it, and its bytes are not this one's.
    fn forget(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let print = self.key.fingerprint();
        let mut index = self.store.index.lock();
        if index.unpin(slot) && index.hold(print) {
            let gone = index.detach(slot, Removal::Deleted);
            index.free(gone.charge);
            drop(index);
            drop(Hold::new(&self.store, &self.key));
        }
        // Else somebody writes or removes this key just now.
    }

    /// An object that the index does not have turned out bad: it is set aside, if it still is.
    pub(crate) fn unknown_is_bad(&mut self, miss: Miss) -> Fault {
        let store = &self.store;
        let fingerprint = self.key.fingerprint256();
        if let Some(hold) = store.hold(&self.key) {
            let looked = look_at(&*store.disk, &object_path(&store.root, fingerprint), fingerprint);
            if let Ok(Looked::Bad(why, what, len)) = looked {
                let charge = len.next_multiple_of(store.block);
                store.index.lock().charge(charge);
                store.condemn(fingerprint, charge, why, what);
            }
            drop(hold);
        }
        self.missed(miss)
    }
}
