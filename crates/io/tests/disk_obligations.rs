//! The obligations of `Disk` and `IoEngine`, by their numbers, on every disk there is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use kvstrata_io::*;
use kvstrata_mem::{Allocate, HeapRegion, Pool, ReadBuf, Slab};
use libtest_mimic::{Arguments, Trial};

/// A disk under test, and a directory on it.
struct Rig<D: Disk> {
    disk: D,
    root: PathBuf,
    /// Carries out what the engine has queued, where it does not do so by itself.
    run: fn(&D),
    pool: Arc<Pool>,
    _dir: Option<tempfile::TempDir>,
}

fn memory() -> Arc<Pool> {
    Slab::new(vec![HeapRegion::new(16 << 20).unwrap()]).unwrap().pool("test", 16 << 20)
}

fn os(options: OsOptions) -> Rig<OsDisk> {
    let dir = tempfile::tempdir().unwrap();
    let pool = memory();
    let memory = Some(Arc::clone(&pool) as Arc<dyn Allocate>);
    // One thread, so that there is an order to speak of.
    let disk = OsDisk::new(OsOptions { threads: 1, memory, ..options }).unwrap();
    Rig { disk, root: dir.path().to_owned(), run: |_| (), pool, _dir: Some(dir) }
}

fn threads() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::Threads, ..OsOptions::default() })
}

fn links() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::Threads, rename_noreplace: false, ..OsOptions::default() })
}

fn ring() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::IoUring, ..OsOptions::default() })
}

/// A ring that carries out one transfer after the other.
fn narrow_ring() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::IoUring, depth: 1, ..OsOptions::default() })
}

fn sim(mode: SimMode) -> Rig<SimDisk> {
    let disk = SimDisk::new(SimOptions { mode, ..SimOptions::default() });
    // Every transfer comes in small pieces, and is interrupted now and then.
    disk.faults().add(Rule::new(Fault::Errno(libc::EINTR)).on(&[OpKind::Read, OpKind::Write]).rate(0.2, 1));
    disk.faults().add(Rule::new(Fault::Short(65_000)).on(&[OpKind::Read, OpKind::Write]).rate(0.5, 2));
    let run = |disk: &SimDisk| {
        disk.engine().run();
    };
    Rig { disk, root: "/".into(), run, pool: memory(), _dir: None }
}

const NEW: Open = Open { write: true, create_new: true, direct: false, no_atime: false };
const READ: Open = Open { write: false, create_new: false, direct: false, no_atime: false };

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed) as u8).collect()
}

impl<D: Disk> Rig<D> {
    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new file with these bytes.
    fn put(&self, name: &str, bytes: &[u8]) -> D::File {
        let file = self.disk.open(&self.at(name), NEW).unwrap();
        self.disk.write_all_at(&file, 0, bytes).unwrap();
        file
    }

    /// All bytes of a file.
    fn get(&self, name: &str) -> Vec<u8> {
        let file = self.disk.open(&self.at(name), READ).unwrap();
        let mut bytes = vec![0; self.disk.file_metadata(&file).unwrap().len as usize];
        self.disk.read_exact_at(&file, 0, &mut bytes).unwrap();
        bytes
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = self.disk.list(&self.root).unwrap();
        entries.into_iter().map(|e| e.name.into_string().unwrap()).collect()
    }

    fn sealed(&self, bytes: &[u8]) -> ReadBuf {
        let mut buf = self.pool.reserve(bytes.len(), 4096).unwrap();
        buf.write_at(0, bytes).unwrap();
        buf.seal(bytes.len())
    }

    fn read_op(&self, tag: u64, file: &Arc<D::File>, offset: u64, len: usize) -> IoOp<D::File> {
        let buf = IoBuf::Read(self.pool.reserve(len.max(1), 4096).unwrap());
        IoOp { tag, file: Arc::clone(file), offset, len, buf }
    }

    fn write_op(&self, tag: u64, file: &Arc<D::File>, offset: u64, bytes: &[u8]) -> IoOp<D::File> {
        let buf = IoBuf::Write(self.sealed(bytes));
        IoOp { tag, file: Arc::clone(file), offset, len: bytes.len(), buf }
    }

