//! The cache server: one KV cache for the engines of a machine, behind the protocol of LMCache's multiprocess server.
//!
//! A [`Service`] is the dispatcher: it takes a [`Request`](api::Request) of a client and answers with a
//! [`Reply`](api::Reply), at once or later, and knows no wire. It stands over a [`Manager`](kvstrata_manager::Manager) whose
//! L1 lies in POSIX shared memory: clients fill and read the manager's own buffers there, so nothing is copied. Beside it
//! are the wires; [`zmq`] is the one that every client of LMCache 0.5.5 and later dials by default.
//!
//! ```
//! use kvstrata_core::{Layout, KeyScope};
//! use kvstrata_l2::Context;
//! use kvstrata_manager::{Manager, Parts};
//! use kvstrata_mem::{HeapRegion, Slab};
//! use kvstrata_server::{api::{Reply, Request}, Answer, ClientId, Options, Service};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let slab = Slab::new(vec![HeapRegion::new(8 << 20)?])?;
//! let cx = Context::tokio(tokio::runtime::Handle::current());
//! let parts = Parts {
//!     cache: slab.pool("cache", 6 << 20),
//!     staging: slab.pool("staging", 2 << 20),
//!     eviction: kvstrata_evict::by_name("lru")?,
//!     admission: kvstrata_evict::admission_by_name("always")?,
//!     store: kvstrata_policy::store_by_name("default")?,
//!     prefetch: kvstrata_policy::prefetch_by_name("default")?,
//!     cx: cx.clone(),
//! };
//! let manager = Manager::new(parts, Default::default())?;
//! let service = Service::new(manager, cx, Options::default())?;
//! let Answer::Now(reply) = service.call(ClientId(1), Request::GetChunkSize)? else { panic!("that takes no time") };
//! assert_eq!(reply, Reply::Int(256));
//! # Ok(())
//! # }
//! ```
//!
//! What another process holds of L1 is a lease: it ends when the process commits, unregisters, or is gone. A lease that ran
//! out frees nothing while its owner may still write or read there; it only voids whatever the owner says later. What was
//! reserved and not committed is never published.
//!
//! Deliberately absent: settings (the caller builds the manager), hash algorithms other than LMCache's BLAKE3 chain, the
//! pickled data path, device memory (its descriptors are refused), and whatever LMCache has for blending, peers and
//! plugins: such requests are refused at once.
#![forbid(unsafe_code)]

pub mod api;
mod chain;
mod counts;
mod engine_driven;
mod events;
mod gather;
mod holdings;
mod lmcache_driven;
mod lookup;
mod msgpack;
mod options;
mod paged;
mod service;
mod session;
mod status;
mod warm;
mod watch;
pub mod wire;
mod workers;
pub mod zmq;

pub use counts::{LookupEnd, OperationCounts, RequestCounts, TenantCounts};
pub use events::Subscription;
pub use msgpack::Unreadable;
pub use options::{Options, Pool};
pub use service::{Answer, ClientId, Later, Service};
pub use status::{Counts, PinAges, Status, WorkerStatus};
pub use warm::Warmed;
pub use watch::{Answered, RequestWatch};
