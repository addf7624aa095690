//! Mooncake Store, a distributed pool of memory, as a tier below host memory: without C++ and without Python.
//!
//! There are two ways to a cluster, each a [`Route`]. [`Attach`] hands L1's memory to the official `mooncake_client` of the
//! same machine (`pip install mooncake-transfer-engine` has it), whose transport then reads and writes our own pages: a request
//! carries keys, addresses and sizes. [`Capi`] opens the user's own `libmooncake_store.so`.
//!
//! ```no_run
//! use kvstrata_l2::Context;
//! use kvstrata_l2_mooncake::{MooncakeConfig, MooncakeContext, MooncakeStore};
//!
//! # fn main() -> kvstrata_core::Result<()> {
//! let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().expect("a runtime");
//! let cx = MooncakeContext { l2: Context::tokio(runtime.handle().clone()), run: 0x5eed, memory: None };
//! let config = MooncakeConfig { master_server_address: Some("127.0.0.1:50051".into()), ..MooncakeConfig::default() };
//! let store = MooncakeStore::open(&config, &cx)?;
//! println!("{}", store.describe());
//! let adapter = store.adapter();
//! # Ok(())
//! # }
//! ```
//!
//! A payload is an object of its own, and the same as LMCache's with `save_chunk_meta: false`; what describes it (length,
//! layout, digest, bound to the key) is a second object of 64 bytes under the same name with `@@kvs1` behind it, put and got in
//! the same request. So a foreign reader gets the payload, and whatever is torn, replaced or foreign shows. Without digests
//! objects are LMCache's in either of its forms.
//!
//! A store answers for each key. It looks first, because Mooncake reports as stored also what was there already and what another
//! writer has begun and left. A store that failed, or that was answered by its deadline first, is taken back.
//!
//! What it deliberately does not do: it does not speak to the master or to the owners of segments itself, it does not start
//! or configure Mooncake's processes, and it does not retry what the manager retries. A call waits for as long as its
//! client lives, because until then the buffers are the transport's; deadlines are kept by answering without it.
#![forbid(unsafe_code)]

mod attach;
mod capi;
mod choose;
mod config;
mod gate;
mod lanes;
mod objects;
mod record;
mod route;
mod store;
mod wire;

pub use attach::Attach;
pub use capi::Capi;
pub use config::{Mode, MooncakeConfig, PerOp};
pub use route::{Code, PerKey, Route, RouteCounts, RouteStats};
pub use store::{MooncakeContext, MooncakeStore};
