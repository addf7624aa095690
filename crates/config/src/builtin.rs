//! The adapters of this version.

use std::path::PathBuf;

use kvstrata_core::{Error, Result};
use kvstrata_l2::Adapter;
use kvstrata_l2_mock::{Mock, MockConfig};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::adapters::AdapterSettings;
use crate::registry::{AdapterFactory, BuildContext, Registry};
use crate::warning::Warning;

pub(crate) fn register(registry: Registry) -> Registry {
    registry.with(MockFactory)
}

/// Settings in the adapter's own type: without the `type` that chose it, under the name it is to have.
fn read<T: DeserializeOwned>(settings: &AdapterSettings, name: Option<&str>) -> Result<T> {
    let mut keys = settings.keys().clone();
    keys.remove("type");
    match name {
        Some(name) => keys.insert("name".into(), name.into()),
        None => keys.remove("name"),
    };
    serde_json::from_value(Value::Object(keys))
        .map_err(|e| Error::invalid("read adapter settings", e.to_string()))
}

/// Chunks in this process's memory, with a capacity and a ceiling on its bandwidth.
#[derive(Debug)]
struct MockFactory;

impl MockFactory {
    fn config(settings: &AdapterSettings, name: &str) -> Result<MockConfig> {
        let config: MockConfig = read(settings, Some(name))?;
        config.validate()?;
        Ok(config)
    }
}

impl AdapterFactory for MockFactory {
    fn names(&self) -> &'static [&'static str] {
        &["mock"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &["max_size_gb", "mock_bandwidth_gb", "fail_store", "fail_load", "delay_ms"]
    }

    fn paths(&self, _: &AdapterSettings) -> Vec<PathBuf> {
        Vec::new()
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        Self::config(settings, "mock").map(|_| Vec::new())
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        Ok(Mock::open(&Self::config(settings, name)?, cx.l2.clone())?.adapter())
    }
}
