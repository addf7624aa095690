//! What the file system under a directory can do, found out by doing it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kvstrata_core::{Error, Result};
use kvstrata_mem::{Allocate, HeapRegion, Slab, UNIT};

use crate::{Disk, Open, Space};

/// The names of probe files begin like this; a store passes over such files when it scans a directory.
pub const PROBE_PREFIX: &str = ".kvstrata-probe-";

/// Probe files of other processes that are passed over until the directory is given up.
const NAMES: usize = 64;

/// Whether something works here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Support {
    /// It does.
    Yes,
    /// It does not, for this reason.
    No(String),
}

impl Support {
    /// Whether it works.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    /// Why it does not.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Yes => None,
            Self::No(why) => Some(why),
        }
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(why) => write!(f, "no ({why})"),
        }
    }
}

/// What a directory's file system can do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Room, block size and kind of file system.
    pub space: Space,
    /// Reads that bypass the page cache, in 4 KiB.
    pub direct_read: Support,
    /// Writes that bypass the page cache, in 4 KiB.
    pub direct_write: Support,
    /// Reading without an update of the access time.
    pub no_atime: Support,
    /// Renaming without replacing, by whichever call the disk has for it.
    pub rename_new: Support,
    /// Setting blocks aside before they are written.
    pub allocate: Support,
    /// Making names durable.
    pub sync_dir: Support,
    /// Locking a file against other processes.
    pub lock: Support,
}

/// Finds out what works in a directory, with a file or two that are gone afterwards.
///
/// ```
/// use std::path::Path;
/// use kvstrata_io::{SimDisk, SimOptions, probe};
///
/// let disk = SimDisk::new(SimOptions { direct: false, ..SimOptions::default() });
/// let found = probe(&disk, Path::new("/"))?;
/// assert_eq!(found.direct_read.reason(), Some("open: Invalid argument (os error 22)"));
/// assert!(found.rename_new.is_yes());
/// # Ok::<(), kvstrata_core::Error>(())
/// ```
///
/// # Errors
/// If the directory does not take a plain file, or something fails in a way that says nothing about what is supported (an
/// I/O error, no space, too many open files).
pub fn probe<D: Disk>(disk: &D, dir: &Path) -> Result<Capabilities> {
    let fail = |e: io::Error| Error::io("probe directory", e).with("path", dir.display());
    let slab = Slab::new(vec![HeapRegion::new(2 * UNIT)?])?;
    let pool = slab.pool("probe", 2 * UNIT as u64);
    let mut pattern = pool.reserve(UNIT, UNIT)?;
    let bytes: Vec<u8> = (0..UNIT).map(|i| (i * 31 + i / 256) as u8).collect();
    pattern.write_at(0, &bytes)?;
    let pattern = pattern.seal(UNIT);
    let mut back = pool.reserve(UNIT, UNIT)?;

    let mut files = Files { disk, dir, made: Vec::new() };
    let (path, file) = files.make().map_err(fail)?;
    disk.write_buf_at(&file, 0, &pattern, UNIT).map_err(fail)?;

    // Reads what was written, by a file opened like this.
    let mut read = |how: Open| -> io::Result<()> {
        let file = disk.open(&path, how).map_err(|e| during("open", e))?;
        back.write_at(0, &[0; UNIT]).map_err(io::Error::other)?;
        let n = disk.read_buf_at(&file, 0, &mut back, UNIT).map_err(|e| during("read", e))?;
        match back.as_mut_slice() {
            Some(back) if n == UNIT && *back == *bytes => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("read: {n} bytes, and not the written ones"),
            )),
        }
    };
    let direct = Open { direct: true, ..Open::default() };
    let direct_read = support(read(direct)).map_err(fail)?;
    let no_atime = support(read(Open { no_atime: true, ..Open::default() })).map_err(fail)?;
    disk.set_len(&file, 0).map_err(fail)?;
    let wrote =
        disk.open(&path, Open { write: true, ..direct }).map_err(|e| during("open", e)).and_then(|file| {
            disk.write_buf_at(&file, 0, &pattern, UNIT).map_err(|e| during("write", e))?;
            read(Open::default())
        });
    let direct_write = support(wrote).map_err(fail)?;

    let lock = support(disk.try_lock(&file).map_err(|e| during("flock", e))).map_err(fail)?;
    let allocate = support(disk.allocate(&file, 2 * UNIT as u64).map_err(|e| during("fallocate", e)));
    let allocate = allocate.map_err(fail)?;
    let sync_dir = support(disk.sync_dir(dir).map_err(|e| during("sync", e))).map_err(fail)?;
    let rename_new = support(rename_new(&mut files, &path)).map_err(fail)?;
    let space = disk.space(dir).map_err(fail)?;
    Ok(Capabilities { space, direct_read, direct_write, no_atime, rename_new, allocate, sync_dir, lock })
}

/// A rename onto another file must fail, and one to a free name must not.
fn rename_new<D: Disk>(files: &mut Files<'_, D>, from: &Path) -> io::Result<()> {
    let (to, other) = files.make()?;
    drop(other);
    match files.disk.rename_new(from, &to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(during("rename", e)),
        Ok(()) => return Err(io::Error::new(io::ErrorKind::Unsupported, "rename: it replaced a file")),
    }
    files.disk.unlink(&to)?;
    files.disk.rename_new(from, &to).map_err(|e| during("rename", e))
}

