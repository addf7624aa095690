//! The file-system operations a store needs.

use std::fmt::Debug;
use std::io::Result;
use std::path::Path;
use std::time::SystemTime;

use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::{FsType, IoEngine};

/// How a file is opened. All flags off opens an existing file for reading. A symbolic link is never opened (`ELOOP`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Open {
    /// Writing is allowed too.
    pub write: bool,
    /// The file is made; it must not exist yet (`EEXIST`). Needs `write` (`EINVAL`).
    pub create_new: bool,
    /// Bypass the page cache. Offsets, lengths and addresses are then multiples of the block size. A file system that
    /// cannot do it answers `EINVAL`, and a file that was to be made may then be there all the same.
    pub direct: bool,
    /// Leave the access time alone. Not owning the file makes this fail with `EPERM`.
    pub no_atime: bool,
}

/// What a directory entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A link, socket, device or pipe; none of ours.
    Other,
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name, without the directory.
    pub name: std::ffi::OsString,
    /// What it is.
    pub kind: FileKind,
}

/// The room on the file system under a path, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// The whole file system.
    pub total: u64,
    /// What an unprivileged writer may still take.
    pub available: u64,
    /// The block size that direct I/O and allocation go by.
    pub block: u32,
    /// The kind of file system.
    pub fs: FsType,
}

/// Size and time of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Length in bytes.
    pub len: u64,
    /// Bytes allocated on the device.
    pub allocated: u64,
    /// What it is.
    pub kind: FileKind,
    /// Last modification.
    pub modified: SystemTime,
    /// The file's number in its file system: a file that is open may not be the one that is under its name now.
    pub inode: u64,
}

/// A file system, or something that behaves like one.
///
/// All calls block, and none of them retries or falls back: what the kernel answers is what the caller gets, as an
/// `io::Error` with its errno. Whoever needs a deadline runs them on an [`IoEngine`]'s threads.
///
/// Obligations (tests of the same number run against the real and the simulated disk):
///
/// 1. `rename_new` never replaces: if `to` exists it fails with `EEXIST` and both files stay as they were.
/// 2. `write_all_at` and `read_exact_at` move all bytes or fail; a read past the end is `UnexpectedEof`.
/// 3. After `sync_file` the file's bytes, and after `sync_dir` the directory's names, survive a crash. Nothing else is
///    promised to.
/// 4. `list` names every entry that was there during the whole call.
pub trait Disk: Send + Sync + Debug + 'static {
    /// An open file. Dropping it closes it.
    type File: Send + Sync + Debug + 'static;
    /// What moves payload bytes of this disk's files.
    type Engine: IoEngine<File = Self::File>;

    /// The engine.
    fn engine(&self) -> &Self::Engine;

    /// Opens or makes a file (mode 0600).
    fn open(&self, path: &Path, how: Open) -> Result<Self::File>;
    /// Makes a directory and its missing parents (mode 0700).
    fn create_dir_all(&self, path: &Path) -> Result<()>;
    /// Renames within the file system, replacing `to`.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Renames within the file system unless `to` exists (`EEXIST`).
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> Result<()>;
    /// The entries of a directory, in no order, without `.` and `..`.
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>>;
    /// Size and time of what is at `path`; links are not followed.
    fn metadata(&self, path: &Path) -> Result<Meta>;
    /// The room on the file system that holds `path`.
    fn space(&self, path: &Path) -> Result<Space>;
    /// Makes a directory's names durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;

    /// Reads exactly `buf.len()` bytes.
    fn read_exact_at(&self, file: &Self::File, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Writes all of `buf`.
    fn write_all_at(&self, file: &Self::File, offset: u64, buf: &[u8]) -> Result<()>;
    /// Reads up to `len` bytes (at most the buffer's capacity) to the start of `buf`; how many there were.
    fn read_buf_at(&self, file: &Self::File, offset: u64, buf: &mut WriteBuf, len: usize) -> Result<usize>;
    /// Writes the first `len` bytes of `buf` (at most its capacity).
    fn write_buf_at(&self, file: &Self::File, offset: u64, buf: &ReadBuf, len: usize) -> Result<()>;
    /// Sets the file's length.
    fn set_len(&self, file: &Self::File, len: u64) -> Result<()>;
    /// Sets blocks aside for the first `len` bytes, so that writes there cannot run out of space. The file's length stays.
    fn allocate(&self, file: &Self::File, len: u64) -> Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync_file(&self, file: &Self::File) -> Result<()>;
    /// Size and time of an open file.
    fn file_metadata(&self, file: &Self::File) -> Result<Meta>;
    /// Takes an exclusive advisory lock that ends with the file; `WouldBlock` if somebody has it.
    fn try_lock(&self, file: &Self::File) -> Result<()>;
    /// Takes an advisory lock that others may have at the same time, but not together with an exclusive one; `WouldBlock` if
    /// somebody has that. Like it, it ends with the file.
    fn try_lock_shared(&self, file: &Self::File) -> Result<()>;
}
