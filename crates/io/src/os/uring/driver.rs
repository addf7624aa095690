//! The thread that owns a ring.

use std::collections::{HashSet, VecDeque};
use std::io::{Error, Result};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kvstrata_core::Clock;

use super::fixed::{Buffers, Files, Known};
use super::neighbours::{Neighbour, Row};
use super::pieces::{Next, Piece, Progress};
use super::sys::{Memory, Ring, Transfer, place};
use super::{Command, Shared, Sink};
use crate::budget::{Begun, Budget};
use crate::os::OsFile;
use crate::os::sys::check_range;
use crate::queue::Turns;
use crate::whole::{Fill, Spill};
use crate::{IoBuf, IoOp};

/// How long the kernel is left alone when it was short of memory and nothing is under way.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Driver {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    depth: usize,
    ring: Ring,
    buffers: Buffers,
    files: Files,
    budget: Budget,
    turns: Turns,
    ops: Slots<Live>,
    /// What the kernel has.
    under_way: Slots<UnderWay>,
    /// Operations that are not cut up yet, reads and writes; only the first ones have been begun.
    waiting: [VecDeque<usize>; 2],
    /// Pieces that have to be asked for again.
    again: VecDeque<(usize, Piece)>,
}

/// An operation that was accepted.
struct Live {
    op: IoOp<OsFile>,
    sink: Sink,
    progress: Progress,
}

