//! GPU memory to disk and back, as a tier below host memory.
//!
//! Chunks lie in a GPU's memory or in the host's, and go to a store of [`kvstrata_disk`] on a local path. For a GPU's there
//! are three ways, chosen per path and GPU when the adapter opens, and always said ([`GdsStore::ways`], a log line each):
//!
//! - *direct*: cuFile past the host, by nvidia-fs or peer-to-peer DMA. Only where a probe moved bytes with cuFile's own way
//!   through the host switched off, where cuFile's counters say the same, and where a short run was no slower than
//! - *bounce*: through pinned host memory of the adapter's, in pieces, with streams of its own and the disk's engine. It
//!   works wherever CUDA does, and is often as fast or faster. It computes the digest of a chunk as it passes;
//! - *compat*: cuFile's own way through the host, only when it is asked for.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use kvstrata_disk::Writer;
//! use kvstrata_l2::Context;
//! use kvstrata_l2_gds::{GdsConfig, GdsContext, GdsStore, Orders, Prober, Search, cuda, os_disk};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! # let dir = tempfile::tempdir()?;
//! let config = GdsConfig { allow_host: true, gds_buffer_size: 16, ..GdsConfig::new(dir.path().join("kv")) };
//! let gds = GdsStore::open(&config, GdsContext {
//!     disk: os_disk(&config)?,
//!     l2: Context::tokio(tokio::runtime::Handle::current()),
//!     writer: Writer { pid: std::process::id(), id: 0x5eed },
//!     namespaces: vec![],
//!     gpus: cuda(),
//!     prober: Prober { program: None, args: vec![], search: Search::default(), limit: Duration::from_secs(20) },
//!     memory: None,
//!     orders: Arc::new(Orders::default()),
//! })?;
//! for (gpu, choice) in gds.ways() {
//!     println!("GPU {gpu}: {choice}");
//! }
//! # gds.adapter().store.shutdown(kvstrata_core::Instant::FAR_FUTURE).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A chunk belongs to the adapter until the GPU is done with it. With [`Orders`] an engine says from which event on a buffer
//! may be touched, and gets an event that is reached when the adapter's copies of it are done, so that nobody waits for a
//! device. Without CUDA the adapter does not open (`Unavailable`, with what is missing) or, if the settings allow it, takes
//! host memory alone.
//!
//! What it deliberately does not do: several paths (an adapter each, with what combines them on top), retries, cuFile's batch
//! and stream calls, its own format (formats, names, the index and the limit are `kvstrata-disk`'s, so a file says nothing of
//! the way it was written), and digests of what goes past the host: such loads count as unverified.

mod bounce;
mod config;
mod cuda;
mod cufile;
mod device;
mod gds;
mod jobs;
mod measure;
mod order;
mod probe;
mod stage;
mod transfer;
mod way;

pub use config::{GdsConfig, GdsWay};
pub use cuda::cuda;
pub use device::{Copies, Direction, Event, Gpus, Mark};
pub use gds::{GdsContext, GdsStore, foresee, os_disk};
pub use kvstrata_cufile_sys::Search;
pub use order::{Order, Orders, Placed};
pub use probe::{PROBE_PROGRAM, Prober, child};
pub use way::{Asked, Choice, Facts, Measured, Rates, Way, choose, decided};
