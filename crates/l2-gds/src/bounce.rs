//! Between GPU memory and pinned memory.

use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_core::{Instant, Result};
use kvstrata_l2::{PayloadCrc, Timer};
use kvstrata_mem::{ReadBuf, WriteBuf};
use parking_lot::Mutex;

use crate::device::{Copies, Direction, Gpus, Mark};
use crate::order::Order;
use crate::stage::{Stage, User};

/// The pinned memory and the streams.
#[derive(Debug)]
pub(crate) struct Bounce {
    gpus: Arc<dyn Gpus>,
    stage: Stage,
    /// Streams that nobody uses, by GPU.
    idle: Mutex<HashMap<u32, Vec<Box<dyn Copies>>>>,
}

impl Bounce {
    /// # Errors
    /// What the driver says of so much pinned memory.
    pub(crate) fn new(gpus: Arc<dyn Gpus>, bytes: usize, timer: Arc<dyn Timer>) -> Result<Self> {
        let stage = Stage::new(gpus.pinned(bytes)?, timer)?;
        Ok(Self { gpus, stage, idle: Mutex::default() })
    }

    fn lane(&self, ordinal: u32) -> Result<Lane<'_>> {
        let idle = self.idle.lock().get_mut(&ordinal).and_then(Vec::pop);
        let copies = match idle {
            Some(copies) => copies,
            None => self.gpus.copies(ordinal)?,
        };
        Ok(Lane { of: self, ordinal, copies: Some(copies), dirty: false })
    }

    /// Queues the copies of a chunk from a GPU to pinned memory, and the engine's signal behind them.
    ///
    /// # Errors
    /// `TimedOut` waiting for memory; what the driver says.
    pub(crate) fn gather<'a>(
        &'a self,
        from: &'a ReadBuf,
        ordinal: u32,
        order: &Order,
        until: Instant,
    ) -> Result<Gather<'a>> {
        let pieces = VecDeque::from(self.stage.take(User::Store, from.len(), until)?);
        let (lane, marks) = (self.lane(ordinal)?, Vec::with_capacity(pieces.len()));
        // From here on dropped in its order, also when something fails or panics.
        let mut gather = Gather { lane, marks, pieces, _from: from };
        let lane = &mut gather.lane;
        if let Some(event) = &order.after {
            lane.copies().after(&**event)?;
        }
        let mut at = 0;
        for piece in &gather.pieces {
            let (to, len) = (piece.as_ptr(), piece.len());
            // SAFETY: the piece is pinned memory of ours alone; the chunk is the GPU's, at least as long, and not written
            // while it is sealed. Both outlive the lane.
            unsafe { lane.copies().copy(Direction::ToHost, to, beyond(from.as_ptr(), at), len) }?;
            gather.marks.push(lane.copies().mark()?);
            at += len;
        }
        if let Some(event) = &order.signal {
            lane.copies().signal(&**event)?;
        }
        Ok(gather)
    }

    /// Pinned memory for a chunk that is to be read.
    ///
    /// # Errors
    /// `TimedOut` waiting for it.
    pub(crate) fn room(&self, len: usize, until: Instant) -> Result<Vec<WriteBuf>> {
        self.stage.take(User::Load, len, until)
    }

    /// Begins to fill a chunk in GPU memory. The chunk has to outlive what is returned.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn scatter<'a>(&'a self, to: &'a WriteBuf, ordinal: u32, order: Order) -> Result<Scatter<'a>> {
        let mut lane = self.lane(ordinal)?;
        if let Some(event) = &order.after {
            lane.copies().after(&**event)?;
        }
        Ok(Scatter { lane, pieces: VecDeque::new(), to, order })
    }
}

/// A chunk that is being copied to pinned pieces. Fields are dropped in order: the lane waits for its copies first.
#[derive(Debug)]
pub(crate) struct Gather<'a> {
    lane: Lane<'a>,
    marks: Vec<Mark>,
    pieces: VecDeque<WriteBuf>,
    /// The chunk, which outlives the copies.
    _from: &'a ReadBuf,
}

