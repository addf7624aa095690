//! Reading what the snapshot and the logs say, without opening the store.

use std::io;
use std::path::Path;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_io::{Disk, Open};

use super::format::{Record, Replayed, SLOT, replay};
use super::geometry::MOST_LOG;
use super::pages::{PAGE, Pages, SnapshotHead};
use super::{File, log_name, parse_name, snapshot_name};
use crate::index::Object;

const OP: &str = "read index";
/// Bytes of one read: what was copied from the page cache is in the processor's caches when it is decoded.
const PIECE: usize = 256 << 10;
/// Bytes whose objects are handed on together.
const GROUP: usize = 4 * PAGE;

/// What there was to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Loaded {
    /// The newest epoch of which there is anything, 0 for none.
    pub(crate) epoch: u64,
    /// Its log, if it can be gone on with.
    pub(crate) log: Option<Replayed>,
    /// Above the number of every record.
    pub(crate) next: u64,
    /// Above the generation of every object.
    pub(crate) generation: u64,
    /// Whether something is missing: then removals may be, too.
    pub(crate) gap: bool,
    /// What was wrong, of parts that are there and no use.
    pub(crate) rotten: u64,
    /// Objects of the snapshot.
    pub(crate) from_snapshot: u64,
    /// Records of the logs.
    pub(crate) from_log: u64,
    /// The epoch of the snapshot.
    pub(crate) snapshot: Option<u64>,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |e| Error::io(OP, e).with("path", path.display())
}

/// Reads the index in `dir`, oldest first: what a record says replaces what was said before. `expect` hears how many
/// objects the snapshot has, and `soon` which ones come next.
///
/// # Errors
/// `Mismatch` for a later version, and what the disk says. What is rotten is no error.
pub(crate) fn load<D: Disk>(
    disk: &D,
    dir: &Path,
    store_id: u128,
    mut expect: impl FnMut(u64),
    mut soon: impl FnMut(&[Object]),
    mut each: impl FnMut(Record),
) -> Result<Loaded> {
    let (mut snapshots, mut logs) = (Vec::new(), Vec::new());
    for entry in disk.list(dir).map_err(failed(dir))? {
        match parse_name(&entry.name) {
            Some(File::Snapshot(epoch)) => snapshots.push(epoch),
            Some(File::Log(epoch)) => logs.push(epoch),
            _ => {}
        }
    }
    snapshots.sort_unstable();
    logs.sort_unstable();
    let mut out = Loaded { next: 1, generation: 1, ..Loaded::default() };
    out.epoch = snapshots.last().copied().max(logs.last().copied()).unwrap_or(0);
    let mut said = |record: Record, out: &mut Loaded| {
        if let Record::Insert(object) = &record {
            out.generation = out.generation.max(object.generation.saturating_add(1));
        }
        each(record);
    };
    let mut first = None;
    for epoch in snapshots.iter().rev() {
        match read_snapshot(disk, dir, store_id, *epoch, &mut expect, &mut soon, |record| {
            said(record, &mut out)
        }) {
            Ok((head, rotten, objects)) => {
                out.rotten += rotten;
                out.gap |= rotten > 0 || objects != head.objects;
                out.generation = out.generation.max(head.generation);
                (out.from_snapshot, out.snapshot, first) = (objects, Some(*epoch), Some(head.first));
                break;
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!(dir = %dir.display(), epoch, error = %e, "a snapshot of the index is no use");
                out.rotten += 1;
                out.gap = true;
            }
            Err(e) => return Err(e),
        }
    }
    let from = out.snapshot.unwrap_or(0);
    let relevant: Vec<u64> = logs.into_iter().filter(|epoch| *epoch >= from).collect();
    out.gap |= out.snapshot.is_none_or(|epoch| relevant.first() != Some(&epoch));
    for (n, epoch) in relevant.iter().enumerate() {
        out.gap |= n > 0 && relevant[n - 1] + 1 != *epoch;
        let bytes = read_log(disk, &dir.join(log_name(*epoch)))?;
        match replay(&bytes, store_id, *epoch, first, |record| said(record, &mut out)) {
            Ok(replayed) => {
                out.gap |= replayed.gap;
                out.from_log += replayed.records;
                (out.next, first) = (out.next.max(replayed.next), Some(replayed.next));
                out.log = (*epoch == out.epoch && !replayed.gap).then_some(replayed);
            }
            // Its head was not written yet, and nothing is written before that.
            Err(_) if *epoch == out.epoch && *epoch > from && bytes.len() <= SLOT => {}
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::warn!(dir = %dir.display(), epoch, error = %e, "a log of the index is no use");
                out.rotten += 1;
                (out.gap, first) = (true, None);
            }
            Err(e) => return Err(e),
        }
    }
    if let Some(first) = first {
        out.next = out.next.max(first);
    }
    Ok(out)
}

