//! What goes wrong with a ring. Its thread panics: what it had not begun is answered, what the kernel has is never freed, and
//! threads go on. The kernel refuses to register memory: the ring goes on without.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kvstrata_core::{Clock, Instant, SystemClock};
use kvstrata_io::{
    Completion, CompletionSink, Disk, EngineKind, IoBuf, IoEngine, IoOp, Open, OsDisk, OsFile, OsOptions,
    Support,
};
use kvstrata_mem::{Allocate, HeapRegion, Pool, Slab};
use libtest_mimic::{Arguments, Completion as Ended, Failed, Trial};

const LEN: usize = 64 << 10;
const OPS: u64 = 24;
/// Transfers that the ring has under way at once.
const DEPTH: u32 = 4;

/// A clock that breaks when it is asked for the time once too often.
#[derive(Debug)]
struct Breaks {
    clock: SystemClock,
    left: AtomicI64,
}

impl Clock for Breaks {
    fn now(&self) -> Instant {
        assert!(self.left.fetch_sub(1, Ordering::Relaxed) > 0, "a clock that breaks, on purpose");
        self.clock.now()
    }
}

struct Tell(Sender<Completion<OsFile>>);

impl CompletionSink<OsFile> for Tell {
    fn complete(&self, completion: Completion<OsFile>) {
        // Nobody listens once the test has ended.
        drop(self.0.send(completion));
    }
}

fn sink() -> (Arc<Tell>, Receiver<Completion<OsFile>>) {
    let (tell, told) = channel();
    (Arc::new(Tell(tell)), told)
}

fn read(pool: &Arc<Pool>, file: &Arc<OsFile>, tag: u64) -> IoOp<OsFile> {
    let buf = IoBuf::Read(pool.reserve(LEN, 4096).expect("room"));
    IoOp { tag, file: Arc::clone(file), offset: tag % 4 * LEN as u64, len: LEN, buf }
}

/// The clock breaks when it is asked for the `at`th time from the submission on. Operations are neighbours by `row`. How many
/// of them the kernel kept.
fn breaks(at: i64, row: u64) -> u64 {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let clock = Arc::new(Breaks { clock: SystemClock::start(), left: AtomicI64::new(i64::MAX) });
    let options = OsOptions {
        engine: EngineKind::IoUring,
        depth: DEPTH,
        threads: 2,
        clock: Arc::clone(&clock) as _,
        ..OsOptions::default()
    };
    let disk = OsDisk::new(options).expect("a ring");
    let region = HeapRegion::new(2 * OPS as usize * LEN).expect("memory");
    let pool = Slab::new(vec![region]).expect("a region").pool("ops", 2 * OPS * LEN as u64);
    let path = dir.path().join("f");
    let file = disk.open(&path, Open { write: true, create_new: true, ..Open::default() }).expect("a file");
    disk.write_all_at(&file, 0, &[7; 4 * LEN]).expect("room");
    let file = Arc::new(file);

    let (to, told) = sink();
    clock.left.store(at - 1, Ordering::Relaxed);
    let op = |tag| {
        let place = if row == 1 { 3 - tag % 4 } else { tag % row };
        IoOp { offset: place * LEN as u64, ..read(&pool, &file, tag) }
    };
    let ops = (0..OPS).map(op).collect();
    assert!(disk.engine().submit(ops, to).is_ok(), "the ring works still");

    // Sooner or later the threads take over. Until then an operation may come too late for the ring.
    let mut reads = 0;
    loop {
        reads += 1;
        assert!(reads < 10_000, "nobody takes over");
        let (to, told) = sink();
        if let Err(rejected) = disk.engine().submit(vec![read(&pool, &file, OPS)], to) {
            panic!("{} operations are refused", rejected.ops.len());
        }
        match told.recv_timeout(Duration::from_secs(20)) {
            Ok(Completion { result: Ok(n), op }) => {
                let IoBuf::Read(mut buf) = op.buf else { panic!("the buffer that was given") };
                assert_eq!(n, LEN);
                assert!(buf.as_mut_slice().expect("host memory").iter().all(|byte| *byte == 7));
                if clock.left.load(Ordering::Relaxed) < 0 {
                    break;
                }
            }
            // The ring was on its way down.
            Ok(Completion { result: Err(_), .. }) => {}
            // One that the kernel has is not answered.
            Err(_) => panic!("an operation behind the panic is not answered"),
        }
    }
    drop((disk, file));
    let (mut right, mut failed) = (0, 0);
    let ended: Vec<_> = told.try_iter().collect();
    for Completion { result, .. } in &ended {
        match result {
            Ok(n) => right += u64::from(*n == LEN),
            Err(e) => failed += u64::from(e.to_string().contains("the ring failed")),
        }
    }
    assert_eq!(right + failed, ended.len() as u64, "{ended:?}");
    let kept = OPS - ended.len() as u64;
    assert!(
        kept <= u64::from(DEPTH) * row,
        "{kept} are kept of {DEPTH} rows of {row} that could be under way"
    );
    drop(ended);
    assert_eq!(pool.usage().buffers, kept, "what the kernel may write to is not freed, and all else is");
    kept
}

