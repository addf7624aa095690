//! A disk in memory that can crash, fail, hang and lie, by plan.

mod bytes;
mod crash;
mod engine;
mod fault;
mod rng;
mod state;
mod tree;

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_mem::{ReadBuf, WriteBuf};
use parking_lot::Mutex;

pub use crash::{Crash, CrashImage, CrashImages, CrashOptions};
pub use engine::{SimEngine, SimMode};
pub use fault::{Fault, Faults, Fired, Hook, OpInfo, OpKind, Rule};

use crate::whole::{self, Fill, Spill};
use crate::{DirEntry, Disk, FsType, IoBuf, IoOp, Meta, Open, Space};
use bytes::BLOCK;
use state::{State, errno};
use tree::{Ino, Tree};

/// What a simulated disk is like.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Room for files, in bytes; whole 4 KiB blocks count, names are free.
    pub capacity: u64,
    /// What offsets, lengths and addresses of direct transfers are multiples of: a power of two, at most 4096.
    pub align: u32,
    /// Whether files can be opened for direct transfers.
    pub direct: bool,
    /// Whether the access time may be left alone. Off, `no_atime` gets `EPERM`.
    pub no_atime: bool,
    /// The kind of file system it passes itself off as.
    pub fs: FsType,
    /// Whether changes are recorded, so that crash images can be made. What was written then stays in memory until the
    /// next [`SimDisk::checkpoint`].
    pub record: bool,
    /// Who carries out submitted work.
    pub mode: SimMode,
}

impl Default for SimOptions {
    /// 1 TiB of ext4 with direct transfers in 512 bytes, recorded, carried out inline.
    fn default() -> Self {
        Self {
            capacity: 1 << 40,
            align: 512,
            direct: true,
            no_atime: true,
            fs: FsType::by_name("ext4").expect("a known kind"),
            record: true,
            mode: SimMode::Inline,
        }
    }
}

/// A simulated disk: a file system in memory.
///
/// It tells apart what is durable and what is not: [`crash_images`](Self::crash_images) are the disks that a loss of
/// power may leave. A file's bytes are durable after `sync_file`, a name after `sync_dir` of its directory, and nothing
/// else is; what is not may be there, or not, or in part. Renames happen as a whole, and changes to one name or one
/// file's names keep their order.
///
/// Nothing is random but by seed, and there is no clock: times count changes. Copies of the value are handles of one
/// disk. Paths start at `/` and have no `..`; there are no links and no permissions.
///
/// ```
/// use std::path::Path;
/// use kvstrata_io::{Crash, Disk, Open, SimDisk};
///
/// let disk = SimDisk::default();
/// let new = Open { write: true, create_new: true, ..Open::default() };
/// let file = disk.open(Path::new("/object"), new)?;
/// disk.write_all_at(&file, 0, b"keys and values")?;
/// disk.sync_dir(Path::new("/"))?;
///
/// let found = disk.crash(Crash::Lose);
/// assert_eq!(found.metadata(Path::new("/object"))?.len, 0, "its name was synced, its bytes were not");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimDisk {
    shared: Arc<Shared>,
    engine: Arc<SimEngine>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    faults: Arc<Faults>,
    options: SimOptions,
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    shared: Arc<Shared>,
    path: PathBuf,
    ino: Ino,
    handle: u64,
    write: bool,
    direct: bool,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new(SimOptions::default())
    }
}

impl SimDisk {
    /// An empty disk.
    ///
    /// # Panics
    /// If `align` is no power of two up to 4096, or the engine's threads cannot be had.
    pub fn new(options: SimOptions) -> Self {
        Self::over(Tree::new(), options)
    }

