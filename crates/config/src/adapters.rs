//! One adapter's settings: an open object, because each adapter brings keys of its own.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

    /// All keys, `type` and `name` among them.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.0
    }
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
    // Token counts and sizes are no secrets.
    WORDS.iter().any(|word| key.contains(word)) && !key.ends_with("tokens") && !key.ends_with("_size")
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
            "hosts": ["redis://user:p4@host:1/x@y", "http://plain/a@b"], "chunk_tokens": 256, "host": "h"
        }));
        let text = shown.to_string();
        for secret in ["p1", "p2", "p3", "p4", "user"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        assert_eq!(shown["hosts"], json!(["redis://***@host:1/x@y", "http://plain/a@b"]));
        assert_eq!(shown["chunk_tokens"], 256);
        assert_eq!(shown["host"], "h");
    }
}