fn read_log<D: Disk>(disk: &D, path: &Path) -> Result<Vec<u8>> {
    let file = disk.open(path, Open::default()).map_err(failed(path))?;
    let len = disk.file_metadata(&file).map_err(failed(path))?.len;
    if len > MOST_LOG {
        return Err(Error::new(ErrorKind::Corrupt, OP, "a log of that length was never written")
            .with("path", path.display())
            .with("bytes", len));
    }
    let mut bytes = vec![0; len as usize];
    read_as_far_as_possible(disk, &file, 0, &mut bytes);
    Ok(bytes)
}

/// Blocks that the device does not give back are zeros, which no checksum fits.
fn read_as_far_as_possible<D: Disk>(disk: &D, file: &D::File, at: u64, to: &mut [u8]) {
    if disk.read_exact_at(file, at, to).is_ok() {
        return;
    }
    for (n, block) in to.chunks_mut(PAGE).enumerate() {
        if disk.read_exact_at(file, at + (n * PAGE) as u64, block).is_err() {
            block.fill(0);
        }
    }
}

/// The head, the rotten pages, and how many objects there were.
fn read_snapshot<D: Disk>(
    disk: &D,
    dir: &Path,
    store_id: u128,
    epoch: u64,
    expect: &mut impl FnMut(u64),
    soon: &mut impl FnMut(&[Object]),
    mut each: impl FnMut(Record),
) -> Result<(SnapshotHead, u64, u64)> {
    let path = dir.join(snapshot_name(epoch));
    let file = disk.open(&path, Open::default()).map_err(failed(&path))?;
    let len = disk.file_metadata(&file).map_err(failed(&path))?.len;
    let mut piece = vec![0; PIECE.min(len as usize)];
    let first = piece.len().min(PAGE);
    read_as_far_as_possible(disk, &file, 0, &mut piece[..first]);
    let head = SnapshotHead::decode(&piece[..first], store_id)?;
    if head.epoch != epoch {
        return Err(Error::new(ErrorKind::Corrupt, OP, "a snapshot of another epoch"));
    }
    let end = head.pages.saturating_mul(PAGE as u64);
    // No more than the file has room for, whatever its head says.
    expect(head.objects.min(len / super::format::RECORD as u64));
    let (mut pages, mut objects) = (Pages::new(epoch), Vec::new());
    let mut at = PAGE as u64;
    while at < end.min(len) {
        let n = (end.min(len) - at).min(PIECE as u64) as usize;
        read_as_far_as_possible(disk, &file, at, &mut piece[..n]);
        for some in piece[..n].chunks(GROUP) {
            pages.read(some, |object| objects.push(object));
            soon(&objects);
            objects.drain(..).for_each(|object| each(Record::Insert(object)));
        }
        at += n as u64;
    }
    let missing = end.saturating_sub(at.max(PAGE as u64)).div_ceil(PAGE as u64);
    Ok((head, pages.rotten + missing, pages.objects))
}
