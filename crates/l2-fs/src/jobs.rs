//! One key's way through an engine's thread.

use std::collections::VecDeque;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_disk::{Begin, Claim, LoadFault, NewObject, Pin, Store, StoreLayout};
use kvstrata_io::{Disk, IoEngine};
use kvstrata_l2::{Answer, GetSink, Job, Loaded, Miss, PutSink, Stored, closed, digest_of};
use kvstrata_mem::{ReadBuf, WriteBuf};
use parking_lot::Mutex;

use crate::batch::Outgoing;

/// One object on its way to the disk. The fields are dropped in this order: the job counts as ended when the buffer is
/// free.
pub(crate) struct Storing<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    pub(crate) buf: ReadBuf,
    /// Whether the digest is still to be made.
    pub(crate) due: bool,
    pub(crate) position: usize,
    pub(crate) done: PutSink,
    pub(crate) job: Job,
}

impl<D: Disk> Storing<D> {
    pub(crate) fn answer(self, answer: Result<Stored>) {
        let Self { buf, position, done, job, .. } = self;
        drop(buf);
        done.answer(position, answer);
        drop(job);
    }

    /// Goes on from how the store began; what is to be written now is handed back.
    pub(crate) fn go(mut self, mut object: NewObject, begin: Begin<D>) -> Option<(Claim<D>, Self)> {
        match begin {
            // What is there has no digest either, which is not the same as one that is still to be made.
            Begin::Present if self.due => match self.make_digest(&mut object) {
                Ok(()) => {
                    let begin = self.store.begin(std::slice::from_ref(&object)).remove(0);
                    return self.go(object, begin);
                }
                Err(e) => self.answer(Err(e)),
            },
            Begin::Present => self.answer(Ok(Stored::Present)),
            Begin::Refused(e) => self.answer(Err(e)),
            Begin::Claimed(claim) => return Some((claim, self)),
            Begin::Busy => {
                // Somebody writes or removes this key: it is this one's turn after that.
                let store = Arc::clone(&self.store);
                let key = object.key.clone();
                store.hold_then(&key, move |hold| {
                    if !self.done.is_open(self.position) {
                        return;
                    }
                    match self.make_digest(&mut object) {
                        Ok(()) => self.go_held(hold.begin(&object)),
                        Err(e) => {
                            drop(hold);
                            self.answer(Err(e));
                        }
                    }
                });
            }
        }
        None
    }

    fn make_digest(&mut self, object: &mut NewObject) -> Result<()> {
        if std::mem::take(&mut self.due) {
            object.digest = Some(digest_of(&object.key, object.layout, &self.buf)?);
        }
        Ok(())
    }

    /// The object's turn has come: its digest is made. Hands it back unless there is nothing to write after that.
    pub(crate) fn with_digest(mut self, mut claim: Claim<D>) -> Option<(Claim<D>, Self)> {
        if std::mem::take(&mut self.due) {
            let object = claim.object();
            match digest_of(&object.key, object.layout, &self.buf) {
                Ok(digest) if claim.set_digest(digest) => {
                    drop(claim);
                    self.answer(Ok(Stored::Present));
                    return None;
                }
                Ok(_) => {}
                Err(e) => {
                    let e = claim.give_up(e);
                    self.answer(Err(e));
                    return None;
                }
            }
        }
        Some((claim, self))
    }

    /// As [`Self::go`], on whichever thread passed the key on.
    fn go_held(self, begin: Begin<D>) {
        match begin {
            Begin::Claimed(claim) => self.spawn(claim),
            Begin::Present => self.answer(Ok(Stored::Present)),
            Begin::Refused(e) => self.answer(Err(e)),
            Begin::Busy => unreachable!("the key is held"),
        }
    }

    pub(crate) fn spawn(self, claim: Claim<D>) {
        let store = Arc::clone(&self.store);
        let (position, done) = (self.position, self.done.clone());
        // In this order: what was claimed is given back before the job counts as ended, also when it is never run.
        let work = (claim, self);
        let job = move || {
            let (claim, storing) = work;
            storing.run(claim);
        };
        if store.disk().engine().spawn(false, Box::new(job)).is_err() {
            done.answer(position, Err(closed("store object")));
        }
    }

