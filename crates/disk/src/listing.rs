//! Listing a store without opening it.

use std::ops::ControlFlow;
use std::path::Path;

use kvstrata_core::{Error, ErrorKind, ObjectKey, Result};
use kvstrata_io::{Disk, FileKind, Open};
use kvstrata_l2::{Found, Miss};

use crate::Manifest;
use crate::fsck::{failed, sorted};
use crate::names::{SNAPSHOT, leaf_path, parse_fan, parse_object_name};
use crate::recover::{Looked, look_at};
use crate::slab::check::{Contents, identity};
use crate::snapshot::{Known, Snapshot};

/// Shows the objects of the store at `root` until told to stop, in the order of the directories. Nothing is changed, and
/// no payload is read: directories in which nothing happened since the snapshot of the index are shown from that, and of
/// the others the headers are read. What is bad is shown with the reason. Of a store of segments, the index says it all. Needs no lock: what comes or goes meanwhile is
/// shown or not.
///
/// # Errors
/// `NotFound` if there is no manifest, `Mismatch` and `Corrupt` as [`Manifest::decode`], and what the disk says.
pub fn list<D: Disk>(
    disk: &D,
    root: &Path,
    mut each: impl FnMut(Result<(ObjectKey, Found), Miss>) -> ControlFlow<()>,
) -> Result<()> {
    let manifest = Manifest::read(disk, root)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "list store", "there is no manifest").with("path", root.display())
    })?;
    if let Some(identity) = identity(disk, root, Some(&manifest)) {
        let mut contents = Contents::read(disk, root, identity)?;
        contents.objects.sort_unstable_by(|a, b| a.key.fingerprint256().cmp(b.key.fingerprint256()));
        for object in contents.objects {
            if each(Ok((object.key, object.found))).is_break() {
                break;
            }
        }
        return Ok(());
    }
    let mut known = known(disk, root, &manifest);
    for top in sorted(disk, root)? {
        let Some(t) = parse_fan(&top.name).filter(|_| top.kind == FileKind::Dir) else { continue };
        for leaf in sorted(disk, &root.join(&top.name))? {
            let Some(l) = parse_fan(&leaf.name).filter(|_| leaf.kind == FileKind::Dir) else { continue };
            let dir = leaf_path(root, t, l);
            let modified = disk.metadata(&dir).map_err(failed(&dir))?.modified.into();
            if known.take([t, l], modified).is_some() {
                for object in known.in_dir([t, l]) {
                    if each(Ok((object.key.clone(), object.found))).is_break() {
                        return Ok(());
                    }
                }
                continue;
            }
            for entry in sorted(disk, &dir)? {
                let name = parse_object_name(&entry.name).filter(|f| f[..2] == [t, l]);
                let Some(fingerprint) = name.filter(|_| entry.kind == FileKind::File) else { continue };
                let shown = match look_at(disk, &dir.join(&entry.name), &fingerprint) {
                    Ok(Looked::Good(object, _)) => Ok((object.key, object.found)),
                    Ok(Looked::Bad(miss, ..)) => Err(miss),
                    Ok(Looked::Unknown | Looked::Gone) => continue,
                    Err(_) => Err(Miss::Header),
                };
                if each(shown).is_break() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// What the snapshot says; nothing if there is none that can be used.
fn known<D: Disk>(disk: &D, root: &Path, manifest: &Manifest) -> Known {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = disk.open(&root.join(SNAPSHOT), Open::default())?;
        let mut bytes = vec![0; disk.file_metadata(&file)?.len as usize];
        disk.read_exact_at(&file, 0, &mut bytes)?;
        Ok(bytes)
    };
    let snapshot = read().ok().and_then(|bytes| Snapshot::decode(&bytes, manifest.store_id, |_| 0).ok());
    snapshot.map(Known::by_name).unwrap_or_default()
}
