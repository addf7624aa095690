//! Going through a store that nobody has open: what is in it, what is wrong with it, and putting it right.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest as Crc};
use kvstrata_core::{Digest, Error, ErrorKind, ObjectKey, Result};
use kvstrata_io::{Disk, FileKind, Open};
use kvstrata_l2::{Found, Miss};

use crate::names::{
    LOCK, MANIFEST, QUARANTINE, SNAPSHOT, TMP, leaf_path, parse_fan, parse_object_name, temp_name,
};
use crate::open::is_at;
use crate::recover::{Looked, look_at, orphans};
use crate::slab::DIR;
use crate::slab::check::{Contents, identity};
use crate::snapshot::Snapshot;
use crate::{HEADER_BYTES, Manifest, Writer};

const OP: &str = "check store";

/// How a store is checked.
#[derive(Clone, Debug)]
pub struct FsckOptions {
    /// Whether payloads are read and their digests checked; otherwise headers and lengths are.
    pub payloads: bool,
    /// Whether what is wrong is put right: bad objects go to quarantine, files of dead writers and a snapshot that does
    /// not decode are deleted, a manifest that is gone or does not parse is made anew, without descriptions of models.
    pub repair: bool,
    /// The directory of files being written, if it is another than the manifest says.
    pub tmp: Option<PathBuf>,
    /// Who repairs; its number is a new manifest's store id.
    pub writer: Writer,
}

/// An object, or what lies under an object's name.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The file that it lies in.
    pub path: PathBuf,
    /// Where in it the header is; the payload follows.
    pub at: u64,
    /// What it is, or why it is none.
    pub object: Result<(ObjectKey, Found), Miss>,
    /// The length in bytes of what the object has of the file, or if it is none, of the file.
    pub file_bytes: u64,
}

/// The state of one of the store's own files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileState {
    /// As it should be.
    Good,
    /// Not there.
    Missing,
    /// There, and no use: why.
    Bad(String),
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct FsckReport {
    /// Objects that are whole.
    pub objects: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Objects among them whose payload nothing vouches for: stored without a digest.
    pub unverified: u64,
    /// What lies under an object's name and is bad.
    pub bad: Vec<(PathBuf, Miss)>,
    /// Files that a writer left unfinished.
    pub orphans: Vec<PathBuf>,
    /// Bad objects that were set aside before.
    pub quarantined: Vec<PathBuf>,
    /// Files that are none of the store's, and objects of a later version. They stay.
    pub strangers: Vec<PathBuf>,
    /// The manifest.
    pub manifest: FileState,
    /// The snapshot of the index. Without one the next start reads every header.
    pub snapshot: FileState,
    /// How much was put right.
    pub repaired: u64,
}

impl FsckReport {
    /// Whether the store is as it should be. A missing snapshot is no fault, and strangers do no harm.
    pub fn is_clean(&self) -> bool {
        self.bad.is_empty()
            && self.orphans.is_empty()
            && self.manifest == FileState::Good
            && !matches!(self.snapshot, FileState::Bad(_))
    }

    /// The number of things that are wrong.
    pub fn faults(&self) -> u64 {
        let bad = |b: bool| u64::from(b);
        (self.bad.len() + self.orphans.len()) as u64
            + bad(self.manifest != FileState::Good)
            + bad(matches!(self.snapshot, FileState::Bad(_)))
    }
}

pub(crate) fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |e| Error::io(OP, e).with("path", path.display())
}

