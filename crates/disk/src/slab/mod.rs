//! Many objects in few files: segments of some GiB, set aside before they are written, with an extent for each object, and
//! an append-only log that says which extents are whose.
//!
//! | name | what |
//! |---|---|
//! | `slab/segment-00000` | extents; see [`mod@format`] |
//! | `slab/log-1` | what came and went since the snapshot of the same number |
//! | `slab/snapshot-1` | what there was when that log began |
//!
//! **Storing.** An extent is taken in memory; header and payload are written; the object's record goes to the log; and then
//! it is found. **Evicting** is a record too. Three rules make that safe, and none needs a scan:
//!
//! 1. An object's record is written after its bytes are, and it is found after its record is written.
//! 2. An extent is used again only after the record that its object is gone is written. So a process that is killed leaves
//!    a log that is true.
//! 3. A device without power may keep later writes and lose earlier ones. Then a record may lead to bytes of another
//!    object, which the digest tells. Objects without a digest are on the device before their records, and their removal is
//!    before their extents are used again; if the log turns out to have a gap, they are forgotten.
//!
//! The log is written anew before it is too long: a new one begins, a snapshot of the index is written beside whatever
//! else goes on, and the old ones are removed. It has every object whose record is in the log before, those too that are
//! not found yet. What it says may be newer than the beginning of its log; reading that log over it gives the same end.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod geometry;
pub(crate) mod load;
mod log;
pub(crate) mod pages;
mod place;
mod recover;
mod rewrite;
mod segments;
pub(crate) mod snapshot;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kvstrata_core::Result;
use kvstrata_io::Disk;
use kvstrata_mem::{HeapRegion, Pool};
use parking_lot::Mutex;

pub(crate) use geometry::Geometry;
pub(crate) use log::Entry;
use log::Writer;
pub use place::Placed;
pub use rewrite::{generate_index, rewrite_log, rewrite_snapshot};
pub(crate) use segments::Segments;

/// The directory below the root.
pub(crate) use crate::names::SLAB as DIR;
/// Header blocks on their way to the device. A store that finds none writes its header itself.
const HEADERS: usize = 512;

/// The part of an open store that knows extents.
#[derive(Debug)]
pub(crate) struct Slab<D: Disk> {
    pub(crate) geometry: Geometry,
    pub(crate) dir: PathBuf,
    pub(crate) store_id: u128,
    pub(crate) segments: Segments<D>,
    headers: Arc<Pool>,
    /// What happened and is not in the log yet, in order.
    pending: Mutex<Vec<Entry>>,
    writer: Mutex<Writer<D>>,
    /// Held while a segment is made.
    growing: Mutex<()>,
    /// Held while the log is written anew.
    compacting: Mutex<()>,
    /// Whether a job writes the log, or is about to.
    committing: AtomicBool,
}

impl<D: Disk> Slab<D> {
    pub(crate) fn new(geometry: Geometry, root: &Path, store_id: u128) -> Result<Self> {
        let bytes = HEADERS * geometry::UNIT as usize;
        let headers = kvstrata_mem::Slab::new(vec![HeapRegion::new(bytes)?])?.pool("headers", bytes as u64);
        let dir = root.join(DIR);
        Ok(Self {
            segments: Segments::new(&dir),
            geometry,
            dir,
            store_id,
            headers,
            pending: Mutex::default(),
            writer: Mutex::new(Writer::none()),
            growing: Mutex::new(()),
            compacting: Mutex::new(()),
            committing: AtomicBool::new(false),
        })
    }
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("segment-{number:05}")
}

pub(crate) fn log_name(epoch: u64) -> String {
    format!("log-{epoch}")
}

pub(crate) fn snapshot_name(epoch: u64) -> String {
    format!("snapshot-{epoch}")
}

/// One of the files of the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum File {
    Segment(u64),
    Log(u64),
    Snapshot(u64),
}

pub(crate) fn parse_name(name: &OsStr) -> Option<File> {
    let (kind, number) = name.to_str()?.split_once('-')?;
    let n = number.parse().ok()?;
    let (file, written) = match kind {
        "segment" => (File::Segment(n), segment_name(n)),
        "log" => (File::Log(n), log_name(n)),
        "snapshot" => (File::Snapshot(n), snapshot_name(n)),
        _ => return None,
    };
    // Each has one name.
    (OsStr::new(&written) == name).then_some(file)
}

#[cfg(test)]
mod tests;
