//! Who holds how much of L1: tenants by their cache salts.

use std::num::NonZeroU32;

use foldhash::fast::FixedState;
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_evict::{EvictionPolicy, Quotas, TenantId};
use kvstrata_l2::{L2Quotas, TenantUsage};

use crate::machine::Machine;
use crate::{Manager, TierId};

/// Whoever holds nothing and has no quota of its own: there is no number for each of those, since anybody can make up a
/// salt.
const STRANGER: TenantId = TenantId(u32::MAX);

/// The tenants that hold anything or have a quota of their own. The one without a salt is always known, as number 0.
pub(crate) struct Tenants {
    ids: hashbrown::HashMap<Box<str>, TenantId, FixedState>,
    rows: Vec<Row>,
    free: Vec<TenantId>,
}

#[derive(Default)]
struct Row {
    salt: Box<str>,
    used: u64,
    quota: Option<u64>,
}

impl Default for Tenants {
    fn default() -> Self {
        let mut new =
            Self { ids: hashbrown::HashMap::default(), rows: vec![Row::default()], free: Vec::new() };
        new.ids.insert("".into(), TenantId(0));
        new
    }
}

impl Tenants {
    /// The tenant's number, if it holds anything.
    pub(crate) fn known(&self, salt: &str) -> TenantId {
        if salt.is_empty() { TenantId(0) } else { self.ids.get(salt).copied().unwrap_or(STRANGER) }
    }

    /// The number of a tenant that is about to hold something.
    pub(crate) fn id(&mut self, salt: &str) -> TenantId {
        match self.known(salt) {
            STRANGER => {
                let row = Row { salt: salt.into(), ..Row::default() };
                let id = match self.free.pop() {
                    Some(id) => {
                        self.rows[id.0 as usize] = row;
                        id
                    }
                    None => {
                        self.rows.push(row);
                        TenantId(self.rows.len() as u32 - 1)
                    }
                };
                self.ids.insert(salt.into(), id);
                id
            }
            id => id,
        }
    }

    pub(crate) fn add(&mut self, id: TenantId, weight: NonZeroU32) {
        self.rows[id.0 as usize].used += u64::from(weight.get());
    }

    pub(crate) fn sub(&mut self, id: TenantId, weight: NonZeroU32) {
        self.rows[id.0 as usize].used -= u64::from(weight.get());
        self.forget(id);
    }

    fn set_quota(&mut self, salt: &str, quota: Option<u64>) -> TenantId {
        let id = self.id(salt);
        self.rows[id.0 as usize].quota = quota;
        self.forget(id);
        id
    }

    fn forget(&mut self, id: TenantId) {
        let row = &mut self.rows[id.0 as usize];
        if id.0 != 0 && row.used == 0 && row.quota.is_none() {
            self.ids.remove(&std::mem::take(&mut row.salt));
            self.free.push(id);
        }
    }

    fn list(&self) -> Vec<TenantUsage> {
        let rows = self.rows.iter().filter(|row| row.used > 0 || row.quota.is_some());
        let mut list: Vec<_> = rows
            .map(|row| TenantUsage { salt: row.salt.to_string(), used: row.used, quota: row.quota })
            .collect();
        list.sort_unstable();
        list
    }
}

impl Machine {
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
                let tenant = m.tenants.set_quota(salt, bytes);
                let quotas = m.quotas()?;
                match bytes {
                    Some(bytes) => quotas.set(tenant, bytes),
                    None => {
                        quotas.delete(tenant);
                    }
                }
                Ok(())
            }),
            TierId::L2(_) => {
                self.l2_quotas(tier)?.set_quota(salt, bytes);
                Ok(())
            }
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
                Ok(())
            }),
            TierId::L2(_) => {
                self.l2_quotas(tier)?.set_default_quota(bytes);
                Ok(())
            }
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
