//! The log and the snapshot, decoded and encoded again: what fuzzers and tools hold against the bytes they gave.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_io::{Disk, Open, SimDisk, SimOptions};

use super::format::{Record, get, log_head, push_record, push_scope, replay, scope_text};
use super::pages::{PAGE, Pages, SnapshotHead};
use super::snapshot::{SnapshotWriter, Tables};

/// The good records of an index log, whatever its epoch, as a log without a gap.
///
/// # Errors
/// `Corrupt` for what is no log of the store with this id, `Mismatch` for a later version.
pub fn rewrite_log(bytes: &[u8], store_id: u128) -> Result<Vec<u8>> {
    let epoch = bytes.get(32..40).map_or(0, |b| u64::from_le_bytes(get(b, 0)));
    let mut records = Vec::new();
    let replayed = replay(bytes, store_id, epoch, None, |record| records.push(record))?;
    let mut seq = 1;
    let mut out = log_head(store_id, epoch, seq).to_vec();
    let mut scopes: HashMap<Vec<u8>, u32> = HashMap::new();
    for record in &records {
        let mut scope = 0;
        if let Record::Insert(object) = record {
            let (text, next) = (scope_text(object.key.scope()), scopes.len() as u32);
            scope = *scopes.entry(text.clone()).or_insert_with(|| {
                push_scope(next, &text, seq, epoch, &mut out);
                seq += 1;
                next
            });
        }
        push_record(record, scope, seq, epoch, &mut out);
        seq += 1;
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
    debug_assert!(objects.iter().all(|object| Arc::strong_count(object.key.scope()) > 0));
    written.map_err(|e| Error::io("rewrite snapshot", e))
}
