//! What can be set, as plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::adapters::AdapterSettings;
use crate::size::{ByteSize, span};

/// Everything that can be set, with our own names. The table of the names that are accepted for them is in
/// [`names`](crate::names).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Tokens per chunk.
    pub chunk_size: u32,
    /// Whether every stored chunk carries a digest of its bytes and every load checks it. Off is a choice that `doctor`
    /// and the metrics show.
    pub digests: bool,
    /// Whether L1 is a cache. `false` makes it a mere buffer on the way to L2: see [`Settings::staging_only`].
    pub local_cpu: bool,
    /// Says outright that L1 is only a buffer; without `local_cpu = false` it has no effect.
    pub use_only_staging_buffer: bool,
    /// Host memory.
    pub l1: L1Settings,
    /// What leaves L1 when room is needed.
    pub eviction: EvictionSettings,
    /// The name of the rule that says what may come into L1.
    pub admission: String,
    /// What is written to L2, and how hard that is tried.
    pub store: StoreSettings,
    /// What is loaded from L2, and what becomes of it.
    pub prefetch: PrefetchSettings,
    /// How long things may take.
    pub deadlines: DeadlineSettings,
    /// The adapters below L1.
    pub l2: L2Settings,
    /// LMCache's short form of one adapter on one local path; off without a path or with a size of 0.
    pub local_disk: LocalDiskSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            chunk_size: 256,
            digests: true,
            local_cpu: true,
            use_only_staging_buffer: false,
            l1: L1Settings::default(),
            eviction: EvictionSettings::default(),
            admission: "always".into(),
            store: StoreSettings::default(),
            prefetch: PrefetchSettings::default(),
            deadlines: DeadlineSettings::default(),
            l2: L2Settings::default(),
            local_disk: LocalDiskSettings::default(),
        }
    }
}

/// Host memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L1Settings {
    /// Bytes that stored chunks may take.
    pub size: ByteSize,
    /// Bytes beside [`size`](Self::size) that chunks on their way from L2 may take. Unset, an eighth of the size, but at
    /// least 64 MiB and at most 4 GiB.
    pub staging_size: Option<ByteSize>,
    /// The alignment of buffers: a power of two, at most 4096 (which is what every buffer has).
    pub align: ByteSize,
    /// Large pages behind the memory.
    pub hugepages: HugePages,
    /// The name of the POSIX shared-memory object to put L1 in; unset, the memory is private.
    pub shm_name: Option<String>,
    /// Whether all of the memory is faulted in at the start rather than on first use.
    pub prefault: bool,
    /// The NUMA node to take the memory from; unset, the kernel decides.
    pub numa: Option<u32>,
    /// Whether the memory is locked against swapping.
    pub mlock: bool,
}

impl Default for L1Settings {
    fn default() -> Self {
        Self {
            size: ByteSize(5 << 30),
            staging_size: None,
            align: ByteSize(4096),
            hugepages: HugePages::Transparent,
            shm_name: None,
            prefault: false,
            numa: None,
            mlock: false,
        }
    }
}

impl L1Settings {
    /// Bytes that chunks on their way from L2 may take.
    pub fn staging(&self) -> ByteSize {
        self.staging_size.unwrap_or(ByteSize((self.size.0 / 8).clamp(64 << 20, 4 << 30)))
    }
}

/// Large pages behind L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Ordinary pages.
    None,
    /// The kernel is asked for huge pages and may give ordinary ones.
    Transparent,
    /// Pages of the machine's huge page pool, or an error.
    Explicit,
}

/// What leaves L1 when room is needed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvictionSettings {
    /// The policy's name.
    pub policy: String,
    /// What a tenant may hold that has no quota of its own; unset, such tenants share what is left. For policies that keep
    /// tenants apart.
    pub default_quota: Option<ByteSize>,
    /// Quotas of tenants. They can be changed at run time, too.
    pub quotas: Vec<QuotaSettings>,
}

impl Default for EvictionSettings {
    fn default() -> Self {
        Self { policy: "life-table".into(), default_quota: None, quotas: Vec::new() }
    }
}

/// What one tenant may hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaSettings {
    /// Its cache salt; empty for those without one.
    pub salt: String,
    /// Bytes.
    pub size: ByteSize,
}

