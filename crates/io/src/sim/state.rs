//! The running state of a simulated disk: what the calls of a [`Disk`](crate::Disk) do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{Error, Result};
use std::path::{Component, Path};
use std::time::{Duration, SystemTime};

use super::bytes::BLOCK;
use super::tree::{Body, Change, Fate, Ino, ROOT, Slot, Tree};
use crate::{DirEntry, FileKind, Meta};

/// An errno as an error.
pub(super) fn errno(code: i32) -> Error {
    Error::from_raw_os_error(code)
}

/// A file's advisory lock: nobody's, one handle's, or shared by several.
#[derive(Clone, Debug, Default)]
struct Lock {
    owners: BTreeSet<u64>,
    shared: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) tree: Tree,
    /// What was durable before the first recorded change.
    pub(super) base: Tree,
    /// How many changes that took.
    pub(super) before: u64,
    pub(super) log: Vec<Change>,
    record: bool,
    /// Changes ever made. It stands in for the clock: the simulated disk has none.
    changes: u64,
    next: Ino,
    /// Blocks taken, and the most there may be.
    taken: u64,
    capacity: u64,
    /// Open files by number: how many handles, and which of them have the lock.
    open: BTreeMap<Ino, (usize, Lock)>,
    /// Files that only their handles keep.
    unnamed: BTreeSet<Ino>,
    handles: u64,
}

impl State {
    /// A disk that holds this, durably.
    pub(super) fn new(tree: Tree, capacity: u64, record: bool) -> Self {
        let next = tree.nodes.last_key_value().map_or(ROOT, |(ino, _)| *ino) + 1;
        let changes = tree.nodes.values().map(|n| n.changed).max().unwrap_or(0);
        let taken = tree.nodes.keys().map(|ino| tree.file(*ino).map_or(0, |b| b.taken())).sum();
        Self {
            base: tree.clone(),
            before: changes,
            tree,
            log: Vec::new(),
            record,
            changes,
            next,
            taken,
            capacity: capacity / BLOCK as u64,
            open: BTreeMap::new(),
            unnamed: BTreeSet::new(),
            handles: 0,
        }
    }

    fn apply(&mut self, change: Change) {
        self.changes += 1;
        let of = match &change {
            Change::Write { ino, .. } | Change::SetLen { ino, .. } | Change::Reserve { ino, .. } => {
                Some(*ino)
            }
            _ => None,
        };
        let taken = |tree: &Tree| of.and_then(|ino| tree.file(ino)).map_or(0, |b| b.taken());
        let before = taken(&self.tree);
        self.tree.apply(&change, self.changes, &Fate::Kept, BLOCK as u64);
        self.taken = self.taken + taken(&self.tree) - before;
        if self.record {
            self.log.push(change);
        }
    }

    /// Everything so far is durable from now on, and no crash goes back behind it.
    pub(super) fn checkpoint(&mut self) {
        self.base = self.tree.clone();
        self.before = self.changes;
        self.log.clear();
    }