/// Shows every object of a store, in the order of the directories or places, as its header and length say. Needs no lock: what
/// comes or goes meanwhile is shown or not.
///
/// # Errors
/// What the disk says of a directory; an object that cannot be read is shown as bad.
pub fn walk<D: Disk>(disk: &D, root: &Path, mut each: impl FnMut(Listed)) -> Result<Vec<PathBuf>> {
    // Without a manifest that can be read, what is there says which layout it is.
    let manifest = Manifest::read(disk, root).ok().flatten();
    if let Some(identity) = identity(disk, root, manifest.as_ref()) {
        let contents = Contents::read(disk, root, identity)?;
        contents.walk(disk, each);
        return Ok(contents.strangers);
    }
    let mut strangers = Vec::new();
    for top in sorted(disk, root)? {
        let Some(t) = parse_fan(&top.name).filter(|_| top.kind == FileKind::Dir) else { continue };
        let path = root.join(&top.name);
        for leaf in sorted(disk, &path)? {
            let Some(l) = parse_fan(&leaf.name).filter(|_| leaf.kind == FileKind::Dir) else {
                strangers.push(path.join(&leaf.name));
                continue;
            };
            let dir = leaf_path(root, t, l);
            for entry in sorted(disk, &dir)? {
                let path = dir.join(&entry.name);
                let name = parse_object_name(&entry.name).filter(|f| f[..2] == [t, l]);
                let Some(fingerprint) = name.filter(|_| entry.kind == FileKind::File) else {
                    strangers.push(path);
                    continue;
                };
                match look_at(disk, &path, &fingerprint) {
                    Ok(Looked::Good(object, _)) => {
                        let file_bytes = disk.metadata(&path).map_or(0, |m| m.len);
                        each(Listed { path, at: 0, object: Ok((object.key, object.found)), file_bytes });
                    }
                    Ok(Looked::Bad(miss, _, file_bytes)) => {
                        each(Listed { path, at: 0, object: Err(miss), file_bytes })
                    }
                    Ok(Looked::Unknown) => strangers.push(path),
                    Ok(Looked::Gone) => {}
                    Err(_) => each(Listed { path, at: 0, object: Err(Miss::Header), file_bytes: 0 }),
                }
            }
        }
    }
    Ok(strangers)
}

