//! `kvstrata import` as a user meets it, over directories as LMCache leaves them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Runs an import that must end with `code`; the JSON it wrote, and what it said.
fn import(code: i32, args: &[&str]) -> (Value, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_kvstrata"))
        .arg("import")
        .args(args)
        .args(["--json", "-"])
        .output()
        .expect("the command starts");
    let (text, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}{text}");
    (serde_json::from_str(&text).unwrap_or(Value::Null), said.into_owned())
}

/// The lines that `ls` shows of a store: bytes, digest, layout, key.
fn ls(store: &Path) -> Vec<String> {
    let out = Command::new(env!("CARGO_BIN_EXE_kvstrata"))
        .arg("ls")
        .arg(store)
        .output()
        .expect("the command starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut lines: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        fs::create_dir(dir.path().join("from")).expect("a directory");
        Self { dir }
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("kv")
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        let path = self.from().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }

    fn args<'a>(&'a self, kind: &'a str, more: &[&'a str], paths: &'a [PathBuf; 2]) -> Vec<&'a str> {
        let [from, to] = paths.each_ref().map(|p| p.to_str().expect("UTF-8"));
        [&["--from", kind, from, "--to", to][..], more].concat()
    }

    fn import(&self, code: i32, kind: &str, more: &[&str]) -> (Value, String) {
        import(code, &self.args(kind, more, &[self.from(), self.to()]))
    }
}

fn payload(n: u8) -> Vec<u8> {
    (0..1 << 16).map(|i: u32| (i / 256) as u8 ^ i as u8 ^ n).collect()
}

/// 64 KiB of bf16 as the GDS backend writes them.
fn header() -> Vec<u8> {
    let text = r#"{"kvcache": {"dtype": "BF16", "shape": [2, 4, 16, 256], "data_offsets": [0, 65536], "fmt": 1, "__metadata__": {"lmcache_version": "1"}}}"#;
    let mut block = 4088u64.to_le_bytes().to_vec();
    block.extend_from_slice(text.as_bytes());
    block.resize(4096, b' ');
    block
}

fn gds_object(place: &Place, n: u64) {
    let digits = n.to_string();
    let name = format!(
        "{}/{}/org%2Fmodel%402%401%40{n:x}%40bfloat16.kvcache.safetensors",
        &digits[..2],
        &digits[2..4]
    );
    place.file(&name, &[header(), payload(n as u8)].concat());
    place.file(&format!("{name}.metadata"), &header());
}

#[test]
fn a_directory_of_the_fs_adapters() {
    let place = Place::new();
    let name = |n: u8| format!("org-SEP-model@0x01000100@0@{}.data", format!("{n:02x}").repeat(32));
    (1..=20).for_each(|n| place.file(&name(n), &payload(n)));
    // The older version's name, a direct write's padding, a tenant.
    place.file(&format!("org-SEP-model@0x01000100@{}.data", "aa".repeat(32)), &payload(30));
    place.file(&format!("org-SEP-model@0x01000100@1@{}@tenant.data", "bb".repeat(32)), &payload(31));
    place.file("org-SEP-model@0x01000100@0@cccc.data", &payload(32)[..60_000]);
    place.file("org-SEP-model@0x01000100@0@dddd.data.tmp", b"x");
    place.file("readme", b"x");
    let layout = "BF16[2,4,16,256]";

    let (dry, _) = place.import(0, "lmcache-fs", &["--layout", layout, "--dry-run"]);
    let refused = json!({"foreign": 1, "temporary": 1, "truncated": 1});
    assert_eq!((&dry["objects"], &dry["bytes"], &dry["refused"]), (&json!(22), &json!(22 << 16), &refused));
    assert_eq!(dry["imported"], 0);
    assert!(!place.to().exists(), "a dry run makes no store");

    // Memory for three objects at a time.
    let (report, _) = place.import(0, "lmcache-fs", &["--layout", layout, "--memory", "192KiB", "--verify"]);
    assert_eq!(
        (&report["imported"], &report["verified"], &report["refused"]),
        (&json!(22), &json!(22), &refused)
    );
    assert_eq!((&report["failed"], &report["imported_bytes"]), (&json!(0), &json!(22 << 16)));
    let listed = ls(&place.to());
    assert_eq!(listed.len(), 22);
    assert!(listed.iter().all(|l| l.contains("65536")));
    assert!(listed.iter().any(|l| l.ends_with(&format!("org/model@01000100@1@{}@tenant", "bb".repeat(32)))));
    assert!(listed.iter().any(|l| l.ends_with(&format!("org/model@01000100@0@{}", "aa".repeat(32)))));
    assert!(listed.iter().all(|l| !l.contains(" - ")), "each has a digest: {listed:?}");

    // Once more: nothing is done. With one more file, that alone.
    place.file(&name(99), &payload(99));
    let (again, _) = place.import(0, "lmcache-fs", &["--layout", layout]);
    assert_eq!((&again["imported"], &again["present"]), (&json!(1), &json!(22)));

    // Under another layout what is there stays.
    let (other, _) = place.import(1, "lmcache-fs", &["--layout", "F16[32768]"]);
    assert_eq!((&other["imported"], &other["other_layout"]), (&json!(0), &json!(23)));
}

