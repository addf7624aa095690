//! The adapter's settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kvstrata_core::{Error, Result};
use kvstrata_disk::{Durability, Limits, Manifest, StoreLayout, Wanted, choose_layout};
use kvstrata_evict::by_name;
use kvstrata_io::{Disk, EngineKind};
use serde::Deserialize;

const OP: &str = "read fs settings";

/// Settings of an `fs` adapter: LMCache's names for `fs` and `fs_native`, and a few of our own.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// The adapter's name; `fs` unless set.
    #[serde(default = "default_name")]
    pub name: String,
    /// The directory of the store. It is made if it is not there.
    pub base_path: PathBuf,
    /// How objects lie in files: `auto`, `slab` or `files`. A store keeps the layout that it was made with.
    #[serde(default)]
    pub layout: LayoutChoice,
    /// Whether loads and stores bypass the page cache: `false`, `true` (where the file system can) or `"require"`. Unless
    /// set, they do with the slab layout where it can, and do not with a file for each object.
    #[serde(default)]
    pub use_odirect: Option<Switch>,
    /// Threads that load and store; 4 unless set. [`crate::open_os`] makes so many; on a disk of the caller's, whose threads
    /// are the caller's too, it is how many loads of one request run at once.
    #[serde(default = "default_workers")]
    pub num_workers: usize,
    /// The hard limit in GiB (2^30 bytes), headers, directories and what is being written included; 0 is no limit, as in
    /// LMCache.
    #[serde(default)]
    pub max_capacity_gb: f64,
    /// LMCache reads this many bytes first to wake the kernel's read-ahead. Here an object is read in one call: no effect.
    #[serde(default)]
    pub read_ahead_size: Option<u64>,
    /// Where files are written before they are published, relative to `base_path`; `tmp` unless set.
    #[serde(default)]
    pub relative_tmp_dir: Option<PathBuf>,
    /// Who goes first when the limit is reached; LRU unless set: a disk has many small objects, and other policies keep more
    /// memory for each.
    #[serde(default)]
    pub eviction_policy: Option<String>,
    /// LMCache's way to set the policy.
    #[serde(default)]
    pub eviction: Option<EvictionConfig>,
    /// What tenants are promised, in GiB by cache salt. Only policies that keep tenants apart take it.
    #[serde(default)]
    pub quotas: BTreeMap<String, f64>,
    /// What is promised to each tenant that is not in `quotas`, in GiB; unless set they share what is left.
    #[serde(default)]
    pub default_quota_gb: Option<f64>,
    /// What a store waits for: `none`, `data` or `full`.
    #[serde(default)]
    pub sync: Sync,
    /// What moves the bytes, by LMCache's names for its raw block adapter: `io_uring`, `posix` (threads) or `auto`.
    #[serde(default)]
    pub io_engine: Engine,
    /// The most transfers that io_uring has under way at once, 1 to 4096; 256 unless set, as in LMCache. It has fewer as
    /// their latencies say.
    #[serde(default = "default_queue_depth")]
    pub iouring_queue_depth: u32,
    /// Whether other processes may have the directory open too, all of them with this key: for file systems that several
    /// machines or engines mount. A file for each object only; the limit is each process's own.
    #[serde(default)]
    pub shared: bool,
    /// Whether loads leave access times alone: `true` (where the file system lets us), `false` or `"require"`.
    #[serde(default = "default_no_atime")]
    pub no_atime: Switch,
}

/// LMCache's `eviction` object.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvictionConfig {
    /// The policy.
    pub eviction_policy: String,
    /// Eviction here happens when bytes are needed: no effect.
    #[serde(default)]
    pub trigger_watermark: Option<f64>,
    /// Eviction here takes as many bytes as are needed: no effect.
    #[serde(default)]
    pub eviction_ratio: Option<f64>,
}

/// `false`, `true` (where it works) or `"require"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "RawSwitch")]
pub struct Switch(pub Wanted);

#[derive(Deserialize)]
#[serde(untagged, expecting = "true, false or \"require\"")]
enum RawSwitch {
    Flag(bool),
    Word(String),
}

impl TryFrom<RawSwitch> for Switch {
    type Error = &'static str;

    fn try_from(raw: RawSwitch) -> Result<Self, Self::Error> {
        match raw {
            RawSwitch::Flag(true) => Ok(Self(Wanted::Try)),
            RawSwitch::Flag(false) => Ok(Self(Wanted::Off)),
            RawSwitch::Word(word) if word == "require" => Ok(Self(Wanted::Require)),
            RawSwitch::Word(_) => Err("true, false or \"require\""),
        }
    }
}

/// How objects lie in files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutChoice {
    /// As in the store that is there. For a new one: segments if there is a limit on bytes and the file system is this
    /// machine's own, else files.
    #[default]
    Auto,
    /// Few files with many objects each, set aside in advance. Needs `max_capacity_gb`.
    Slab,
    /// A file for each object.
    Files,
}

