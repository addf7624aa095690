//! What is opened and closed a thousand times leaves no descriptor, no mapping and no thread behind.
//!
//! A program of its own, because what is counted is the process's. It runs itself again with an allocator and a thread
//! library that keep no memory in reserve: what they cache would be counted, too.

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_config::{BuildContext, Machine, Registry, Resolved, Sources};
use kvstrata_core::{Instant as Deadline, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::Keys;
use kvstrata_manager::{Grant, Layouts, LoadMode, Manager, Reserved, StoredHook};
use kvstrata_mem::{Allocate, MemfdRegion, MmapRegion, Region, RegionOptions, ShmRegion, Slab, Stale};
use kvstrata_testkit::{payload, trace};
use kvstrata_tests::census::Census;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::{Builder, Runtime};

const CYCLES: usize = 1000;
/// Until then whatever is made once has been made: lazy statics, the runtime's own threads, directories.
const WARM_UP: usize = 20;
const CHUNK: u64 = 8 << 10;

const RESERVES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=1073741824:glibc.pthread.stack_cache_size=0",
);

/// Runs `cycle` again and again, and compares what the process holds before with what it holds afterwards.
fn leaves_nothing(cycle: impl FnMut(usize)) -> Result<(), Failed> {
    leaves_nothing_in(CYCLES, Duration::from_secs(10), cycle)
}

fn leaves_nothing_in(cycles: usize, patience: Duration, mut cycle: impl FnMut(usize)) -> Result<(), Failed> {
    (0..WARM_UP).for_each(&mut cycle);
    // A thread that ended is seen for a moment longer.
    let settled = |wanted: Option<&Census>| {
        let end = Instant::now() + patience;
        let mut last = Census::take("self");
        loop {
            std::thread::sleep(Duration::from_millis(20));
            // The stack of a thread that nobody waits for is unmapped when the next one ends.
            std::thread::spawn(|| ()).join().expect("a thread that does nothing");
            let now = Census::take("self");
            if wanted.map_or(now == last, |wanted| now == *wanted) || Instant::now() > end {
                return now;
            }
            last = now;
        }
    };
    let before = settled(None);
    (WARM_UP..WARM_UP + cycles).for_each(&mut cycle);
    let after = settled(Some(&before));
    if after == before {
        return Ok(());
    }
    Err(format!("after {cycles} cycles\n  {after:?}\nand before them\n  {before:?}").into())
}

fn region(make: fn(usize) -> Arc<dyn Region>) -> Result<(), Failed> {
    leaves_nothing(|n| {
        let slab = Slab::new(vec![make(n), make(n + CYCLES * 2)]).expect("a slab");
        let pool = slab.pool("cache", 1 << 20);
        let mut buf = pool.reserve(100_000, 4096).expect("room");
        buf.write_at(0, &n.to_le_bytes()).expect("inside");
        let pin = buf.seal(100_000);
        let last = pin.clone();
        drop((slab, pool, pin));
        let mut back = [0; 8];
        last.read_at(0, &mut back).expect("a pin keeps its region");
        assert_eq!(usize::from_le_bytes(back), n);
    })
}

const LEN: usize = 256 << 10;

fn mmap(_: usize) -> Arc<dyn Region> {
    MmapRegion::new(LEN, &RegionOptions::default()).expect("memory")
}

fn memfd(_: usize) -> Arc<dyn Region> {
    MemfdRegion::new("kvstrata-leaks", LEN, &RegionOptions::default()).expect("memory")
}

fn shm(n: usize) -> Arc<dyn Region> {
    let name = format!("/kvstrata-leaks-{}-{n}", std::process::id());
    ShmRegion::create(&name, LEN, &RegionOptions::default(), Stale::Refuse).expect("memory")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn fs_flags(dir: &tempfile::TempDir) -> String {
    format!(
        r#"{{"type":"fs","base_path":{:?},"max_capacity_gb":0.1,"num_workers":2}}"#,
        dir.path().join("kv")
    )
}

fn fs_store() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let settings = serde_json::from_str(&fs_flags(&dir))?;
    let runtime = runtime();
    leaves_nothing(|_| {
        runtime.block_on(async {
            let cx = BuildContext::tokio(tokio::runtime::Handle::current());
            let adapter = Registry::builtin().build("fs", &settings, &cx).expect("a store");
            adapter.store.shutdown(Deadline::FAR_FUTURE).await.expect("it ends");
        });
    })
}

