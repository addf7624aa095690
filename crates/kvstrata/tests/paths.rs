//! The command over several paths.

use std::path::Path;
use std::process::Command;

use kvstrata_testkit::trace::{self, Synthetic};
use serde_json::{Value, json};

fn json_of(args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstrata"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVSTRATA_")) {
        command.env_remove(name);
    }
    let out = command.args(args).args(["--json", "-"]).output().expect("the command starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&out.stdout));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_replay_over_two_local_disks_leaves_no_pin_and_finds_all_again() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let trace = dir.path().join("trace.jsonl");
    let settings = Synthetic { requests: 60, ..Synthetic::default() };
    trace::write(std::fs::File::create(&trace).unwrap(), settings.generate().unwrap()).unwrap();
    let disks = format!("file://{0}/a, {0}/b", dir.path().display());
    let replay = |sharding: &str| {
        json_of(&[
            "replay",
            "--trace",
            text(&trace),
            "--block-bytes",
            "16384",
            "--max-local-cpu-size",
            "0.002",
            "--local-disk",
            &disks,
            "--max-local-disk-size",
            "0.2",
            "--local-disk-path-sharding",
            sharding,
        ])
    };
    let first = replay("by_key");
    assert_eq!(
        (&first["wrong_bytes"], &first["pins_left"], &first["failed_loads"]),
        (&json!(0), &json!(0), &json!(0))
    );
    for path in ["a", "b"] {
        let listed = json_of(&["ls", text(&dir.path().join(path))]);
        assert!(listed["objects"].as_u64().is_some_and(|n| n > 10), "both take part: {listed}");
    }
    let objects = |paths: &[&str]| {
        let listed = json_of(&[&["ls"], paths].concat());
        assert_eq!(
            listed["entries"].as_array().map(Vec::len),
            listed["objects"].as_u64().map(|n| n as usize)
        );
        listed["objects"].as_u64().expect("a number")
    };
    let [a, b] = ["a", "b"].map(|path| dir.path().join(path));
    assert_eq!(
        objects(&[text(&a), text(&b)]),
        objects(&[text(&a)]) + objects(&[text(&b)]),
        "by_key: each in one"
    );
    // Another rule, and all that was stored is found.
    let again = replay("by_gpu");
    assert_eq!((&again["wrong_bytes"], &again["pins_left"]), (&json!(0), &json!(0)));
    assert!(again["l2_hit_blocks"].as_u64() > first["l2_hit_blocks"].as_u64(), "{again}");
}

#[test]
fn doctor_tells_of_each_path() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let adapter =
        json!({"type": "fs", "paths": [{"path": a, "weight": 3}, b], "max_capacity_gb": 0.4, "shared": true});
    let report = json_of(&["doctor", "--l1-size-gb", "0.01", "--l2-adapter", &adapter.to_string()]);
    let all = report["findings"].as_array().expect("a list");
    let why = |what: String| {
        let finding = all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what} in {report}"));
        finding["why"].as_str().expect("a text").to_owned()
    };
    assert!(why("fs: paths".into()).starts_with("by_key over "));
    for (path, limit) in [(&a, "307.20 MiB"), (&b, "102.40 MiB")] {
        let name = format!("fs {}", path.display());
        assert!(why(format!("{name}: path")).contains("shared with other processes"), "{report}");
        assert!(why(format!("{name}: capacity")).contains(limit), "{report}");
        assert_eq!(why(format!("{name}: layout")), "file-per-object: set by shared");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
}
