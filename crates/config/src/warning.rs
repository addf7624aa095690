//! What is said once about settings that are accepted and yet do nothing.

use std::fmt;

/// Something worth saying once about settings that are accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The name as it was given.
    pub name: String,
    /// Where it was given.
    pub origin: String,
    /// What there is to say.
    pub message: String,
}

impl Warning {
    pub(crate) fn new(name: &str, origin: &str, message: impl Into<String>) -> Self {
        Self { name: name.into(), origin: origin.into(), message: message.into() }
    }

    pub(crate) fn no_effect(name: &str, origin: &str, why: &str) -> Self {
        Self::new(name, origin, format!("has no effect: {why}"))
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.name, self.origin, self.message)
    }
}
