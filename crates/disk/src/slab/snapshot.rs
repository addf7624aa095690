//! Writing the snapshot, beside whatever else goes on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use kvstrata_core::LayoutId;
use kvstrata_io::{Disk, Open};

use super::format::{Kind, LAYOUTS_PER_PAGE, PAGE, PER_PAGE, Page, RECORD, SnapshotHead, encode_object, scope_text};
use super::geometry::UNIT;
use super::{File, Geometry, parse_name, snapshot_name};
use crate::settings::count;
use crate::store::Store;

/// Objects that are looked at under one lock.
const AT_ONCE: usize = 4096;
/// Bytes of one write.
const PIECE: usize = 1 << 20;

/// An object in the order of its use.
struct Ordered {
    used_at: u64,
    slot: u32,
    generation: u64,
}

/// What numbers the objects' scopes and layouts have.
#[derive(Default)]
struct Numbers {
    scopes: HashMap<usize, u32>,
    layouts: HashMap<LayoutId, u32>,
}

struct Out<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    epoch: u64,
    pages: u32,
    bytes: Vec<u8>,
    at: u64,
}

impl<D: Disk> Out<'_, D> {
    fn page(&mut self, page: &mut Page) -> io::Result<()> {
        if page.is_empty() {
            return Ok(());
        }
        page.flush(self.epoch, self.pages, &mut self.bytes);
        self.pages += 1;
        if self.bytes.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.write_all_at(self.file, self.at, &self.bytes)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

impl<D: Disk> Store<D> {
    /// Writes the snapshot that goes with the log of `epoch`, whose first record is number `first`, and removes the logs and
    /// snapshots before it.
    pub(super) fn write_slab_snapshot(self: &Arc<Self>, epoch: u64, first: u64, log: &D::File) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let temp = self.temp_path();
        let write = || {
            let how = Open { write: true, create_new: true, ..Open::default() };
            let file = self.disk.open(&temp, how)?;
            self.fill_snapshot(&file, epoch, first)?;
            // What it says may be newer than the beginning of the log: nothing of that may be lost now.
            self.disk.sync_file(log)?;
            self.disk.sync_file(&file)?;
            drop(file);
            self.disk.rename(&temp, &slab.dir.join(snapshot_name(epoch)))?;
            self.disk.sync_dir(&slab.dir)
        };
        let written = write();
        match &written {
            Ok(()) => {
                count(&self.counts.snapshots);
                self.remove_epochs_before(epoch);
            }
            Err(e) => {
                drop(self.disk.unlink(&temp));
                count(&self.counts.snapshots_failed);
                tracing::warn!(root = %self.root.display(), error = %e, "index snapshot not written");
            }
        }
        written
    }

    /// Removes what a newer snapshot has made useless. What stays is removed the next time.
    pub(super) fn remove_epochs_before(&self, epoch: u64) {
        let slab = self.slab.as_ref().expect("a store of segments");
        let entries = self.disk.list(&slab.dir).unwrap_or_default();
        for entry in entries {
            if let Some(File::Log(e) | File::Snapshot(e)) = parse_name(&entry.name)
                && e < epoch
                && let Err(e) = self.disk.unlink(&slab.dir.join(&entry.name))
            {
                tracing::warn!(name = %entry.name.display(), error = %e, "an old part of the index cannot be deleted");
            }
        }
    }

    fn fill_snapshot(&self, file: &D::File, epoch: u64, first: u64) -> io::Result<()> {
        let slab = self.slab.as_ref().expect("a store of segments");
        let mut out = Out { disk: &*self.disk, file, epoch, pages: 1, bytes: Vec::with_capacity(PIECE + PAGE), at: UNIT };
        let (mut scopes, mut layouts) = (Page::new(Kind::Scopes), Page::new(Kind::Layouts));
        let (mut numbers, mut order) = (Numbers::default(), Vec::new());
        let budget = slab.geometry.snapshot / UNIT;
        let tables = Geometry::tables(budget) as u32;
        let mut from = Some(0);
        let (mut texts, mut ids) = (Vec::new(), Vec::new());
        while let Some(at) = from {
            let index = self.index.lock();
            from = index.each_resident(at, AT_ONCE, |slot, object| {
                order.push(Ordered { used_at: object.used_at, slot, generation: object.generation });
                let scope = object.key.scope();
                let next = numbers.scopes.len() as u32;
                numbers.scopes.entry(Arc::as_ptr(scope) as usize).or_insert_with(|| {
                    texts.push(Arc::clone(scope));
                    next
                });
                let next = numbers.layouts.len() as u32;
                if let Some(layout) = object.found.layout {
                    numbers.layouts.entry(layout).or_insert_with(|| {
                        ids.push(layout);
                        next
                    });
                }
            });
        }
        let mut named = 0;
        for scope in &texts {
            let text = scope_text(scope);
            let entry = match scopes.entry(2 + text.len()) {
                Some(entry) => entry,
                None => {
                    out.page(&mut scopes)?;
                    if out.pages > tables {
                        break;
                    }
                    scopes.entry(2 + text.len()).expect("a page holds the longest scope")
                }
            };
            entry[..2].copy_from_slice(&(text.len() as u16).to_le_bytes());
            entry[2..].copy_from_slice(&text);
            named += 1;
        }
        out.page(&mut scopes)?;
        // More models, tenants and layouts than a snapshot of this size names: the others' objects are not in it.
        numbers.scopes.retain(|_, number| *number < named);
        ids.truncate(tables as usize * LAYOUTS_PER_PAGE);
        numbers.layouts.retain(|_, number| (*number as usize) < ids.len());
        for some in ids.chunks(LAYOUTS_PER_PAGE) {
            for layout in some {
                layouts.entry(16).expect("a page holds so many").copy_from_slice(layout.as_bytes());
            }
            out.page(&mut layouts)?;
        }
        order.sort_unstable_by_key(|o| o.used_at);
        // What was used longest ago is left out if there is not room for all.
        let room = budget.saturating_sub(u64::from(out.pages)) as usize * PER_PAGE;
        let mut objects = 0;
        let mut page = Page::new(Kind::Objects);
        for some in order[order.len().saturating_sub(room)..].chunks(AT_ONCE / 4) {
            let index = self.index.lock();
            for o in some {
                // Gone meanwhile, or another one: the log says that.
                let Some(object) = index.resident(o.slot).filter(|object| object.generation == o.generation) else {
                    continue;
                };
                let scope = numbers.scopes.get(&(Arc::as_ptr(object.key.scope()) as usize));
                let layout = object.found.layout.and_then(|l| numbers.layouts.get(&l));
                let (Some(scope), Some(layout)) = (scope, layout) else { continue };
                let entry = page.entry(RECORD).expect("flushed when full");
                encode_object(object, *scope, *layout, entry);
                objects += 1;
                if page.is_full() {
                    page.flush(epoch, out.pages, &mut out.bytes);
                    out.pages += 1;
                }
            }
            drop(index);
            if out.bytes.len() >= PIECE {
                out.flush()?;
            }
        }
        out.page(&mut page)?;
        out.flush()?;
        let generation = self.serial.load(std::sync::atomic::Ordering::Relaxed);
        let head = SnapshotHead {
            store_id: slab.store_id,
            epoch,
            first,
            pages: u64::from(out.pages),
            objects,
            generation,
        };
        self.disk.write_all_at(file, 0, &head.encode())
    }
}
