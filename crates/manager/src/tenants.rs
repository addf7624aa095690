//! Who holds how much of L1: tenants by their cache salts.

use kvstrata_core::{Error, ErrorKind, ObjectKey, Result};
use kvstrata_evict::{EvictionPolicy, Quotas, TenantId};
use kvstrata_l2::{L2Quotas, TenantUsage};

use crate::machine::Machine;
use crate::{Manager, TierId};

/// Whoever holds nothing and has no quota of its own.
const STRANGER: TenantId = TenantId(u32::MAX);

impl Machine {
    /// Whatever is evicted from now on makes room for this key's tenant.
    pub(crate) fn asks(&mut self, key: &ObjectKey) {
        self.asks_beside(key, 0);
    }

    /// The same, when it will have so many bytes more by then.
    pub(crate) fn asks_beside(&mut self, key: &ObjectKey, more: u64) {
        if let Some(quotas) = self.policy.quotas_mut() {
            let (tenant, aside) = match self.tenants.find(key.scope().salt()) {
                Some(number) => (TenantId(number), self.tenants.aside(number)),
                None => (STRANGER, 0),
            };
            quotas.asks(Some(tenant), i64::try_from(aside.saturating_add(more)).unwrap_or(i64::MAX));
        }
    }

    fn quotas(&mut self) -> Result<&mut dyn Quotas> {
        if let Some(e) = self.l1_fault(SET) {
            return Err(e);
        }
        let name = self.policy.name();
        self.policy.quotas_mut().ok_or_else(|| no_quotas("L1", Some(name)))
    }
}

const SET: &str = "set quota";

fn no_quotas(tier: &str, policy: Option<&str>) -> Error {
    let m = "this tier keeps no quotas: its eviction policy has to be IsolatedLRU";
    let e = Error::new(ErrorKind::Unsupported, SET, m).with("tier", tier);
    match policy {
        Some(policy) => e.with("policy", policy),
        None => e,
    }
}

/// Quotas of tenants, by cache salt (empty for those without one), in each tier on its own.
impl Manager {
    /// Gives a tenant a quota of its own in bytes, or takes it away (`None`), so that the tier's default applies. Nothing is
    /// dropped at once: what is above its quota goes first when room is needed.
    ///
    /// # Errors
    /// `Unsupported` if the tier keeps no quotas; `NotFound` if there is no such adapter; `Unavailable` if L1 is out of
    /// service.
    pub fn set_quota(&self, tier: TierId, salt: &str, bytes: Option<u64>) -> Result<()> {
        match tier {
            TierId::L1 => self.0.with(|m| {
                m.quotas()?;
                let tenant = m.tenants.set_quota(salt, bytes).map(TenantId);
                let quotas = m.quotas()?;
                match (tenant, bytes) {
                    (Some(tenant), Some(bytes)) => quotas.set(tenant, bytes),
                    (Some(tenant), None) => drop(quotas.delete(tenant)),
                    (None, _) => {}
                }
                // Who was refused for a promise may try again.
                m.roomier = true;
                Ok(())
            }),
            TierId::L2(_) => self.l2_quotas(tier)?.set_quota(salt, bytes),
        }
    }

    /// Sets what applies to tenants without a quota of their own. `None`, as it starts: they share what is left. `Some(0)`:
    /// they are the first to go.
    ///
    /// # Errors
    /// As [`Self::set_quota`].
    pub fn set_default_quota(&self, tier: TierId, bytes: Option<u64>) -> Result<()> {
        match tier {
            TierId::L1 => self.0.with(|m| {
                m.quotas()?.set_default(bytes);
                m.roomier = true;
                Ok(())
            }),
            TierId::L2(_) => self.l2_quotas(tier)?.set_default_quota(bytes),
        }
    }

    /// The tenants that hold anything in a tier or have a quota there, by salt. L1 counts tenants under every policy.
    ///
    /// # Errors
    /// For an adapter, as [`Self::set_quota`].
    pub fn tenants(&self, tier: TierId) -> Result<Vec<TenantUsage>> {
        match tier {
            TierId::L1 => Ok(self.0.with(|m| m.tenants.list())),
            TierId::L2(_) => Ok(self.l2_quotas(tier)?.tenants()),
        }
    }

    fn l2_quotas(&self, tier: TierId) -> Result<std::sync::Arc<dyn L2Quotas>> {
        let adapter = match tier {
            TierId::L2(id) => self.0.adapter(id),
            TierId::L1 => None,
        };
        let Some(adapter) = adapter else {
            return Err(Error::new(ErrorKind::NotFound, SET, "no adapter has this number"));
        };
        let name = adapter.store.desc().name.clone();
        adapter.quotas.ok_or_else(|| no_quotas(&name, None))
    }
}
