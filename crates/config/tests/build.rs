//! What is built from settings, and the two modes that settings alone make.

use std::path::PathBuf;
use std::time::Duration;

use kvstrata_config::{
    AdapterFactory, AdapterSettings, BuildContext, Components, Machine, Registry, Resolved, Settings,
    Sources, Warning,
};
use kvstrata_core::{ChunkHash, ErrorKind, KeyMask, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{Adapter, LimitOptions};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{
    AdapterOptions, Grant, InFlight, Layouts, LoadMode, Manager, Options, Reserved, TierId, Wait,
};
use kvstrata_mem::Allocate;

const CHUNK: usize = 64 << 10;

fn resolved(pairs: &[(&str, &str)]) -> Resolved {
    let flags = pairs.iter().map(|(n, v)| ((*n).to_owned(), Some((*v).to_owned()))).collect();
    let sources = Sources { flags, ..Sources::default() };
    Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_or_else(|e| panic!("{e}"))
}

fn context() -> BuildContext {
    BuildContext::tokio(tokio::runtime::Handle::current())
}

fn manager(pairs: &[(&str, &str)]) -> Manager {
    let cx = context();
    resolved(pairs).build(&cx).and_then(|c| c.into_manager(&cx)).unwrap_or_else(|e| panic!("{e}"))
}

fn keys(n: u16) -> Vec<ObjectKey> {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").unwrap();
    (0..n).map(|i| ObjectKey::new(&scope, ChunkHash::new(&i.to_le_bytes()).unwrap())).collect()
}

/// Stores every key as fast as L1 lets it in, and waits until nothing is in flight.
async fn push(manager: &Manager, keys: &[ObjectKey]) {
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).unwrap());
    for (i, key) in keys.iter().enumerate() {
        let rq = manager.request(Duration::from_secs(20));
        let one = std::slice::from_ref(key);
        let mut got =
            manager.reserve(&rq, one, &KeyMask::all(1), &layouts, Grant::Whole, Wait::UntilDeadline).await;
        match got.pop() {
            Some(Reserved::Granted(mut chunk)) => {
                chunk.buf().write_at(0, &[i as u8; CHUNK]).unwrap();
                manager.commit(vec![chunk]);
            }
            other => panic!("key {i}: {other:?}"),
        }
    }
    manager.flush(Duration::from_secs(20)).await.unwrap();
}

/// Loads every key, and says where each came from.
async fn pull(manager: &Manager, keys: &[ObjectKey]) -> Vec<Option<TierId>> {
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).unwrap());
    let mut sources = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        let rq = manager.request(Duration::from_secs(20));
        let one: kvstrata_l2::Keys = vec![key.clone()].into();
        let loaded = manager.load(manager.lookup(&rq, &one).await, &layouts, LoadMode::Prefix).finish().await;
        if let Some(buf) = loaded.hits.buf(0) {
            assert_eq!(buf.as_slice().unwrap(), &[i as u8; CHUNK][..], "key {i}");
        }
        sources.push(loaded.hits.source(0));
    }
    sources
}

const MOCK: &str = r#"{"type":"mock","max_size_gb":1.0,"mock_bandwidth_gb":20.0}"#;

#[tokio::test]
async fn the_defaults_are_the_managers_own_and_the_budgets_are_exact() {
    let built =
        resolved(&[("l1-size-gb", "0.30517578125"), ("l1-staging-size", "1MiB")]).build(&context()).unwrap();
    assert_eq!(built.options, Options::default());
    assert_eq!(built.cache.usage().limit, 5_000 * 65_536);
    assert_eq!(built.staging.usage().limit, 1 << 20);
    assert!(built.adapters.is_empty());
    let whole: usize = built.slab.regions().iter().map(|r| r.len()).sum();
    assert_eq!(whole, 5_000 * 65_536 + (1 << 20));
    // 0.03 GiB is no whole number of units; the whole ones below it can be had.
    let odd = resolved(&[("l1-size-gb", "0.03")]).build(&context()).unwrap();
    let got: Vec<_> = (0..).map_while(|_| odd.cache.reserve(CHUNK, 4096).ok()).collect();
    assert_eq!(got.len(), 32_212_254 / CHUNK);
}

#[tokio::test]
async fn shared_memory_is_shared() {
    let name = format!("kvstrata-config-test-{}", std::process::id());
    let flags = [("shm-name", name.as_str()), ("l1-size", "1MiB"), ("l1-staging-size", "1MiB")];
    let built = resolved(&flags).build(&context()).unwrap();
    assert!(built.slab.regions()[0].shared_fd().is_some());
    let again = resolved(&flags).build(&context()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Busy, "a living owner holds the name: {again}");
    drop(built);
    assert!(resolved(&flags).build(&context()).is_ok());
}

