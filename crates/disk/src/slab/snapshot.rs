//! Writing the snapshot, beside whatever else goes on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{KeyScope, LayoutId};
use kvstrata_io::{Disk, Open};

use super::format::{RECORD, encode_object, scope_text};
use super::geometry::UNIT;
use super::pages::{Kind, LAYOUTS_PER_PAGE, PAGE, PER_PAGE, Page, SnapshotHead};
use super::{File, Geometry, parse_name, snapshot_name};
use crate::index::Object;
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

/// The scopes and layouts that objects refer to by number, collected before anything is written.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// By address: whoever collects keeps one of each.
    scopes: HashMap<usize, u32>,
    layouts: HashMap<LayoutId, u32>,
    texts: Vec<Arc<KeyScope>>,
    ids: Vec<LayoutId>,
}

impl Tables {
    pub(crate) fn collect(&mut self, object: &Object) {
        let scope = object.key.scope();
        let next = self.texts.len() as u32;
        self.scopes.entry(Arc::as_ptr(scope) as usize).or_insert_with(|| {
            self.texts.push(Arc::clone(scope));
            next
        });
        if let Some(layout) = object.found.layout {
            let next = self.ids.len() as u32;
            self.layouts.entry(layout).or_insert_with(|| {
                self.ids.push(layout);
                next
            });
        }
    }
}

/// A snapshot being written, page by page.
pub(crate) struct SnapshotWriter<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    epoch: u64,
    tables: Tables,
    page: Page,
    pages: u32,
    bytes: Vec<u8>,
    at: u64,
    objects: u64,
}

impl<'a, D: Disk> SnapshotWriter<'a, D> {
    /// Writes the tables: at most `most` pages of scopes, and as many of layouts. The objects of the others are left out.
    pub(crate) fn begin(
        disk: &'a D,
        file: &'a D::File,
        epoch: u64,
        tables: Tables,
        most: u32,
    ) -> io::Result<Self> {
        let bytes = Vec::with_capacity(PIECE + PAGE);
        let page = Page::new(Kind::Objects);
        let mut new = Self { disk, file, epoch, tables, page, pages: 1, bytes, at: UNIT, objects: 0 };
        let texts = std::mem::take(&mut new.tables.texts);
        let (mut scopes, mut named) = (Page::new(Kind::Scopes), 0);
        for scope in &texts {
            let text = scope_text(scope);
            let entry = match scopes.entry(2 + text.len()) {
                Some(entry) => entry,
                None => {
                    new.flush_page(&mut scopes)?;
                    if new.pages > most {
                        break;
                    }
                    scopes.entry(2 + text.len()).expect("a page holds the longest scope")
                }
            };
            entry[..2].copy_from_slice(&(text.len() as u16).to_le_bytes());
            entry[2..].copy_from_slice(&text);
            named += 1;
        }
        new.flush_page(&mut scopes)?;
        new.tables.scopes.retain(|_, number| *number < named);
        let named = (most as usize * LAYOUTS_PER_PAGE).min(new.tables.ids.len());
        new.tables.layouts.retain(|_, number| (*number as usize) < named);
        let (ids, mut layouts) = (std::mem::take(&mut new.tables.ids), Page::new(Kind::Layouts));
        for some in ids[..named].chunks(LAYOUTS_PER_PAGE) {
            for layout in some {
                layouts.entry(16).expect("a page holds so many").copy_from_slice(layout.as_bytes());
            }
            new.flush_page(&mut layouts)?;
        }
        Ok(new)
    }

    /// Pages so far, the head included.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Adds an object, in memory only.
    pub(crate) fn add(&mut self, object: &Object) {
        let scope = self.tables.scopes.get(&(Arc::as_ptr(object.key.scope()) as usize));
        let layout = object.found.layout.and_then(|l| self.tables.layouts.get(&l));
        let (Some(scope), Some(layout)) = (scope, layout) else { return };
        encode_object(object, *scope, *layout, self.page.entry(RECORD).expect("flushed when full"));
        self.objects += 1;
        if self.page.is_full() {
            self.page.flush(self.epoch, self.pages, &mut self.bytes);
            self.pages += 1;
        }
    }

    /// Writes what was added, if it is worth a write.
    pub(crate) fn flush(&mut self, all: bool) -> io::Result<()> {
        if self.bytes.len() >= PIECE || all && !self.bytes.is_empty() {
            self.disk.write_all_at(self.file, self.at, &self.bytes)?;
            self.at += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }

    fn flush_page(&mut self, page: &mut Page) -> io::Result<()> {
        if page.is_empty() {
            return Ok(());
        }
        page.flush(self.epoch, self.pages, &mut self.bytes);
        self.pages += 1;
        self.flush(false)
    }

    /// Writes the rest, and the head; the log's first record has the number `first`.
    pub(crate) fn end(mut self, store_id: u128, first: u64, generation: u64) -> io::Result<()> {
        let mut page = std::mem::replace(&mut self.page, Page::new(Kind::Objects));
        self.flush_page(&mut page)?;
        self.flush(true)?;
        let (epoch, pages, objects) = (self.epoch, u64::from(self.pages), self.objects);
        let head = SnapshotHead { store_id, epoch, first, pages, objects, generation };
        self.disk.write_all_at(self.file, 0, &head.encode())
    }
}

impl<D: Disk> Store<D> {
    /// Writes the snapshot that goes with the log of `epoch`, whose first record is number `first`, and removes the logs and
    /// snapshots before it.
    pub(super) fn write_slab_snapshot(
        self: &Arc<Self>,
        epoch: u64,
        first: u64,
        log: &D::File,
    ) -> io::Result<()> {
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
        let (mut tables, mut order, mut from) = (Tables::default(), Vec::new(), Some(0));
        while let Some(at) = from {
            from = self.index.lock().each_in_log(at, AT_ONCE, |slot, object| {
                order.push(Ordered { used_at: object.used_at, slot, generation: object.generation });
                tables.collect(object);
            });
        }
        order.sort_unstable_by_key(|o| o.used_at);
        let budget = slab.geometry.snapshot / UNIT;
        let most = Geometry::tables(budget) as u32;
        let mut out = SnapshotWriter::begin(&*self.disk, file, epoch, tables, most)?;
        // What was used longest ago is left out if there is not room for all.
        let room = budget.saturating_sub(u64::from(out.pages())) as usize * PER_PAGE;
        for some in order[order.len().saturating_sub(room)..].chunks(AT_ONCE / 4) {
            let index = self.index.lock();
            // What went meanwhile, or is another one now: the log says that.
            let there =
                some.iter().filter_map(|o| index.in_log(o.slot).filter(|x| x.generation == o.generation));
            there.for_each(|object| out.add(object));
            drop(index);
            out.flush(false)?;
        }
        out.end(slab.store_id, first, self.serial.load(Ordering::Relaxed))
    }
}
