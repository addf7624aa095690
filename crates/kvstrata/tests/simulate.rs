//! `kvstrata simulate` as a user meets it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kvstrata_testkit::trace::{self, Synthetic};
use serde_json::Value;

fn kvstrata(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvstrata")).args(args).env_remove("KVSTRATA_CONFIG").output().unwrap()
}

/// Runs a command that must end well, and reads the JSON that it wrote.
fn figures(dir: &Path, args: &[&str]) -> Value {
    let json = dir.join("figures.json");
    let out = kvstrata(&[args, &["--json", json.to_str().unwrap()]].concat());
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

/// Runs a command that must be refused as a usage error, and says what it said.
fn refused(args: &[&str]) -> String {
    let out = kvstrata(args);
    assert_eq!(out.status.code(), Some(2), "{args:?}");
    String::from_utf8(out.stderr).unwrap()
}

fn made_up(dir: &Path, name: &str, seed: u64) -> PathBuf {
    let path = dir.join(name);
    let settings = Synthetic { requests: 150, seed, ..Synthetic::default() };
    trace::write(std::fs::File::create(&path).unwrap(), settings.generate().unwrap()).unwrap();
    path
}

fn row<'a>(rows: &'a Value, policy: &str, admission: &str, capacity: u64) -> &'a Value {
    let is = |r: &&Value| r["policy"] == policy && r["admission"] == admission && r["capacity"] == capacity;
    rows.as_array().unwrap().iter().find(is).unwrap()
}

#[test]
fn it_predicts_what_replay_gets_to_six_digits() {
    let dir = tempfile::tempdir().unwrap();
    let path = made_up(dir.path(), "t.jsonl", 3);
    let trace = ["--trace", path.to_str().unwrap(), "--block-bytes", "4096"];
    let simulate = [
        &["simulate"][..],
        &trace,
        &["--policy", "fifo,lru,s3fifo,life-table", "--admission", "always,duel", "--capacity", "64"],
    ];
    let rows = figures(dir.path(), &simulate.concat());
    for policy in ["fifo", "lru", "s3fifo", "life-table"] {
        for admission in ["always", "duel"] {
            // 64 blocks of 4096 bytes.
            let l1 =
                ["--l1-size-gb", "0.000244140625", "--eviction-policy", policy, "--admission", admission];
            let replayed = figures(dir.path(), &[&["replay"][..], &trace, &l1].concat());
            let predicted = row(&rows, policy, admission, 64);
            for (ours, theirs) in
                [("object_hit_ratio", "block_hit_ratio"), ("prefix_hit_ratio", "prefix_hit_ratio")]
            {
                let (a, b) = (predicted[ours].as_f64().unwrap(), replayed[theirs].as_f64().unwrap());
                assert!(a > 0.1 && (a - b).abs() <= 5e-7, "{policy} + {admission}: {ours} {a}, {theirs} {b}");
            }
            assert_eq!(
                predicted["blocks_written"].as_u64().unwrap() * 4096,
                replayed["stored_bytes"].as_u64().unwrap(),
                "{policy} + {admission}"
            );
        }
    }
}

#[test]
fn rows_are_traces_times_policies_times_rules_times_capacities_and_belady() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (made_up(dir.path(), "one.jsonl", 1), made_up(dir.path(), "two.jsonl", 2));
    let traces = format!("{},{}", one.display(), two.display());
    let plot = dir.path().join("hits.svg");
    let args =
        ["simulate", "--trace", &traces, "--policy", "S3-FIFO,IsolatedLRU,default", "--capacity", "50,200"];
    let more = ["--admission", "always,TinyLFU", "--front", "lru:20", "--plot", plot.to_str().unwrap()];
    let rows = figures(dir.path(), &[&args[..], &more].concat());
    let all = rows.as_array().unwrap();
    assert_eq!(all.len(), 2 * (3 * 2 * 2 + 2));
    for r in all {
        let number = |field: &str| r[field].as_f64().unwrap_or_else(|| panic!("{field} of {r}"));
        assert!(number("prefix_hit_ratio") <= number("object_hit_ratio") && number("object_hit_ratio") < 1.0);
        assert!(
            number("blocks_written") > 0.0 && number("tokens_not_recomputed") > number("tokens_saved"),
            "{r}"
        );
        let per_token = number("blocks_written") / number("tokens_saved");
        assert!((number("blocks_written_per_token_saved") - per_token).abs() < 1e-12, "{r}");
        assert!(r["trace"].as_str().unwrap().ends_with(".jsonl"));
    }
    let default = row(&rows, "default", "always", 50);
    assert!(!default["policy_name"].as_str().unwrap().is_empty());
    let best = row(&rows, "Belady", "optimal", 50);
    assert!(
        best["object_hit_ratio"].as_f64()
            >= row(&rows, "S3-FIFO", "TinyLFU", 50)["object_hit_ratio"].as_f64()
    );
    let drawn = std::fs::read_to_string(plot).unwrap();
    assert!(drawn.contains("one.jsonl") && drawn.contains("two.jsonl") && drawn.ends_with("</svg>\n"));
}

#[test]
fn what_it_cannot_take_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = made_up(dir.path(), "t.jsonl", 3);
    let trace = path.to_str().unwrap();
    let with = |more: [&str; 2]| refused(&["simulate", "--trace", trace, more[0], more[1]]);
    for (flag, value, says) in [
        ("--policy", "LRUU", ["known: noop, FIFO, LRU", "did you mean LRU?"]),
        ("--admission", "duell", ["known: always, second_sighting", "did you mean duel?"]),
        ("--capacity", "0", ["'0'", "1.."]),
        ("--capacity", "500,many", ["'many'", "--capacity"]),
        ("--front", "lru", ["--front", "lru:2000"]),
        ("--front", "lru:0", ["--front", "lru:2000"]),
        ("--block-bytes", "0", ["block-bytes", "1 byte"]),
        ("--block-tokens", "0", ["block-tokens", "1.."]),
    ] {
        let said = with([flag, value]);
        assert!(says.iter().all(|s| said.contains(s)), "{flag} {value}: {said}");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.lines().next().unwrap().to_owned() + "\n{\"timestamp\": 1}\n").unwrap();
    let said = refused(&["simulate", "--trace", trace]);
    assert!(said.contains("line: 2") && said.contains("t.jsonl") && said.contains("hash_ids"), "{said}");
    let said = refused(&["simulate", "--trace", dir.path().to_str().unwrap()]);
    assert!(said.contains("is not a file"), "{said}");
}
