//! The storage manager: what is in host memory, what is below it, who holds what, and who leaves first.
//!
//! An engine talks to a [`Manager`] in batches of keys, the chunks of one chain from first to last. To store, it
//! *reserves* buffers, fills them in place, and *commits*: the chunks are in L1 at once, and on their way to every L2 that
//! the store policy names. To load, it *looks up* what is where, and *loads*: L1 hits are pinned and answered at once, the
//! rest comes from the adapters, each key as it arrives, until the request's deadline. What is held is a guard
//! ([`Reservation`], [`Pin`], [`Hits`]); dropping it gives it back.
//!
//! ```
//! use std::time::Duration;
//! use kvstrata_core::{chunk::ChunkHasher, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
//! use kvstrata_l2::Context;
//! use kvstrata_manager::{Grant, Layouts, Manager, Options, Parts, Reserved};
//! use kvstrata_mem::{HeapRegion, Slab};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let slab = Slab::new(vec![HeapRegion::new(8 << 20)?])?;
//! let manager = Manager::new(
//!     Parts {
//!         cache: slab.pool("cache", 6 << 20),
//!         staging: slab.pool("staging", 2 << 20),
//!         eviction: kvstrata_evict::by_name("lru")?,
//!         admission: kvstrata_evict::admission_by_name("always")?,
//!         store: kvstrata_policy::store_by_name("default")?,
//!         prefetch: kvstrata_policy::prefetch_by_name("default")?,
//!         cx: Context::tokio(tokio::runtime::Handle::current()),
//!     },
//!     Options::default(),
//! )?;
//!
//! let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
//! let tokens: Vec<u32> = (0..512).collect();
//! let keys: Vec<_> = ChunkHasher::lmcache(256)?.hashes(&tokens).map(|h| ObjectKey::new(&scope, h)).collect();
//! let layouts = Layouts::from(Layout::opaque(1 << 20)?);
//!
//! let rq = manager.request(Duration::from_secs(1));
//! let mut filled = Vec::new();
//! for reserved in manager.try_reserve(&rq, &keys, &KeyMask::all(2), &layouts, Grant::Whole) {
//!     let Reserved::Granted(mut chunk) = reserved else { panic!("an empty cache has room") };
//!     chunk.buf().write_at(0, b"keys and values")?;
//!     filled.push(chunk);
//! }
//! manager.commit(filled);
//!
//! let hits = manager.read(&rq, &keys);
//! assert_eq!(hits.mask().prefix(), 2);
//! assert_eq!(&hits.buf(1).unwrap().as_slice().unwrap()[..4], b"keys");
//! manager.touch(&rq, &keys, &hits.mask());
//! drop(hits);
//! assert_eq!(manager.usage().pinned, 0);
//! # Ok(())
//! # }
//! ```
//!
//! Inside, every decision is made by a state machine without I/O, clock or spawn (`machine`, `store`); around it is a thin
//! tokio driver (`manager`, `load`) that takes one short lock per batch and never holds it across a wait or a system call.
//!
//! Architecture invariant: no concrete backend is known here, and nothing below knows this crate.
#![forbid(unsafe_code)]

mod adapters;
mod fault;
mod guard;
mod index;
mod lease;
mod load;
mod machine;
mod manager;
mod pace;
mod request;
mod reserve;
mod room;
mod stats;
mod store;
mod tenants;

pub use adapters::{AdapterOptions, InFlight};
pub use fault::{Fault, Part};
pub use guard::{Hits, Pin, Reservation};
pub use kvstrata_policy::L2Id;
pub use lease::{LeaseId, Leases, OwnerId};
pub use load::{LoadAnswer, Loaded, Loading, Lookup};
pub use manager::{Manager, Parts};
pub use request::{
    Committed, Deleted, Grant, L1Watch, Layouts, LoadMode, Options, Request, Reserved, StoredHook, TierId,
    Wait,
};
pub use stats::{AdapterUsage, ManagerUsage, Stats};
