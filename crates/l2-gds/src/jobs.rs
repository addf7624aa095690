//! One key's way through a thread of the adapter.

use std::io;
use std::sync::Arc;

use kvstrata_core::{Affinity, Digest, Error, ErrorKind, Instant, Result};
use kvstrata_disk::{Begin, Claim, Created, LoadFault, NewObject, Opened, Pin, Placed};
use kvstrata_io::{Disk, IoEngine, OsDisk};
use kvstrata_l2::{Answer, GetSink, Job, Loaded, PayloadCrc, PutSink, Stored, closed, digest_of};
use kvstrata_mem::{ReadBuf, RegionKind, WriteBuf};

use crate::cufile::{failed, within};
use crate::gds::Inner;
use crate::order::Order;
use crate::stage::IN_TURN;
use crate::transfer::{By, Span, Writes, read, write};
use crate::way::Way;

/// How the bytes of one buffer go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Route {
    /// Host memory, through the disk's engine as it is.
    Host,
    /// GPU memory, through pinned memory.
    Bounce(u32),
    /// GPU memory, by cuFile.
    Cufile(u32),
}

impl Inner {
    pub(crate) fn route(&self, kind: RegionKind, affinity: &Affinity) -> Result<Route> {
        if kind != RegionKind::Device {
            return Ok(Route::Host);
        }
        let ordinal = affinity.ordinal.unwrap_or(0);
        match self.ways.get(&ordinal).map(|choice| choice.way) {
            Some(Way::Bounce) => Ok(Route::Bounce(ordinal)),
            Some(Way::Direct | Way::Compat) => Ok(Route::Cufile(ordinal)),
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "choose way",
                "the adapter knows no GPU of this ordinal",
            )
            .with("ordinal", ordinal)),
        }
    }
}

/// One object on its way to the disk. The fields are dropped in this order: the job counts as ended when the buffer is
/// free.
pub(crate) struct Storing {
    pub(crate) inner: Arc<Inner>,
    pub(crate) buf: ReadBuf,
    pub(crate) object: NewObject,
    /// Whether the digest is still to be made, of bytes that no bounce shows.
    pub(crate) due: bool,
    pub(crate) route: Route,
    pub(crate) order: Order,
    pub(crate) position: usize,
    pub(crate) until: Instant,
    pub(crate) done: PutSink,
    pub(crate) job: Job,
}

impl Storing {
    fn answer(self, answer: Result<Stored>) {
        let Self { buf, position, done, job, .. } = self;
        drop(buf);
        done.answer(position, answer);
        drop(job);
    }

    /// Goes on from how the store began.
    pub(crate) fn go(mut self, begin: Begin<OsDisk>) {
        match begin {
            // What is there has no digest either, which is not the same as one that is still to be made.
            Begin::Present if self.due => match self.make_digest() {
                Ok(_) => {
                    let begin = self.inner.store.begin(std::slice::from_ref(&self.object)).remove(0);
                    self.go(begin);
                }
                Err(e) => self.answer(Err(e)),
            },
            Begin::Present => self.answer(Ok(Stored::Present)),
            Begin::Refused(e) => self.answer(Err(e)),
            Begin::Claimed(claim) => self.spawn(claim),
            Begin::Busy => {
                // Somebody writes or removes this key: it is this one's turn after that.
                let store = Arc::clone(&self.inner.store);
                let key = self.object.key.clone();
                store.hold_then(&key, move |hold| {
                    if !self.done.is_open(self.position) {
                        return;
                    }
                    if let Err(e) = self.make_digest() {
                        drop(hold);
                        return self.answer(Err(e));
                    }
                    let begin = hold.begin(&self.object);
                    debug_assert!(!matches!(begin, Begin::Busy), "the key is held");
                    self.go(begin);
                });
            }
        }
    }

    /// The digest, if it was still to be made.
    fn make_digest(&mut self) -> Result<Option<Digest>> {
        if !std::mem::take(&mut self.due) {
            return Ok(None);
        }
        self.object.digest = Some(digest_of(&self.object.key, self.object.layout, &self.buf)?);
        Ok(self.object.digest)
    }

    fn spawn(self, claim: Claim<OsDisk>) {
        let inner = Arc::clone(&self.inner);
        let (position, done) = (self.position, self.done.clone());
        // In this order: what was claimed is given back before the job counts as ended, also when it is never run.
        let work = (claim, self);
        let job = move || {
            let (claim, storing) = work;
            storing.run(claim);
        };
        if inner.workers.spawn(false, Box::new(job)).is_err() {
            done.answer(position, Err(closed("store object")));
        }
    }