#[tokio::test]
async fn bad_settings_are_refused_before_anything_is_built() {
    let mut settings = Settings::default();
    settings.eviction.policy = "LRU2".into();
    let e = Components::build(&settings, &Machine::here(), &Registry::builtin(), &context()).unwrap_err();
    assert!(e.to_string().contains("LRU2"), "{e}");
    for (adapter, says) in [
        (r#"{"type":"mock"}"#, "missing field `max_size_gb`"),
        (r#"{"type":"mock","max_size_gb":0,"mock_bandwidth_gb":1}"#, "max_size_gb"),
        (r#"{"type":"mock","max_size_gb":1,"mock_bandwidth_gb":-1}"#, "mock_bandwidth_gb"),
        (r#"{"type":"mock","max_size_gb":"1","mock_bandwidth_gb":1}"#, "expected f64 (key: max_size_gb"),
        (r#"{"type":"mock","max_size_gb":1,"mock_bandwith_gb":1}"#, "nearest is mock_bandwidth_gb"),
        (r#"{"type":"mok"}"#, "nearest is mock"),
        (r#"{"type":"fault_inject","rate":0.1}"#, "(key: inner, adapter:"),
        (r#"{"type":"fault_inject","inner":"mock"}"#, "the adapter inside is an object"),
        (r#"{"type":"fault","inner":{"type":"mok"}}"#, "nearest is mock (type: mok, key: inner"),
        (r#"{"type":"fault","inner":{"type":"fs"}}"#, "missing field `base_path` (key: inner, adapter:"),
        (r#"{"type":"fault","rate":2,"inner":{"type":"mock"}}"#, "from 0 to 1 (rate: 2"),
        (r#"{"type":"fault","rat":2,"inner":{"type":"mock"}}"#, "nearest is rate"),
        (r#"{"type":"fault","faults":["flip"],"inner":{"type":"mock"}}"#, "bit_flip, swap"),
    ] {
        let flags = vec![("l2-adapter".to_owned(), Some(adapter.to_owned()))];
        let sources = Sources { flags, ..Sources::default() };
        let e = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_err();
        assert!(
            e.to_string().contains(says) && e.to_string().contains("flag --l2-adapter"),
            "{adapter}: {e}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_mode_answers_from_l1_and_mirrors_to_every_adapter() {
    let two = format!("[{MOCK},{MOCK}]");
    let m = manager(&[("l1-size", "8MiB"), ("l2-adapter", &two)]);
    let names: Vec<String> = m.adapters().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["mock", "mock-2"]);
    let keys = keys(64);
    push(&m, &keys).await;
    assert!(pull(&m, &keys).await.iter().all(|s| *s == Some(TierId::L1)));
    assert_eq!(m.usage().stats.stored, 128, "each chunk in both");
}

/// `local_cpu=false` and `use_only_staging_buffer=true`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staging_only_keeps_nothing_in_l1_and_asks_l2_directly() {
    let m = manager(&[
        ("local_cpu", "false"),
        ("use_only_staging_buffer", "true"),
        ("max_local_cpu_size", "0.002"),
        ("l2-adapter", MOCK),
    ]);
    let keys = keys(100);
    push(&m, &keys).await;
    assert_eq!(m.usage().cache.used, 0);
    let rq = m.request(Duration::from_secs(5));
    let lookup = m.lookup(&rq, &keys.clone().into()).await;
    assert_eq!(lookup.l1().count(), 0);
    assert_eq!(lookup.l2().count(), 100);
    drop(lookup);
    for _ in 0..2 {
        let sources = pull(&m, &keys).await;
        assert!(sources.iter().all(|s| matches!(s, Some(TierId::L2(_)))), "nothing was written back to L1");
    }
    assert_eq!((m.usage().cache.used, m.usage().staging.used, m.usage().pinned), (0, 0, 0));
}

/// `--eviction-policy noop --l2-store-policy skip_l1` with an L1 that is far smaller than what goes through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffer_only_lets_everything_through_a_tiny_l1() {
    let flags = [("l1-size", "1MiB"), ("eviction-policy", "noop"), ("l2-store-policy", "skip_l1")];
    let m = manager(&[&flags[..], &[("l2-adapter", MOCK)]].concat());
    let keys = keys(200);
    push(&m, &keys).await;
    assert_eq!(m.usage().cache.used, 0);
    assert!(pull(&m, &keys).await.iter().all(|s| matches!(s, Some(TierId::L2(_)))));
    assert_eq!((m.usage().cache.used, m.usage().staging.used), (0, 0));

    let failing = MOCK.replace('}', r#","fail_store":true}"#);
    let m = manager(&[&flags[..], &[("store-backoff", "1ms"), ("l2-adapter", &failing)]].concat());
    push(&m, &keys).await;
    assert_eq!(m.usage().cache.used, 0, "what no adapter takes does not stay for ever");
    assert_eq!(m.usage().stats.lost, 200);
    assert!(pull(&m, &keys).await.iter().all(Option::is_none));
}

/// An adapter type that this crate does not know.
#[derive(Debug)]
struct Foreign;

impl AdapterFactory for Foreign {
    fn names(&self) -> &'static [&'static str] {
        &["foreign"]
    }
    fn keys(&self) -> &'static [&'static str] {
        &["gb"]
    }
    fn paths(&self, _: &AdapterSettings) -> Vec<PathBuf> {
        Vec::new()
    }
    fn check(&self, _: &AdapterSettings) -> Result<Vec<Warning>> {
        Ok(Vec::new())
    }
    fn memory(&self, _: &AdapterSettings) -> kvstrata_config::MemoryNeed {
        kvstrata_config::MemoryNeed::Any
    }
    fn build(&self, name: &str, settings: &AdapterSettings, cx: &BuildContext) -> Result<Adapter> {
        assert_eq!(settings.keys().keys().collect::<Vec<_>>(), ["gb", "type"], "no nulls, no common keys");
        let config =
            MockConfig { name: name.into(), ..MockConfig::new(settings.keys()["gb"].as_f64().unwrap(), 1.0) };
        Ok(Mock::open(&config, cx.l2.clone())?.adapter())
    }
}

#[tokio::test]
async fn a_type_from_elsewhere_is_taken_like_our_own() {
    let registry = Registry::builtin().with(Foreign);
    let adapter = r#"{"type":"foreign","gb":1,"weight":3,"serde":null}"#;
    let flags = vec![("l2-adapter".to_owned(), Some(adapter.to_owned()))];
    let sources = Sources { flags, ..Sources::default() };
    let resolved = Resolved::load(&sources, &Machine::here(), &registry).unwrap();
    let built = resolved.build(&context()).unwrap();
    let (name, options, adapter) = &built.adapters[0];
    assert_eq!(
        (name.as_str(), options.weight, adapter.store.desc().name.as_str()),
        ("foreign", 3, "foreign")
    );
}

#[tokio::test]
async fn how_an_adapter_is_treated_is_a_matter_of_common_keys() {
    let registry = Registry::builtin().with(Foreign);
    let options = |keys: &str| {
        let adapter = format!(r#"{{"type":"foreign","gb":1{keys}}}"#);
        let flags = vec![("l2-adapter".to_owned(), Some(adapter))];
        let sources = Sources { flags, ..Sources::default() };
        let resolved = Resolved::load(&sources, &Machine::here(), &registry).unwrap();
        resolved.build(&context()).unwrap().adapters.remove(0).1
    };
    assert_eq!(options(""), AdapterOptions::default());
    let all = options(r#","breaker":false,"max_in_flight":0"#);
    assert_eq!((all.breaker, all.limit), (None, InFlight::Unlimited));
    let some = options(
        r#","breaker":{"consecutive":2,"cool_down":"250ms","patience":"3ms"},"max_in_flight":"64MiB""#,
    );
    assert_eq!(some.limit, InFlight::Of(LimitOptions::new(64 << 20)));
    let breaker = some.breaker.unwrap();
    assert_eq!((breaker.consecutive, breaker.cool_down), (2, Duration::from_millis(250)));
    assert_eq!(breaker.patience, Duration::from_millis(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lmcaches_local_disk_is_a_store_that_is_found_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let base = format!("file://{}/kv", dir.path().display());
    let extra = r#"{"use_odirect":false,"disk_io_threads":2}"#;
    let flags = [
        ("local_cpu", "false"),
        ("use_only_staging_buffer", "true"),
        ("max_local_cpu_size", "0.01"),
        ("local_disk", base.as_str()),
        ("max_local_disk_size", "0.05"),
        ("extra_config", extra),
    ];
    assert_eq!(resolved(&flags).warnings, []);
    assert!(!dir.path().join("kv").exists(), "reading settings makes nothing");
    let keys = keys(50);
    let m = manager(&flags);
    assert_eq!(m.adapters()[0].1, "local_disk");
    push(&m, &keys).await;
    m.shutdown(Duration::from_secs(20)).await.unwrap();
    drop(m);
    let m = manager(&flags);
    let sources = pull(&m, &keys).await;
    assert!(sources.iter().all(|s| matches!(s, Some(TierId::L2(_)))), "{sources:?}");
    m.shutdown(Duration::from_secs(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_local_disks_are_one_adapter_whose_paths_all_take_part() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let list = format!("file://{}/a, {}/b ,", dir.path().display(), dir.path().display());
    let flags = [
        ("local_cpu", "false"),
        ("use_only_staging_buffer", "true"),
        ("max_local_cpu_size", "0.01"),
        ("local_disk", list.as_str()),
        ("max_local_disk_size", "0.05"),
    ];
    assert_eq!(resolved(&flags).warnings, []);
    assert!(!at("a").exists() && !at("b").exists(), "reading settings makes nothing");
    let keys = keys(50);
    let m = manager(&flags);
    assert_eq!((m.adapters().len(), m.adapters()[0].1.as_str()), (1, "local_disk"));
    push(&m, &keys).await;
    m.shutdown(Duration::from_secs(20)).await.unwrap();
    drop(m);
    assert!(at("a").is_dir() && at("b").is_dir());
    let sharded: Vec<_> = flags.into_iter().chain([("local_disk_path_sharding", "by_gpu")]).collect();
    let m = manager(&sharded);
    let sources = pull(&m, &keys).await;
    assert!(sources.iter().all(|s| matches!(s, Some(TierId::L2(_)))), "found on any path: {sources:?}");
    m.shutdown(Duration::from_secs(20)).await.unwrap();
    std::os::unix::fs::symlink(at("a"), at("c")).unwrap();
    let twice = format!("{}/a,{}/c", dir.path().display(), dir.path().display());
    let flags = [("local_disk", Some(twice)), ("max_local_disk_size", Some("1".to_owned()))];
    let flags = flags.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let sources = Sources { flags, ..Sources::default() };
    let e = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_err().to_string();
    assert!(e.contains("two paths are one directory"), "{e}");
}

#[tokio::test]
async fn fs_settings_are_checked_and_what_does_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    let adapter =
        |more: &str| format!(r#"{{"type":"fs_native","base_path":{:?}{more}}}"#, path.to_str().unwrap());
    let said = |more: &str| {
        let resolved = resolved(&[("l2-adapter", &adapter(more))]);
        resolved.warnings.into_iter().map(|w| w.name).collect::<Vec<_>>()
    };
    assert_eq!(said(""), [""; 0]);
    assert_eq!(said(r#","max_capacity_gb":0"#), ["max_capacity_gb"]);
    assert_eq!(said(r#","max_capacity_gb":1,"read_ahead_size":4096"#), ["read_ahead_size"]);
    assert_eq!(
        said(r#","max_capacity_gb":1,"eviction":{"eviction_policy":"LRU","eviction_ratio":0.2}"#),
        ["eviction.eviction_ratio"]
    );
    let promised =
        r#","max_capacity_gb":1,"eviction_policy":"IsolatedLRU","quotas":{"a":0.5,"b":"256MiB","":"1"}"#;
    assert_eq!(said(&format!(r#"{promised},"default_quota_gb":"1MiB""#)), [""; 0]);
    for (more, says) in [
        (r#","max_capacity_gb":1,"quotas":{"a":1}"#, "IsolatedLRU"),
        (r#","eviction_policy":"IsolatedLRU","quotas":{"a":-1}"#, "quotas"),
        (r#","eviction_policy":"IsolatedLRU","quotas":{"a":"-1MiB"}"#, "negative (quotas: -1MiB"),
        (r#","eviction_policy":"IsolatedLRU","quotas":{"a":"much"}"#, "quotas: much"),
        (r#","eviction_policy":"IsolatedLRU","default_quota_gb":"1XB""#, "default_quota_gb: 1XB"),
        (r#","max_capacity_gb":-1"#, "max_capacity_gb"),
        (r#","num_workers":0"#, "num_workers"),
        (r#","use_odirct":true"#, "nearest is use_odirect"),
        (r#","eviction_policy":"LIFO""#, "noop, FIFO, LRU"),
        (r#","base_path":7"#, "key: base_path"),
        (r#","use_odirect":"maybe""#, "key: use_odirect"),
        (r#","eviction":{"eviction_policy":1}"#, "key: eviction"),
        (r#","eviction":{"policy":"LRU"}"#, "key: eviction"),
    ] {
        let flags = vec![("l2-adapter".to_owned(), Some(adapter(more)))];
        let sources = Sources { flags, ..Sources::default() };
        let e = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_err().to_string();
        assert!(e.contains(says), "{more}: {e}");
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn faults_go_around_any_adapter_and_are_found_above_it() {
    let dir = tempfile::tempdir().unwrap();
    let fs = format!(r#"{{"type":"fs","base_path":{:?},"name":null}}"#, dir.path().join("kv"));
    for (inner, name) in [(MOCK, "fault_inject"), (fs.as_str(), "fault")] {
        let adapter = format!(
            r#"{{"type":"{name}","inner":{inner},"rate":1,"seed":7,"faults":["bit_flip"],
                "script":[{{"op":"put","index":99,"fault":"error"}}]}}"#
        );
        let pairs = [("l1-size", "1MiB"), ("l2-adapter", adapter.as_str()), ("l2-store-policy", "skip_l1")];
        let resolved = resolved(&pairs);
        assert!(resolved.warnings.iter().any(|w| w.to_string().contains("never for production")));
        let cx = context();
        let manager = resolved.build(&cx).and_then(|c| c.into_manager(&cx)).unwrap();
        let keys = keys(4);
        push(&manager, &keys).await;
        assert_eq!(pull(&manager, &keys).await, [None; 4], "{name}: wrong bytes are misses");
    }
}

/// A directory of LMCache's below a store: what the store does not have is loaded from there, unverified, and nothing is
/// written to it.
#[tokio::test]
async fn lmcaches_files_are_read_through_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (own, theirs) = (dir.path().join("kv"), dir.path().join("lmcache"));
    std::fs::create_dir(&theirs).unwrap();
    let keys = keys(6);
    for (i, key) in keys.iter().enumerate().take(4) {
        let name = theirs.join(format!("model@0x01000100@0@{}.data", key.hash()));
        std::fs::write(name, vec![i as u8; CHUNK]).unwrap();
    }
    let own = format!(r#"{{"type":"fs","base_path":{own:?}}}"#);
    let source = format!(r#"{{"type":"lmcache_fs","base_path":{theirs:?}}}"#);
    let pairs = [
        ("l1-size", "1MiB"),
        ("eviction-policy", "noop"),
        ("l2-store-policy", "skip_l1"),
        ("l2-adapter", own.as_str()),
        ("l2-adapter", source.as_str()),
    ];
    let manager = manager(&pairs);
    push(&manager, &keys[..1]).await;
    let from = pull(&manager, &keys).await;
    assert_eq!(from[4..], [None, None]);
    assert!(from[..4].iter().all(Option::is_some), "{from:?}");
    assert!(from[0] != from[1] && from[1] == from[3], "the store goes first: {from:?}");
    let usage = manager.usage().adapters;
    let checks: Vec<_> = usage.iter().map(|a| a.checks).collect();
    assert_eq!((checks[0].verified, checks[0].written), (1, 1));
    assert_eq!((checks[1].unverified_no_digest, checks[1].loaded, checks[1].put_failed), (3, 3, 0));
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 4);
}

#[test]
fn bad_settings_of_lmcaches_directories_name_their_key() {
    for (adapter, says) in [
        (r#"{"type":"lmcache_fs"}"#, "base_path"),
        (r#"{"type":"lmcache_fs","base_path":"/x","writable":true}"#, "writable"),
        (r#"{"type":"lmcache_fs","base_path":"/x","models":["a/b","a-SEP-b"]}"#, "told apart"),
        (r#"{"type":"lmcache_gds","base_path":"/x","kv_dtype":"bf16"}"#, "bfloat16"),
        (r#"{"type":"lmcache_gds","base_path":"/x","fmt":"KV"}"#, "KV_2LTD"),
    ] {
        let flags = vec![("l2-adapter".to_owned(), Some(adapter.to_owned()))];
        let sources = Sources { flags, ..Sources::default() };
        let e = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_err().to_string();
        assert!(e.contains(says), "{adapter}: {e}");
    }
}

#[test]
fn bad_lists_of_paths_say_what_is_wrong() {
    for (paths, says) in [
        (" , ,", "at least one path"),
        ("/a,/b,/a", "/a is there twice"),
        ("/nonexistent/a,/nonexistent/./a", "two paths are one directory"),
    ] {
        let flag = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        let flags = vec![flag("local_disk", paths), flag("max_local_disk_size", "1")];
        let sources = Sources { flags, ..Sources::default() };
        let e = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).unwrap_err().to_string();
        assert!(e.contains(says) && e.contains("local_disk"), "{paths:?}: {e}");
    }
}
