//! Opening and closing a store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use kvstrata_core::{Error, ErrorKind, Namespace, Result, Retry};
use kvstrata_io::{DirEntry, Disk, FileKind, Open, Space};
use parking_lot::Mutex;

use crate::fanout::Fanout;
use crate::index::Index;
use crate::manifest::differs;
use crate::modes::Modes;
use crate::names::{
    LOCK, MANIFEST, QUARANTINE, SNAPSHOT, TMP, is_below, is_lmcache_fs_name, is_lmcache_gds_fan, parse_fan,
    temp_name,
};
use crate::recover::orphans;
use crate::settings::Counts;
use crate::shared;
use crate::slab::{self, Geometry, Slab};
use crate::store::Store;
use crate::{Manifest, Quotas, Settings, StoreLayout, Writer};

const OP: &str = "open store";
/// What a store needs before it holds anything: its manifest, its directories, one object.
const LEAST: u64 = 64 << 10;

fn invalid(field: &'static str, value: impl std::fmt::Display, what: &str) -> Error {
    Error::invalid(OP, what).with(field, value)
}

/// What is at the root before anything is changed.
struct Before {
    entries: Option<Vec<DirEntry>>,
    manifest: Option<Manifest>,
}

impl<D: Disk> Store<D> {
    /// Opens the store in a directory, or makes one: nothing is changed unless everything about the settings is right.
    ///
    /// # Errors
    /// - `Invalid` names the setting: a root that is no directory, a temporary directory outside it or on another file
    ///   system, a capacity that no object fits into or that the file system does not have.
    /// - `Mismatch` names what differs: another format, another description of a model, a directory of LMCache's.
    /// - `Busy` if another store, of this process or another, has the directory open, and not both share it.
    /// - `Unsupported` if something required does not work here; `NoSpace`, `Io` as the device says.
    pub fn open(disk: Arc<D>, settings: Settings) -> Result<Arc<Self>> {
        let tmp = check_tmp(&settings)?;
        let mut index = Index::new(settings.policy, settings.capacity);
        promise(&mut index, &settings.quotas)?;
        let keeps_quotas = index.keeps_quotas();
        let before = look(&*disk, &settings.root)?;
        let layout =
            layout_of(&*disk, &settings.root, before.manifest.as_ref(), settings.layout, settings.capacity)?;
        let segments = layout == StoreLayout::Slab;
        if segments && settings.shared {
            let what = "a store of segments has one writer; a directory is shared with `files`, a file for each object";
            return Err(invalid("shared", true, what)
                .with("layout", "slab")
                .with("path", settings.root.display()));
        }
        // Nothing is written beside a store of segments but what describes it.
        let tmp = if segments { settings.root.join(slab::DIR) } else { tmp };
        let relative = settings.tmp.filter(|tmp| !segments && tmp != Path::new(TMP));
        let describe = |found: Option<Manifest>| describe(found, settings.writer, &settings.namespaces);
        describe(before.manifest.clone()).map_err(|e| e.with("path", settings.root.display()))?;
        let block = check_space(&*disk, &settings.root, settings.capacity, before.manifest.is_none())?;
        let geometry = if segments {
            let capacity = settings.capacity.ok_or_else(|| {
                invalid("capacity", "none", "the slab layout needs a limit on bytes; `files` does without")
            })?;
            Some(Geometry::plan(capacity, block, before.manifest.as_ref().and_then(|m| m.segment))?)
        } else {
            None
        };

        let root_io = |e: io::Error, at: &Path| Error::io(OP, e).with("base_path", at.display());
        disk.create_dir_all(&settings.root).map_err(|e| root_io(e, &settings.root))?;
        // Declared first, so that what this open made is removed again before the lock goes.
        let held;
        let describing;
        let mut live = None;
        let mut made = Made { disk: &*disk, paths: Vec::new() };
        // What others may have found by now stays.
        let alone = !settings.shared;
        if before.entries.is_none() && alone {
            made.paths.push((settings.root.clone(), FileKind::Dir));
        }
        let new;
        (held, new) = lock(&*disk, &settings.root, layout, settings.shared)?;
        describing = if alone { None } else { Some(shared::describing(&*disk, &settings.root)?) };
        if new && alone {
            made.paths.push((settings.root.join(LOCK), FileKind::File));
        }
        // Somebody may have made the store, or described more in it, between the look and the lock.
        let found = Manifest::read(&*disk, &settings.root)?;
        if found.is_none() && before.manifest.is_some() {
            return Err(Error::new(ErrorKind::Busy, OP, "the manifest went away just now"));
        }
        let fresh = found.is_none();
        let (mut manifest, mut changed) =
            describe(found).map_err(|e| e.with("path", settings.root.display()))?;
        if fresh {
            manifest.segment = geometry.map(|g| g.segment);
        } else if manifest.segment != geometry.map(|g| g.segment) {
            return Err(Error::new(ErrorKind::Busy, OP, "somebody else made the store just now"));
        }
        if let Some(g) = geometry {
            fits(&manifest, &g)?;
        }
        let quarantine = settings.root.join(QUARANTINE);
        for dir in [&tmp, &quarantine].into_iter().take(if segments { 1 } else { 2 }) {
            if disk.metadata(dir).is_err() {
                disk.create_dir_all(dir).map_err(|e| root_io(e, dir))?;
                made.paths.push((dir.clone(), FileKind::Dir));
            }
        }
        if !alone {
            if !fresh && manifest.tmp != relative {
                let name =
                    |tmp: &Option<PathBuf>| tmp.as_deref().unwrap_or(Path::new(TMP)).display().to_string();
                let (stored, wanted) = (name(&manifest.tmp), name(&relative));
                return Err(
                    differs("relative_tmp_dir", &stored, &wanted).with("path", settings.root.display())
                );
            }
            let (path, file) = shared::live(&*disk, &tmp, settings.writer)?;
            made.paths.push((path.clone(), FileKind::File));
            live = Some((path, file));
        }
        let modes = Modes::new(settings.direct, settings.no_atime);
        let serial = AtomicU64::new(0);
        let temp = |n| tmp.join(temp_name(settings.writer.pid, settings.writer.id, n));
        probe(&*disk, &modes, &temp(0), &settings.root, fresh)?;
        modes.require(settings.direct, settings.no_atime)?;
        serial.store(2, std::sync::atomic::Ordering::Relaxed);
        if !segments && manifest.tmp != relative {
            let former = manifest.tmp.as_deref().unwrap_or(Path::new(TMP));
            tidy(&*disk, &settings.root.join(former));
            manifest.tmp = relative;
            changed = true;
        }
        if changed {
            manifest.write(&*disk, &settings.root, &temp(1))?;
        }
        made.keep();

        let costs = disk.metadata(&tmp).map_err(|e| root_io(e, &tmp))?.allocated > 0;
        // Another writer may be about to put something into a directory that is empty.
        let keep = settings.capacity.filter(|_| alone).map_or(u64::MAX, |c| c / 64);
        if let Some(g) = geometry {
            index.overhead_grown((g.capacity - g.data) as i64);
            index.with_segments(g.segment, g.objects());
        } else {
            for fixed in
                [&settings.root, &tmp, &quarantine, &settings.root.join(LOCK), &settings.root.join(MANIFEST)]
            {
                index.overhead_grown(disk.metadata(fixed).map_err(|e| root_io(e, fixed))?.allocated as i64);
            }
        }
        let slab = geometry.map(|g| Slab::new(g, &settings.root, manifest.store_id)).transpose()?;
        let store = Arc::new(Self {
            fanout: Fanout::new(settings.root.clone(), costs, keep),
            slab,
            disk: Arc::clone(&disk),
            root: settings.root,
            tmp,
            block,
            index: Mutex::new(index),
            keeps_quotas,
            fault_said: AtomicBool::new(false),
            modes,
            counts: Counts::default(),
            manifest: Mutex::new(manifest),
            manifest_writer: Mutex::new(()),
            durability: settings.durability,
            writer: settings.writer,
            serial,
            snapshot_bytes: Mutex::new(0),
            unsettled: Mutex::default(),
            changes: AtomicU64::new(0),
            snapshotting: AtomicBool::new(false),
            lock: Mutex::new(Some(held)),
            shared: settings.shared,
            live: Mutex::new(live),
        });
        if !alone {
            let failed = |e| Error::io(OP, e).with("base_path", store.root.display());
            let left = [orphans(&*disk, &store.tmp), orphans(&*disk, &store.root)].map(|l| l.map_err(failed));
            let [tmp, root] = left;
            store.remove_orphans_of_the_dead([tmp?, root?].concat());
            // What it says is not true any more once others come and go.
            match disk.unlink(&store.root.join(SNAPSHOT)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
                _ => drop(describing),
            }
        }
        store.recover()?;
        Ok(store)
    }