    fn submit(&self, ops: Vec<IoOp<D::File>>, sink: &Sent<D::File>) {
        self.disk.engine().submit(ops, Arc::new(Sent(sink.0.clone()))).expect("the engine is open");
    }
}

/// Sends completions to the test.
struct Sent<F>(mpsc::Sender<Completion<F>>);

impl<F: Send + Sync + 'static> CompletionSink<F> for Sent<F> {
    fn complete(&self, completion: Completion<F>) {
        self.0.send(completion).expect("the test listens");
    }
}

fn channel<F>() -> (Sent<F>, mpsc::Receiver<Completion<F>>) {
    let (send, receive) = mpsc::channel();
    (Sent(send), receive)
}

fn soon<T>(from: &mpsc::Receiver<T>) -> T {
    from.recv_timeout(Duration::from_secs(60)).expect("an answer")
}

// Disk --------------------------------------------------------------------------------------------------------------

fn disk_1_rename_new_never_replaces<D: Disk>(rig: &Rig<D>) {
    rig.put("a", b"first");
    rig.put("b", b"second");
    let e = rig.disk.rename_new(&rig.at("a"), &rig.at("b")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EEXIST));
    assert_eq!((rig.get("a"), rig.get("b")), (b"first".to_vec(), b"second".to_vec()));
    rig.disk.rename_new(&rig.at("a"), &rig.at("c")).unwrap();
    assert_eq!(rig.get("c"), b"first");
    assert_eq!(rig.names(), ["b", "c"].map(String::from).into());
    rig.disk.rename(&rig.at("c"), &rig.at("b")).unwrap();
    assert_eq!(rig.get("b"), b"first");

    // Of many that publish under one name at once, exactly one does.
    for i in 0..8 {
        rig.put(&format!("w{i}"), &[i]);
    }
    let won: Vec<u8> = thread::scope(|s| {
        let publish = |i: u8| rig.disk.rename_new(&rig.at(&format!("w{i}")), &rig.at("published"));
        let all: Vec<_> = (0..8u8).map(|i| (i, s.spawn(move || publish(i)))).collect();
        all.into_iter().filter_map(|(i, t)| t.join().unwrap().is_ok().then_some(i)).collect()
    });
    assert_eq!(won.len(), 1);
    assert_eq!(rig.get("published"), won);
    assert_eq!(rig.names().len(), 9, "the others kept their names");
}

fn disk_2_all_bytes_or_an_error<D: Disk>(rig: &Rig<D>) {
    let bytes = pattern(1, 300_001);
    let file = rig.put("f", &bytes);
    assert!(rig.get("f") == bytes);
    let mut tail = [0; 10];
    rig.disk.read_exact_at(&file, 299_991, &mut tail).unwrap();
    assert_eq!(tail, bytes[299_991..]);
    let e = rig.disk.read_exact_at(&file, 299_992, &mut tail).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::UnexpectedEof);

    let mut buf = rig.pool.reserve(300_001, 4096).unwrap();
    let capacity = buf.capacity();
    assert_eq!(rig.disk.read_buf_at(&file, 0, &mut buf, capacity).unwrap(), 300_001, "more room than bytes");
    assert!(buf.as_mut_slice().unwrap() == bytes);
    assert_eq!(rig.disk.read_buf_at(&file, 400_000, &mut buf, 10).unwrap(), 0, "behind the end");
    let e = rig.disk.read_buf_at(&file, 0, &mut buf, capacity + 1).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    let e = rig.disk.read_buf_at(&file, u64::MAX - 5, &mut buf, 10).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EINVAL));

    let buf = rig.sealed(&pattern(2, 5_000));
    rig.disk.write_buf_at(&file, 400_000, &buf, 5_000).unwrap();
    let e = rig.disk.write_buf_at(&file, 0, &buf, 8_193).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    let now = rig.get("f");
    assert!(now[..300_001] == bytes && now[400_000..] == pattern(2, 5_000));
    assert!(now[300_001..400_000].iter().all(|b| *b == 0), "the hole between is zero");

    let closed = rig.disk.open(&rig.at("f"), READ).unwrap();
    let e = rig.disk.write_all_at(&closed, 0, b"x").unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EBADF), "opened for reading");
}

