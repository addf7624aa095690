//! The operating system's files.

mod sys;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::pool::ThreadPool;
use crate::whole::{self, Fill, Spill};
use crate::{DirEntry, Disk, FileKind, IoBuf, IoOp, Meta, Open, Space};

/// How an [`OsDisk`] works.
#[derive(Clone, Debug)]
pub struct OsOptions {
    /// Threads of the engine, at least one. All but one of them may write at the same time.
    pub threads: usize,
    /// The beginning of the threads' names.
    pub thread_name: String,
    /// Rename with `RENAME_NOREPLACE` where the file system can. Off, `rename_new` always makes a second link and removes
    /// the first, as it does where the file system cannot.
    pub rename_noreplace: bool,
}

impl Default for OsOptions {
    fn default() -> Self {
        Self { threads: 4, thread_name: "kvs-io".into(), rename_noreplace: true }
    }
}

/// The file systems of this machine.
#[derive(Debug)]
pub struct OsDisk {
    engine: ThreadPool<OsFile>,
    rename_noreplace: bool,
}

/// An open file of an [`OsDisk`].
#[derive(Debug)]
pub struct OsFile {
    file: File,
    direct: bool,
}

impl OsDisk {
    /// Starts the engine's threads.
    ///
    /// # Errors
    /// `InvalidInput` for no threads; what the system says if it refuses one.
    pub fn new(options: OsOptions) -> Result<Self> {
        let OsOptions { threads, thread_name, rename_noreplace } = options;
        let engine = ThreadPool::new(&thread_name, threads, Box::new(transfer))?;
        Ok(Self { engine, rename_noreplace })
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

fn transfer(op: &mut IoOp<OsFile>) -> Result<usize> {
    match &mut op.buf {
        IoBuf::Read(buf) => op.file.read(op.offset, &mut Fill::buf(buf, op.len)?),
        IoBuf::Write(buf) => op.file.write(op.offset, &Spill::buf(buf, op.len)?).map(|()| op.len),
    }
}

impl Disk for OsDisk {
    type File = OsFile;
    type Engine = ThreadPool<OsFile>;

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
        Ok(OsFile { file, direct: how.direct })
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
        file.file.try_lock().map_err(|e| match e {
            // The standard library keeps the errno to itself.
            TryLockError::WouldBlock => Error::from_raw_os_error(libc::EWOULDBLOCK),
            TryLockError::Error(e) => e,
        })
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
