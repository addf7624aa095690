//! What the file system can do beyond the plain calls, by class of operation: probed at the start, given up at the first
//! refusal.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_io::{Disk, Open};

use crate::{Block, Wanted};

/// One class of operations that may use something special.
#[derive(Debug)]
pub(crate) struct Class {
    what: &'static str,
    errno: i32,
    on: AtomicBool,
    refused: AtomicU64,
}

const EPERM: i32 = 1;
const EINVAL: i32 = 22;

impl Class {
    fn new(what: &'static str, errno: i32, wanted: Wanted) -> Self {
        Self { what, errno, on: AtomicBool::new(wanted != Wanted::Off), refused: AtomicU64::new(0) }
    }

    pub(crate) fn on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(crate) fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether `e` says that the file system does not do this: then it is given up for the whole path, said once, and the
    /// caller tries again without. Any other error (a missing file above all) says nothing about it.
    pub(crate) fn refused(&self, used: bool, e: &io::Error, path: &Path) -> bool {
        // EOPNOTSUPP is what some file systems say instead.
        if !used || !matches!(e.raw_os_error(), Some(n) if n == self.errno || n == 95) {
            return false;
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        if self.on.swap(false, Ordering::Relaxed) {
            tracing::warn!(path = %path.display(), error = %e, "{} does not work here; going on without", self.what);
        }
        true
    }
}

/// The classes of one path.
#[derive(Debug)]
pub(crate) struct Modes {
    pub(crate) direct_read: Class,
    pub(crate) direct_write: Class,
    pub(crate) no_atime: Class,
}

impl Modes {
    pub(crate) fn new(direct: Wanted, no_atime: Wanted) -> Self {
        Self {
            direct_read: Class::new("direct reading", EINVAL, direct),
            direct_write: Class::new("direct writing", EINVAL, direct),
            no_atime: Class::new("leaving access times alone", EPERM, no_atime),
        }
    }

    /// Tries each class on a file of its own at `path`, which must not exist. Leaves the file for the caller to move or
    /// remove.
    pub(crate) fn probe<D: Disk>(&self, disk: &D, path: &Path) -> io::Result<()> {
        let block = Block::zeroed();
        let mut tried = false;
        loop {
            let direct = self.direct_write.on();
            let how = Open { write: true, create_new: !tried, direct, ..Open::default() };
            match disk.open(path, how).and_then(|f| disk.write_all_at(&f, 0, block.bytes())) {
                Ok(()) => break,
                // The kernel may have made the file before it refused to open it this way.
                Err(e) if self.direct_write.refused(direct, &e, path) => tried = disk.metadata(path).is_ok(),
                Err(e) => return Err(e),
            }
        }
        loop {
            let (direct, no_atime) = (self.direct_read.on(), self.no_atime.on());
            let mut to = Block::zeroed();
            let how = Open { direct, no_atime, ..Open::default() };
            match disk.open(path, how).and_then(|f| disk.read_exact_at(&f, 0, to.bytes_mut())) {
                Ok(()) => return Ok(()),
                Err(e) if self.direct_read.refused(direct, &e, path) => {}
                Err(e) if self.no_atime.refused(no_atime, &e, path) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Fails if something required does not work.
    pub(crate) fn require(&self, direct: Wanted, no_atime: Wanted) -> Result<()> {
        for (wanted, class) in
            [(direct, &self.direct_read), (direct, &self.direct_write), (no_atime, &self.no_atime)]
        {
            if wanted == Wanted::Require && !class.on() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "open store",
                    format!("{} is required, and the file system refuses it", class.what),
                ));
            }
        }
        Ok(())
    }
}
