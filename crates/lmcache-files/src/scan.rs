//! Finding the objects in a directory of LMCache's.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::{Error, Layout, ObjectKey, Result};
use kvstrata_io::{DirEntry, Disk, FileKind, IoEngine};
use parking_lot::{Condvar, Mutex};

use crate::classic::{ClassicName, KeyDType, SIDECAR, Suffix, is_temporary, sidecar};
use crate::flat::{Models, parse};
use crate::{HEADER_BYTES, Header, NoAtime, Refusal, Refused};

/// An object of the `fs` layout.
#[derive(Clone, Debug)]
pub struct FlatObject {
    /// Its key.
    pub key: ObjectKey,
    /// What its bytes are: what was given, or bytes that nobody looks into.
    pub layout: Layout,
}

/// Whether a file of `len` bytes holds a payload of `bytes`: with direct writes LMCache rounds files up to whole blocks.
pub(crate) fn holds(len: u64, bytes: u64) -> bool {
    len == bytes || (bytes > 0 && len == bytes.next_multiple_of(4096))
}

/// Lists a directory of the `fs` layout, in the order of the names. With a layout, only files of its length are objects.
/// Of two files of one key the one with the newer kind of name is the object.
///
/// # Errors
/// If the directory cannot be listed.
pub fn scan_flat<D: Disk>(
    disk: &D,
    root: &Path,
    models: &Models,
    layout: Option<&Layout>,
) -> Result<(Vec<FlatObject>, Refused)> {
    let mut refused = Refused::default();
    let mut objects = Vec::new();
    let mut plain: Option<Layout> = None;
    for entry in sorted(disk, root).map_err(|e| scan_failed(e, root))? {
        match flat_object(disk, root, &entry, models, layout, &mut plain) {
            Ok(object) => objects.push(object),
            Err(why) => refused.add(why),
        }
    }
    Ok((objects, refused))
}

fn flat_object<D: Disk>(
    disk: &D,
    root: &Path,
    entry: &DirEntry,
    models: &Models,
    layout: Option<&Layout>,
    plain: &mut Option<Layout>,
) -> Result<FlatObject, Refusal> {
    let name = entry.name.to_str().filter(|_| entry.kind == FileKind::File).ok_or(Refusal::Foreign)?;
    let key = parse(name, models)?;
    let len = disk.metadata(&root.join(name)).map_err(|_| Refusal::Unreadable)?.len;
    let first = crate::flat::names(&key, models).into_iter().find(|n| disk.metadata(&root.join(n)).is_ok());
    if first.as_deref() != Some(name) {
        return Err(Refusal::Duplicate);
    }
    let layout = match layout {
        Some(layout) if holds(len, layout.bytes()) => layout.clone(),
        Some(_) => return Err(Refusal::Truncated),
        None => match plain.as_ref().filter(|l| l.bytes() == len) {
            Some(same) => same.clone(),
            None => plain.insert(Layout::opaque(len).map_err(|_| Refusal::Truncated)?).clone(),
        },
    };
    Ok(FlatObject { key, layout })
}

/// An object of the GDS layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GdsObject {
    /// Its key.
    pub key: ObjectKey,
    /// What its sidecar says.
    pub header: Header,
    /// The dtype in its name.
    pub dtype: KeyDType,
    /// The end of its data file's name.
    pub suffix: Suffix,
}

/// Where and how the GDS layout is read.
#[derive(Debug)]
pub struct GdsDir<D> {
    /// The file system.
    pub disk: Arc<D>,
    /// The directory.
    pub root: PathBuf,
    /// How files are opened.
    pub no_atime: NoAtime,
    /// Workers per machine; all of them unless said.
    pub local_world_size: Option<u32>,
}

