//! Local disks: the `fs` adapter, over one directory or several.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Namespace, Result};
use kvstrata_disk::Writer;
use kvstrata_l2::{Adapter, Context, LimitOptions};
use kvstrata_l2_fs::{FsConfig, open_os};
use kvstrata_l2_paths::{Member, OpenPath, Paths, PathsOptions};
use kvstrata_mem::Allocate;
use kvstrata_policy::Place;

use crate::adapters::AdapterSettings;
use crate::builtin::{read, sizes_in_gib};
use crate::registry::{AdapterFactory, BuildContext};
use crate::several::{self, Several};
use crate::warning::Warning;

/// Local disks: one directory, or several with a store each.
#[derive(Debug)]
pub(crate) struct FsFactory;

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
        let Some(several) = several::read(settings.keys())? else {
            let mut keys = settings.keys().clone();
            keys.remove("path_sharding");
            let config = one(&keys.into())?;
            let name = config.base_path.display().to_string();
            return Ok((None, vec![(Place { name, weight: 1, devices: Vec::new() }, config)]));
        };
        let each = several.each(&settings, &["max_capacity_gb", "default_quota_gb"], &["quotas"]);
        let each = each.into_iter().map(|(place, settings)| Ok((place, one(&settings)?)));
        let each = each.collect::<Result<_>>()?;
        Ok((Some(several), each))
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
        ]
    }

    fn paths(&self, settings: &AdapterSettings) -> Vec<PathBuf> {
        // What does not read is refused by the check.
        let each = Self::config(settings, "fs").map(|(_, each)| each).unwrap_or_default();
        each.into_iter().map(|(_, config)| config.base_path).collect()
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        // The name plays no part in what may be wrong.
        let (_, each) = Self::config(settings, "fs")?;
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
        let open = |config: FsConfig, home: Option<Home>| DirectoryStore {
            config,
            home,
            l2: cx.l2.clone(),
            writer: Writer { pid: std::process::id(), id: cx.run },
            namespaces: cx.namespaces.clone(),
            memory: cx.memory.clone(),
        };
        let Some(several) = several.filter(|several| several.paths.len() > 1) else {
            let (_, config) = each.into_iter().next().expect("there is at least one path");
            return open(config, None).open();
        };
        let homes = homes(&each)?;
        let members = each.into_iter().zip(homes).map(|((place, config), home)| {
            let store = open(config, home.clone().ok());
            let adapter = home.and_then(|_| store.open());
            Member { place, adapter, open: Some(Arc::new(store)) }
        });
        let members: Vec<Member> = members.collect();
        // Together they may hold what one adapter may: a path that hangs pins no more than its part.
        let share = |bytes: u64| LimitOptions::new((bytes / 4 / members.len() as u64).max(64 << 20));
        let limit = cx.memory.as_ref().map(|memory| share(memory.usage().limit));
        let options = PathsOptions { limit, ..PathsOptions::default() };
        Ok(Paths::new(name, several.sharding, members, options, cx.l2.clone())?.adapter())
    }
}

/// Where a directory is: the file system, and the directory in it.
type Home = (u64, u64);

fn home(path: &Path) -> std::io::Result<Home> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Makes all directories, and tells two spellings of one apart from two directories.
fn homes(each: &[Directory]) -> Result<Vec<Result<Home>>> {
    const OP: &str = "open paths";
    let mut homes: Vec<Result<Home>> = Vec::with_capacity(each.len());
    for (place, config) in each {
        let made = std::fs::create_dir_all(&config.base_path).and_then(|()| home(&config.base_path));
        if let Ok(this) = made {
            for ((other, _), there) in each.iter().zip(&homes) {
                let Ok(there) = there else { continue };
                if *there == this {
                    let e = Error::invalid(OP, "two paths are one directory");
                    return Err(e.with("paths", format_args!("{}, {}", other.name, place.name)));
                }
                if there.0 == this.0 {
                    tracing::warn!(
                        target: "kvstrata::config",
                        "{} and {} are on one file system: each has its own capacity, and they share its speed",
                        other.name,
                        place.name
                    );
                }
            }
        }
        homes.push(made.map_err(|e| Error::io(OP, e)));
    }
    Ok(homes)
}

/// A directory that can be opened, and opened again.
#[derive(Clone, Debug)]
struct DirectoryStore {
    config: FsConfig,
    /// Where it was at the start, if it was there.
    home: Option<Home>,
    l2: Context,
    writer: Writer,
    namespaces: Vec<Namespace>,
    memory: Option<Arc<dyn Allocate>>,
}

impl DirectoryStore {
    fn open(&self) -> Result<Adapter> {
        let (l2, namespaces) = (self.l2.clone(), self.namespaces.clone());
        Ok(open_os(&self.config, l2, self.writer, namespaces, self.memory.clone())?.adapter())
    }
}

#[async_trait]
impl OpenPath for DirectoryStore {
    async fn open(&self) -> Result<Adapter> {
        const OP: &str = "open path";
        let this = self.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let now = home(&this.config.base_path);
            // Where a disk was mounted there may be an empty directory now, on a disk that nobody meant.
            if let Some((there, _)) = this.home
                && now.map_err(|e| Error::io(OP, e))?.0 != there
            {
                return Err(Error::new(
                    ErrorKind::Io,
                    OP,
                    "another file system is mounted there than at the start",
                ));
            }
            Self::open(&this)
        });
        opened.await.map_err(|e| Error::new(ErrorKind::Internal, OP, e.to_string()))?
    }
}
