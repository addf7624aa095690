//! The obligations of `IoEngine`.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::{Arc, mpsc};
use std::thread;

use kvstrata_io::*;
use kvstrata_mem::Allocate;

use crate::rig::*;

pub(crate) fn engine_1_dropping_finishes_what_was_submitted<D: Disk>(rig: Rig<D>) {
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

pub(crate) fn engine_2_each_operation_completes_exactly_once<D: Disk>(rig: &Rig<D>) {
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

pub(crate) fn engine_3_transfers_are_whole<D: Disk>(rig: &Rig<D>) {
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
pub(crate) fn engine_4_loads_go_first<D: Disk>(rig: Rig<D>) {
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
pub(crate) fn engine_4_loads_go_first_in_a_ring(rig: Rig<OsDisk>) {
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
pub(crate) fn engine_1_it_is_left_at_any_time<D: Disk>(rig: Rig<D>) {
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
pub(crate) fn registered_files_let_go(rig: &Rig<OsDisk>) {
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

pub(crate) fn engine_5_a_panic_is_contained_and_counted<D: Disk>(rig: &Rig<D>) {
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
    // Jobs and transfers may be on different threads: the job's panic may be counted a moment after the read is answered.
    let counted = (0..1000).any(|_| {
        let both = engine.stats().panics == 2;
        if !both {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        both
    });
    let stats = engine.stats();
    assert!(counted, "{stats:?}");
    assert_eq!((stats.panics, stats.failed, stats.bytes_in_flight), (2, 0, 0));
    drop(done);
    assert!(rig.pool.usage().used <= 4096, "the broken sink kept no buffer");
}

pub(crate) fn engine_6_closing_finishes_what_was_accepted<D: Disk>(rig: &Rig<D>) {
    let file = Arc::new(rig.put("f", b"bytes"));
    let (sink, done) = channel();
    rig.submit((0..10).map(|i| rig.read_op(i, &file, 0, 5)).collect(), &sink);
    rig.disk.engine().close();
    assert!(rig.disk.engine().spawn(true, Box::new(|| ())).is_err());
    (rig.run)(&rig.disk);
    assert!((0..10).all(|_| soon(&done).result.is_ok()));
}
