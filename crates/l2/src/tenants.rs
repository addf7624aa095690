//! Cache salts by number, for tiers that count who holds what.

use std::collections::HashMap;

use crate::TenantUsage;

#[derive(Debug, Default)]
struct Tenant {
    salt: Box<str>,
    used: u64,
    aside: u64,
    quota: Option<u64>,
}

/// The tenants of a tier, by small numbers. A tenant has one as long as it holds anything or has a quota of its own, so
/// that salts anybody can make up leave nothing behind. 0 is always the tenant without a salt.
#[derive(Debug)]
pub struct Tenants {
    numbers: HashMap<Box<str>, u32>,
    tenants: Vec<Tenant>,
    free: Vec<u32>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            numbers: HashMap::from([(Box::default(), 0)]),
            tenants: vec![Tenant::default()],
            free: Vec::new(),
        }
    }
}

impl Tenants {
    /// The tenant's number, if it has one.
    pub fn find(&self, salt: &str) -> Option<u32> {
        if salt.is_empty() { Some(0) } else { self.numbers.get(salt).copied() }
    }

    /// Its number, a new one if need be: for a tenant that is about to hold something.
    pub fn number(&mut self, salt: &str) -> u32 {
        if let Some(known) = self.find(salt) {
            return known;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.tenants.push(Tenant::default());
            self.tenants.len() as u32 - 1
        });
        self.tenants[number as usize].salt = salt.into();
        self.numbers.insert(salt.into(), number);
        number
    }

    /// It holds so many bytes more.
    pub fn takes(&mut self, number: u32, bytes: u64) {
        self.tenants[number as usize].used += bytes;
    }

    /// It holds so many bytes less.
    pub fn gives(&mut self, number: u32, bytes: u64) {
        self.tenants[number as usize].used -= bytes;
        self.forget(number);
    }

    /// So many bytes are set aside for what it is writing. They are not in its usage yet.
    pub fn sets_aside(&mut self, number: u32, bytes: u64) {
        self.tenants[number as usize].aside += bytes;
    }

    /// So many bytes are no longer set aside.
    pub fn has_written(&mut self, number: u32, bytes: u64) {
        self.tenants[number as usize].aside -= bytes;
        self.forget(number);
    }

    /// The bytes that are set aside for it.
    pub fn aside(&self, number: u32) -> u64 {
        self.tenants[number as usize].aside
    }

    /// Gives it a quota of its own, or takes it away; the number it has or had until now, if any.
    pub fn set_quota(&mut self, salt: &str, quota: Option<u64>) -> Option<u32> {
        let number = match quota {
            Some(_) => self.number(salt),
            None => self.find(salt)?,
        };
        self.tenants[number as usize].quota = quota;
        self.forget(number);
        Some(number)
    }

    fn forget(&mut self, number: u32) {
        let tenant = &mut self.tenants[number as usize];
        if number != 0 && tenant.used == 0 && tenant.aside == 0 && tenant.quota.is_none() {
            self.numbers.remove(&tenant.salt);
            tenant.salt = Box::default();
            self.free.push(number);
        }
    }

    /// Who holds anything or has a quota, by salt.
    pub fn list(&self) -> Vec<TenantUsage> {
        let known = self.numbers.values().map(|n| &self.tenants[*n as usize]);
        let usage = |t: &Tenant| TenantUsage { salt: t.salt.to_string(), used: t.used, quota: t.quota };
        let mut all: Vec<_> = known.filter(|t| t.used > 0 || t.quota.is_some()).map(usage).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_known_as_long_as_there_is_anything_to_know() {
        let mut t = Tenants::default();
        assert_eq!((t.find(""), t.find("a")), (Some(0), None));
        for salt in 0..1_000 {
            let number = t.number(&salt.to_string());
            t.sets_aside(number, 4);
            t.takes(number, 4);
            t.has_written(number, 4);
            assert!(t.find(&salt.to_string()).is_some());
            t.gives(number, 4);
            assert_eq!((number, t.find(&salt.to_string())), (1, None), "the number is used again");
        }
        assert_eq!(t.set_quota("b", None), None);
        let b = t.set_quota("b", Some(9)).expect("a number");
        assert_eq!(t.list(), [TenantUsage { salt: "b".into(), used: 0, quota: Some(9) }]);
        assert_eq!((t.set_quota("b", None), t.list()), (Some(b), vec![]));
        t.takes(0, 1);
        t.gives(0, 1);
        assert_eq!(t.find(""), Some(0), "the tenant without a salt stays");
    }
}
