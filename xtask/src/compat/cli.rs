//! LMCache's command line against the HTTP interface of `kvstrata serve`.

use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::{Place, Pool, Server, lmcache};

/// A command, and what its metrics have to say.
type Case = (&'static [&'static str], &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[
    (&["ping", "kvcache"], &[("status", "OK")]),
    (
        &["describe", "kvcache"],
        &[("health", "OK"), ("engine_type", "KVStrata"), ("chunk_size", "256"), ("cached_objects", "0")],
    ),
    (&["kvcache", "clear"], &[("status", "OK")]),
    (
        &["quota", "set", "team", "--limit-gb", "0.25"],
        &[("cache_salt", "team"), ("limit_gb", "0.25"), ("status", "ok")],
    ),
    (&["quota", "get", "team"], &[("limit_gb", "0.25"), ("current_usage_gb", "0.0"), ("exists", "true")]),
    (&["quota", "list"], &[]),
    (&["quota", "delete", "team"], &[("status", "removed")]),
    (&["quota", "delete", "team"], &[("status", "not_found")]),
    (&["quota", "get", "team"], &[("exists", "false")]),
    // The empty salt.
    (&["quota", "set", "_default", "--limit-gb", "1"], &[("cache_salt", "_default"), ("limit_gb", "1.0")]),
];

/// How many commands failed.
pub(super) fn run(place: &Place) -> Result<u32> {
    let pool = Pool::new("compat_cli");
    let mut command = Command::new(&place.binary);
    command.args(["serve", "--port", "0", "--http-port", "0", "--l1-size-gb", "0.0625"]);
    // A policy that keeps quotas.
    command.args(["--eviction-policy", "IsolatedLRU", "--shm-name", &pool.name]);
    command.args(["--l2-adapter", r#"{"type":"mock","max_size_gb":0.1,"mock_bandwidth_gb":100}"#]);
    let server = Server::launch(&mut command)?;
    let mut failed = 0;
    for (words, wanted) in CASES {
        // `kvcache` takes the format before what it is to do, the others after it.
        let (before, after): (&[_], &[_]) =
            if words[0] == "kvcache" { (&["--format", "json"], &[]) } else { (&[], &["--format", "json"]) };
        let done = lmcache(&place.venv)
            .arg(words[0])
            .args(before)
            .args(&words[1..])
            .args(["--url", &server.http])
            .args(after)
            .output()?;
        let text = String::from_utf8_lossy(&done.stdout);
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let wrong = wanted.iter().find_map(|(field, value)| {
            let is = match &said["metrics"][field] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (is != *value).then(|| format!("{field} is {is}, not {value}"))
        });
        let listed = words != &["quota", "list"] || text.contains("team");
        let good = done.status.success() && said.is_object() && wrong.is_none() && listed;
        println!("lmcache {}: {}", words.join(" "), if good { "ok" } else { "FAILED" });
        if !good {
            failed += 1;
            eprintln!("{}\n{text}{}", wrong.unwrap_or_default(), String::from_utf8_lossy(&done.stderr));
        }
    }
    Ok(failed)
}