pub(crate) fn sorted<D: Disk>(disk: &D, path: &Path) -> Result<Vec<kvstrata_io::DirEntry>> {
    let mut entries = disk.list(path).map_err(failed(path))?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Checks the store in a directory, and repairs it if asked to. `progress` hears the objects and payload bytes so far.
///
/// # Errors
/// `NotFound` if there is no such directory, `Busy` if somebody has the store open, `Mismatch` if it is a store of
/// another version (nothing is repaired that is not understood), and what the disk says.
pub fn fsck<D: Disk>(
    disk: &D,
    root: &Path,
    options: &FsckOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<FsckReport> {
    disk.list(root).map_err(failed(root))?;
    let _lock = lock(disk, root, options.repair)?;
    let (manifest, state) = match Manifest::read(disk, root) {
        Ok(Some(manifest)) => (Some(manifest), FileState::Good),
        Ok(None) => (None, FileState::Missing),
        Err(e) if e.kind() == ErrorKind::Corrupt => (None, FileState::Bad(e.to_string())),
        Err(e) => return Err(e),
    };
    let segments = identity(disk, root, manifest.as_ref());
    let contents = segments.map(|identity| Contents::read(disk, root, identity)).transpose()?;
    let told = options.tmp.as_deref().or(manifest.as_ref().and_then(|m| m.tmp.as_deref()));
    let tmp = root.join(if contents.is_some() { DIR.as_ref() } else { told.unwrap_or(Path::new(TMP)) });
    let mut report = FsckReport {
        objects: 0,
        bytes: 0,
        unverified: 0,
        bad: Vec::new(),
        orphans: [orphans(disk, &tmp).map_err(failed(&tmp))?, orphans(disk, root).map_err(failed(root))?]
            .concat(),
        quarantined: files(disk, &root.join(QUARANTINE))?,
        strangers: Vec::new(),
        manifest: state,
        snapshot: match &contents {
            Some(contents) => contents.state(),
            None => snapshot_state(disk, root, manifest.as_ref())?,
        },
        repaired: 0,
    };
    let mut piece = if options.payloads { vec![0; 1 << 20] } else { Vec::new() };
    let mut bad_places = HashSet::new();
    let judge = |checked: Listed| {
        let judged = checked.object.clone().and_then(|(key, found)| {
            if options.payloads {
                payload(disk, &checked, &key, &found, &mut piece)?;
            }
            Ok(found)
        });
        match judged {
            Ok(found) => {
                report.objects += 1;
                report.bytes += found.len;
                report.unverified += u64::from(found.digest.is_none());
            }
            Err(miss) if segments.is_some() => {
                bad_places.insert((checked.path.clone(), checked.at));
                report.bad.push((format!("{}+{}", checked.path.display(), checked.at).into(), miss));
            }
            Err(miss) => report.bad.push((checked.path, miss)),
        }
        progress(report.objects, report.bytes);
    };
    report.strangers = match &contents {
        Some(contents) => {
            contents.walk(disk, judge);
            contents.strangers.clone()
        }
        None => walk(disk, root, judge)?,
    };
    if options.repair {
        report.repaired = match &contents {
            Some(contents) => {
                let stays = |at: u64, path: PathBuf| !bad_places.contains(&(path, at));
                repair_segments(disk, root, options, &report, contents, stays)?
            }
            None => repair(disk, root, options, &tmp, &report)?,
        };
    }
    Ok(report)
}

fn lock<D: Disk>(disk: &D, root: &Path, repair: bool) -> Result<Option<D::File>> {
    let path = root.join(LOCK);
    let existing = Open { write: true, ..Open::default() };
    let file = match disk.open(&path, existing) {
        Ok(file) => file,
        // Whoever has a store open has made this file.
        Err(e) if e.kind() == io::ErrorKind::NotFound && repair => {
            disk.open(&path, Open { create_new: true, ..existing }).map_err(failed(&path))?
        }
        Err(_) if !repair => return Ok(None),
        Err(e) => return Err(failed(&path)(e)),
    };
    match disk.try_lock(&file) {
        Ok(()) if is_at(disk, &file, &path).map_err(failed(&path))? => Ok(Some(file)),
        Ok(()) => {
            Err(Error::new(ErrorKind::Busy, OP, "the store is being opened").with("path", root.display()))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::new(ErrorKind::Busy, OP, "the store is open; close whatever uses it first")
                .with("path", root.display()))
        }
        Err(e) => Err(failed(&path)(e)),
    }
}

fn files<D: Disk>(disk: &D, dir: &Path) -> Result<Vec<PathBuf>> {
    match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(dir)(e)),
        Ok(entries) => {
            Ok(entries.into_iter().filter(|e| e.kind == FileKind::File).map(|e| dir.join(e.name)).collect())
        }
    }
}

fn snapshot_state<D: Disk>(disk: &D, root: &Path, manifest: Option<&Manifest>) -> Result<FileState> {
    let path = root.join(SNAPSHOT);
    let file = match disk.open(&path, Open::default()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(FileState::Missing),
        opened => opened.map_err(failed(&path))?,
    };
    let len = disk.file_metadata(&file).map_err(failed(&path))?.len;
    let mut bytes = vec![0; len as usize];
    disk.read_exact_at(&file, 0, &mut bytes).map_err(failed(&path))?;
    let Some(manifest) = manifest else {
        return Ok(FileState::Bad("there is no manifest to hold it against".into()));
    };
    Ok(match Snapshot::decode(&bytes, manifest.store_id, |_| 0) {
        Ok(_) => FileState::Good,
        Err(e) => FileState::Bad(e.to_string()),
    })
}

/// Reads a payload and holds it against its digest.
fn payload<D: Disk>(
    disk: &D,
    listed: &Listed,
    key: &ObjectKey,
    found: &Found,
    piece: &mut [u8],
) -> Result<(), Miss> {
    let (Some(digest), Some(layout)) = (found.digest, found.layout) else { return Ok(()) };
    let read = |piece: &mut [u8]| -> io::Result<u64> {
        let file = disk.open(&listed.path, Open::default())?;
        let mut crc = Crc::new(CrcAlgorithm::Crc64Nvme);
        let mut at = 0;
        while at < found.len {
            let n = (found.len - at).min(piece.len() as u64) as usize;
            disk.read_exact_at(&file, listed.at + HEADER_BYTES + at, &mut piece[..n])?;
            crc.update(&piece[..n]);
            at += n as u64;
        }
        Ok(crc.finalize())
    };
    match read(piece) {
        Ok(crc) if Digest::bind(crc, key, layout, found.len) == digest => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Miss::Truncated),
        // A sector that cannot be read is as lost as one that reads wrong.
        _ => Err(Miss::Digest),
    }
}

