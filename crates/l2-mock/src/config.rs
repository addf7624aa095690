//! The adapter's keys.

use kvstrata_core::{Error, Result};
use serde::Deserialize;

const GB: f64 = (1u64 << 30) as f64;

/// Which of a kind of operation fail, for tests: `false`, `true` for all, or a number `n` for every n-th key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged, expecting = "expected true, false, or a number n for every n-th key")]
pub enum Faults {
    /// All or none.
    All(bool),
    /// Every n-th key, counted over the adapter's life.
    EveryNth(u64),
}

impl Default for Faults {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Faults {
    /// Whether the `n`-th key, counted from 1, fails.
    pub fn hits(self, n: u64) -> bool {
        match self {
            Self::All(all) => all,
            Self::EveryNth(every) => n.is_multiple_of(every),
        }
    }
}

/// The adapter's settings. `max_size_gb` and `mock_bandwidth_gb` are LMCache's; a gb is 2^30 bytes. The `type` key belongs
/// to whoever chooses the adapter.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MockConfig {
    /// The most payload bytes kept, in gb; above 0.
    pub max_size_gb: f64,
    /// The most bytes moved per second, in gb, stores and loads together; above 0. What was reached is in [`crate::MockStats`].
    pub mock_bandwidth_gb: f64,
    /// The adapter's name, `mock` unless set.
    #[serde(default = "mock")]
    pub name: String,
    /// Stores that fail.
    #[serde(default)]
    pub fail_store: Faults,
    /// Loads that fail.
    #[serde(default)]
    pub fail_load: Faults,
    /// How long every store, load and lookup waits first, in milliseconds.
    #[serde(default)]
    pub delay_ms: u64,
}

fn mock() -> String {
    "mock".into()
}

impl MockConfig {
    /// A mock of this size and bandwidth that does not fail.
    pub fn new(max_size_gb: f64, mock_bandwidth_gb: f64) -> Self {
        Self {
            max_size_gb,
            mock_bandwidth_gb,
            name: mock(),
            fail_store: Faults::default(),
            fail_load: Faults::default(),
            delay_ms: 0,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` with the field and what it takes.
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "open mock adapter";
        for (field, gb) in [("max_size_gb", self.max_size_gb), ("mock_bandwidth_gb", self.mock_bandwidth_gb)]
        {
            // One byte at least, and far enough below 2^64 for sums.
            if !(gb * GB >= 1.0 && gb <= 1e9) {
                return Err(
                    Error::invalid(OP, "the size is a number of gb above 0 and up to 1e9").with(field, gb)
                );
            }
        }
        if self.name.is_empty() {
            return Err(Error::invalid(OP, "a name has at least one character").with("name", "\"\""));
        }
        for (field, faults) in [("fail_store", self.fail_store), ("fail_load", self.fail_load)] {
            if faults == Faults::EveryNth(0) {
                return Err(Error::invalid(
                    OP,
                    "faults are true, false, or a number n from 1 for every n-th key",
                )
                .with(field, 0));
            }
        }
        Ok(())
    }

    pub(crate) fn capacity(&self) -> u64 {
        (self.max_size_gb * GB) as u64
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.mock_bandwidth_gb * GB
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MockConfig, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn lmcaches_keys_are_enough_and_ours_are_optional() {
        let c = parse(r#"{"max_size_gb": 8, "mock_bandwidth_gb": 0.5}"#).unwrap();
        assert_eq!(c, MockConfig::new(8.0, 0.5));
        assert_eq!((c.capacity(), c.bytes_per_second()), (8 << 30, (1u64 << 29) as f64));
        let c = parse(
            r#"{"max_size_gb":1,"mock_bandwidth_gb":1,"name":"a","fail_store":true,"fail_load":3,"delay_ms":7}"#,
        )
        .unwrap();
        assert_eq!((c.name.as_str(), c.delay_ms), ("a", 7));
        assert_eq!((c.fail_store, c.fail_load), (Faults::All(true), Faults::EveryNth(3)));
        assert_eq!([1, 2, 3, 6].map(|n| c.fail_load.hits(n)), [false, false, true, true]);
    }

    #[test]
    fn bad_fields_are_named() {
        for (text, says) in [
            (r#"{"max_size_gb":1}"#, "mock_bandwidth_gb"),
            (r#"{"max_size_gb":1,"mock_bandwidth_gb":1,"size":1}"#, "size"),
            (r#"{"max_size_gb":"1","mock_bandwidth_gb":1}"#, "invalid type"),
            (r#"{"max_size_gb":1,"mock_bandwidth_gb":1,"fail_load":-1}"#, "every n-th key"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
        let ok = MockConfig::new(1.0, 1.0);
        for (config, field) in [
            (MockConfig::new(0.0, 1.0), "max_size_gb"),
            (MockConfig::new(-1.0, 1.0), "max_size_gb"),
            (MockConfig::new(f64::NAN, 1.0), "max_size_gb"),
            (MockConfig::new(1.0, f64::INFINITY), "mock_bandwidth_gb"),
            (MockConfig::new(1.0, 0.0), "mock_bandwidth_gb"),
            (MockConfig { name: String::new(), ..ok.clone() }, "name"),
            (MockConfig { fail_store: Faults::EveryNth(0), ..ok.clone() }, "fail_store"),
        ] {
            let e = config.validate().unwrap_err();
            assert_eq!(e.context().next().unwrap().0, field, "{e}");
        }
        assert!(ok.validate().is_ok());
    }
}
