//! Every file operation, behind one trait.
//!
//! [`Disk`] is what a store may ask of a file system: open, read, write, publish, sync, list. Everything a file adapter
//! does goes through it, so that the simulated disk can crash, reorder and lie where a real one rarely does.
//! [`IoEngine`] moves payload bytes: whoever submits an operation gives its buffers away, and gets them back with the
//! completion, whether or not anybody still waits.
//!
//! Architecture invariant: no keys, no tiers, no tokio.

mod disk;
mod engine;
mod fs_type;
mod os;
mod pool;
mod probe;
mod queue;
mod sim;
mod whole;

pub use disk::{DirEntry, Disk, FileKind, Meta, Open, Space};
pub use engine::{Completion, CompletionSink, EngineStats, IoBuf, IoEngine, IoOp, Job, Rejected};
pub use fs_type::FsType;
pub use os::{OsDisk, OsFile, OsOptions};
pub use pool::ThreadPool;
pub use probe::{Capabilities, PROBE_PREFIX, Support, probe};
pub use sim::{
    Crash, CrashImage, CrashImages, CrashOptions, Fault, Faults, Fired, Hook, OpInfo, OpKind, Rule, SimDisk,
    SimEngine, SimFile, SimMode, SimOptions,
};