impl<D: Disk> GdsDir<D> {
    /// The object of this name: its sidecar decodes, and its data file is as long as that says.
    ///
    /// # Errors
    /// Why it is none.
    pub fn look(&self, name: &ClassicName, suffix: Suffix) -> Result<GdsObject, Refusal> {
        let key = name.key(self.local_world_size).ok_or(Refusal::Unmapped)?;
        let data = self.root.join(name.data(suffix));
        let header = self.no_atime.header(&*self.disk, &sidecar(&data))?;
        match self.disk.metadata(&data) {
            Ok(meta) if meta.len == HEADER_BYTES as u64 + header.layout.bytes() => {
                Ok(GdsObject { key, header, dtype: name.dtype(), suffix })
            }
            Ok(_) => Err(Refusal::Truncated),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Refusal::Half),
            Err(_) => Err(Refusal::Unreadable),
        }
    }

    /// Finds every object, on up to `threads` threads of the engine and this one; returns when all is found. What one
    /// directory has is found in the order of names, and all together does not depend on the threads.
    ///
    /// # Errors
    /// If the directory itself cannot be listed.
    pub fn scan(self: &Arc<Self>, threads: usize) -> Result<(Vec<GdsObject>, Refused)> {
        let tops = sorted(&*self.disk, &self.root).map_err(|e| scan_failed(e, &self.root))?;
        let mut found = Found::default();
        let mut dirs = VecDeque::new();
        for entry in tops {
            match entry.name.to_str().filter(|n| n.len() <= 2 && entry.kind == FileKind::Dir) {
                Some(name) => dirs.push_back(PathBuf::from(name)),
                None => found.refused.add(Refusal::Foreign),
            }
        }
        let work =
            Arc::new(Work { dirs: Mutex::new((dirs, 0)), idle: Condvar::new(), found: Mutex::new(found) });
        for _ in 1..threads.max(1) {
            let (this, work) = (Arc::clone(self), Arc::clone(&work));
            // A closed engine takes nothing; this thread does it all then.
            drop(self.disk.engine().spawn(false, Box::new(move || work.drain(&this))));
        }
        work.drain(self);
        let mut dirs = work.dirs.lock();
        // A job that has not begun finds nothing left to do.
        while dirs.1 > 0 {
            work.idle.wait(&mut dirs);
        }
        drop(dirs);
        let mut found = std::mem::take(&mut *work.found.lock());
        // The same key twice (two dtypes, two suffixes): the first by name, whichever thread was first.
        found.objects.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut seen = std::collections::BTreeSet::new();
        let mut objects = Vec::with_capacity(found.objects.len());
        for (_, object) in found.objects {
            if seen.insert(*object.key.fingerprint256()) {
                objects.push(object);
            } else {
                found.refused.add(Refusal::Duplicate);
            }
        }
        Ok((objects, found.refused))
    }

    /// What lies in one directory of the first level and in those below.
    fn top(&self, top: &Path, found: &mut Found) {
        let Ok(entries) = sorted(&*self.disk, &self.root.join(top)) else {
            return found.refused.add(Refusal::Unreadable);
        };
        let mut files = Vec::new();
        for entry in entries {
            let short = entry.name.to_str().is_some_and(|n| n.len() <= 2);
            if entry.kind == FileKind::Dir && short {
                let leaf = top.join(&entry.name);
                match sorted(&*self.disk, &self.root.join(&leaf)) {
                    Ok(entries) => self.files(&leaf, &entries, found),
                    Err(_) => found.refused.add(Refusal::Unreadable),
                }
            } else {
                files.push(entry);
            }
        }
        // Hashes of one or two digits have no second level.
        self.files(top, &files, found);
    }

    fn files(&self, dir: &Path, entries: &[DirEntry], found: &mut Found) {
        let has =
            |name: &str| entries.binary_search_by(|e| e.name.as_encoded_bytes().cmp(name.as_bytes())).is_ok();
        for entry in entries {
            let Some(name) = entry.name.to_str().filter(|_| entry.kind == FileKind::File) else {
                found.refused.add(Refusal::Foreign);
                continue;
            };
            let is_data = Suffix::ALL.iter().any(|s| name.ends_with(s.text()));
            let Some(data) = name.strip_suffix(SIDECAR) else {
                // A data file is found by its sidecar.
                match () {
                    () if is_temporary(name) => found.refused.add(Refusal::Temporary),
                    () if !is_data => found.refused.add(Refusal::Foreign),
                    () if !has(&format!("{name}{SIDECAR}")) => found.refused.add(Refusal::Half),
                    () => {}
                }
                continue;
            };
            let path = dir.join(data);
            match ClassicName::parse(&path).and_then(|(name, suffix)| self.look(&name, suffix)) {
                Ok(object) => found.objects.push((path, object)),
                Err(why) => {
                    tracing::debug!(path = %path.display(), reason = why.name(), "passed over");
                    found.refused.add(why);
                }
            }
        }
    }
}

#[derive(Default)]
struct Found {
    objects: Vec<(PathBuf, GdsObject)>,
    refused: Refused,
}

struct Work {
    /// Directories that nobody has begun, and how many are being read.
    dirs: Mutex<(VecDeque<PathBuf>, usize)>,
    idle: Condvar,
    found: Mutex<Found>,
}

impl Work {
    fn drain<D: Disk>(&self, of: &GdsDir<D>) {
        let next = || {
            let mut dirs = self.dirs.lock();
            let dir = dirs.0.pop_front()?;
            dirs.1 += 1;
            Some((dir, Reading(self)))
        };
        while let Some((dir, _reading)) = next() {
            let mut found = Found::default();
            of.top(&dir, &mut found);
            let mut all = self.found.lock();
            all.objects.append(&mut found.objects);
            all.refused.merge(&found.refused);
        }
    }
}

/// Counts as being read, also when reading panics.
struct Reading<'a>(&'a Work);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.dirs.lock().1 -= 1;
        self.0.idle.notify_all();
    }
}

fn sorted<D: Disk>(disk: &D, dir: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = disk.list(dir)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn scan_failed(e: io::Error, root: &Path) -> Error {
    Error::io("scan LMCache's directory", e).with("path", root.display())
}
