//! A directory as a store of chunks: the on-disk format, the index and its recovery, and the limit on bytes.
//!
//! An object is a 4 KiB [`Header`] that says whose payload follows, what it is, and its digest; then the payload. It lies in
//! one of two ways ([`StoreLayout`]):
//!
//! - *Files*: it has a file of its own, written under a name that nobody else has and published by a rename that does not
//!   replace. The index in memory is rebuilt at the start from a snapshot and from the headers of what changed since.
//! - *Slab*: it has an extent of a segment that was set aside in advance. A log says which extents are whose, and the index
//!   is rebuilt from it and its snapshot.
//!
//! Either way an object is there whole or not at all, lookups are answered from memory, and a start reads no payloads. Bytes
//! are set aside before they are written, and objects are evicted when bytes are needed.
//!
//! ```
//! use std::sync::Arc;
//! use kvstrata_core::{ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
//! use kvstrata_disk::{Begin, Durability, NewObject, Quotas, Settings, Store, Wanted, Writer};
//! use kvstrata_io::{Disk, OsDisk, OsOptions};
//!
//! let dir = tempfile::tempdir()?;
//! let disk = Arc::new(OsDisk::new(OsOptions::default())?);
//! let store = Store::open(Arc::clone(&disk), Settings {
//!     root: dir.path().join("kv"),
//!     layout: None,
//!     tmp: None,
//!     capacity: Some(1 << 20),
//!     policy: kvstrata_evict::by_name("LRU")?,
//!     quotas: Quotas::default(),
//!     durability: Durability::None,
//!     direct: Wanted::Off,
//!     no_atime: Wanted::Try,
//!     writer: Writer { pid: std::process::id(), id: 1 },
//!     namespaces: vec![],
//!     shared: false,
//! })?;
//!
//! let scope = KeyScope::new("m", KvRank::single(), 0, "")?;
//! let key = ObjectKey::new(&scope, ChunkHash::from([7; 32]));
//! let layout = Layout::opaque(5)?.id();
//! let object = NewObject { key: key.clone(), layout, len: 5, digest: None };
//! let Some(Begin::Claimed(mut claim)) = store.begin(&[object]).pop() else { panic!("it is new") };
//! claim.reserve()?;
//! let created = claim.create()?;
//! disk.write_all_at(&created.file, created.offset, b"bytes")?;
//! assert!(store.probe(&[key.clone()])?[0].is_none(), "not published yet");
//! claim.publish(created)?;
//! assert_eq!(store.probe(&[key])?[0].unwrap().len, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`StoreAdapter`] makes an adapter of a store and a [`Mover`].
//!
//! Architecture invariant: this crate does not know how payload bytes move. A mover moves them, between the steps that a
//! [`Pin`] and a [`Claim`] give it. No clock, no randomness, no threads of its own.
#![forbid(unsafe_code)]

mod adapter;
mod fanout;
mod fsck;
mod header;
mod index;
mod limits;
mod listing;
mod load;
mod manifest;
mod modes;
pub mod names;
mod open;
mod put;
mod recover;
mod settings;
mod shared;
mod slab;
mod snapshot;
mod store;

pub use adapter::{Mover, StoreAdapter};
pub use fsck::{FileState, FsckOptions, FsckReport, Listed, fsck, walk};
pub use header::{Block, FORMAT_VERSION, Fault, HEADER_BYTES, Header};
pub use index::Place;
pub use limits::Limits;
pub use listing::list;
pub use load::{Fault as LoadFault, Opened, Pin};
pub use manifest::Manifest;
pub use open::choose_layout;
pub use put::{Begin, Claim, Created};
pub use settings::{Durability, Quotas, Settings, StoreLayout, StoreStats, Wanted, Writer};
pub use slab::Placed;
#[doc(hidden)]
pub use slab::{generate_index, rewrite_log, rewrite_snapshot};
#[doc(hidden)]
pub use snapshot::rewrite_index;
pub use store::{Hold, NewObject, Store};
