//! What `docs/deploy` says, against the program.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::server::start;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/deploy")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Every query of the dashboard and of the alerts, with where it stands.
pub(crate) fn queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let dashboard: Value = serde_json::from_str(&read("grafana/kvstrata.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (title, query) = (panel["title"].as_str(), target["expr"].as_str());
            found.push((title.expect("a title").into(), query.expect("a query").into()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            found.push(("a variable".into(), query.into()));
        }
    }
    let rules = yaml("prometheus/kvstrata.rules.yaml");
    for group in rules[0]["groups"].as_vec().expect("groups") {
        for rule in group["rules"].as_vec().expect("rules") {
            let text =
                |key: &str| rule[key].as_str().unwrap_or_else(|| panic!("{key} of {rule:?}")).to_owned();
            found.push((text("alert"), text("expr")));
        }
    }
    found
}

/// The metrics that a query names.
pub(crate) fn metrics_of(query: &str) -> Vec<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let ours = |w: &&str| w.starts_with("kvstrata_") || w.starts_with("lmcache_");
    words.filter(ours).map(str::to_owned).collect()
}

/// The words of a shell line, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted, mut begun) = (vec![String::new()], false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if begun {
                    words.push(String::new());
                }
                begun = false;
            }
            c => {
                words.last_mut().expect("one at least").push(c);
                begun = true;
            }
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

/// The flags of `serve` and their values.
fn flags(words: &[String]) -> Vec<(String, String)> {
    let from = words.iter().position(|w| w == "serve").expect("it serves") + 1;
    let mut flags = Vec::new();
    let mut rest = words[from..].iter();
    while let Some(word) = rest.next() {
        let pair = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), value.to_owned()),
            None => (word.clone(), rest.next().expect("a value").clone()),
        };
        flags.push(pair);
    }
    flags
}

/// A server with these flags, where what names a place of the machine or takes much of it is changed.
fn starts(flags: &[(String, String)]) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut more = Vec::new();
    for (flag, value) in flags {
        match flag.as_str() {
            // The test's own server sets these.
            "--port" | "--http-port" | "--l1-size-gb" | "--shm-name" => {}
            "--host" | "--http-host" => more.extend([flag.clone(), "127.0.0.1".into()]),
            "--l2-adapter" => {
                let mut adapter: Value = serde_json::from_str(value).expect("JSON");
                adapter["base_path"] = dir.path().join("kv").to_str().expect("UTF-8").into();
                adapter["max_capacity_gb"] = 1.into();
                more.extend([flag.clone(), adapter.to_string()]);
            }
            _ => more.extend([flag.clone(), value.clone()]),
        }
    }
    assert!(flags.iter().any(|(flag, _)| flag == "--l2-adapter"), "{flags:?}");
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let server = start(&more);
    assert_eq!(server.ask("GET", "/healthcheck", "").0, 200);
}

#[test]
fn the_unit_starts_a_server() {
    let unit = read("kvstrata.service");
    let line = unit.replace("\\\n", " ");
    let line = line.lines().find_map(|l| l.strip_prefix("ExecStart=")).expect("a command");
    starts(&flags(&words(line)));
}

#[test]
fn the_manifest_starts_a_server_that_its_probes_find() {
    let documents = yaml("kubernetes.yaml");
    let set = documents.iter().find(|d| d["kind"].as_str() == Some("DaemonSet")).expect("a DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["hostIPC"].as_bool(), Some(true));
    let container = &pod["containers"][0];
    let list = |key: &str| -> Vec<String> {
        let words = container[key].as_vec().expect(key).iter();
        words.map(|w| w.as_str().expect("a word").to_owned()).collect()
    };
    let flags = flags(&[list("command"), list("args")].concat());
    let port = |name: &str| flags.iter().find(|(flag, _)| flag == name).map(|(_, value)| value.clone());
    for published in container["ports"].as_vec().expect("ports") {
        let flag = if published["name"].as_str() == Some("http") { "--http-port" } else { "--port" };
        assert_eq!(port(flag), published["containerPort"].as_i64().map(|p| p.to_string()), "{flag}");
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some("/healthcheck"), "{probe}");
    }
    starts(&flags);
}
