//! Who stores here: cache salts by number, what each of them holds, and what it is promised.

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_evict::{EvictionPolicy, TenantId};
use kvstrata_l2::TenantUsage;

use super::Index;
use super::room::UNIT;

impl<W> Index<W> {
    pub(crate) fn policy_name(&self) -> &'static str {
        self.policy_name
    }

    /// Whether the policy keeps tenants apart.
    pub(crate) fn keeps_quotas(&self) -> bool {
        self.policy.quotas().is_some()
    }

    /// Gives a tenant a quota of its own, or takes it away.
    pub(crate) fn set_quota(&mut self, salt: &str, bytes: Option<u64>) -> Result<()> {
        self.fault().map_or(Ok(()), Err)?;
        let Some(quotas) = self.policy.quotas_mut() else { return Ok(()) };
        match (self.tenants.set_quota(salt, bytes), bytes) {
            (Some(number), Some(bytes)) => quotas.set(TenantId(number), units(bytes)),
            (Some(number), None) => drop(quotas.delete(TenantId(number))),
            (None, _) => {}
        }
        Ok(())
    }

    /// What applies to those without a quota of their own.
    pub(crate) fn set_default_quota(&mut self, bytes: Option<u64>) -> Result<()> {
        self.fault().map_or(Ok(()), Err)?;
        if let Some(quotas) = self.policy.quotas_mut() {
            quotas.set_default(bytes.map(units));
        }
        Ok(())
    }

    /// Who holds anything or has a quota, by salt.
    pub(crate) fn tenants(&self) -> Vec<TenantUsage> {
        self.tenants.list()
    }

    /// Why the store is out of service, if it is: without a policy nothing can be told of what should stay.
    pub(crate) fn fault(&self) -> Option<Error> {
        let why = self.policy.fault()?;
        let what = format!("the eviction policy {} panicked: {why}", self.policy_name);
        Some(Error::new(ErrorKind::Internal, "use store", what))
    }
}

/// Rounded up, so that whoever holds its quota to the byte is not above it.
fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT)
}
