//! Moving payload bytes.

use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

use kvstrata_mem::{ReadBuf, WriteBuf};

/// The buffer of an operation; it belongs to the engine until the completion gives it back.
#[derive(Debug)]
pub enum IoBuf {
    /// To be filled from its start.
    Read(WriteBuf),
    /// To be written from its start.
    Write(ReadBuf),
}

/// One transfer between a file and a buffer.
#[derive(Debug)]
pub struct IoOp<F> {
    /// The submitter's own number, returned with the completion.
    pub tag: u64,
    /// The open file.
    pub file: Arc<F>,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes, at most the buffer's capacity.
    pub len: usize,
    /// The buffer, which also says the direction.
    pub buf: IoBuf,
}

impl<F> IoOp<F> {
    /// Whether it is a read.
    pub fn is_read(&self) -> bool {
        matches!(self.buf, IoBuf::Read(_))
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion<F> {
    /// The operation, buffer included.
    pub op: IoOp<F>,
    /// The bytes moved: fewer than asked for only at the end of the file.
    pub result: io::Result<usize>,
}

/// Takes completions, each exactly once, from the engine's own threads. Must not block.
pub trait CompletionSink<F>: Send + Sync + 'static {
    /// An operation is finished: the device will not touch its buffer again.
    fn complete(&self, completion: Completion<F>);
}

/// The engine did not take the operations; here they are.
pub struct Rejected<F> {
    /// All of them: a submission is taken whole or not at all.
    pub ops: Vec<IoOp<F>>,
    /// Why.
    pub why: io::Error,
}

impl<F> Debug for Rejected<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rejected({} operations: {})", self.ops.len(), self.why)
    }
}

/// What an engine has done, and what it has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineStats {
    /// Reads and urgent jobs that wait for a thread.
    pub queued_first: usize,
    /// Writes and other jobs that wait for a thread.
    pub queued_rest: usize,
    /// Operations and jobs that are being carried out.
    pub running: usize,
    /// Payload bytes that belong to the engine now, waiting ones included.
    pub bytes_in_flight: u64,
    /// Operations and jobs that have ended, failed ones too.
    pub finished: u64,
    /// Operations that completed with an error.
    pub failed: u64,
    /// Panics of jobs and sinks.
    pub panics: u64,
}

/// A piece of blocking work for an engine's threads.
pub type Job = Box<dyn FnOnce() + Send>;

/// Moves bytes between files and buffers.
///
/// Obligations:
///
/// 1. **Ownership.** From `submit` to the completion the buffers belong to the engine. Dropping the engine finishes what
///    was submitted first.
/// 2. **Exactly once.** Each accepted operation completes exactly once, failed ones too; a rejected submission hands every
///    operation back and completes none.
/// 3. **Whole transfers.** Short transfers are continued until the end of the file; interrupted ones are repeated.
/// 4. **Loads first.** Where both wait, reads start before writes, and urgent jobs before others; only every eighth start
///    goes to those that were overtaken, so that nothing starves.
/// 5. **A panic in a job or a sink** ends that job, is counted, and leaves the engine working.
/// 6. **Closing.** After `close` everything new is handed back, and everything accepted before still finishes.
pub trait IoEngine: Send + Sync + Debug + 'static {
    /// The files it works on.
    type File: Send + Sync + Debug + 'static;

    /// Gives the operations away. Their completions go to `sink`, in any order.
    ///
    /// # Errors
    /// [`Rejected`] with all operations if the engine is shutting down or the system refused it.
    fn submit(
        &self,
        ops: Vec<IoOp<Self::File>>,
        sink: Arc<dyn CompletionSink<Self::File>>,
    ) -> Result<(), Rejected<Self::File>>;

    /// Runs a piece of blocking work on a thread of the engine; `urgent` work (loads) overtakes the rest.
    ///
    /// # Errors
    /// Hands the job back if the engine is shutting down.
    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job>;

    /// Takes nothing new from now on. Does not wait.
    fn close(&self);

    /// A snapshot of the counters.
    fn stats(&self) -> EngineStats;
}
