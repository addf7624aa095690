//! Mooncake Store's settings as users of LMCache have them.

use std::path::{Path, PathBuf};

use kvstrata_core::{Error, Result};
use kvstrata_l2::Adapter;
use kvstrata_l2_mooncake::{MooncakeConfig, MooncakeContext, MooncakeStore};
use serde_json::{Map, Value};

use crate::adapters::AdapterSettings;
use crate::builtin::read;
use crate::registry::{AdapterFactory, BuildContext, MemoryNeed};
use crate::size::{ByteSize, span};
use crate::warning::Warning;

const OP: &str = "read adapter settings";

/// LMCache's variable with the path of a file that wins over the settings.
const CONFIG_PATH: &str = "MOONCAKE_CONFIG_PATH";
/// Where Mooncake's own bindings look for the library.
const LIBRARY: &str = "MOONCAKE_STORE_LIBRARY";

/// A distributed pool of memory.
#[derive(Debug)]
pub(crate) struct MooncakeFactory;

/// Settings that Mooncake and LMCache have names for; each may have `mooncake_` before it, and such a one wins.
const NAMED: [&str; 12] = [
    "local_hostname",
    "metadata_server",
    "master_server_address",
    "master_server_addr",
    "protocol",
    "device_name",
    "rdma_devices",
    "global_segment_size",
    "local_buffer_size",
    "transfer_timeout",
    "prefer_local_alloc",
    "storage_root_dir",
];

/// The settings in the names of [`MooncakeConfig`], sizes in bytes and times in seconds. `file` is what
/// `MOONCAKE_CONFIG_PATH` names, and wins.
fn plain(settings: &AdapterSettings, file: Option<Map<String, Value>>) -> Result<AdapterSettings> {
    let mut all = Map::new();
    // What LMCache has in an object of its own comes first, so that everything else wins over it.
    if let Some(Value::Object(extra)) = settings.keys().get("extra_config") {
        all.extend(extra.clone());
    }
    all.extend(
        settings.keys().iter().filter(|(k, _)| *k != "extra_config").map(|(k, v)| (k.clone(), v.clone())),
    );
    if let Some(url) = all.remove("remote_url") {
        let master =
            url.as_str().and_then(|u| u.strip_prefix("mooncakestore://")).map(|u| u.trim_end_matches('/'));
        let master = master.filter(|m| !m.is_empty()).ok_or_else(|| {
            Error::invalid(OP, "mooncakestore://HOST:PORT is expected").with("remote_url", &url)
        })?;
        all.entry("master_server_address").or_insert_with(|| master.into());
    }
    all.extend(file.into_iter().flatten());
    for name in NAMED {
        if let Some(value) = all.remove(&format!("mooncake_{name}")) {
            all.insert(name.into(), value);
        }
    }
    for (name, other) in [("master_server_address", "master_server_addr"), ("device_name", "rdma_devices")] {
        if let Some(value) = all.remove(other) {
            if let Some(first) = all.get(name).filter(|first| **first != value) {
                let message =
                    format!("{name} and {other} are two names of one setting, and say different things");
                return Err(Error::invalid(OP, message).with(name, first).with(other, &value));
            }
            all.insert(name.into(), value);
        }
    }
    all.retain(|_, v| !v.is_null());
    for key in ["global_segment_size", "local_buffer_size"] {
        if let Some(Value::String(text)) = all.get(key) {
            let size =
                ByteSize::parse_in(text, 1).map_err(|e| Error::invalid(OP, e.to_string()).with(key, text))?;
            all.insert(key.into(), size.0.into());
        }
    }
    if let Some(Value::String(text)) = all.get("transfer_timeout") {
        let time = span::parse(text)
            .map_err(|e| Error::invalid(OP, e.to_string()).with("transfer_timeout", text))?;
        all.insert("transfer_timeout".into(), time.as_secs_f64().into());
    }
    Ok(all.into())
}

fn file(path: &Path) -> Result<Map<String, Value>> {
    let about = |e: Error| e.with(CONFIG_PATH, path.display());
    let text = std::fs::read_to_string(path).map_err(|e| about(Error::io("read Mooncake settings", e)))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(keys)) => Ok(keys),
        Ok(_) => Err(about(Error::invalid(OP, "an object is expected"))),
        Err(e) => Err(about(Error::invalid(OP, e.to_string()))),
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

impl MooncakeFactory {
    fn config(settings: &AdapterSettings, name: &str) -> Result<MooncakeConfig> {
        let file = variable(CONFIG_PATH).map(|path| file(&path)).transpose()?;
        let mut config: MooncakeConfig = read(&plain(settings, file)?, Some(name))?;
        if config.library.is_none() {
            config.library = variable(LIBRARY);
        }
        config.validate()?;
        Ok(config)
    }
}

