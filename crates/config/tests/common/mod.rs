//! A machine, and an adapter type that takes anything, for the tests of settings.

use std::path::PathBuf;

use kvstrata_config::{
    AdapterFactory, AdapterSettings, BuildContext, FileKind, Machine, Registry, Resolved, SettingsFile,
    Sources, Warning,
};
use kvstrata_core::{Error, Result};
use kvstrata_l2::Adapter;

pub(crate) const MACHINE: Machine = Machine { memory: 64 << 30 };

/// Adapters that exist in settings only.
#[derive(Debug)]
pub(crate) struct Fake {
    names: &'static [&'static str],
}

impl AdapterFactory for Fake {
    fn names(&self) -> &'static [&'static str] {
        self.names
    }
    fn keys(&self) -> &'static [&'static str] {
        &["base_path", "size_gb", "Mixed-Key", "max_capacity_gb", "use_odirect", "num_workers", "password"]
    }
    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        settings.keys().get("base_path").and_then(|p| p.as_str()).map(PathBuf::from).into_iter().collect()
    }
    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        match settings.keys().get("size_gb").and_then(|n| n.as_f64()) {
            Some(n) if n < 0.0 => {
                Err(Error::invalid("read fake", "a size cannot be negative").with("key", "size_gb"))
            }
            _ => Ok(Vec::new()),
        }
    }
    fn memory(&self, _: &AdapterSettings) -> kvstrata_config::MemoryNeed {
        kvstrata_config::MemoryNeed::Any
    }
    fn build(&self, _: &str, _: &AdapterSettings, _: &BuildContext) -> Result<Adapter> {
        Err(Error::invalid("build fake", "it exists in settings only"))
    }
}

pub(crate) fn registry() -> Registry {
    Registry::new().with(Fake { names: &["fake"] }).with(Fake { names: &["fs", "fs_native"] })
}

pub(crate) fn sources() -> Sources {
    Sources::default()
}

pub(crate) fn flags(pairs: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), Some((*v).to_owned()))).collect()
}

pub(crate) fn file(kind: FileKind, text: &str) -> SettingsFile {
    let name = match kind {
        FileKind::Toml => "kv.toml",
        FileKind::Yaml => "kv.yaml",
        FileKind::Json => "kv.json",
    };
    SettingsFile::from_text(name, kind, text)
}

pub(crate) fn load(sources: &Sources) -> Result<Resolved> {
    Resolved::load(sources, &MACHINE, &registry())
}

#[track_caller]
pub(crate) fn effective(sources: &Sources) -> Resolved {
    load(sources).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
pub(crate) fn error(sources: &Sources) -> String {
    load(sources).map(|e| panic!("accepted: {:?}", e.settings)).unwrap_or_else(|e| e.to_string())
}