    fn run(mut self, mut claim: Claim<OsDisk>) {
        if !self.done.is_open(self.position) {
            return;
        }
        match self.make_digest() {
            Ok(Some(digest)) if claim.set_digest(digest) => {
                drop(claim);
                return self.answer(Ok(Stored::Present));
            }
            Ok(_) => {}
            Err(e) => {
                let e = claim.give_up(e);
                return self.answer(Err(e));
            }
        }
        let Self { inner, buf, object, route, order, position, until, done, job, .. } = self;
        let moved = match route {
            Route::Host => move_out(&inner, &mut claim, &[buf]),
            Route::Bounce(ordinal) => {
                match bounce_out(&inner, &mut claim, &object, buf, ordinal, &order, until) {
                    Ok(Some(created)) => Ok(created),
                    Ok(None) => {
                        drop(claim);
                        done.answer(position, Ok(Stored::Present));
                        return drop(job);
                    }
                    Err(failure) => Err(failure),
                }
            }
            Route::Cufile(ordinal) => cufile_out(&inner, &mut claim, buf, ordinal, &order),
        };
        let created = match moved {
            Ok(created) => created,
            Err(failure) => {
                let e = match failure {
                    Failure::Reported(e) => claim.give_up(e),
                    Failure::Write(e) => claim.failed(e),
                };
                done.answer(position, Err(e));
                return drop(job);
            }
        };
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
        inner.store.snapshot_when_due();
        drop(job);
    }
}

enum Failure {
    Reported(Error),
    Write(io::Error),
}

/// From a GPU by pinned memory. `None`: the same object is there already.
fn bounce_out(
    inner: &Inner,
    claim: &mut Claim<OsDisk>,
    object: &NewObject,
    buf: ReadBuf,
    ordinal: u32,
    order: &Order,
    until: Instant,
) -> Result<Option<Created<OsDisk>>, Failure> {
    let bounce = inner.bounce().map_err(Failure::Reported)?;
    let gather = bounce.gather(&buf, ordinal, order, until).map_err(Failure::Reported)?;
    // Where its place can be had before its digest, and the digest will not say that nothing is to be written, pieces go to
    // the device as they come. The header has the digest, and goes last.
    let mut early = None;
    if inner.keeps_files && !claim.replaces() {
        claim.reserve().map_err(Failure::Reported)?;
        early = claim.try_create().map(|Placed { created, .. }| {
            let bytes = claim.transfer(&created) as usize;
            let span = Span { file: Arc::clone(&created.file), offset: created.offset, bytes };
            (Writes::new(inner.store.disk(), inner.by, span), created)
        });
    }
    let gathered = gather.finish(|piece, at| {
        if let Some((writes, _)) = &mut early {
            writes.begin(piece, at);
        }
    });
    // From here on the GPU's memory is free.
    drop(buf);
    let (pieces, crc) = gathered.map_err(Failure::Reported)?;
    let digest = Digest::bind(crc, &object.key, object.layout, object.len);
    if object.digest.is_none() && claim.set_digest(digest) {
        return Ok(None);
    }
    if let Some((mut writes, created)) = early {
        let header = claim.try_create();
        let described = header.is_some();
        if let Some(Placed { header, header_at, .. }) = header {
            writes.begin_header(header, header_at);
        }
        match writes.end() {
            Ok(()) if described => return Ok(Some(created)),
            Err(e) if !claim.retry(&created, &e) => return Err(Failure::Write(e)),
            // All of it once more, in the usual order.
            _ => {}
        }
    }
    move_out(inner, claim, &pieces).map(Some)
}

fn move_out(
    inner: &Inner,
    claim: &mut Claim<OsDisk>,
    pieces: &[ReadBuf],
) -> Result<Created<OsDisk>, Failure> {
    claim.reserve().map_err(Failure::Reported)?;
    loop {
        let created = claim.create().map_err(Failure::Reported)?;
        let bytes = claim.transfer(&created) as usize;
        let span = Span { file: Arc::clone(&created.file), offset: created.offset, bytes };
        match write(inner.store.disk(), inner.by, &span, pieces) {
            Ok(()) => return Ok(created),
            Err(e) if claim.retry(&created, &e) => {}
            Err(e) => return Err(Failure::Write(e)),
        }
    }
}

