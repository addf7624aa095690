//! Tenants with quotas through the adapter, over a real directory.

use std::sync::Arc;

use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::Writer;
use kvstrata_io::OsDisk;
use kvstrata_l2::{Context, Probe, Put, PutItem, PutSink, Stored, TenantUsage};
use kvstrata_l2_fs::{FsConfig, FsStore, open_os};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::trace;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

/// With its header an object takes 64 KiB.
const LEN: u64 = (64 << 10) - 4096;
const CHARGE: u64 = 64 << 10;
const MIB: f64 = 1.0 / 1024.0;

/// One run of the adapter.
struct Run {
    runtime: Runtime,
    fs: FsStore<OsDisk>,
    arena: Arena,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
}

fn open(config: &FsConfig, runtime: &Runtime, id: u64) -> Result<FsStore<OsDisk>> {
    let writer = Writer { pid: std::process::id(), id: id << 32 };
    open_os(config, Context::tokio(runtime.handle().clone()), writer, vec![], None)
}

fn key(salt: &str, n: u64) -> ObjectKey {
    trace::key(&KeyScope::new("m", KvRank::single(), 0, salt).expect("a scope"), n)
}

impl Run {
    fn of(config: &FsConfig, id: u64) -> Self {
        let runtime = runtime();
        let fs = open(config, &runtime, id).expect("the store");
        let arena = Arena::new(Memory::Private, 16 << 20).expect("memory");
        Self { runtime, fs, arena }
    }

    /// Stores a batch; its objects are all in flight at once.
    fn put(&self, salt: &str, ids: impl IntoIterator<Item = u64>) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(LEN).expect("a layout");
        let item = |n| self.arena.item(&key(salt, n), &key(salt, n), &layout).expect("an item");
        let items: Vec<PutItem> = ids.into_iter().map(item).collect();
        let answers: Arc<Mutex<Vec<Option<Result<Stored>>>>> =
            Arc::new(Mutex::new(items.iter().map(|_| None).collect()));
        let to = Arc::clone(&answers);
        let sink = PutSink::new(items.len(), Arc::new(move |at: usize, answer| to.lock()[at] = Some(answer)));
        let request = Put { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.fs.adapter().store.put(request, sink));
        answers.lock().iter_mut().map(|a| a.take().expect("an answer")).collect()
    }

    fn there(&self, salt: &str, ids: std::ops::Range<u64>) -> usize {
        let keys = ids.map(|n| key(salt, n)).collect();
        let probe = Probe { keys, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        let found = self.runtime.block_on(self.fs.adapter().store.probe(probe));
        found.into_iter().filter(|f| f.as_ref().expect("an answer").is_some()).count()
    }

    fn tenants(&self) -> Vec<TenantUsage> {
        self.fs.adapter().quotas.expect("it keeps tenants apart").tenants()
    }

    /// Floods the store with batches of a tenant's.
    fn flood(&self, salt: &str, from: u64) {
        for batch in 0..6 {
            for answer in self.put(salt, (0..32).map(|n| from + batch * 32 + n)) {
                if let Err(e) = answer {
                    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                }
            }
        }
    }

    fn shut_down(self) {
        self.runtime.block_on(self.fs.adapter().store.shutdown(Instant::FAR_FUTURE)).expect("a shutdown");
    }
}

#[test]
fn a_flood_never_takes_what_is_promised_to_another_not_even_across_a_restart() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let quotas = [("held".to_owned(), 2.0 * MIB), ("flood".to_owned(), MIB)].into();
    let config = FsConfig {
        max_capacity_gb: 4.0 * MIB,
        eviction_policy: Some("IsolatedLRU".into()),
        quotas,
        ..FsConfig::new(dir.path().join("kv"))
    };
    let held = (2 << 20) / CHARGE;
    let usage = |run: &Run| run.tenants().into_iter().find(|t| t.salt == "held").expect("a tenant");
    let run = Run::of(&config, 1);
    assert!(run.put("held", 0..held).iter().all(Result::is_ok));
    run.flood("flood", 0);
    run.flood("", 0);
    assert_eq!(run.there("held", 0..held) as u64, held, "it holds its quota to the byte");
    run.shut_down();

    let run = Run::of(&config, 2);
    let expected = TenantUsage { salt: "held".into(), used: 2 << 20, quota: Some(2 << 20) };
    assert_eq!(usage(&run), expected, "what was found at the start counts");
    run.flood("", 1000);
    run.flood("flood", 1000);
    run.flood("new", 0);
    assert_eq!((run.there("held", 0..held) as u64, usage(&run)), (held, expected));
    assert!(run.fs.store().usage().evicted > 50, "there was a flood");
    run.shut_down();

    // As after a kill, without a snapshot, and with less room: what is promised stays when the start trims.
    std::fs::remove_file(config.base_path.join("kvstrata.index")).expect("a snapshot");
    let config = FsConfig { max_capacity_gb: 3.0 * MIB, ..config };
    let run = Run::of(&config, 3);
    assert_eq!(run.there("held", 0..held) as u64, held);
    let quotas = run.fs.adapter().quotas.expect("it keeps tenants apart");
    quotas.set_quota("held", None).unwrap();
    run.flood("flood", 2000);
    assert!(run.there("held", 0..held) > 0, "without a quota it shares what is left");
    quotas.set_default_quota(Some(0)).unwrap();
    run.flood("flood", 3000);
    assert!(run.put("flood", [9999]).remove(0).is_ok());
    assert!(run.tenants().iter().any(|t| t.salt == "flood" && t.quota == Some(1 << 20)));
    run.shut_down();
}

#[test]
fn a_policy_without_tenants_offers_and_takes_no_quotas() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let config = FsConfig { max_capacity_gb: 4.0 * MIB, ..FsConfig::new(dir.path().join("kv")) };
    let run = Run::of(&config, 1);
    assert!(run.fs.adapter().quotas.is_none());
    run.shut_down();
    let config = FsConfig { quotas: [("a".to_owned(), 1.0)].into(), ..config };
    let e = open(&config, &runtime(), 2).expect_err("LRU keeps no quotas");
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("quotas: LRU"), "{e}");
}
