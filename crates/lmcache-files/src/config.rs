//! The adapters' settings.

use std::fmt::Display;
use std::path::PathBuf;

use kvstrata_core::{Error, Result};
use serde::Deserialize;

use crate::Format;
use crate::classic::{KeyDType, Suffix};
use crate::flat::Models;
use crate::jobs::MOST_WORKERS;

const OP: &str = "read settings of LMCache's files";

/// Settings of an `lmcache_fs` adapter.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlatConfig {
    /// The adapter's name; `lmcache_fs` unless set.
    #[serde(default = "flat_name")]
    pub name: String,
    /// The directory of LMCache's `fs` or `fs_native` adapter.
    pub base_path: PathBuf,
    /// The models whose objects are looked for; any unless set. Needed for names that have `-SEP-` in them.
    #[serde(default)]
    pub models: Vec<String>,
    /// How many loads of one request run at once; 4 unless set.
    #[serde(default = "workers")]
    pub num_workers: usize,
    /// Whether loads leave access times alone where the file system lets us.
    #[serde(default = "yes")]
    pub no_atime: bool,
}

/// Settings of an `lmcache_gds` adapter.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GdsConfig {
    /// The adapter's name; `lmcache_gds` unless set.
    #[serde(default = "gds_name")]
    pub name: String,
    /// The directory of LMCache's GDS backend.
    pub base_path: PathBuf,
    /// Whether objects are stored and removed too.
    #[serde(default)]
    pub writable: bool,
    /// The dtype in the names of LMCache's keys, such as `bfloat16`. Unless set, an object that was not there at the start is
    /// looked for under the dtype of its layout, and by a lookup not at all.
    #[serde(default)]
    pub kv_dtype: Option<String>,
    /// The format that headers are written with; `KV_2LTD` unless set.
    #[serde(default = "fmt_name")]
    pub fmt: String,
    /// How many workers one machine has; all of them unless set. It is a part of keys here and not there.
    #[serde(default)]
    pub local_world_size: Option<u32>,
    /// Whether files are named as on WEKA's file system, `.weka1`.
    #[serde(default)]
    pub weka: bool,
    /// How many operations of one request run at once, and how many threads index at the start; 4 unless set.
    #[serde(default = "workers")]
    pub num_workers: usize,
    /// Whether reads leave access times alone where the file system lets us.
    #[serde(default = "yes")]
    pub no_atime: bool,
    /// Whether each load also compares the header of the data file with the sidecar. What differs is logged and counted; no
    /// answer depends on it.
    #[serde(default)]
    pub debug_checks: bool,
}

fn flat_name() -> String {
    "lmcache_fs".into()
}

fn gds_name() -> String {
    "lmcache_gds".into()
}

fn fmt_name() -> String {
    Format::Kv2ltd.name().into()
}

fn workers() -> usize {
    4
}

fn yes() -> bool {
    true
}

fn bad(key: &'static str, value: impl Display, what: impl Into<String>) -> Error {
    Error::invalid(OP, what).with(key, value)
}

fn check(name: &str, base_path: &std::path::Path, workers: usize) -> Result<()> {
    if name.is_empty() {
        return Err(bad("name", "\"\"", "an adapter's name is not empty"));
    }
    if base_path.as_os_str().is_empty() {
        return Err(bad("base_path", "\"\"", "the directory of LMCache's files is needed"));
    }
    if workers == 0 || workers > MOST_WORKERS {
        return Err(bad("num_workers", workers, "there are 1 to 1024 workers"));
    }
    Ok(())
}

impl FlatConfig {
    /// The settings for this directory, with everything else as if unset.
    pub fn new(base_path: impl Into<PathBuf>) -> Self {
        let (name, base_path) = (flat_name(), base_path.into());
        Self { name, base_path, models: Vec::new(), num_workers: workers(), no_atime: true }
    }

    /// Checks what can be checked without touching the disk.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        check(&self.name, &self.base_path, self.num_workers)?;
        self.models().map(|_| ())
    }

    /// The models by their files' names.
    ///
    /// # Errors
    /// As [`Models::new`].
    pub fn models(&self) -> Result<Models> {
        Models::new(&self.models).map_err(|e| e.with("key", "models"))
    }
}

impl GdsConfig {
    /// The settings for this directory, with everything else as if unset.
    pub fn new(base_path: impl Into<PathBuf>) -> Self {
        Self {
            name: gds_name(),
            base_path: base_path.into(),
            writable: false,
            kv_dtype: None,
            fmt: fmt_name(),
            local_world_size: None,
            weka: false,
            num_workers: workers(),
            no_atime: true,
            debug_checks: false,
        }
    }

    /// Checks what can be checked without touching the disk.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        check(&self.name, &self.base_path, self.num_workers)?;
        self.kv_dtype()?;
        self.format()?;
        match self.local_world_size {
            Some(n) if !(1..=255).contains(&n) => {
                Err(bad("local_world_size", n, "a machine has 1 to 255 workers"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn kv_dtype(&self) -> Result<Option<KeyDType>> {
        let read = |name: &String| {
            KeyDType::from_name(name).ok_or_else(|| {
                let known: Vec<&str> = KeyDType::names().collect();
                bad("kv_dtype", name, format!("there is no such dtype; there are: {}", known.join(", ")))
            })
        };
        self.kv_dtype.as_ref().map(read).transpose()
    }

    pub(crate) fn format(&self) -> Result<Format> {
        Format::from_name(&self.fmt).ok_or_else(|| {
            let known = Format::ALL.map(Format::name).join(", ");
            bad("fmt", &self.fmt, format!("there is no such format; there are: {known}"))
        })
    }

    pub(crate) fn suffix(&self) -> Suffix {
        if self.weka { Suffix::Weka } else { Suffix::Safetensors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_a_directory() {
        let flat: FlatConfig = serde_json::from_str(r#"{"base_path": "/d"}"#).unwrap();
        assert_eq!(flat, FlatConfig::new("/d"));
        let gds: GdsConfig = serde_json::from_str(r#"{"base_path": "/d"}"#).unwrap();
        assert_eq!(gds, GdsConfig::new("/d"));
        flat.validate().unwrap();
        gds.validate().unwrap();
    }

    #[test]
    fn bad_settings_name_their_key() {
        let gds = |json: &str| {
            let read: Result<GdsConfig, _> = serde_json::from_str(json);
            read.map_err(|e| e.to_string()).and_then(|c| c.validate().map_err(|e| e.to_string())).unwrap_err()
        };
        for (json, key) in [
            (r#"{}"#, "base_path"),
            (r#"{"base_path": ""}"#, "base_path"),
            (r#"{"base_path": "/d", "writeable": true}"#, "writeable"),
            (r#"{"base_path": "/d", "num_workers": 0}"#, "num_workers"),
            (r#"{"base_path": "/d", "num_workers": 1025}"#, "num_workers"),
            (r#"{"base_path": "/d", "kv_dtype": "bf16"}"#, "bfloat16"),
            (r#"{"base_path": "/d", "fmt": "KV"}"#, "KV_2LTD"),
            (r#"{"base_path": "/d", "local_world_size": 0}"#, "local_world_size"),
            (r#"{"base_path": "/d", "local_world_size": 256}"#, "local_world_size"),
            (r#"{"base_path": "/d", "name": ""}"#, "name"),
        ] {
            assert!(gds(json).contains(key), "{json}: {}", gds(json));
        }
        let flat = FlatConfig { models: vec!["a@b".into()], ..FlatConfig::new("/d") };
        assert!(flat.validate().unwrap_err().to_string().contains("models"));
    }
}
