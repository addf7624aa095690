//! The operating system's files.

mod engine;
mod sys;
mod uring;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use kvstrata_core::{Clock, SystemClock};
use kvstrata_mem::{Allocate, ReadBuf, WriteBuf};

pub use self::engine::{EngineKind, OsEngine};
use self::uring::Seat;
use crate::whole::{self, Fill, Spill};
use crate::{DirEntry, Disk, FileKind, Meta, Open, Space};

/// How an [`OsDisk`] works.
#[derive(Clone, Debug)]
pub struct OsOptions {
    /// What moves payload bytes.
    pub engine: EngineKind,
    /// Threads of the engine, at least one. All but one of them may write at the same time.
    pub threads: usize,
    /// The most transfers that a ring has under way at once, 1 to 4096; it has fewer as the budget says.
    pub depth: u32,
    /// Where buffers come from: a ring registers that memory, so that the kernel need not look its pages up each time.
    pub memory: Option<Arc<dyn Allocate>>,
    /// What tells a ring how long transfers take.
    pub clock: Arc<dyn Clock>,
    /// The beginning of the threads' names.
    pub thread_name: String,
    /// Rename with `RENAME_NOREPLACE` where the file system can. Off, `rename_new` always makes a second link and removes
    /// the first, as it does where the file system cannot.
    pub rename_noreplace: bool,
}

impl Default for OsOptions {
    fn default() -> Self {
        Self {
            engine: EngineKind::Auto,
            threads: 4,
            depth: 256,
            memory: None,
            clock: Arc::new(SystemClock::start()),
            thread_name: "kvs-io".into(),
            rename_noreplace: true,
        }
    }
}

/// The file systems of this machine.
#[derive(Debug)]
pub struct OsDisk {
    engine: OsEngine,
    rename_noreplace: bool,
}

/// An open file of an [`OsDisk`].
#[derive(Debug)]
pub struct OsFile {
    file: File,
    direct: bool,
    seat: Seat,
    locked: AtomicBool,
}

impl OsDisk {
    /// Starts the engine's threads.
    ///
    /// # Errors
    /// `InvalidInput` for no threads or a depth out of range; what the system says if it refuses a thread.
    pub fn new(options: OsOptions) -> Result<Self> {
        let rename_noreplace = options.rename_noreplace;
        Ok(Self { engine: OsEngine::new(options)?, rename_noreplace })
    }
}

impl AsFd for OsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl OsFile {
    fn read(&self, offset: u64, to: &mut Fill<'_>) -> Result<usize> {
        sys::check_range(offset, to.len())?;
        whole::read(to, self.direct, |to, at| sys::read_some(&self.file, offset, to, at))
    }

    fn write(&self, offset: u64, from: &Spill<'_>) -> Result<()> {
        sys::check_range(offset, from.len())?;
        whole::write(from, self.direct, |from, at| sys::write_some(&self.file, offset, from, at))
    }
}

impl OsFile {
    fn locked(&self, locked: std::result::Result<(), TryLockError>) -> Result<()> {
        locked.map_err(|e| match e {
            // The standard library keeps the errno to itself.
            TryLockError::WouldBlock => Error::from_raw_os_error(libc::EWOULDBLOCK),
            TryLockError::Error(e) => e,
        })?;
        self.locked.store(true, Relaxed);
        Ok(())
    }
}

/// A lock is the open file's, which a ring may keep open for a moment longer.
impl Drop for OsFile {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            drop(self.file.unlock());
        }
    }
}

impl Disk for OsDisk {
    type File = OsFile;
    type Engine = OsEngine;

    fn engine(&self) -> &Self::Engine {
        &self.engine
    }

    fn open(&self, path: &Path, how: Open) -> Result<OsFile> {
        if how.create_new && !how.write {
            return Err(Error::from_raw_os_error(libc::EINVAL));
        }
        let mut flags = libc::O_NOFOLLOW;
        if how.direct {
            flags |= libc::O_DIRECT;
        }
        if how.no_atime {
            flags |= libc::O_NOATIME;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(how.write)
            .create_new(how.create_new)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)?;
        Ok(OsFile { file, direct: how.direct, seat: Seat::default(), locked: AtomicBool::new(false) })
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        let refused = match self.rename_noreplace.then(|| sys::rename_noreplace(from, to)) {
            // The file system does not know the flag (EINVAL), or the kernel does not know the call.
            Some(Err(e)) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => Some(e),
            Some(done) => return done,
            None => None,
        };
        std::fs::hard_link(from, to).map_err(|e| match refused {
            // Directories have no second links, nor has any file on some file systems: the first answer says more.
            Some(refused) if e.raw_os_error() == Some(libc::EPERM) => refused,
            _ => e,
        })?;
        match std::fs::remove_file(from) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                // A failed rename must not leave anything to be found: `to` is the link we made just now.
                drop(std::fs::remove_file(to));
                Err(e)
            }
            _ => Ok(()),
        }
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        std::fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            match entry.file_type() {
                Ok(t) => entries.push(DirEntry { name: entry.file_name(), kind: kind(t) }),
                // A file system that does not list kinds has to be asked, and the entry may be gone by then.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(entries)
    }

    fn metadata(&self, path: &Path) -> Result<Meta> {
        std::fs::symlink_metadata(path).and_then(|m| meta(&m))
    }

    fn space(&self, path: &Path) -> Result<Space> {
        sys::space(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all()
    }

    fn read_exact_at(&self, file: &OsFile, offset: u64, buf: &mut [u8]) -> Result<()> {
        sys::check_range(offset, buf.len())?;
        whole::read_exact(&mut Fill::slice(buf), file.direct, |to, at| {
            sys::read_some(&file.file, offset, to, at)
        })
    }

    fn write_all_at(&self, file: &OsFile, offset: u64, buf: &[u8]) -> Result<()> {
        file.write(offset, &Spill::slice(buf))
    }

    fn read_buf_at(&self, file: &OsFile, offset: u64, buf: &mut WriteBuf, len: usize) -> Result<usize> {
        file.read(offset, &mut Fill::buf(buf, len)?)
    }

    fn write_buf_at(&self, file: &OsFile, offset: u64, buf: &ReadBuf, len: usize) -> Result<()> {
        file.write(offset, &Spill::buf(buf, len)?)
    }

    fn set_len(&self, file: &OsFile, len: u64) -> Result<()> {
        file.file.set_len(len)
    }

    fn allocate(&self, file: &OsFile, len: u64) -> Result<()> {
        sys::allocate(&file.file, len)
    }

    fn sync_file(&self, file: &OsFile) -> Result<()> {
        file.file.sync_data()
    }

    fn file_metadata(&self, file: &OsFile) -> Result<Meta> {
        file.file.metadata().and_then(|m| meta(&m))
    }

    fn try_lock(&self, file: &OsFile) -> Result<()> {
        file.locked(file.file.try_lock())
    }

    fn try_lock_shared(&self, file: &OsFile) -> Result<()> {
        file.locked(file.file.try_lock_shared())
    }
}

fn kind(t: std::fs::FileType) -> FileKind {
    if t.is_file() {
        FileKind::File
    } else if t.is_dir() {
        FileKind::Dir
    } else {
        FileKind::Other
    }
}

fn meta(m: &std::fs::Metadata) -> Result<Meta> {
    // `st_blocks` counts 512 bytes whatever the file system's blocks are.
    Ok(Meta {
        len: m.len(),
        allocated: m.blocks() * 512,
        kind: kind(m.file_type()),
        modified: m.modified()?,
        inode: m.ino(),
    })
}
