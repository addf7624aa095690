//! The two modes in which L1 is only a buffer, through the settings that users type, at the size they were asked for.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_config::{BuildContext, Machine, Registry, Resolved, Sources};
use kvstrata_core::{ErrorKind, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::Keys;
use kvstrata_manager::{Grant, Layouts, LoadMode, Manager, Reserved, StoredHook, Wait};
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

const MIB: u64 = 1 << 20;

fn manager(flags: &[(&str, &str)]) -> Manager {
    let flags = flags.iter().map(|(n, v)| ((*n).to_owned(), Some((*v).to_owned()))).collect();
    let sources = Sources { flags, ..Sources::default() };
    let resolved = Resolved::load(&sources, &Machine::here(), &Registry::builtin()).expect("good settings");
    let cx = BuildContext::tokio(tokio::runtime::Handle::current());
    resolved.build(&cx).expect("it can be built").into_manager(&cx).expect("a manager")
}

fn keys(n: u64) -> Keys {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
    (0..n).map(|id| trace::key(&scope, id)).collect()
}

/// Stores as fast as L1 lets them in; every key must get room before its deadline.
async fn push(m: &Manager, keys: &[ObjectKey], bytes: u64, hook: Option<&Arc<dyn StoredHook>>) {
    let layouts = Layouts::from(Layout::opaque(bytes).expect("good"));
    let mut missing = KeyMask::all(keys.len());
    while !missing.is_clear() {
        let rq = m.request(Duration::from_secs(30));
        let reserved = m.reserve(&rq, keys, &missing, &layouts, Grant::Part, Wait::UntilDeadline).await;
        let mut filled = Vec::new();
        for (i, r) in reserved.into_iter().enumerate() {
            if let Reserved::Granted(mut chunk) = r {
                payload::write(&keys[i], chunk.buf()).expect("host memory");
                missing.clear(i);
                filled.push(chunk);
            }
        }
        assert!(!filled.is_empty(), "no room came free in 30 s: {m:?}");
        m.commit_with(filled, hook.cloned());
    }
    m.flush(Duration::from_secs(30)).await.expect("stores end");
}

/// Loads key after key, checks every byte, and lets go; how many were there.
async fn pull(m: &Manager, keys: &[ObjectKey], bytes: u64) -> usize {
    let layouts = Layouts::from(Layout::opaque(bytes).expect("good"));
    let mut there = 0;
    for key in keys {
        let rq = m.request(Duration::from_secs(30));
        let lookup = m.lookup(&rq, &[key.clone()].into()).await;
        assert!(lookup.l1().is_clear(), "L1 is a buffer here");
        let loaded = m.load(lookup, &layouts, LoadMode::Any).finish().await;
        if let Some(buf) = loaded.hits.buf(0) {
            payload::verify(key, buf).expect("host memory").expect("the bytes that were stored");
            there += 1;
        }
    }
    there
}

#[derive(Default)]
struct Calls(Mutex<Vec<ObjectKey>>);

impl StoredHook for Calls {
    fn stored(&self, key: &ObjectKey) {
        self.0.lock().push(key.clone());
    }
}

const BUFFER_ONLY: [(&str, &str); 3] =
    [("l1-size-gb", "0.03"), ("eviction-policy", "noop"), ("l2-store-policy", "skip_l1")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffer_only_800_chunks_pass_through_30_mib() {
    let adapter = r#"{"type":"mock","max_size_gb":1.0,"mock_bandwidth_gb":20.0}"#;
    let m = manager(&[&BUFFER_ONLY[..], &[("l2-adapter", adapter)]].concat());
    let k = keys(800);
    let calls = Arc::<Calls>::default();
    push(&m, &k, MIB, Some(&(Arc::clone(&calls) as Arc<dyn StoredHook>))).await;
    let u = m.usage();
    assert_eq!((u.cache.used, u.resident, u.pinned, u.stats.stored), (0, 0, 0, 800));
    assert_eq!(u.adapters[0].usage.expect("mock says").objects, 800);
    let mut called = calls.0.lock().clone();
    called.sort_by_key(ObjectKey::fingerprint);
    called.dedup();
    assert_eq!((called.len(), calls.0.lock().len()), (800, 800), "once per key");
    assert_eq!(pull(&m, &k, MIB).await, 800);
    let u = m.usage();
    assert_eq!((u.cache.used, u.staging.used, u.pinned), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buffer_only_leaks_nothing_when_every_store_fails() {
    let adapter = r#"{"type":"mock","max_size_gb":1.0,"mock_bandwidth_gb":20.0,"fail_store":true}"#;
    let m = manager(&[&BUFFER_ONLY[..], &[("l2-adapter", adapter), ("store-backoff", "1ms")]].concat());
    let k = keys(100);
    let calls = Arc::<Calls>::default();
    push(&m, &k, MIB, Some(&(Arc::clone(&calls) as Arc<dyn StoredHook>))).await;
    let u = m.usage();
    assert_eq!((u.cache.used, u.resident, u.pinned, u.stats.lost), (0, 0, 0, 100));
    assert!(calls.0.lock().is_empty(), "nothing can be read from L2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staging_only_over_a_disk_survives_a_restart_and_writes_nothing_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let flags = [
        ("local-cpu", "false"),
        ("use-only-staging-buffer", "true"),
        ("l1-size", "8MiB"),
        ("local-disk", path),
        ("max-local-disk-size", "0.1"),
    ];
    let k = keys(64);
    let m = manager(&flags);
    push(&m, &k, MIB / 4, None).await;
    assert_eq!(m.usage().cache.used, 0, "the staging buffers are back");
    m.shutdown(Duration::from_secs(30)).await.expect("it ends");
    drop(m);

    let m = manager(&flags);
    assert_eq!(pull(&m, &k, MIB / 4).await, 64, "found again on disk");
    let u = m.usage();
    assert_eq!((u.cache.used, u.staging.used, u.resident), (0, 0, 0), "and not written back");
    m.shutdown(Duration::from_secs(30)).await.expect("it ends");
}

#[tokio::test]
async fn staging_that_is_exhausted_is_a_clean_error_within_the_deadline() {
    let adapter = r#"{"type":"mock","max_size_gb":1.0,"mock_bandwidth_gb":20.0,"delay_ms":2000}"#;
    let m = manager(&[
        ("local-cpu", "false"),
        ("use-only-staging-buffer", "true"),
        ("l1-size", "1MiB"),
        ("l2-adapter", adapter),
    ]);
    let k = keys(2);
    let layouts = Layouts::from(Layout::opaque(MIB).expect("good"));
    let rq = m.request(Duration::from_millis(100));
    let all = KeyMask::all(2);
    let mut held = m.reserve(&rq, &k, &all, &layouts, Grant::Part, Wait::UntilDeadline).await;
    assert!(matches!(held[0], Reserved::Granted(_)));
    let late = m.reserve(&rq, &k[1..], &KeyMask::all(1), &layouts, Grant::Part, Wait::UntilDeadline).await;
    assert!(matches!(&late[0], Reserved::Refused(e) if e.kind() == ErrorKind::NoSpace), "{late:?}");
    held.clear();
    assert_eq!((m.usage().cache.used, m.usage().reserved), (0, 0));
}
