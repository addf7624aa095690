//! Many keys' transfers, given to the engine at once: for stores whose objects have places in files that are open already.
//! What needs more than that (room has to be made, a file opened, a header checked) goes the way of a job.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use kvstrata_disk::{Claim, Created, Opened, Pin, Placed, Store};
use kvstrata_io::{Completion, CompletionSink, Disk, IoBuf, IoEngine, IoOp};
use kvstrata_l2::{Answer, GetSink, Job, Loaded, PutSink, Stored, closed};
use kvstrata_mem::{ReadBuf, WriteBuf};
use parking_lot::{Mutex, MutexGuard};

use crate::groups::Groups;
use crate::jobs::{Loading, Storing, fault_answer};

/// An object whose header and payload are on their way. The fields are dropped in this order.
struct Writing<D: Disk> {
    created: Created<D>,
    claim: Claim<D>,
    storing: Storing<D>,
    /// Transfers that have not completed.
    left: u8,
    failed: Option<io::Error>,
}

/// The writes of one submission; tags are twice the index here, plus one for the payload.
struct Writes<D: Disk> {
    all: Mutex<OnTheWay<D>>,
    /// What is written next.
    groups: Option<Arc<Groups<D>>>,
}

struct OnTheWay<D: Disk> {
    writing: Vec<Option<Writing<D>>>,
    /// Objects that have not been written yet.
    left: usize,
}

/// Objects that can be written at once, collected until they are [submitted](Self::submit).
pub(crate) struct Outgoing<D: Disk> {
    ops: Vec<IoOp<D::File>>,
    writing: Vec<Option<Writing<D>>>,
}

fn write_op<D: Disk>(tag: usize, created: &Created<D>, offset: u64, len: u64, buf: ReadBuf) -> IoOp<D::File> {
    IoOp {
        tag: tag as u64,
        file: Arc::clone(&created.file),
        offset,
        len: len as usize,
        buf: IoBuf::Write(buf),
    }
}

impl<D: Disk> Outgoing<D> {
    pub(crate) fn new() -> Self {
        Self { ops: Vec::new(), writing: Vec::new() }
    }

    /// Takes an object whose place is reserved, if its header can be written without waiting; else hands it back.
    #[expect(clippy::result_large_err, reason = "it is handed back, not reported")]
    pub(crate) fn add(
        &mut self,
        mut claim: Claim<D>,
        storing: Storing<D>,
    ) -> Result<(), (Claim<D>, Storing<D>)> {
        let Some(Placed { created, header, header_at }) = claim.try_create() else {
            return Err((claim, storing));
        };
        let at = self.writing.len();
        let bytes = claim.transfer(&created);
        self.ops.push(write_op(2 * at, &created, header_at, header.len() as u64, header));
        self.ops.push(write_op(2 * at + 1, &created, created.offset, bytes, storing.buf.clone()));
        self.writing.push(Some(Writing { created, claim, storing, left: 2, failed: None }));
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writing.is_empty()
    }

    /// Has them written. `groups` hears when all of them are.
    pub(crate) fn submit(self, store: &Store<D>, groups: Option<Arc<Groups<D>>>) {
        if self.is_empty() {
            return;
        }
        let all = Mutex::new(OnTheWay { left: self.writing.len(), writing: self.writing });
        let writes = Arc::new(Writes { all, groups });
        if let Err(rejected) = store.disk().engine().submit(self.ops, Arc::clone(&writes) as _) {
            drop(rejected.ops);
            for w in std::mem::take(&mut writes.all.lock().writing).into_iter().flatten() {
                let Writing { created, claim, storing, .. } = w;
                drop((created, claim));
                storing.answer(Err(closed("store object")));
            }
            writes.end();
        }
    }
}

impl<D: Disk> Writes<D> {
    fn end(&self) {
        if let Some(groups) = &self.groups {
            groups.spawn();
        }
    }
}

