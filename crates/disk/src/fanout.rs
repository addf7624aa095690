//! The fan-out directories: made when needed, counted, and removed again where they would eat the capacity.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use kvstrata_io::Disk;
use parking_lot::Mutex;

use crate::names::{fan, leaf_path, object_path};

/// How an object's file comes under its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Publish {
    /// Only if nothing is there.
    New,
    /// Instead of what is there.
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Leaf {
    pub(crate) objects: u32,
    /// What the directory itself takes.
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
struct Top {
    /// What the directory itself takes; `None` until it is made.
    bytes: Option<u64>,
    leaves: HashMap<u8, Leaf>,
}

/// The directories of one root. Renames into, and removals from, the directories under one first byte go one after the
/// other, so that the counts are right; loads do not come here.
#[derive(Debug)]
pub(crate) struct Fanout {
    root: PathBuf,
    tops: Vec<Mutex<Top>>,
    /// On file systems whose directories take no blocks, there is nothing to count.
    costs: bool,
    /// Empty directories are removed above this many bytes of directories; they are cheap to keep and dear to remake.
    keep: Grown,
    dir_bytes: AtomicI64,
}

/// What changed in the bytes that directories take.
pub(crate) type Grown = i64;

impl Fanout {
    pub(crate) fn new(root: PathBuf, costs: bool, keep: u64) -> Self {
        let tops = (0..256).map(|_| Mutex::default()).collect();
        let keep = Grown::try_from(keep).unwrap_or(Grown::MAX);
        Self { root, tops, costs, keep, dir_bytes: AtomicI64::new(0) }
    }

    /// The most that publishing this object can add to the directories: both levels (they may be removed as empty just
    /// before), and for a directory that may outgrow its first block, the two blocks by which it becomes a tree (ext4).
    pub(crate) fn slack(&self, fingerprint: &[u8; 32], block: u64) -> u64 {
        /// Names of 67 bytes of which a 4 KiB block surely holds that many.
        const FIRST_BLOCK: u32 = 32;
        if !self.costs {
            return 0;
        }
        let top = self.tops[usize::from(fingerprint[0])].lock();
        let crowded = top.leaves.get(&fingerprint[1]).is_some_and(|leaf| leaf.objects >= FIRST_BLOCK);
        if crowded { 4 * block } else { 2 * block }
    }

    fn bytes_of<D: Disk>(&self, disk: &D, path: &Path) -> io::Result<u64> {
        if self.costs { Ok(disk.metadata(path)?.allocated) } else { Ok(0) }
    }

    /// Tells of directories found at the start; returns what they take.
    pub(crate) fn found_top(&self, top: u8, bytes: u64) -> u64 {
        self.tops[usize::from(top)].lock().bytes = Some(bytes);
        self.count(bytes as Grown);
        bytes
    }

    /// See [`Self::found_top`].
    pub(crate) fn found_leaf(&self, top: u8, leaf: u8, found: Leaf) -> u64 {
        self.tops[usize::from(top)].lock().leaves.insert(leaf, found);
        self.count(found.bytes as Grown);
        found.bytes
    }

    fn count(&self, grown: Grown) {
        self.dir_bytes.fetch_add(grown, Ordering::Relaxed);
    }

    /// The second-level directories under `top`.
    pub(crate) fn leaves(&self, top: u8) -> Vec<(u8, Leaf)> {
        self.tops[usize::from(top)].lock().leaves.iter().map(|(l, i)| (*l, *i)).collect()
    }

    /// Publishes a file. `EEXIST` with [`Publish::New`] changes nothing. Also says whether directories were made.
    pub(crate) fn publish<D: Disk>(
        &self,
        disk: &D,
        from: &Path,
        fingerprint: &[u8; 32],
        how: Publish,
    ) -> (io::Result<bool>, Grown) {
        let [t, l, ..] = *fingerprint;
        let to = object_path(&self.root, fingerprint);
        let mut grown = 0;
        let mut top = self.tops[usize::from(t)].lock();
        let mut publish = || {
            let mut made = top.bytes.is_none() || !top.leaves.contains_key(&l);
            if made {
                disk.create_dir_all(&leaf_path(&self.root, t, l))?;
                let bytes = self.bytes_of(disk, &self.root.join(fan(t)))?;
                grown += bytes as Grown - top.bytes.replace(bytes).unwrap_or(0) as Grown;
            }
            let rename = || match how {
                Publish::New => disk.rename_new(from, &to),
                Publish::Replace => disk.rename(from, &to),
            };
            let mut renamed = rename();
            if let Err(e) = &renamed
                && e.kind() == io::ErrorKind::NotFound
            {
                // Somebody removed the directory.
                disk.create_dir_all(&leaf_path(&self.root, t, l))?;
                made = true;
                renamed = rename();
            }
            let leaf = top.leaves.entry(l).or_default();
            if renamed.is_ok() && how == Publish::New {
                leaf.objects += 1;
            }
            if self.costs {
                let bytes = self.bytes_of(disk, &leaf_path(&self.root, t, l)).unwrap_or(leaf.bytes);
                grown += bytes as Grown - leaf.bytes as Grown;
                leaf.bytes = bytes;
            }
            renamed.map(|()| made)
        };
        let result = publish();
        self.count(grown);
        (result, grown)
    }

    /// Removes an object's file, or moves it to `to`. A file that is gone already is as good as removed.
    pub(crate) fn take_out<D: Disk>(
        &self,
        disk: &D,
        fingerprint: &[u8; 32],
        to: Option<&Path>,
    ) -> (io::Result<()>, Grown) {
        let [t, l, ..] = *fingerprint;
        let from = object_path(&self.root, fingerprint);
        let mut top = self.tops[usize::from(t)].lock();
        let mut done = match to {
            Some(to) => disk.rename_new(&from, to),
            None => disk.unlink(&from),
        };
        if let (Some(to), Err(e)) = (to, &done)
            && e.kind() == io::ErrorKind::NotFound
            && disk.metadata(&from).is_ok()
        {
            // It is where it goes to that is gone.
            done = to.parent().map_or(Ok(()), |dir| disk.create_dir_all(dir));
            done = done.and_then(|()| disk.rename_new(&from, to));
        }
        if let Err(e) = done
            && e.kind() != io::ErrorKind::NotFound
        {
            return (Err(e), 0);
        }
        let Some(leaf) = top.leaves.get_mut(&l) else { return (Ok(()), 0) };
        leaf.objects = leaf.objects.saturating_sub(1);
        let bytes = leaf.bytes;
        if leaf.objects > 0 || bytes == 0 || self.dir_bytes.load(Ordering::Relaxed) <= self.keep {
            return (Ok(()), 0);
        }
        let mut grown = 0;
        // A directory may hold files that are none of ours: then it stays.
        if disk.remove_dir(&leaf_path(&self.root, t, l)).is_ok() {
            top.leaves.remove(&l);
            grown -= bytes as Grown;
            if top.leaves.is_empty() && disk.remove_dir(&self.root.join(fan(t))).is_ok() {
                grown -= top.bytes.take().unwrap_or(0) as Grown;
            }
        }
        self.count(grown);
        (Ok(()), grown)
    }
}
