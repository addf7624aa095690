//! Work for the threads of a disk's engine.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_io::{Disk, IoEngine};
use kvstrata_l2::{Driver, Fail, MemoryKinds, Sink, closed};
use kvstrata_mem::RegionKind;
use parking_lot::Mutex;

/// The most threads that make sense for one directory; more is taken for a mistake.
pub(crate) const MOST_WORKERS: usize = 1024;

/// Runs all work on up to `threads` threads of the engine; false, and the work dropped, if that takes nothing any more.
pub(crate) fn spread<D: Disk, W: Send + 'static>(
    disk: &D,
    urgent: bool,
    threads: usize,
    work: VecDeque<W>,
    run: impl Fn(W) + Send + Sync + 'static,
) -> bool {
    let jobs = work.len().min(threads);
    let shared = Arc::new((Mutex::new(work), run));
    for _ in 0..jobs {
        let mine = Arc::clone(&shared);
        let drain = move || {
            // Not in the loop's condition: the lock would be held while the work is done.
            while let Some(work) = { mine.0.lock().pop_front() } {
                (mine.1)(work);
            }
        };
        if disk.engine().spawn(urgent, Box::new(drain)).is_err() {
            shared.0.lock().clear();
            return false;
        }
    }
    true
}

/// One answer of [`ask`].
struct Outcome<T>(Result<T>);

impl<T: Send + 'static> Fail for Outcome<T> {
    fn failed(error: Error) -> Self {
        Self(Err(error))
    }
}

/// Asks `run` about each item on the engine's threads. Every answer is there by the deadline, an error if need be.
pub(crate) async fn ask<D: Disk, W: Send + 'static, T: Send + 'static>(
    driver: &Driver,
    (disk, urgent, threads): (&D, bool, usize),
    (operation, deadline): (&'static str, Instant),
    items: Vec<W>,
    run: impl Fn(W) -> Result<T> + Send + Sync + 'static,
) -> Vec<Result<T>> {
    let n = items.len();
    let pass = match driver.enter(operation, deadline) {
        Ok(pass) => pass,
        Err(e) => return (0..n).map(|_| Err(e.clone())).collect(),
    };
    let answers: Arc<Mutex<Vec<Option<Result<T>>>>> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
    let to = Arc::clone(&answers);
    let sink = Sink::new(
        n,
        Arc::new(move |position: usize, answer: Outcome<T>| to.lock()[position] = Some(answer.0)),
    );
    let work = items.into_iter().enumerate().map(|(at, item)| (at, item, sink.clone(), pass.clone()));
    let taken = spread(disk, urgent, threads, work.collect(), move |(at, item, sink, pass)| {
        if sink.is_open(at) {
            sink.answer(at, Outcome(run(item)));
        }
        drop((sink, pass));
    });
    if !taken {
        sink.answer_rest(|_| Outcome(Err(closed(operation))));
    }
    let answered = sink.answered();
    driver.watch(pass, operation, deadline, sink, answered).await;
    let lost = || Error::new(ErrorKind::Internal, operation, "the answer got lost");
    answers.lock().iter_mut().map(|a| a.take().unwrap_or_else(|| Err(lost()))).collect()
}

/// Refuses a buffer that does not fit its layout, or that no file can be read into.
pub(crate) fn check_buf(operation: &'static str, len: usize, bytes: u64, kind: RegionKind) -> Result<()> {
    if len as u64 != bytes {
        return Err(Error::invalid(operation, "the buffer is not as long as the layout says")
            .with("buffer", len)
            .with("layout", bytes));
    }
    if !MemoryKinds::HOST.takes(kind) {
        let what = "this adapter moves bytes from and to host memory only";
        return Err(Error::new(ErrorKind::Unsupported, operation, what));
    }
    Ok(())
}