    pub(super) fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.taken)
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The directory and the name that a path ends in; no name for `/` itself. Relative paths start at `/` too.
    fn walk(&self, path: &Path) -> Result<(Ino, Option<OsString>)> {
        let mut dir = ROOT;
        let mut name: Option<OsString> = None;
        for part in path.components() {
            let part = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(part) => part.to_owned(),
                // There are no links, so nobody needs it, and it would make two spellings of one file.
                Component::ParentDir | Component::Prefix(_) => return Err(errno(libc::EINVAL)),
            };
            if part.len() > 255 {
                return Err(errno(libc::ENAMETOOLONG));
            }
            if let Some(name) = name.replace(part) {
                dir = self.enter(dir, name)?;
            }
        }
        Ok((dir, name))
    }

    fn enter(&self, dir: Ino, name: OsString) -> Result<Ino> {
        let ino = self.tree.get(&Slot { dir, name }).ok_or_else(|| errno(libc::ENOENT))?;
        if self.is_dir(ino) { Ok(ino) } else { Err(errno(libc::ENOTDIR)) }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.tree.dir(ino).is_some()
    }

    fn slot(&self, path: &Path) -> Result<Slot> {
        let (dir, name) = self.walk(path)?;
        Ok(Slot { dir, name: name.ok_or_else(|| errno(libc::EBUSY))? })
    }

    /// What is at a path.
    pub(super) fn find(&self, path: &Path) -> Result<Ino> {
        match self.walk(path)? {
            (dir, None) => Ok(dir),
            (dir, Some(name)) => self.tree.get(&Slot { dir, name }).ok_or_else(|| errno(libc::ENOENT)),
        }
    }

    fn create(&mut self, at: Slot, kind: FileKind) -> Ino {
        let ino = self.next;
        self.next += 1;
        self.apply(Change::Create { at, ino, kind });
        ino
    }

    pub(super) fn create_file(&mut self, path: &Path) -> Result<Ino> {
        let (dir, name) = self.walk(path)?;
        let name = name.ok_or_else(|| errno(libc::EEXIST))?;
        let at = Slot { dir, name };
        if self.tree.get(&at).is_some() {
            return Err(errno(libc::EEXIST));
        }
        Ok(self.create(at, FileKind::File))
    }

    /// A new handle of an existing file; its number.
    pub(super) fn open(&mut self, ino: Ino) -> u64 {
        self.handles += 1;
        self.open.entry(ino).or_default().0 += 1;
        self.handles
    }

    pub(super) fn close(&mut self, ino: Ino, handle: u64) {
        if let Some((handles, lock)) = self.open.get_mut(&ino) {
            *handles -= 1;
            lock.owners.remove(&handle);
            if *handles == 0 {
                self.open.remove(&ino);
                self.reap(ino);
            }
        }
    }

    pub(super) fn lock(&mut self, ino: Ino, handle: u64) -> Result<()> {
        let (_, lock) = self.open.entry(ino).or_default();
        if lock.owners.iter().any(|owner| *owner != handle) {
            return Err(errno(libc::EWOULDBLOCK));
        }
        *lock = Lock { owners: [handle].into(), shared: false };
        Ok(())
    }

    pub(super) fn lock_shared(&mut self, ino: Ino, handle: u64) -> Result<()> {
        let (_, lock) = self.open.entry(ino).or_default();
        if !lock.shared && lock.owners.iter().any(|owner| *owner != handle) {
            return Err(errno(libc::EWOULDBLOCK));
        }
        lock.owners.insert(handle);
        lock.shared = true;
        Ok(())
    }

    /// Gives the space of a file back that has neither a name nor a handle.
    fn reap(&mut self, ino: Ino) {
        if !self.open.contains_key(&ino) && self.unnamed.remove(&ino) {
            self.taken -= self.tree.file(ino).map_or(0, |b| b.taken());
            self.tree.nodes.remove(&ino);
        }
    }

    /// The last name of a file or directory is gone: there are no second ones here.
    fn unname(&mut self, ino: Ino) {
        self.unnamed.insert(ino);
        self.reap(ino);
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> Result<()> {
        let (mut dir, mut names) = (ROOT, path.components().peekable());
        while let Some(part) = names.next() {
            let name = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name.to_owned(),
                Component::ParentDir | Component::Prefix(_) => return Err(errno(libc::EINVAL)),
            };
            if name.len() > 255 {
                return Err(errno(libc::ENAMETOOLONG));
            }
            let at = Slot { dir, name };
            dir = match self.tree.get(&at) {
                Some(ino) if self.is_dir(ino) => ino,
                Some(_) if names.peek().is_none() => return Err(errno(libc::EEXIST)),
                Some(_) => return Err(errno(libc::ENOTDIR)),
                None => self.create(at, FileKind::Dir),
            };
        }
        Ok(())
    }

    /// The order of the checks is the kernel's, so that the same mistakes get the same answers.
    pub(super) fn rename(&mut self, from: &Path, to: &Path, replace: bool) -> Result<()> {
        let (from, to) = (self.slot(from)?, self.slot(to)?);
        let ino = self.tree.get(&from).ok_or_else(|| errno(libc::ENOENT))?;
        let old = self.tree.get(&to);
        let dir = self.is_dir(ino);
        if old.is_some() && !replace {
            return Err(errno(libc::EEXIST));
        }
        if dir && self.inside(to.dir, ino) {
            return Err(errno(libc::EINVAL));
        }
        if let Some(old) = old {
            if self.inside(from.dir, old) {
                return Err(errno(libc::ENOTEMPTY));
            }
            if old == ino {
                return Ok(());
            }
            match (dir, self.tree.dir(old)) {
                (true, None) => return Err(errno(libc::ENOTDIR)),
                (false, Some(_)) => return Err(errno(libc::EISDIR)),
                (true, Some(entries)) if !entries.is_empty() => return Err(errno(libc::ENOTEMPTY)),
                _ => {}
            }
        }
        self.apply(Change::Rename { from, to, ino, dir });
        if let Some(old) = old {
            self.unname(old);
        }
        Ok(())
    }

    /// Whether `dir` is `top` or lies below it.
    fn inside(&self, dir: Ino, top: Ino) -> bool {
        dir == top
            || self.tree.dir(top).is_some_and(|entries| {
                entries.values().any(|ino| self.is_dir(*ino) && self.inside(dir, *ino))
            })
    }

    pub(super) fn remove(&mut self, path: &Path, dir: bool) -> Result<()> {
        let at = match self.slot(path) {
            // `/` itself.
            Err(e) if !dir && e.raw_os_error() == Some(libc::EBUSY) => return Err(errno(libc::EISDIR)),
            at => at?,
        };
        let ino = self.tree.get(&at).ok_or_else(|| errno(libc::ENOENT))?;
        match self.tree.dir(ino) {
            Some(_) if !dir => return Err(errno(libc::EISDIR)),
            None if dir => return Err(errno(libc::ENOTDIR)),
            Some(entries) if !entries.is_empty() => return Err(errno(libc::ENOTEMPTY)),
            _ => {}
        }
        self.apply(Change::Remove { at, ino, dir });
        self.unname(ino);
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let entries = self.tree.dir(self.find(path)?).ok_or_else(|| errno(libc::ENOTDIR))?;
        let kind = |ino| if self.is_dir(ino) { FileKind::Dir } else { FileKind::File };
        Ok(entries.iter().map(|(name, ino)| DirEntry { name: name.clone(), kind: kind(*ino) }).collect())
    }

    pub(super) fn meta(&self, ino: Ino) -> Result<Meta> {
        let node = self.tree.nodes.get(&ino).ok_or_else(|| errno(libc::ENOENT))?;
        let (kind, len, blocks) = match &node.body {
            Body::File(bytes) => (FileKind::File, bytes.len(), bytes.taken()),
            Body::Dir(_) => (FileKind::Dir, BLOCK as u64, 1),
        };
        // One millisecond for each change: later changes have later times, and equal runs have equal ones.
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_000 + node.changed);
        Ok(Meta { len, allocated: blocks * BLOCK as u64, kind, modified, inode: ino })
    }

    /// Writes what the free space allows: how many bytes, of at least one.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<usize> {
        let file = self.tree.file(ino).ok_or_else(|| errno(libc::EBADF))?;
        let n = file.fits(offset, bytes.len(), self.free());
        if n == 0 && !bytes.is_empty() {
            return Err(errno(libc::ENOSPC));
        }
        self.apply(Change::Write { ino, offset, bytes: bytes[..n].into() });
        Ok(n)
    }

    pub(super) fn set_len(&mut self, ino: Ino, len: u64) -> Result<()> {
        if len > i64::MAX as u64 {
            return Err(errno(libc::EINVAL));
        }
        self.apply(Change::SetLen { ino, len });
        Ok(())
    }

    pub(super) fn allocate(&mut self, ino: Ino, len: u64) -> Result<()> {
        let file = self.tree.file(ino).ok_or_else(|| errno(libc::EBADF))?;
        if file.missing(len) > self.free() {
            return Err(errno(libc::ENOSPC));
        }
        self.apply(Change::Reserve { ino, len });
        Ok(())
    }

    pub(super) fn sync(&mut self, ino: Ino) {
        self.apply(Change::Sync { ino });
    }
}
