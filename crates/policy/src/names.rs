//! Policies by the names that users type.

use std::fmt;

use crate::{Admit, Fastest, FirstTier, PrefetchPolicy, SkipL1, StoreDefault, StorePolicy, Striped};

/// The store policies that [`store_by_name`] knows.
pub const STORE_NAMES: &[&str] = &["default", "skip_l1", "striped"];
/// The prefetch policies that [`prefetch_by_name`] knows.
pub const PREFETCH_NAMES: &[&str] = &["default", "retain", "fastest", "fastest_retain"];

/// Nobody knows a policy of this name; the message lists those there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownPolicy {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: &'static [&'static str],
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no policy is called {:?}; there are: {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownPolicy {}

/// The store policy of this name. Case does not matter, and `-` is as good as `_`.
///
/// # Errors
/// [`UnknownPolicy`] with the names there are.
pub fn store_by_name(name: &str) -> Result<Box<dyn StorePolicy>, UnknownPolicy> {
    match canonical(name).as_str() {
        "default" => Ok(Box::new(StoreDefault)),
        "skip_l1" => Ok(Box::new(SkipL1)),
        "striped" => Ok(Box::new(Striped)),
        _ => Err(UnknownPolicy { name: name.into(), known: STORE_NAMES }),
    }
}

/// The prefetch policy of this name. Case does not matter, and `-` is as good as `_`.
///
/// # Errors
/// [`UnknownPolicy`] with the names there are.
pub fn prefetch_by_name(name: &str) -> Result<Box<dyn PrefetchPolicy>, UnknownPolicy> {
    match canonical(name).as_str() {
        "default" => Ok(Box::new(FirstTier { admit: Admit::Temporary })),
        "retain" => Ok(Box::new(FirstTier { admit: Admit::Retained })),
        "fastest" => Ok(Box::new(Fastest { admit: Admit::Temporary })),
        "fastest_retain" => Ok(Box::new(Fastest { admit: Admit::Retained })),
        _ => Err(UnknownPolicy { name: name.into(), known: PREFETCH_NAMES }),
    }
}

pub(crate) fn canonical(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_its_policys_own() {
        for name in STORE_NAMES {
            assert_eq!(store_by_name(name).unwrap().name(), *name);
        }
        for name in PREFETCH_NAMES {
            assert_eq!(prefetch_by_name(&name.to_uppercase()).unwrap().name(), *name);
        }
        assert_eq!(store_by_name("Skip-L1").unwrap().name(), "skip_l1");
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let e = store_by_name("noop").unwrap_err();
        assert_eq!(e.to_string(), "no policy is called \"noop\"; there are: default, skip_l1, striped");
        assert!(prefetch_by_name("").unwrap_err().to_string().contains("retain"));
    }
}
