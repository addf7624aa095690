//! Writing the log, in groups: whoever waits, waits for one write of all that has happened until then.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::KeyScope;
use kvstrata_io::{Disk, IoEngine, Open};
use parking_lot::{Condvar, Mutex};

use super::format::{Record, SLOT, SlotAt, log_head, push_record, push_scope, scope_slots, scope_text};
use super::segments::set_aside;
use super::{Slab, log_name};
use crate::Durability;
use crate::store::Store;

/// Something that goes to the log.
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// Of an insertion: the slot that the object is written in.
    pub(crate) slot: Option<u32>,
    /// The place that is free once this is written.
    pub(crate) frees: Option<u64>,
    /// Whether a digest vouches for the object.
    pub(crate) vouched: bool,
    /// Hears whether it was written. Called without locks, on the thread that wrote it.
    pub(crate) done: Option<Box<dyn FnOnce(io::Result<()>) + Send>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:?}, frees {:?})", self.record, self.frees)
    }
}

impl Entry {
    /// The slots it takes in a log that does not know its scope.
    fn most_slots(&self) -> usize {
        match &self.record {
            Record::Insert(object) => {
                let scope = object.key.scope();
                1 + scope_slots(32 + scope.model().len() + scope.salt().len())
            }
            Record::Remove { .. } => 1,
        }
    }
}

/// The end of the log.
#[derive(Debug)]
pub(crate) struct Writer<D: Disk> {
    /// None until the first log is begun.
    pub(crate) file: Option<Arc<D::File>>,
    pub(crate) epoch: u64,
    /// Where the next record goes.
    pub(crate) at: u64,
    /// Its number.
    pub(crate) next: u64,
    /// Records in this log.
    pub(crate) records: u64,
    /// Whether the snapshot that goes with this log is there.
    pub(crate) snapshot: bool,
    /// Whether something may lie behind the end that has to be cut off first.
    torn: bool,
    /// The numbers of scopes, by address; the index keeps one of each.
    scopes: HashMap<usize, (u32, Arc<KeyScope>)>,
}

/// The log of a store with so many objects has one record at most. Fewer would be read sooner by a start; but with each new log
/// all objects are written, 146 bytes each, which is 4 % of what is stored where objects have 64 KiB.
pub(super) const OBJECTS_TO_A_RECORD: u64 = 8;

enum NotWritten {
    /// The log is as long as it may be.
    Full,
    Failed(io::Error),
}

impl<D: Disk> Writer<D> {
    pub(crate) fn none() -> Self {
        Self::after(None, 0, 0, 1, 0)
    }

    /// Goes on with a log that was read up to `at`.
    pub(crate) fn after(file: Option<Arc<D::File>>, epoch: u64, at: u64, next: u64, records: u64) -> Self {
        Self { file, epoch, at, next, records, snapshot: true, torn: false, scopes: HashMap::new() }
    }

    /// Goes on in the log of the next epoch, which was [made](make_log). The one before stays until there is a snapshot.
    ///
    /// The head is on the device with the first record that has to be, or before the snapshot is.
    fn begin(&mut self, disk: &D, slab: &Slab<D>, file: D::File) -> io::Result<()> {
        let epoch = self.epoch + 1;
        disk.write_all_at(&file, 0, &log_head(slab.store_id, epoch, self.next))
            .inspect_err(|_| drop(disk.unlink(&slab.dir.join(log_name(epoch)))))?;
        *self = Self::after(Some(Arc::new(file)), epoch, SLOT as u64, self.next, 0);
        self.snapshot = false;
        Ok(())
    }

    fn number(
        &mut self,
        scope: &Arc<KeyScope>,
        new: &mut Vec<usize>,
        out: &mut Vec<u8>,
        seq: &mut u64,
    ) -> u32 {
        let next = self.scopes.len() as u32;
        let address = Arc::as_ptr(scope) as usize;
        let (number, _) = self.scopes.entry(address).or_insert_with(|| {
            let back = (*seq - self.next) as u32;
            push_scope(next, &scope_text(scope), SlotAt { seq: *seq, epoch: self.epoch, back }, out);
            *seq += 1;
            new.push(address);
            (next, Arc::clone(scope))
        });
        *number
    }