struct UnderWay {
    /// One piece, or whole neighbours in the file.
    parts: Vec<(usize, Piece)>,
    begun: Begun,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, depth: u32, clock: Arc<dyn Clock>) -> Result<Self> {
        let ring = Ring::new(depth)?;
        Ok(Self {
            buffers: Buffers::new(&ring),
            files: Files::new(&ring),
            shared,
            clock,
            depth: depth as usize,
            ring,
            budget: Budget::default(),
            turns: Turns::default(),
            ops: Slots::default(),
            under_way: Slots::default(),
            waiting: Default::default(),
            again: VecDeque::new(),
        })
    }

    /// Until the ring is closed and everything is done.
    pub(super) fn run(mut self) {
        loop {
            let closed = self.take_in();
            self.start();
            let idle = self.ops.is_empty();
            if closed && idle && !self.ring.is_listening() {
                return;
            }
            if !closed {
                self.ring.listen(&self.shared.bell);
            }
            if self.may_sleep(idle) && !self.wait() {
                return;
            }
            self.finish();
        }
    }

    /// Takes over what was submitted; whether nothing more will be.
    fn take_in(&mut self) -> bool {
        let (ops, commands, closed) = {
            let mut inbox = self.shared.inbox.lock();
            inbox.asleep = false;
            (std::mem::take(&mut inbox.ops), std::mem::take(&mut inbox.commands), inbox.closed)
        };
        for command in commands {
            match command {
                Command::Added(region) => self.buffers.added(region),
                Command::Removed(region) => self.buffers.removed(&self.ring, region),
                Command::Closed(at) => self.files.closed(&self.ring, at),
            }
        }
        for (op, sink) in ops {
            self.accept(op, sink);
        }
        closed
    }

    fn accept(&mut self, mut op: IoOp<OsFile>, sink: Sink) {
        let read = op.is_read();
        let mut progress = Progress::new(op.len, read, op.file.direct);
        let bad = check(&mut op).err();
        if let Some(result) = bad.map(Err).or_else(|| progress.result()) {
            self.shared.queued[usize::from(!read)].fetch_sub(1, Relaxed);
            return self.shared.counts.complete(op, sink, result);
        }
        let number = self.ops.insert(Live { op, sink, progress });
        self.waiting[usize::from(!read)].push_back(number);
    }

    /// Asks the kernel for what the budget has room for.
    fn start(&mut self) {
        if self.waiting.iter().all(VecDeque::is_empty) && self.again.is_empty() {
            return;
        }
        while self.under_way.len() < self.depth {
            if let Some(part) = self.again.pop_front() {
                self.ask(vec![part]);
                continue;
            }
            let writes = !self.waiting[1].is_empty();
            let due = self.turns.due();
            let order = if due { [false, true] } else { [true, false] };
            let next = order.into_iter().find_map(|read| {
                let op = *self.waiting[usize::from(!read)].front()?;
                let len = self.ops.get(op).progress.next_len();
                self.budget.admits(read, len, due).then_some((read, op))
            });
            let Some((read, op)) = next else { return };
            self.turns.started(read, writes);
            let progress = &mut self.ops.get_mut(op).progress;
            let piece = progress.cut();
            let mut parts = vec![(op, piece)];
            if progress.next_len() == 0 {
                self.cut_up(read);
                self.add_neighbours(read, due, &mut parts);
            }
            self.ask(parts);
        }
    }

    /// Takes those that wait next along, as far as they go on in the file where the one before ends.
    fn add_neighbours(&mut self, read: bool, due: bool, parts: &mut Vec<(usize, Piece)>) {
        let mut row = {
            let (number, piece) = parts[0];
            let op = &self.ops.get(number).op;
            let (at, len) = piece.range(op.file.direct);
            Row::new(Neighbour { offset: op.offset + at as u64, len }, op.file.direct)
        };
        while let Some(&next) = self.waiting[usize::from(!read)].front() {
            let file = &self.ops.get(parts[0].0).op.file;
            let Live { op, .. } = self.ops.get(next);
            let longer = row.with(Neighbour { offset: op.offset, len: op.len });
            let longer = longer.filter(|_| Arc::ptr_eq(file, &op.file));
            let Some(longer) = longer.filter(|longer| self.budget.admits(read, longer.len(), due)) else {
                break;
            };
            row = longer;
            parts.push((next, self.ops.get_mut(next).progress.cut()));
            self.cut_up(read);
        }
    }

    /// The first of the waiting operations waits no more.
    fn cut_up(&mut self, read: bool) {
        let class = usize::from(!read);
        self.waiting[class].pop_front();
        self.shared.queued[class].fetch_sub(1, Relaxed);
        self.shared.running.fetch_add(1, Relaxed);
    }

    fn ask(&mut self, parts: Vec<(usize, Piece)>) {
        let (first, piece) = parts[0];
        let Live { op, .. } = self.ops.get(first);
        let (read, file) = (op.is_read(), Arc::clone(&op.file));
        let (at, len) = piece.range(file.direct);
        let offset = op.offset + at as u64;
        let (memory, len) = if parts.len() == 1 {
            let memory = Memory::Whole {
                at: self.memory(first, at),
                len: small(len),
                buffer: self.buffer(first, at, len),
            };
            (memory, len)
        } else {
            let mut several = Vec::with_capacity(parts.len());
            for &(number, piece) in &parts {
                let (at, len) = piece.range(file.direct);
                several.push(place(self.memory(number, at), len));
            }
            let len = several.iter().map(|place| place.iov_len).sum();
            (Memory::Several(several), len)
        };
        let more = self.waiting.iter().any(|w| !w.is_empty());
        let begun = self.budget.began(read, len, more);
        let target = self.files.target(&self.ring, &self.shared, &file);
        let slot = self.under_way.insert(UnderWay { parts, begun });
        let transfer = Transfer { read, file: target, offset, memory };
        // SAFETY: the operations, with their buffers and their file, stay in `ops` until every piece of them has been
        // answered, and are forgotten, not freed, if that does not come to pass.
        let asked = unsafe { self.ring.start(slot as u32, transfer) };
        assert!(asked, "the ring has room for as many transfers as are begun");
        self.shared.transfers.fetch_add(1, Relaxed);
    }

    /// The memory of an operation from a byte on.
    fn memory(&mut self, number: usize, at: usize) -> NonNull<u8> {
        let Live { op, .. } = self.ops.get_mut(number);
        // The same checks as when it was accepted.
        let memory = match &mut op.buf {
            IoBuf::Read(buf) => Fill::buf(buf, op.len).map(|mut b| b.at(at)),
            IoBuf::Write(buf) => Spill::buf(buf, op.len).map(|b| b.at(at)),
        };
        memory.expect("checked before it was accepted")
    }

    /// The entry of the table of registered memory that has these bytes of an operation.
    fn buffer(&mut self, number: usize, at: usize, len: usize) -> Option<u16> {
        let (region, offset) = match &self.ops.get(number).op.buf {
            IoBuf::Read(buf) => (buf.region(), buf.extent().offset),
            IoBuf::Write(buf) => (buf.region(), buf.extent().offset),
        };
        let known = Known { id: region.id(), len: region.len() };
        self.buffers.place(&self.ring, known, region.base(), offset + at, len)
    }

    /// Whether nothing came in meanwhile. From now on the bell is rung.
    fn may_sleep(&self, idle: bool) -> bool {
        let mut inbox = self.shared.inbox.lock();
        if !inbox.ops.is_empty() || !inbox.commands.is_empty() {
            return false;
        }
        inbox.asleep = true;
        if idle && inbox.busy {
            inbox.busy = false;
            self.shared.idle.notify_all();
        }
        true
    }

    /// Waits for the kernel; whether the ring still works.
    fn wait(&mut self) -> bool {
        let Err(e) = self.ring.wait(1) else { return true };
        match e.raw_os_error() {
            Some(libc::EINTR) => true,
            // Short of memory, or of room for completions: both end as things complete.
            Some(libc::EAGAIN | libc::EBUSY) => {
                if self.under_way.is_empty() {
                    std::thread::sleep(PAUSE);
                }
                true
            }
            _ => {
                self.give_up(&format!("the ring failed: {e}"));
                false
            }
        }
    }

    /// Takes over what the kernel has finished.
    fn finish(&mut self) {
        let mut now = None;
        while let Some(finished) = self.ring.finished() {
            let now = *now.get_or_insert_with(|| self.clock.now());
            let UnderWay { parts, begun } = self.under_way.remove(finished.number as usize);
            self.budget.ended(begun, now);
            if let [(op, piece)] = parts[..] {
                self.answered(op, piece, finished.moved);
                continue;
            }
            // What did not go well together is asked for again one by one, so that each has an answer of its own.
            let mut moved = finished.moved.unwrap_or(0);
            for (op, piece) in parts {
                let (_, len) = piece.range(self.ops.get(op).op.file.direct);
                match moved.min(len) {
                    0 => self.again.push_back((op, piece)),
                    n => self.answered(op, piece, Ok(n)),
                }
                moved = moved.saturating_sub(len);
            }
        }
    }

    /// The kernel moved so many bytes of a piece, or did not.
    fn answered(&mut self, op: usize, piece: Piece, moved: Result<usize>) {
        let live = self.ops.get_mut(op);
        if let Next::Again(piece) = live.progress.answered(piece, moved) {
            return self.again.push_back((op, piece));
        }
        let Some(result) = live.progress.result() else { return };
        let read = live.op.is_read();
        if self.waiting[usize::from(!read)].front() == Some(&op) {
            // It failed, or the file ended, before all of it was asked for.
            self.cut_up(read);
        }
        let Live { op, sink, .. } = self.ops.remove(op);
        self.shared.running.fetch_sub(1, Relaxed);
        self.shared.counts.complete(op, sink, result);
    }

    /// Nothing new is taken.
    fn give_up(&self, why: &str) {
        tracing::error!(why, "io_uring is given up");
        let mut inbox = self.shared.inbox.lock();
        inbox.closed = true;
        inbox.gone = Some(Some(why.to_owned()));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.give_up("the thread of the ring panicked");
        }
        // What the kernel has may be written at any time, now or later: it is never freed.
        let lost: HashSet<usize> =
            self.under_way.drain().flat_map(|(_, u)| u.parts).map(|(op, _)| op).collect();
        for (number, live) in self.ops.drain() {
            if lost.contains(&number) {
                std::mem::forget(live);
            } else {
                let e = Error::other("the ring failed before this was begun");
                self.shared.counts.complete(live.op, live.sink, Err(e));
            }
        }
        let rest = {
            let mut inbox = self.shared.inbox.lock();
            inbox.closed = true;
            inbox.gone.get_or_insert(None);
            inbox.commands.clear();
            std::mem::take(&mut inbox.ops)
        };
        for (op, sink) in rest {
            let e = Error::other("the ring failed before this was begun");
            self.shared.counts.complete(op, sink, Err(e));
        }
        self.shared.idle.notify_all();
    }
}

