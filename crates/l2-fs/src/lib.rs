//! Local disks as a tier below host memory: a directory that describes itself, and in it segments with an extent for each
//! object, or a file for each object.
//!
//! ```
//! use std::sync::Arc;
//! use kvstrata_core::{Affinity, ChunkHash, Instant, KeyScope, KvRank, Layout, ObjectKey};
//! use kvstrata_disk::Writer;
//! use kvstrata_l2::{Context, Probe, Put, PutDigest, PutItem, PutSink};
//! use kvstrata_l2_fs::{FsConfig, open_os};
//! use kvstrata_mem::{Allocate, HeapRegion, Slab};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! # let dir = tempfile::tempdir()?;
//! let config: FsConfig = serde_json::from_value(serde_json::json!({ "base_path": dir.path(), "max_capacity_gb": 0.5 }))?;
//! let writer = Writer { pid: std::process::id(), id: 0x5eed };
//! let fs = open_os(&config, Context::tokio(tokio::runtime::Handle::current()), writer, vec![], None)?;
//!
//! let slab = Slab::new(vec![HeapRegion::new(1 << 20)?])?;
//! let key = ObjectKey::new(&KeyScope::new("m", KvRank::single(), 0, "")?, ChunkHash::new(&[1])?);
//! let buf = slab.pool("cache", 1 << 20).reserve(4096, 4096)?.seal(4096);
//! let item = PutItem { key: key.clone(), layout: Layout::opaque(4096)?, digest: PutDigest::None, buf };
//! let deadline = Instant::FAR_FUTURE;
//! let request = Put { items: vec![item], deadline, affinity: Affinity::default() };
//! let store = fs.adapter().store;
//! store.put(request, PutSink::new(1, Arc::new(|position, answer| println!("key {position}: {answer:?}")))).await;
//!
//! let probe = Probe { keys: [key].into(), deadline, affinity: Affinity::default() };
//! assert_eq!(store.probe(probe).await[0].as_ref().unwrap().unwrap().len, 4096);
//! store.shutdown(deadline).await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the slab layout, a request's loads go to the disk's engine all at once, and its stores in large groups, from and to the
//! caller's buffers. With a file for each object, keys are handled one by one on the engine's threads: a load opens the file, reads the payload and
//! closes it. Nothing is copied, and headers are not read, because the index has what they say.
//! Digests are kept here and checked above (`kvstrata_l2::Checked`).
//!
//! Architecture invariant: formats, names, the index and the limit are `kvstrata-disk`'s. This crate moves payload bytes
//! between host memory and files, and keeps the promises about buffers and deadlines; it does not retry.
#![forbid(unsafe_code)]

mod batch;
mod config;
mod fs;
mod groups;
mod jobs;

pub use config::{Engine, EvictionConfig, FsConfig, LayoutChoice, Switch, Sync};
pub use fs::{FsContext, FsStore, open_os};
