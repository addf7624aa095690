//! The adapter's settings.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kvstrata_core::{Error, Result};
use kvstrata_disk::{Durability, Limits, Wanted};
use serde::Deserialize;

use crate::{Asked, Way};

const OP: &str = "read gds settings";

/// Settings of a `gds` adapter over one path: LMCache's names, and a few of our own.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GdsConfig {
    /// The adapter's name; `gds` unless set.
    #[serde(default = "default_name")]
    pub name: String,
    /// The directory of the store. It is made if it is not there.
    pub gds_path: PathBuf,
    /// Pinned host memory for the bounce way, in MiB; 256 unless set, 0 is 256 too. A chunk has to fit into three quarters
    /// of it. (LMCache sets GPU memory aside under this name; here chunks are moved where they lie.)
    #[serde(default)]
    pub gds_buffer_size: u64,
    /// cuFile never (`false`), or also on file systems that speak against it (`true`); unless set, the file system and the
    /// probe decide.
    #[serde(default)]
    pub use_gds: Option<bool>,
    /// The way that bytes go: `auto`, `direct`, `bounce` or `compat`.
    #[serde(default)]
    pub gds_way: GdsWay,
    /// LMCache's library switch: `cufile` is the one there is here.
    #[serde(default)]
    pub gds_backend: Option<String>,
    /// Whether files are opened past the page cache: `true` (where the file system can; so unless set), or `false`.
    /// `direct` needs it.
    #[serde(default)]
    pub use_direct_io: Option<bool>,
    /// Threads that load and store, of which all but one may store; 8 unless set, 0 is 1.
    #[serde(default)]
    pub disk_io_threads: Option<usize>,
    /// LMCache's older name of `disk_io_threads`.
    #[serde(default)]
    pub gds_io_threads: Option<usize>,
    /// LMCache tries so often to get a buffer. Here a chunk waits for one until its deadline: no effect.
    #[serde(default)]
    pub max_alloc_attempts: Option<u32>,
    /// LMCache waits so long between two tries: no effect.
    #[serde(default)]
    pub allocation_attempt_delay_secs: Option<f64>,
    /// The hard limit in GiB (2^30 bytes), everything included; 0 is no limit, as in LMCache.
    #[serde(default)]
    pub max_capacity_gb: f64,
    /// Who goes first when the limit is reached; LRU unless set.
    #[serde(default)]
    pub eviction_policy: Option<String>,
    /// What tenants are promised, in GiB by cache salt. Only policies that keep tenants apart take it.
    #[serde(default)]
    pub quotas: BTreeMap<String, f64>,
    /// What is promised to each tenant that is not in `quotas`, in GiB; unless set they share what is left.
    #[serde(default)]
    pub default_quota_gb: Option<f64>,
    /// Where there is no CUDA: work on host memory alone (`true`), or do not open (`false`; so unless set).
    #[serde(default)]
    pub allow_host: bool,
    /// The file of libcufile, or the folder that it is in; unless set, where it usually is.
    #[serde(default)]
    pub cufile_library: Option<PathBuf>,
    /// The program that tries cuFile in a process of its own; unless set, `kvstrata-gds-probe` beside the running program.
    #[serde(default)]
    pub gds_probe: Option<PathBuf>,
    /// How long that may take, in seconds; 20 unless set.
    #[serde(default = "default_probe_secs")]
    pub gds_probe_secs: f64,
}

/// The way that is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GdsWay {
    /// Whichever is proved to work and measured to win.
    #[default]
    Auto,
    /// cuFile past the host; the adapter does not open where that is not proved.
    Direct,
    /// Through the adapter's pinned memory.
    Bounce,
    /// cuFile through the host.
    Compat,
}

fn default_name() -> String {
    "gds".into()
}

fn default_probe_secs() -> f64 {
    20.0
}

const DEFAULT_BUFFER_MIB: u64 = 256;
const DEFAULT_THREADS: usize = 8;
/// The most threads that make sense for one path; more is taken for a mistake.
const MOST_THREADS: usize = 1024;
/// The most pinned memory that is not taken for a mistake: a TiB.
const MOST_MIB: u64 = 1 << 20;