/// Names the call that failed; the error keeps its kind and errno for [`support`].
fn during(call: &'static str, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), During { call, source })
}

#[derive(Debug)]
struct During {
    call: &'static str,
    source: io::Error,
}

impl fmt::Display for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.source)
    }
}

impl std::error::Error for During {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Tells a refusal from a failure: what does not work here, and what merely did not work now.
fn support(result: io::Result<()>) -> io::Result<Support> {
    let Err(e) = result else { return Ok(Support::Yes) };
    let during = e.get_ref().and_then(|e| e.downcast_ref::<During>());
    let code = during.map_or(e.raw_os_error(), |d| d.source.raw_os_error());
    let refusal = match code {
        // A missing file is not among them: it says nothing about the flag it was opened with.
        Some(code) => {
            [libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOLCK].contains(&code)
        }
        None => e.kind() == io::ErrorKind::Unsupported,
    };
    if refusal { Ok(Support::No(e.to_string())) } else { Err(e) }
}

/// The files of one probe; they go when it ends, however it ends.
struct Files<'a, D: Disk> {
    disk: &'a D,
    dir: &'a Path,
    made: Vec<PathBuf>,
}

impl<D: Disk> Files<'_, D> {
    fn make(&mut self) -> io::Result<(PathBuf, D::File)> {
        let how = Open { write: true, create_new: true, ..Open::default() };
        for n in 0..NAMES {
            let path = self.dir.join(format!("{PROBE_PREFIX}{n}"));
            match self.disk.open(&path, how) {
                // Another process probes at the same time, or one died at it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(file) => {
                    self.made.push(path.clone());
                    return Ok((path, file));
                }
            }
        }
        let why = format!("{NAMES} probe files lie there already; remove {PROBE_PREFIX}*");
        Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
    }
}

impl<D: Disk> Drop for Files<'_, D> {
    fn drop(&mut self) {
        for path in &self.made {
            // One of them is gone if the rename worked.
            drop(self.disk.unlink(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, FsType, OpKind, Rule, SimDisk, SimOptions};

    fn root() -> &'static Path {
        Path::new("/")
    }

    #[test]
    fn each_refusal_is_named_and_nothing_is_left_behind() {
        let fs = FsType::by_name("ramfs").unwrap();
        let disk = SimDisk::new(SimOptions { direct: false, no_atime: false, fs, ..SimOptions::default() });
        disk.faults().add(Rule::new(Fault::Errno(libc::EOPNOTSUPP)).on(&[OpKind::Allocate]));
        disk.faults().add(Rule::new(Fault::Errno(libc::EINVAL)).on(&[OpKind::RenameNew]));
        let found = probe(&disk, root()).unwrap();
        assert_eq!(found.direct_write.to_string(), "no (open: Invalid argument (os error 22))");
        assert_eq!(found.no_atime.to_string(), "no (open: Operation not permitted (os error 1))");
        assert_eq!(found.allocate.to_string(), "no (fallocate: Operation not supported (os error 95))");
        assert_eq!(found.rename_new.to_string(), "no (rename: Invalid argument (os error 22))");
        assert_eq!(found.lock, Support::Yes);
        assert_eq!(found.space.fs.to_string(), "ramfs");
        assert_eq!(disk.list(root()).unwrap(), []);
    }

    #[test]
    fn a_rename_that_does_nothing_is_no_rename() {
        let disk = SimDisk::default();
        disk.faults().add(Rule::new(Fault::Skip).on(&[OpKind::RenameNew]));
        assert_eq!(probe(&disk, root()).unwrap().rename_new.reason(), Some("rename: it replaced a file"));
    }

    #[test]
    fn wrong_bytes_are_no_support() {
        let disk = SimDisk::default();
        disk.faults().add(Rule::new(Fault::FlipBit(77)).on(&[OpKind::Read]).times(1));
        let found = probe(&disk, root()).unwrap();
        assert_eq!(found.direct_read.reason(), Some("read: 4096 bytes, and not the written ones"));
        assert!(found.no_atime.is_yes());
    }

    #[test]
    fn a_failure_is_not_taken_for_a_refusal() {
        for (kind, code) in
            [(OpKind::Open, libc::ENOENT), (OpKind::Read, libc::EIO), (OpKind::Write, libc::ENOSPC)]
        {
            let disk = SimDisk::default();
            let fired = disk.faults().add(Rule::new(Fault::Errno(code)).on(&[kind]).after(1).times(1));
            let e = probe(&disk, root()).unwrap_err();
            assert!(e.to_string().contains("probe directory"), "{e}");
            assert_eq!(fired.count(), 1);
            assert_eq!(disk.list(root()).unwrap(), [], "{kind:?}");
        }
    }

    #[test]
    fn leftovers_of_others_are_passed_over() {
        let disk = SimDisk::default();
        let how = Open { write: true, create_new: true, ..Open::default() };
        disk.open(Path::new("/.kvstrata-probe-0"), how).unwrap();
        assert!(probe(&disk, root()).unwrap().rename_new.is_yes());
        assert_eq!(disk.list(root()).unwrap().len(), 1);
    }
}
