//! What the routes ask and tell.

use std::fmt;
use std::sync::Arc;

use kvstrata_l2::Adapter;
use kvstrata_manager::Manager;
use kvstrata_metrics::Metrics;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};

use crate::prefetches::{Prefetch, Prefetched};

/// An adapter as the listing shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The `type` in its settings.
    pub type_name: String,
    /// Whether other processes see the same objects.
    pub shared: bool,
    /// The adapter.
    pub adapter: Adapter,
}

/// What a cache server shows and lets operators do. Cheap to clone.
#[derive(Clone)]
pub struct Admin(pub(crate) Arc<Parts>);

#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) manager: Manager,
    pub(crate) adapters: Vec<Listed>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) config: Value,
    pub(crate) eviction_policy: String,
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) more: Arc<dyn Fn() -> Map<String, Value> + Send + Sync>,
    pub(crate) checksums: Option<Arc<crate::checksums::Checksums>>,
    pub(crate) prefetches: Option<crate::prefetches::Prefetches>,
}

impl Admin {
    /// The interface of this manager, with its metrics and nothing else.
    pub fn new(manager: Manager) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics::of(manager.clone())));
        Self(Arc::new(Parts {
            manager,
            adapters: Vec::new(),
            registry: Arc::new(registry),
            config: Value::Object(Map::new()),
            eviction_policy: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: String::new(),
            more: Arc::new(Map::new),
            checksums: None,
            prefetches: None,
        }))
    }

    fn with(self, change: impl FnOnce(&mut Parts)) -> Self {
        let mut parts = Arc::unwrap_or_clone(self.0);
        change(&mut parts);
        Self(Arc::new(parts))
    }

    /// With these adapters to list and remove objects of, in the manager's order.
    #[must_use]
    pub fn with_adapters(self, adapters: Vec<Listed>) -> Self {
        self.with(|p| p.adapters = adapters)
    }

    /// With a registry that has the program's own metrics, too. It is to hold the manager's
    /// ([`Metrics`]).
    #[must_use]
    pub fn with_registry(self, registry: Arc<Registry>) -> Self {
        self.with(|p| p.registry = registry)
    }

    /// With what `/config` shows: what was made of flags, files and environment, without secrets.
    #[must_use]
    pub fn with_config(self, config: Value) -> Self {
        self.with(|p| p.config = config)
    }

    /// With the name of L1's eviction policy.
    #[must_use]
    pub fn with_eviction_policy(self, name: impl Into<String>) -> Self {
        self.with(|p| p.eviction_policy = name.into())
    }

    /// With the program's version, and the commit it was built from.
    #[must_use]
    pub fn with_version(self, version: impl Into<String>, commit: impl Into<String>) -> Self {
        self.with(|p| (p.version, p.commit) = (version.into(), commit.into()))
    }

    /// With the digests of workers' own blocks (the instance, the blocks, how many go in one digest, and whether each layer
    /// has its own), which takes as long as it takes to read them.
    #[must_use]
    pub fn with_checksums(
        self,
        checksums: impl Fn(i64, &[i64], usize, bool) -> kvstrata_core::Result<Vec<Vec<String>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.with(|p| p.checksums = Some(Arc::new(checksums)))
    }

    /// With loads ahead of time: `submit` begins one and gives its name and its chunks, or nothing for a prompt that fills no
    /// chunk; `status` says how far it is, and nothing of a name that it does not know.
    #[must_use]
    pub fn with_prefetches(
        self,
        submit: impl Fn(&Prefetch) -> kvstrata_core::Result<Option<(String, usize)>> + Send + Sync + 'static,
        status: impl Fn(&str) -> Option<Prefetched> + Send + Sync + 'static,
    ) -> Self {
        self.with(|p| p.prefetches = Some((Arc::new(submit), Arc::new(status))))
    }

    /// With more of `/status`, at its top: sessions, workers, `cache_context_meta`. What it names replaces what stands
    /// there.
    #[must_use]
    pub fn with_status(self, more: impl Fn() -> Map<String, Value> + Send + Sync + 'static) -> Self {
        self.with(|p| p.more = Arc::new(more))
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("adapters", &self.0.adapters).finish_non_exhaustive()
    }
}
