//! Opening and reading files without touching their access times, where that is allowed.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kvstrata_io::{Disk, Open};

use crate::{HEADER_BYTES, Header, Refusal};

/// Whether files are opened with `O_NOATIME`. The first refusal ends it for good; a missing file is no refusal.
#[derive(Debug)]
pub struct NoAtime(AtomicBool);

// What the kernel says to the flag: not the owner, not on this file system.
const REFUSALS: [i32; 3] = [1, 22, 95];

impl NoAtime {
    /// Tried from now on, or not at all.
    pub fn new(wanted: bool) -> Self {
        Self(AtomicBool::new(wanted))
    }

    /// Whether the next open asks for it.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the disk says of a plain open.
    pub fn open<D: Disk>(&self, disk: &D, path: &Path) -> io::Result<D::File> {
        if self.is_on() {
            match disk.open(path, Open { no_atime: true, ..Open::default() }) {
                Err(e) if e.raw_os_error().is_some_and(|n| REFUSALS.contains(&n)) => {
                    if self.0.swap(false, Ordering::Relaxed) {
                        tracing::info!(path = %path.display(), error = %e, "access times cannot be left alone here");
                    }
                }
                opened => return opened,
            }
        }
        disk.open(path, Open::default())
    }

    /// Reads a sidecar, or the beginning of a data file: an open, one read of 4096 bytes, a close.
    ///
    /// # Errors
    /// `Truncated` if the file is shorter, `Half` if it is not there, `Unreadable` if the disk fails, and as
    /// [`Header::decode`].
    pub fn header<D: Disk>(&self, disk: &D, path: &Path) -> Result<Header, Refusal> {
        let refusal = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Refusal::Half,
            io::ErrorKind::UnexpectedEof => Refusal::Truncated,
            _ => Refusal::Unreadable,
        };
        let mut block = vec![0; HEADER_BYTES];
        let file = self.open(disk, path).map_err(refusal)?;
        disk.read_exact_at(&file, 0, &mut block).map_err(refusal)?;
        Header::decode(&block)
    }
}