fn manager(adapter: &str) -> Result<(), Failed> {
    let runtime = runtime();
    let flags = [("l1-size-gb", "0.001"), ("l1-staging-size", "256KiB"), ("l2-adapter", adapter)];
    let flags: Vec<_> = flags.iter().map(|(n, v)| ((*n).to_owned(), Some((*v).to_owned()))).collect();
    let sources = Sources { flags, ..Sources::default() };
    let resolved = Resolved::load(&sources, &Machine::here(), &Registry::builtin())?;
    leaves_nothing(|n| {
        runtime.block_on(async {
            let cx = BuildContext::tokio(tokio::runtime::Handle::current());
            let m = resolved.build(&cx).expect("components").into_manager(&cx).expect("a manager");
            store_and_load(&m, n as u64 % 16).await;
            m.shutdown(Duration::from_secs(30)).await.expect("it ends");
        });
    })
}

/// Stores one chunk, waits until it is in L2, and reads whatever of the sixteen is there.
async fn store_and_load(m: &Manager, id: u64) {
    let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("a scope");
    let keys: Keys = (0..16).map(|id| trace::key(&scope, id)).collect();
    let one: [ObjectKey; 1] = [keys[id as usize].clone()];
    let layouts = Layouts::from(Layout::opaque(CHUNK).expect("a layout"));
    let rq = m.request(Duration::from_secs(30));
    let reserved = m.try_reserve(&rq, &one, &KeyMask::all(1), &layouts, Grant::Whole);
    let hook: Option<Arc<dyn StoredHook>> = None;
    for r in reserved {
        let Reserved::Granted(mut chunk) = r else { panic!("an empty L1 has room: {r:?}") };
        payload::write(&one[0], chunk.buf()).expect("host memory");
        m.commit_with(vec![chunk], hook.clone());
    }
    m.flush(Duration::from_secs(30)).await.expect("it is stored");
    let loaded = m.load(m.lookup(&rq, &keys).await, &layouts, LoadMode::Any).finish().await;
    assert!(loaded.hits.buf(id as usize).is_some(), "what was just stored is there");
    for (i, key) in keys.iter().enumerate() {
        if let Some(buf) = loaded.hits.buf(i) {
            payload::verify(key, buf).expect("host memory").expect("the bytes that were stored");
        }
    }
}

/// One descriptor, mapping or thread that stays is enough to be seen.
fn one_leak_is_seen() -> Result<(), Failed> {
    let keep: [(&str, fn()); 3] = [
        ("a descriptor", || std::mem::forget(std::fs::File::open("/dev/null").expect("it is there"))),
        ("a mapping", || std::mem::forget(mmap(0))),
        ("a thread", || drop(std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60))))),
    ];
    for (what, keep) in &keep {
        let seen = leaves_nothing_in(10, Duration::from_millis(300), |n| {
            if n == WARM_UP + 3 {
                keep();
            }
        });
        if seen.is_ok() {
            return Err(format!("{what} that stays is not seen").into());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    if std::env::var_os(RESERVES.0).is_none() {
        let again = Command::new(std::env::current_exe().expect("this program"))
            .args(std::env::args_os().skip(1))
            .env(RESERVES.0, RESERVES.1)
            .status()
            .expect("this program runs again");
        return if again.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut args = Arguments::from_args();
    // On the one thread: what another test opens would be counted.
    args.test_threads = Some(1);
    let trials = vec![
        Trial::test("mapped_regions", || region(mmap)),
        Trial::test("memfd_regions", || region(memfd)),
        Trial::test("shared_memory_regions", || region(shm)),
        Trial::test("fs_stores", fs_store),
        Trial::test("managers_over_a_mock", || {
            manager(r#"{"type":"mock","max_size_gb":0.01,"mock_bandwidth_gb":100}"#)
        }),
        Trial::test("managers_over_a_directory", || {
            let dir = tempfile::tempdir()?;
            manager(&fs_flags(&dir))
        }),
        Trial::test("one_leak_is_seen", one_leak_is_seen),
    ];
    libtest_mimic::run(&args, trials).exit_code()
}
