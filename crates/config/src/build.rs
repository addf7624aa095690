//! From settings to the parts of a manager.

use std::fmt;
use std::sync::Arc;

use kvstrata_core::Result;
use kvstrata_evict::{Admission, EvictionPolicy};
use kvstrata_l2::Adapter;
use kvstrata_manager::{AdapterOptions, Manager, Options, Parts, TierId};
use kvstrata_mem::{
    Allocate, Fallback, MemfdRegion, MmapRegion, Pool, Region, RegionOptions, ShmRegion, Slab, Stale,
};
use kvstrata_policy::{PrefetchPolicy, StorePolicy};

use crate::check::{self, Machine};
use crate::registry::{BuildContext, MemoryNeed, Registry};
use crate::settings::{HugePages, L1Settings, Settings};

/// Explicit huge pages have this size.
const HUGE: usize = 2 << 20;

/// Everything that a manager is made of. What the settings' mode implies is in it already.
pub struct Components {
    /// All memory of L1.
    pub slab: Arc<Slab>,
    /// The shared memory that L1 lies in, if it does.
    pub shm: Option<Arc<ShmRegion>>,
    /// The part for chunks that stay.
    pub cache: Arc<Pool>,
    /// The part for chunks on their way from L2.
    pub staging: Arc<Pool>,
    /// What leaves L1 when room is needed.
    pub eviction: Box<dyn EvictionPolicy>,
    /// What tenants may hold in L1: the default, and who has a quota of its own.
    pub quotas: (Option<u64>, Vec<(String, u64)>),
    /// What may come into L1.
    pub admission: Box<dyn Admission>,
    /// What is written to L2.
    pub store: Box<dyn StorePolicy>,
    /// What is loaded from L2, and what becomes of it.
    pub prefetch: Box<dyn PrefetchPolicy>,
    /// The adapters: name, how they are treated, and what there is to talk to.
    pub adapters: Vec<(String, AdapterOptions, Adapter)>,
    /// How the manager goes about it. `lookup_l1` is off where L1 is a buffer that keeps nothing.
    pub options: Options,
    /// What was asked for of the memory and is not in effect.
    pub fallbacks: Vec<Fallback>,
}

impl Components {
    /// Checks the settings, and then builds what they describe: policies, memory, adapters. Blocks while a durable store is
    /// recovered.
    ///
    /// # Errors
    /// As [`Settings::check`], before anything is changed; then what the machine refuses: too little memory or too few huge
    /// pages, a shared-memory name that is taken, an adapter that does not open. Nothing is left behind but the
    /// directories that adapters made.
    pub fn build(
        settings: &Settings,
        machine: &Machine,
        registry: &Registry,
        cx: &BuildContext,
    ) -> Result<Self> {
        let mut settings = settings.clone();
        settings.imply();
        check::check(&settings, machine, registry)?;
        let policy = |e: &dyn fmt::Display| kvstrata_core::Error::invalid("build policy", e.to_string());
        let eviction = kvstrata_evict::by_name(&settings.eviction.policy).map_err(|e| policy(&e))?;
        let admission = kvstrata_evict::admission_by_name(&settings.admission).map_err(|e| policy(&e))?;
        let store = kvstrata_policy::store_by_name(&settings.store.policy).map_err(|e| policy(&e))?;
        let prefetch =
            kvstrata_policy::prefetch_by_name(&settings.prefetch.policy).map_err(|e| policy(&e))?;

        let mut need = MemoryNeed::Any;
        for (_, keys) in settings.adapters() {
            need = need.max(registry.memory(&keys)?);
        }
        let (region, shm, fallbacks) = region(&settings.l1, need)?;
        for fallback in &fallbacks {
            tracing::info!(target: "kvstrata::config", "L1 memory: {fallback}");
        }
        let slab = Slab::new(vec![region])?;
        let cache = slab.pool("cache", settings.l1.size.0);
        let staging = slab.pool("staging", settings.l1.staging().0);

        let cx = cx.clone().over(Arc::clone(&cache) as Arc<dyn Allocate>);
        let mut adapters = Vec::new();
        for (name, keys) in settings.adapters() {
            let adapter = registry.build(&name, &keys, &cx)?;
            adapters.push((name, keys.options()?, adapter));
        }
        let options = Options {
            store_attempts: settings.store.retries + 1,
            store_backoff: settings.store.backoff,
            store_backoff_max: settings.store.backoff_max,
            store_timeout: settings.deadlines.store_timeout,
            lookup_l1: !settings.staging_only(),
            typical_chunk: 1 << 20,
            digests: settings.digests,
        };
        let quotas = settings.eviction.quotas.into_iter().map(|q| (q.salt, q.size.0)).collect();
        let quotas = (settings.eviction.default_quota.map(|q| q.0), quotas);
        Ok(Self {
            slab,
            shm,
            cache,
            staging,
            eviction,
            quotas,
            admission,
            store,
            prefetch,
            adapters,
            options,
            fallbacks,
        })
    }

