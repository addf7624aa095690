//! How requests end: what a shutdown waits for, what a deadline leaves behind, and what answers may rely on.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::Waker;
use std::time::Duration;

use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::{Begin, Durability, NewObject, Quotas, Settings, Store, Wanted, Writer};
use kvstrata_io::{Disk, Fault, OpKind, Rule, SimDisk, SimMode, SimOptions};
use kvstrata_l2::{Answer, Context, Get, GetItem, GetSink, Probe, Put, PutSink, Stored};
use kvstrata_l2_fs::FsStore;
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::trace;
use tokio::runtime::{Builder, Handle, Runtime};

const LEN: u64 = 64 << 10;
const EIO: i32 = 5;

struct User {
    runtime: Runtime,
    disk: SimDisk,
    store: Arc<Store<SimDisk>>,
    fs: FsStore<SimDisk>,
    arena: Arena,
}

fn key(n: u64) -> ObjectKey {
    trace::key(&KeyScope::new("m", KvRank::single(), 0, "").expect("a scope"), n)
}

fn layout() -> Layout {
    Layout::opaque(LEN).expect("a layout")
}

impl User {
    fn of(mode: SimMode, durability: Durability, capacity: Option<u64>) -> Self {
        let disk = SimDisk::new(SimOptions { mode, ..SimOptions::default() });
        let settings = Settings {
            root: PathBuf::from("/kv"),
            layout: None,
            tmp: None,
            capacity,
            policy: kvstrata_evict::by_name("LRU").expect("a known policy"),
            quotas: Quotas::default(),
            durability,
            direct: Wanted::Off,
            no_atime: Wanted::Try,
            writer: Writer { pid: 1, id: 1 << 32 },
            namespaces: vec![],
            shared: false,
        };
        let store = Store::open(Arc::new(disk.clone()), settings).expect("a store");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
        let fs = FsStore::over(Arc::clone(&store), "fs", Context::tokio(runtime.handle().clone()), 2);
        let arena = Arena::new(Memory::Private, 4 << 20).expect("memory");
        Self { runtime, disk, store, fs, arena }
    }

    fn request(&self, n: u64, deadline: Instant) -> Put {
        let items = vec![self.arena.item(&key(n), &key(n), &layout()).expect("an item")];
        Put { items, deadline, affinity: Affinity::default() }
    }

    fn put(&self, n: u64, deadline: Instant) -> Result<Stored> {
        let (to, answer) = mpsc::channel();
        let sink = PutSink::new(1, Arc::new(move |_, answer| to.send(answer).expect("the test waits")));
        self.runtime.block_on(self.fs.adapter().store.put(self.request(n, deadline), sink));
        answer.recv().expect("an answer")
    }

    /// Loads one object; `hears` gets the answer.
    fn get(&self, n: u64, hears: impl Fn(Answer) + Send + Sync + 'static) {
        let item =
            GetItem { key: key(n), layout: layout(), buf: self.arena.empty(LEN as usize).expect("a buffer") };
        let sink = GetSink::new(1, Arc::new(move |_, answer| hears(answer)));
        let request = Get { items: vec![item], deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        self.runtime.block_on(self.fs.adapter().store.get(request, sink));
    }

    fn there(&self, n: u64) -> bool {
        let probe =
            Probe { keys: [key(n)].into(), deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        let found = self.runtime.block_on(self.fs.adapter().store.probe(probe)).remove(0);
        found.expect("an answer").is_some()
    }

    fn shut_down(&self) {
        self.runtime.block_on(self.fs.adapter().store.shutdown(Instant::FAR_FUTURE)).expect("a shutdown");
    }

    /// Whether the disk has nothing in its directory of unfinished files.
    fn is_tidy(&self) -> bool {
        self.disk.list(Path::new("/kv/tmp")).expect("a directory").is_empty()
    }

    /// At the first operation of this kind, what a shutdown that begins then says at once: whether it is done.
    fn shutdown_during(&self, kind: OpKind) -> Arc<Mutex<Vec<bool>>> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let (to, fs, handle) = (Arc::clone(&said), self.fs.clone(), self.runtime.handle().clone());
        self.disk.faults().hook(move |op| {
            if op.kind == kind && to.lock().expect("no panic").is_empty() {
                // The hook is asked again for what the shutdown itself does.
                to.lock().expect("no panic").push(false);
                to.lock().expect("no panic")[0] = shuts_down_at_once(&fs, &handle);
            }
            None
        });
        said
    }
}

/// Whether a shutdown that begins now has nothing to wait for. On a thread of its own: an inline engine puts off what is
/// submitted from inside a job.
fn shuts_down_at_once(fs: &FsStore<SimDisk>, handle: &Handle) -> bool {
    let poll = || {
        let _in_runtime = handle.enter();
        let adapter = fs.adapter();
        let mut shutdown = pin!(adapter.store.shutdown(Instant::FAR_FUTURE));
        shutdown.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())).is_ready()
    };
    std::thread::scope(|threads| threads.spawn(poll).join().expect("no panic"))
}

