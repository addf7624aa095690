//! What waits for a thread, in two classes, and the carrying out of it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kvstrata_core::panic_text;

use crate::{Completion, CompletionSink, EngineStats, IoOp, Job, Rejected};

/// Of the starts that are made while both classes wait, every n-th goes to the second one.
const SHARE: u32 = 8;

/// Something to do.
pub(crate) enum Task<F> {
    /// A transfer, and who hears of its end.
    Op(IoOp<F>, Arc<dyn CompletionSink<F>>),
    /// A job; whether it is urgent.
    Job(Job, bool),
}

impl<F> Task<F> {
    /// Whether it goes before the rest: reads and urgent jobs.
    pub(crate) fn first(&self) -> bool {
        match self {
            Self::Op(op, _) => op.is_read(),
            Self::Job(_, urgent) => *urgent,
        }
    }
}

/// Whose turn it is: the first class goes first, but every so often what it has overtaken does.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    overtaken: u32,
}

impl Turns {
    /// Whether the second class, if anything of it waits, goes next.
    pub(crate) fn due(&self) -> bool {
        self.overtaken + 1 == SHARE
    }

    /// Something was started; whether it was of the first class, and whether something of the second one could have been.
    pub(crate) fn started(&mut self, first: bool, rest: bool) {
        self.overtaken = if first && rest { (self.overtaken + 1).min(SHARE - 1) } else { 0 };
    }
}

/// Two queues. The first one goes first, but never starves the other.
pub(crate) struct Queues<F> {
    pub(crate) first: VecDeque<Task<F>>,
    pub(crate) rest: VecDeque<Task<F>>,
    turns: Turns,
    pub(crate) closed: bool,
    /// Tasks being carried out.
    pub(crate) running: usize,
    /// Those of the second class among them.
    pub(crate) running_rest: usize,
}

impl<F> Queues<F> {
    pub(crate) fn new() -> Self {
        Self {
            first: VecDeque::new(),
            rest: VecDeque::new(),
            turns: Turns::default(),
            closed: false,
            running: 0,
            running_rest: 0,
        }
    }

    pub(crate) fn push(&mut self, task: Task<F>) {
        if task.first() { self.first.push_back(task) } else { self.rest.push_back(task) }
    }

    /// Queues a submission, unless closed.
    pub(crate) fn submit(
        &mut self,
        ops: Vec<IoOp<F>>,
        sink: &Arc<dyn CompletionSink<F>>,
    ) -> Result<(), Rejected<F>> {
        if self.closed {
            return Err(Rejected { ops, why: io::Error::other("the engine is shutting down") });
        }
        for op in ops {
            self.push(Task::Op(op, Arc::clone(sink)));
        }
        Ok(())
    }

    /// Queues a job, unless closed.
    pub(crate) fn spawn(&mut self, urgent: bool, job: Job) -> Result<(), Job> {
        if self.closed {
            return Err(job);
        }
        self.push(Task::Job(job, urgent));
        Ok(())
    }

    /// The next task to start, and counts it as running. With `rest` off nothing of the second class starts now. `pick`
    /// chooses among so many tasks of one class.
    pub(crate) fn pop(&mut self, rest: bool, pick: impl FnOnce(usize) -> usize) -> Option<Task<F>> {
        let rest = rest && !self.rest.is_empty();
        let first = !self.first.is_empty();
        let from = match (first, rest) {
            (false, false) => return None,
            (true, true) if self.turns.due() => &mut self.rest,
            (true, _) => &mut self.first,
            (false, true) => &mut self.rest,
        };
        let task = from.remove(pick(from.len())).expect("picked inside the queue");
        self.running += 1;
        self.turns.started(task.first(), rest);
        self.running_rest += usize::from(!task.first());
        Some(task)
    }

    /// A task that [`Self::pop`] gave has ended.
    pub(crate) fn ended(&mut self, first: bool) {
        self.running -= 1;
        self.running_rest -= usize::from(!first);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// What was counted, and what waits and runs.
    pub(crate) fn stats(&self, counts: &Counts) -> EngineStats {
        EngineStats {
            queued_first: self.first.len(),
            queued_rest: self.rest.len(),
            running: self.running,
            ..counts.stats()
        }
    }
}

/// What has happened, counted outside every lock.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    finished: AtomicU64,
    failed: AtomicU64,
    panics: AtomicU64,
}