fn repair<D: Disk>(
    disk: &D,
    root: &Path,
    options: &FsckOptions,
    tmp: &Path,
    report: &FsckReport,
) -> Result<u64> {
    let mut done = 0;
    let quarantine = root.join(QUARANTINE);
    for dir in [tmp, &quarantine] {
        disk.create_dir_all(dir).map_err(failed(dir))?;
    }
    let aside = |path: &Path, why: &str, n: u64| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        quarantine.join(format!("{name}-{:016x}-{n}.{why}", options.writer.id))
    };
    for (path, why) in &report.bad {
        disk.rename_new(path, &aside(path, why.name(), done)).map_err(failed(path))?;
        done += 1;
    }
    for path in &report.orphans {
        disk.unlink(path).map_err(failed(path))?;
        done += 1;
    }
    done += repair_manifest(
        disk,
        root,
        options,
        &tmp.join(temp_name(options.writer.pid, options.writer.id, done)),
        report,
        None,
    )?;
    if matches!(report.snapshot, FileState::Bad(_)) {
        let path = root.join(SNAPSHOT);
        disk.unlink(&path).map_err(failed(&path))?;
        done += 1;
    }
    Ok(done)
}

/// Makes a manifest anew where it is lost or does not parse; `segments` is what a store of segments is known by.
fn repair_manifest<D: Disk>(
    disk: &D,
    root: &Path,
    options: &FsckOptions,
    temp: &Path,
    report: &FsckReport,
    segments: Option<(u128, u64)>,
) -> Result<u64> {
    let mut done = 0;
    if report.manifest != FileState::Good {
        if matches!(report.manifest, FileState::Bad(_)) {
            let path = root.join(MANIFEST);
            let quarantine = root.join(QUARANTINE);
            disk.create_dir_all(&quarantine).map_err(failed(&quarantine))?;
            let to = quarantine.join(format!("{MANIFEST}-{:016x}.manifest", options.writer.id));
            disk.rename_new(&path, &to).map_err(failed(&path))?;
        }
        let new_id = u128::from(options.writer.id) << 64 | u128::from(options.writer.pid);
        let (store_id, segment) = segments.map_or((new_id, None), |(id, segment)| (id, Some(segment)));
        let tmp = options.tmp.clone().filter(|_| segment.is_none());
        let manifest = Manifest { store_id, namespaces: Vec::new(), tmp, segment };
        manifest.write(disk, root, temp)?;
        done += 1;
    }
    Ok(done)
}

/// Puts a store of segments right: bad objects are forgotten, and the index is written anew.
fn repair_segments<D: Disk>(
    disk: &D,
    root: &Path,
    options: &FsckOptions,
    report: &FsckReport,
    contents: &Contents,
    stays: impl Fn(u64, PathBuf) -> bool,
) -> Result<u64> {
    let mut done = 0;
    for path in &report.orphans {
        disk.unlink(path).map_err(failed(path))?;
        done += 1;
    }
    let temp = root.join(DIR).join(temp_name(options.writer.pid, options.writer.id, 0));
    done += repair_manifest(disk, root, options, &temp, report, Some(contents.identity()))?;
    let rotten = matches!(report.snapshot, FileState::Bad(_));
    if rotten || !report.bad.is_empty() {
        contents.rewrite(disk, options.writer, |object| {
            let (path, at) = contents.whereabouts(object);
            // Without a digest, only an index without a gap says that nothing else was written there.
            stays(at, path) && (object.found.digest.is_some() || !contents.loaded.gap)
        })?;
        done += report.bad.len() as u64 + u64::from(rotten);
    }
    Ok(done)
}