    /// Writes the snapshot and lets others open the directory. Call it when nothing is in flight; blocks. Without a
    /// snapshot (no room, or the device said no) the next start reads every header.
    pub fn close(self: &Arc<Self>) {
        let lock = self.write_last_snapshot();
        if let Some((path, file)) = self.live.lock().take() {
            // If it stays, whoever opens the directory next finds that nobody has it locked.
            drop(self.disk.unlink(&path));
            drop(file);
        }
        drop(lock);
    }
}

fn check_tmp(settings: &Settings) -> Result<PathBuf> {
    if settings.root.as_os_str().is_empty() {
        return Err(invalid("base_path", "\"\"", "the store needs a directory"));
    }
    let Some(tmp) = &settings.tmp else { return Ok(settings.root.join(TMP)) };
    if !is_below(tmp) || tmp.to_str().is_none() {
        return Err(invalid(
            "relative_tmp_dir",
            tmp.display(),
            "the temporary directory is given relative to base_path, as UTF-8 without '..'",
        ));
    }
    let first = tmp.components().next().map(|c| c.as_os_str().to_owned()).unwrap_or_default();
    if parse_fan(&first).is_some() || first == QUARANTINE {
        return Err(invalid(
            "relative_tmp_dir",
            tmp.display(),
            "the name is one that the store uses for objects",
        ));
    }
    Ok(settings.root.join(tmp))
}