fn a_panic_loses_what_is_under_way_and_nothing_else() -> Result<Ended, Failed> {
    let probe = OsDisk::new(OsOptions { engine: EngineKind::IoUring, threads: 1, ..OsOptions::default() })?;
    if let Support::No(why) = probe.engine().io_uring() {
        return Ok(Ended::ignored_with(why.clone()));
    }
    drop(probe);
    // The time is asked for when something has ended, `DEPTH` transfers at most. So often it breaks before the read behind them
    // is under way, which would not be answered then.
    let transfers = |row: u64| OPS as i64 / row as i64;
    for row in [1, 4] {
        let times = (transfers(row) / i64::from(DEPTH) - 1).max(1);
        let kept: Vec<u64> = (1..=times).map(|at| breaks(at, row)).collect();
        assert!(kept.iter().any(|kept| *kept > 0), "some were under way: {kept:?}");
    }
    Ok(Ended::Completed)
}

/// Headers and payloads, as a store of segments has them.
const OBJECTS: usize = 12;
const HEADER: usize = 4096;
const OBJECT: usize = HEADER + LEN;

fn neighbours_go_together_and_answer_for_themselves() -> Result<Ended, Failed> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let region = HeapRegion::new(4 << 20)?;
    let pool = Slab::new(vec![region])?.pool("ops", 4 << 20);
    let disk = OsDisk::new(OsOptions { engine: EngineKind::IoUring, threads: 1, ..OsOptions::default() })?;
    if let Support::No(why) = disk.engine().io_uring() {
        return Ok(Ended::ignored_with(why.clone()));
    }
    for direct in [false, true] {
        let path = dir.path().join(if direct { "direct" } else { "cached" });
        let how = Open { write: true, create_new: true, direct, ..Open::default() };
        let file = match disk.open(&path, how) {
            Err(e) if direct => return Ok(Ended::ignored_with(format!("no direct files: {e}"))),
            file => Arc::new(file?),
        };
        // Where a part lies, and how long it is.
        let place = |part: usize| {
            let len = if part.is_multiple_of(2) { HEADER } else { LEN };
            (part / 2 * OBJECT + part % 2 * HEADER, len)
        };
        let write = |file: &Arc<OsFile>, part: usize| {
            let (offset, len) = place(part);
            let mut buf = pool.reserve(len, 4096).expect("room");
            buf.as_mut_slice().expect("host memory").fill(part as u8 + 1);
            let (file, buf) = (Arc::clone(file), IoBuf::Write(buf.seal(len)));
            IoOp { tag: part as u64, file, offset: offset as u64, len, buf }
        };
        let reads = || {
            (0..2 * OBJECTS).map(|part| {
                let (offset, len) = place(part);
                let buf = IoBuf::Read(pool.reserve(len, 4096).expect("room"));
                IoOp { tag: part as u64, file: Arc::clone(&file), offset: offset as u64, len, buf }
            })
        };
        let transfers = |ops: Vec<IoOp<OsFile>>| {
            let (n, before) = (ops.len(), disk.engine().ring_transfers());
            let (to, told) = sink();
            assert!(disk.engine().submit(ops, to).is_ok());
            let mut ended: Vec<_> = told.iter().take(n).collect();
            ended.sort_by_key(|done| done.op.tag);
            (disk.engine().ring_transfers() - before, ended)
        };

        let (n, written) = transfers((0..2 * OBJECTS).map(|part| write(&file, part)).collect());
        assert_eq!(n, 1, "headers and payloads of all objects");
        for done in written {
            assert_eq!(done.result.expect("a write"), done.op.len);
        }
        let is = |done: Completion<OsFile>, len: usize| {
            assert_eq!(done.result.expect("a read"), len, "part {}", done.op.tag);
            let (wanted, IoBuf::Read(mut buf)) = (done.op.tag as u8 + 1, done.op.buf) else {
                panic!("a read")
            };
            assert!(buf.as_mut_slice().expect("host memory")[..len].iter().all(|byte| *byte == wanted));
        };
        let (n, read) = transfers(reads().collect());
        assert_eq!(n, 1, "headers and payloads of all objects");
        read.into_iter().enumerate().for_each(|(part, done)| is(done, place(part).1));

        // The file ends in the payload of the seventh.
        let end = 6 * OBJECT + HEADER + 10_000;
        disk.set_len(&file, end as u64)?;
        let (_, read) = transfers(reads().collect());
        for (part, done) in read.into_iter().enumerate() {
            let (offset, len) = place(part);
            is(done, end.saturating_sub(offset).min(len));
        }

        let file = Arc::new(disk.open(&path, Open { direct, ..Open::default() })?);
        let (_, refused) = transfers((0..2 * OBJECTS).map(|part| write(&file, part)).collect());
        for done in refused {
            assert_eq!(done.result.expect_err("the file may only be read").raw_os_error(), Some(libc::EBADF));
        }
    }
    Ok(Ended::Completed)
}