impl AdapterFactory for MooncakeFactory {
    fn names(&self) -> &'static [&'static str] {
        &["mooncake_store"]
    }

    fn keys(&self) -> &'static [&'static str] {
        &[
            "mode",
            "client_address",
            "library",
            "num_workers",
            "per_op_workers",
            "digests",
            "save_chunk_meta",
            "chunk_meta_groups",
            "key_prefix",
            "remote_url",
            "extra_config",
            "local_hostname",
            "metadata_server",
            "master_server_address",
            "master_server_addr",
            "protocol",
            "device_name",
            "rdma_devices",
            "global_segment_size",
            "local_buffer_size",
            "transfer_timeout",
            "prefer_local_alloc",
            "storage_root_dir",
            "mooncake_local_hostname",
            "mooncake_metadata_server",
            "mooncake_master_server_address",
            "mooncake_master_server_addr",
            "mooncake_protocol",
            "mooncake_device_name",
            "mooncake_rdma_devices",
            "mooncake_global_segment_size",
            "mooncake_local_buffer_size",
            "mooncake_transfer_timeout",
            "mooncake_prefer_local_alloc",
            "mooncake_storage_root_dir",
        ]
    }

    fn paths(&self, _: &AdapterSettings) -> Vec<PathBuf> {
        Vec::new()
    }

    fn check(&self, settings: &AdapterSettings) -> Result<Vec<Warning>> {
        let config = Self::config(settings, "mooncake_store")?;
        let origin = "adapter mooncake_store";
        let mut said: Vec<_> = config
            .without_effect()
            .into_iter()
            .map(|(key, why)| Warning::no_effect(key, origin, why))
            .collect();
        if !config.digests {
            said.push(Warning::new("digests", origin, "is off: what is loaded cannot be checked"));
        }
        Ok(said)
    }

    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        let config = Self::config(settings, name)?;
        let cx = MooncakeContext { l2: cx.l2.clone(), run: cx.run, memory: cx.memory.clone() };
        Ok(MooncakeStore::open(&config, &cx)?.adapter())
    }

    fn memory(&self, settings: &AdapterSettings) -> MemoryNeed {
        match Self::config(settings, "mooncake_store") {
            Ok(config) if !config.needs_shared_memory() => MemoryNeed::Any,
            _ => MemoryNeed::Shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn config(settings: Value, file: Option<Value>) -> Result<MooncakeConfig> {
        let object = |v: Value| v.as_object().cloned().unwrap_or_default();
        read(&plain(&object(settings).into(), file.map(object))?, Some("m"))
    }

    #[test]
    fn lmcaches_spellings_mean_the_same() {
        let c = config(
            json!({
                "type": "mooncake_store", "num_workers": 8, "per_op_workers": {"lookup": 2},
                "remote_url": "mooncakestore://m:1/", "mooncake_protocol": "rdma", "protocol": "tcp",
                "extra_config": {"local_hostname": "below", "mooncake_device_name": "mlx5_0", "device_name": null},
                "local_hostname": "above", "global_segment_size": "3GiB", "transfer_timeout": "1500ms",
                "mooncake_prefer_local_alloc": true
            }),
            None,
        )
        .unwrap();
        assert_eq!((c.num_workers, c.per_op_workers.lookup), (8, Some(2)));
        assert_eq!(c.master_server_address.as_deref(), Some("m:1"));
        assert_eq!((c.protocol.as_str(), c.device_name.as_str()), ("rdma", "mlx5_0"));
        assert_eq!(c.local_hostname.as_deref(), Some("above"));
        assert_eq!(c.global_segment_size, 3 << 30);
        assert_eq!(c.transfer_timeout, Some(Duration::from_millis(1500)));
        assert!(c.prefer_local_alloc && c.digests);
    }

    #[test]
    fn both_names_of_the_master_are_heard_and_the_file_wins() {
        let master = |settings, file| config(settings, file).map(|c| c.master_server_address);
        assert_eq!(master(json!({"master_server_addr": "a:1"}), None).unwrap().as_deref(), Some("a:1"));
        let both = json!({"master_server_addr": "a:1", "master_server_address": "b:2"});
        let refused = master(both, None).unwrap_err().to_string();
        assert!(refused.contains("a:1") && refused.contains("b:2"), "{refused}");
        let file = Some(json!({"master_server_address": "f:3"}));
        assert_eq!(master(json!({"master_server_address": "b:2"}), file).unwrap().as_deref(), Some("f:3"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (settings, key) in [
            (json!({"remote_url": "lm://m:1"}), "remote_url"),
            (json!({"global_segment_size": "much"}), "global_segment_size"),
            (json!({"transfer_timeout": "soon"}), "transfer_timeout"),
            (json!({"transfer_timeout": 0}), "transfer_timeout"),
            (json!({"mode": "native"}), "mode"),
            (json!({"per_op_workers": {"fetch": 1}}), "per_op_workers"),
        ] {
            let refused = config(settings, None).unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
        }
        for (settings, key) in [
            (json!({"num_workers": 0}), "num_workers"),
            (json!({"save_chunk_meta": true}), "save_chunk_meta"),
            (json!({"mode": "capi"}), "library"),
            (json!({"key_prefix": "a@b"}), "key_prefix"),
            (json!({"local_buffer_size": 5}), "local_buffer_size"),
        ] {
            let refused = config(settings, None).unwrap().validate().unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
        }
    }
}
