//! The adapter over a pretended GPU's memory: how it opens, in which order it copies, what fails, and what is checked.

mod common;
#[path = "common/pretend.rs"]
mod pretend;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use common::device::Device;
use kvstrata_core::{Affinity, Error, ErrorKind, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_io::IoEngine;
use kvstrata_l2::{
    Answer, Checked, Context, Get, GetItem, GetSink, L2Store, Miss, Probe, Put, PutDigest, PutItem, PutSink,
    Stored, Verify,
};
use kvstrata_l2_gds::{GdsConfig, GdsStore, GdsWay, Gpus, Order, Prober, Search, Way, os_disk};
use kvstrata_mem::{Allocate, HeapRegion, ReadBuf, Slab, WriteBuf};
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;
use pretend::{Flag, Pretend};

const LEN: usize = 700_000;

fn open(config: &GdsConfig, l2: Context, gpus: Result<Arc<dyn Gpus>>) -> Result<GdsStore> {
    GdsStore::open(config, common::context(os_disk(config)?, l2, gpus))
}

fn recorded_and_reached(flag: &Flag) -> bool {
    let (armed, reached) = *flag.0.0.lock().unwrap();
    armed > 0 && reached == armed
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn key(n: u64) -> ObjectKey {
    trace::key(&KeyScope::new("m", KvRank::single(), 0, "").unwrap(), n)
}

struct Rig {
    pretend: Arc<Pretend>,
    device: Arc<Device>,
    gds: GdsStore,
    checked: Arc<dyn L2Store>,
    /// Bytes of every chunk.
    len: usize,
    cx: Context,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Self {
        Self::of(dir(), LEN, 8)
    }

    fn of(dir: tempfile::TempDir, len: usize, buffer_mib: u64) -> Self {
        let (runtime, pretend) = (runtime(), Pretend::new());
        let cx = Context::tokio(runtime.handle().clone());
        let config =
            GdsConfig { gds_way: GdsWay::Bounce, gds_buffer_size: buffer_mib, ..common::config(dir.path()) };
        let gpus = Arc::clone(&pretend) as Arc<dyn Gpus>;
        let device = Device::new(Arc::clone(&gpus), 32 << 20, len).unwrap();
        let gds = open(&config, cx.clone(), Ok(gpus)).unwrap();
        let checked = Checked::new(gds.adapter(), Verify::On, cx.clone()).adapter.store;
        Self { pretend, device, gds, checked, len, cx, dir, runtime }
    }

    fn chunk(&self, n: u64) -> WriteBuf {
        let key = key(n);
        self.device
            .filled(self.len, |to| {
                to.copy_from_slice(&payload_of(&key, self.len));
                Ok(())
            })
            .unwrap()
    }

    fn item(&self, n: u64, buf: ReadBuf) -> PutItem {
        PutItem {
            key: key(n),
            layout: Layout::opaque(self.len as u64).unwrap(),
            digest: PutDigest::None,
            buf,
        }
    }

    fn put(&self, n: u64, buf: ReadBuf) -> Result<Stored> {
        let items = vec![self.item(n, buf)];
        let deadline = self.cx.timer.now() + Duration::from_secs(30);
        let (answers, sink) = collect();
        let request = Put { items, deadline, affinity: Affinity { ordinal: Some(0), uuid: None } };
        self.runtime.block_on(self.checked.put(request, sink));
        let answer = answers.lock().pop();
        answer.expect("an answer")
    }

    fn get_into(&self, n: u64, buf: WriteBuf) -> Answer {
        let items = vec![GetItem { key: key(n), layout: Layout::opaque(self.len as u64).unwrap(), buf }];
        let deadline = self.cx.timer.now() + Duration::from_secs(30);
        let answers = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&answers);
        let sink = GetSink::new(1, Arc::new(move |_: usize, a: Answer| to.lock().push(a)));
        let request = Get { items, deadline, affinity: Affinity { ordinal: Some(0), uuid: None } };
        self.runtime.block_on(self.checked.get(request, sink));
        let answer = answers.lock().pop();
        answer.expect("an answer")
    }

    fn get(&self, n: u64) -> Answer {
        let buf = self
            .device
            .filled(self.len, |to| {
                to.fill(0x5a);
                Ok(())
            })
            .unwrap();
        self.get_into(n, buf)
    }

    fn is_found(&self, n: u64) -> bool {
        let deadline = self.cx.timer.now() + Duration::from_secs(30);
        let request = Probe { keys: [key(n)].into(), deadline, affinity: Affinity::default() };
        self.runtime.block_on(self.checked.probe(request))[0].as_ref().unwrap().is_some()
    }
}

fn payload_of(key: &ObjectKey, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    payload::fill(key, &mut bytes);
    bytes
}

type Answers<T> = Arc<Mutex<Vec<T>>>;

fn collect() -> (Answers<Result<Stored>>, PutSink) {
    let answers = Answers::default();
    let to = Arc::clone(&answers);
    (answers, PutSink::new(1, Arc::new(move |_: usize, a: Result<Stored>| to.lock().push(a))))
}

#[test]
fn bounced_chunks_are_verified_and_stored_once() {
    let rig = Rig::new();
    assert_eq!(rig.put(1, rig.chunk(1).seal(LEN)).unwrap(), Stored::Written);
    match rig.get(1) {
        Answer::Loaded(loaded) => {
            assert!(loaded.verified, "the bytes passed through the host, which took their CRC");
            assert!(loaded.found.digest.is_some());
            assert_eq!(rig.device.bytes(&loaded.buf).unwrap(), payload_of(&key(1), LEN));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        rig.put(1, rig.chunk(1).seal(LEN)).unwrap(),
        Stored::Present,
        "the digest says that it is there"
    );
    assert_eq!(rig.put(1, rig.chunk(2).seal(LEN)).unwrap(), Stored::Written, "other bytes take its place");
    assert_eq!((rig.gds.stats().written, rig.gds.stats().present), (2, 1));
    assert_eq!(rig.device.pool.usage().buffers, 0);
}

#[test]
fn a_flipped_bit_on_the_way_to_a_gpu_is_a_miss() {
    let rig = Rig::new();
    rig.put(1, rig.chunk(1).seal(LEN)).unwrap();
    let start = payload_of(&key(1), LEN)[..64].to_vec();
    let mut flipped = 0;
    for file in files(rig.dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(64).step_by(512).position(|w| w == start);
        if let Some(at) = found.map(|i| i * 512 + 300_000) {
            let file = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
            file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    assert!(matches!(rig.get(1), Answer::Miss(Miss::Digest, Some(_))));
    assert!(!rig.is_found(1), "it is out of the way");
    assert_eq!(rig.put(1, rig.chunk(1).seal(LEN)).unwrap(), Stored::Written);
    assert!(matches!(rig.get(1), Answer::Loaded(l) if l.verified));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() { all.extend(files(&entry)) } else { all.push(entry) }
    }
    all
}

#[test]
fn copies_wait_for_the_engine_and_tell_it_when_they_are_done() {
    let rig = Rig::new();
    // A chunk that is not written yet: the engine's kernel runs later.
    let chunk = rig
        .device
        .filled(LEN, |to| {
            to.fill(0);
            Ok(())
        })
        .unwrap();
    let (written, read) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    written.arm();
    let buf = chunk.seal(LEN);
    let order = Order { after: Some(Arc::clone(&written) as _), signal: Some(Arc::clone(&read) as _) };
    rig.gds.orders().set(&buf, order);
    let (answers, sink) = collect();
    let deadline = rig.cx.timer.now() + Duration::from_secs(30);
    let request = Put { items: vec![rig.item(1, buf.clone())], deadline, affinity: Affinity::default() };
    let store = Arc::clone(&rig.checked);
    let put = rig.runtime.spawn(async move { store.put(request, sink).await });
    std::thread::sleep(Duration::from_millis(50));
    assert!(answers.lock().is_empty(), "the bytes are not there");
    // SAFETY: the copies wait for the flag, and nobody else looks.
    unsafe { buf.as_ptr().as_ptr().copy_from_nonoverlapping(payload_of(&key(1), LEN).as_ptr(), LEN) };
    written.reach();
    rig.runtime.block_on(put).unwrap();
    assert_eq!(answers.lock().pop().unwrap().unwrap(), Stored::Written);
    assert!(recorded_and_reached(&read));
    drop(buf);

    // A load into a chunk that a kernel still reads.
    let (free, there) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    free.arm();
    let to = rig
        .device
        .filled(LEN, |to| {
            to.fill(7);
            Ok(())
        })
        .unwrap();
    let order = Order { after: Some(Arc::clone(&free) as _), signal: Some(Arc::clone(&there) as _) };
    rig.gds.orders().set(&to, order);
    let at = to.as_ptr();
    let reader = std::thread::spawn({
        let free = Arc::clone(&free);
        let at = at.addr();
        move || {
            std::thread::sleep(Duration::from_millis(50));
            let at = std::ptr::with_exposed_provenance::<u8>(at.get());
            // SAFETY: the chunk is out as long as the load is, and nobody writes it before the flag.
            let seen = unsafe { at.read() };
            free.reach();
            seen
        }
    });
    at.as_ptr().expose_provenance();
    match rig.get_into(1, to) {
        Answer::Loaded(loaded) => {
            assert_eq!(rig.device.bytes(&loaded.buf).unwrap(), payload_of(&key(1), LEN));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.join().unwrap(), 7, "nothing was written before the kernel was done");
    assert!(recorded_and_reached(&there));
}

#[test]
fn orders_are_used_once_and_can_be_taken_back() {
    let rig = Rig::new();
    let never = Arc::new(Flag::default());
    never.arm();
    let buf = rig.chunk(1).seal(LEN);
    let order = || Order { after: Some(Arc::clone(&never) as _), signal: None };
    rig.gds.orders().set(&buf, order());
    rig.gds.orders().forget(&buf);
    assert_eq!(rig.put(1, buf).unwrap(), Stored::Written);
}

#[test]
fn a_gpu_that_fails_in_the_middle_fails_that_key_alone() {
    let rig = Rig::new();
    let queues = rig.pretend.queues.load(Relaxed);
    rig.pretend.fail_in.store(2, Relaxed);
    let e = rig.put(1, rig.chunk_by_hand(1)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Io);
    assert!(!rig.is_found(1));
    assert_eq!(
        (rig.device.pool.usage().buffers, rig.pretend.queues.load(Relaxed)),
        (0, queues),
        "nothing is left"
    );
    rig.pretend.fail_in.store(u64::MAX, Relaxed);
    assert_eq!(rig.put(1, rig.chunk(1).seal(LEN)).unwrap(), Stored::Written);
    assert!(matches!(rig.get(1), Answer::Loaded(_)));
}

impl Rig {
    /// As [`Self::chunk`], without the pretended GPU's copies.
    fn chunk_by_hand(&self, n: u64) -> ReadBuf {
        let buf = self.device.pool.reserve(LEN, 4096).unwrap();
        let bytes = payload_of(&key(n), LEN);
        // SAFETY: a pretended GPU's memory is the host's, and this is ours alone.
        unsafe { buf.as_ptr().as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), LEN) };
        buf.seal(LEN)
    }
}

#[test]
fn a_chunk_that_does_not_fit_into_the_bounce_buffers_is_refused_by_name() {
    let rig = Rig::new();
    let len = 7 << 20;
    let buf = rig.device.pool.reserve_sealed(len);
    let item =
        PutItem { key: key(1), layout: Layout::opaque(len as u64).unwrap(), digest: PutDigest::None, buf };
    let (answers, sink) = collect();
    let deadline = rig.cx.timer.now() + Duration::from_secs(30);
    let request = Put { items: vec![item], deadline, affinity: Affinity::default() };
    rig.runtime.block_on(rig.checked.put(request, sink));
    let e = answers.lock().pop().unwrap().unwrap_err();
    assert!(e.to_string().contains("gds_buffer_size"), "{e}");
}

trait ReserveSealed {
    fn reserve_sealed(&self, len: usize) -> ReadBuf;
}

impl ReserveSealed for kvstrata_mem::Pool {
    fn reserve_sealed(&self, len: usize) -> ReadBuf {
        self.reserve(len, 4096).unwrap().seal(len)
    }
}

#[test]
fn a_chunk_of_a_file_in_memory_goes_through_a_few_pieces_again_and_again() {
    let len = (9 << 20) + 123;
    let rig = Rig::of(tempfile::tempdir_in("/dev/shm").unwrap(), len, 16);
    let host = Slab::new(vec![HeapRegion::new(10 << 20).unwrap()]).unwrap().pool("host", 10 << 20);
    let mut buf = host.reserve(len, 4096).unwrap();
    buf.write_at(0, &payload_of(&key(1), len)).unwrap();
    assert_eq!(rig.put(1, buf.seal(len)).unwrap(), Stored::Written);
    // One that fails in the middle leaves nothing.
    rig.pretend.fail_in.store(6, Relaxed);
    let to = rig.device.pool.reserve(len, 4096).unwrap();
    let failed = rig.get_into(1, to);
    assert!(matches!(&failed, Answer::Failed(e, Some(_)) if e.kind() == ErrorKind::Io), "{failed:?}");
    drop(failed);
    rig.pretend.fail_in.store(u64::MAX, Relaxed);
    assert_eq!(rig.device.pool.usage().buffers, 0);
    // A copy that is not done when its piece is filled again would bring a later piece's bytes.
    assert_eq!(rig.put(2, rig.chunk(2).seal(len)).unwrap(), Stored::Written);
    for n in [1, 2] {
        let Answer::Loaded(loaded) = rig.get(n) else { panic!("it was stored") };
        assert!(loaded.verified);
        assert!(rig.device.bytes(&loaded.buf).unwrap() == payload_of(&key(n), len));
    }
}

#[test]
fn the_digest_of_host_memory_is_made_when_the_objects_turn_comes() {
    let rig = Rig::new();
    let host = Slab::new(vec![HeapRegion::new(1 << 20).unwrap()]).unwrap().pool("host", 1 << 20);
    let mut buf = host.reserve(LEN, 4096).unwrap();
    buf.as_mut_slice().unwrap().fill(0x11);
    let (at, buf) = (buf.as_ptr(), buf.seal(LEN));
    // All threads are taken until the bytes have changed, as an engine must not do: it shows when they are looked at.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let threads = common::config(rig.dir.path()).threads();
    let busy = Arc::new(std::sync::Barrier::new(threads + 1));
    for _ in 0..threads {
        let (busy, wait) = (Arc::clone(&busy), Arc::clone(&wait));
        let held = move || {
            busy.wait();
            let _ = wait.lock().unwrap().recv();
        };
        // One is for loads alone.
        assert!(rig.gds.threads().spawn(true, Box::new(held)).is_ok());
    }
    busy.wait();
    let deadline = rig.cx.timer.now() + Duration::from_secs(30);
    let (answers, sink) = collect();
    let request = Put { items: vec![rig.item(1, buf)], deadline, affinity: Affinity::default() };
    rig.runtime.block_on(async {
        let store = rig.checked.put(request, sink);
        tokio::pin!(store);
        // It has done all that it does on the caller's task when it waits.
        assert!(std::future::poll_fn(|cx| Poll::Ready(store.as_mut().poll(cx).is_pending())).await);
        // SAFETY: the buffer is held by the request, and whoever would look at it has not begun.
        unsafe { at.as_ptr().copy_from_nonoverlapping(payload_of(&key(1), LEN).as_ptr(), LEN) };
        drop(go);
        store.await;
    });
    assert_eq!(answers.lock().pop().unwrap().unwrap(), Stored::Written);
    let answer = rig.get_into(1, host.reserve(LEN, 4096).unwrap());
    let Answer::Loaded(loaded) = answer else { panic!("its digest is of other bytes: {answer:?}") };
    assert!(loaded.verified);
    let mut got = vec![0; LEN];
    loaded.buf.read_at(0, &mut got).unwrap();
    assert!(got == payload_of(&key(1), LEN));
    // The same once more: the digest that is made then says that it is there.
    drop(loaded);
    let mut again = host.reserve(LEN, 4096).unwrap();
    again.write_at(0, &payload_of(&key(1), LEN)).unwrap();
    assert_eq!(rig.put(1, again.seal(LEN)).unwrap(), Stored::Present);
    assert_eq!(host.usage().buffers, 0);
}

// --- how it opens ---------------------------------------------------------------------------------------------------

fn open_with(dir: &Path, config: GdsConfig, prober: Prober) -> Result<GdsStore> {
    let runtime = runtime();
    let cx = Context::tokio(runtime.handle().clone());
    let gpus = Ok(Pretend::new() as Arc<dyn Gpus>);
    let config = GdsConfig { gds_path: dir.join("kv"), gds_buffer_size: 8, ..config };
    let context = common::context(os_disk(&config)?, cx, gpus);
    GdsStore::open(&config, kvstrata_l2_gds::GdsContext { prober, ..context })
}

fn program(dir: &Path, script: &str) -> Prober {
    let file = dir.join("probe.sh");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
    Prober { program: Some(file), args: vec![], search: Search::default(), limit: Duration::from_millis(300) }
}

#[test]
fn without_cuda_it_says_what_is_missing_or_takes_host_memory() {
    let (runtime, dir) = (runtime(), dir());
    let cx = Context::tokio(runtime.handle().clone());
    let none = || Err(Error::new(ErrorKind::Unavailable, "open the CUDA driver", "there is no libcuda"));
    let config = common::config(dir.path());
    let e = open(&config, cx.clone(), none()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().contains("no libcuda") && e.to_string().contains("allow_host"), "{e}");
    assert!(!dir.path().join("kv").exists(), "nothing was made");
    let gds = open(&GdsConfig { allow_host: true, ..config }, cx, none()).unwrap();
    assert!(gds.ways().is_empty());
    let kinds = gds.adapter().store.desc().kinds;
    assert!(!kinds.device && kinds.private);
}

#[test]
fn a_probe_that_does_not_come_back_is_no_reason_not_to_open() {
    let dir = dir();
    let gds = open_with(
        dir.path(),
        GdsConfig::new(""),
        program(dir.path(), "echo stage opening the driver; while :; do :; done"),
    );
    let choice = gds.unwrap().ways()[&0].clone();
    assert_eq!(choice.way, Way::Bounce);
    assert!(choice.why.contains("did not come back from opening the driver"), "{choice}");
}

#[test]
fn a_way_that_is_asked_for_and_does_not_work_is_unavailable() {
    for way in [GdsWay::Direct, GdsWay::Compat] {
        let dir = dir();
        let config = GdsConfig { gds_way: way, ..GdsConfig::new("") };
        let e = open_with(dir.path(), config, program(dir.path(), "echo no nvidia-fs is not loaded"))
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unavailable);
        assert!(e.to_string().contains("nvidia-fs is not loaded"), "{e}");
    }
}

#[test]
fn what_the_probe_proves_and_this_process_cannot_open_is_not_used() {
    let dir = dir();
    let missing = dir.path().join("libcufile.so.0");
    let mut prober = program(dir.path(), "echo ok it is proved");
    prober.search.explicit = Some(missing);
    let gds = open_with(dir.path(), GdsConfig::new(""), prober).unwrap();
    let choice = &gds.ways()[&0];
    assert_eq!(choice.way, Way::Bounce);
    assert!(choice.why.contains("libcufile"), "{choice}");
}

#[test]
fn file_systems_in_memory_are_not_probed() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let prober = program(dir.path(), "touch \"$(dirname \"$0\")/asked\"; echo no");
    let gds = open_with(dir.path(), GdsConfig::new(""), prober).unwrap();
    let choice = &gds.ways()[&0];
    assert_eq!(choice.way, Way::Bounce);
    assert!(choice.why.starts_with("tmpfs"), "{choice}");
    assert!(!dir.path().join("asked").exists());
}

#[test]
fn the_probe_says_why_there_is_no_cuda() {
    // The program itself, on whatever machine this is: it ends, and says one line that counts.
    let dir = dir();
    let Prober { program: Some(program), .. } = common::prober(None) else {
        panic!("it was built with the tests")
    };
    let out = std::process::Command::new(program)
        .args([dir.path().join("x").as_os_str(), "7000".as_ref(), "direct".as_ref()])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.lines().last().unwrap().starts_with("no "), "there is no GPU 7000: {said}");
    assert!(!dir.path().join("x").exists());
}
