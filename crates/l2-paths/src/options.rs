//! How paths are treated.

use std::time::Duration;

use kvstrata_core::{Error, Result};
use kvstrata_l2::{BreakerOptions, LimitOptions};

/// How each path is treated.
#[derive(Clone, Debug)]
pub struct PathsOptions {
    /// When a path is taken out, and when it is tried again.
    pub breaker: BreakerOptions,
    /// The bytes that each path may hold in flight; `None` for no limit of its own.
    pub limit: Option<LimitOptions>,
    /// How long a store waits to hear whether another path has the key already. What has not answered by then has not.
    pub lookup: Duration,
    /// How long a path that is full is left alone by stores.
    pub full_for: Duration,
    /// The first pause before a path that could not be opened is tried again; each failure doubles it, up to
    /// [`BreakerOptions::cool_down_max`].
    pub reopen_after: Duration,
    /// How many removals are remembered for a path that is out. One more, and the path comes back empty.
    pub remembered: usize,
}

impl Default for PathsOptions {
    fn default() -> Self {
        Self {
            // Sooner than one around the whole: what is behind it is a part, and the others take its place.
            breaker: BreakerOptions { consecutive: 3, at_least: 20, ..BreakerOptions::default() },
            limit: None,
            lookup: Duration::from_millis(100),
            full_for: Duration::from_secs(1),
            reopen_after: Duration::from_secs(1),
            remembered: 1 << 18,
        }
    }
}

impl PathsOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` with the field and what it takes.
    pub fn validate(&self) -> Result<()> {
        self.breaker.validate()?;
        for (field, time) in [("lookup", self.lookup), ("reopen_after", self.reopen_after)] {
            if time.is_zero() {
                return Err(Error::invalid("open paths", "a time above 0 is expected").with(field, 0));
            }
        }
        Ok(())
    }
}
