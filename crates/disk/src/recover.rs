//! Finding out at the start what is there, and writing down at the end what that start should know.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{Error, Result};
use kvstrata_io::{Disk, FileKind, IoEngine, Open};
use kvstrata_l2::{Found, Miss};

use crate::fanout::Leaf;
use crate::index::{Asker, Object, Place, Room};
use crate::names::{QUARANTINE, SNAPSHOT, fan, leaf_path, live_name_of, parse_fan, parse_object_name};
use crate::settings::count;
use crate::snapshot::{FileTime, Known, Snapshot};
use crate::store::{Store, read_header};
use crate::{Fault, HEADER_BYTES};

const OP: &str = "recover store";
/// A snapshot is written after this many objects came or went, or a quarter of what is there if that is more.
const CHANGES: u64 = 1 << 16;

/// An object's file, as its header and its length say.
pub(crate) enum Looked {
    Good(Object, FileTime),
    Bad(Miss, &'static str, u64),
    /// Written by a later version: left alone.
    Unknown,
    Gone,
}

/// The order of use: as the snapshot knew it, then by time of writing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Used(u64),
    Written(FileTime),
}

/// Linux's errno for a medium that fails.
const EIO: i32 = 5;

/// Reads one object's header and length.
pub(crate) fn look_at<D: Disk>(disk: &D, path: &Path, fingerprint: &[u8; 32]) -> io::Result<Looked> {
    let file = match disk.open(path, Open::default()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Looked::Gone),
        opened => opened?,
    };
    let meta = disk.file_metadata(&file)?;
    if meta.len < HEADER_BYTES {
        return Ok(Looked::Bad(Miss::Truncated, "shorter than a header", meta.len));
    }
    let header = match read_header(disk, &file, 0)? {
        Ok(header) => header,
        Err(Fault::Version(_)) => return Ok(Looked::Unknown),
        Err(_) => return Ok(Looked::Bad(Miss::Header, "the header does not decode", meta.len)),
    };
    if header.key.fingerprint256() != fingerprint {
        return Ok(Looked::Bad(Miss::Foreign, "another key's object", meta.len));
    }
    if !header.fits(meta.len) {
        return Ok(Looked::Bad(Miss::Truncated, "not as long as its header says", meta.len));
    }
    let object = Object {
        found: Found { len: header.len, layout: Some(header.layout), digest: header.digest },
        key: header.key,
        place: Place::default(),
        generation: header.generation,
        charge: 0,
        used_at: 0,
    };
    Ok(Looked::Good(object, meta.modified.into()))
}

/// What writers left unfinished in a directory.
pub(crate) fn orphans<D: Disk>(disk: &D, tmp: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match disk.list(tmp) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed?,
    };
    let left = entries.into_iter().filter(|e| e.kind == FileKind::File && live_name_of(&e.name).is_some());
    Ok(left.map(|e| tmp.join(e.name)).collect())
}

impl<D: Disk> Store<D> {
    /// Fills the index, removes what dead writers left, and trims to the capacity.
    pub(crate) fn recover(self: &Arc<Self>) -> Result<()> {
        if self.slab.is_some() {
            return self.recover_slab();
        }
        let failed = |e| Error::io(OP, e).with("root", self.root.display());
        if !self.shared {
            self.remove_orphans().map_err(failed)?;
        }
        self.count_quarantine().map_err(failed)?;
        let mut known = Known::from(if self.shared { Snapshot::default() } else { self.read_snapshot() });
        let mut unchanged = 0;
        let mut scanned = Vec::new();
        for top in self.disk.list(&self.root).map_err(failed)? {
            let Some(t) = parse_fan(&top.name).filter(|_| top.kind == FileKind::Dir) else { continue };
            let path = self.root.join(fan(t));
            let bytes = self.disk.metadata(&path).map_err(failed)?.allocated;
            self.grown(self.fanout.found_top(t, bytes) as i64);
            for leaf in self.disk.list(&path).map_err(failed)? {
                let Some(l) = parse_fan(&leaf.name).filter(|_| leaf.kind == FileKind::Dir) else {
                    count(&self.counts.strangers);
                    continue;
                };
                let meta = self.disk.metadata(&path.join(&leaf.name)).map_err(failed)?;
                let objects = match known.take([t, l], meta.modified.into()) {
                    Some(objects) => {
                        unchanged += u64::from(objects);
                        objects
                    }
                    None => {
                        let n = self.scan_leaf(t, l, &mut scanned).map_err(failed)?;
                        self.counts.recovered_scan.fetch_add(n as u64, Ordering::Relaxed);
                        n as u32
                    }
                };
                let found = Leaf { objects, bytes: meta.allocated };
                self.grown(self.fanout.found_leaf(t, l, found) as i64);
            }
        }
        self.counts.recovered_snapshot.store(unchanged, Ordering::Relaxed);
        self.fill_index(known, unchanged as usize, scanned);
        self.trim()?;
        let usage = self.usage();
        tracing::debug!(root = %self.root.display(), objects = usage.objects, bytes = usage.used, "store is open");
        Ok(())
    }

