//! The command over Mooncake Store: a trace replayed through a live cluster, and the file that Mooncake's variable names.

#[path = "../../l2-mooncake/tests/common/cluster.rs"]
#[expect(dead_code, reason = "the adapter's own tests use more of it")]
mod cluster;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use cluster::{Cluster, wheel};
use kvstrata_testkit::trace::{self, Synthetic};
use kvstrata_testkit::{gated, named};
use libtest_mimic::Arguments;
use serde_json::{Value, json};

fn kvstrata(args: &[&str], variable: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstrata"));
    for (name, _) in std::env::vars() {
        if name.starts_with("KVSTRATA_") || name.starts_with("MOONCAKE_") {
            command.env_remove(name);
        }
    }
    if let Some(path) = variable {
        command.env("MOONCAKE_CONFIG_PATH", path);
    }
    command.args(args).output().expect("the command starts")
}

fn replay(trace: &Path, adapter: &Value, variable: Option<&Path>) -> Output {
    replay_blocks("16KiB", trace, adapter, variable)
}

fn replay_blocks(block: &str, trace: &Path, adapter: &Value, variable: Option<&Path>) -> Output {
    let (trace, adapter) = (trace.to_str().expect("UTF-8"), adapter.to_string());
    let fixed = ["replay", "--l1-size", "4MiB", "--restart-at", "60", "--json", "-"];
    let given = ["--block-bytes", block, "--trace", trace, "--l2-adapter", &adapter];
    kvstrata(&[&fixed[..], &given].concat(), variable)
}

fn figures(out: &Output) -> Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("figures")
}

fn made_up(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("trace.jsonl");
    let settings = Synthetic { requests: 120, ..Synthetic::default() };
    trace::write(fs::File::create(&path).expect("a file"), settings.generate().expect("a trace"))
        .expect("the trace");
    path
}

fn no_byte_is_wrong(figures: &Value) {
    assert_eq!((&figures["wrong_bytes"], &figures["pins_left"]), (&json!(0), &json!(0)), "{figures}");
}

/// L1 is small, so most hits come from the cluster, also after everything was closed and opened again; and so they do when
/// the pool is far too small for all.
fn a_replay_has_no_wrong_byte_and_leaves_no_pin() {
    for (segment, whole) in [("256MB", true), ("16MB", false)] {
        let cluster = Cluster::start(segment);
        let dir = tempfile::tempdir().expect("a directory");
        let client = cluster.client(0).to_string();
        let master = format!("mooncakestore://127.0.0.1:{}", cluster.ports.master);
        let adapter = json!({"type": "mooncake_store", "remote_url": master, "client_address": client});
        let figures = figures(&replay(&made_up(dir.path()), &adapter, None));
        no_byte_is_wrong(&figures);
        let from = |field: &str| figures[field].as_u64().expect("a count");
        assert_eq!(from("failed_loads"), 0, "{figures}");
        if whole {
            assert!(from("l2_hit_blocks") > 0 && from("l2_hit_blocks_after_restart") > 0, "{figures}");
            assert_eq!((from("missed_loads"), from("declined_stores")), (0, 0), "{figures}");
        } else {
            let refusals = figures["refusals"].as_object().expect("counts by reason");
            assert!(refusals.keys().all(|reason| reason == "no_space"), "{figures}");
        }
    }
}

/// Blocks of another size lie under the same keys, from a replay before. Lookups find them, and each is a miss by its layout,
/// counted as that and replaced: no load fails.
fn what_another_replay_left_is_a_miss_with_a_reason() {
    let cluster = Cluster::start("256MB");
    let dir = tempfile::tempdir().expect("a directory");
    let adapter = json!({"type": "mooncake_store", "client_address": cluster.client(0).to_string(),
        "master_server_address": format!("127.0.0.1:{}", cluster.ports.master)});
    let trace = made_up(dir.path());
    no_byte_is_wrong(&figures(&replay_blocks("4KiB", &trace, &adapter, None)));
    let figures = figures(&replay(&trace, &adapter, None));
    no_byte_is_wrong(&figures);
    let missed = figures["missed_loads"].as_u64().expect("a count");
    assert_eq!((&figures["failed_loads"], &figures["lost_between"]), (&json!(0), &json!({"layout": missed})));
    assert!(missed > 0 && figures["l2_hit_blocks"].as_u64().is_some_and(|hits| hits > 0), "{figures}");
}

/// The file wins over the settings, which name a master that is not there; and one that cannot be read is named.
fn the_file_of_mooncakes_variable_wins() {
    let cluster = Cluster::start("64MB");
    let dir = tempfile::tempdir().expect("a directory");
    let (trace, path) = (made_up(dir.path()), dir.path().join("mooncake.json"));
    let settings = json!({"local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE", "protocol": "tcp",
        "device_name": "", "global_segment_size": 0, "master_server_address": format!("127.0.0.1:{}", cluster.ports.master)});
    fs::write(&path, settings.to_string()).expect("a file");
    let adapter = json!({"type": "mooncake_store", "master_server_address": "127.0.0.1:1",
        "client_address": cluster.client(0).to_string()});
    let refused = replay(&trace, &adapter, None);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("127.0.0.1:1") && said.contains("not reachable"), "{said}");
    no_byte_is_wrong(&figures(&replay(&trace, &adapter, Some(&path))));
    for text in ["[1]", "{"] {
        fs::write(&path, text).expect("a file");
        let refused = replay(&trace, &adapter, Some(&path));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("MOONCAKE_CONFIG_PATH"), "{said}");
    }
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let tests = named![
        a_replay_has_no_wrong_byte_and_leaves_no_pin
        what_another_replay_left_is_a_miss_with_a_reason
        the_file_of_mooncakes_variable_wins
    ];
    libtest_mimic::run(&args, gated::trials(wheel().err().as_deref(), &tests)).exit_code()
}
