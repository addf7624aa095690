//! The command as a user meets it: what it writes, and what its exit status says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kvstrata_testkit::trace::{self, Synthetic};
use serde_json::{Value, json};

fn kvstrata(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstrata"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVSTRATA_")) {
        command.env_remove(name);
    }
    command.args(args).output().expect("the command starts")
}

/// Runs a command that must end with `code`; what it wrote to standard output, and what it said.
fn run(code: i32, args: &[&str]) -> (String, String) {
    let out = kvstrata(args);
    let (text, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}{text}");
    (text.into_owned(), said.into_owned())
}

/// Runs a command that must end with `code` and writes nothing but JSON to standard output.
fn json_of(code: i32, args: &[&str]) -> Value {
    let (text, _) = run(code, &[args, &["--json", "-"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn fs_adapter(base_path: &Path, more: Value) -> String {
    let mut all = json!({"type": "fs", "base_path": base_path});
    let keys = all.as_object_mut().expect("an object");
    keys.extend(more.as_object().expect("an object").clone());
    all.to_string()
}

const BLOCK: u64 = 4096;

/// A trace of so many requests.
fn made_up(dir: &Path, requests: usize) -> PathBuf {
    let path = dir.join("trace.jsonl");
    let settings = Synthetic { requests, ..Synthetic::default() };
    trace::write(fs::File::create(&path).unwrap(), settings.generate().unwrap()).unwrap();
    path
}

/// A store that a replay filled.
fn filled(dir: &Path) -> PathBuf {
    let (trace, root) = (made_up(dir, 20), dir.join("kv"));
    let adapter = fs_adapter(&root, json!({}));
    let block = BLOCK.to_string();
    let args = ["--block-bytes", &block, "--l1-size-gb", "0.002", "--l2-adapter", &adapter];
    json_of(0, &[&["replay", "--trace", text(&trace)][..], &args].concat());
    root
}

fn objects(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() && entry.file_name().is_some_and(|n| n.len() == 2) {
                left.push(entry);
            } else if entry.extension().is_some_and(|e| e == "kv") {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn replay_loads_after_a_restart_what_it_stored_before() {
    let dir = scratch();
    let trace = made_up(dir.path(), 60);
    let limit = 1 << 20;
    let adapter =
        fs_adapter(&dir.path().join("kv"), json!({"max_capacity_gb": limit as f64 / f64::from(1 << 30)}));
    let figures = json_of(
        0,
        &[
            "replay",
            "--trace",
            text(&trace),
            "--block-bytes",
            "4KiB",
            "--l1-size-gb",
            "0.0001",
            "--l2-adapter",
            &adapter,
            "--restart-at",
            "30",
        ],
    );
    let n = |field: &str| figures[field].as_f64().unwrap_or_else(|| panic!("{field} in {figures}"));
    assert_eq!((n("schema_version"), n("requests"), n("wrong_bytes"), n("pins_left")), (1.0, 60.0, 0.0, 0.0));
    assert!(n("l2_hit_blocks_after_restart") > 0.0, "{figures}");
    assert!(n("evicted_blocks") > 0.0 && n("l2_peak_bytes") <= limit as f64, "{figures}");
    assert_eq!(n("l2_limit_bytes"), limit as f64);
    let hits = n("l1_hit_blocks") + n("l2_hit_blocks");
    assert_eq!(n("block_hit_ratio"), hits / n("blocks"));
    assert!(n("prefix_hit_ratio") <= n("block_hit_ratio"));
    assert_eq!(n("loaded_bytes"), hits * BLOCK as f64);
    assert!(n("stored_bytes") >= (n("blocks") - hits - n("declined_stores")) * BLOCK as f64);
    for field in ["lookup_us", "load_us"] {
        let p = |q: &str| figures[field][q].as_f64().unwrap_or_else(|| panic!("{field}.{q} in {figures}"));
        assert!(0.0 < p("p50") && p("p50") <= p("p99") && p("p99") <= p("p999"), "{figures}");
    }
}

#[test]
fn a_store_of_other_blocks_is_refused_with_the_field_that_differs() {
    let dir = scratch();
    let root = filled(dir.path());
    let (trace, adapter) = (dir.path().join("trace.jsonl"), fs_adapter(&root, json!({})));
    let before = objects(&root);
    let with = |block: &str, code| {
        run(code, &["replay", "--trace", text(&trace), "--block-bytes", block, "--l2-adapter", &adapter]).1
    };
    let said = with("8192", 1);
    assert!(said.contains("layout") && said.contains("U8[4096]") && said.contains("U8[8192]"), "{said}");
    assert_eq!(objects(&root), before, "nothing was changed");
    with("4096", 0);
}

#[test]
fn a_trace_is_the_same_every_time_and_replaces_nothing() {
    let dir = scratch();
    let path = dir.path().join("t.jsonl");
    let make = ["trace", "--requests", "12", "--seed", "5"];
    let (first, _) = run(0, &make);
    assert_eq!(first.lines().count(), 12);
    run(0, &[&make[..], &["--out", text(&path)]].concat());
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
    let (_, said) = run(1, &["trace", "--requests", "3", "--out", text(&path)]);
    assert!(said.contains("t.jsonl"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), first, "what was there stays");
}

#[test]
fn config_show_says_where_each_setting_came_from() {
    let dir = scratch();
    let file = dir.path().join("kv.toml");
    fs::write(&file, "[l1]\nsize = \"2GiB\"\n\n[eviction]\npolicy = \"FIFO\"\n").unwrap();
    let args = ["config", "show", "--config", text(&file), "--l1-size-gb", "0.5"];
    let lines = json_of(0, &args);
    let line = |name: &str| {
        let lines = lines.as_array().expect("a list");
        lines.iter().find(|l| l["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    assert_eq!(
        (&line("l1.size")["value"], &line("l1.size")["origin"]),
        (&json!("512MiB"), &json!("flag --l1-size-gb"))
    );
    assert_eq!(line("eviction.policy")["value"], "FIFO");
    assert_eq!(line("eviction.policy")["origin"], format!("file {}:5", file.display()));
    assert_eq!(line("digests")["origin"], "default");
    let (table, _) = run(0, &args);
    assert!(table.lines().any(|l| l.starts_with("l1.size ") && l.contains("512MiB")), "{table}");
}

#[test]
fn ls_lists_what_is_there() {
    let dir = scratch();
    let root = filled(dir.path());
    let files = objects(&root).len() as u64;
    let all = json_of(0, &["ls", text(&root)]);
    assert!(files > 3);
    assert_eq!(
        (&all["objects"], &all["bytes"], &all["more"]),
        (&json!(files), &json!(files * BLOCK), &json!(false))
    );
    let entry = &all["entries"][0];
    assert_eq!(
        (&entry["model"], &entry["bytes"], &entry["layout"]),
        (&json!("replay"), &json!(BLOCK), &json!("U8[4096]"))
    );
    assert!(
        entry["key"].as_str().unwrap().starts_with("replay@")
            && entry["digest"].as_str().unwrap().len() == 16
    );
    let some = json_of(0, &["ls", text(&root), "--limit", "2"]);
    assert_eq!((&some["objects"], &some["more"]), (&json!(2), &json!(true)));
    assert_eq!(json_of(0, &["ls", text(&root), "--model", "other"])["objects"], 0);
    let (lines, said) = run(0, &["ls", text(&root)]);
    assert_eq!(lines.lines().count() as u64, files);
    assert!(said.contains(&format!("{files} objects")), "{said}");
}

fn damage(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn fsck_finds_each_fault_and_repairs_it() {
    let dir = scratch();
    let root = filled(dir.path());
    let files = objects(&root);
    let n = files.len();
    let clean = json_of(0, &["fsck", text(&root)]);
    assert_eq!(
        (&clean["clean"], &clean["objects"], &clean["manifest"]),
        (&json!(true), &json!(n), &json!("good"))
    );

    damage(&files[0], 4096 + 7);
    damage(&files[1], 100);
    fs::OpenOptions::new().write(true).open(&files[2]).unwrap().set_len(5000).unwrap();
    fs::write(root.join("tmp/17-000000000000feed-3.kvtmp"), "half").unwrap();
    let before = objects(&root);
    let found = json_of(1, &["fsck", text(&root)]);
    assert_eq!(found["bad_by_reason"], json!({"digest": 1, "header": 1, "truncated": 1}));
    assert_eq!(
        (&found["faults"], &found["repaired"], &found["objects"]),
        (&json!(4), &json!(0), &json!(n - 3))
    );
    assert_eq!(objects(&root), before, "nothing is changed without --repair");

    let repaired = json_of(0, &["fsck", text(&root), "--repair"]);
    assert_eq!((&repaired["faults"], &repaired["repaired"]), (&json!(4), &json!(4)));
    let after = json_of(0, &["fsck", text(&root)]);
    assert_eq!(
        (&after["clean"], &after["objects"], &after["quarantined"]),
        (&json!(true), &json!(n - 3), &json!(3))
    );
}

#[test]
fn a_lost_manifest_is_made_anew() {
    let dir = scratch();
    let root = filled(dir.path());
    let n = objects(&root).len();
    for lost in [true, false] {
        let manifest = root.join("kvstrata.json");
        if lost {
            fs::remove_file(&manifest).unwrap()
        } else {
            fs::write(&manifest, "{").unwrap()
        }
        let (_, said) = run(1, &["ls", text(&root)]);
        assert!(said.contains("manifest") && said.contains("kvstrata fsck"), "{said}");
        assert_ne!(json_of(1, &["fsck", text(&root)])["manifest"], "good");
        json_of(0, &["fsck", text(&root), "--repair"]);
        assert_eq!(json_of(0, &["ls", text(&root)])["objects"], n);
    }
}

#[test]
fn a_store_in_use_is_refused() {
    let dir = scratch();
    let root = filled(dir.path());
    let lock = fs::OpenOptions::new().write(true).open(root.join("kvstrata.lock")).unwrap();
    lock.lock().unwrap();
    for args in [&["fsck"][..], &["fsck", "--repair"], &["ls"]] {
        let (_, said) = run(1, &[args, &[text(&root)]].concat());
        assert!(said.contains("open") && said.contains(text(&root)), "{said}");
    }
    let adapter = fs_adapter(&root, json!({}));
    let doctor = json_of(1, &["doctor", "--l1-size-gb", "0.1", "--l2-adapter", &adapter]);
    assert_eq!(finding(&doctor, "fs: path")["state"], "problem");
    drop(lock);
    run(0, &["fsck", text(&root)]);
}

#[test]
fn what_is_no_store_is_named_and_left_alone() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("lmcache")).unwrap();
    fs::write(at("lmcache").join("m@0x01000100@0@ab.data"), "x").unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other").join("notes"), "mine").unwrap();
    for (name, says) in [
        ("missing", "nothing at this path"),
        ("file", "a file"),
        ("empty", "empty"),
        ("lmcache", "LMCache"),
        ("other", "no manifest and no objects"),
    ] {
        for command in [&["ls"][..], &["fsck"], &["fsck", "--repair"]] {
            let (_, said) = run(2, &[command, &[text(&at(name))]].concat());
            assert!(said.contains(says) && said.contains(name), "{said}");
        }
    }
    assert_eq!(fs::read_dir(at("empty")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(at("lmcache")).unwrap().count(), 1);
}

const BENCH: [&str; 10] = ["bench", "l2", "--keys", "10", "--size", "10001", "--batch", "4", "--rounds", "2"];

#[test]
fn bench_compares_files_with_plain_calls_and_cleans_up() {
    let dir = scratch();
    let root = filled(dir.path());
    let before = objects(&root);
    for (more, direct) in
        [(json!({}), false), (json!({"use_odirect": true, "num_workers": 2, "sync": "data"}), true)]
    {
        let adapter = fs_adapter(&root, more);
        let f = json_of(0, &[&BENCH[..], &["--l2-adapter", &adapter]].concat());
        assert_eq!(
            (&f["keys"], &f["size"], &f["batch"], &f["rounds"]),
            (&json!(10), &json!(10001), &json!(4), &json!(2))
        );
        for field in
            ["store_gbps", "load_gbps", "lookup_us_per_key", "delete_us_per_key", "store_ratio", "load_ratio"]
        {
            assert!(f[field].as_f64().is_some_and(|n| n > 0.0), "{field} in {f}");
        }
        for field in ["store_us", "load_us", "lookup_us", "delete_us"] {
            assert!(f[field]["p50"].as_f64().is_some_and(|n| n > 0.0), "{field} in {f}");
        }
        assert!(f["plain"]["store_gbps"].as_f64().is_some_and(|n| n > 0.0), "{f}");
        assert_eq!(f["plain"]["threads"], if direct { 2 } else { 4 });
        assert!(direct || f["plain"]["direct_read"] == false);
        for field in ["store_gbps", "load_gbps", "store_percent", "load_percent"] {
            assert!(f["device"][field].as_f64().is_some_and(|n| n > 0.0), "{field} in {f}");
        }
        for field in ["wrong_bytes", "failed_stores", "failed_loads", "failed_lookups", "unverified_loads"] {
            assert_eq!(f[field], 0, "{field} in {f}");
        }
        assert_eq!(objects(&root), before, "its own objects are gone, the others are there");
        assert_eq!(fs::read_dir(&root).unwrap().filter(|e| bench_dir(e.as_ref().unwrap())).count(), 0);
    }
    run(0, &["fsck", text(&root)]);
}

fn bench_dir(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("bench-")
}

#[test]
fn bench_of_an_adapter_without_files_has_no_ratio() {
    let mock = r#"{"type": "mock", "max_size_gb": 0.1, "mock_bandwidth_gb": 2.0}"#;
    let f = json_of(0, &[&BENCH[..], &["--l2-adapter", mock, "--no-digests"]].concat());
    assert_eq!(
        (&f["store_ratio"], &f["load_ratio"], &f["plain"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!((&f["digests"], &f["unverified_loads"]), (&json!(false), &json!(20)));
    let limit = f["bandwidth_limit_gbps"].as_f64().unwrap();
    assert!((limit - 2.147_483_648).abs() < 1e-9 && f["load_gbps"].as_f64().unwrap() <= limit * 1.05, "{f}");
    let (table, _) = run(0, &[&BENCH[..], &["--l2-adapter", mock]].concat());
    assert!(table.contains("ceiling") && table.contains("reached"), "{table}");
}

#[test]
fn bench_tells_of_failures() {
    let failing = r#"{"type": "mock", "max_size_gb": 0.1, "mock_bandwidth_gb": 2.0, "fail_load": 5}"#;
    let f = json_of(1, &[&BENCH[..], &["--l2-adapter", failing]].concat());
    assert_eq!((&f["failed_stores"], &f["failed_loads"]), (&json!(0), &json!(4)));
}

fn finding<'a>(report: &'a Value, what: &str) -> &'a Value {
    let all = report["findings"].as_array().expect("a list");
    all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what} in {report}"))
}

#[test]
fn doctor_says_what_works_and_makes_nothing() {
    let dir = scratch();
    let root = dir.path().join("not/there");
    let adapter =
        fs_adapter(&root, json!({"use_odirect": true, "max_capacity_gb": 0.001, "read_ahead_size": 1}));
    let report = json_of(0, &["doctor", "--l1-size-gb", "0.01", "--l2-adapter", &adapter]);
    assert_eq!((&report["schema_version"], &report["ok"]), (&json!(1), &json!(true)));
    assert!(report["machine"]["cores"].as_u64().is_some_and(|n| n > 0));
    assert!(report["machine"]["memory_bytes"].as_u64().is_some_and(|n| n > 1 << 20));
    for (what, state) in [
        ("memory", "ok"),
        ("fs: capacity", "ok"),
        ("fs: rename without replacing", "ok"),
        ("fs: sync", "off"),
        ("digests", "ok"),
        ("locked memory", "off"),
        ("setting read_ahead_size", "off"),
    ] {
        assert_eq!(finding(&report, what)["state"], state, "{what} in {report}");
    }
    for what in ["fs: O_DIRECT reads", "fs: io_uring"] {
        assert!(matches!(finding(&report, what)["state"].as_str(), Some("ok" | "fallback")), "{what}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
}

#[test]
fn doctor_fails_where_something_cannot_work() {
    let dir = scratch();
    let adapter = fs_adapter(dir.path(), json!({"max_capacity_gb": 1e8}));
    let args = ["doctor", "--l1-size-gb", "0.01", "--no-digests", "--l2-adapter", &adapter];
    let report = json_of(1, &args);
    assert_eq!(finding(&report, "fs: capacity")["state"], "problem");
    assert_eq!(finding(&report, "digests")["state"], "off");
    let (table, _) = run(1, &args);
    assert!(
        table.lines().next().is_some_and(|l| l.starts_with("what") && l.contains("what to do")),
        "{table}"
    );
    assert!(table.lines().any(|l| l.starts_with("fs: capacity") && l.contains("problem")), "{table}");
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.trim().is_empty());
    let names = listed.filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|n| *n != "help").map(str::to_owned).collect()
}

#[test]
fn bench_gpu_checks_what_it_is_given_and_says_what_is_missing() {
    let dir = scratch();
    let nowhere = dir.path().join("nowhere");
    for wrong in [
        &["--path", text(&nowhere)][..],
        &["--path", text(dir.path()), "--in-flight", "0"],
        &["--path", text(dir.path()), "--settings", "[]"],
        &["--path", text(dir.path()), "--settings", "{"],
    ] {
        run(2, &[&["bench", "gpu"], wrong].concat());
    }
    // Where there is a GPU, `cargo xtask test-gpu` looks further.
    if kvstrata_cuda::Cuda::open().is_err() {
        let (_, said) = run(1, &["bench", "gpu", "--path", text(dir.path())]);
        assert!(said.contains("CUDA") && said.contains("nvidia-smi"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
    }
}

#[test]
fn every_help_has_an_example() {
    let mut left = vec![Vec::new()];
    let mut leaves = Vec::new();
    while let Some(path) = left.pop() {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let (help, _) = run(0, &args);
        let below = subcommands(&help);
        if below.is_empty() {
            assert!(help.contains(&format!("Example: kvstrata {}", path.join(" "))), "{path:?}: {help}");
            leaves.push(path.join(" "));
        }
        left.extend(below.into_iter().map(|name| [&path[..], &[name]].concat()));
    }
    for expected in ["replay", "trace", "ls", "fsck", "doctor", "bench l2", "bench gpu", "config show"] {
        assert!(leaves.iter().any(|l| l == expected), "{expected} in {leaves:?}");
    }
}
