//! Local disks: the `fs` adapter, over one directory or several.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::Result;
use kvstrata_disk::Writer;
use kvstrata_l2::Adapter;
use kvstrata_l2_fs::{FsConfig, open_os};
use kvstrata_policy::{Place, Sharding};

use crate::adapters::AdapterSettings;
use crate::builtin::{read, sizes_in_gib};
use crate::directories::{self, DirectorySettings};
use crate::registry::{AdapterFactory, BuildContext, MemoryNeed, own_keys};
use crate::several::{self, Several};
use crate::warning::Warning;

/// Local disks: one directory, or several with a store each.
#[derive(Debug)]
pub(crate) struct FsFactory;

/// Sizes that are said of the whole.
const GIB: [&str; 2] = ["max_capacity_gb", "default_quota_gb"];

/// One of the directories of an `fs` adapter.
type Directory = (Place, FsConfig);

impl FsFactory {
    /// The stores that the settings describe, and how they are several if they are.
    fn config(settings: &AdapterSettings, name: &str) -> Result<(Option<Several>, Vec<Directory>)> {
        let settings = sizes_in_gib(settings, &["default_quota_gb"], &["quotas"])?;
        let one = |settings: &AdapterSettings| {
            let config: FsConfig = read(settings, Some(name))?;
            config.validate().map(|()| config)
        };
        let Some(several) = several::read(settings.keys(), Sharding::ByKey)? else {
            let mut keys = settings.keys().clone();
            keys.remove("path_sharding");
            let config = one(&keys.into())?;
            let name = config.base_path.display().to_string();
            return Ok((None, vec![(Place { name, weight: 1, devices: Vec::new() }, config)]));
        };
        let each = several.each(&settings, &GIB, &["quotas"], "base_path");
        let each = each.into_iter().map(|(place, settings)| Ok((place, one(&settings)?)));
        let each = each.collect::<Result<_>>()?;
        Ok((Some(several), each))
    }
}

impl DirectorySettings for FsConfig {
    fn directory(&self) -> &Path {
        &self.base_path
    }

    fn capacity(&self) -> Result<Option<u64>> {
        self.capacity()
    }

    fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        self.without_effect()
    }
}

impl AdapterFactory for FsFactory {
    fn names(&self) -> &'static [&'static str] {
        &["fs", "fs_native"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &[
            "base_path",
            "paths",
            "path_sharding",
            "layout",
            "use_odirect",
            "num_workers",
            "max_capacity_gb",
            "read_ahead_size",
            "relative_tmp_dir",
            "eviction_policy",
            "eviction",
            "quotas",
            "default_quota_gb",
            "sync",
            "io_engine",
            "iouring_queue_depth",
            "no_atime",
            "shared",
        ]
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        directories::paths(Self::config(settings, "fs").map(|(_, each)| each))
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        // The name plays no part in what may be wrong.
        directories::check(&Self::config(settings, "fs")?.1, settings)
    }

    fn memory(&self, _: &AdapterSettings) -> MemoryNeed {
        MemoryNeed::Any
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        let (several, each) = Self::config(settings, name)?;
        let writer = Writer { pid: std::process::id(), id: cx.run };
        let open = move |config: &FsConfig, cx: &BuildContext| {
            open_os(config, cx.l2.clone(), writer, cx.namespaces.clone(), cx.memory.clone())
                .map(|fs| fs.adapter())
        };
        let Some(several) = several.filter(|several| several.paths.len() > 1) else {
            let (_, config) = each.into_iter().next().expect("there is at least one path");
            return open(&config, cx);
        };
        let directory = |(place, config): Directory| {
            let (path, cx) = (config.base_path.clone(), cx.clone());
            directories::Directory { place, path, open: Arc::new(move || open(&config, &cx)) }
        };
        directories::open(name, several.sharding, each.into_iter().map(directory).collect(), cx)
    }
}

/// The directories of an `fs` adapter: how one is chosen, and each with the settings of its store.
pub type FsPaths = (Sharding, Vec<(Place, AdapterSettings)>);

/// The directories of an `fs` adapter that has several, and the settings of each store: for programs that look before
/// anything is opened. `None` if it has one.
///
/// # Errors
/// `Invalid` with the key and what would be accepted.
pub fn fs_paths(settings: &AdapterSettings) -> Result<Option<FsPaths>> {
    let settings = sizes_in_gib(&own_keys(FsFactory.keys(), settings), &["default_quota_gb"], &["quotas"])?;
    let Some(several) = several::read(settings.keys(), Sharding::ByKey)? else { return Ok(None) };
    Ok(Some((several.sharding, several.each(&settings, &GIB, &["quotas"], "base_path"))))
}
