//! Opening a store of segments.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{Error, Result};
use kvstrata_io::{Disk, Open};

use super::geometry::UNIT;
use super::load::load;
use super::log::Writer;
use super::segments::State;
use super::{File, log_name, parse_name};
use crate::settings::count;
use crate::store::Store;

const OP: &str = "recover store";

impl<D: Disk> Store<D> {
    /// Fills the index from the snapshot and the log, and gets the segments ready.
    pub(crate) fn recover_slab(self: &Arc<Self>) -> Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let failed = |e| Error::io(OP, e).with("root", self.root.display());
        self.remove_orphans().map_err(failed)?;
        let loaded = {
            let index = std::cell::RefCell::new(self.index.lock());
            load(
                &*self.disk,
                &slab.dir,
                slab.store_id,
                |objects| index.borrow_mut().expect(objects as usize),
                |objects| index.borrow().fetch(objects),
                |record| index.borrow_mut().replay(record),
            )?
        };
        self.counts.recovered_snapshot.store(loaded.from_snapshot, Ordering::Relaxed);
        self.counts.recovered_log.store(loaded.from_log, Ordering::Relaxed);
        self.serial.fetch_max(loaded.generation, Ordering::Relaxed);
        let states = self.look_at_segments().map_err(failed)?;
        let forgotten = {
            let g = &slab.geometry;
            let holds = |at: u64, bytes: u64| {
                let (segment, within) = g.locate(at);
                let there = states.get(segment as usize);
                let there = there.is_some_and(|s| matches!(s, State::Good(len) if within + bytes <= *len));
                there && g.holds(at, bytes)
            };
            let mut index = self.index.lock();
            for segment in 0..states.len() as u64 {
                index.extents().grow((g.len_of(segment) / UNIT) as u32);
            }
            // Without a digest, only an unbroken log says that nothing else was written there.
            index.settle_places(holds, |object| object.found.digest.is_some() || !loaded.gap)
        };
        self.counts.forgotten.store(forgotten, Ordering::Relaxed);
        if loaded.gap && loaded.epoch > 0 || forgotten > 0 {
            tracing::warn!(
                root = %self.root.display(), forgotten, rotten = loaded.rotten,
                "parts of the index or of the segments are missing; what cannot be believed is forgotten"
            );
        }
        let writer = match loaded.log.filter(|_| !loaded.gap && forgotten == 0 && loaded.snapshot.is_some()) {
            Some(log) => {
                let path = slab.dir.join(log_name(loaded.epoch));
                let file = self.disk.open(&path, Open { write: true, ..Open::default() }).map_err(failed)?;
                if self.disk.file_metadata(&file).map_err(failed)?.len > log.end {
                    // A torn tail.
                    self.disk.set_len(&file, log.end).map_err(failed)?;
                }
                let mut writer =
                    Writer::after(Some(Arc::new(file)), loaded.epoch, log.end, log.next, log.records);
                writer.snapshot = loaded.snapshot == Some(loaded.epoch);
                writer
            }
            None => Writer::after(None, loaded.epoch, 0, loaded.next, 0),
        };
        let anew = writer.file.is_none();
        *slab.writer.lock() = writer;
        if anew {
            self.compact(None).map_err(failed)?;
        }
        if let Some(epoch) = loaded.snapshot {
            self.remove_epochs_before(epoch);
        }
        Ok(())
    }

    /// The segments that are there; those beyond the capacity are removed, lost ones are made anew.
    fn look_at_segments(&self) -> std::io::Result<Vec<State>> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let g = &slab.geometry;
        let mut there = 0;
        for entry in self.disk.list(&slab.dir)? {
            match parse_name(&entry.name) {
                Some(File::Segment(n)) if n < g.segments() => there = there.max(n + 1),
                Some(File::Segment(_)) => self.disk.unlink(&slab.dir.join(&entry.name))?,
                Some(File::Log(_) | File::Snapshot(_)) => {}
                None => count(&self.counts.strangers),
            }
        }
        let mut states = Vec::new();
        for n in 0..there {
            let state = slab.segments.look(&*self.disk, n, g, slab.store_id)?;
            if state == State::Lost {
                slab.segments.make(&*self.disk, n, g, slab.store_id)?;
            }
            // Opened now, so that no load waits for it.
            slab.segments.open(&*self.disk, n, true, &self.modes)?;
            states.push(state);
        }
        Ok(states)
    }
}