/// A length of at most a piece.
fn small(len: usize) -> u32 {
    u32::try_from(len).expect("a piece is small")
}

/// Whether an operation can be carried out at all.
fn check(op: &mut IoOp<OsFile>) -> Result<()> {
    check_range(op.offset, op.len)?;
    match &mut op.buf {
        IoBuf::Read(buf) => Fill::buf(buf, op.len).map(drop),
        IoBuf::Write(buf) => Spill::buf(buf, op.len).map(drop),
    }
}

/// Values by number; numbers are used again.
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn insert(&mut self, value: T) -> usize {
        if let Some(at) = self.free.pop() {
            self.slots[at] = Some(value);
            at
        } else {
            self.slots.push(Some(value));
            self.slots.len() - 1
        }
    }

    fn get(&self, at: usize) -> &T {
        self.slots[at].as_ref().expect("a number that was given and not taken back")
    }

    fn get_mut(&mut self, at: usize) -> &mut T {
        self.slots[at].as_mut().expect("a number that was given and not taken back")
    }

    fn remove(&mut self, at: usize) -> T {
        let value = self.slots[at].take().expect("a number that was given and not taken back");
        self.free.push(at);
        value
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, with their numbers.
    fn drain(&mut self) -> impl Iterator<Item = (usize, T)> {
        self.free.clear();
        let slots = std::mem::take(&mut self.slots);
        slots.into_iter().enumerate().filter_map(|(at, slot)| Some((at, slot?)))
    }
}
