//! GPU memory to local disks: the `gds` adapter.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use kvstrata_core::{Error, Result};
use kvstrata_disk::Writer;
use kvstrata_l2::Adapter;
use kvstrata_l2_gds::{
    GdsConfig, GdsContext, GdsStore, Orders, PROBE_PROGRAM, Prober, Search, cuda, os_disk,
};
use kvstrata_policy::{Place, Sharding};
use serde_json::Value;

use crate::adapters::AdapterSettings;
use crate::builtin::{read, sizes_in_gib};
use crate::directories::{self, DirectorySettings};
use crate::registry::{AdapterFactory, BuildContext, MemoryNeed};
use crate::several::{self, Several};
use crate::warning::Warning;

/// The first argument that makes the `kvstrata` command the probe.
pub const PROBE_COMMAND: &str = "gds-probe";

/// The adapter's own, and what is about several of them.
static KEYS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| GdsConfig::KEYS.iter().copied().chain(["gds_path_sharding"]).collect());

#[derive(Debug)]
pub(crate) struct GdsFactory;

/// One of the directories of a `gds` adapter.
type Directory = (Place, GdsConfig);

impl GdsFactory {
    /// The stores that the settings describe, and how a path is chosen if they are several.
    fn config(settings: &AdapterSettings, name: &str) -> Result<(Option<Several>, Vec<Directory>)> {
        let settings = sizes_in_gib(settings, &["default_quota_gb"], &["quotas"])?;
        let mut keys = settings.keys().clone();
        let sharding = keys.remove("gds_path_sharding").unwrap_or_default();
        let list = keys.remove("gds_path").unwrap_or_else(|| "".into());
        let named = |e: Error| match &sharding {
            Value::Null => e.with("gds_path", &list),
            how => e.with("gds_path", &list).with("gds_path_sharding", how),
        };
        // Read under the names that other adapters have for them.
        let theirs = [("paths".to_owned(), list.clone()), ("path_sharding".to_owned(), sharding.clone())];
        let theirs = serde_json::Map::from_iter(theirs);
        // LMCache's rule unless it is said.
        let several = several::read(&theirs, Sharding::ByGpu).map_err(named)?.expect("it has paths");
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

impl DirectorySettings for GdsConfig {
    fn directory(&self) -> &Path {
        &self.gds_path
    }

    fn capacity(&self) -> Result<Option<u64>> {
        self.capacity()
    }

    fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        self.without_effect()
    }
}

impl AdapterFactory for GdsFactory {
    fn names(&self) -> &'static [&'static str] {
        &["gds"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        directories::paths(Self::config(settings, "gds").map(|(_, each)| each))
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        // The name plays no part in what may be wrong.
        directories::check(&Self::config(settings, "gds")?.1, settings)
    }

    fn memory(&self, _: &AdapterSettings) -> MemoryNeed {
        MemoryNeed::Any
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
    use serde_json::json;

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
        assert_eq!(several.unwrap().sharding, Sharding::ByGpu, "LMCache's rule unless said");
        assert_eq!((two[1].1.gds_path.as_path(), two[1].1.max_capacity_gb), (Path::new("/b"), 1.5));
        let (several, _) = config(json!({"gds_path": "/a,/b", "gds_path_sharding": "by_key"})).unwrap();
        assert_eq!(several.unwrap().sharding, Sharding::ByKey);
        let (several, _) = config(json!({"gds_path": [{"path": "/a", "device": 1}, "/b"]})).unwrap();
        assert_eq!(several.unwrap().sharding, Sharding::Map, "devices are named");
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
    fn what_the_page_shows_is_accepted() {
        let page = include_str!("../../../docs/gds.md");
        let shown: Vec<_> =
            page.split("```json").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        for json in &shown {
            let mut keys: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap();
            assert_eq!(keys.remove("type"), Some("gds".into()));
            GdsFactory::config(&keys.into(), "gds").unwrap_or_else(|e| panic!("{json}: {e}"));
        }
        assert_eq!(shown.len(), 3);
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
