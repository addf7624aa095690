//! What a [`Manager`] counts, as OpenMetrics text for Prometheus.
//!
//! [`Metrics`] is a collector for a registry of `prometheus-client`: each scrape asks the manager for one snapshot, so that
//! the figures of a page belong together, and nothing is counted twice. A program that has metrics of its own registers it
//! beside them.
//!
//! ```
//! use kvstrata_l2::Context;
//! use kvstrata_manager::{Manager, Options, Parts};
//! use kvstrata_mem::{HeapRegion, Slab};
//! use kvstrata_metrics::Metrics;
//! use prometheus_client::{encoding::text::encode, registry::Registry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let slab = Slab::new(vec![HeapRegion::new(2 << 20)?])?;
//! # let parts = Parts {
//! #     cache: slab.pool("cache", 1 << 20),
//! #     staging: slab.pool("staging", 1 << 20),
//! #     eviction: kvstrata_evict::by_name("lru")?,
//! #     admission: kvstrata_evict::admission_by_name("always")?,
//! #     store: kvstrata_policy::store_by_name("default")?,
//! #     prefetch: kvstrata_policy::prefetch_by_name("default")?,
//! #     cx: Context::tokio(tokio::runtime::Handle::current()),
//! # };
//! let manager = Manager::new(parts, Options::default())?;
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(Metrics::of(manager.clone())));
//!
//! let mut page = String::new();
//! encode(&mut page, &registry)?;
//! assert!(page.contains("lmcache_mp_l1_usage_ratio{backend=\"dram\",l1_tag=\"_default\"} 0"));
//! assert!(page.contains("kvstrata_lookups_total{result=\"miss\"} 0"));
//! # Ok(())
//! # }
//! ```
//!
//! Names that begin with `lmcache_mp_` are LMCache's, where what is counted means the same there, so that dashboards go on
//! working; the others begin with `kvstrata_`. Bytes are bytes, durations are seconds, and latencies are measured from the
//! call to the key's answer, never to the launch of the work.
//!
//! What only a server knows (requests, tokens, sessions) is `ServerMetrics`, with the feature `server`. Nothing is served
//! here.
//!
//! Architecture invariant: reads a snapshot and formats it; no state, clock or lock of its own.
#![forbid(unsafe_code)]

mod adapters;
mod l1;
mod page;
#[cfg(feature = "server")]
mod server;

use std::fmt;

use kvstrata_manager::{Manager, ManagerUsage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use page::Page;
#[cfg(feature = "server")]
pub use server::ServerMetrics;

/// Where the figures come from.
type Snapshot = dyn Fn() -> ManagerUsage + Send + Sync;

/// The metrics of one manager.
pub struct Metrics(Box<Snapshot>);

impl Metrics {
    /// Those of this manager, which is kept alive by them.
    pub fn of(manager: Manager) -> Self {
        Self(Box::new(move || manager.usage()))
    }

    /// Those of whatever gives the snapshots.
    pub fn from_fn(snapshot: impl Fn() -> ManagerUsage + Send + Sync + 'static) -> Self {
        Self(Box::new(snapshot))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = (self.0)();
        let mut page = Page(encoder);
        l1::write(&mut page, &usage)?;
        adapters::write(&mut page, &usage.adapters)
    }
}