    fn write(
        &mut self,
        disk: &D,
        group: &[Entry],
        slab: &Slab<D>,
        durability: Durability,
    ) -> Result<(), NotWritten> {
        let Some(file) = self.file.clone() else { return Err(NotWritten::Full) };
        let (mut out, mut new, mut seq) = (Vec::with_capacity(group.len() * SLOT), Vec::new(), self.next);
        let (mut touched, mut sync) = (HashSet::new(), durability == Durability::Full);
        for entry in group {
            let scope = match &entry.record {
                Record::Insert(object) => {
                    if durability != Durability::None || !entry.vouched {
                        touched.insert(slab.geometry.locate(object.place.at).0);
                    }
                    self.number(object.key.scope(), &mut new, &mut out, &mut seq)
                }
                Record::Remove { .. } => {
                    sync |= entry.frees.is_some() && !entry.vouched;
                    0
                }
            };
            let at = SlotAt { seq, epoch: self.epoch, back: (seq - self.next) as u32 };
            push_record(&entry.record, scope, at, &mut out);
            seq += 1;
        }
        let full = self.at + out.len() as u64 > slab.geometry.log;
        let written = if full { Ok(()) } else { self.put(disk, &file, &out, touched, slab, sync) };
        if full || written.is_err() {
            new.iter().for_each(|address| drop(self.scopes.remove(address)));
            return Err(written.map_or_else(NotWritten::Failed, |()| NotWritten::Full));
        }
        (self.at, self.next, self.records) =
            (self.at + out.len() as u64, seq, self.records + (seq - self.next));
        Ok(())
    }

    fn put(
        &mut self,
        disk: &D,
        file: &D::File,
        out: &[u8],
        touched: HashSet<u64>,
        slab: &Slab<D>,
        sync: bool,
    ) -> io::Result<()> {
        if self.torn {
            disk.set_len(file, self.at)?;
            self.torn = false;
        }
        for segment in touched {
            let file = slab.segments.opened(segment, true).or_else(|| slab.segments.opened(segment, false));
            file.map_or(Ok(()), |file| disk.sync_file(&file))?;
        }
        let written = disk.write_all_at(file, self.at, out);
        let written = written.and_then(|()| if sync { disk.sync_file(file) } else { Ok(()) });
        if written.is_err() {
            // What was not written is not to be found by the next start.
            self.torn = disk.set_len(file, self.at).is_err();
        }
        written
    }
}

/// An empty log that is there after a loss of power, too. Waits for the device: nobody is to wait for this one.
fn make_log<D: Disk>(disk: &D, slab: &Slab<D>, epoch: u64) -> io::Result<D::File> {
    let path = slab.dir.join(log_name(epoch));
    let make = || {
        match disk.unlink(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = disk.open(&path, Open { write: true, create_new: true, ..Open::default() })?;
        set_aside(disk, &file, slab.geometry.log)?;
        disk.sync_file(&file)?;
        disk.sync_dir(&slab.dir)?;
        Ok(file)
    };
    make().inspect_err(|_| drop(disk.unlink(&path)))
}

/// The same error for one more of those who wait.
fn again(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error)
}

impl<D: Disk> Slab<D> {
    /// Adds to what has to go to the log.
    pub(crate) fn push(&self, entry: Entry) {
        self.pending.lock().push(entry);
    }

    /// Whether places are free as soon as what has happened is written.
    pub(crate) fn frees_places(&self) -> bool {
        self.pending.lock().iter().any(|entry| entry.frees.is_some())
    }

    /// What goes next, as much as an empty log surely has room for.
    fn group(&self) -> Vec<Entry> {
        let mut pending = self.pending.lock();
        let room = (self.geometry.log as usize / SLOT).saturating_sub(1);
        let mut slots = 0;
        let n = pending.iter().take_while(|entry| {
            slots += entry.most_slots();
            slots <= room
        });
        let n = n.count().max(1).min(pending.len());
        pending.drain(..n).collect()
    }

    /// Puts back what was not written, in front.
    fn put_back(&self, group: Vec<Entry>) {
        let mut pending = self.pending.lock();
        pending.splice(0..0, group);
    }

    /// Those who wait hear that it cannot be written. What only frees places waits for better times.
    fn fail(&self, e: &io::Error) {
        let (waiting, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *self.pending.lock()).into_iter().partition(|entry| entry.done.is_some());
        self.put_back(rest);
        for Entry { record, frees, vouched, done, .. } in waiting {
            if frees.is_some() {
                self.push(Entry { record, frees, vouched, slot: None, done: None });
            }
            if let Some(done) = done {
                done(Err(again(e)));
            }
        }
    }
}

