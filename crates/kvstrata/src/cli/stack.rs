//! A manager and all that is under it, from settings.

use std::time::Duration;

use anyhow::Result;
use kvstrata_config::{BuildContext, Resolved};
use kvstrata_manager::Manager;

/// Everything that a command opens and closes together.
pub(crate) struct Stack {
    pub(crate) manager: Manager,
    pub(crate) shutdown_timeout: Duration,
}

impl Stack {
    /// Builds what the settings describe, for chunks that are mostly of this size.
    pub(crate) fn open(resolved: &Resolved, chunk_bytes: u64) -> Result<Self> {
        let cx = BuildContext::tokio(tokio::runtime::Handle::current());
        let mut components = resolved.build(&cx)?;
        components.options.typical_chunk = chunk_bytes;
        let manager = components.into_manager(&cx)?;
        Ok(Self { manager, shutdown_timeout: resolved.settings.deadlines.shutdown_timeout })
    }

    /// Waits for what is in flight and shuts everything down.
    pub(crate) async fn close(&self) -> Result<()> {
        Ok(self.manager.shutdown(self.shutdown_timeout).await?)
    }
}
