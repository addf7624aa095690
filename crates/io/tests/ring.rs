//! A ring whose thread panics: what it had not begun is answered, what the kernel has is never freed, and threads go on.

use std::process::ExitCode;
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

/// The clock breaks when it is asked for the `at`th time from the submission on. How many operations the kernel kept.
fn breaks(at: i64) -> u64 {
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
    let ops = (0..OPS).map(|tag| read(&pool, &file, tag)).collect();
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
    assert!(kept <= u64::from(DEPTH), "{kept} are kept of {DEPTH} that could be under way");
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
    let kept: Vec<u64> = (1..=12).map(breaks).collect();
    assert!(kept.iter().any(|kept| *kept > 0), "some were under way: {kept:?}");
    Ok(Ended::Completed)
}

fn main() -> ExitCode {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.ends_with("on purpose")) {
            usual(panic);
        }
    }));
    let test = Trial::ignorable_test(
        "a_panic_loses_what_is_under_way_and_nothing_else",
        a_panic_loses_what_is_under_way_and_nothing_else,
    );
    libtest_mimic::run(&Arguments::from_args(), vec![test]).exit_code()
}