    fn over(tree: Tree, options: SimOptions) -> Self {
        assert!(
            options.align.is_power_of_two() && options.align as usize <= BLOCK,
            "{} bytes",
            options.align
        );
        let faults = Arc::new(Faults::default());
        let engine = Arc::new(SimEngine::new(options.mode, Arc::clone(&faults)));
        let state = Mutex::new(State::new(tree, options.capacity, options.record));
        Self { shared: Arc::new(Shared { state, faults, options }), engine }
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Operations that hang now, on threads or set aside.
    pub fn hanging(&self) -> usize {
        self.shared.faults.hanging() + self.engine.parked()
    }

    /// Removes the rules that make operations hang, and goes on with those that do.
    pub fn release(&self) {
        self.shared.faults.release();
        self.engine.unpark();
    }

    /// How many changes and syncs are recorded: what happened up to now is behind [`CrashImage::after`] this number.
    pub fn recorded(&self) -> usize {
        self.shared.state.lock().log.len()
    }

    /// Makes everything so far durable, and forgets how it came about.
    pub fn checkpoint(&self) {
        self.shared.state.lock().checkpoint();
    }

    /// The disk that is found if the power fails now. This one goes on.
    ///
    /// # Panics
    /// If changes are not recorded.
    pub fn crash(&self, crash: Crash) -> Self {
        self.crash_images(CrashOptions { window: 0, samples: 0, ..CrashOptions::default() }).now(crash)
    }

    /// The disks that may be found if the power fails at any moment since the start or the last checkpoint.
    ///
    /// # Panics
    /// If changes are not recorded.
    pub fn crash_images(&self, options: CrashOptions) -> CrashImages {
        assert!(self.shared.options.record, "crash images need `SimOptions::record`");
        let state = self.shared.state.lock();
        let base = (state.base.clone(), state.before);
        CrashImages::new(base, state.log.clone(), options, self.shared.options.clone())
    }
}

/// What is to be done with an operation that has been looked at.
enum Go {
    /// Carry it out; of a transfer, at most so many bytes, and flip this bit.
    On { most: usize, flip: Option<u64> },
    /// Say that it was.
    Skip,
}

impl Shared {
    fn ask(&self, kind: OpKind, path: &Path) -> Result<Go> {
        self.look(OpInfo { kind, path, to: None, offset: 0, len: 0 }, false)
    }

    /// Lets faults have their way. With `park` an operation that hangs fails instead.
    fn look(&self, op: OpInfo<'_>, park: bool) -> Result<Go> {
        let go = Go::On { most: usize::MAX, flip: None };
        match self.faults.decide(&op) {
            None => Ok(go),
            Some((Fault::Errno(code), _)) => Err(errno(code)),
            Some((Fault::Short(n), _)) => Ok(Go::On { most: n, flip: None }),
            Some((Fault::FlipBit(bit), _)) => Ok(Go::On { most: usize::MAX, flip: Some(bit) }),
            Some((Fault::Skip, _)) => Ok(Go::Skip),
            Some((Fault::Hang, _)) if park => Err(engine::put_off()),
            Some((Fault::Hang, releases)) => {
                self.faults.hang(releases);
                Ok(go)
            }
        }
    }

    /// Carries a change out unless a fault is in the way.
    fn change(&self, op: OpInfo<'_>, f: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        match self.look(op, false)? {
            Go::Skip => Ok(()),
            Go::On { .. } => f(&mut self.state.lock()),
        }
    }
}