/// What starts this program as its own child, which may lock next to no memory.
const CHILD: &str = "--may-lock-no-memory";
/// What the child ends with where the kernel refuses it nothing.
const NOT_REFUSED: u8 = 77;
const NOBODY: u32 = 65534;

fn memory_that_cannot_be_registered_is_used_without() -> Result<Ended, Failed> {
    let mut child = Command::new(std::env::current_exe()?);
    child.arg(CHILD);
    // The limit does not hold for root.
    if std::fs::metadata("/proc/self")?.uid() == 0 {
        child.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    let ended = match child.output() {
        Ok(ended) => ended,
        Err(e) => return Ok(Ended::ignored_with(format!("another user cannot start this program: {e}"))),
    };
    match ended.status.code() {
        Some(0) => Ok(Ended::Completed),
        Some(code) if code == i32::from(NOT_REFUSED) => {
            Ok(Ended::ignored_with("there is no ring, or nothing is refused by the limit of locked memory"))
        }
        _ => Err(String::from_utf8_lossy(&ended.stderr).into_owned().into()),
    }
}

/// Writes and reads through a ring that may not register the memory.
fn without_locked_memory() -> ExitCode {
    const ALL: usize = 16 << 20;
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: the structure is there for as long as the call takes.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0, "a lower limit");
    let region = HeapRegion::new(ALL).expect("memory");
    let pool = Slab::new(vec![region]).expect("a region").pool("ops", ALL as u64);
    let Ok(ring) = io_uring::IoUring::new(2) else { return NOT_REFUSED.into() };
    {
        let all = pool.reserve(ALL, 4096).expect("an empty pool");
        let all = libc::iovec { iov_base: all.as_ptr().as_ptr().cast(), iov_len: ALL };
        // SAFETY: no transfer is asked for, and the memory lives longer than the ring.
        if unsafe { ring.submitter().register_buffers(&[all]) }.is_ok() {
            return NOT_REFUSED.into();
        }
    }
    drop(ring);
    let memory = Some(Arc::clone(&pool) as Arc<dyn Allocate>);
    let options = OsOptions { engine: EngineKind::IoUring, threads: 1, memory, ..OsOptions::default() };
    let disk = OsDisk::new(options).expect("a ring");
    assert_eq!(*disk.engine().io_uring(), Support::Yes);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("f");
    let file = disk.open(&path, Open { write: true, create_new: true, ..Open::default() }).expect("a file");
    let file = Arc::new(file);
    // More often than it takes until the ring would register.
    for round in 0..4 {
        let (to, told) = sink();
        let write = |tag: u64| {
            let mut buf = pool.reserve(LEN, 4096).expect("room");
            buf.as_mut_slice().expect("host memory").fill(tag as u8 ^ round);
            let (offset, buf) = (tag * LEN as u64, IoBuf::Write(buf.seal(LEN)));
            IoOp { tag, file: Arc::clone(&file), offset, len: LEN, buf }
        };
        assert!(disk.engine().submit((0..OPS).map(write).collect(), to).is_ok());
        for done in told.iter().take(OPS as usize) {
            assert_eq!(done.result.expect("a write"), LEN);
        }
        let (to, told) = sink();
        let read = |tag: u64| IoOp { offset: tag * LEN as u64, ..read(&pool, &file, tag) };
        assert!(disk.engine().submit((0..OPS).map(read).collect(), to).is_ok());
        for done in told.iter().take(OPS as usize) {
            assert_eq!(done.result.expect("a read"), LEN);
            let IoBuf::Read(mut buf) = done.op.buf else { panic!("the buffer that was given") };
            let wanted = done.op.tag as u8 ^ round;
            assert!(buf.as_mut_slice().expect("host memory").iter().all(|byte| *byte == wanted));
        }
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|arg| arg == CHILD) {
        return without_locked_memory();
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.ends_with("on purpose")) {
            usual(panic);
        }
    }));
    let tests = vec![
        Trial::ignorable_test(
            "neighbours_go_together_and_answer_for_themselves",
            neighbours_go_together_and_answer_for_themselves,
        ),
        Trial::ignorable_test(
            "a_panic_loses_what_is_under_way_and_nothing_else",
            a_panic_loses_what_is_under_way_and_nothing_else,
        ),
        Trial::ignorable_test(
            "memory_that_cannot_be_registered_is_used_without",
            memory_that_cannot_be_registered_is_used_without,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