    /// The snapshot's objects are in the order of their use; what was found beside them comes in where it belongs.
    fn fill_index(&self, known: Known, unchanged: usize, scanned: Vec<(Object, FileTime)>) {
        let uses = if scanned.is_empty() { HashMap::new() } else { known.uses() };
        let rank = |(object, time): (Object, FileTime)| {
            let used = uses.get(&(object.key.fingerprint(), object.generation));
            let charge = self.charge(object.found.len);
            (used.map_or(Rank::Written(time), |at| Rank::Used(*at)), Object { charge, ..object })
        };
        let mut found: Vec<(Rank, Object)> = scanned.into_iter().map(rank).collect();
        found.sort_by_key(|(rank, _)| *rank);
        let mut index = self.index.lock();
        index.expect(unchanged + found.len());
        let mut found = found.into_iter().peekable();
        for object in known.unchanged() {
            let here = Rank::Used(object.used_at);
            while let Some((_, earlier)) = found.next_if(|(rank, _)| *rank < here) {
                index.recovered(earlier);
            }
            index.recovered(object);
        }
        found.for_each(|(_, object)| index.recovered(object));
    }

    /// Files that were being written: the lock says that their writers are gone. In the root lies what a start tried out
    /// when it was cut short.
    pub(crate) fn remove_orphans(&self) -> io::Result<()> {
        let left = [orphans(&*self.disk, &self.tmp)?, orphans(&*self.disk, &self.root)?].concat();
        self.remove_unfinished(left);
        Ok(())
    }