/// What is written to L2, and how hard that is tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// The store policy's name.
    pub policy: String,
    /// How often a failed store of a chunk is tried again in one adapter before it is let go, visibly.
    pub retries: u32,
    /// The wait before the first retry; it doubles with each. An adapter's own advice overrides it.
    #[serde(with = "span")]
    pub backoff: Duration,
    /// The longest wait between retries.
    #[serde(with = "span")]
    pub backoff_max: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            policy: "default".into(),
            retries: 2,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

/// What is loaded from L2, and what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefetchSettings {
    /// The prefetch policy's name.
    pub policy: String,
}

impl Default for PrefetchSettings {
    fn default() -> Self {
        Self { policy: "default".into() }
    }
}

/// How long things may take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadlineSettings {
    /// A lookup with its load, where the caller names no deadline.
    #[serde(with = "span")]
    pub load_timeout: Duration,
    /// One try to store a batch in one adapter.
    #[serde(with = "span")]
    pub store_timeout: Duration,
    /// Waiting at the end for what is in flight.
    #[serde(with = "span")]
    pub shutdown_timeout: Duration,
}

impl Default for DeadlineSettings {
    fn default() -> Self {
        Self {
            load_timeout: Duration::from_secs(10),
            store_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

/// The adapters below L1.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L2Settings {
    /// One object per adapter: its `type`, and the keys of that type.
    pub adapters: Vec<AdapterSettings>,
}

/// LMCache's short form of one adapter on one or several local paths.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalDiskSettings {
    /// The directory, or several, separated by commas.
    pub path: Option<String>,
    /// How one of several is chosen: `by_gpu`, `by_uuid` or `by_key`; unset, by key.
    pub path_sharding: Option<String>,
    /// Bytes on disk. 0 turns the short form off, as in LMCache.
    pub size: ByteSize,
    /// Whether files are opened for direct I/O; unset, the adapter decides.
    pub use_odirect: Option<bool>,
    /// Threads that read and write; unset, the adapter decides.
    pub num_workers: Option<u32>,
}

impl Default for LocalDiskSettings {
    fn default() -> Self {
        Self { path: None, path_sharding: None, size: ByteSize(0), use_odirect: None, num_workers: None }
    }
}

impl Settings {
    /// Whether L1 keeps nothing: chunks pass through it on their way to and from L2, and lookups go to L2 directly.
    pub fn staging_only(&self) -> bool {
        !self.local_cpu
    }

    /// The adapters, LMCache's short form among them, in order, each with its name.
    pub fn adapters(&self) -> Vec<(String, AdapterSettings)> {
        let short = match (&self.local_disk.path, self.local_disk.size.0) {
            (Some(path), 1..) => Some(self.local_disk.adapter(path)),
            _ => None,
        };
        let mut named: Vec<(String, AdapterSettings)> = Vec::new();
        for adapter in self.l2.adapters.iter().cloned().chain(short) {
            let name = match adapter.name() {
                Some(name) => name.to_owned(),
                // Two unnamed adapters of one type are told apart by their order, so that names stay stable over restarts.
                None => {
                    let kind = adapter.kind();
                    let same = |n: &usize| named.iter().any(|(name, _)| *name == numbered(kind, *n));
                    let n = (1..).find(|n| !same(n)).unwrap_or(1);
                    numbered(kind, n)
                }
            };
            named.push((name, adapter));
        }
        named
    }
}

fn numbered(kind: &str, n: usize) -> String {
    if n == 1 { kind.to_owned() } else { format!("{kind}-{n}") }
}

impl LocalDiskSettings {
    fn adapter(&self, path: &str) -> AdapterSettings {
        let mut keys = serde_json::Map::new();
        keys.insert("type".into(), "fs".into());
        keys.insert("name".into(), "local_disk".into());
        if path.contains(',') {
            keys.insert("paths".into(), path.into());
            let sharding = self.path_sharding.iter();
            keys.extend(sharding.map(|sharding| ("path_sharding".to_owned(), sharding.clone().into())));
        } else {
            keys.insert("base_path".into(), path.into());
        }
        keys.insert("max_capacity_gb".into(), self.size.gib().into());
        if let Some(direct) = self.use_odirect {
            keys.insert("use_odirect".into(), direct.into());
        }
        if let Some(n) = self.num_workers {
            keys.insert("num_workers".into(), n.into());
        }
        AdapterSettings::from(keys)
    }
}
