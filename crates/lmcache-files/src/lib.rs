//! LMCache's own directories of KV cache files, as they are: for moving over without losing a cache, and for reading
//! beside a fleet that has not moved yet.
//!
//! Two layouts are known. The `fs` layout ([`flat`], [`LmcacheFs`]) is one flat directory of payloads whose names are their
//! keys; it is only read. The GDS layout ([`classic`], [`header`], [`LmcacheGds`]) has two files for each object, a data
//! file with a header and a sidecar with the same header; it is read and, if asked for, written, and LMCache reads what is
//! written here.
//!
//! ```
//! use std::sync::Arc;
//! use kvstrata_core::{Affinity, ChunkHash, Instant, KeyScope, KvRank, ObjectKey};
//! use kvstrata_l2::{Context, Probe};
//! use kvstrata_lmcache_files::{FlatConfig, LmcacheFs};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! # let dir = tempfile::tempdir()?;
//! let scope = KeyScope::new("org/model", KvRank::single(), 0, "")?;
//! let key = ObjectKey::new(&scope, ChunkHash::new(&[0xab; 8])?);
//! std::fs::write(dir.path().join("org-SEP-model@0x01000100@0@abababababababab.data"), "keys and values")?;
//!
//! let cx = Context::tokio(tokio::runtime::Handle::current());
//! let source = LmcacheFs::open_os(&FlatConfig::new(dir.path()), cx)?.adapter();
//! let probe = Probe { keys: [key].into(), deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
//! let found = source.store.probe(probe).await.remove(0)?.expect("it is there");
//! assert_eq!((found.len, found.layout, found.digest), (15, None, None));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A name is read as one key or refused ([`Refusal`]), never guessed at. LMCache keeps no digests: what it wrote is loaded
//! unverified, and counted as such. What was stored here into the GDS layout has one and is verified. A file that is too
//! short, of another version, or no object at all is counted, and neither ends a scan nor is changed.
//!
//! Metadata is read by an open, one read of 4096 bytes and a close, leaving access times alone where the file system lets us.
//! The index of the GDS layout is built on several threads before anything is looked up in it; what other processes add later
//! is found by name.
//!
//! Deliberately not here: a limit on bytes and eviction (the directories have no owner that could keep one; import them into
//! a store that has), removing LMCache's leftovers, the `raw_block` layout, objects with tags.
//!
//! Architecture invariant: every file operation goes through `kvstrata_io::Disk`; no clock, no randomness, no threads of its
//! own.
#![forbid(unsafe_code)]

pub mod classic;
mod config;
mod files;
pub mod flat;
mod fs;
mod gds;
pub mod header;
mod hex;
mod jobs;
mod read;
mod refusal;
mod scan;

use std::path::Path;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_io::Disk;

pub use config::{FlatConfig, GdsConfig};
pub use fs::LmcacheFs;
pub use gds::{GdsStats, LmcacheGds};
pub use header::{Format, HEADER_BYTES, Header};
pub use read::NoAtime;
pub use refusal::{Refusal, Refused};
pub use scan::{FlatObject, GdsDir, GdsObject, scan_flat};

/// The name of the manifest of this project's own stores.
const MANIFEST: &str = "kvstrata.json";

/// Refuses a path that is no directory, and one that is a store of this project's.
fn refuse_own_store<D: Disk>(disk: &D, root: &Path) -> Result<()> {
    const OP: &str = "open LMCache's directory";
    disk.list(root).map_err(|e| Error::io(OP, e).with("base_path", root.display()))?;
    if disk.metadata(&root.join(MANIFEST)).is_ok() {
        let what =
            "this is a store of this project's, not a directory of LMCache's; its adapter is of type fs";
        return Err(Error::new(ErrorKind::Mismatch, OP, what).with("base_path", root.display()));
    }
    Ok(())
}
