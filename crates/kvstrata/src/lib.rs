//! Keeps the attention KV cache of large language models in tiers below GPU memory, and gives it back fast, correct, and
//! on time.
//!
//! This crate is the facade: every crate of the project under one roof, one feature each, and (feature `cli`, on by
//! default) the `kvstrata` command. Programs that need one piece depend on that piece's crate alone.
//!
//! ```
//! use kvstrata::core::{chunk::ChunkHasher, KeyScope, KvRank, ObjectKey};
//!
//! let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
//! let tokens: Vec<u32> = (0..512).collect();
//! let keys: Vec<_> = ChunkHasher::lmcache(256)?.hashes(&tokens).map(|h| ObjectKey::new(&scope, h)).collect();
//! assert_eq!(keys.len(), 2);
//! # Ok::<(), kvstrata::core::Error>(())
//! ```
//!
//! Architecture invariant: no logic of its own outside of the command.
#![forbid(unsafe_code)]

pub use kvstrata_core as core;

#[cfg(feature = "admin")]
pub use kvstrata_admin as admin;
#[cfg(feature = "config")]
pub use kvstrata_config as config;
#[cfg(feature = "cuda")]
pub use kvstrata_cuda as cuda;
#[cfg(feature = "disk")]
pub use kvstrata_disk as disk;
#[cfg(feature = "evict")]
pub use kvstrata_evict as evict;
#[cfg(feature = "io")]
pub use kvstrata_io as io;
#[cfg(feature = "l2")]
pub use kvstrata_l2 as l2;
#[cfg(feature = "l2-fault")]
pub use kvstrata_l2_fault as l2_fault;
#[cfg(feature = "l2-fs")]
pub use kvstrata_l2_fs as l2_fs;
#[cfg(feature = "l2-gds")]
pub use kvstrata_l2_gds as l2_gds;
#[cfg(feature = "l2-mock")]
pub use kvstrata_l2_mock as l2_mock;
#[cfg(feature = "l2-paths")]
pub use kvstrata_l2_paths as l2_paths;
#[cfg(feature = "lmcache-files")]
pub use kvstrata_lmcache_files as lmcache_files;
#[cfg(feature = "manager")]
pub use kvstrata_manager as manager;
#[cfg(feature = "mem")]
pub use kvstrata_mem as mem;
#[cfg(feature = "metrics")]
pub use kvstrata_metrics as metrics;
#[cfg(feature = "otlp")]
pub use kvstrata_otlp as otlp;
#[cfg(feature = "policy")]
pub use kvstrata_policy as policy;
#[cfg(feature = "server")]
pub use kvstrata_server as server;
#[cfg(feature = "testkit")]
pub use kvstrata_testkit as testkit;
#[cfg(feature = "server")]
pub use kvstrata_zmtp as zmtp;

/// The README's examples are tests, too.
#[cfg(all(doctest, feature = "full"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