fn cufile_out(
    inner: &Inner,
    claim: &mut Claim<OsDisk>,
    buf: ReadBuf,
    ordinal: u32,
    order: &Order,
) -> Result<Created<OsDisk>, Failure> {
    const OP: &str = "store object by cuFile";
    claim.reserve().map_err(Failure::Reported)?;
    let created = claim.create().map_err(Failure::Reported)?;
    if !inner.keeps_files {
        // A device that is full is to cuFile a transfer that failed; here it is what it is.
        match inner.store.disk().allocate(&created.file, created.offset + claim.transfer(&created)) {
            Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {}
            done => done.map_err(Failure::Write)?,
        }
    }
    let moved = inner.cufile().and_then(|cufile| {
        let handle = cufile.handle(&created.file, created.direct, inner.keeps_files)?;
        inner.in_order(ordinal, order, || {
            let (base, at) = (buf.region().base(), buf.extent().offset);
            let wrote = within(&**inner.gpus()?, ordinal, || {
                // SAFETY: the buffer is the GPU's memory, at least so long, sealed, and held until this returns; the thread
                // has the GPU's context.
                unsafe { handle.write(base, at, buf.len(), created.offset) }.map_err(|f| failed(OP, f))
            })?;
            if wrote == buf.len() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Io, OP, format!("{wrote} of {} bytes were written", buf.len())))
        })
    });
    moved.map(|()| created).map_err(Failure::Reported)
}

/// One object on its way from the disk.
pub(crate) struct Loading {
    pub(crate) inner: Arc<Inner>,
    pub(crate) pin: Pin<OsDisk>,
    pub(crate) buf: WriteBuf,
    pub(crate) route: Route,
    pub(crate) order: Order,
    pub(crate) position: usize,
    pub(crate) until: Instant,
    pub(crate) done: GetSink,
    pub(crate) job: Job,
}

impl Loading {
    pub(crate) fn spawn(self) {
        let inner = Arc::clone(&self.inner);
        let (position, done) = (self.position, self.done.clone());
        if inner.workers.spawn(true, Box::new(move || self.run())).is_err() {
            done.answer(position, Answer::Failed(closed("load object"), None));
        }
    }

