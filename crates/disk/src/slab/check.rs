//! Going through a store of segments that nobody has open.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use kvstrata_core::{Error, Result};
use kvstrata_io::{Disk, Open};
use kvstrata_l2::Miss;

use super::format::{Record, SLOT, log_head, read_segment_block};
use super::load::{Loaded, load};
use super::snapshot::{SnapshotWriter, Tables};
use super::{DIR, File, log_name, parse_name, segment_name, snapshot_name};
use crate::index::Object;
use crate::names::{is_temp_name, temp_name};
use crate::store::read_header;
use crate::{Block, Fault, FileState, HEADER_BYTES, Listed, Manifest, Writer};

/// What a store of segments says it holds, in the order of places.
#[derive(Debug)]
pub(crate) struct Contents {
    dir: PathBuf,
    store_id: u128,
    segment: u64,
    pub(crate) loaded: Loaded,
    pub(crate) objects: Vec<Object>,
    /// Names in the directory that are none of the store's.
    pub(crate) strangers: Vec<PathBuf>,
}

/// The number and the segments' length of a store of segments: as the manifest says, or without one as a segment does.
/// `None` if it is no such store.
pub(crate) fn identity<D: Disk>(disk: &D, root: &Path, manifest: Option<&Manifest>) -> Option<(u128, u64)> {
    if let Some(manifest) = manifest {
        return Some((manifest.store_id, manifest.segment?));
    }
    let file = disk.open(&root.join(DIR).join(segment_name(0)), Open::default()).ok()?;
    let mut block = Block::zeroed();
    disk.read_exact_at(&file, 0, block.bytes_mut()).ok()?;
    read_segment_block(&block).map(|(store_id, _, segment)| (store_id, segment))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |e| Error::io("check store", e).with("path", path.display())
}

impl Contents {
    /// Reads the index.
    ///
    /// # Errors
    /// As [`load`].
    pub(crate) fn read<D: Disk>(disk: &D, root: &Path, (store_id, segment): (u128, u64)) -> Result<Self> {
        let dir = root.join(DIR);
        let mut all: HashMap<[u8; 32], Object> = HashMap::new();
        let loaded = load(
            disk,
            &dir,
            store_id,
            |_| (),
            |_| {},
            |record| match record {
                Record::Insert(object) => drop(all.insert(*object.key.fingerprint256(), object)),
                Record::Remove { fingerprint, generation } => {
                    if all.get(&fingerprint).is_some_and(|object| object.generation == generation) {
                        all.remove(&fingerprint);
                    }
                }
            },
        );
        let loaded = loaded?;
        let mut objects: Vec<Object> = all.into_values().collect();
        objects.sort_unstable_by_key(|object| object.place.at);
        let entries = disk.list(&dir).map_err(failed(&dir))?;
        let strange = entries.into_iter().filter(|e| parse_name(&e.name).is_none() && !is_temp_name(&e.name));
        let strangers = strange.map(|e| dir.join(e.name)).collect();
        Ok(Self { dir, store_id, segment, loaded, objects, strangers })
    }

    /// Shows every object, as the header at its place says.
    pub(crate) fn walk<D: Disk>(&self, disk: &D, mut each: impl FnMut(Listed)) {
        let mut open: Option<(u64, Option<D::File>)> = None;
        for object in &self.objects {
            let segment = object.place.at / self.segment;
            let (path, at) = self.whereabouts(object);
            if open.as_ref().is_none_or(|(number, _)| *number != segment) {
                open = Some((segment, disk.open(&path, Open::default()).ok()));
            }
            let file = open.as_ref().and_then(|(_, file)| file.as_ref());
            let seen = file.map_or(Err(Miss::Absent), |file| look(disk, file, at, object));
            let object_at = seen.map(|()| (object.key.clone(), object.found));
            each(Listed { path, at, object: object_at, file_bytes: HEADER_BYTES + object.found.len });
        }
    }

    /// What the store is known by.
    pub(crate) fn identity(&self) -> (u128, u64) {
        (self.store_id, self.segment)
    }

    /// The file that an object lies in, and where in it.
    pub(crate) fn whereabouts(&self, object: &Object) -> (PathBuf, u64) {
        let (segment, at) = (object.place.at / self.segment, object.place.at % self.segment);
        (self.dir.join(segment_name(segment)), at)
    }

    /// The state of the index itself.
    pub(crate) fn state(&self) -> FileState {
        let l = &self.loaded;
        if l.snapshot.is_none() && l.from_log == 0 && l.rotten == 0 {
            // It was just being made.
            FileState::Missing
        } else if l.gap || l.rotten > 0 {
            let rotten = l.rotten;
            FileState::Bad(format!("{rotten} parts of the index are rotten, others may be missing"))
        } else {
            FileState::Good
        }
    }

    /// Writes the index anew with the objects that `stays` says, and removes what was there.
    pub(crate) fn rewrite<D: Disk>(
        &self,
        disk: &D,
        writer: Writer,
        stays: impl Fn(&Object) -> bool,
    ) -> Result<()> {
        let epoch = self.loaded.epoch + 1;
        let kept: Vec<&Object> = self.objects.iter().filter(|object| stays(object)).collect();
        let (log, temp) =
            (self.dir.join(log_name(epoch)), self.dir.join(temp_name(writer.pid, writer.id, u64::MAX)));
        let new = Open { write: true, create_new: true, ..Open::default() };
        let write = || {
            let file = disk.open(&log, new)?;
            disk.write_all_at(&file, 0, &log_head(self.store_id, epoch, self.loaded.next)[..SLOT])?;
            disk.sync_file(&file)?;
            let mut tables = Tables::default();
            kept.iter().for_each(|object| tables.collect(object));
            let file = disk.open(&temp, new)?;
            let mut out = SnapshotWriter::begin(disk, &file, epoch, tables, u32::MAX)?;
            for object in kept {
                out.add(object);
                out.flush(false)?;
            }
            out.end(self.store_id, self.loaded.next, self.loaded.generation)?;
            disk.sync_file(&file)?;
            drop(file);
            disk.rename(&temp, &self.dir.join(snapshot_name(epoch)))?;
            disk.sync_dir(&self.dir)?;
            for entry in disk.list(&self.dir)? {
                if let Some(File::Log(e) | File::Snapshot(e)) = parse_name(&entry.name)
                    && e < epoch
                {
                    disk.unlink(&self.dir.join(&entry.name))?;
                }
            }
            Ok(())
        };
        write().map_err(failed(&self.dir))
    }
}

/// Whether the header at a place is the object's.
fn look<D: Disk>(disk: &D, file: &D::File, at: u64, object: &Object) -> Result<(), Miss> {
    let header = match read_header(disk, file, at) {
        Ok(Ok(header)) => header,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Miss::Truncated),
        Ok(Err(Fault::Magic | Fault::Checksum | Fault::Version(_) | Fault::Field(_))) | Err(_) => {
            return Err(Miss::Header);
        }
    };
    if header.key != object.key {
        return Err(Miss::Foreign);
    }
    let same = header.len == object.found.len
        && Some(header.layout) == object.found.layout
        && header.digest == object.found.digest
        && header.generation == object.generation;
    if same { Ok(()) } else { Err(Miss::Stale) }
}
