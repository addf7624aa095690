//! The log and the snapshot, decoded and encoded again, and made up: what fuzzers and benches hold against the store.

use std::collections::HashMap;
use std::path::Path;

use kvstrata_core::{Digest, Error, Layout, ObjectKey, Result};
use kvstrata_io::{Disk, Open, SimDisk, SimOptions};
use kvstrata_l2::Found;

use super::format::{Record, SlotAt, extent_of, get, log_head, push_record, push_scope, replay, scope_text};
use super::log::OBJECTS_TO_A_RECORD;
use super::pages::{PAGE, Pages, SnapshotHead};
use super::snapshot::{SnapshotWriter, Tables};
use super::{DIR, Geometry, Segments, log_name, snapshot_name};
use crate::index::{Object, Place};
use crate::{Manifest, names};

/// The good records of an index log, whatever its epoch, as a log without a gap.
///
/// # Errors
/// `Corrupt` for what is no log of the store with this id, `Mismatch` for a later version.
pub fn rewrite_log(bytes: &[u8], store_id: u128) -> Result<Vec<u8>> {
    let epoch = bytes.get(32..40).map_or(0, |b| u64::from_le_bytes(get(b, 0)));
    let mut records = Vec::new();
    let replayed = replay(bytes, store_id, epoch, None, |record| records.push(record))?;
    let mut out = log_head(store_id, epoch, 1).to_vec();
    let mut scopes: HashMap<Vec<u8>, u32> = HashMap::new();
    for (n, record) in (1..).zip(&records) {
        let mut scope = 0;
        if let Record::Insert(object) = record {
            let (text, next) = (scope_text(object.key.scope()), scopes.len() as u32);
            scope = *scopes.entry(text).or_insert_with_key(|text| {
                push_scope(next, text, SlotAt { seq: n + u64::from(next), epoch, back: 0 }, &mut out);
                next
            });
        }
        let at = SlotAt { seq: n + scopes.len() as u64, epoch, back: 0 };
        push_record(record, scope, at, &mut out);
    }
    debug_assert!(records.len() as u64 <= replayed.records);
    Ok(out)
}

/// The objects of the good pages of an index snapshot, as a snapshot of only those.
///
/// # Errors
/// As [`rewrite_log`].
pub fn rewrite_snapshot(bytes: &[u8], store_id: u128) -> Result<Vec<u8>> {
    let head = SnapshotHead::decode(bytes, store_id)?;
    let (mut objects, mut tables, mut pages) = (Vec::new(), Tables::default(), Pages::new(head.epoch));
    pages.read(&bytes[PAGE..], |object| objects.push(object));
    objects.iter().for_each(|object| tables.collect(object));
    let disk = SimDisk::new(SimOptions { record: false, ..SimOptions::default() });
    let write = || {
        let file =
            disk.open(Path::new("/index"), Open { write: true, create_new: true, ..Open::default() })?;
        let mut out = SnapshotWriter::begin(&disk, &file, head.epoch, tables, u32::MAX)?;
        for object in &objects {
            out.add(object);
        }
        out.end(store_id, head.first, head.generation)?;
        let mut bytes = vec![0; disk.file_metadata(&file)?.len as usize];
        disk.read_exact_at(&file, 0, &mut bytes)?;
        Ok(bytes)
    };
    let written: std::io::Result<Vec<u8>> = write();
    written.map_err(|e| Error::io("rewrite snapshot", e))
}

/// Makes a store of segments of which only the index is written: `objects` objects with the keys and payload lengths that
/// `nth` says, one after the other, as many of them in the log as it ever has. Returns the bytes of the index.
///
/// # Errors
/// `Invalid` if they do not fit, and what the disk says.
pub fn generate_index<D: Disk>(
    disk: &D,
    root: &Path,
    capacity: u64,
    objects: u64,
    nth: impl Fn(u64) -> (ObjectKey, u64),
) -> Result<u64> {
    const OP: &str = "generate index";
    let g = Geometry::plan(capacity, 4096, None)?;
    let io = |e| Error::io(OP, e).with("root", root.display());
    let (dir, store_id, epoch) = (root.join(DIR), 0xfeed, 1);
    disk.create_dir_all(&dir).map_err(io)?;
    let manifest = Manifest { store_id, namespaces: Vec::new(), tmp: None, segment: Some(g.segment) };
    manifest.write(disk, root, &dir.join(names::temp_name(0, 0, 0)))?;
    let segments = Segments::new(&dir);
    let (mut next, mut made) = (0, 0);
    let mut object = |n: u64| -> Result<Object> {
        let (key, len) = nth(n);
        let charge = extent_of(len);
        let (segment, within) = g.locate(next);
        if within + charge > g.len_of(segment) || within == 0 {
            let segment = if within == 0 { segment } else { segment + 1 };
            next = segment * g.segment + 4096;
        }
        if !g.holds(next, charge) || n >= g.objects() {
            return Err(Error::invalid(OP, "so many objects do not fit").with("objects", n));
        }
        if g.locate(next).0 >= made {
            segments.make(disk, made, &g, store_id).map_err(io)?;
            made += 1;
        }
        let place = Place { path: 0, at: next };
        next += charge;
        let found = Found { len, layout: Some(Layout::opaque(len)?.id()), digest: Some(Digest::from_u64(n)) };
        Ok(Object { key, found, place, generation: n + 1, charge, used_at: n })
    };
    let new = Open { write: true, create_new: true, ..Open::default() };
    let in_snapshot = objects - objects / OBJECTS_TO_A_RECORD;
    let mut tables = Tables::default();
    let first = object(0)?;
    tables.collect(&first);
    let file = disk.open(&dir.join(snapshot_name(epoch)), new).map_err(io)?;
    let mut out = SnapshotWriter::begin(disk, &file, epoch, tables, u32::MAX).map_err(io)?;
    out.add(&first);
    for n in 1..in_snapshot {
        out.add(&object(n)?);
        out.flush(false).map_err(io)?;
    }
    out.end(store_id, 1, objects + 1).map_err(io)?;
    let (mut log, mut seq) = (log_head(store_id, epoch, 1).to_vec(), 2);
    push_scope(0, &scope_text(first.key.scope()), SlotAt { seq: 1, epoch, back: 0 }, &mut log);
    for n in in_snapshot..objects {
        push_record(&Record::Insert(object(n)?), 0, SlotAt { seq, epoch, back: 0 }, &mut log);
        seq += 1;
    }
    let log_file = disk.open(&dir.join(log_name(epoch)), new).map_err(io)?;
    disk.write_all_at(&log_file, 0, &log).map_err(io)?;
    let snapshot = disk.file_metadata(&file).map_err(io)?.len;
    Ok(snapshot + log.len() as u64)
}