    pub(crate) fn run(self, claim: Claim<D>) {
        if !self.done.is_open(self.position) {
            return;
        }
        let Some((mut claim, mut this)) = self.with_digest(claim) else { return };
        if claim.is_there() {
            drop(claim);
            return this.answer(Ok(Stored::Present));
        }
        if this.store.layout() == StoreLayout::Slab {
            if let Err(e) = claim.reserve() {
                let e = claim.give_up(e);
                return this.answer(Err(e));
            }
            let (store, mut alone) = (Arc::clone(&this.store), Outgoing::new());
            match alone.add(claim, this) {
                Ok(()) => return alone.submit(&store, None),
                Err((back, storing)) => (claim, this) = (back, storing),
            }
        }
        let created = match this.write(&mut claim) {
            Ok(created) => created,
            Err(Failure::Reported(e)) => {
                let e = claim.give_up(e);
                return this.answer(Err(e));
            }
            Err(Failure::Write(e)) => {
                let e = claim.failed(e);
                return this.answer(Err(e));
            }
        };
        let Self { store, buf, position, done, job, .. } = this;
        drop(buf);
        // Nothing that may hang comes after the right to answer is taken: from then on no time-out answers the key. What
        // has timed out by then is taken off again.
        let mut right = None;
        let published = claim.publish_if(created, || {
            right = done.claim(position);
            right.is_some()
        });
        if let Some(stored) = published.transpose() {
            match right {
                Some(right) => right.answer(stored),
                None => drop(done.answer(position, stored)),
            }
        }
        store.snapshot_when_due();
        drop(job);
    }

    fn write(&self, claim: &mut Claim<D>) -> Result<kvstrata_disk::Created<D>, Failure> {
        claim.reserve().map_err(Failure::Reported)?;
        loop {
            let created = claim.create().map_err(Failure::Reported)?;
            let bytes = claim.transfer(&created) as usize;
            match self.store.disk().write_buf_at(&created.file, created.offset, &self.buf, bytes) {
                Ok(()) => return Ok(created),
                Err(e) if claim.retry(&created, &e) => {}
                Err(e) => return Err(Failure::Write(e)),
            }
        }
    }
}

enum Failure {
    Reported(Error),
    Write(std::io::Error),
}

/// One object on its way from the disk.
pub(crate) struct Loading<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    pub(crate) pin: Pin<D>,
    pub(crate) buf: WriteBuf,
    pub(crate) position: usize,
    pub(crate) done: GetSink,
    pub(crate) job: Job,
}

/// The loads of one request, drained by as many threads of the engine as are free. One job per thread instead of one per
/// key: waking a thread costs as much as reading a small object.
pub(crate) fn spawn_loads<D: Disk>(store: &Store<D>, loads: VecDeque<Loading<D>>, threads: usize) {
    let jobs = loads.len().min(threads);
    let loads = Arc::new(Mutex::new(loads));
    for _ in 0..jobs {
        let mine = Arc::clone(&loads);
        let drain = move || {
            // Not in the loop's condition: the lock would be held while the object is read.
            while let Some(load) = { mine.lock().pop_front() } {
                load.run();
            }
        };
        if store.disk().engine().spawn(true, Box::new(drain)).is_err() {
            for load in loads.lock().drain(..) {
                let Loading { pin, buf, position, done, job, .. } = load;
                drop(pin);
                done.answer(position, Answer::Failed(closed("load object"), Some(buf)));
                drop(job);
            }
            return;
        }
    }
}

impl<D: Disk> Loading<D> {
    fn run(self) {
        let Self { store, mut pin, mut buf, position, done, job } = self;
        if !done.is_open(position) {
            return drop((pin, buf, job));
        }
        let answer = match read(&*store, &mut pin, &mut buf) {
            Ok(got) => match pin.finish(got) {
                Ok(found) => Answer::Loaded(Loaded::new(buf, found)),
                Err(fault) => fault_answer(fault, buf),
            },
            Err(fault) => {
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

pub(crate) fn fault_answer(fault: LoadFault, buf: WriteBuf) -> Answer {
    match fault {
        LoadFault::Miss(miss) => Answer::Miss(miss, Some(buf)),
        LoadFault::Failed(e) => Answer::Failed(e, Some(buf)),
    }
}

fn read<D: Disk>(store: &Store<D>, pin: &mut Pin<D>, buf: &mut WriteBuf) -> Result<u64, LoadFault> {
    loop {
        let opened = pin.open()?;
        if pin.found().len != buf.len() as u64 {
            return Err(LoadFault::Miss(Miss::Layout));
        }
        let bytes = pin.transfer(&opened) as usize;
        match store.disk().read_buf_at(&opened.file, opened.offset, buf, bytes) {
            Ok(got) => return Ok(got as u64),
            Err(e) if pin.retry(&opened, &e) => {}
            Err(e) => return Err(pin.failed(e)),
        }
    }
}

/// Refuses a buffer that does not fit its layout.
pub(crate) fn wrong_length(operation: &'static str, buf: usize, layout: u64) -> Error {
    Error::new(ErrorKind::Invalid, operation, "the buffer is not as long as the layout says")
        .with("buffer", buf)
        .with("layout", layout)
}