    /// A manager of these parts, with its adapters.
    ///
    /// # Errors
    /// As [`Manager::new`] and [`Manager::add_adapter`].
    pub fn into_manager(self, cx: &BuildContext) -> Result<Manager> {
        let parts = Parts {
            cache: self.cache,
            staging: self.staging,
            eviction: self.eviction,
            admission: self.admission,
            store: self.store,
            prefetch: self.prefetch,
            cx: cx.l2.clone(),
        };
        let manager = Manager::new(parts, self.options)?;
        let (default_quota, quotas) = self.quotas;
        if default_quota.is_some() {
            manager.set_default_quota(TierId::L1, default_quota)?;
        }
        for (salt, bytes) in quotas {
            manager.set_quota(TierId::L1, &salt, Some(bytes))?;
        }
        for (_, options, adapter) in self.adapters {
            manager.add_adapter(adapter, options)?;
        }
        Ok(manager)
    }
}

impl fmt::Debug for Components {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Components")
            .field("cache", &self.cache)
            .field("staging", &self.staging)
            .field("store", &self.store)
            .field("prefetch", &self.prefetch)
            .field("adapters", &self.adapters)
            .field("options", &self.options)
            .field("fallbacks", &self.fallbacks)
            .finish_non_exhaustive()
    }
}

/// A region, the same as named shared memory if it is that, and what was asked for and is not in effect.
type Made = (Arc<dyn Region>, Option<Arc<ShmRegion>>, Vec<Fallback>);

/// One region for both budgets, so that large pages are shared out between them.
fn region(l1: &L1Settings, need: MemoryNeed) -> Result<Made> {
    let unit = if l1.hugepages == HugePages::Explicit { HUGE } else { kvstrata_mem::UNIT };
    // Each budget is whole units, as the pools count.
    let units = |bytes: u64| bytes.next_multiple_of(kvstrata_mem::UNIT as u64);
    let bytes = units(l1.size.0) + units(l1.staging().0);
    let len = usize::try_from(bytes).unwrap_or(usize::MAX).next_multiple_of(unit);
    let options = RegionOptions {
        huge_pages: match l1.hugepages {
            HugePages::None => kvstrata_mem::HugePages::None,
            HugePages::Transparent => kvstrata_mem::HugePages::Transparent,
            HugePages::Explicit => kvstrata_mem::HugePages::Explicit,
        },
        prefault: l1.prefault,
        numa_node: l1.numa,
        lock: l1.mlock,
    };
    Ok(match (&l1.shm_name, need) {
        (Some(name), _) => {
            // What a dead owner left under our own name is of no use to anybody.
            let region = ShmRegion::create(name, len, &options, Stale::Replace)?;
            let fallbacks = region.fallbacks().to_vec();
            (Arc::clone(&region) as Arc<dyn Region>, Some(region), fallbacks)
        }
        (None, MemoryNeed::Shared) => {
            let region = MemfdRegion::new("kvstrata-l1", len, &options)?;
            let fallbacks = region.fallbacks().to_vec();
            (region, None, fallbacks)
        }
        (None, MemoryNeed::Any) => {
            let region = MmapRegion::new(len, &options)?;
            let fallbacks = region.fallbacks().to_vec();
            (region, None, fallbacks)
        }
    })
}
