//! Large requests to a full store of segments: written group by group, with a digest made when an object's turn comes.

use std::path::Path;
use std::sync::{Arc, Mutex};

use kvstrata_core::{Affinity, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::Writer;
use kvstrata_io::OsDisk;
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Get, GetItem, GetSink, Probe, Put, PutDigest, PutItem, PutSink,
    Stored, Verify,
};
use kvstrata_l2_fs::{FsConfig, FsStore, LayoutChoice, open_os};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::{payload, trace};
use tokio::runtime::{Builder, Runtime};

const LEN: u64 = 16 << 10;
/// Several groups, and more than half of the objects that the store may hold.
const MANY: u64 = 400;

struct User {
    runtime: Runtime,
    fs: FsStore<OsDisk>,
    arena: Arena,
}

fn key(n: u64) -> ObjectKey {
    trace::key(&KeyScope::new("m", KvRank::single(), 0, "").expect("a scope"), n)
}

fn layout() -> Layout {
    Layout::opaque(LEN).expect("a layout")
}

impl User {
    fn new(root: &Path) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
        let config =
            FsConfig { layout: LayoutChoice::Slab, max_capacity_gb: 16.0 / 1024.0, ..FsConfig::new(root) };
        let cx = Context::tokio(runtime.handle().clone());
        let fs = open_os(&config, cx, Writer { pid: std::process::id(), id: 1 << 32 }, vec![], None)
            .expect("a store");
        let bytes = MANY as usize * LEN as usize;
        Self { runtime, fs, arena: Arena::new(Memory::Private, bytes).expect("memory") }
    }

    fn checked(&self, verify: Verify) -> Adapter {
        let cx = Context::tokio(self.runtime.handle().clone());
        Checked::new(self.fs.adapter(), verify, cx).adapter
    }

    fn put(&self, keys: std::ops::Range<u64>, verify: Verify) -> Vec<Result<Stored>> {
        let item = |n| {
            let buf = self.arena.filled(&key(n), LEN as usize).expect("room");
            PutItem { key: key(n), layout: layout(), digest: PutDigest::None, buf }
        };
        let items: Vec<_> = keys.map(item).collect();
        let all = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&all);
        let sink = PutSink::new(items.len(), Arc::new(move |at: usize, a| to.lock().unwrap()[at] = Some(a)));
        let request = Put { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.checked(verify).store.put(request, sink));
        let all = std::mem::take(&mut *all.lock().unwrap());
        all.into_iter().map(|answer| answer.expect("every key is answered")).collect()
    }

    /// How many of the keys are loaded and checked; their bytes are right.
    fn right(&self, keys: std::ops::Range<u64>) -> usize {
        let item =
            |n| GetItem { key: key(n), layout: layout(), buf: self.arena.empty(LEN as usize).expect("room") };
        let items: Vec<_> = keys.clone().map(item).collect();
        let right = Arc::new(Mutex::new(0));
        let (to, first) = (Arc::clone(&right), keys.start);
        let sink = GetSink::new(
            items.len(),
            Arc::new(move |at: usize, answer| {
                if let Answer::Loaded(loaded) = answer
                    && loaded.verified
                {
                    let buf = loaded.buf.seal(LEN as usize);
                    payload::verify(&key(first + at as u64), &buf).expect("host memory").expect("its bytes");
                    *to.lock().unwrap() += 1;
                }
            }),
        );
        let request = Get { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.checked(Verify::On).store.get(request, sink));
        *right.lock().unwrap()
    }

    fn digests(&self, keys: std::ops::Range<u64>) -> usize {
        let keys = keys.map(key).collect();
        let request = Probe { keys, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        let found = self.runtime.block_on(self.fs.adapter().store.probe(request));
        let digest = |f: Result<Option<kvstrata_l2::Found>>| f.expect("an answer").and_then(|f| f.digest);
        found.into_iter().filter_map(digest).count()
    }
}

fn all(answers: &[Result<Stored>], what: Stored) -> bool {
    answers.iter().all(|answer| answer.as_ref().is_ok_and(|stored| *stored == what))
}

#[test]
fn a_full_store_takes_a_large_request_and_knows_it_again() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let user = User::new(&dir.path().join("kv"));
    for round in 0..3 {
        let keys = round * MANY..(round + 1) * MANY;
        let answers = user.put(keys.clone(), Verify::On);
        assert!(all(&answers, Stored::Written), "{answers:?}");
        assert_eq!(user.right(keys), MANY as usize);
    }
    let usage = user.fs.store().usage();
    assert!(usage.evicted > MANY, "it was full: {usage:?}");
    let answers = user.put(2 * MANY..3 * MANY, Verify::On);
    assert!(all(&answers, Stored::Present), "{answers:?}");
    assert_eq!(user.fs.store().usage().evicted, usage.evicted, "nothing goes for what is there");
    assert_eq!(user.arena.in_use(), 0);
}

#[test]
fn what_has_no_digest_is_not_the_same_as_what_gets_one() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let user = User::new(&dir.path().join("kv"));
    assert!(all(&user.put(0..20, Verify::Off), Stored::Written));
    assert_eq!((user.digests(0..20), user.right(0..20)), (0, 0));
    assert!(all(&user.put(0..20, Verify::Off), Stored::Present));
    assert!(all(&user.put(0..20, Verify::On), Stored::Written), "they are replaced");
    assert_eq!((user.digests(0..20), user.right(0..20)), (20, 20));
}
