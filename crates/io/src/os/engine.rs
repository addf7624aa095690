//! The engine of the operating system's files.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;

use super::uring::Uring;
use super::{OsFile, OsOptions};
use crate::pool::ThreadPool;
use crate::whole::{Fill, Spill};
use crate::{CompletionSink, EngineStats, IoBuf, IoEngine, IoOp, Job, Rejected, Support};

/// What moves payload bytes between files and buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineKind {
    /// A ring for files that bypass the page cache, where the kernel allows one, and threads for the rest: what lies in the
    /// page cache is copied by whoever asks, and one thread of a ring would do that for all.
    #[default]
    Auto,
    /// A ring for all files, where the kernel allows one; else threads.
    IoUring,
    /// Threads.
    Threads,
}

/// A ring, where there is one, and threads that make blocking calls and do all other blocking work.
#[derive(Debug)]
pub struct OsEngine {
    threads: ThreadPool<OsFile>,
    ring: Option<Uring>,
    io_uring: Support,
    kind: EngineKind,
}

impl OsEngine {
    pub(super) fn new(options: OsOptions) -> Result<Self> {
        let OsOptions { engine: kind, threads, depth, memory, clock, thread_name, .. } = options;
        if !(1..=4096).contains(&depth) {
            return Err(Error::new(ErrorKind::InvalidInput, "a ring has 1 to 4096 transfers under way"));
        }
        let threads = ThreadPool::new(&thread_name, threads, Box::new(transfer))?;
        let (ring, io_uring) = match kind {
            EngineKind::Threads => (None, Support::No("threads were asked for".into())),
            EngineKind::Auto | EngineKind::IoUring => match Uring::new(&thread_name, depth, clock) {
                Ok(ring) => (Some(ring), Support::Yes),
                Err(e) => {
                    tracing::info!(error = %e, "io_uring is refused: threads move the bytes instead");
                    (None, Support::No(e.to_string()))
                }
            },
        };
        if let (Some(ring), Some(memory)) = (&ring, memory) {
            memory.watch_regions(ring.region_watch());
        }
        Ok(Self { threads, ring, io_uring, kind })
    }

    /// Whether there is a ring.
    pub fn io_uring(&self) -> &Support {
        &self.io_uring
    }

    /// How many transfers the ring has asked the kernel for: fewer than there were operations where small ones follow each other in a
    /// file, more where long ones were cut up or short ones continued.
    pub fn ring_transfers(&self) -> u64 {
        self.ring.as_ref().map_or(0, Uring::transfers)
    }

    /// How many threads there are beside the ring's.
    pub fn threads(&self) -> usize {
        self.threads.threads()
    }

    /// Waits until nothing waits or runs, at most this long; whether that came about. Meant to follow
    /// [`close`](IoEngine::close).
    pub fn drain(&self, at_most: Duration) -> bool {
        // A job may have submitted something, so the ring is asked last.
        self.threads.drain(at_most) && self.ring.as_ref().is_none_or(|ring| ring.drain(at_most))
    }

    /// Closes the engine, and lets its threads end by themselves instead of being joined when it is dropped.
    pub fn detach(&self) {
        self.threads.detach();
        if let Some(ring) = &self.ring {
            ring.detach();
        }
    }

    fn takes(&self, op: &IoOp<OsFile>) -> bool {
        self.kind == EngineKind::IoUring || op.file.direct
    }
}

fn transfer(op: &mut IoOp<OsFile>) -> Result<usize> {
    match &mut op.buf {
        IoBuf::Read(buf) => op.file.read(op.offset, &mut Fill::buf(buf, op.len)?),
        IoBuf::Write(buf) => op.file.write(op.offset, &Spill::buf(buf, op.len)?).map(|()| op.len),
    }
}

impl IoEngine for OsEngine {
    type File = OsFile;

    fn submit(
        &self,
        ops: Vec<IoOp<OsFile>>,
        sink: Arc<dyn CompletionSink<OsFile>>,
    ) -> std::result::Result<(), Rejected<OsFile>> {
        match &self.ring {
            // A batch goes one way, so that it is taken whole or not at all.
            Some(ring) if ops.iter().all(|op| self.takes(op)) => match ring.submit(ops, &sink) {
                Err(rejected) if ring.broken() => self.threads.submit(rejected.ops, sink),
                taken => taken,
            },
            _ => self.threads.submit(ops, sink),
        }
    }

    fn spawn(&self, urgent: bool, job: Job) -> std::result::Result<(), Job> {
        self.threads.spawn(urgent, job)
    }

    fn close(&self) {
        self.threads.close();
        if let Some(ring) = &self.ring {
            ring.close();
        }
    }

    fn stats(&self) -> EngineStats {
        let a = self.threads.stats();
        let Some(b) = self.ring.as_ref().map(Uring::stats) else { return a };
        EngineStats {
            queued_first: a.queued_first + b.queued_first,
            queued_rest: a.queued_rest + b.queued_rest,
            running: a.running + b.running,
            bytes_in_flight: a.bytes_in_flight + b.bytes_in_flight,
            finished: a.finished + b.finished,
            failed: a.failed + b.failed,
            panics: a.panics + b.panics,
        }
    }
}