impl GdsConfig {
    /// The keys, beside `type` and `name`.
    pub const KEYS: &'static [&'static str] = &[
        "gds_path",
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
    ];

    /// The settings of a store in this directory, with everything else as if unset.
    pub fn new(gds_path: impl Into<PathBuf>) -> Self {
        Self {
            name: default_name(),
            gds_path: gds_path.into(),
            gds_buffer_size: 0,
            use_gds: None,
            gds_way: GdsWay::Auto,
            gds_backend: None,
            use_direct_io: None,
            disk_io_threads: None,
            gds_io_threads: None,
            max_alloc_attempts: None,
            allocation_attempt_delay_secs: None,
            max_capacity_gb: 0.0,
            eviction_policy: None,
            quotas: BTreeMap::new(),
            default_quota_gb: None,
            allow_host: false,
            cufile_library: None,
            gds_probe: None,
            gds_probe_secs: default_probe_secs(),
        }
    }

    /// Checks what can be checked without touching a disk or a GPU.
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
        if self.gds_path.as_os_str().is_empty() {
            return bad("gds_path", &"\"\"", "the store needs a directory");
        }
        if let Some(backend) = self.gds_backend.as_deref().filter(|b| !matches!(*b, "cufile" | "auto")) {
            return bad("gds_backend", &backend, "cufile is the backend of this version");
        }
        if self.gds_buffer_size > MOST_MIB {
            return bad(
                "gds_buffer_size",
                &self.gds_buffer_size,
                "a number of MiB of at most 1048576 is accepted",
            );
        }
        if !(self.gds_probe_secs > 0.0 && self.gds_probe_secs <= 600.0) {
            return bad(
                "gds_probe_secs",
                &self.gds_probe_secs,
                "more than 0 and at most 600 seconds are accepted",
            );
        }
        if let (Some(new), Some(old)) = (self.disk_io_threads, self.gds_io_threads)
            && new != old
        {
            let e = Error::invalid(OP, "two keys for the same threads differ; leave one of them away");
            return Err(e.with("disk_io_threads", new).with("gds_io_threads", old));
        }
        if self.threads() > MOST_THREADS {
            let key = if self.disk_io_threads.is_some() { "disk_io_threads" } else { "gds_io_threads" };
            return bad(key, &self.threads(), "there are 1 to 1024 threads");
        }
        if self.use_direct_io == Some(false) && self.gds_way == GdsWay::Direct {
            return bad(
                "use_direct_io",
                &false,
                "the way that is asked for goes past the page cache: true is accepted",
            );
        }
        crate::way::decided(self.asked(), "")?;
        self.limits().validate()
    }

    /// What is said of bytes, tenants and eviction.
    pub(crate) fn limits(&self) -> Limits<'_> {
        Limits {
            operation: OP,
            max_capacity_gb: self.max_capacity_gb,
            eviction_policy: self.eviction_policy.as_deref(),
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

    /// Keys that are set and have no effect, with the reason. Whoever opens the adapter says them once.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let waits = "a chunk waits for a buffer until its deadline";
        let attempts = self.max_alloc_attempts.map(|_| ("max_alloc_attempts", waits));
        let delay = self.allocation_attempt_delay_secs.map(|_| ("allocation_attempt_delay_secs", waits));
        attempts.into_iter().chain(delay).chain(self.limits().without_effect()).collect()
    }

    /// How many threads load and store.
    pub fn threads(&self) -> usize {
        self.disk_io_threads.or(self.gds_io_threads).unwrap_or(DEFAULT_THREADS).max(1)
    }

    /// What is said about ways.
    pub fn asked(&self) -> Asked {
        let way = match self.gds_way {
            GdsWay::Auto => None,
            GdsWay::Direct => Some(Way::Direct),
            GdsWay::Bounce => Some(Way::Bounce),
            GdsWay::Compat => Some(Way::Compat),
        };
        Asked { way, use_gds: self.use_gds }
    }

    pub(crate) fn bounce_bytes(&self) -> usize {
        let mib = if self.gds_buffer_size == 0 { DEFAULT_BUFFER_MIB } else { self.gds_buffer_size };
        usize::try_from(mib << 20).unwrap_or(usize::MAX)
    }

    pub(crate) fn direct(&self) -> Wanted {
        match (self.use_direct_io, self.gds_way) {
            (Some(false), _) => Wanted::Off,
            (_, GdsWay::Direct) => Wanted::Require,
            _ => Wanted::Try,
        }
    }

    pub(crate) fn durability(&self) -> Durability {
        Durability::None
    }

    /// How long a try of cuFile may take.
    pub fn probe_limit(&self) -> Duration {
        Duration::from_secs_f64(self.gds_probe_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<GdsConfig, String> {
        let config: GdsConfig = serde_json::from_str(json).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn lmcaches_keys_are_taken() {
        let c = read(
            r#"{"gds_path": "/d", "gds_buffer_size": 8192, "use_gds": true, "gds_backend": "cufile", "use_direct_io": true,
                "gds_io_threads": 16, "max_alloc_attempts": 10, "allocation_attempt_delay_secs": 0.1}"#,
        )
        .unwrap();
        assert_eq!((c.bounce_bytes(), c.threads(), c.direct()), (8 << 30, 16, Wanted::Try));
        let idle: Vec<_> = c.without_effect().into_iter().map(|(key, _)| key).collect();
        assert_eq!(idle, ["max_alloc_attempts", "allocation_attempt_delay_secs"]);
        let least = read(r#"{"gds_path": "/d"}"#).unwrap();
        assert_eq!(least, GdsConfig::new("/d"));
        assert_eq!((least.threads(), least.bounce_bytes(), least.capacity().unwrap()), (8, 256 << 20, None));
        assert_eq!(read(r#"{"gds_path": "/d", "disk_io_threads": 0}"#).unwrap().threads(), 1);
        assert_eq!(read(r#"{"gds_path": "/d", "gds_way": "direct"}"#).unwrap().direct(), Wanted::Require);
    }

    #[test]
    fn every_key_is_named() {
        for key in GdsConfig::KEYS {
            let e = serde_json::from_str::<GdsConfig>(&format!(r#"{{"gds_path": "/d", "{key}": [[]]}}"#))
                .unwrap_err();
            assert!(!e.to_string().contains("unknown field"), "{key}: {e}");
        }
    }

    #[test]
    fn bad_settings_name_their_key() {
        for (json, key) in [
            (r#"{}"#, "gds_path"),
            (r#"{"gds_path": ""}"#, "gds_path"),
            (r#"{"gds_path": "/d", "gds_paht": 1}"#, "gds_paht"),
            (r#"{"gds_path": "/d", "disk_io_threads": 4, "gds_io_threads": 8}"#, "gds_io_threads"),
            (r#"{"gds_path": "/d", "gds_io_threads": 4096}"#, "gds_io_threads"),
            (r#"{"gds_path": "/d", "gds_backend": "hipfile"}"#, "gds_backend"),
            (r#"{"gds_path": "/d", "gds_way": "fast"}"#, "fast"),
            (r#"{"gds_path": "/d", "gds_way": "direct", "use_gds": false}"#, "use_gds"),
            (r#"{"gds_path": "/d", "gds_way": "direct", "use_direct_io": false}"#, "use_direct_io"),
            (r#"{"gds_path": "/d", "gds_buffer_size": 99999999}"#, "gds_buffer_size"),
            (r#"{"gds_path": "/d", "gds_probe_secs": 0}"#, "gds_probe_secs"),
            (r#"{"gds_path": "/d", "max_capacity_gb": -1}"#, "max_capacity_gb"),
            (r#"{"gds_path": "/d", "max_capacity_gb": 1e30}"#, "max_capacity_gb"),
            (r#"{"gds_path": "/d", "eviction_policy": "LRUU"}"#, "eviction_policy"),
            (r#"{"gds_path": "/d", "quotas": {"t": 1}}"#, "quotas"),
            (
                r#"{"gds_path": "/d", "max_capacity_gb": 1, "eviction_policy": "IsolatedLRU", "quotas": {"t": 2}}"#,
                "max_capacity_gb",
            ),
        ] {
            let e = read(json).unwrap_err();
            assert!(e.contains(key), "{json}: {e}");
        }
    }
}
