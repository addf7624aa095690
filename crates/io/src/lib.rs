//! Every file operation, behind one trait.
//!
//! [`Disk`] is what a store may ask of a file system: open, read, write, publish, sync, list. Everything a file adapter
//! does goes through it, so that the simulated disk can crash, reorder and lie where a real one rarely does.
//! [`IoEngine`] moves payload bytes: whoever submits an operation gives its buffers away, and gets them back with the
//! completion, whether or not anybody still waits.
//!
//! [`OsDisk`] is the real one. Its [`OsEngine`] is an io_uring where the kernel allows one, with a [`ThreadPool`] beside it
//! for blocking work, and the pool alone elsewhere. [`SimDisk`] lives in memory, and fails by plan.
//! [`probe()`] finds out what a directory's file system can do.
//!
//! ```
//! use std::path::Path;
//! use kvstrata_io::{Disk, Open, SimDisk};
//!
//! /// Publishes an object so that a crash leaves all of it or nothing, and nothing is ever replaced.
//! fn publish<D: Disk>(disk: &D, dir: &Path, bytes: &[u8]) -> std::io::Result<()> {
//!     let new = Open { write: true, create_new: true, ..Open::default() };
//!     let file = disk.open(&dir.join("object.tmp"), new)?;
//!     disk.write_all_at(&file, 0, bytes)?;
//!     disk.sync_file(&file)?;
//!     disk.rename_new(&dir.join("object.tmp"), &dir.join("object"))?;
//!     disk.sync_dir(dir)
//! }
//!
//! let disk = SimDisk::default();
//! publish(&disk, Path::new("/"), b"keys and values")?;
//! for image in disk.crash_images(Default::default()) {
//!     if let Ok(meta) = image.disk.metadata(Path::new("/object")) {
//!         assert_eq!(meta.len, 15, "{}", image.story);
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! What the kernel answers is what the caller gets: nothing here retries, falls back from direct I/O, caches or logs an
//! error. Deadlines are the caller's: a system call cannot be taken back, so a wait ends, and the buffer comes later.
//!
//! Architecture invariant: no keys, no tiers, no tokio.

mod budget;
mod disk;
mod engine;
mod fs_type;
mod mounts;
mod os;
mod pool;
mod probe;
mod queue;
mod sim;
mod whole;

pub use disk::{DirEntry, Disk, FileKind, Meta, Open, Space};
pub use engine::{Completion, CompletionSink, EngineStats, IoBuf, IoEngine, IoOp, Job, Rejected};
pub use fs_type::FsType;
pub use mounts::Mount;
pub use os::{EngineKind, OsDisk, OsEngine, OsFile, OsOptions};
pub use pool::ThreadPool;
pub use probe::{Capabilities, PROBE_PREFIX, Support, probe};
pub use sim::{
    Crash, CrashImage, CrashImages, CrashOptions, Fault, Faults, Fired, Hook, OpInfo, OpKind, Rule, SimDisk,
    SimEngine, SimFile, SimMode, SimOptions,
};
