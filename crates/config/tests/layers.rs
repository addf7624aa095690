//! Where settings come from, and what every accepted name does.

mod common;

use common::{effective, error, file, flags, sources};
use kvstrata_config::{FileKind, QuotaSettings, Settings, Sources, flag_specs};
use serde_json::{Value, json};

fn at(settings: &Settings, path: &str) -> Value {
    let all = serde_json::to_value(settings).unwrap();
    path.split('.').fold(all, |v, segment| v[segment].clone())
}

#[test]
fn a_higher_layer_wins_whatever_name_it_uses_and_each_value_knows_its_origin() {
    let yaml = "l1:\n  size_gb: 1\n  prefault: true\nmax_local_disk_size: 2\nlocal_disk: /nonexistent/kv\ncache_policy: FIFO\n";
    let sources = Sources {
        file: Some(file(FileKind::Yaml, yaml)),
        env: vec![
            ("KVSTRATA_L1_SIZE".into(), "2GiB".into()),
            ("KVSTRATA_EVICTION__POLICY".into(), "LRU".into()),
            ("HOME".into(), "/root".into()),
            ("KVSTRATA_LOG".into(), "debug".into()),
            ("LMCACHE_CHUNK_SIZE".into(), "7".into()),
        ],
        flags: flags(&[("l1-size-gb", "0.5")]),
        lmcache_env: false,
    };
    let e = effective(&sources);
    let table = [
        ("l1.size", "512MiB", "flag --l1-size-gb"),
        ("l1.prefault", "true", "file kv.yaml:3"),
        ("local_disk.size", "2GiB", "file kv.yaml:4"),
        ("local_disk.path", "/nonexistent/kv", "file kv.yaml:5"),
        ("eviction.policy", "LRU", "env KVSTRATA_EVICTION__POLICY"),
        ("chunk_size", "256", "default"),
        ("l1.staging_size", "64MiB", "default"),
        ("l1.shm_name", "unset", "default"),
        ("deadlines.load_timeout", "10s", "default"),
        ("l2.adapters", "[]", "default"),
    ];
    let rows = e.rows();
    for (name, value, origin) in table {
        let row = rows.iter().find(|r| r.name == name).unwrap();
        assert_eq!((row.value.as_str(), row.origin.as_str()), (value, origin), "{name}");
    }
    let with_lmcache = effective(&Sources { lmcache_env: true, ..sources });
    assert_eq!(with_lmcache.origin("chunk_size"), "env LMCACHE_CHUNK_SIZE");
    assert_eq!(with_lmcache.settings.chunk_size, 7);
}

#[test]
fn toml_yaml_json_environment_and_flags_say_the_same() {
    let adapter = json!({"type": "fake", "size_gb": 1.5, "Mixed-Key": {"Deep.Er": [1, 2.5, true, "x"]}});
    let want = Settings {
        chunk_size: 16,
        digests: false,
        l1: kvstrata_config::L1Settings {
            size: "1.5GiB".parse().unwrap(),
            staging_size: Some("64MiB".parse().unwrap()),
            hugepages: kvstrata_config::HugePages::Explicit,
            numa: Some(1),
            ..Default::default()
        },
        store: kvstrata_config::StoreSettings {
            policy: "skip_l1".into(),
            backoff: std::time::Duration::from_millis(1500),
            ..Default::default()
        },
        l2: kvstrata_config::L2Settings {
            adapters: vec![kvstrata_config::AdapterSettings::from(adapter.as_object().unwrap().clone())],
        },
        ..Settings::default()
    };
    let toml = r#"
        chunk_size = 16
        digests = false
        [l1]
        size = "1.5GiB"
        staging-size = 67108864
        hugepages = "explicit"
        numa = 1
        [store]
        policy = "skip_l1"
        backoff = 1.5
        [[l2.adapters]]
        type = "fake"
        size_gb = 1.5
        Mixed-Key = { "Deep.Er" = [1, 2.5, true, "x"] }
    "#;
    let yaml = "
chunk-size: 16
digests: no
l1: {size_gb: 1.5, staging_size: 64MiB, use_hugepages: true, numa: 1}
store: {policy: skip_l1, backoff: 1500ms}
l2:
  adapters:
    - type: fake
      size_gb: 1.5
      Mixed-Key: {Deep.Er: [1, 2.5, true, x]}
";
    let json_text = json!({
        "chunk_size": 16, "digests": false, "l1_size_gb": 1.5, "l1-staging-size": "64MB", "l1": {"hugepages": true, "numa": 1},
        "store": {"policy": "skip_l1", "backoff": "1.5s"}, "l2_adapter": adapter
    })
    .to_string();
    for (kind, text) in [(FileKind::Toml, toml), (FileKind::Yaml, yaml), (FileKind::Json, json_text.as_str())]
    {
        let e = effective(&Sources { file: Some(file(kind, text)), ..sources() });
        assert_eq!(e.settings, want, "{kind:?}");
    }
    let adapter = adapter.to_string();
    let pairs = [
        ("chunk-size", "16"),
        ("digests", "false"),
        ("l1-size-gb", "1.5"),
        ("l1-staging-size", "64MiB"),
        ("l1-hugepages", "explicit"),
        ("l1-numa", "1"),
        ("store-policy", "skip_l1"),
        ("store-backoff", "1.5"),
        ("l2-adapter", adapter.as_str()),
    ];
    assert_eq!(effective(&Sources { flags: flags(&pairs), ..sources() }).settings, want);
    let env = pairs.map(|(n, v)| (format!("KVSTRATA_{}", n.to_uppercase().replace('-', "_")), v.to_owned()));
    assert_eq!(effective(&Sources { env: env.to_vec(), ..sources() }).settings, want);
}