impl Counts {
    /// The bytes of these operations belong to the engine now.
    pub(crate) fn took<F>(&self, ops: &[IoOp<F>]) {
        self.bytes.fetch_add(ops.iter().map(|op| op.len as u64).sum(), Relaxed);
    }

    /// They do not after all.
    pub(crate) fn refused<F>(&self, ops: &[IoOp<F>]) {
        self.bytes.fetch_sub(ops.iter().map(|op| op.len as u64).sum(), Relaxed);
    }

    /// All but what a queue knows.
    pub(crate) fn stats(&self) -> EngineStats {
        EngineStats {
            queued_first: 0,
            queued_rest: 0,
            running: 0,
            bytes_in_flight: self.bytes.load(Relaxed),
            finished: self.finished.load(Relaxed),
            failed: self.failed.load(Relaxed),
            panics: self.panics.load(Relaxed),
        }
    }

    /// Carries a task out: its operation completes exactly once whatever panics. `transfer` may put an operation off by
    /// answering `None`; the task is then handed back.
    pub(crate) fn carry_out<F: 'static>(
        &self,
        task: Task<F>,
        transfer: impl FnOnce(&mut IoOp<F>) -> Option<io::Result<usize>>,
    ) -> Option<Task<F>> {
        match task {
            Task::Job(job, _) => self.guard(job),
            Task::Op(mut op, sink) => {
                let mut result = Some(Err(io::Error::other("a transfer panicked")));
                self.guard(|| result = transfer(&mut op));
                let Some(result) = result else { return Some(Task::Op(op, sink)) };
                self.complete(op, sink, result);
                return None;
            }
        }
        self.finished.fetch_add(1, Relaxed);
        None
    }

    /// An operation has ended, and its submitter hears of it.
    pub(crate) fn complete<F: 'static>(
        &self,
        op: IoOp<F>,
        sink: Arc<dyn CompletionSink<F>>,
        result: io::Result<usize>,
    ) {
        self.failed.fetch_add(u64::from(result.is_err()), Relaxed);
        self.bytes.fetch_sub(op.len as u64, Relaxed);
        // The sink's last handle may go here too: its destructor is inside the guard.
        self.guard(move || sink.complete(Completion { op, result }));
        self.finished.fetch_add(1, Relaxed);
    }

    fn guard(&self, work: impl FnOnce()) {
        if let Err(what) = catch_unwind(AssertUnwindSafe(work)) {
            self.panics.fetch_add(1, Relaxed);
            tracing::error!(
                panic = panic_text(&*what).unwrap_or("unknown"),
                "work of an I/O engine panicked"
            );
            // A payload may panic when it is dropped; it is not worth a thread.
            std::mem::forget(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(urgent: bool) -> Task<()> {
        Task::Job(Box::new(|| ()), urgent)
    }

    #[test]
    fn every_eighth_start_goes_to_those_overtaken() {
        let mut q = Queues::new();
        for i in 0..40 {
            q.push(job(i % 2 == 0));
        }
        let order: Vec<bool> = std::iter::from_fn(|| q.pop(true, |_| 0)).map(|t| t.first()).collect();
        let rest: Vec<usize> = (0..order.len()).filter(|i| !order[*i]).collect();
        assert_eq!(rest[..2], [7, 15], "{order:?}");
        assert_eq!(order.iter().filter(|f| **f).count(), 20);
    }

    #[test]
    fn what_waits_alone_is_overtaken_by_nothing() {
        let mut q = Queues::new();
        for _ in 0..20 {
            q.push(job(true));
            assert!(q.pop(true, |_| 0).unwrap().first());
        }
        q.push(job(true));
        q.push(job(false));
        assert!(q.pop(true, |_| 0).unwrap().first(), "starts made while nothing else waited do not count");
        assert!(q.pop(false, |_| 0).is_none());
        assert!(!q.pop(true, |_| 0).unwrap().first());
        assert_eq!((q.running, q.running_rest), (22, 1));
    }
}
