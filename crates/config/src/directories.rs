//! Several directories as one adapter: all of them made at the start, told apart, and opened again when one was lost.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_l2::{Adapter, LimitOptions};
use kvstrata_l2_paths::{Member, OpenPath, Paths, PathsOptions};
use kvstrata_policy::{Place, Sharding};

use crate::adapters::AdapterSettings;
use crate::registry::BuildContext;
use crate::warning::Warning;

const OP: &str = "open paths";

/// Opens a directory's store; blocks.
pub(crate) type Open = Arc<dyn Fn() -> Result<Adapter> + Send + Sync>;

/// One of several directories.
#[derive(Clone)]
pub(crate) struct Directory {
    pub(crate) place: Place,
    pub(crate) path: PathBuf,
    pub(crate) open: Open,
}

/// What an adapter's settings say of one of its directories.
pub(crate) trait DirectorySettings {
    fn directory(&self) -> &Path;
    fn capacity(&self) -> Result<Option<u64>>;
    fn without_effect(&self) -> Vec<(&'static str, &'static str)>;
}

/// Where the stores are. What does not read is refused by the check.
pub(crate) fn paths<C: DirectorySettings>(each: Result<Vec<(Place, C)>>) -> Vec<PathBuf> {
    each.unwrap_or_default().into_iter().map(|(_, settings)| settings.directory().to_owned()).collect()
}

/// What of the settings is not what it looks like.
pub(crate) fn check<C: DirectorySettings>(
    each: &[(Place, C)],
    given: &AdapterSettings,
) -> Result<Vec<Warning>> {
    let mut said = Vec::new();
    for (place, settings) in each {
        let origin = format!("adapter at {}", place.name);
        let idle = settings.without_effect().into_iter();
        said.extend(idle.map(|(key, why)| Warning::no_effect(key, &origin, why)));
        if given.keys().contains_key("max_capacity_gb") && settings.capacity()?.is_none() {
            said.push(Warning::new("max_capacity_gb", &origin, "is 0, which is no limit, as in LMCache"));
        }
    }
    Ok(said)
}

/// The directories as one adapter of this name.
pub(crate) fn open(
    name: &str,
    sharding: Sharding,
    each: Vec<Directory>,
    cx: &BuildContext,
) -> Result<Adapter> {
    let homes = homes(&each)?;
    let member = |(directory, home): (Directory, Result<Home>)| {
        let adapter = home.clone().and_then(|_| (directory.open)());
        let place = directory.place.clone();
        Member {
            place,
            adapter,
            open: Some(Arc::new(Again { directory, home: home.ok() }) as Arc<dyn OpenPath>),
        }
    };
    let members: Vec<Member> = each.into_iter().zip(homes).map(member).collect();
    // Together they may hold what one adapter may: a path that hangs pins no more than its part.
    let share = |bytes: u64| LimitOptions::new((bytes / 4 / members.len() as u64).max(64 << 20));
    let limit = cx.memory.as_ref().map(|memory| share(memory.usage().limit));
    let options = PathsOptions { limit, ..PathsOptions::default() };
    Ok(Paths::new(name, sharding, members, options, cx.l2.clone())?.adapter())
}

/// Where a directory is: the file system, and the directory in it.
type Home = (u64, u64);

fn home(path: &Path) -> std::io::Result<Home> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Makes all directories, and tells two spellings of one apart from two directories.
fn homes(each: &[Directory]) -> Result<Vec<Result<Home>>> {
    let mut homes: Vec<Result<Home>> = Vec::with_capacity(each.len());
    for Directory { place, path, .. } in each {
        let made = std::fs::create_dir_all(path).and_then(|()| home(path));
        if let Ok(this) = made {
            for (other, there) in each.iter().zip(&homes) {
                let Ok(there) = there else { continue };
                if *there == this {
                    let e = Error::invalid(OP, "two paths are one directory");
                    return Err(e.with("paths", format_args!("{}, {}", other.place.name, place.name)));
                }
                if there.0 == this.0 {
                    tracing::warn!(
                        target: "kvstrata::config",
                        "{} and {} are on one file system: each has its own capacity, and they share its speed",
                        other.place.name,
                        place.name
                    );
                }
            }
        }
        homes.push(made.map_err(|e| Error::io(OP, e)));
    }
    Ok(homes)
}

/// Opens a directory again.
struct Again {
    directory: Directory,
    /// Where it was at the start, if it was there.
    home: Option<Home>,
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("path", &self.directory.path).field("home", &self.home).finish()
    }
}

#[async_trait]
impl OpenPath for Again {
    async fn open(&self) -> Result<Adapter> {
        const OP: &str = "open path";
        let (Directory { path, open, .. }, start) = (self.directory.clone(), self.home);
        let opened = tokio::task::spawn_blocking(move || {
            // Where a disk was mounted there may be an empty directory now, or none, on a disk that nobody meant.
            if let Some((there, _)) = start {
                let now =
                    home(&parent_of(&path)).map_err(|e| Error::io(OP, e).with("path", path.display()))?;
                if now.0 != there {
                    let what = "another file system is mounted there than at the start";
                    return Err(Error::new(ErrorKind::Io, OP, what).with("path", path.display()));
                }
            }
            open()
        });
        opened.await.map_err(|e| Error::new(ErrorKind::Internal, OP, e.to_string()))?
    }
}

/// The directory, or if it was removed, the one that it will be made in.
fn parent_of(path: &Path) -> PathBuf {
    let mut there = path;
    while !there.exists() {
        match there.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => there = parent,
            _ => return PathBuf::from("."),
        }
    }
    there.to_owned()
}
