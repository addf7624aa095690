//! One adapter's settings: an open object, because each adapter brings keys of its own.

use std::fmt;

use kvstrata_core::{Error, Result};
use kvstrata_l2::{BreakerOptions, LimitOptions};
use kvstrata_manager::{AdapterOptions, InFlight};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::registry::unknown_key;
use crate::several;
use crate::size::{ByteSize, span};

/// The settings of one adapter: `type`, perhaps `name`, and the keys of that type.
///
/// What looks like a secret is not shown by `Debug` and `Display`; serialising shows everything.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdapterSettings(Map<String, Value>);

impl From<Map<String, Value>> for AdapterSettings {
    fn from(keys: Map<String, Value>) -> Self {
        Self(keys)
    }
}

impl AdapterSettings {
    /// The adapter's type, empty if none was given.
    pub fn kind(&self) -> &str {
        self.0.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// The name it was given, if any.
    pub fn name(&self) -> Option<&str> {
        self.0.get("name").and_then(Value::as_str)
    }

    /// Its share of the keys where a policy spreads them; 1 unless set.
    pub fn weight(&self) -> u32 {
        self.0.get("weight").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    }

    /// How the manager is to treat it: `weight`, `breaker` (false, true, or an object with any of `consecutive`, `ratio`,
    /// `window`, `at_least`, `patience`, `cool_down`, `cool_down_max`), `max_in_flight` (bytes; 0 for no limit) and `read_only`
    /// (never stored to). With several paths each has the first two, and those around the whole are there only if they are
    /// given.
    ///
    /// # Errors
    /// `Invalid` with the key and what it takes.
    pub fn options(&self) -> Result<AdapterOptions> {
        let mut options = AdapterOptions::from(self.weight());
        // Directories of LMCache's are only read unless their settings say more.
        let writable = self.0.get("writable").and_then(Value::as_bool);
        options.stores = writable.unwrap_or(!LMCACHE.contains(&self.kind()));
        if several::has_several(&self.0) {
            // Each path has its own; around the whole, one that fails or hangs would take the others with it.
            options.breaker = None;
            options.limit = InFlight::Unlimited;
        }
        for key in OPTIONS {
            match self.0.get(key) {
                None | Some(Value::Null) => {}
                Some(value) => {
                    option(&mut options, key, value).map_err(|m| Error::invalid(OP, m).with("key", key))?
                }
            }
        }
        Ok(options)
    }

    /// All keys, `type` and `name` among them.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.0
    }
}

const OP: &str = "read adapter settings";

/// The types over directories that are LMCache's.
pub(crate) const LMCACHE: [&str; 2] = ["lmcache_fs", "lmcache_gds"];

/// Keys that every adapter has and that its factory does not see.
pub(crate) const OPTIONS: [&str; 3] = ["breaker", "max_in_flight", "read_only"];

fn option(options: &mut AdapterOptions, key: &str, value: &Value) -> Result<(), String> {
    match (key, value) {
        ("breaker", Value::Bool(on)) => options.breaker = on.then(BreakerOptions::default),
        ("breaker", Value::Object(keys)) => options.breaker = Some(breaker(keys)?),
        ("breaker", _) => return Err("true, false or an object is expected".into()),
        ("read_only", Value::Bool(true)) => options.stores = false,
        ("read_only", Value::Bool(false)) => {}
        ("read_only", _) => return Err("true or false is expected".into()),
        _ => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            options.limit = match ByteSize::parse_in(&text, 1).map_err(|e| e.to_string())?.0 {
                0 => InFlight::Unlimited,
                bytes => InFlight::Of(LimitOptions::new(bytes)),
            };
        }
    }
    Ok(())
}

fn breaker(keys: &Map<String, Value>) -> Result<BreakerOptions, String> {
    let mut b = BreakerOptions::default();
    for (key, value) in keys {
        let span = || match value {
            Value::String(text) => span::parse(text),
            value => span::from_seconds(value.as_f64().unwrap_or(f64::NAN)),
        };
        let time = || span().map_err(|e| format!("{key}: {e}"));
        let count = || value.as_u64().ok_or_else(|| format!("{key}: a whole number is expected"));
        match key.as_str() {
            "consecutive" => {
                let most = || format!("{key}: at most {} is expected", u32::MAX);
                b.consecutive = count()?.try_into().map_err(|_| most())?;
            }
            "at_least" => b.at_least = count()?,
            "ratio" => b.ratio = value.as_f64().ok_or_else(|| format!("{key}: a number is expected"))?,
            "window" => b.window = time()?,
            "patience" => b.patience = time()?,
            "cool_down" => b.cool_down = time()?,
            "cool_down_max" => b.cool_down_max = time()?,
            _ => {
                let known =
                    ["consecutive", "ratio", "window", "at_least", "patience", "cool_down", "cool_down_max"];
                return Err(unknown_key(key, known.map(str::to_owned).into_iter()));
            }
        }
    }
    b.validate().map_err(|e| e.to_string())?;
    Ok(b)
}

impl fmt::Display for AdapterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", redacted(&Value::Object(self.0.clone())))
    }
}

impl fmt::Debug for AdapterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterSettings({self})")
    }
}

/// The same value with what looks like a secret replaced by `***`: values under telling names, and the credentials of
/// URLs.
pub fn redacted(value: &Value) -> Value {
    match value {
        Value::Object(keys) => Value::Object(
            keys.iter()
                .map(|(k, v)| (k.clone(), if tells_a_secret(k) { "***".into() } else { redacted(v) }))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(redacted).collect()),
        Value::String(text) => Value::String(without_credentials(text)),
        other => other.clone(),
    }
}

fn tells_a_secret(key: &str) -> bool {
    const WORDS: [&str; 7] =
        ["password", "passwd", "secret", "token", "credential", "access_key", "private_key"];
    let key = key.to_lowercase().replace('-', "_");
    // Where a cluster is belongs to nobody else; LMCache leaves the first two out of its logs too.
    let place = key.ends_with("metadata_server") || key.contains("master_server_addr") || key == "remote_url";
    // Token counts and sizes are no secrets.
    place
        || WORDS.iter().any(|word| key.contains(word)) && !key.ends_with("tokens") && !key.ends_with("_size")
}

fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..host].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let shown = redacted(&json!({
            "type": "resp", "password": "p1", "aws_secret_access_key": "p2", "inner": {"Auth-Token": "p3"},
            "mooncake_master_server_address": "p5", "remote_url": "mooncakestore://p6:1", "hosts": ["redis://user:p4@host:1/x@y", "http://plain/a@b"], "chunk_tokens": 256, "host": "h"
        }));
        let text = shown.to_string();
        for secret in ["p1", "p2", "p3", "p4", "p5", "p6", "user"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert_eq!(shown["hosts"], json!(["redis://***@host:1/x@y", "http://plain/a@b"]));
        assert_eq!(shown["chunk_tokens"], 256);
        assert_eq!(shown["host"], "h");
    }
}