/// What a store waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// Nothing.
    #[default]
    None,
    /// The bytes.
    Data,
    /// The bytes and the names.
    Full,
}

/// What moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// io_uring past the page cache, where the kernel allows it; threads for the rest.
    #[default]
    Auto,
    /// io_uring for all files, where the kernel allows it.
    IoUring,
    /// Threads.
    Posix,
}

fn default_queue_depth() -> u32 {
    256
}

fn default_name() -> String {
    "fs".into()
}

fn default_no_atime() -> Switch {
    Switch(Wanted::Try)
}

fn default_workers() -> usize {
    4
}

/// The most threads that make sense for one directory; more is taken for a mistake.
const MOST_WORKERS: usize = 1024;

impl FsConfig {
    /// The settings of a store in this directory, with everything else as if unset.
    pub fn new(base_path: impl Into<PathBuf>) -> Self {
        Self {
            name: default_name(),
            base_path: base_path.into(),
            layout: LayoutChoice::Auto,
            use_odirect: None,
            num_workers: default_workers(),
            max_capacity_gb: 0.0,
            read_ahead_size: None,
            relative_tmp_dir: None,
            eviction_policy: None,
            eviction: None,
            quotas: BTreeMap::new(),
            default_quota_gb: None,
            sync: Sync::None,
            io_engine: Engine::Auto,
            iouring_queue_depth: default_queue_depth(),
            shared: false,
            no_atime: default_no_atime(),
        }
    }