/// Tells the policy what tenants are promised, before it hears of any object.
fn promise<W>(index: &mut Index<W>, quotas: &Quotas) -> Result<()> {
    let asked = [("quotas", !quotas.own.is_empty()), ("default_quota", quotas.default.is_some())];
    if let Some((field, _)) = asked.into_iter().find(|(_, asked)| *asked && !index.keeps_quotas()) {
        return Err(invalid(
            field,
            index.policy_name(),
            "this eviction policy does not keep tenants apart; IsolatedLRU does",
        ));
    }
    index.set_default_quota(quotas.default)?;
    quotas.own.iter().try_for_each(|(salt, bytes)| index.set_quota(salt, Some(*bytes)))
}

fn look<D: Disk>(disk: &D, root: &Path) -> Result<Before> {
    // Listing follows links, so that a base_path may be one.
    let entries = match disk.list(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Before { entries: None, manifest: None }),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(invalid("base_path", root.display(), "base_path is a file; a directory is needed"));
        }
        Err(e) => return Err(Error::io(OP, e).with("base_path", root.display())),
    };
    let manifest = Manifest::read(disk, root)?;
    if manifest.is_none() {
        if entries.iter().any(|e| is_lmcache_fs_name(&e.name)) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                OP,
                "the directory is one of LMCache's fs adapter; to take its objects over, run `kvstrata import --from \
                 lmcache-fs PATH --to STORE` with another directory for the store",
            )
            .with("base_path", root.display()));
        }
        if let Some(e) = entries.iter().find(|e| e.kind == FileKind::Dir && is_lmcache_gds_fan(&e.name)) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                OP,
                "the directory is one of LMCache's GDS backend; to take its objects over, run `kvstrata import --from \
                 lmcache-gds PATH --to STORE` with another directory for the store",
            )
            .with("base_path", root.display())
            .with("found", e.name.display()));
        }
        if let Some(e) = entries.iter().find(|e| e.kind == FileKind::Dir && parse_fan(&e.name).is_some()) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                OP,
                "the directory looks like a store or a directory of LMCache's GDS backend, but has no manifest; `kvstrata \
                 fsck --repair PATH` makes a new one for a store, `kvstrata import --from lmcache-gds` reads the other",
            )
            .with("base_path", root.display())
            .with("found", e.name.display()));
        }
        if entries.iter().any(|e| e.name == slab::DIR && e.kind == FileKind::Dir)
            && disk.metadata(&root.join(slab::DIR).join(slab::segment_name(0))).is_ok()
        {
            return Err(Error::new(
                ErrorKind::Mismatch,
                OP,
                "the directory looks like a store of segments, but has no manifest; `kvstrata fsck --repair PATH` makes a \
                 new one",
            )
            .with("base_path", root.display()));
        }
    }
    Ok(Before { entries: Some(entries), manifest })
}

/// The file system of a root. It may not exist yet: what holds its nearest existing parent will hold it.
fn space_of<D: Disk>(disk: &D, root: &Path) -> Result<Space> {
    let mut at = root;
    loop {
        match disk.space(at) {
            Ok(space) => return Ok(space),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match at.parent() {
                Some(parent) if parent.as_os_str().is_empty() => at = Path::new("."),
                Some(parent) => at = parent,
                None => return Err(Error::io(OP, e).with("base_path", root.display())),
            },
            Err(e) => return Err(Error::io(OP, e).with("base_path", root.display())),
        }
    }
}

