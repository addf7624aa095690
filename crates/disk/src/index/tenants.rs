//! Who stores here: cache salts by number, what each of them holds, and what it is promised.

use std::collections::HashMap;

use kvstrata_core::{Error, ErrorKind};
use kvstrata_evict::{EvictionPolicy, TenantId};
use kvstrata_l2::TenantUsage;

use super::Index;
use super::room::UNIT;

#[derive(Debug, Default)]
struct Tenant {
    salt: Box<str>,
    used: u64,
    quota: Option<u64>,
}

/// Tenants have a number as long as they hold anything or have a quota of their own; 0 is that of the empty salt.
#[derive(Debug)]
pub(super) struct Tenants {
    numbers: HashMap<Box<str>, u32>,
    tenants: Vec<Tenant>,
    free: Vec<u32>,
}

impl Default for Tenants {
    fn default() -> Self {
        let numbers = HashMap::from([(Box::default(), 0)]);
        Self { numbers, tenants: vec![Tenant::default()], free: Vec::new() }
    }
}

impl Tenants {
    fn number(&mut self, salt: &str) -> u32 {
        if let Some(known) = self.numbers.get(salt) {
            return *known;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.tenants.push(Tenant::default());
            self.tenants.len() as u32 - 1
        });
        self.tenants[number as usize].salt = salt.into();
        self.numbers.insert(salt.into(), number);
        number
    }

    /// A tenant has so many bytes more.
    pub(super) fn takes(&mut self, salt: &str, bytes: u64) -> TenantId {
        let number = self.number(salt);
        self.tenants[number as usize].used += bytes;
        TenantId(number)
    }

    /// It has so many bytes less.
    pub(super) fn gives(&mut self, tenant: TenantId, bytes: u64) {
        self.tenants[tenant.0 as usize].used -= bytes;
        self.forget(tenant.0);
    }

    fn forget(&mut self, number: u32) {
        let tenant = &mut self.tenants[number as usize];
        if number != 0 && tenant.used == 0 && tenant.quota.is_none() {
            self.numbers.remove(&tenant.salt);
            tenant.salt = Box::default();
            self.free.push(number);
        }
    }
}

impl<W> Index<W> {
    pub(crate) fn policy_name(&self) -> &'static str {
        self.policy_name
    }

    /// Whether the policy keeps tenants apart.
    pub(crate) fn keeps_quotas(&self) -> bool {
        self.policy.quotas().is_some()
    }

    /// Gives a tenant a quota of its own, or takes it away.
    pub(crate) fn set_quota(&mut self, salt: &str, bytes: Option<u64>) {
        let Some(quotas) = self.policy.quotas_mut() else { return };
        let tenants = &mut self.tenants;
        match bytes {
            Some(bytes) => {
                let number = tenants.number(salt);
                tenants.tenants[number as usize].quota = Some(bytes);
                quotas.set(TenantId(number), units(bytes));
            }
            None => {
                let Some(number) = tenants.numbers.get(salt).copied() else { return };
                if tenants.tenants[number as usize].quota.take().is_some() {
                    quotas.delete(TenantId(number));
                    tenants.forget(number);
                }
            }
        }
    }

    /// What applies to those without a quota of their own.
    pub(crate) fn set_default_quota(&mut self, bytes: Option<u64>) {
        if let Some(quotas) = self.policy.quotas_mut() {
            quotas.set_default(bytes.map(units));
        }
    }

    /// Who holds anything or has a quota, by salt.
    pub(crate) fn tenants(&self) -> Vec<TenantUsage> {
        let known = self.tenants.numbers.values().map(|n| &self.tenants.tenants[*n as usize]);
        let usage = |t: &Tenant| TenantUsage { salt: t.salt.to_string(), used: t.used, quota: t.quota };
        let mut all: Vec<_> = known.filter(|t| t.used > 0 || t.quota.is_some()).map(usage).collect();
        all.sort_unstable();
        all
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
