//! The calls that the standard library does not offer.

use std::ffi::CString;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::whole::{Fill, Spill};
use crate::{FsType, Space};

/// Refuses transfers that leave the range of file offsets, before any byte is moved.
pub(super) fn check_range(offset: u64, len: usize) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Reads once, to the memory from `at` on. `offset` is the file's for `at` = 0; the range was checked.
pub(super) fn read_some(file: &File, offset: u64, to: &mut Fill<'_>, at: usize) -> Result<usize> {
    let len = to.len() - at;
    let ptr = to.at(at).as_ptr().cast();
    // SAFETY: `len` bytes may be written there, and nobody else touches them meanwhile.
    count(unsafe { libc::pread(file.as_raw_fd(), ptr, len, (offset + at as u64) as libc::off_t) })
}

/// Writes once, from the memory at `at` on. `offset` is the file's for `at` = 0; the range was checked.
pub(super) fn write_some(file: &File, offset: u64, from: &Spill<'_>, at: usize) -> Result<usize> {
    let len = from.len() - at;
    let ptr = from.at(at).as_ptr().cast_const().cast();
    // SAFETY: `len` bytes may be read there; the kernel copies them, whoever else may change them.
    count(unsafe { libc::pwrite(file.as_raw_fd(), ptr, len, (offset + at as u64) as libc::off_t) })
}

fn count(n: isize) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

/// Sets blocks aside without changing the length.
pub(super) fn allocate(file: &File, len: u64) -> Result<()> {
    let len = libc::off_t::try_from(len).map_err(|_| Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: takes no memory of ours.
        if unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, len) } == 0 {
            return Ok(());
        }
        let e = Error::last_os_error();
        if e.kind() != ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// Renames unless `to` exists. By number, because the C library may be older than its wrapper.
pub(super) fn rename_noreplace(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    let here = libc::AT_FDCWD;
    // SAFETY: both are strings that end with a zero byte and outlive the call.
    let r = unsafe {
        libc::syscall(libc::SYS_renameat2, here, from.as_ptr(), here, to.as_ptr(), libc::RENAME_NOREPLACE)
    };
    if r == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// The room under a path.
pub(super) fn space(path: &Path) -> Result<Space> {
    let path = c_path(path)?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the string ends with a zero byte, and the kernel fills the whole structure or fails.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the call succeeded.
    let stat = unsafe { stat.assume_init() };
    // Counts are in fragments; `f_bsize` is what the file system likes to be asked for (megabytes on NFS).
    let unit = if stat.f_frsize > 0 { stat.f_frsize } else { stat.f_bsize } as u64;
    Ok(Space {
        total: stat.f_blocks.saturating_mul(unit),
        available: stat.f_bavail.saturating_mul(unit),
        block: u32::try_from(unit).unwrap_or(u32::MAX),
        // The number has 32 bits; the field's width and sign differ by machine.
        fs: FsType::from_magic(stat.f_type as u32),
    })
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::from_raw_os_error(libc::EINVAL))
}