#[test]
fn a_directory_of_the_gds_backend() {
    let place = Place::new();
    (0..10).for_each(|n| gds_object(&place, 1_234_567 + n * 1000));
    // One of each fault.
    let of = |n: u64| {
        let digits = n.to_string();
        format!(
            "{}/{}/org%2Fmodel%402%401%40{n:x}%40bfloat16.kvcache.safetensors",
            &digits[..2],
            &digits[2..4]
        )
    };
    [2_000_000, 3_000_000, 4_000_000, 5_000_000].into_iter().for_each(|n| gds_object(&place, n));
    place.file(&of(2_000_000), &[header(), payload(1)[1..].to_vec()].concat());
    place.file(&format!("{}.metadata", of(3_000_000)), &[0; 4096]);
    fs::remove_file(place.from().join(of(4_000_000))).expect("a file");
    fs::rename(place.from().join("50/00"), place.from().join("50/01")).expect("a rename");

    let (report, _) = place.import(0, "lmcache-gds", &["--verify", "--local-world-size", "1"]);
    assert_eq!(
        (&report["objects"], &report["imported"], &report["verified"]),
        (&json!(10), &json!(10), &json!(10))
    );
    let refused = json!({"foreign": 1, "half": 1, "malformed": 1, "truncated": 1});
    assert_eq!(report["refused"], refused);
    let listed = ls(&place.to());
    // World size 2, rank 1, one worker a machine.
    assert!(listed.iter().all(|l| l.contains("org/model@02010100@0@")), "{listed:?}");
    let (again, _) = place.import(0, "lmcache-gds", &["--local-world-size", "1", "--model", "org/model"]);
    assert_eq!((&again["imported"], &again["present"]), (&json!(0), &json!(10)));
    let (none, _) = place.import(0, "lmcache-gds", &["--model", "another"]);
    assert_eq!((&none["objects"], &none["refused"]["foreign"]), (&json!(0), &json!(11)));
}

#[test]
fn what_does_not_fit_is_said() {
    let place = Place::new();
    place.file("m@0x01000100@0@abab.data", &payload(1));
    let (small, _) = place.import(1, "lmcache-fs", &["--memory", "32KiB"]);
    assert_eq!((&small["failed"], &small["imported"]), (&json!(1), &json!(0)));
    assert!(small["first_failure"].as_str().expect("a reason").contains("--memory"), "{small}");
    // A store that has no room for an object says so.
    let (full, _) = place.import(1, "lmcache-fs", &["--max-capacity-gb", "0.00007"]);
    assert_eq!((&full["no_room"], &full["failed"]), (&json!(1), &json!(0)));
}

#[test]
fn wrong_command_lines_name_the_flag_and_change_nothing() {
    let place = Place::new();
    place.file("m@0x01000100@0@abab.data", &payload(1));
    for (kind, more, says) in [
        ("lmcache-fs", &["--layout", "BF16"][..], "--layout"),
        ("lmcache-fs", &["--local-world-size", "2"], "--local-world-size"),
        ("lmcache-gds", &["--layout", "BF16[1]"], "--layout"),
        ("lmcache-fs", &["--model", "a@b"], "model"),
        ("lmcache-fs", &["--model", "a/b", "--model", "a-SEP-b"], "told apart"),
        ("lmcache-fs", &["--max-capacity-gb", "-1"], "max_capacity_gb"),
        ("lmcache-gpu", &[], "lmcache-gds"),
    ] {
        let (_, said) = place.import(2, kind, more);
        assert!(said.contains(says), "{more:?}: {said}");
        assert!(!place.to().exists(), "{more:?}");
    }
    let from = place.from();
    let (_, said) = import(2, &place.args("lmcache-fs", &[], &[from.clone(), from.clone()]));
    assert!(said.contains("a directory of its own"), "{said}");
    let (_, said) = import(1, &place.args("lmcache-fs", &[], &[from.join("none"), place.to()]));
    assert!(said.contains("base_path"), "{said}");

    // LMCache's directory is no store, and the refusal names the command.
    let (_, said) =
        import(1, &place.args("lmcache-gds", &[], &[place.dir.path().join("empty"), from.clone()]));
    assert!(said.contains("empty"), "{said}");
    fs::create_dir(place.dir.path().join("empty")).expect("a directory");
    let (_, said) = import(1, &place.args("lmcache-gds", &[], &[place.dir.path().join("empty"), from]));
    assert!(said.contains("kvstrata import --from lmcache-fs"), "{said}");
}
