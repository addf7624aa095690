//! GPU memory to local disks: the `gds` adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_disk::Writer;
use kvstrata_l2::Adapter;
use kvstrata_l2_gds::{
    GdsConfig, GdsContext, GdsStore, Orders, PROBE_PROGRAM, Prober, Search, cuda, os_disk,
};
use serde_json::Value;

use crate::adapters::AdapterSettings;
use crate::builtin::{read, sizes_in_gib};
use crate::registry::{AdapterFactory, BuildContext};
use crate::warning::Warning;

/// The first argument that makes the `kvstrata` command the probe.
pub const PROBE_COMMAND: &str = "gds-probe";

#[derive(Debug)]
pub(crate) struct GdsFactory;

impl GdsFactory {
    fn config(settings: &AdapterSettings, name: &str) -> Result<GdsConfig> {
        let settings = &sizes_in_gib(settings, &["default_quota_gb"], &["quotas"])?;
        let mut keys = settings.keys().clone();
        if let Some(path) = keys.get("gds_path").and_then(Value::as_str) {
            let paths = paths(path);
            if paths.len() > 1 {
                let why = "one path is accepted in this version; an adapter for each path may share the keys";
                return Err(
                    Error::new(ErrorKind::Unsupported, "read gds settings", why).with("gds_path", path)
                );
            }
            let only = paths.first().map_or("", |p| *p).to_owned();
            keys.insert("gds_path".into(), only.into());
        }
        // With one path there is nothing to choose; the strategy is read all the same.
        match keys.remove("gds_path_sharding") {
            None => {}
            Some(Value::String(how)) if how == "by_gpu" => {}
            Some(other) => {
                return Err(Error::invalid("read gds settings", "by_gpu is accepted")
                    .with("gds_path_sharding", other));
            }
        }
        let config: GdsConfig = read(&keys.into(), Some(name))?;
        config.validate()?;
        Ok(config)
    }
}

/// LMCache's list: blanks around an element and empty elements are left out.
fn paths(list: &str) -> Vec<&str> {
    list.split(',').map(str::trim).filter(|p| !p.is_empty()).collect()
}

/// The program that tries cuFile: the one that is named, the one beside this program, or this program if it is `kvstrata`.
fn prober(config: &GdsConfig, me: Option<&Path>, library: Option<PathBuf>) -> Prober {
    let explicit = config.cufile_library.clone().or(library);
    let search = Search { explicit, ..Search::default() };
    let limit = config.probe_limit();
    let with = |program: Option<PathBuf>, args: Vec<_>| Prober { program, args, search, limit };
    if let Some(named) = &config.gds_probe {
        return with(Some(named.clone()), vec![]);
    }
    match me {
        Some(me) if me.with_file_name(PROBE_PROGRAM).exists() => {
            with(Some(me.with_file_name(PROBE_PROGRAM)), vec![])
        }
        Some(me) if me.file_name().is_some_and(|name| name == "kvstrata") => {
            with(Some(me.to_owned()), vec![PROBE_COMMAND.into()])
        }
        _ => with(None, vec![]),
    }
}

/// The settings of a `gds` adapter, and how it would try cuFile: for programs that look before anything is opened.
///
/// # Errors
/// `Invalid` with the key and what would be accepted.
pub fn gds_settings(settings: &AdapterSettings) -> Result<(GdsConfig, Prober)> {
    let config = GdsFactory::config(&crate::registry::own_keys(GdsFactory.keys(), settings), "gds")?;
    let prober = here(&config);
    Ok((config, prober))
}

fn here(config: &GdsConfig) -> Prober {
    let me = std::env::current_exe().ok();
    prober(config, me.as_deref(), std::env::var_os("KV_CUFILE_LIB").map(PathBuf::from))
}

impl AdapterFactory for GdsFactory {
    fn names(&self) -> &'static [&'static str] {
        &["gds"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &[
            "gds_path",
            "gds_path_sharding",
            "gds_buffer_size",
            "use_gds",
            "gds_way",
            "gds_backend",
            "use_direct_io",
            "disk_io_threads",
            "gds_io_threads",
            "max_alloc_attempts",
            "allocation_attempt_delay_secs",
            "max_capacity_gb",
            "eviction_policy",
            "quotas",
            "default_quota_gb",
            "allow_host",
            "cufile_library",
            "gds_probe",
            "gds_probe_secs",
        ]
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        let list = settings.keys().get("gds_path").and_then(Value::as_str).unwrap_or_default();
        paths(list).into_iter().map(PathBuf::from).collect()
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        // The name plays no part in what may be wrong.
        let config = Self::config(settings, "gds")?;
        let origin = format!("adapter at {}", config.gds_path.display());
        let mut said: Vec<_> = config
            .without_effect()
            .into_iter()
            .map(|(key, why)| Warning::no_effect(key, &origin, why))
            .collect();
        if settings.keys().contains_key("max_capacity_gb") && config.capacity()?.is_none() {
            said.push(Warning::new("max_capacity_gb", &origin, "is 0, which is no limit, as in LMCache"));
        }
        Ok(said)
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        let config = Self::config(settings, name)?;
        let context = GdsContext {
            disk: os_disk(&config)?,
            l2: cx.l2.clone(),
            writer: Writer { pid: std::process::id(), id: cx.run },
            namespaces: cx.namespaces.clone(),
            gpus: cuda(),
            prober: here(&config),
            memory: cx.memory.clone(),
            orders: Arc::new(Orders::default()),
        };
        Ok(GdsStore::open(&config, context)?.adapter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> Result<GdsConfig> {
        let Value::Object(keys) = json else { panic!("an object") };
        GdsFactory::config(&keys.into(), "gds")
    }

    #[test]
    fn a_list_of_one_path_is_that_path() {
        let c = config(serde_json::json!({"gds_path": " /a ,,", "gds_path_sharding": "by_gpu"})).unwrap();
        assert_eq!(c.gds_path, Path::new("/a"));
        for (json, says) in [
            (serde_json::json!({"gds_path": "/a, /b"}), "gds_path"),
            (serde_json::json!({"gds_path": " , "}), "gds_path"),
            (serde_json::json!({"gds_path": "/a", "gds_path_sharding": "by_moon"}), "gds_path_sharding"),
            (serde_json::json!({"gds_path": "/a", "use_gds": "maybe"}), "use_gds"),
        ] {
            let e = config(json).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        }
    }

    #[test]
    fn every_key_of_the_settings_is_offered() {
        for key in GdsConfig::KEYS {
            assert!(GdsFactory.keys().contains(key), "{key}");
        }
    }

    #[test]
    fn the_probe_is_named_or_beside_or_the_command_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = GdsConfig::new("/d");
        let at = |name: &str| dir.path().join(name);
        assert_eq!(prober(&c, Some(&at("python3")), None).program, None);
        let p = prober(&c, Some(&at("kvstrata")), Some("/lib/x.so".into()));
        assert_eq!((p.program, p.args), (Some(at("kvstrata")), vec![PROBE_COMMAND.into()]));
        assert_eq!(p.search.explicit, Some("/lib/x.so".into()));
        std::fs::write(at(PROBE_PROGRAM), "").unwrap();
        assert_eq!(prober(&c, Some(&at("python3")), None).program, Some(at(PROBE_PROGRAM)));
        c.gds_probe = Some("/p".into());
        assert_eq!(prober(&c, Some(&at("kvstrata")), None).program, Some("/p".into()));
    }
}