impl SimFile {
    fn info(&self, kind: OpKind, offset: u64, len: usize) -> OpInfo<'_> {
        OpInfo { kind, path: &self.path, to: None, offset, len }
    }

    fn change(&self, kind: OpKind, f: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        self.shared.change(self.info(kind, 0, 0), f)
    }

    fn aligned(&self, offset: u64, len: usize, address: usize) -> Result<()> {
        let align = self.shared.options.align as usize;
        let odd = !(offset as usize | len | address).is_multiple_of(align);
        if self.direct && odd { Err(errno(libc::EINVAL)) } else { Ok(()) }
    }

    fn read_some(&self, offset: u64, to: &mut Fill<'_>, at: usize, park: bool) -> Result<usize> {
        let (offset, len) = (offset + at as u64, to.len() - at);
        let (most, flip) = match self.shared.look(self.info(OpKind::Read, offset, len), park)? {
            Go::On { most, flip } => (most, flip),
            Go::Skip => return Ok(len),
        };
        self.aligned(offset, len, to.at(at).as_ptr().addr())?;
        let state = self.shared.state.lock();
        let bytes = state.tree.file(self.ino).ok_or_else(|| errno(libc::EISDIR))?;
        let len = len.min(most);
        // The file may end before the asked-for bytes do: the bit is counted around those that there are.
        let there = bytes.len().saturating_sub(offset).min(len as u64);
        let flip = flip.filter(|_| there > 0).map(|bit| bit % (there * 8));
        let n = bytes.read(offset, len, |place, piece| {
            to.put(at + place, piece);
            if let Some(bit) = flip
                && let Some(byte) = ((bit / 8) as usize).checked_sub(place)
                && byte < piece.len()
            {
                to.put(at + place + byte, &[piece[byte] ^ 1 << (bit % 8)]);
            }
        });
        Ok(n)
    }

    fn write_some(&self, offset: u64, from: &Spill<'_>, at: usize, park: bool) -> Result<usize> {
        let (offset, len) = (offset + at as u64, from.len() - at);
        let most = match self.shared.look(self.info(OpKind::Write, offset, len), park)? {
            Go::On { most, .. } => most,
            Go::Skip => return Ok(len),
        };
        if !self.write {
            return Err(errno(libc::EBADF));
        }
        self.aligned(offset, len, from.at(at).as_ptr().addr())?;
        let mut bytes = vec![0; len.min(most)];
        from.get(at, &mut bytes);
        self.shared.state.lock().write(self.ino, offset, &bytes)
    }

    fn read(&self, offset: u64, to: &mut Fill<'_>, park: bool) -> Result<usize> {
        check_range(offset, to.len())?;
        whole::read(to, self.direct, |to, at| self.read_some(offset, to, at, park))
    }

    fn write(&self, offset: u64, from: &Spill<'_>, park: bool) -> Result<()> {
        check_range(offset, from.len())?;
        whole::write(from, self.direct, |from, at| self.write_some(offset, from, at, park))
    }
}

fn check_range(offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(errno(libc::EINVAL)),
    }
}

/// Carries a transfer out. With `park`, one that hangs is put off: it starts anew later.
fn transfer(op: &mut IoOp<SimFile>, park: bool) -> Option<Result<usize>> {
    let file = Arc::clone(&op.file);
    let result = match &mut op.buf {
        IoBuf::Read(buf) => Fill::buf(buf, op.len).and_then(|mut to| file.read(op.offset, &mut to, park)),
        IoBuf::Write(buf) => {
            Spill::buf(buf, op.len).and_then(|from| file.write(op.offset, &from, park)).map(|()| op.len)
        }
    };
    let put_off = |e: &Error| park && e.kind() == ErrorKind::WouldBlock && e.raw_os_error().is_none();
    if result.as_ref().is_err_and(put_off) { None } else { Some(result) }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.shared.state.lock().close(self.ino, self.handle);
    }
}

impl Disk for SimDisk {
    type File = SimFile;
    type Engine = SimEngine;

    fn engine(&self) -> &SimEngine {
        &self.engine
    }

