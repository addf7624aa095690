//! Directories of LMCache's: the `lmcache_fs` and `lmcache_gds` adapters.

use std::path::PathBuf;

use kvstrata_core::Result;
use kvstrata_l2::Adapter;
use kvstrata_lmcache_files::{FlatConfig, GdsConfig, LmcacheFs, LmcacheGds};
use serde_json::Value;

use crate::adapters::{AdapterSettings, LMCACHE};
use crate::builtin::read;
use crate::registry::{AdapterFactory, BuildContext, MemoryNeed};
use crate::warning::Warning;

/// The directory under `base_path`.
fn base_path(settings: &AdapterSettings) -> Vec<PathBuf> {
    settings.keys().get("base_path").and_then(Value::as_str).map(PathBuf::from).into_iter().collect()
}

/// A directory of LMCache's `fs` adapters, which is only read.
#[derive(Debug)]
pub(crate) struct LmcacheFsFactory;

impl LmcacheFsFactory {
    fn config(settings: &AdapterSettings, name: &str) -> Result<FlatConfig> {
        let config: FlatConfig = read(settings, Some(name))?;
        config.validate()?;
        Ok(config)
    }
}

impl AdapterFactory for LmcacheFsFactory {
    fn names(&self) -> &'static [&'static str] {
        &LMCACHE[..1]
    }

    fn keys(&self) -> &'static [&'static str] {
        &["base_path", "models", "num_workers", "no_atime"]
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        base_path(settings)
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        Self::config(settings, LMCACHE[0]).map(|_| Vec::new())
    }

    fn memory(&self, _: &AdapterSettings) -> MemoryNeed {
        MemoryNeed::Any
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        Ok(LmcacheFs::open_os(&Self::config(settings, name)?, cx.l2.clone())?.adapter())
    }
}

/// A directory of LMCache's GDS backend.
#[derive(Debug)]
pub(crate) struct LmcacheGdsFactory;

impl LmcacheGdsFactory {
    fn config(settings: &AdapterSettings, name: &str) -> Result<GdsConfig> {
        let config: GdsConfig = read(settings, Some(name))?;
        config.validate()?;
        Ok(config)
    }
}

impl AdapterFactory for LmcacheGdsFactory {
    fn names(&self) -> &'static [&'static str] {
        &LMCACHE[1..]
    }

    fn keys(&self) -> &'static [&'static str] {
        &[
            "base_path",
            "writable",
            "kv_dtype",
            "fmt",
            "local_world_size",
            "weka",
            "num_workers",
            "no_atime",
            "debug_checks",
        ]
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        base_path(settings)
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        let config = Self::config(settings, LMCACHE[1])?;
        let origin = format!("adapter at {}", config.base_path.display());
        let unlimited = "stores to a directory that has no limit and from which nothing is evicted";
        Ok(config.writable.then(|| Warning::new("writable", &origin, unlimited)).into_iter().collect())
    }

    fn memory(&self, _: &AdapterSettings) -> MemoryNeed {
        MemoryNeed::Any
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        Ok(LmcacheGds::open_os(&Self::config(settings, name)?, cx.l2.clone(), cx.run)?.adapter())
    }
}