    /// Checks what can be checked without touching the disk.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &'static str, value: &dyn std::fmt::Display, what: &str| {
            Err(Error::invalid(OP, what.to_owned()).with(key, value))
        };
        if self.name.is_empty() {
            return bad("name", &"\"\"", "an adapter's name is not empty");
        }
        if self.base_path.as_os_str().is_empty() {
            return bad("base_path", &"\"\"", "the store needs a directory");
        }
        if self.num_workers == 0 || self.num_workers > MOST_WORKERS {
            return bad("num_workers", &self.num_workers, "there are 1 to 1024 workers");
        }
        if !(1..=4096).contains(&self.iouring_queue_depth) {
            let depth = self.iouring_queue_depth;
            return bad("iouring_queue_depth", &depth, "there are 1 to 4096 transfers under way");
        }
        if self.capacity()?.is_none() && self.layout == LayoutChoice::Slab {
            return bad(
                "layout",
                &"slab",
                "the slab layout needs max_capacity_gb; `files` does without a limit",
            );
        }
        if self.shared && self.layout == LayoutChoice::Slab {
            return bad(
                "shared",
                &true,
                "a store of segments has one writer; a directory is shared with the layout `files`",
            );
        }
        self.one_policy()?;
        self.limits().validate()
    }

    /// What is said of bytes, tenants and eviction.
    pub(crate) fn limits(&self) -> Limits<'_> {
        let theirs = self.eviction.as_ref().map(|e| e.eviction_policy.as_str());
        Limits {
            operation: OP,
            max_capacity_gb: self.max_capacity_gb,
            eviction_policy: self.eviction_policy.as_deref().or(theirs),
            quotas: &self.quotas,
            default_quota_gb: self.default_quota_gb,
        }
    }

    /// The limit in bytes.
    ///
    /// # Errors
    /// `Invalid` for a negative number, or one too small for any object.
    pub fn capacity(&self) -> Result<Option<u64>> {
        self.limits().capacity()
    }

    /// The layout of the store that is there or to be.
    ///
    /// # Errors
    /// As [`Manifest::read`] and [`choose_layout`].
    pub fn layout_on<D: Disk>(&self, disk: &D) -> Result<StoreLayout> {
        match self.layout {
            LayoutChoice::Slab => Ok(StoreLayout::Slab),
            LayoutChoice::Files => Ok(StoreLayout::Files),
            LayoutChoice::Auto => match Manifest::read(disk, &self.base_path) {
                Ok(Some(manifest)) => Ok(manifest.layout()),
                _ if self.shared => Ok(StoreLayout::Files),
                // Opening it says what is wrong with what is there.
                _ => choose_layout(disk, &self.base_path, self.capacity()?).map(|(layout, _)| layout),
            },
        }
    }

    /// Whether a store of this layout bypasses the page cache.
    pub fn direct(&self, layout: StoreLayout) -> Wanted {
        match (self.use_odirect, layout) {
            (Some(Switch(wanted)), _) => wanted,
            (None, StoreLayout::Slab) => Wanted::Try,
            (None, StoreLayout::Files) => Wanted::Off,
        }
    }

    /// Both keys for the policy, if both are there, name the same one.
    fn one_policy(&self) -> Result<()> {
        let (Some(ours), Some(theirs)) = (&self.eviction_policy, &self.eviction) else { return Ok(()) };
        let make = |name: &str| {
            by_name(name).map_err(|e| Error::invalid(OP, e.to_string()).with("eviction_policy", name))
        };
        let (ours, theirs) = (make(ours)?, make(&theirs.eviction_policy)?);
        if ours.name() == theirs.name() {
            return Ok(());
        }
        let e = Error::invalid(OP, "two keys ask for different policies; leave one of them away");
        Err(e.with("eviction_policy", ours.name()).with("eviction.eviction_policy", theirs.name()))
    }

    /// Keys that are set and have no effect, with the reason. Whoever opens the adapter says them once.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let mut out = Vec::new();
        if self.read_ahead_size.is_some() {
            out.push(("read_ahead_size", "an object is read in one call"));
        }
        if let Some(eviction) = &self.eviction {
            if eviction.trigger_watermark.is_some() {
                out.push(("eviction.trigger_watermark", "objects are evicted when bytes are needed"));
            }
            if eviction.eviction_ratio.is_some() {
                out.push(("eviction.eviction_ratio", "as many bytes are evicted as are needed"));
            }
        }
        out.extend(self.limits().without_effect());
        out
    }

    /// The engine by its name in `io`.
    pub fn engine(&self) -> EngineKind {
        match self.io_engine {
            Engine::Auto => EngineKind::Auto,
            Engine::IoUring => EngineKind::IoUring,
            Engine::Posix => EngineKind::Threads,
        }
    }

    pub(crate) fn durability(&self) -> Durability {
        match self.sync {
            Sync::None => Durability::None,
            Sync::Data => Durability::Data,
            Sync::Full => Durability::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<FsConfig, String> {
        let config: FsConfig = serde_json::from_str(json).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn lmcaches_keys_are_taken() {
        let c = read(
            r#"{"base_path": "/d", "use_odirect": true, "num_workers": 8, "max_capacity_gb": 1.5, "read_ahead_size": 4096,
                "relative_tmp_dir": "t", "eviction": {"eviction_policy": "lru", "trigger_watermark": 0.8, "eviction_ratio": 0.2}}"#,
        )
        .unwrap();
        assert_eq!((c.use_odirect, c.num_workers), (Some(Switch(Wanted::Try)), 8));
        assert_eq!(c.capacity().unwrap(), Some(3 << 29));
        assert_eq!(c.limits().policy().unwrap().name(), "LRU");
        let idle: Vec<_> = c.without_effect().into_iter().map(|(key, _)| key).collect();
        assert_eq!(idle, ["read_ahead_size", "eviction.trigger_watermark", "eviction.eviction_ratio"]);
        let least = read(r#"{"base_path": "/d"}"#).unwrap();
        assert_eq!(least, FsConfig::new("/d"));
        assert_eq!(least.capacity().unwrap(), None);
        assert_eq!(
            read(r#"{"base_path": "/d", "use_odirect": "require"}"#).unwrap().use_odirect,
            Some(Switch(Wanted::Require))
        );
        let slab = read(r#"{"base_path": "/d", "layout": "slab", "max_capacity_gb": 1}"#).unwrap();
        assert_eq!((slab.layout, slab.direct(StoreLayout::Slab)), (LayoutChoice::Slab, Wanted::Try));
        assert_eq!(slab.direct(StoreLayout::Files), Wanted::Off);
    }

    #[test]
    fn bad_settings_name_their_key() {
        for (json, key) in [
            (r#"{}"#, "base_path"),
            (r#"{"base_path": ""}"#, "base_path"),
            (r#"{"base_path": "/d", "base_pth": 1}"#, "base_pth"),
            (r#"{"base_path": "/d", "num_workers": 0}"#, "num_workers"),
            (r#"{"base_path": "/d", "num_workers": 4096}"#, "num_workers"),
            (r#"{"base_path": "/d", "io_engine": "libaio"}"#, "posix"),
            (r#"{"base_path": "/d", "iouring_queue_depth": 0}"#, "iouring_queue_depth"),
            (r#"{"base_path": "/d", "max_capacity_gb": -1}"#, "max_capacity_gb"),
            (r#"{"base_path": "/d", "eviction_policy": "LRUU"}"#, "eviction_policy"),
            (
                r#"{"base_path": "/d", "eviction_policy": "LRU", "eviction": {"eviction_policy": "FIFO"}}"#,
                "eviction_policy",
            ),
            (r#"{"base_path": "/d", "sync": "sometimes"}"#, "sometimes"),
            (r#"{"base_path": "/d", "layout": "slabs", "max_capacity_gb": 1}"#, "slabs"),
            (r#"{"base_path": "/d", "layout": "slab"}"#, "max_capacity_gb"),
            (r#"{"base_path": "/d", "use_odirect": "maybe"}"#, "require"),
            (r#"{"base_path": "/d", "name": ""}"#, "name"),
            (r#"{"base_path": "/d", "quotas": {"t": 1}}"#, "quotas: LRU"),
            (r#"{"base_path": "/d", "eviction_policy": "IsolatedLRU", "quotas": 1}"#, "invalid type"),
        ] {
            let e = read(json).unwrap_err();
            assert!(e.contains(key), "{json}: {e}");
        }
    }
}