impl<D: Disk> CompletionSink<D::File> for Writes<D> {
    fn complete(&self, completion: Completion<D::File>) {
        let Completion { op, result } = completion;
        let at = op.tag as usize / 2;
        // Before anybody hears of it.
        drop(op);
        let (ended, left) = {
            let mut all = self.all.lock();
            let w = all.writing[at].as_mut().expect("each object ends once");
            w.left -= 1;
            if let Err(e) = result {
                w.failed.get_or_insert(e);
            }
            if w.left > 0 {
                return;
            }
            all.left -= 1;
            (all.writing[at].take().expect("just seen"), all.left)
        };
        // Also if whoever hears of this one panics.
        if left == 0 {
            self.end();
        }
        ended.end();
    }
}

impl<D: Disk> Writing<D> {
    fn end(self) {
        let Self { created, claim, storing, failed, .. } = self;
        if let Some(e) = failed {
            if claim.retry(&created, &e) {
                // Not past the page cache, then.
                drop(created);
                return storing.spawn(claim);
            }
            drop(created);
            let e = claim.failed(e);
            return storing.answer(Err(e));
        }
        let Storing { store, buf, position, done, job, .. } = storing;
        drop(buf);
        publish_then(&store, claim, created, position, done, job);
    }
}

/// Makes a written object appear and answers its key.
fn publish_then<D: Disk>(
    store: &Arc<Store<D>>,
    claim: Claim<D>,
    created: Created<D>,
    position: usize,
    done: PutSink,
    job: Job,
) {
    let store = Arc::clone(store);
    // Nothing that may hang comes after the right to answer is taken: from then on no time-out answers the key. What has
    // timed out by then is taken off again.
    let right = Arc::new(Mutex::new(None));
    let (takes, sink) = (Arc::clone(&right), done.clone());
    let wanted = move || {
        let mut right = takes.lock();
        *right = sink.claim(position);
        right.is_some()
    };
    claim.publish_then(created, wanted, move |published: kvstrata_core::Result<Option<Stored>>| {
        let right = right.lock().take();
        if let Some(stored) = published.transpose() {
            match right {
                Some(right) => right.answer(stored),
                None => drop(done.answer(position, stored)),
            }
        }
        store.snapshot_when_due();
        drop(job);
    });
}

/// An object whose payload is on its way.
struct Reading<D: Disk> {
    opened: Opened<D>,
    pin: Pin<D>,
    position: usize,
    done: GetSink,
    job: Job,
}

/// The reads of one submission; tags are indices.
struct Reads<D: Disk> {
    all: Mutex<Vec<Option<Reading<D>>>>,
    answers: Arc<Answers<D>>,
    /// They are few: whoever completes them answers.
    few: bool,
}

/// Objects that can be read at once, collected until they are [submitted](Self::submit).
pub(crate) struct Incoming<D: Disk> {
    ops: Vec<IoOp<D::File>>,
    reading: Vec<Option<Reading<D>>>,
}

impl<D: Disk> Incoming<D> {
    pub(crate) fn new() -> Self {
        Self { ops: Vec::new(), reading: Vec::new() }
    }

    /// Takes a load whose place is at hand; else hands it back.
    #[expect(clippy::result_large_err, reason = "it is handed back, not reported")]
    pub(crate) fn add(&mut self, mut load: Loading<D>) -> Result<(), Loading<D>> {
        let Some(opened) = load.pin.try_open() else { return Err(load) };
        let Loading { pin, buf, position, done, job, .. } = load;
        let len = pin.transfer(&opened) as usize;
        let (tag, file) = (self.reading.len() as u64, Arc::clone(&opened.file));
        self.ops.push(IoOp { tag, file, offset: opened.offset, len, buf: IoBuf::Read(buf) });
        self.reading.push(Some(Reading { opened, pin, position, done, job }));
        Ok(())
    }

    /// Has them read. What becomes of them is told by at most `threads` of the engine's threads.
    pub(crate) fn submit(self, store: &Arc<Store<D>>, threads: usize) {
        if self.ops.is_empty() {
            return;
        }
        let answers = Arc::new(Answers { store: Arc::clone(store), threads, due: Mutex::default() });
        let few = self.ops.iter().map(|op| op.len).sum::<usize>() <= FEW_BYTES;
        let reads = Arc::new(Reads { all: Mutex::new(self.reading), answers, few });
        if let Err(rejected) = store.disk().engine().submit(self.ops, Arc::clone(&reads) as _) {
            for op in rejected.ops {
                let r = reads.all.lock()[op.tag as usize].take().expect("none has completed");
                let IoBuf::Read(buf) = op.buf else { unreachable!("a load has a buffer to fill") };
                drop((r.opened, r.pin));
                r.done.answer(r.position, Answer::Failed(closed("load object"), Some(buf)));
                drop(r.job);
            }
        }
    }
}