/// Every one of LMCache's names: what is given, and what it sets. `null` in place of a path: accepted without effect.
const LMCACHE: &[(&str, &str, &str, &str)] = &[
    ("l1-size-gb", "0.25", "l1.size", "256MiB"),
    ("max_local_cpu_size", "0.25", "l1.size", "256MiB"),
    ("l1-use-lazy", "true", "l1.prefault", "false"),
    ("l1-use-lazy", "false", "l1.prefault", "true"),
    ("l1-init-size-gb", "20", "", ""),
    ("l1-align-bytes", "512", "l1.align", "512"),
    ("l1-use-hugepages", "true", "l1.hugepages", "explicit"),
    ("l1-use-hugepages", "false", "l1.hugepages", "none"),
    ("local_cpu_use_hugepages", "true", "l1.hugepages", "explicit"),
    ("shm-name", "/pool", "l1.shm_name", "/pool"),
    ("shm-name", "", "l1.shm_name", "unset"),
    ("l1-write-ttl-seconds", "600", "", ""),
    ("l1-read-ttl-seconds", "300", "", ""),
    ("pin_timeout_sec", "300", "", ""),
    ("pin_check_interval_sec", "30", "", ""),
    ("eviction-policy", "FIFO", "eviction.policy", "FIFO"),
    ("cache_policy", "fifo", "eviction.policy", "fifo"),
    ("eviction-trigger-watermark", "0.8", "", ""),
    ("eviction-ratio", "0.2", "", ""),
    ("l2-store-policy", "default", "store.policy", "default"),
    ("l2-prefetch-policy", "retain", "prefetch.policy", "retain"),
    ("l2-prefetch-max-in-flight", "8", "", ""),
    ("periodic-notifier-interval-ms", "5", "", ""),
    ("enable-extra-logging", "true", "", ""),
    ("l2-adapter", r#"{"type":"fake"}"#, "l2.adapters", r#"[{"type":"fake"}]"#),
    ("chunk_size", "16", "chunk_size", "16"),
    ("local_cpu", "true", "local_cpu", "true"),
    ("use_only_staging_buffer", "true", "use_only_staging_buffer", "true"),
    ("local_disk", "file:///d/e/", "local_disk.path", "/d/e/"),
    ("local_disk", "/d/e", "local_disk.path", "/d/e"),
    ("max_local_disk_size", "1.5", "local_disk.size", "1536MiB"),
    ("local_disk", "/d/e, /f", "local_disk.path", "/d/e, /f"),
    ("local_disk_path_sharding", "by_gpu", "local_disk.path_sharding", "by_gpu"),
    ("blocking_timeout_secs", "0.5", "deadlines.load_timeout", "500ms"),
    ("extra_config", r#"{"use_odirect":true}"#, "local_disk.use_odirect", "true"),
    ("extra_config", r#"{"disk_io_threads":0}"#, "local_disk.num_workers", "1"),
    ("extra_config", r#"{"local_cpu.pinned_align_bytes":4096}"#, "l1.align", "4KiB"),
    ("extra_config", r#"{"shm_name":"a"}"#, "l1.shm_name", "a"),
];

#[test]
fn lmcaches_names_set_what_they_mean_as_flag_variable_and_key() {
    for (name, text, path, value) in LMCACHE {
        let word = name.replace('-', "_");
        let yaml = format!("{word}: '{text}'\n");
        let by = [
            Sources { flags: flags(&[(name, text)]), ..sources() },
            Sources { env: vec![(format!("KVSTRATA_{}", word.to_uppercase()), (*text).into())], ..sources() },
            Sources {
                env: vec![(format!("LMCACHE_{}", word.to_uppercase()), (*text).into())],
                lmcache_env: true,
                ..sources()
            },
            Sources { file: Some(file(FileKind::Yaml, &yaml)), ..sources() },
        ];
        for sources in by {
            let e = effective(&sources);
            if path.is_empty() {
                assert_eq!(e.warnings.len(), 1, "{name}: {:?}", e.warnings);
                assert!(e.warnings[0].message.starts_with("has no effect: "), "{}", e.warnings[0]);
                assert!(e.rows().iter().all(|r| r.origin == "default"), "{name}");
            } else {
                let row = e.rows().into_iter().find(|r| r.name == *path).unwrap();
                assert_eq!(row.value, *value, "{name}={text}");
                assert_ne!(row.origin, "default", "{name}");
            }
        }
    }
}

#[test]
fn the_table_of_names_in_the_documentation_and_the_names_that_are_tested_are_those_that_are_accepted() {
    let docs = include_str!("../src/names.rs").split("How a value is read").next().unwrap();
    for spec in
        flag_specs().iter().filter(|s| s.help.contains("LMCache's name") || s.help.contains("without effect"))
    {
        let word = spec.name.replace('-', "_");
        // Spellings of our own beside LMCache's.
        if ["l1_lazy", "l1_staging_size_gb", "l1_init_size", "eviction_eviction_ratio", "load_timeout"]
            .contains(&word.as_str())
        {
            continue;
        }
        let tested = LMCACHE.iter().any(|(n, ..)| n.replace('-', "_") == word);
        assert!(tested, "{word} is accepted and not tested");
        assert!(
            docs.contains(&format!("`{word}`"))
                || docs.contains(&format!("`{}`", spec.name))
                || docs.contains(&format!("`{word},")),
            "{word} is not in the table"
        );
    }
}

#[test]
fn switches_need_no_value_and_have_an_opposite() {
    let one = |flag: &str| Sources { flags: vec![(flag.into(), None)], ..sources() };
    assert!(effective(&one("l1-prefault")).settings.l1.prefault);
    assert!(effective(&one("no-l1-use-lazy")).settings.l1.prefault);
    assert!(!effective(&one("--no-digests")).settings.digests);
    assert_eq!(at(&effective(&one("l1-use-hugepages")).settings, "l1.hugepages"), "explicit");
    assert!(error(&one("l1-size-gb")).contains("a value is expected"));
    assert!(error(&one("no-such")).contains("no such setting"));
}

#[test]
fn adapters_of_one_layer_add_up_and_those_of_a_higher_layer_replace_them() {
    let a = r#"{"type":"fake","name":"a"}"#;
    let b = r#"[{"type":"fake","name":"b"},{"type":"fake","name":"c"}]"#;
    let file = file(FileKind::Toml, "[[l2.adapters]]\ntype = \"fake\"\nname = \"f\"\n");
    let names =
        |s: &Sources| effective(s).settings.adapters().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(names(&Sources { file: Some(file.clone()), ..sources() }), ["f"]);
    let flags = flags(&[("l2-adapter", a), ("l2_adapter", b)]);
    assert_eq!(names(&Sources { file: Some(file), flags, ..sources() }), ["a", "b", "c"]);
    let unnamed = r#"[{"type":"fake"},{"type":"fake","name":"x"},{"type":"fake"},{"type":"fake"}]"#;
    assert_eq!(
        names(&Sources { env: vec![("KVSTRATA_L2_ADAPTER".into(), unnamed.into())], ..sources() }),
        ["fake", "x", "fake-2", "fake-3"]
    );
}

#[test]
fn null_is_not_set() {
    let yaml = "remote_url: null\nl1_size_gb: ~\nl1:\nextra_config:\n";
    let e = effective(&Sources { file: Some(file(FileKind::Yaml, yaml)), ..sources() });
    assert_eq!(e.settings, effective(&sources()).settings);
    assert!(
        error(&Sources { file: Some(file(FileKind::Yaml, "l1_sise: null\n")), ..sources() })
            .contains("l1.size")
    );
}

#[test]
fn gather_takes_the_file_and_the_switches_out_of_flags_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let a = write("a.toml", "chunk_size = 1\n");
    let b = write("b.YML", "chunk_size: 2\n");
    let chunk = |flags: Vec<(String, Option<String>)>, env: &[(&str, &str)]| {
        let env = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Sources::gather(flags, env).map(|s| effective(&s).settings.chunk_size)
    };
    let none = Vec::new;
    assert_eq!(chunk(none(), &[]).unwrap(), 256);
    assert_eq!(chunk(none(), &[("KVSTRATA_CONFIG", &b)]).unwrap(), 2);
    assert_eq!(chunk(flags(&[("config", &a)]), &[("KVSTRATA_CONFIG", &b)]).unwrap(), 1);
    assert_eq!(chunk(none(), &[("LMCACHE_CONFIG_FILE", &b)]).unwrap(), 256, "not asked for");
    assert_eq!(chunk(vec![("lmcache-env".into(), None)], &[("LMCACHE_CONFIG_FILE", &b)]).unwrap(), 2);
    let lm = [("KVSTRATA_LMCACHE_ENV", "1"), ("LMCACHE_CHUNK_SIZE", "3"), ("LMCACHE_CONFIG_FILE", &b)];
    assert_eq!(chunk(none(), &lm).unwrap(), 3);
    assert!(chunk(none(), &[("KVSTRATA_LMCACHE_ENV", "maybe")]).is_err());

    let said = |path: &str| chunk(flags(&[("config", path)]), &[]).unwrap_err().to_string();
    let dir_toml = dir.path().join("d.toml");
    std::fs::create_dir(&dir_toml).unwrap();
    assert!(said(dir_toml.to_str().unwrap()).contains("not a file"));
    assert!(said(&write("a.ini", "")).contains(".toml, .yaml"));
    assert!(said("/nonexistent/a.toml").contains("/nonexistent/a.toml"));
    std::fs::write(dir.path().join("bad.toml"), b"a = 1\nb = \"\xff\"\n").unwrap();
    assert!(said(dir.path().join("bad.toml").to_str().unwrap()).contains("line: 2"));
    std::fs::write(dir.path().join("big.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(said(dir.path().join("big.toml").to_str().unwrap()).contains("1 MiB"));
}

#[test]
fn quotas_are_given_as_pairs_objects_and_tables_and_repeated_ones_add_up() {
    let given = |pairs: &[(&str, &str)]| {
        let isolated = [("eviction-policy", "isolatedlru")];
        let sources = Sources { flags: flags(&[&isolated[..], pairs].concat()), ..sources() };
        effective(&sources).settings.eviction
    };
    let rows =
        |quotas: &[QuotaSettings]| quotas.iter().map(|q| (q.salt.clone(), q.size.0)).collect::<Vec<_>>();
    let expected = [("a".to_owned(), 1 << 30), ("b=c".to_owned(), 4096)];
    assert_eq!(
        rows(&given(&[("eviction-quotas", "a=1GiB"), ("eviction-quotas", "b=c=4096")]).quotas),
        expected
    );
    assert_eq!(rows(&given(&[("eviction-quotas", r#"{"a":"1GB","b=c":4096}"#)]).quotas), expected);
    assert_eq!(given(&[("eviction-default-quota", "0")]).default_quota.map(|q| q.0), Some(0));
    let toml = "[eviction]\npolicy = \"IsolatedLRU\"\ndefault_quota = \"1MiB\"\n[eviction.quotas]\na = \"1GiB\"\n\"b=c\" = 4096\n";
    let e = effective(&Sources { file: Some(file(FileKind::Toml, toml)), ..sources() }).settings.eviction;
    assert_eq!((rows(&e.quotas), e.default_quota.map(|q| q.0)), (expected.to_vec(), Some(1 << 20)));
}