    fn run(self) {
        let Self { inner, mut pin, buf, route, order, position, until, done, job } = self;
        if !done.is_open(position) {
            return drop((pin, buf, job));
        }
        let (loaded, buf) = match route {
            Route::Host => host_in(&inner, &mut pin, buf),
            Route::Bounce(ordinal) => {
                let bounce = if inner.by == By::Caller { copied_in } else { bounce_in };
                (bounce(&inner, &mut pin, &buf, ordinal, &order, until), Some(buf))
            }
            Route::Cufile(ordinal) => (cufile_in(&inner, &mut pin, &buf, ordinal, &order), Some(buf)),
        };
        let answer = match loaded {
            Ok((got, passed)) => match (pin.finish(got), buf) {
                (Ok(found), Some(buf)) => Answer::Loaded(Loaded { passed, ..Loaded::new(buf, found) }),
                (Ok(_), None) => {
                    let lost = Error::new(ErrorKind::Internal, "load object", "the disk kept the buffer");
                    Answer::Failed(lost, None)
                }
                (Err(fault), buf) => fault_answer(fault, buf),
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

fn fault_answer(fault: LoadFault, buf: Option<WriteBuf>) -> Answer {
    match fault {
        LoadFault::Miss(miss) => Answer::Miss(miss, buf),
        LoadFault::Failed(e) => Answer::Failed(e, buf),
    }
}

/// The bytes there were, and the CRC of those that passed.
type Moved = Result<(u64, Option<u64>), LoadFault>;

fn span(pin: &Pin<OsDisk>, opened: &Opened<OsDisk>) -> Span {
    let bytes = pin.transfer(opened) as usize;
    Span { file: Arc::clone(&opened.file), offset: opened.offset, bytes }
}

fn host_in(inner: &Inner, pin: &mut Pin<OsDisk>, buf: WriteBuf) -> (Moved, Option<WriteBuf>) {
    let mut buf = Some(buf);
    loop {
        let opened = match pin.open() {
            Ok(opened) => opened,
            Err(fault) => return (Err(fault), buf),
        };
        let Some(to) = buf.take() else {
            // The operation that failed kept it.
            let lost = io::Error::other("the disk did not give the buffer back");
            return (Err(pin.failed(lost)), None);
        };
        let span = span(pin, &opened);
        let (read, back) = match inner.by {
            By::Caller => {
                let mut to = to;
                let read = inner.store.disk().read_buf_at(&span.file, span.offset, &mut to, span.bytes);
                (read, Some(to))
            }
            By::Engine => {
                let mut back = None;
                match read(inner.store.disk(), &span, vec![to], |piece, _| back = Some(piece)) {
                    Ok(got) => (Ok(got), back),
                    Err((e, mut pieces)) => (Err(e), pieces.pop()),
                }
            }
        };
        match read {
            Ok(got) => return (Ok((got as u64, None)), back),
            Err(e) => {
                buf = back;
                if !pin.retry(&opened, &e) {
                    return (Err(pin.failed(e)), buf);
                }
            }
        }
    }
}

/// To a GPU, all pieces of the chunk at once through the engine.
fn bounce_in(
    inner: &Inner,
    pin: &mut Pin<OsDisk>,
    buf: &WriteBuf,
    ordinal: u32,
    order: &Order,
    until: Instant,
) -> Moved {
    let bounce = inner.bounce().map_err(LoadFault::Failed)?;
    loop {
        let opened = pin.open()?;
        let pieces = bounce.room(buf.len(), until).map_err(LoadFault::Failed)?;
        let mut scatter = bounce.scatter(buf, ordinal, order.clone()).map_err(LoadFault::Failed)?;
        let (mut crc, mut failed) = (PayloadCrc::new(), None);
        let got = read(inner.store.disk(), &span(pin, &opened), pieces, |piece, at| {
            if let Err(e) = scatter.put(piece, at, |bytes| crc.update(bytes)) {
                failed.get_or_insert(e);
            }
        });
        match got {
            Ok(got) => {
                if let Some(e) = failed {
                    return Err(LoadFault::Failed(e));
                }
                scatter.finish().map_err(LoadFault::Failed)?;
                return Ok((got as u64, Some(crc.finish())));
            }
            Err((e, _)) if pin.retry(&opened, &e) => {}
            Err((e, _)) => return Err(pin.failed(e)),
        }
    }
}

/// To a GPU, through a few pieces in turn, each read and copied on by this thread.
fn copied_in(
    inner: &Inner,
    pin: &mut Pin<OsDisk>,
    buf: &WriteBuf,
    ordinal: u32,
    order: &Order,
    until: Instant,
) -> Moved {
    let bounce = inner.bounce().map_err(LoadFault::Failed)?;
    'whole: loop {
        let opened = pin.open()?;
        let span = span(pin, &opened);
        let mut room = bounce.room(buf.len().min(IN_TURN), until).map_err(LoadFault::Failed)?.into_iter();
        let mut scatter = bounce.scatter(buf, ordinal, order.clone()).map_err(LoadFault::Failed)?;
        let (mut crc, mut at) = (PayloadCrc::new(), 0);
        while at < span.bytes {
            let piece = match room.next() {
                Some(piece) => Some(piece),
                None => scatter.take_back().map_err(LoadFault::Failed)?,
            };
            let mut piece = piece.expect("each is in one place or the other");
            let len = span.part(at, piece.len());
            let got =
                match inner.store.disk().read_buf_at(&span.file, span.offset + at as u64, &mut piece, len) {
                    Ok(got) => got,
                    Err(e) if pin.retry(&opened, &e) => continue 'whole,
                    Err(e) => return Err(pin.failed(e)),
                };
            scatter.put(piece, at, |bytes| crc.update(bytes)).map_err(LoadFault::Failed)?;
            at += got;
            if got < len {
                break;
            }
        }
        scatter.finish().map_err(LoadFault::Failed)?;
        return Ok((at as u64, Some(crc.finish())));
    }
}

fn cufile_in(inner: &Inner, pin: &mut Pin<OsDisk>, buf: &WriteBuf, ordinal: u32, order: &Order) -> Moved {
    let opened = pin.open()?;
    let got = inner.cufile().and_then(|cufile| {
        let handle = cufile.handle(&opened.file, opened.direct, inner.keeps_files)?;
        inner.in_order(ordinal, order, || {
            let (base, at) = (buf.region().base(), buf.extent().offset);
            within(&**inner.gpus()?, ordinal, || {
                // SAFETY: the buffer is the GPU's memory, so long, ours alone, and held until this returns; the thread has
                // the GPU's context.
                unsafe { handle.read(base, at, buf.len(), opened.offset) }
                    .map_err(|f| failed("load object by cuFile", f))
            })
        })
    });
    got.map(|got| (got as u64, None)).map_err(LoadFault::Failed)
}