impl<D: Disk> CompletionSink<D::File> for Reads<D> {
    fn complete(&self, completion: Completion<D::File>) {
        let Completion { op, result } = completion;
        let reading = self.all.lock()[op.tag as usize].take().expect("each object ends once");
        let IoBuf::Read(buf) = op.buf else { unreachable!("a load has a buffer to fill") };
        let read = Read { reading, buf, result };
        if self.few { read.answer(&self.answers.store) } else { self.answers.push(read) }
    }
}

/// Whoever is answered may check a digest, which takes longer than the device does. Requests of more than this many bytes are
/// answered by several threads, and the one that completes transfers goes on with those.
const FEW_BYTES: usize = 1 << 20;
/// So many bytes that wait are worth one more thread.
const WORTH_A_THREAD: usize = 512 << 10;

/// Reads that have ended, for the threads that answer them.
struct Answers<D: Disk> {
    store: Arc<Store<D>>,
    threads: usize,
    due: Mutex<Due<D>>,
}

struct Due<D: Disk> {
    reads: VecDeque<Read<D>>,
    /// Of all of them.
    bytes: usize,
    threads: usize,
}

impl<D: Disk> Default for Due<D> {
    fn default() -> Self {
        Self { reads: VecDeque::new(), bytes: 0, threads: 0 }
    }
}

impl<D: Disk> Answers<D> {
    fn push(self: &Arc<Self>, read: Read<D>) {
        let mut due = self.due.lock();
        due.bytes += read.buf.len();
        due.reads.push_back(read);
        self.call(due);
    }

    /// Calls a thread if there are too few.
    fn call(self: &Arc<Self>, mut due: MutexGuard<'_, Due<D>>) {
        if due.threads >= self.threads.min(due.bytes.div_ceil(WORTH_A_THREAD)) {
            return;
        }
        due.threads += 1;
        drop(due);
        let thread = Answering(Arc::clone(self));
        // An engine that is closed takes no jobs, and still ends what it was given.
        if let Err(job) = self.store.disk().engine().spawn(true, Box::new(move || thread.run())) {
            job();
        }
    }
}

/// A thread that answers. Dropped, also by a panic of whoever is answered, it leaves what is left to another one.
struct Answering<D: Disk>(Arc<Answers<D>>);

impl<D: Disk> Answering<D> {
    fn run(self) {
        while let Some(read) = self.next() {
            read.answer(&self.0.store);
        }
    }

    fn next(&self) -> Option<Read<D>> {
        let mut due = self.0.due.lock();
        let read = due.reads.pop_front()?;
        due.bytes -= read.buf.len();
        Some(read)
    }
}

impl<D: Disk> Drop for Answering<D> {
    fn drop(&mut self) {
        let mut due = self.0.due.lock();
        due.threads -= 1;
        self.0.call(due);
    }
}

/// A read that has ended.
struct Read<D: Disk> {
    reading: Reading<D>,
    buf: WriteBuf,
    result: io::Result<usize>,
}

impl<D: Disk> Read<D> {
    fn answer(self, store: &Arc<Store<D>>) {
        let Self { reading: Reading { opened, mut pin, position, done, job }, buf, result } = self;
        let answer = match result {
            Ok(got) => {
                drop(opened);
                match pin.finish(got as u64) {
                    Ok(found) => Answer::Loaded(Loaded::new(buf, found)),
                    Err(fault) => fault_answer(fault, buf),
                }
            }
            Err(e) if pin.retry(&opened, &e) => {
                drop(opened);
                let load = Loading { store: Arc::clone(store), pin, buf, position, done, job };
                return crate::jobs::spawn_loads(store, [load].into(), 1);
            }
            Err(e) => {
                let fault = pin.failed(e);
                // Whoever hears of the failure may want the object out of the way.
                drop(pin);
                fault_answer(fault, buf)
            }
        };
        // If the key has timed out, the buffer ends here.
        done.answer(position, answer);
        drop(job);
    }
}