/// The layout that a new store in this directory gets unless it is told, and why.
///
/// # Errors
/// What the disk says of the file system.
pub fn choose_layout<D: Disk>(disk: &D, root: &Path, capacity: Option<u64>) -> Result<(StoreLayout, String)> {
    /// Below that, what describes the objects takes a large part of a store of segments.
    const WORTH_IT: u64 = 16 << 20;
    let Some(capacity) = capacity else {
        return Ok((StoreLayout::Files, "there is no limit on bytes".into()));
    };
    if capacity < WORTH_IT {
        return Ok((StoreLayout::Files, format!("the limit is below {} MiB", WORTH_IT >> 20)));
    }
    let fs = space_of(disk, root)?.fs;
    Ok(if fs.is_shared() {
        (StoreLayout::Files, format!("other machines may write here too: the file system is {fs}"))
    } else {
        (
            StoreLayout::Slab,
            format!("there is a limit on bytes, and the file system ({fs}) is this machine's own"),
        )
    })
}

/// The layout of the store that is there or to be.
fn layout_of<D: Disk>(
    disk: &D,
    root: &Path,
    there: Option<&Manifest>,
    asked: Option<StoreLayout>,
    capacity: Option<u64>,
) -> Result<StoreLayout> {
    match (there.map(Manifest::layout), asked) {
        (Some(stored), Some(wanted)) if stored != wanted => {
            Err(differs("layout", stored.name(), wanted.name()).with("path", root.display()))
        }
        (Some(layout), _) | (None, Some(layout)) => Ok(layout),
        (None, None) => {
            let (layout, why) = choose_layout(disk, root, capacity)?;
            tracing::info!(root = %root.display(), layout = layout.name(), "a new store: {why}");
            Ok(layout)
        }
    }
}

/// Whether there is room for what a store of segments says of itself.
pub(crate) fn fits(manifest: &Manifest, g: &Geometry) -> Result<()> {
    let bytes = manifest.encode().len() as u64;
    if bytes <= g.manifest {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        OP,
        "a store of this size has no room for so many descriptions of models",
    )
    .with("namespaces", manifest.namespaces.len())
    .with("manifest_bytes", bytes)
    .with("room", g.manifest))
}

/// Checks the capacity against the file system; returns the block size to account with.
fn check_space<D: Disk>(disk: &D, root: &Path, capacity: Option<u64>, new: bool) -> Result<u64> {
    let space = space_of(disk, root)?;
    if let Some(capacity) = capacity {
        if capacity < LEAST {
            return Err(invalid("capacity", capacity, "the capacity in bytes is at least 65536, or none"));
        }
        // ramfs has no size of its own.
        if space.total > 0 && capacity > space.total {
            return Err(invalid("capacity", capacity, "the capacity is more than the whole file system has")
                .with("file_system", space.total));
        }
    }
    if new && space.total > 0 && space.available < LEAST {
        return Err(Error::new(ErrorKind::NoSpace, OP, "the file system is full")
            .with("base_path", root.display())
            .with("available", space.available));
    }
    let block = u64::from(space.block);
    Ok(if block.is_power_of_two() { block.clamp(4096, 1 << 20) } else { 4096 })
}

/// What the store is to say of itself, and whether that is more than it says.
fn describe(found: Option<Manifest>, writer: Writer, namespaces: &[Namespace]) -> Result<(Manifest, bool)> {
    let mut changed = found.is_none();
    let mut manifest = found.unwrap_or_else(|| Manifest {
        // 64 bits of the caller's draw and the process: enough to tell the stores of a fleet apart.
        store_id: u128::from(writer.id) << 64 | u128::from(writer.pid),
        namespaces: Vec::new(),
        tmp: None,
        segment: None,
    });
    for namespace in namespaces {
        changed |= manifest.add(namespace)?;
    }
    Ok((manifest, changed))
}

/// Removes what was left unfinished where files were written before; the directory too, if nothing else is in it. The
/// manifest is not to forget the place before that is durable.
fn tidy<D: Disk>(disk: &D, former: &Path) {
    let left = orphans(disk, former).unwrap_or_default();
    for path in left {
        if let Err(e) = disk.unlink(&path) {
            tracing::warn!(path = %path.display(), error = %e, "an unfinished file cannot be deleted");
        }
    }
    let gone = disk.remove_dir(former).is_ok();
    if let Some(changed) = if gone { former.parent() } else { Some(former) } {
        drop(disk.sync_dir(changed));
    }
}

