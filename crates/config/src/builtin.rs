//! The adapters of this version.

use std::path::PathBuf;

use kvstrata_core::{Error, Result};
use kvstrata_l2::Adapter;
use kvstrata_l2_fault::{FaultConfig, Injector};
use kvstrata_l2_mock::{Mock, MockConfig};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::adapters::AdapterSettings;
use crate::registry::{AdapterFactory, BuildContext, DecoratorFactory, MemoryNeed, Registry};
use crate::size::ByteSize;
use crate::warning::Warning;

pub(crate) fn register(registry: Registry) -> Registry {
    registry
        .with(MockFactory)
        .with(crate::fs::FsFactory)
        .with(crate::gds::GdsFactory)
        .with(crate::lmcache::LmcacheFsFactory)
        .with(crate::lmcache::LmcacheGdsFactory)
        .with(crate::mooncake::MooncakeFactory)
        .with_decorator(FaultFactory)
}

/// Settings in the adapter's own type: without the `type` that chose it, under the name it is to have, if it has one.
pub(crate) fn read<T: DeserializeOwned>(settings: &AdapterSettings, name: Option<&str>) -> Result<T> {
    let mut keys = settings.keys().clone();
    keys.remove("type");
    keys.remove("name");
    keys.extend(name.map(|name| ("name".into(), name.into())));
    // Read from text with one key per line, because the error then says in which key it is.
    let text = serde_json::to_string_pretty(&Value::Object(keys)).unwrap_or_default();
    serde_json::from_str(&text).map_err(|e| {
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        let error = Error::invalid("read adapter settings", message);
        // A key that is missing stands nowhere.
        match key_at(&text, e.line()).filter(|_| !message.starts_with("missing")) {
            Some(key) => error.with("key", key),
            None => error,
        }
    })
}

/// The outermost key of the pretty-printed object that this line, counted from 1, belongs to. What a value's own type
/// finds wrong may be placed behind the value, which for the last key is the closing brace.
fn key_at(text: &str, line: usize) -> Option<&str> {
    let before: Vec<&str> = text.lines().take(line).collect();
    let key = before.iter().rev().find_map(|l| l.strip_prefix("  \""))?;
    key.split_once("\":").map(|(key, _)| key)
}

/// The settings with the sizes that are texts (`"512MiB"`) as numbers of GiB: those under `keys`, and all those in the
/// objects under `maps`.
pub(crate) fn sizes_in_gib(
    settings: &AdapterSettings,
    keys: &[&'static str],
    maps: &[&'static str],
) -> Result<AdapterSettings> {
    let mut all = settings.keys().clone();
    let gib = |key: &'static str, value: &mut Value| -> Result<()> {
        if let Value::String(text) = value {
            let size = ByteSize::parse_in(text, 1 << 30)
                .map_err(|e| Error::invalid("read adapter settings", e.to_string()).with(key, &*text))?;
            *value = size.gib().into();
        }
        Ok(())
    };
    for &key in keys {
        all.get_mut(key).map_or(Ok(()), |value| gib(key, value))?;
    }
    for &map in maps {
        let sizes = all.get_mut(map).and_then(Value::as_object_mut);
        sizes.into_iter().flatten().try_for_each(|(_, value)| gib(map, value))?;
    }
    Ok(all.into())
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

    fn memory(&self, _: &AdapterSettings) -> MemoryNeed {
        MemoryNeed::Any
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        Ok(Mock::open(&Self::config(settings, name)?, cx.l2.clone())?.adapter())
    }
}

/// Faults around another adapter, for tests.
#[derive(Debug)]
struct FaultFactory;

impl FaultFactory {
    fn config(settings: &AdapterSettings) -> Result<FaultConfig> {
        let config: FaultConfig = read(settings, None)?;
        config.validate()?;
        Ok(config)
    }
}

impl DecoratorFactory for FaultFactory {
    fn names(&self) -> &'static [&'static str] {
        &["fault_inject", "fault"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &FaultConfig::KEYS
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        Self::config(settings)?;
        let why = "makes loads and stores fail on purpose: for tests, never for production";
        Ok(vec![Warning::new("type", "adapter fault_inject", why)])
    }

    fn wrap(&self, inner: Adapter, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        Ok(Injector::new(inner, &Self::config(settings)?, cx.l2.clone())?.adapter())
    }
}
