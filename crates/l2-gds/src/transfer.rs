//! Whole chunks between pieces of host memory and a file, through the disk's engine.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kvstrata_io::{Completion, CompletionSink, Disk, IoBuf, IoEngine, IoOp, OsDisk, OsFile};
use kvstrata_mem::{ReadBuf, UNIT, WriteBuf};

struct ToChannel(Sender<Completion<OsFile>>);

impl CompletionSink<OsFile> for ToChannel {
    fn complete(&self, completion: Completion<OsFile>) {
        // Whoever waits waits for all of them, so somebody is there.
        let _ = self.0.send(completion);
    }
}

/// Who moves bytes between pinned memory and a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// The disk's engine, many pieces at once.
    Engine,
    /// The thread that asks, piece by piece: through the page cache, and for files in memory, where moving is copying. Many
    /// threads copy more than a ring's one, and what was copied just now is still in that processor's cache when its CRC is
    /// taken.
    Caller,
}

/// A place in a file for `bytes` bytes of a chunk; for a file past the page cache they are whole blocks.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) file: Arc<OsFile>,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

impl Span {
    /// The pieces' places. The last one is as long as what is left, which may be more than its length.
    fn cut(&self, lens: impl ExactSizeIterator<Item = usize>) -> impl Iterator<Item = (usize, usize)> {
        let (n, bytes, mut at) = (lens.len(), self.bytes, 0);
        lens.enumerate().map(move |(i, len)| {
            let len = if i + 1 == n { bytes - at } else { len };
            at += len;
            (at - len, len)
        })
    }

    /// How much of it goes into a piece of this length at `at`: the last one is as long as what is left, which may be more than
    /// its length.
    pub(crate) fn part(&self, at: usize, piece: usize) -> usize {
        let left = self.bytes - at;
        if piece.next_multiple_of(UNIT) >= left { left } else { piece }
    }

    fn op(&self, tag: usize, at: usize, len: usize, buf: IoBuf) -> IoOp<OsFile> {
        IoOp { tag: tag as u64, file: Arc::clone(&self.file), offset: self.offset + at as u64, len, buf }
    }
}

/// Pieces of an object on their way to the device, each begun when it is there. Dropped, it waits for all of them: their
/// place may become another object's then.
pub(crate) struct Writes<'a> {
    disk: &'a OsDisk,
    by: By,
    span: Span,
    sink: Option<Arc<ToChannel>>,
    completions: Receiver<Completion<OsFile>>,
    failed: Option<io::Error>,
}

impl<'a> Writes<'a> {
    pub(crate) fn new(disk: &'a OsDisk, by: By, span: Span) -> Self {
        let (to, completions) = channel();
        Self { disk, by, span, sink: Some(Arc::new(ToChannel(to))), completions, failed: None }
    }

    /// Begins to write a piece `at` its place in the object.
    pub(crate) fn begin(&mut self, piece: &ReadBuf, at: usize) {
        self.start(piece.clone(), self.span.offset + at as u64, self.span.part(at, piece.len()));
    }

    /// Begins to write a block of what describes the object to `offset` in the file.
    pub(crate) fn begin_header(&mut self, header: ReadBuf, offset: u64) {
        let len = header.len();
        self.start(header, offset, len);
    }

    fn start(&mut self, buf: ReadBuf, offset: u64, len: usize) {
        let file = &self.span.file;
        let failed = match (self.by, &self.sink) {
            (By::Caller, _) => self.disk.write_buf_at(file, offset, &buf, len).err(),
            (By::Engine, Some(sink)) => {
                let op = IoOp { tag: 0, file: Arc::clone(file), offset, len, buf: IoBuf::Write(buf) };
                let rejected = self.disk.engine().submit(vec![op], Arc::clone(sink) as _).err();
                rejected.map(|rejected| rejected.why)
            }
            (By::Engine, None) => None,
        };
        if let Some(e) = failed {
            self.failed.get_or_insert(e);
        }
    }

    /// Returns when the device is done with all of them.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.wait();
        self.failed.take().map_or(Ok(()), Err)
    }

    fn wait(&mut self) {
        self.sink = None;
        for done in &self.completions {
            let failed = match done.result {
                Ok(n) if n == done.op.len => continue,
                Ok(n) => io::Error::new(io::ErrorKind::WriteZero, format!("{n} of {} bytes", done.op.len)),
                Err(e) => e,
            };
            self.failed.get_or_insert(failed);
        }
    }
}

impl Drop for Writes<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Writes pieces one after another, all at once. Returns when the device is done with all of them.
pub(crate) fn write(disk: &OsDisk, by: By, span: &Span, pieces: &[ReadBuf]) -> io::Result<()> {
    let mut writes = Writes::new(disk, by, span.clone());
    let mut at = 0;
    for piece in pieces {
        writes.begin(piece, at);
        at += piece.len();
    }
    writes.end()
}

/// Reads pieces, all at once, and hands each to `done` in their order with its place. Returns how many bytes there were in
/// a row; when it does, the device is done with all of them. A failure brings back the pieces that were not handed on.
pub(crate) fn read(
    disk: &OsDisk,
    span: &Span,
    pieces: Vec<WriteBuf>,
    mut done: impl FnMut(WriteBuf, usize),
) -> Result<usize, (io::Error, Vec<WriteBuf>)> {
    let places: Vec<_> = span.cut(pieces.iter().map(WriteBuf::len)).collect();
    let ops = pieces.into_iter().zip(&places).enumerate();
    let ops = ops.map(|(i, (piece, (at, len)))| span.op(i, *at, *len, IoBuf::Read(piece))).collect();
    let (to, completions) = channel();
    if let Err(rejected) = disk.engine().submit(ops, Arc::new(ToChannel(to))) {
        let back = rejected.ops.into_iter().map(|op| into_piece(op.buf)).collect();
        return Err((rejected.why, back));
    }
    let mut waiting: Vec<Option<(WriteBuf, usize)>> = places.iter().map(|_| None).collect();
    let (mut next, mut got, mut ended) = (0, 0, false);
    let (mut failed, mut back) = (None, Vec::new());
    for completion in completions {
        let (piece, i) = (into_piece(completion.op.buf), completion.op.tag as usize);
        match completion.result {
            Ok(n) => waiting[i] = Some((piece, n)),
            Err(e) => {
                failed = Some(e);
                back.push(piece);
            }
        }
        while let Some((piece, n)) = waiting.get_mut(next).and_then(Option::take) {
            let (at, len) = places[next];
            if !ended {
                got += n;
                done(piece, at);
            }
            // Behind the end of the file nothing counts.
            ended |= n < len;
            next += 1;
        }
    }
    match failed {
        None => Ok(got),
        Some(e) => {
            back.extend(waiting.into_iter().flatten().map(|(piece, _)| piece));
            Err((e, back))
        }
    }
}

fn into_piece(buf: IoBuf) -> WriteBuf {
    match buf {
        IoBuf::Read(piece) => piece,
        IoBuf::Write(_) => unreachable!("only reads were submitted"),
    }
}