    fn open(&self, path: &Path, how: Open) -> Result<SimFile> {
        let Open { write, create_new, direct, no_atime } = how;
        self.shared.ask(OpKind::Open, path)?;
        let options = &self.shared.options;
        if create_new && !write {
            return Err(errno(libc::EINVAL));
        }
        let mut state = self.shared.state.lock();
        let ino = if create_new { state.create_file(path)? } else { state.find(path)? };
        if write && state.tree.dir(ino).is_some() {
            return Err(errno(libc::EISDIR));
        }
        if no_atime && !options.no_atime {
            return Err(errno(libc::EPERM));
        }
        // As Linux does it, this comes to light after the file was made.
        if direct && !options.direct {
            return Err(errno(libc::EINVAL));
        }
        let handle = state.open(ino);
        drop(state);
        Ok(SimFile { shared: Arc::clone(&self.shared), path: path.to_owned(), ino, handle, write, direct })
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::CreateDir, path, to: None, offset: 0, len: 0 };
        self.shared.change(op, |s| s.create_dir_all(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::Rename, path: from, to: Some(to), offset: 0, len: 0 };
        self.shared.change(op, |s| s.rename(from, to, true))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::RenameNew, path: from, to: Some(to), offset: 0, len: 0 };
        self.shared.change(op, |s| s.rename(from, to, false))
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::Unlink, path, to: None, offset: 0, len: 0 };
        self.shared.change(op, |s| s.remove(path, false))
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::RemoveDir, path, to: None, offset: 0, len: 0 };
        self.shared.change(op, |s| s.remove(path, true))
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>> {
        self.shared.ask(OpKind::List, path)?;
        self.shared.state.lock().list(path)
    }

    fn metadata(&self, path: &Path) -> Result<Meta> {
        self.shared.ask(OpKind::Metadata, path)?;
        let state = self.shared.state.lock();
        state.meta(state.find(path)?)
    }

    fn space(&self, path: &Path) -> Result<Space> {
        self.shared.ask(OpKind::Space, path)?;
        let state = self.shared.state.lock();
        state.find(path)?;
        Ok(Space {
            total: state.capacity() * BLOCK as u64,
            available: state.free() * BLOCK as u64,
            block: BLOCK as u32,
            fs: self.shared.options.fs,
        })
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let op = OpInfo { kind: OpKind::SyncDir, path, to: None, offset: 0, len: 0 };
        self.shared.change(op, |s| {
            let ino = s.find(path)?;
            s.tree.dir(ino).ok_or_else(|| errno(libc::ENOTDIR))?;
            s.sync(ino);
            Ok(())
        })
    }

    fn read_exact_at(&self, file: &SimFile, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len())?;
        let mut to = Fill::slice(buf);
        whole::read_exact(&mut to, file.direct, |to, at| file.read_some(offset, to, at, false))
    }

    fn write_all_at(&self, file: &SimFile, offset: u64, buf: &[u8]) -> Result<()> {
        file.write(offset, &Spill::slice(buf), false)
    }

    fn read_buf_at(&self, file: &SimFile, offset: u64, buf: &mut WriteBuf, len: usize) -> Result<usize> {
        file.read(offset, &mut Fill::buf(buf, len)?, false)
    }

    fn write_buf_at(&self, file: &SimFile, offset: u64, buf: &ReadBuf, len: usize) -> Result<()> {
        file.write(offset, &Spill::buf(buf, len)?, false)
    }

    fn set_len(&self, file: &SimFile, len: u64) -> Result<()> {
        file.change(OpKind::SetLen, |s| {
            if file.write { s.set_len(file.ino, len) } else { Err(errno(libc::EINVAL)) }
        })
    }

    fn allocate(&self, file: &SimFile, len: u64) -> Result<()> {
        file.change(OpKind::Allocate, |s| match len {
            0 => Err(errno(libc::EINVAL)),
            n if n > i64::MAX as u64 => Err(errno(libc::EFBIG)),
            _ if !file.write => Err(errno(libc::EBADF)),
            _ => s.allocate(file.ino, len),
        })
    }

    fn sync_file(&self, file: &SimFile) -> Result<()> {
        file.change(OpKind::SyncFile, |s| {
            s.sync(file.ino);
            Ok(())
        })
    }

    fn file_metadata(&self, file: &SimFile) -> Result<Meta> {
        self.shared.look(file.info(OpKind::FileMetadata, 0, 0), false)?;
        self.shared.state.lock().meta(file.ino)
    }

    fn try_lock(&self, file: &SimFile) -> Result<()> {
        file.change(OpKind::Lock, |s| s.lock(file.ino, file.handle))
    }

    fn try_lock_shared(&self, file: &SimFile) -> Result<()> {
        file.change(OpKind::Lock, |s| s.lock_shared(file.ino, file.handle))
    }
}