impl<D: Disk> Store<D> {
    /// Writes everything that has happened until now to the log. Blocks.
    pub(crate) fn commit(self: &Arc<Self>) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        loop {
            let mut writer = slab.writer.lock();
            let group = slab.group();
            if group.is_empty() {
                return Ok(());
            }
            match writer.write(&*self.disk, &group, slab, self.durability) {
                Ok(()) => {
                    let mut index = self.index.lock();
                    group.iter().filter_map(|entry| entry.frees).for_each(|at| index.free_place(at));
                    // Before another log may begin, whose snapshot these objects must not be missing from.
                    group.iter().filter_map(|entry| entry.slot).for_each(|slot| index.recorded(slot));
                    drop(index);
                    drop(writer);
                    group.into_iter().filter_map(|entry| entry.done).for_each(|done| done(Ok(())));
                }
                Err(NotWritten::Full) => {
                    slab.put_back(group);
                    let epoch = writer.epoch;
                    drop(writer);
                    self.compact(Some(epoch)).inspect_err(|e| slab.fail(e))?;
                }
                Err(NotWritten::Failed(e)) => {
                    slab.put_back(group);
                    drop(writer);
                    slab.fail(&e);
                    return Err(e);
                }
            }
        }
    }

    /// As [`Self::commit`], on an engine's thread.
    pub(crate) fn commit_soon(self: &Arc<Self>) {
        let slab = self.slab.as_ref().expect("a store of segments");
        if slab.committing.swap(true, Ordering::AcqRel) {
            return;
        }
        let store = Arc::clone(self);
        let job = move || {
            let slab = store.slab.as_ref().expect("a store of segments");
            loop {
                // Whoever waits has heard of a failure.
                drop(store.commit());
                slab.committing.store(false, Ordering::Release);
                let more = slab.pending.lock().iter().any(|entry| entry.done.is_some());
                if !more || slab.committing.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        };
        if let Err(job) = self.disk.engine().spawn(false, Box::new(job)) {
            // The engine went first.
            job();
        }
    }

    /// Adds a record and waits until it is written. Blocks.
    pub(crate) fn write_record(self: &Arc<Self>, entry: Entry) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let told = Arc::new((Mutex::new(None), Condvar::new()));
        let to = Arc::clone(&told);
        let done: Box<dyn FnOnce(io::Result<()>) + Send> = Box::new(move |written| {
            *to.0.lock() = Some(written);
            to.1.notify_one();
        });
        slab.push(Entry { done: Some(done), ..entry });
        drop(self.commit());
        // Another thread may have taken it along: then it is written, and that thread is about to say so.
        let mut answer = told.0.lock();
        loop {
            match answer.take() {
                Some(written) => return written,
                None => told.1.wait(&mut answer),
            }
        }
    }

    /// Begins the log anew and writes the snapshot that goes with it; the ones before are removed. If it is for an epoch
    /// whose log is full, somebody else may have done it meanwhile. Blocks.
    pub(crate) fn compact(self: &Arc<Self>, full: Option<u64>) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let _alone = slab.compacting.lock();
        let next = {
            let writer = slab.writer.lock();
            if full.is_some_and(|epoch| epoch != writer.epoch) && writer.snapshot {
                return Ok(());
            }
            // A log whose snapshot could not be written is not followed by one more.
            (writer.file.is_none() || writer.snapshot).then_some(writer.epoch + 1)
        };
        // Records go on into the log before meanwhile.
        let made = next.map(|epoch| make_log(&*self.disk, slab, epoch)).transpose()?;
        let (file, epoch, first) = {
            let mut writer = slab.writer.lock();
            if let Some(file) = made {
                writer.begin(&*self.disk, slab, file)?;
            }
            let first = writer.next - writer.records;
            (Arc::clone(writer.file.as_ref().expect("it was begun")), writer.epoch, first)
        };
        self.write_slab_snapshot(epoch, first, &file)?;
        let mut writer = slab.writer.lock();
        if writer.epoch == epoch {
            writer.snapshot = true;
        }
        Ok(())
    }

    /// Whether the log is worth being written anew: it is nearly full, or takes a start a while.
    pub(crate) fn compaction_is_due(&self) -> bool {
        /// Records that a start reads in a blink.
        const FEW: u64 = 1 << 16;
        let Some(slab) = &self.slab else { return false };
        let Some(writer) = slab.writer.try_lock() else { return false };
        let (records, at) = (writer.records, writer.at);
        drop(writer);
        at > slab.geometry.log / 4 * 3 && records > 0
            || records > FEW.max(self.index.lock().len() as u64 / OBJECTS_TO_A_RECORD)
    }
}