    /// Deletes files that nobody writes any more.
    pub(crate) fn remove_unfinished(&self, left: Vec<PathBuf>) {
        for path in left {
            match self.disk.unlink(&path) {
                Ok(()) => count(&self.counts.deleted),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    let bytes = self.disk.metadata(&path).map_or(self.block, |m| m.allocated);
                    self.index.lock().charge(bytes);
                    self.stuck(None, &e);
                }
            }
        }
    }

    fn count_quarantine(&self) -> io::Result<()> {
        let dir = self.root.join(QUARANTINE);
        for entry in self.disk.list(&dir)? {
            let bytes = self.disk.metadata(&dir.join(&entry.name))?.allocated;
            let mut index = self.index.lock();
            index.charge(bytes);
            if entry.kind == FileKind::File {
                index.quarantine(entry.name, bytes);
            }
        }
        Ok(())
    }

    /// Reads the headers in one directory; returns how many objects stay in it.
    fn scan_leaf(&self, t: u8, l: u8, out: &mut Vec<(Object, FileTime)>) -> io::Result<usize> {
        let dir = leaf_path(&self.root, t, l);
        let before = out.len();
        for entry in self.disk.list(&dir)? {
            let fingerprint = parse_object_name(&entry.name).filter(|f| f[..2] == [t, l]);
            let Some(fingerprint) = fingerprint.filter(|_| entry.kind == FileKind::File) else {
                count(&self.counts.strangers);
                continue;
            };
            match look_at(&*self.disk, &dir.join(&entry.name), &fingerprint) {
                Ok(Looked::Good(object, time)) => out.push((object, time)),
                Ok(Looked::Bad(why, what, len)) => {
                    let charge = len.next_multiple_of(self.block);
                    self.index.lock().charge(charge);
                    self.condemn(&fingerprint, charge, why, what);
                }
                Ok(Looked::Unknown) => count(&self.counts.strangers),
                Ok(Looked::Gone) => {}
                // One object that cannot be read must not keep a million others from being found.
                Err(e) => {
                    let path = dir.join(&entry.name);
                    let charge = self.disk.metadata(&path).map_or(self.block, |m| m.allocated);
                    self.index.lock().charge(charge);
                    // The device lost it, or nobody may read it any more. Any other error (too many open files, say) tells
                    // nothing of the object: it counts, and is looked at again by the next start.
                    if e.raw_os_error() == Some(EIO) || e.kind() == io::ErrorKind::PermissionDenied {
                        self.condemn(&fingerprint, charge, Miss::Header, &e.to_string());
                    } else {
                        tracing::warn!(path = %path.display(), error = %e, "an object cannot be looked at and is left out");
                        self.unsettled.lock().insert([t, l]);
                        count(&self.counts.strangers);
                    }
                }
            }
        }
        Ok(out.len() - before)
    }

    /// Bad objects go before good ones. What the device does not delete stays counted, and the next ones are tried.
    fn trim(self: &Arc<Self>) -> Result<()> {
        let over = self.index.lock().excess();
        if over > 0 {
            tracing::info!(root = %self.root.display(), bytes = over, "the store holds more than its capacity; trimming");
        }
        for _ in 0..8 {
            let room = self.index.lock().shed();
            match room {
                Room::Purge(bad) => self.purge(bad),
                Room::Evict { victims, .. } => self.evict(victims, |index, freed| index.free(freed)),
                Room::Ready | Room::Full => break,
            }
        }
        self.in_service(&self.index.lock())
    }

    // --- the snapshot --------------------------------------------------------------------------------------------

    fn read_snapshot(&self) -> Snapshot {
        let path = self.root.join(SNAPSHOT);
        let read = || -> Result<Option<Snapshot>> {
            let io = |e| Error::io("read index snapshot", e);
            let file = match self.disk.open(&path, Open::default()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(io)?,
            };
            let meta = self.disk.file_metadata(&file).map_err(io)?;
            *self.snapshot_bytes.lock() = meta.allocated;
            self.grown(meta.allocated as i64);
            let mut bytes = vec![0; meta.len as usize];
            self.disk.read_exact_at(&file, 0, &mut bytes).map_err(io)?;
            Snapshot::decode(&bytes, self.manifest.lock().store_id, |len| self.charge(len)).map(Some)
        };
        match read() {
            Ok(snapshot) => snapshot.unwrap_or_default(),
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "no usable index snapshot; reading every header");
                Snapshot::default()
            }
        }
    }

    /// Writes a snapshot on an engine's thread when enough has changed.
    pub fn snapshot_when_due(self: &Arc<Self>) {
        if self.shared || self.snapshotting.load(Ordering::Relaxed) {
            return;
        }
        let due = if self.slab.is_some() {
            self.compaction_is_due()
        } else {
            let changes = self.changes.load(Ordering::Relaxed);
            changes >= CHANGES && changes >= self.index.lock().len() as u64 / 4
        };
        if !due || self.snapshotting.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Arc::clone(self);
        let job = Box::new(move || {
            store.write_snapshot();
            store.snapshotting.store(false, Ordering::Release);
        });
        if self.disk.engine().spawn(false, job).is_err() {
            self.snapshotting.store(false, Ordering::Release);
        }
    }

    /// Writes a snapshot of the index, beside whatever else is going on; objects are evicted if it needs their room. That
    /// it fails is counted and said, and does no harm. Blocks.
    pub fn write_snapshot(self: &Arc<Self>) {
        let mut bytes = self.snapshot_bytes.lock();
        // Once the lock is gone, the directory is somebody else's.
        if self.lock.lock().is_some() {
            self.write_snapshot_alone(&mut bytes);
        }
    }

    /// Writes the last snapshot, after which nobody writes another; the lock is the caller's to drop.
    pub(crate) fn write_last_snapshot(self: &Arc<Self>) -> Option<D::File> {
        let mut bytes = self.snapshot_bytes.lock();
        let lock = self.lock.lock().take()?;
        self.write_snapshot_alone(&mut bytes);
        Some(lock)
    }

    fn write_snapshot_alone(self: &Arc<Self>, old_bytes: &mut u64) {
        if self.shared {
            // What others store and evict is not in it.
            return;
        }
        if self.slab.is_some() {
            // What fails is counted and said where it does.
            drop(self.commit().and_then(|()| self.compact(None)));
            return;
        }
        match self.try_write_snapshot(old_bytes) {
            Ok(()) => count(&self.counts.snapshots),
            Err(e) => {
                count(&self.counts.snapshots_failed);
                tracing::warn!(root = %self.root.display(), error = %e, "index snapshot not written");
            }
        }
    }

    fn try_write_snapshot(self: &Arc<Self>, old_bytes: &mut u64) -> Result<()> {
        let temp = self.temp_path();
        let changes = self.changes.load(Ordering::Relaxed);
        let mut reserved = 0;
        let write = |reserved: &mut u64| -> Result<u64> {
            let io = |e| Error::io("write index snapshot", e).with("path", temp.display());
            let file = self
                .disk
                .open(&temp, Open { write: true, create_new: true, ..Open::default() })
                .map_err(io)?;
            let begun = self.disk.file_metadata(&file).map_err(io)?.modified.into();
            let bytes = self.take_snapshot(begun).map_err(io)?.encode();
            let need = (bytes.len() as u64).next_multiple_of(self.block);
            self.make_room(need, Asker::Store)?;
            *reserved = need;
            for (at, piece) in bytes.chunks(1 << 20).enumerate() {
                self.disk.write_all_at(&file, (at << 20) as u64, piece).map_err(io)?;
            }
            drop(file);
            self.disk.rename(&temp, &self.root.join(SNAPSHOT)).map_err(io)?;
            Ok(need)
        };
        match write(&mut reserved) {
            Ok(bytes) => {
                let mut index = self.index.lock();
                index.free(bytes);
                index.overhead_grown(bytes as i64 - std::mem::replace(old_bytes, bytes) as i64);
                drop(index);
                self.changes.fetch_sub(changes, Ordering::Relaxed);
                Ok(())
            }
            Err(e) => {
                drop(self.disk.unlink(&temp));
                self.index.lock().free(reserved);
                Err(e)
            }
        }
    }

    /// Copies the index and the times of the directories. A directory is only trusted later if nothing happened in it
    /// from before the copy on: its time says so, unless a change was under way already when the copy began, or still is;
    /// such directories are left out.
    fn take_snapshot(&self, begun: FileTime) -> io::Result<Snapshot> {
        let mut unsettled: HashSet<[u8; 2]> = self.index.lock().held_dirs().collect();
        let mut objects = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let index = self.index.lock();
            let (page, next) = index.page(at, 4096);
            objects.extend(page.into_iter().cloned());
            from = next;
        }
        unsettled.extend(self.index.lock().held_dirs());
        unsettled.extend(self.unsettled.lock().iter().copied());
        objects.sort_by_key(|o: &Object| o.used_at);
        let mut dirs = Vec::new();
        for t in 0..=255 {
            for (l, _) in self.fanout.leaves(t) {
                if unsettled.contains(&[t, l]) {
                    continue;
                }
                match self.disk.metadata(&leaf_path(&self.root, t, l)) {
                    Ok(meta) => dirs.push(([t, l], meta.modified.into())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(Snapshot { store_id: self.manifest.lock().store_id, begun, dirs, objects })
    }
}