#[test]
fn a_shutdown_waits_for_every_job_that_has_begun() {
    use OpKind::{Open, Read, RenameNew, SyncFile, Unlink, Write};
    for kind in [Open, Write, SyncFile, RenameNew] {
        let user = User::of(SimMode::Inline, Durability::Data, None);
        let said = user.shutdown_during(kind);
        drop(user.put(1, Instant::FAR_FUTURE));
        assert_eq!(*said.lock().unwrap(), [false], "a store at {kind:?}");
    }
    for kind in [Open, Read] {
        let user = User::of(SimMode::Inline, Durability::None, None);
        user.put(1, Instant::FAR_FUTURE).unwrap();
        let said = user.shutdown_during(kind);
        user.get(1, |_| ());
        assert_eq!(*said.lock().unwrap(), [false], "a load at {kind:?}");
    }
    let user = User::of(SimMode::Inline, Durability::None, None);
    user.put(1, Instant::FAR_FUTURE).unwrap();
    let said = user.shutdown_during(Unlink);
    let remove = user.fs.adapter().remove.expect("it can remove");
    drop(user.runtime.block_on(remove.remove([key(1)].into(), Instant::FAR_FUTURE)));
    assert_eq!(*said.lock().unwrap(), [false], "a removal");
}

#[test]
fn a_store_that_was_answered_already_has_tidied_up_when_a_shutdown_ends() {
    let user = User::of(SimMode::Inline, Durability::None, None);
    let sink = PutSink::new(1, Arc::new(|_, _| ()));
    let (early, ends) = (sink.clone(), Arc::new(Mutex::new(None)));
    let (to, fs, handle) = (Arc::clone(&ends), user.fs.clone(), user.runtime.handle().clone());
    user.disk.faults().hook(move |op| {
        if op.kind == OpKind::Write {
            // As a deadline does.
            early.answer(0, Err(kvstrata_l2::timed_out("test", Instant::ZERO)));
        }
        if op.kind == OpKind::Unlink && to.lock().expect("no panic").is_none() {
            *to.lock().expect("no panic") = Some(false);
            *to.lock().expect("no panic") = Some(shuts_down_at_once(&fs, &handle));
        }
        None
    });
    user.runtime.block_on(user.fs.adapter().store.put(user.request(1, Instant::FAR_FUTURE), sink));
    assert_eq!(*ends.lock().unwrap(), Some(false), "the unfinished file is removed first");
    user.disk.faults().clear();
    user.shut_down();
    assert!(user.is_tidy());
}

#[test]
fn a_device_that_hangs_while_it_publishes_is_answered_at_the_deadline_and_leaves_nothing() {
    for kind in [OpKind::Write, OpKind::SyncFile, OpKind::RenameNew, OpKind::SyncDir] {
        let user = Arc::new(User::of(SimMode::Threads(2), Durability::Full, None));
        user.put(0, Instant::FAR_FUTURE).unwrap();
        user.disk.faults().add(Rule::new(Fault::Hang).on(&[kind]).times(1));
        let (to, answer) = mpsc::channel();
        let asker = Arc::clone(&user);
        let asks = std::thread::spawn(move || {
            let soon = asker.fs.timer().now() + Duration::from_millis(30);
            to.send(asker.put(1, soon)).expect("the test waits");
        });
        let answered = answer.recv_timeout(Duration::from_secs(60));
        user.disk.release();
        asks.join().unwrap();
        let e = answered.expect("an answer while the device hangs").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TimedOut, "{kind:?}: {e}");
        assert_eq!(user.put(2, Instant::FAR_FUTURE).unwrap(), Stored::Written, "{kind:?}");
        user.shut_down();
        assert!(user.is_tidy(), "{kind:?}");
        assert_eq!((user.store.usage().objects, user.store.usage().used), (2, 2 * (LEN + 4096)), "{kind:?}");
        let path = kvstrata_disk::names::object_path(Path::new("/kv"), key(1).fingerprint256());
        assert!(user.disk.metadata(&path).is_err(), "{kind:?}: a failed store leaves nothing");
    }
}

#[test]
fn whoever_hears_that_a_load_failed_may_have_its_object_out_of_the_way() {
    let capacity = 128 << 10;
    let user = User::of(SimMode::Inline, Durability::None, Some(capacity));
    user.put(1, Instant::FAR_FUTURE).unwrap();
    user.disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Read]).times(1));
    let (store, made_room) = (Arc::clone(&user.store), Arc::new(Mutex::new(None)));
    let to = Arc::clone(&made_room);
    user.get(1, move |answer| {
        assert!(matches!(answer, Answer::Failed(..)), "{answer:?}");
        let new = NewObject { key: key(2), layout: layout().id(), len: LEN, digest: None };
        let Some(Begin::Claimed(mut claim)) = store.begin(&[new]).pop() else { panic!("it is new") };
        *to.lock().expect("no panic") = Some(claim.reserve().is_ok());
    });
    assert_eq!(*made_room.lock().unwrap(), Some(true), "the object is not pinned any more");
    assert!(!user.there(1));
}