impl Gather<'_> {
    /// Shows each piece to `arrived` when it is there, with its place, before its bytes are looked at. Returns the pieces, and
    /// the CRC of what passed; the GPU does not touch the chunk any more.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn finish(mut self, mut arrived: impl FnMut(&ReadBuf, usize)) -> Result<(Vec<ReadBuf>, u64)> {
        let (mut crc, mut sealed, mut at) = (PayloadCrc::new(), Vec::with_capacity(self.pieces.len()), 0);
        for mark in std::mem::take(&mut self.marks) {
            self.lane.copies().reached(mark)?;
            let Some(piece) = self.pieces.pop_front() else { break };
            let len = piece.len();
            let piece = piece.seal(len);
            arrived(&piece, at);
            piece.visit(|bytes| crc.update(bytes))?;
            sealed.push(piece);
            at += len;
        }
        self.lane.clean();
        Ok((sealed, crc.finish()))
    }
}

/// A chunk that is being filled from pinned pieces. Fields are dropped in order: the lane waits for its copies first.
#[derive(Debug)]
pub(crate) struct Scatter<'a> {
    lane: Lane<'a>,
    /// In the order of their copies, each with a mark behind its own once that is queued.
    pieces: VecDeque<(WriteBuf, Option<Mark>)>,
    to: &'a WriteBuf,
    order: Order,
}

impl Scatter<'_> {
    /// Queues the copy of a piece to `at` in the chunk, as much of it as the chunk has there, and shows those bytes
    /// meanwhile.
    pub(crate) fn put(&mut self, piece: WriteBuf, at: usize, mut see: impl FnMut(&[u8])) -> Result<()> {
        let len = piece.len().min(self.to.len().saturating_sub(at));
        let (from, to) = (piece.as_ptr(), beyond(self.to.as_ptr(), at));
        self.pieces.push_back((piece, None));
        // SAFETY: the piece is pinned memory that is not written any more and stays until the lane is drained; the chunk is
        // the GPU's and ours alone, `len` bytes from there are in it, and it outlives this value.
        unsafe { self.lane.copies().copy(Direction::ToDevice, to, from, len) }?;
        let behind = self.lane.copies().mark()?;
        let Some((piece, mark)) = self.pieces.back_mut() else { return Ok(()) };
        *mark = Some(behind);
        let mut left = len;
        piece.visit(|bytes| {
            let seen = bytes.len().min(left);
            see(&bytes[..seen]);
            left -= seen;
        })
    }

    /// The piece that was put first of those that are still here, when it has been copied. `None` if there is none.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn take_back(&mut self) -> Result<Option<WriteBuf>> {
        let Some((_, Some(mark))) = self.pieces.front() else { return Ok(None) };
        self.lane.copies().reached(*mark)?;
        Ok(self.pieces.pop_front().map(|(piece, _)| piece))
    }

    /// Waits for all of it: the chunk is filled, and the pieces are free.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(event) = &self.order.signal {
            self.lane.copies().signal(&**event)?;
        }
        let mark = self.lane.copies().mark()?;
        self.lane.copies().reached(mark)?;
        self.lane.clean();
        Ok(())
    }
}

/// A stream in use. It goes back when nothing is queued any more.
#[derive(Debug)]
struct Lane<'a> {
    of: &'a Bounce,
    ordinal: u32,
    copies: Option<Box<dyn Copies>>,
    /// Whether anything may still be queued.
    dirty: bool,
}

impl Lane<'_> {
    fn copies(&mut self) -> &mut dyn Copies {
        self.dirty = true;
        &mut **self.copies.as_mut().expect("taken by the drop alone")
    }

    /// The last mark was reached.
    fn clean(&mut self) {
        self.dirty = false;
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let Some(mut copies) = self.copies.take() else { return };
        if self.dirty {
            // Something failed on the way. The stream may be in a bad state, so it is not used again.
            copies.drain();
            return;
        }
        self.of.idle.lock().entry(self.ordinal).or_default().push(copies);
    }
}

/// An address in a buffer. A GPU's memory is none that Rust could do pointer arithmetic within.
fn beyond(base: NonNull<u8>, at: usize) -> NonNull<u8> {
    base.map_addr(|base| base.saturating_add(at))
}
