//! A page of a manager that has done something, read as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::Context;
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{AdapterOptions, Grant, Layouts, LoadMode, Manager, Options, Parts, Reserved};
use kvstrata_mem::{HeapRegion, Slab};
use kvstrata_metrics::Metrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

const CHUNK: usize = 64 << 10;

/// Samples by name and labels, as they stand on the page.
type Samples = BTreeMap<String, f64>;

fn scrape(registry: &Registry) -> (String, Samples) {
    let mut page = String::new();
    encode(&mut page, registry).unwrap();
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    for line in page.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family.to_owned()), "a family stands twice: {family}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(samples.insert(name.into(), value.parse().unwrap()).is_none(), "{name} stands twice");
        }
    }
    assert!(page.ends_with("# EOF\n"));
    (page, samples)
}

fn manager() -> Manager {
    let slab = Slab::new(vec![HeapRegion::new(2 << 20).unwrap()]).unwrap();
    let parts = Parts {
        // Two chunks: what is stored first has left L1 when it is asked for.
        cache: slab.pool("cache", 2 * CHUNK as u64),
        staging: slab.pool("staging", 1 << 20),
        eviction: kvstrata_evict::by_name("lru").unwrap(),
        admission: kvstrata_evict::admission_by_name("always").unwrap(),
        store: kvstrata_policy::store_by_name("default").unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name("default").unwrap(),
        cx: Context::tokio(tokio::runtime::Handle::current()),
    };
    Manager::new(parts, Options::default()).unwrap()
}

async fn store(manager: &Manager, keys: &[ObjectKey]) {
    let rq = manager.request(Duration::from_secs(10));
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).unwrap());
    for reserved in manager.try_reserve(&rq, keys, &KeyMask::all(keys.len()), &layouts, Grant::Whole) {
        let Reserved::Granted(chunk) = reserved else { panic!("there is room") };
        manager.commit(vec![chunk]);
    }
    manager.flush(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn the_page_says_what_happened() {
    let manager = manager();
    let mock = Mock::open(&MockConfig::new(0.1, 10.0), Context::tokio(tokio::runtime::Handle::current()));
    let id = manager.add_adapter(mock.unwrap().adapter(), AdapterOptions::default()).unwrap();
    let name = manager.adapters().into_iter().find(|(is, _)| *is == id).unwrap().1;

    let scope = KeyScope::new("model", KvRank::single(), 0, "").unwrap();
    let keys: Vec<_> = (0..5).map(|n| ObjectKey::new(&scope, ChunkHash::from([n; 32]))).collect();
    store(&manager, &keys[..2]).await;
    store(&manager, &keys[2..4]).await;

    let rq = manager.request(Duration::from_secs(10));
    let layouts = Layouts::from(Layout::opaque(CHUNK as u64).unwrap());
    let lookup = manager.lookup(&rq, &keys.clone().into()).await;
    let loaded = manager.load(lookup, &layouts, LoadMode::Any).finish().await;
    assert_eq!(loaded.hits.mask().prefix(), 4);

    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics::of(manager.clone())));
    let (page, samples) = scrape(&registry);
    let of = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name} is not on the page:\n{page}"));

    assert_eq!(of(r#"kvstrata_lookups_total{result="l1"}"#), 2.0);
    assert_eq!(of(r#"kvstrata_lookups_total{result="l2"}"#), 2.0);
    assert_eq!(of(r#"kvstrata_lookups_total{result="miss"}"#), 1.0);
    assert_eq!(of(r#"kvstrata_commits_total{result="committed"}"#), 4.0);
    assert_eq!(of(r#"kvstrata_l2_stores_total{result="written"}"#), 4.0);
    assert_eq!(of(r#"kvstrata_l2_loads_total{result="loaded"}"#), 2.0);
    assert_eq!(of(r#"kvstrata_bytes_total{what="loaded"}"#), 2.0 * CHUNK as f64);
    assert_eq!(of(r#"kvstrata_l1_limit_bytes{budget="cache"}"#), 2.0 * CHUNK as f64);
    assert_eq!(of(r#"kvstrata_l1_chunks{state="pinned"}"#), 2.0);
    assert_eq!(of(r#"lmcache_mp_l1_evicted_chunks_total{l1_tag="_default"}"#), 2.0);
    assert_eq!(of(r#"lmcache_mp_l1_staging_bytes{backend="dram",l1_tag="_default"}"#), 2.0 * CHUNK as f64);
    assert_eq!(of("lmcache_mp_l2_prefetch_load_completed_chunks_total"), 2.0);

    let adapter = |family: &str, more: &str| of(&format!("{family}{{adapter=\"{name}\"{more}}}"));
    assert_eq!(adapter("kvstrata_l2_objects", ""), 4.0);
    assert_eq!(adapter("kvstrata_l2_keys_total", r#",op="put",outcome="ok""#), 4.0);
    assert_eq!(adapter("kvstrata_l2_verified_total", r#",result="verified""#), 2.0);
    assert_eq!(adapter("kvstrata_l2_misses_total", r#",reason="digest""#), 0.0);
    assert_eq!(adapter("kvstrata_l2_duration_seconds_count", r#",op="get""#), 2.0);
    let all = format!(r#"kvstrata_l2_duration_seconds_bucket{{le="+Inf",adapter="{name}",op="get"}}"#);
    assert_eq!(of(&all), 2.0);
    assert_eq!(adapter("kvstrata_l2_breaker", r#",state="closed""#), 1.0);
    assert_eq!(of(r#"kvstrata_out_of_service{part="eviction"}"#), 0.0);

    drop(loaded);
    assert_eq!(scrape(&registry).1[r#"kvstrata_l1_chunks{state="pinned"}"#], 0.0);
}

#[tokio::test]
async fn names_of_adapters_are_escaped() {
    let manager = manager();
    let mut config = MockConfig::new(0.1, 10.0);
    config.name = "a \"quoted\"\nname\\".into();
    let mock = Mock::open(&config, Context::tokio(tokio::runtime::Handle::current())).unwrap();
    manager.add_adapter(mock.adapter(), AdapterOptions::default()).unwrap();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics::of(manager)));
    let (page, _) = scrape(&registry);
    assert!(page.contains(r#"kvstrata_l2_objects{adapter="a \"quoted\"\nname\\"} 0"#), "{page}");
}