/// That the bytes are there after a crash only a simulated disk can show, and `crash.rs` does.
fn disk_3_syncing_works<D: Disk>(rig: &Rig<D>) {
    let file = rig.put("f", b"durable");
    rig.disk.sync_file(&file).unwrap();
    rig.disk.sync_dir(&rig.root).unwrap();
    assert_eq!(rig.get("f"), b"durable");
    let e = rig.disk.sync_dir(&rig.at("f")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ENOTDIR));
    let e = rig.disk.sync_dir(&rig.at("none")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

fn disk_4_list_misses_nothing_that_stays<D: Disk>(rig: &Rig<D>) {
    let stay: BTreeSet<String> = (0..300).map(|i| format!("stay{i}")).collect();
    for name in &stay {
        rig.put(name, b"");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            for i in (0..50).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                rig.put(&format!("go{i}"), b"");
                rig.disk.unlink(&rig.at(&format!("go{i}"))).unwrap();
            }
        });
        for _ in 0..30 {
            let names = rig.names();
            assert!(names.is_superset(&stay), "{:?}", stay.difference(&names).collect::<Vec<_>>());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn files_and_directories_answer_as_documented<D: Disk>(rig: &Rig<D>) {
    let disk = &rig.disk;
    let code = |r: std::io::Result<D::File>| r.unwrap_err().raw_os_error().unwrap();
    disk.create_dir_all(&rig.at("x/y/z")).unwrap();
    disk.create_dir_all(&rig.at("x/y")).unwrap();
    let file = rig.put("x/y/f", b"12345");
    assert_eq!(code(disk.open(&rig.at("x/y/f"), NEW)), libc::EEXIST);
    assert_eq!(code(disk.open(&rig.at("x/f"), READ)), libc::ENOENT);
    assert_eq!(code(disk.open(&rig.at("g"), Open { create_new: true, ..READ })), libc::EINVAL);
    assert_eq!(disk.metadata(&rig.at("x/y")).unwrap().kind, FileKind::Dir);
    let meta = disk.metadata(&rig.at("x/y/f")).unwrap();
    assert_eq!((meta.len, meta.kind), (5, FileKind::File));
    assert_eq!(disk.file_metadata(&file).unwrap(), meta);
    let e = disk.remove_dir(&rig.at("x/y")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DirectoryNotEmpty);
    disk.remove_dir(&rig.at("x/y/z")).unwrap();

    disk.allocate(&file, 1 << 20).unwrap();
    let meta = disk.file_metadata(&file).unwrap();
    assert!(meta.len == 5 && meta.allocated >= 1 << 20, "{meta:?}");
    disk.set_len(&file, 3).unwrap();
    assert_eq!(rig.get("x/y/f"), b"123");
    disk.unlink(&rig.at("x/y/f")).unwrap();
    disk.write_all_at(&file, 3, b"4").unwrap();
    assert_eq!(disk.file_metadata(&file).unwrap().len, 4, "it lives as long as its handle");

    let space = disk.space(&rig.root).unwrap();
    assert!(space.available <= space.total && space.block.is_power_of_two(), "{space:?}");
    assert!(space.fs.name().is_some(), "{space:?}");
}

fn a_lock_is_held_until_the_file_is_dropped<D: Disk>(rig: &Rig<D>) {
    let first = rig.put("lock", b"");
    let second = rig.disk.open(&rig.at("lock"), Open { write: true, ..READ }).unwrap();
    rig.disk.try_lock(&first).unwrap();
    rig.disk.try_lock(&first).unwrap();
    assert_eq!(rig.disk.try_lock(&second).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    rig.disk.try_lock(&second).unwrap();
}

fn a_shared_lock_keeps_out_exclusive_ones_only<D: Disk>(rig: &Rig<D>) {
    let first = rig.put("lock", b"");
    let open = || rig.disk.open(&rig.at("lock"), Open { write: true, ..READ }).unwrap();
    let (second, third) = (open(), open());
    rig.disk.try_lock_shared(&first).unwrap();
    rig.disk.try_lock_shared(&second).unwrap();
    assert_eq!(rig.disk.try_lock(&third).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    assert_eq!(rig.disk.try_lock(&third).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(second);
    rig.disk.try_lock(&third).unwrap();
    assert_eq!(rig.disk.try_lock_shared(&open()).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(third);
    rig.disk.try_lock_shared(&open()).unwrap();
}

fn direct_transfers_read_and_write_the_same_bytes<D: Disk>(rig: &Rig<D>) {
    let direct = Open { direct: true, ..NEW };
    let file = rig.disk.open(&rig.at("f"), direct).unwrap();
    let bytes = pattern(3, 300_000);
    // The tail of the last block goes along; the length is set right afterwards.
    let buf = rig.sealed(&bytes);
    rig.disk.write_buf_at(&file, 4096, &buf, buf.capacity()).unwrap();
    rig.disk.set_len(&file, 4096 + 300_000).unwrap();
    assert!(rig.get("f")[4096..] == bytes);
    let mut back = rig.pool.reserve(300_000, 4096).unwrap();
    let capacity = back.capacity();
    assert_eq!(rig.disk.read_buf_at(&file, 4096, &mut back, capacity).unwrap(), 300_000, "up to the end");
    assert!(back.as_mut_slice().unwrap() == bytes);
    assert_eq!(
        rig.disk.read_buf_at(&file, 1, &mut back, 4096).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
}

fn the_probe_leaves_nothing_behind<D: Disk>(rig: &Rig<D>) {
    let found = probe(&rig.disk, &rig.root).unwrap();
    assert_eq!(found.rename_new, Support::Yes);
    assert_eq!(found.lock, Support::Yes);
    assert_eq!(rig.names(), BTreeSet::new());
    let e = probe(&rig.disk, &rig.at("none")).unwrap_err();
    assert_eq!(e.kind(), kvstrata_core::ErrorKind::NotFound);
}

// Engine ------------------------------------------------------------------------------------------------------------

fn engine_1_dropping_finishes_what_was_submitted<D: Disk>(rig: Rig<D>) {
    let bytes = pattern(4, 100_000);
    let file = Arc::new(rig.put("f", &bytes));
    let (sink, done) = channel();
    let ops = (0..20).map(|i| match i % 2 {
        0 => rig.read_op(i, &file, 0, 100_000),
        _ => rig.write_op(i, &file, 200_000, &bytes),
    });
    rig.submit(ops.collect(), &sink);
    let Rig { disk, pool, _dir, .. } = rig;
    drop((disk, sink, file));
    let done: Vec<_> = done.try_iter().collect();
    assert_eq!(done.len(), 20, "all completed before the drop returned");
    assert!(done.iter().all(|c| c.result.as_ref().is_ok_and(|n| *n == 100_000)));
    assert!(pool.usage().used > 0);
    drop(done);
    assert_eq!(pool.usage().used, 0, "every buffer came back");
}

fn engine_2_each_operation_completes_exactly_once<D: Disk>(rig: &Rig<D>) {
    let file = Arc::new(rig.put("f", &pattern(5, 10_000)));
    let closed = Arc::new(rig.disk.open(&rig.at("f"), READ).unwrap());
    let (sink, done) = channel();
    let mut oversized = rig.read_op(2, &file, 0, 4096);
    oversized.len = 5_000;
    let ops = vec![
        rig.read_op(0, &file, 0, 10_000),
        rig.write_op(1, &closed, 0, b"not open for writing"),
        oversized,
        rig.read_op(3, &file, u64::MAX, 1),
    ];
    rig.submit(ops, &sink);
    rig.submit((4..100).map(|i| rig.read_op(i, &file, 9_999, 1)).collect(), &sink);
    (rig.run)(&rig.disk);
    let mut all: Vec<_> = (0..100).map(|_| soon(&done)).collect();
    assert!(done.try_recv().is_err());
    all.sort_by_key(|c| c.op.tag);
    assert!(all.iter().enumerate().all(|(i, c)| c.op.tag == i as u64));
    let codes: Vec<_> = all.iter().map(|c| c.result.as_ref().map_err(|e| e.kind()).copied()).collect();
    let bad_file = std::io::Error::from_raw_os_error(libc::EBADF).kind();
    assert_eq!(codes[..3], [Ok(10_000), Err(bad_file), Err(ErrorKind::InvalidInput)]);
    assert_eq!(codes[3], Err(ErrorKind::InvalidInput));
    assert!(codes[4..].iter().all(|c| *c == Ok(1)));

    rig.disk.engine().close();
    let ops = vec![rig.read_op(7, &file, 0, 1), rig.write_op(8, &file, 0, b"late")];
    let Err(rejected) = rig.disk.engine().submit(ops, Arc::new(sink)) else { panic!("it is closed") };
    assert_eq!(rejected.ops.iter().map(|op| op.tag).collect::<Vec<_>>(), [7, 8]);
    assert!(done.recv().is_err(), "nobody holds the sink any more, and nothing came");
    assert_eq!(rig.disk.engine().stats().bytes_in_flight, 0);
    assert_eq!(rig.get("f"), pattern(5, 10_000));
}

fn engine_3_transfers_are_whole<D: Disk>(rig: &Rig<D>) {
    let bytes = pattern(6, 3 << 20);
    let file = Arc::new(rig.put("f", b""));
    let (sink, done) = channel();
    rig.submit(vec![rig.write_op(0, &file, 12_345, &bytes)], &sink);
    (rig.run)(&rig.disk);
    assert_eq!(soon(&done).result.unwrap(), 3 << 20);
    rig.submit(vec![rig.read_op(1, &file, 12_345, (3 << 20) + 5)], &sink);
    (rig.run)(&rig.disk);
    let Completion { op, result } = soon(&done);
    assert_eq!(result.unwrap(), 3 << 20, "fewer only at the end of the file");
    let IoBuf::Read(mut buf) = op.buf else { panic!("the buffer that was given") };
    assert!(buf.as_mut_slice().unwrap()[..3 << 20] == bytes);
}

/// Submits from a job: a single thread, or none, cannot start any of it before that ends.
fn engine_4_loads_go_first<D: Disk>(rig: Rig<D>) {
    let rig = Arc::new(rig);
    let file = Arc::new(rig.put("f", &[0; 100]));
    let (order, started) = mpsc::channel();
    let inner = Arc::clone(&rig);
    let all = move || {
        struct Order(mpsc::Sender<char>);
        impl<F> CompletionSink<F> for Order {
            fn complete(&self, done: Completion<F>) {
                self.0
                    .send(if matches!(done.op.buf, IoBuf::Read(_)) { 'L' } else { 's' })
                    .expect("the test listens");
            }
        }
        let engine = inner.disk.engine();
        let sink = Arc::new(Order(order.clone()));
        let ops = (0..10).map(|i| match i % 2 {
            0 => inner.write_op(i, &file, 0, b"x"),
            _ => inner.read_op(i, &file, 0, 1),
        });
        engine.submit(ops.collect(), sink).expect("the engine is open");
        for (urgent, letter) in [(false, 's'), (true, 'L'), (true, 'L'), (true, 'L')] {
            let order = order.clone();
            let job = Box::new(move || order.send(letter).expect("the test listens"));
            engine.spawn(urgent, job).ok().expect("the engine is open");
        }
        // The thread that runs this must not be the one that drops, and so ends, the engine.
        drop((inner, order));
    };
    rig.disk.engine().spawn(false, Box::new(all)).ok().expect("the engine is open");
    (rig.run)(&rig.disk);
    let mut got = String::new();
    for _ in 0..14 {
        write!(got, "{}", soon(&started)).unwrap();
    }
    assert_eq!(got, "LLLLLLLsLsssss", "every eighth start goes to what was overtaken");
}

/// Operations of a ring and jobs of the threads beside it start independently of each other.
fn engine_4_loads_go_first_in_a_ring(rig: Rig<OsDisk>) {
    let file = Arc::new(rig.put("f", &[0; 100]));
    let (sink, done) = channel();
    let ops = (0..14).map(|i| match i {
        0..4 => rig.write_op(i, &file, 0, b"x"),
        _ => rig.read_op(i, &file, 0, 1),
    });
    rig.submit(ops.collect(), &sink);
    let got: String = (0..14).map(|_| if soon(&done).op.is_read() { 'L' } else { 's' }).collect();
    assert_eq!(got, "LLLLLLLsLLLsss", "every eighth start goes to what was overtaken");
}

/// What is dropped, closed and registered while transfers are under way, and memory that nobody touches afterwards.
fn engine_1_it_is_left_at_any_time<D: Disk>(rig: Rig<D>) {
    const LEN: usize = 3 << 19;
    let bytes = pattern(7, LEN);
    let file = Arc::new(rig.put("f", &bytes));
    for round in 0..40 {
        let (sink, done) = channel();
        // More than the uses after which memory and files are registered.
        rig.submit((0..3).map(|i| rig.read_op(i, &file, 0, LEN)).collect(), &sink);
        rig.submit(vec![rig.write_op(3, &file, (round + 2) * LEN as u64, &bytes)], &sink);
        for _ in 0..4 {
            let Completion { op, result } = soon(&done);
            assert_eq!(result.unwrap(), LEN);
            let IoBuf::Read(mut buf) = op.buf else { continue };
            assert!(buf.as_mut_slice().unwrap() == bytes);
            // The buffer is the test's again: what it writes now stays.
            buf.as_mut_slice().unwrap().fill(0xA5);
            thread::yield_now();
            assert!(buf.as_mut_slice().unwrap().iter().all(|b| *b == 0xA5), "touched after the completion");
        }
    }
    assert!(rig.get("f")[41 * LEN..] == bytes);
    assert_eq!(rig.pool.usage().used, 0);
    // A sink that nobody listens to any more, and a disk that goes at once.
    let (sink, done) = channel();
    rig.submit((0..6).map(|i| rig.read_op(i, &file, 0, LEN)).collect(), &sink);
    drop((sink, file));
    let Rig { disk, pool, .. } = rig;
    drop(disk);
    assert_eq!(done.iter().count(), 6, "the drop finished them all");
    assert_eq!(pool.usage().used, 0);
}

/// A file that a ring knows is closed, and its lock gone, when it is dropped.
fn registered_files_let_go(rig: &Rig<OsDisk>) {
    for round in 0..3 {
        let name = format!("f{round}");
        let file = Arc::new(rig.put(&name, &pattern(8, 4096)));
        rig.disk.try_lock(&file).unwrap();
        let (sink, done) = channel();
        for i in 0..40 {
            rig.submit(vec![rig.read_op(i, &file, 0, 4096)], &sink);
            drop(soon(&done));
        }
        let again = rig.disk.open(&rig.at(&name), READ).unwrap();
        assert_eq!(rig.disk.try_lock(&again).unwrap_err().kind(), ErrorKind::WouldBlock);
        rig.disk.unlink(&rig.at(&name)).unwrap();
        drop(file);
        rig.disk.try_lock(&again).unwrap();
    }
}

fn engine_5_a_panic_is_contained_and_counted<D: Disk>(rig: &Rig<D>) {
    struct Breaks;
    impl<F> CompletionSink<F> for Breaks {
        fn complete(&self, _: Completion<F>) {
            panic!("a sink that breaks, on purpose");
        }
    }
    let file = Arc::new(rig.put("f", b"bytes"));
    let engine = rig.disk.engine();
    engine
        .spawn(true, Box::new(|| panic!("a job that breaks, on purpose")))
        .ok()
        .expect("the engine is open");
    engine.submit(vec![rig.read_op(0, &file, 0, 5)], Arc::new(Breaks)).expect("the engine is open");
    let (sink, done) = channel();
    rig.submit(vec![rig.read_op(1, &file, 0, 5)], &sink);
    (rig.run)(&rig.disk);
    assert_eq!(soon(&done).result.unwrap(), 5);
    let stats = engine.stats();
    assert_eq!((stats.panics, stats.failed, stats.bytes_in_flight), (2, 0, 0));
    drop(done);
    assert!(rig.pool.usage().used <= 4096, "the broken sink kept no buffer");
}

fn engine_6_closing_finishes_what_was_accepted<D: Disk>(rig: &Rig<D>) {
    let file = Arc::new(rig.put("f", b"bytes"));
    let (sink, done) = channel();
    rig.submit((0..10).map(|i| rig.read_op(i, &file, 0, 5)).collect(), &sink);
    rig.disk.engine().close();
    assert!(rig.disk.engine().spawn(true, Box::new(|| ())).is_err());
    (rig.run)(&rig.disk);
    assert!((0..10).all(|_| soon(&done).result.is_ok()));
}

/// One test on one disk, ignored if there is a reason.
fn add<D: Disk>(
    all: &mut Vec<Trial>,
    name: &str,
    rig: fn() -> Rig<D>,
    ignored: Option<&str>,
    test: impl FnOnce(Rig<D>) + Send + 'static,
) {
    let name = ignored.map_or(name.to_owned(), |why| format!("{name} (not here: {why})"));
    let trial = Trial::test(name, move || {
        test(rig());
        Ok(())
    });
    all.push(trial.with_ignored_flag(ignored.is_some()));
}

/// What holds on every disk. `missing` says why there is none of this kind, `no_direct` why it has no direct transfers.
fn trials<D: Disk>(
    all: &mut Vec<Trial>,
    name: &str,
    rig: fn() -> Rig<D>,
    missing: Option<&str>,
    no_direct: Option<&str>,
) {
    let mut one = |test: &str, ignored: Option<&str>, f: Box<dyn FnOnce(Rig<D>) + Send>| {
        add(all, &format!("{name}::{test}"), rig, missing.or(ignored), f);
    };
    macro_rules! shared {
        ($($test:ident)*) => { $(one(stringify!($test), None, Box::new(|rig| $test(&rig)));)* };
    }
    shared! {
        disk_1_rename_new_never_replaces disk_2_all_bytes_or_an_error disk_3_syncing_works
        disk_4_list_misses_nothing_that_stays files_and_directories_answer_as_documented
        a_lock_is_held_until_the_file_is_dropped a_shared_lock_keeps_out_exclusive_ones_only the_probe_leaves_nothing_behind
        engine_2_each_operation_completes_exactly_once engine_3_transfers_are_whole
        engine_5_a_panic_is_contained_and_counted engine_6_closing_finishes_what_was_accepted
    }
    one(
        "direct_transfers_read_and_write_the_same_bytes",
        no_direct,
        Box::new(|rig| direct_transfers_read_and_write_the_same_bytes(&rig)),
    );
    one(
        "engine_1_dropping_finishes_what_was_submitted",
        None,
        Box::new(engine_1_dropping_finishes_what_was_submitted),
    );
}

/// Panics that a test makes on purpose would fill the output with backtraces.
fn expect_panics_on_purpose() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.ends_with("on purpose")) {
            usual(panic);
        }
    }));
}

fn main() {
    expect_panics_on_purpose();
    let probed = ring();
    let no_ring = probed.disk.engine().io_uring().reason();
    let found = probe(&probed.disk, Path::new(&probed.root)).expect("the temporary directory works");
    let no_direct = found.direct_read.reason().or(found.direct_write.reason());
    let mut all = Vec::new();
    trials(&mut all, "os", threads, None, no_direct);
    trials(&mut all, "os_link", links, None, no_direct);
    trials(&mut all, "os_ring", ring, no_ring, no_direct);
    trials(&mut all, "sim_inline", || sim(SimMode::Inline), None, None);
    trials(&mut all, "sim_stepped", || sim(SimMode::Stepped { seed: 7 }), None, None);
    trials(&mut all, "sim_threads", || sim(SimMode::Threads(1)), None, None);
    add(&mut all, "os::engine_4_loads_go_first", threads, None, engine_4_loads_go_first);
    add(
        &mut all,
        "os_ring::engine_4_loads_go_first",
        narrow_ring,
        no_ring,
        engine_4_loads_go_first_in_a_ring,
    );
    let stepped = || sim(SimMode::Stepped { seed: 7 });
    add(
        &mut all,
        "sim_inline::engine_4_loads_go_first",
        || sim(SimMode::Inline),
        None,
        engine_4_loads_go_first,
    );
    add(&mut all, "sim_stepped::engine_4_loads_go_first", stepped, None, engine_4_loads_go_first);
    add(
        &mut all,
        "sim_threads::engine_4_loads_go_first",
        || sim(SimMode::Threads(1)),
        None,
        engine_4_loads_go_first,
    );
    add(&mut all, "os::engine_1_it_is_left_at_any_time", threads, None, engine_1_it_is_left_at_any_time);
    add(&mut all, "os_ring::engine_1_it_is_left_at_any_time", ring, no_ring, engine_1_it_is_left_at_any_time);
    add(&mut all, "os_ring::registered_files_let_go", ring, no_ring, |rig| registered_files_let_go(&rig));
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}
