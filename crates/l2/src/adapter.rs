//! An adapter with everything it offers.

use std::sync::Arc;

use crate::{L2List, L2Quotas, L2Remove, L2Store, L2Usage};

/// An adapter and its optional abilities. What a backend cannot do is `None`, never a method that fails. A decorator takes
/// one of these and gives one back, so it cannot lose an ability by forgetting to forward it.
#[derive(Clone)]
pub struct Adapter {
    /// Put, get, probe.
    pub store: Arc<dyn L2Store>,
    /// Removing.
    pub remove: Option<Arc<dyn L2Remove>>,
    /// Listing.
    pub list: Option<Arc<dyn L2List>>,
    /// Usage.
    pub usage: Option<Arc<dyn L2Usage>>,
    /// Quotas of tenants.
    pub quotas: Option<Arc<dyn L2Quotas>>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("store", &self.store)
            .field("remove", &self.remove.is_some())
            .field("list", &self.list.is_some())
            .field("usage", &self.usage.is_some())
            .field("quotas", &self.quotas.is_some())
            .finish()
    }
}
