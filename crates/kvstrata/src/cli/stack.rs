//! A manager and all that is under it, from settings.

use std::time::Duration;

use anyhow::Result;
use kvstrata_config::{BuildContext, Resolved};
use kvstrata_core::Namespace;
use kvstrata_manager::Manager;

/// Everything that a command opens and closes together.
pub(crate) struct Stack {
    pub(crate) manager: Manager,
    pub(crate) shutdown_timeout: Duration,
}

impl Stack {
    /// Builds what the settings describe, for chunks of this namespace. A store that holds the namespace otherwise is
    /// refused.
    pub(crate) fn open(resolved: &Resolved, namespace: &Namespace) -> Result<Self> {
        let cx = BuildContext::tokio(tokio::runtime::Handle::current()).storing(vec![namespace.clone()]);
        let mut components = resolved.build(&cx)?;
        components.options.typical_chunk = namespace.layout.bytes();
        let manager = components.into_manager(&cx)?;
        Ok(Self { manager, shutdown_timeout: resolved.settings.deadlines.shutdown_timeout })
    }

    /// Waits for what is in flight and shuts everything down.
    pub(crate) async fn close(&self) -> Result<()> {
        Ok(self.manager.shutdown(self.shutdown_timeout).await?)
    }
}
