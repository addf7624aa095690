//! Bad settings: each a clear error before anything changes. Settings without effect: said once.

mod common;

use common::{MACHINE, effective, error, file, flags, load, registry, sources};
use kvstrata_config::{FileKind, Resolved, Settings, Sources};
use kvstrata_core::ErrorKind;
use proptest::prelude::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn by(pairs: &[(&str, &str)]) -> Sources {
    Sources { flags: flags(pairs), ..sources() }
}

#[test]
fn each_bad_value_is_refused_with_its_name_its_place_and_what_would_do() {
    let table: &[(&str, &str, &[&str])] = &[
        ("l1-size-gb", "0", &["l1.size", "4096"]),
        ("l1-size-gb", "-1", &["negative"]),
        ("l1-size-gb", "nan", &["a size is a number"]),
        ("l1-size-gb", "inf", &["a size is a number"]),
        ("l1-size-gb", "1e300", &["beyond any machine"]),
        ("l1-size-gb", "65", &["l1.size", "more than this machine's memory", "64.0GiB"]),
        ("l1-size-gb", "63", &["together"]),
        ("l1-size-gb", "1.5XB", &["1.5GiB"]),
        ("l1-staging-size", "0", &["l1.staging_size", "4096"]),
        ("l1-align-bytes", "3", &["power of two"]),
        ("l1-align-bytes", "8192", &["at most 4096"]),
        ("l1-hugepages", "big", &["none, transparent, explicit"]),
        ("l1-numa", "-1", &["whole number"]),
        ("l1-numa", "1.5", &["whole number"]),
        ("shm-name", "a/b", &["shared-memory name"]),
        ("chunk-size", "0", &["at least one token"]),
        ("chunk-size", "many", &["whole number"]),
        ("digests", "perhaps", &["true or false"]),
        ("eviction-policy", "LRUU", &["eviction.policy", "noop, FIFO, LRU", "did you mean LRU"]),
        ("eviction-policy", "retain", &["eviction.policy", "retain is a prefetch policy", "prefetch.policy"]),
        ("admission", "LRU", &["LRU is an eviction policy", "eviction.policy"]),
        ("l2-store-policy", "tinylfu", &["store.policy", "tinylfu is an admission rule"]),
        ("l2-prefetch-policy", "skip_l1", &["skip_l1 is a store policy", "store.policy"]),
        ("eviction-quotas", "a=1GiB", &["eviction.quotas", "IsolatedLRU", "life-table"]),
        ("eviction-default-quota", "1GiB", &["eviction.default_quota", "IsolatedLRU"]),
        ("eviction-quotas", "a", &["SALT=SIZE"]),
        ("eviction-quotas", "a=-1", &["the quota of \"a\"", "negative"]),
        ("eviction-quotas", "{\"a\":[]}", &["the quota of \"a\""]),
        ("eviction-ratio", "0", &["up to 1"]),
        ("eviction-trigger-watermark", "1.5", &["up to 1"]),
        ("l2-store-policy", "noop", &["store.policy", "default, skip_l1"]),
        ("l2-prefetch-policy", "retian", &["default, retain", "nearest is retain"]),
        ("blocking_timeout_secs", "-1", &["not negative"]),
        ("blocking_timeout_secs", "0", &["above 0"]),
        ("load-timeout", "soon", &["250ms"]),
        ("local_disk_path_sharding", "by_rank", &["by_gpu", "by_uuid", "by_key"]),
        ("l2-adapter", "{\"type\":", &["not JSON", "line 1 column 8"]),
        ("l2-adapter", "\"fs\"", &["an adapter is an object"]),
        ("l2-adapter", "[1]", &["an adapter is an object"]),
        ("l2-adapter", "{}", &["\"type\"", "fake, fs"]),
        ("l2-adapter", r#"{"type":"fss"}"#, &["nearest is fs", "fake, fs"]),
        ("l2-adapter", r#"{"type":"s3"}"#, &["not built in this version"]),
        ("l2-adapter", r#"{"type":"raw_block"}"#, &["not built in this version"]),
        ("l2-adapter", r#"{"type":"s3"}"#, &["not built in this version"]),
        ("l2-adapter", r#"{"type":"resp"}"#, &["not built in this version"]),
        ("l2-adapter", r#"{"type":"fs","base_pth":"/x"}"#, &["nearest is base_path", "base_pth"]),
        ("l2-adapter", r#"{"type":"fake","size_gb":-1}"#, &["size_gb", "negative"]),
        ("l2-adapter", r#"{"type":"fake","weight":0}"#, &["at least 1"]),
        ("l2-adapter", r#"{"type":"fake","name":""}"#, &["name"]),
        ("l2-adapter", r#"{"type":"fake","breaker":3}"#, &["breaker", "true, false or an object"]),
        ("l2-adapter", r#"{"type":"fake","breaker":{"consecutive":0}}"#, &["consecutive", "at least 1"]),
        ("l2-adapter", r#"{"type":"fake","breaker":{"patience":"20s"}}"#, &["patience", "the window"]),
        ("l2-adapter", r#"{"type":"fake","breaker":{"patients":1}}"#, &["nearest is patience"]),
        ("l2-adapter", r#"{"type":"fake","breaker":{"cooldown":1}}"#, &["nearest is cool_down"]),
        ("l2-adapter", r#"{"type":"fake","max_in_flight":"x"}"#, &["max_in_flight", "1.5GiB"]),
        ("l2-adapter", r#"{"type":"fake","serde":{"type":"fp8"}}"#, &["not built"]),
        ("l2-adapter", r#"{"type":"fake","affinity_tag":"x"}"#, &["_default"]),
        ("l2-adapter", r#"{"type":"fake","persist_enabled":false}"#, &["not built"]),
        ("l2-adapter", r#"{"type":"fake","read_only":"yes"}"#, &["read_only", "true or false"]),
        (
            "l2-adapter",
            r#"{"type":"fake","eviction":{"eviction_ration":0.1}}"#,
            &["nearest is eviction_ratio"],
        ),
        ("l2-adapter", r#"[{"type":"fake","name":"a"},{"type":"fake","name":"a"}]"#, &["one name"]),
        ("extra_config", "[]", &["JSON object"]),
        ("extra_config", "{", &["not JSON"]),
        (
            "extra_config",
            r#"{"use_odirct":true}"#,
            &["extra_config: use_odirct", "nearest is --extra-config-use-odirect"],
        ),
        ("extra_config", r#"{"mooncake_protocol":"rdma"}"#, &["Mooncake"]),
        ("gds_path", "/d", &["GPUDirect Storage is an adapter here"]),
        ("remote_url", "mooncakestore://h", &["not built in this version"]),
        ("l1-manager", "{}", &["l1.size"]),
        ("l1-sise-gb", "1", &["nearest is --l1-size-gb"]),
        ("zzzzzz", "1", &["there is no such setting"]),
    ];
    for (name, value, says) in table {
        // The short form is on only with a size.
        let pairs: &[(&str, &str)] = if *name == "local_disk" {
            &[(name, value), ("max_local_disk_size", "1")]
        } else {
            &[(name, value)]
        };
        let e = load(&by(pairs)).map(|_| panic!("{name}={value} is accepted")).unwrap_or_else(|e| e);
        assert!(matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{e:?}");
        let text = e.to_string();
        for part in says.iter().copied().chain([&*format!("flag --{name}")]) {
            assert!(text.contains(part), "{name}={value}: {part:?} is not in: {text}");
        }
    }
}

#[test]
fn malformed_files_and_wrong_keys_name_the_place() {
    for (kind, text, says) in [
        (FileKind::Toml, "a = 1\n[l1\n", "line 2"),
        (FileKind::Toml, "[l1]\nsize = 1\nsize = 2\n", "line 3"),
        (FileKind::Yaml, "l1:\n  size: 1\n bad: [\n", "line 3"),
        (FileKind::Yaml, "- 1\n", "kv.yaml"),
        (FileKind::Yaml, "a: 1\n---\nb: 2\n", "documents"),
        (FileKind::Json, "{\n\"a\": }", "line 2 column 6"),
        (FileKind::Toml, "\n\n[l1]\nsise = 1\n", "kv.toml:4"),
        (FileKind::Toml, "[l1]\nsise = 1\n", "nearest is l1.size"),
        (FileKind::Yaml, "l1:\n  # two GiB\n  size: -2\n", "kv.yaml:3"),
        (FileKind::Yaml, "l1: 5\n", "no such setting"),
        (FileKind::Yaml, "chunk_size: {a: 1}\n", "whole number"),
        (FileKind::Yaml, "chunk_size: []\n", "whole number"),
        (FileKind::Toml, "[ll]\n", "no such setting"),
        (FileKind::Toml, "[l1]\nsize = nan\n", "none"),
        (FileKind::Toml, "[[l2.adapters]]\ntype = \"fake\"\nsize_gb = nan\n", "finite"),
        (FileKind::Json, r#"{"l1": {"size": 99999999999999999999}}"#, "beyond any machine"),
        (FileKind::Json, r#"{"gds_path": "/d"}"#, "GPUDirect"),
        (FileKind::Yaml, "extra_config: {rust_raw_block.x: 1}\n", "raw block"),
    ] {
        let e = error(&Sources { file: Some(file(kind, text)), ..sources() });
        assert!(e.contains(says), "{text:?}: {says:?} is not in: {e}");
    }
    let e = error(&Sources { env: vec![("KVSTRATA_L1_SISE".into(), "1".into())], ..sources() });
    assert!(e.contains("KVSTRATA_L1_SIZE") && e.contains("env KVSTRATA_L1_SISE"), "{e}");
}

#[test]
fn one_setting_under_two_names_in_one_layer_is_a_contradiction() {
    for pairs in [
        [("l1-size-gb", "1"), ("l1-size", "1GiB")],
        [("l1-use-lazy", "false"), ("l1-prefault", "true")],
        [("cache_policy", "LRU"), ("eviction-policy", "FIFO")],
        [("chunk-size", "1"), ("chunk_size", "2")],
    ] {
        assert!(error(&by(&pairs)).contains("is set twice"), "{pairs:?}");
    }
}

#[test]
fn contradictory_combinations_are_refused() {
    let fake = ("l2-adapter", r#"{"type":"fake"}"#);
    let table: &[(Pairs<'_>, &str)] = &[
        (&[("local-cpu", "false")], "no adapter"),
        (&[("l2-store-policy", "skip_l1")], "no adapter"),
        (&[("local-cpu", "false"), ("l2-store-policy", "default"), fake], "keeps chunks in L1"),
        (&[("local-cpu", "false"), ("l2-prefetch-policy", "retain"), fake], "keeps chunks in L1"),
        (&[("local-cpu", "false"), ("l2-prefetch-policy", "fastest_retain"), fake], "keeps chunks in L1"),
        (&[("shm-name", "x"), ("l1-hugepages", "explicit")], "no explicit huge pages"),
    ];
    for (pairs, says) in table {
        let e = error(&by(pairs));
        assert!(e.contains(says), "{pairs:?}: {e}");
    }
}

#[test]
fn two_adapters_on_one_path_are_refused_however_it_is_spelt() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    std::fs::create_dir(dir.path().join("kv")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("kv"), dir.path().join("link")).unwrap();
    let two = |a: &str, b: &str| {
        let list = serde_json::json!([
            {"type": "fs", "name": "a", "base_path": format!("{root}/{a}")},
            {"type": "fs_native", "name": "b", "base_path": format!("{root}/{b}")},
        ]);
        load(&by(&[("l2-adapter", &list.to_string())]))
    };
    for other in ["kv", "kv/", "./kv", "link", "link/.", "new/../kv"] {
        let e = two("kv", other).unwrap_err().to_string();
        assert!(e.contains("two adapters have one path") && e.contains("a, b"), "{other}: {e}");
    }
    assert!(two("new", "new/").unwrap_err().to_string().contains("one path"), "neither is there yet");
    assert!(two("kv", "kv2").is_ok());
    assert!(!dir.path().join("kv2").exists(), "nothing was made");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    assert!(two("kv", "file").unwrap_err().to_string().contains("is a file"));
    assert!(two("kv", "file/below").unwrap_err().to_string().contains("is a file"));

    let path = format!("{root}/kv");
    let adapter = serde_json::json!({"type": "fs", "base_path": path}).to_string();
    let e = error(&by(&[("l2-adapter", &adapter), ("local_disk", &path), ("max_local_disk_size", "1")]));
    assert!(e.contains("one path") && e.contains("fs, local_disk"), "{e}");
}

#[test]
fn what_has_no_effect_in_this_combination_is_said_once() {
    let fake = ("l2-adapter", r#"{"type":"fake"}"#);
    let disk = ("local_disk", "/nonexistent/d");
    let table: &[(Pairs<'_>, &[&str])] = &[
        (&[], &[]),
        (&[("use_only_staging_buffer", "true")], &["use_only_staging_buffer"]),
        (&[("use_only_staging_buffer", "false")], &[]),
        (&[("use_only_staging_buffer", "true"), ("local_cpu", "false"), fake], &[]),
        (&[("local_cpu", "false"), fake], &["local_cpu"]),
        (&[("use_only_staging_buffer", "false"), ("local_cpu", "false"), fake], &["use_only_staging_buffer"]),
        (
            &[("use_only_staging_buffer", "true"), ("local_cpu", "false"), ("cache_policy", "LRU"), fake],
            &["eviction.policy"],
        ),
        (&[("eviction-policy", "noop"), ("l2-store-policy", "skip_l1"), fake], &[]),
        (&[("eviction-policy", "noop")], &["eviction.policy"]),
        (
            &[("eviction-policy", "noop"), ("l2-store-policy", "skip_l1"), ("eviction-ratio", "0.2"), fake],
            &["--eviction-ratio"],
        ),
        (&[disk], &["local_disk.path"]),
        (&[disk, ("max_local_disk_size", "0")], &["local_disk.path"]),
        (&[disk, ("max_local_disk_size", "1")], &[]),
        (&[("max_local_disk_size", "1")], &["local_disk.size"]),
        (
            &[("extra_config", r#"{"use_odirect":true,"disk_io_threads":2}"#)],
            &["local_disk.use_odirect", "local_disk.num_workers"],
        ),
        (&[("store-retries", "1"), ("store-backoff", "1")], &["store.retries", "store.backoff"]),
        (&[("store-retries", "0"), ("store-backoff", "1"), fake], &["store.backoff"]),
        (&[("prefetch-policy", "retain")], &["prefetch.policy"]),
        (&[("l2-adapter", r#"{"type":"fake","shared":true}"#)], &["shared"]),
        (
            &[(
                "l2-adapter",
                r#"{"type":"fake","eviction":{"eviction_policy":"LRU","trigger_watermark":0.8}}"#,
            )],
            &["eviction"],
        ),
    ];
    for (pairs, names) in table {
        let e = effective(&by(pairs));
        let said: Vec<&str> = e.warnings.iter().map(|w| w.name.as_str()).collect();
        assert_eq!(said, *names, "{pairs:?}");
    }
    let both = Sources {
        env: vec![("KVSTRATA_EVICTION_RATIO".into(), "0.3".into())],
        file: Some(file(FileKind::Yaml, "eviction: {ratio: 0.1}\n")),
        ..by(&[("eviction-ratio", "0.2")])
    };
    // Three spellings, three layers; each is somebody's line.
    assert!(effective(&both).warnings.iter().all(|w| w.message.contains("no effect")));
}

#[test]
fn the_two_modes_by_config_alone() {
    let adapter = r#"{"type":"fake"}"#;
    let yaml = "local_cpu: false\nuse_only_staging_buffer: true\nmax_local_cpu_size: 1\nlocal_disk: file:///nonexistent/kv\nmax_local_disk_size: 10\n";
    let e = effective(&Sources { file: Some(file(FileKind::Yaml, yaml)), ..sources() });
    assert_eq!(e.warnings, []);
    let s: &Settings = &e.settings;
    assert!(s.staging_only());
    assert_eq!((&*s.eviction.policy, &*s.store.policy, &*s.prefetch.policy), ("noop", "skip_l1", "default"));
    assert_eq!(e.origin("eviction.policy"), "implied by local_cpu=false");
    let adapters = s.adapters();
    assert_eq!(adapters.len(), 1);
    assert_eq!(adapters[0].0, "local_disk");
    assert_eq!(adapters[0].1.kind(), "fs");
    assert_eq!(adapters[0].1.keys()["base_path"], "/nonexistent/kv");
    assert_eq!(adapters[0].1.keys()["max_capacity_gb"], 10.0);

    let pairs = [("local-cpu", "false"), ("l2-prefetch-policy", "fastest"), ("l2-adapter", adapter)];
    assert_eq!(effective(&by(&pairs)).settings.prefetch.policy, "fastest", "it keeps nothing, and stays");

    let e = effective(&by(&[
        ("l1-size-gb", "0.03"),
        ("eviction-policy", "noop"),
        ("l2-store-policy", "skip_l1"),
        ("l2-adapter", adapter),
    ]));
    assert_eq!(e.warnings, []);
    assert!(!e.settings.staging_only());
    assert_eq!(e.settings.l1.size.0, 32_212_254);
}

#[test]
fn secrets_are_in_no_row_and_no_debug_text() {
    let e = effective(&by(&[("l2-adapter", r#"{"type":"fake","password":"hunter2"}"#)]));
    assert!(!format!("{e:?} {:?}", e.rows()).contains("hunter2"));
    assert!(e.rows().iter().any(|r| r.value.contains("***")));
    let e = error(&by(&[("l2-adapter", r#"{"type":"fake","password":"hunter2","pasword":"hunter3"}"#)]));
    assert!(!e.contains("hunter"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_as_a_file_never_panics(text in "\\PC{0,60}", kind in 0..3) {
        let kind = [FileKind::Toml, FileKind::Yaml, FileKind::Json][kind as usize];
        let _ = load(&Sources { file: Some(file(kind, &text)), ..sources() });
    }

    #[test]
    fn arbitrary_bytes_as_a_file_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
        let kind = [FileKind::Toml, FileKind::Yaml, FileKind::Json][kind as usize];
        let text = String::from_utf8_lossy(&bytes);
        let _ = load(&Sources { file: Some(file(kind, &text)), ..sources() });
    }

    #[test]
    fn files_that_look_like_settings_never_panic(
        lines in proptest::collection::vec("(  |- |)(l1|size|l2|adapters|extra_config|chunk_size|\\[l1\\]|\\[\\[l2.adapters\\]\\]|x)(: | = |:|)(1|-2|nan|'a'|\\{|\\[\\]|\\{a: 1\\}|null|&a|!t|\\||>|)", 0..8),
        kind in 0..2,
    ) {
        let kind = [FileKind::Toml, FileKind::Yaml][kind as usize];
        let _ = load(&Sources { file: Some(file(kind, &lines.join("\n"))), ..sources() });
    }

    #[test]
    fn arbitrary_flags_and_variables_never_panic(name in "\\PC{0,20}", known in 0..40usize, value in "\\PC{0,30}") {
        let specs = kvstrata_config::flag_specs();
        let flag = &specs[known % specs.len()].name;
        let flags = vec![(flag.clone(), Some(value.clone())), (name.clone(), None)];
        let _ = load(&Sources { flags, env: vec![(format!("KVSTRATA_{name}"), value)], ..sources() });
    }

    #[test]
    fn settings_survive_being_written_and_read(size in 1u64 << 20..1 << 34, ms in 1u64..100_000, retries in 0u32..9) {
        let mut s = Settings::default();
        s.l1.size = kvstrata_config::ByteSize(size);
        s.store.retries = retries;
        s.deadlines.load_timeout = std::time::Duration::from_millis(ms);
        s.l1.staging_size = Some(s.l1.staging());
        let text = serde_json::to_string(&s).unwrap();
        let read = Resolved::load(&Sources { file: Some(file(FileKind::Json, &text)), ..sources() }, &MACHINE, &registry());
        let read = read.unwrap();
        prop_assert_eq!(&read.settings, &s);
    }
}

#[test]
fn a_quota_that_can_never_hold_is_refused_with_its_policy() {
    let isolated = ("eviction-policy", "IsolatedLRU");
    for (pairs, expected) in [
        (
            vec![isolated, ("l1-size-gb", "1"), ("eviction-quotas", "a=2GiB")],
            vec!["eviction.quotas", "IsolatedLRU", "1GiB"],
        ),
        (vec![isolated, ("eviction-quotas", "a/b=1GiB")], vec!["no key has this salt", "a/b"]),
        (
            vec![isolated, ("eviction-quotas", "a=1GiB"), ("eviction-quotas", "a=2GiB")],
            vec!["one quota", "salt: a"],
        ),
        (
            vec![isolated, ("l1-size-gb", "1"), ("eviction-default-quota", "2GiB")],
            vec!["eviction.default_quota"],
        ),
    ] {
        let said = error(&by(&pairs));
        for word in expected {
            assert!(said.contains(word), "{word} in {said}");
        }
    }
}

#[test]
fn quotas_that_cannot_all_be_kept_are_said() {
    let pairs = [("eviction-policy", "IsolatedLRU"), ("l1-size-gb", "1")];
    let warnings =
        |quotas: &str| effective(&by(&[&pairs[..], &[("eviction-quotas", quotas)]].concat())).warnings;
    assert_eq!(warnings(r#"{"a":"512MiB","b":"512MiB"}"#), []);
    let said = warnings(r#"{"a":"1GiB","b":"512MiB"}"#);
    assert!(said.len() == 1 && said[0].to_string().contains("1536MiB"), "{said:?}");
}
