//! What users say of a store's limits.

use std::collections::BTreeMap;
use std::fmt::Display;

use kvstrata_core::{Error, Result};
use kvstrata_evict::{EvictionPolicy, by_name};

use crate::Quotas;

/// The limits of a store under the names that adapters' settings have for them, sizes in GiB (2^30 bytes).
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// What is being read, for errors.
    pub operation: &'static str,
    /// The hard limit; 0 is none, as in LMCache.
    pub max_capacity_gb: f64,
    /// Who goes first when the limit is reached. LRU unless set: a disk has many small objects, and other policies keep more
    /// memory for each.
    pub eviction_policy: Option<&'a str>,
    /// What tenants are promised, by cache salt. Only policies that keep tenants apart take it.
    pub quotas: &'a BTreeMap<String, f64>,
    /// What is promised to each tenant that is not in `quotas`; unless set they share what is left.
    pub default_quota_gb: Option<f64>,
}

/// The least limit in bytes that any object fits under.
const LEAST: u64 = 65536;

impl Limits<'_> {
    /// Checks all of it.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        self.capacity()?;
        let policy = self.policy()?;
        match self.promises().next() {
            Some(key) if policy.quotas().is_none() => Err(self.bad(
                "this eviction policy does not keep tenants apart; IsolatedLRU does",
                key,
                &policy.name(),
            )),
            _ => self.quotas().map(drop),
        }
    }

    /// The hard limit in bytes.
    ///
    /// # Errors
    /// `Invalid` for a negative number, or one too small for any object.
    pub fn capacity(&self) -> Result<Option<u64>> {
        let gib = self.max_capacity_gb;
        match bytes(gib) {
            _ if gib == 0.0 => Ok(None),
            Some(bytes) if bytes >= LEAST => Ok(Some(bytes)),
            _ => {
                Err(self.bad("the capacity is 0 (no limit) or at least 65536 bytes", "max_capacity_gb", &gib))
            }
        }
    }

    /// What tenants are promised, in bytes.
    ///
    /// # Errors
    /// `Invalid` for what is no size, and for more than the store holds.
    pub fn quotas(&self) -> Result<Quotas> {
        let read = |key: &'static str, what: &dyn Display, gib: f64| match bytes(gib) {
            _ if self.max_capacity_gb > 0.0 && gib > self.max_capacity_gb => {
                let e = self.bad("a quota of more than the store holds can never be reached", key, what);
                Err(e.with("max_capacity_gb", self.max_capacity_gb))
            }
            Some(bytes) => Ok(bytes),
            None => Err(self.bad("a quota is a number of GiB that is not negative", key, what)),
        };
        let own = self.quotas.iter().map(|(salt, gib)| {
            read("quotas", &format_args!("{salt:?}: {gib}"), *gib).map(|bytes| (salt.clone(), bytes))
        });
        let default = self.default_quota_gb.map(|gib| read("default_quota_gb", &gib, gib)).transpose()?;
        Ok(Quotas { default, own: own.collect::<Result<_>>()? })
    }

    /// The eviction policy.
    ///
    /// # Errors
    /// `Invalid` for an unknown name, with the known ones.
    pub fn policy(&self) -> Result<Box<dyn EvictionPolicy>> {
        let name = self.eviction_policy.unwrap_or("LRU");
        by_name(name).map_err(|e| self.bad(e.to_string(), "eviction_policy", &name))
    }

    /// Keys that are set and have no effect, with the reason.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        if self.max_capacity_gb != 0.0 {
            return Vec::new();
        }
        let policy = self.eviction_policy.map(|_| "eviction_policy");
        policy
            .into_iter()
            .chain(self.promises())
            .map(|key| (key, "nothing is evicted without max_capacity_gb"))
            .collect()
    }

    /// The keys that promise something to tenants.
    fn promises(&self) -> impl Iterator<Item = &'static str> + use<> {
        let own = (!self.quotas.is_empty()).then_some("quotas");
        own.into_iter().chain(self.default_quota_gb.map(|_| "default_quota_gb"))
    }

    fn bad(&self, what: impl Into<String>, key: &'static str, value: &dyn Display) -> Error {
        Error::invalid(self.operation, what.into()).with(key, value)
    }
}

fn bytes(gib: f64) -> Option<u64> {
    let bytes = gib * f64::from(1 << 30);
    (bytes >= 0.0 && bytes < 2f64.powi(63)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_limit_names_its_key() {
        let none = BTreeMap::new();
        let isolated = Limits {
            operation: "read settings",
            max_capacity_gb: 9.0,
            eviction_policy: Some("isolated_lru"),
            quotas: &none,
            default_quota_gb: None,
        };
        let own = |gib| BTreeMap::from([("t".to_owned(), gib)]);
        for (limits, key) in [
            (Limits { max_capacity_gb: -1.0, ..isolated }, "max_capacity_gb: -1"),
            (Limits { max_capacity_gb: 1e-9, ..isolated }, "max_capacity_gb"),
            (Limits { max_capacity_gb: 1e30, ..isolated }, "max_capacity_gb"),
            (Limits { max_capacity_gb: f64::NAN, ..isolated }, "max_capacity_gb: NaN"),
            (Limits { eviction_policy: Some("LRUU"), ..isolated }, "eviction_policy: LRUU"),
            (
                Limits { eviction_policy: None, default_quota_gb: Some(1.0), ..isolated },
                "default_quota_gb: LRU",
            ),
            (Limits { eviction_policy: None, quotas: &own(1.0), ..isolated }, "quotas: LRU"),
            (Limits { quotas: &own(-1.0), ..isolated }, "quotas: \"t\": -1"),
            (Limits { quotas: &own(9.5), ..isolated }, "quotas: \"t\": 9.5"),
            (Limits { default_quota_gb: Some(f64::INFINITY), ..isolated }, "default_quota_gb: inf"),
        ] {
            let e = limits.validate().unwrap_err().to_string();
            assert!(e.contains(key), "{key}: {e}");
        }
        let all = Limits { quotas: &own(1.5), default_quota_gb: Some(0.25), ..isolated };
        all.validate().unwrap();
        assert_eq!(all.capacity().unwrap(), Some(9 << 30));
        assert_eq!(
            all.quotas().unwrap(),
            Quotas { default: Some(1 << 28), own: vec![("t".to_owned(), 3 << 29)] }
        );
        assert_eq!(all.without_effect(), []);
        let unlimited = Limits { max_capacity_gb: 0.0, ..all };
        assert_eq!(unlimited.capacity().unwrap(), None);
        let idle: Vec<_> = unlimited.without_effect().into_iter().map(|(key, _)| key).collect();
        assert_eq!(idle, ["eviction_policy", "quotas", "default_quota_gb"]);
    }
}