impl<D: Disk> Store<D> {
    /// Says so if the directory is not the one that was opened: it was removed, or what was mounted there is not any more.
    /// What is made under its name would be on a disk that nobody meant.
    pub(crate) fn check_home(&self) -> io::Result<()> {
        /// Linux's errno for a device that is gone.
        const ENODEV: i32 = 19;
        let lock = self.lock.lock();
        match lock.as_ref() {
            Some(lock) if !is_at(&*self.disk, lock, &self.root.join(LOCK))? => {
                Err(io::Error::from_raw_os_error(ENODEV))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the open file is the one under this name: it may have been removed, or another put in its place.
pub(crate) fn is_at<D: Disk>(disk: &D, file: &D::File, path: &Path) -> io::Result<bool> {
    let named = match disk.metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    Ok(named.inode == disk.file_metadata(file)?.inode)
}

/// Locks the directory; also whether the lock file is new. A new one that somebody else was faster to lock is theirs.
fn lock<D: Disk>(disk: &D, root: &Path, layout: StoreLayout, shared: bool) -> Result<(D::File, bool)> {
    let path = root.join(LOCK);
    let failed = |e| Error::io(OP, e).with("base_path", root.display());
    let existing = Open { write: true, ..Open::default() };
    let busy =
        |what| Error::new(ErrorKind::Busy, OP, what).with("base_path", root.display()).retrying(Retry::Later);
    // An open that fails takes the lock file it made away again: who had opened that one then holds a lock on nothing.
    for _ in 0..4 {
        let mut made = false;
        let opened = match disk.open(&path, existing) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                made = true;
                disk.open(&path, Open { create_new: true, ..existing })
            }
            opened => opened,
        };
        let file = match opened {
            Err(e) if made && e.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened.map_err(failed)?,
        };
        let locked = if shared { disk.try_lock_shared(&file) } else { disk.try_lock(&file) };
        match locked {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(busy(match (shared, layout) {
                    (true, _) => {
                        "the store is open in another adapter or process that does not share it; `shared: true` is needed there too"
                    }
                    (false, StoreLayout::Files) => {
                        "the store is open in another adapter or process; with `shared: true` in all of them several processes \
                         may have it open"
                    }
                    (false, StoreLayout::Slab) => {
                        "the store is open in another adapter or process, and a store of segments has one writer"
                    }
                }));
            }
            locked => locked.map_err(failed)?,
        }
        if is_at(disk, &file, &path).map_err(failed)? {
            return Ok((file, made));
        }
    }
    Err(busy("others are opening this store just now"))
}

/// Tries on a file what the store will do with every object: write, read, and rename into the root.
fn probe<D: Disk>(disk: &D, modes: &Modes, temp: &Path, root: &Path, new: bool) -> Result<()> {
    let tried = match modes.probe(disk, temp) {
        // A store that is full can still be read, and evicting makes room.
        Err(e) if !new && matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            None
        }
        tried => Some(tried),
    };
    let to = root.join(temp.file_name().expect("a name"));
    let moved = tried.map(|t| t.map(|()| disk.rename_new(temp, &to)));
    drop(disk.unlink(temp));
    drop(disk.unlink(&to));
    match moved {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Err(e)) => Err(Error::io(OP, e).with("base_path", root.display())),
        Some(Ok(Err(e))) if e.kind() == io::ErrorKind::CrossesDevices => Err(invalid(
            "relative_tmp_dir",
            temp.parent().unwrap_or(temp).display(),
            "the temporary directory is on another file system than base_path",
        )),
        Some(Ok(Err(e))) => Err(Error::io(OP, e).with("base_path", root.display())),
    }
}

/// What this open made; removed again unless it succeeds.
struct Made<'a, D: Disk> {
    disk: &'a D,
    paths: Vec<(PathBuf, FileKind)>,
}

impl<D: Disk> Made<'_, D> {
    fn keep(&mut self) {
        self.paths.clear();
    }
}

impl<D: Disk> Drop for Made<'_, D> {
    fn drop(&mut self) {
        for (path, kind) in self.paths.iter().rev() {
            // What cannot be removed is empty and does no harm.
            drop(match kind {
                FileKind::Dir => self.disk.remove_dir(path),
                _ => self.disk.unlink(path),
            });
        }
    }
}
