//! The adapter's settings.

use std::path::PathBuf;

use kvstrata_core::{Error, Result};
use kvstrata_disk::{Durability, Wanted};
use kvstrata_evict::{EvictionPolicy, by_name};
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
    /// Whether loads and stores bypass the page cache: `false`, `true` (where the file system can) or `"require"`.
    #[serde(default)]
    pub use_odirect: Switch,
    /// Threads that load and store; 4 unless set. They belong to the disk, so this counts where the adapter makes its own
    /// ([`crate::open_os`]).
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
    /// Who goes first when the limit is reached; LRU unless set.
    #[serde(default)]
    pub eviction_policy: Option<String>,
    /// LMCache's way to set the policy.
    #[serde(default)]
    pub eviction: Option<EvictionConfig>,
    /// What a store waits for: `none`, `data` or `full`.
    #[serde(default)]
    pub sync: Sync,
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

/// `false`, `true` or `"require"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Switch(pub WantedSwitch);

/// See [`Switch`].
pub type WantedSwitch = Option<Wanted>;

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
