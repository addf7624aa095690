//! An adapter that keeps chunks in this process's memory, for trials and tests.
//!
//! It has a hard capacity and a ceiling on its bandwidth, as LMCache's `mock` adapter has. For tests it also fails, delays
//! and hangs on demand, and damages what it keeps.
//!
//! ```
//! use kvstrata_core::{Affinity, ChunkHash, Instant, KeyScope, KvRank, Layout, ObjectKey};
//! use kvstrata_l2::{Context, Put, PutDigest, PutItem, PutSink};
//! use kvstrata_l2_mock::{Mock, MockConfig};
//! use kvstrata_mem::{Allocate, HeapRegion, Slab};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! # runtime.block_on(async {
//! let config: MockConfig = serde_json::from_str(r#"{"max_size_gb": 1, "mock_bandwidth_gb": 20}"#).unwrap();
//! let mock = Mock::open(&config, Context::tokio(tokio::runtime::Handle::current()))?;
//!
//! let slab = Slab::new(vec![HeapRegion::new(1 << 20)?])?;
//! let key = ObjectKey::new(&KeyScope::new("m", KvRank::single(), 0, "")?, ChunkHash::new(&[1])?);
//! let buf = slab.pool("cache", 1 << 20).reserve(4096, 4096)?.seal(4096);
//! let item = PutItem { key, layout: Layout::opaque(4096)?, digest: PutDigest::None, buf };
//! let request = Put { items: vec![item], deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
//! let done = PutSink::new(1, std::sync::Arc::new(|position, answer| println!("key {position}: {answer:?}")));
//! mock.adapter().store.put(request, done).await;
//! assert_eq!(mock.stats().stored_bytes, 4096);
//! # Ok::<(), kvstrata_core::Error>(())
//! # }).unwrap();
//! ```
//!
//! Architecture invariant: nothing here is evicted and nothing survives the process. A store without room is declined.
#![forbid(unsafe_code)]

mod ceiling;
mod config;
mod objects;
mod store;

pub use ceiling::MockStats;
pub use config::{Faults, MockConfig};
pub use objects::Damage;
pub use store::Mock;
