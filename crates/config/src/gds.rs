//! GPU memory to local disks: the `gds` adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_disk::Writer;
use kvstrata_l2::Adapter;
use kvstrata_l2_gds::{
    GdsConfig, GdsContext, GdsStore, Orders, PROBE_PROGRAM, Prober, Search, cuda, os_disk,
};
use kvstrata_policy::Place;

use crate::adapters::AdapterSettings;
use crate::builtin::{read, sizes_in_gib};
use crate::directories;
use crate::registry::{AdapterFactory, BuildContext};
use crate::several::{self, Several};
use crate::warning::Warning;

/// The first argument that makes the `kvstrata` command the probe.
pub const PROBE_COMMAND: &str = "gds-probe";

#[derive(Debug)]
pub(crate) struct GdsFactory;

/// One of the directories of a `gds` adapter.
type Directory = (Place, GdsConfig);

impl GdsFactory {
    /// The stores that the settings describe, and how a path is chosen if they are several.
    fn config(settings: &AdapterSettings, name: &str) -> Result<(Option<Several>, Vec<Directory>)> {
        let settings = sizes_in_gib(settings, &["default_quota_gb"], &["quotas"])?;
        let mut keys = settings.keys().clone();
        let sharding = keys.remove("gds_path_sharding").unwrap_or_else(|| LMCACHES_RULE.into());
        let list = keys.remove("gds_path").unwrap_or_else(|| "".into());
        let named = |e: Error| e.with("gds_path", &list).with("gds_path_sharding", &sharding);
        // Read under the names that other adapters have for them.
        let theirs = [("paths".to_owned(), list.clone()), ("path_sharding".to_owned(), sharding.clone())];
        let theirs = serde_json::Map::from_iter(theirs);
        let several = several::read(&theirs).map_err(named)?.expect("it has paths");
        let each =
            several.each(&keys.into(), &["max_capacity_gb", "default_quota_gb"], &["quotas"], "gds_path");
        let each = each.into_iter().map(|(place, settings)| {
            let config: GdsConfig = read(&settings, Some(name))?;
            config.validate().map(|()| (place, config))
        });
        let each = each.collect::<Result<Vec<_>>>()?;
        Ok((Some(several).filter(|several| several.paths.len() > 1), each))
    }
}

/// How a path is chosen unless it is said.
const LMCACHES_RULE: &str = "by_gpu";

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

/// The settings of each path of a `gds` adapter, and how it would try cuFile: for programs that look before anything is opened.
///
/// # Errors
/// `Invalid` with the key and what would be accepted.
pub fn gds_settings(settings: &AdapterSettings) -> Result<(Vec<GdsConfig>, Prober)> {
    let (_, each) = GdsFactory::config(&crate::registry::own_keys(GdsFactory.keys(), settings), "gds")?;
    let each: Vec<GdsConfig> = each.into_iter().map(|(_, config)| config).collect();
    let prober = here(each.first().expect("there is at least one path"));
    Ok((each, prober))
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
        // What does not read is refused by the check.
        let each = Self::config(settings, "gds").map(|(_, each)| each).unwrap_or_default();
        each.into_iter().map(|(_, config)| config.gds_path).collect()
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        // The name plays no part in what may be wrong.
        let (_, each) = Self::config(settings, "gds")?;
        let mut said = Vec::new();
        for (place, config) in &each {
            let origin = format!("adapter at {}", place.name);
            let idle = config.without_effect().into_iter();
            said.extend(idle.map(|(key, why)| Warning::no_effect(key, &origin, why)));
            if settings.keys().contains_key("max_capacity_gb") && config.capacity()?.is_none() {
                said.push(Warning::new("max_capacity_gb", &origin, "is 0, which is no limit, as in LMCache"));
            }
        }
        Ok(said)
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        let (several, each) = Self::config(settings, name)?;
        let orders = Arc::new(Orders::default());
        let open = move |config: &GdsConfig, cx: &BuildContext| {
            let context = GdsContext {
                disk: os_disk(config)?,
                l2: cx.l2.clone(),
                writer: Writer { pid: std::process::id(), id: cx.run },
                namespaces: cx.namespaces.clone(),
                gpus: cuda(),
                prober: here(config),
                memory: cx.memory.clone(),
                orders: Arc::clone(&orders),
            };
            Ok(GdsStore::open(config, context)?.adapter())
        };
        let Some(several) = several else {
            let (_, config) = each.into_iter().next().expect("there is at least one path");
            return open(&config, cx);
        };
        let directory = |(place, config): Directory| {
            let (path, cx, open) = (config.gds_path.clone(), cx.clone(), open.clone());
            directories::Directory { place, path, open: Arc::new(move || open(&config, &cx)) }
        };
        directories::open(name, several.sharding, each.into_iter().map(directory).collect(), cx)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(json: Value) -> Result<(Option<Several>, Vec<Directory>)> {
        let Value::Object(keys) = json else { panic!("an object") };
        GdsFactory::config(&keys.into(), "gds")
    }

    #[test]
    fn a_list_is_read_as_lmcache_reads_it() {
        let (several, one) = config(json!({"gds_path": " /a ,,", "gds_path_sharding": "by_gpu"})).unwrap();
        assert_eq!((several, one[0].1.gds_path.as_path(), one.len()), (None, Path::new("/a"), 1));
        let (several, two) = config(json!({"gds_path": "/a, /b,", "max_capacity_gb": 3.0})).unwrap();
        assert_eq!(several.unwrap().sharding, kvstrata_policy::Sharding::ByGpu, "LMCache's rule unless said");
        assert_eq!((two[1].1.gds_path.as_path(), two[1].1.max_capacity_gb), (Path::new("/b"), 1.5));
        let (several, _) = config(json!({"gds_path": "/a,/b", "gds_path_sharding": "by_key"})).unwrap();
        assert_eq!(several.unwrap().sharding, kvstrata_policy::Sharding::ByKey);
        for (json, says) in [
            (json!({"gds_path": " , "}), "gds_path"),
            (json!({}), "gds_path"),
            (json!({"gds_path": "/a,/a"}), "twice"),
            (json!({"gds_path": "/a", "gds_path_sharding": "by_moon"}), "gds_path_sharding"),
            (json!({"gds_path": "/a,/b", "gds_path_sharding": "map"}), "gds_path_sharding"),
            (json!({"gds_path": "/a", "use_gds": "maybe"}), "use_gds"),
        ] {
            let e = config(json.clone()).unwrap_err().to_string();
            assert!(e.contains(says), "{json}: {e}");
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
