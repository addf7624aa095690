//! What one object of the GDS layout goes through on a thread of the engine.
//!
//! An object is two files. The data file is published first and the sidecar second, both by a rename, and the index hears of
//! it after both; it is taken away in the other order. So a sidecar that can be read has a data file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstrata_core::{Error, ErrorKind, ObjectKey, Result};
use kvstrata_io::{Disk, Open};
use kvstrata_l2::{Answer, GetItem, Loaded, Miss, PutItem, PutSink, Stored};
use kvstrata_mem::{ReadBuf, WriteBuf};
use parking_lot::{Mutex, RwLock};

use crate::classic::{ClassicName, KeyDType, Suffix, sidecar};
use crate::gds::{Index, Shared, count, found_of};
use crate::jobs::check_buf;
use crate::scan::{GdsDir, GdsObject};
use crate::{Format, GdsConfig, HEADER_BYTES, Header, Refusal};

/// Keys that share a lock wait for each other's renames.
const STRIPES: usize = 64;
/// Names that others have taken before a write gives up.
const TRIES: u32 = 16;
const STORE: &str = "store object";

#[derive(Debug)]
pub(crate) struct Files<D> {
    pub(crate) dir: Arc<GdsDir<D>>,
    pub(crate) index: Shared,
    pub(crate) kv_dtype: Option<KeyDType>,
    pub(crate) found_late: AtomicU64,
    pub(crate) disagreed: AtomicU64,
    fmt: Format,
    suffix: Suffix,
    debug_checks: bool,
    /// Held by readers of an object, and by who changes its names: nobody reads one file of the old and one of the new.
    stripes: Vec<RwLock<()>>,
    /// The number of this writer, and how many files it named.
    run: u64,
    serial: AtomicU64,
}

impl<D: Disk> Files<D> {
    pub(crate) fn new(dir: Arc<GdsDir<D>>, index: Index, config: &GdsConfig, run: u64) -> Result<Self> {
        Ok(Self {
            dir,
            index: Mutex::new(index),
            kv_dtype: config.kv_dtype()?,
            found_late: AtomicU64::new(0),
            disagreed: AtomicU64::new(0),
            fmt: config.format()?,
            suffix: config.suffix(),
            debug_checks: config.debug_checks,
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            run,
            serial: AtomicU64::new(0),
        })
    }

    fn stripe(&self, key: &ObjectKey) -> &RwLock<()> {
        &self.stripes[usize::from(key.fingerprint256()[0]) % STRIPES]
    }

    /// The dtype in the name of a key that is not known yet.
    fn dtype(&self, usual: Option<KeyDType>) -> Option<KeyDType> {
        self.kv_dtype.or(usual)
    }

    /// The object, from the index or by its name. The caller holds no lock.
    pub(crate) fn find(&self, key: &ObjectKey, usual: Option<KeyDType>) -> Option<GdsObject> {
        if let Some(object) = self.index.lock().get(key) {
            return Some(object);
        }
        let name = ClassicName::of(key, self.dtype(usual)?)?;
        let object = match self.dir.look(&name, self.suffix) {
            // Another number of workers per machine makes it another key.
            Ok(object) if object.key == *key => object,
            Ok(_) | Err(Refusal::Half) => return None,
            Err(why) => {
                tracing::debug!(%key, reason = why.name(), "passed over");
                return None;
            }
        };
        count(&self.found_late);
        let mut index = self.index.lock();
        index.add(object);
        index.get(key)
    }

    pub(crate) fn load(&self, item: GetItem) -> Answer {
        const OP: &str = "load object";
        let GetItem { key, layout, mut buf } = item;
        if let Err(e) = check_buf(OP, buf.len(), layout.bytes(), buf.region().kind()) {
            return Answer::Failed(e, Some(buf));
        }
        let _reading = self.stripe(&key).read();
        let usual = layout.tensors().first().and_then(|t| KeyDType::of(t.dtype));
        let Some(object) = self.find(&key, usual) else {
            return Answer::Miss(Miss::Absent, Some(buf));
        };
        if object.header.layout.id() != layout.id() {
            return Answer::Miss(Miss::Layout, Some(buf));
        }
        let path = self.data(&object);
        match self.read(&path, &object, &mut buf) {
            Ok(Ok(())) => Answer::Loaded(Loaded::new(buf, found_of(&object))),
            Ok(Err(miss)) => {
                // What it was is over; the next store writes it anew.
                self.index.lock().remove(&key);
                Answer::Miss(miss, Some(buf))
            }
            Err(e) => Answer::Failed(Error::io(OP, e).with("path", path.display()), Some(buf)),
        }
    }

    fn read(&self, path: &Path, object: &GdsObject, buf: &mut WriteBuf) -> io::Result<Result<(), Miss>> {
        let (disk, bytes) = (&*self.dir.disk, object.header.layout.bytes());
        let file = match self.dir.no_atime.open(disk, path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(Miss::Stale)),
            opened => opened?,
        };
        if disk.file_metadata(&file)?.len != HEADER_BYTES as u64 + bytes {
            return Ok(Err(Miss::Truncated));
        }
        if self.debug_checks {
            self.compare(path, object);
        }
        let got = disk.read_buf_at(&file, HEADER_BYTES as u64, buf, bytes as usize)?;
        Ok(if got as u64 == bytes { Ok(()) } else { Err(Miss::Truncated) })
    }

    /// Says it if the data file's own header differs from the sidecar's.
    fn compare(&self, path: &Path, object: &GdsObject) {
        let own = self.dir.no_atime.header(&*self.dir.disk, path);
        if own.as_ref() != Ok(&object.header) {
            count(&self.disagreed);
            tracing::warn!(path = %path.display(), ?own, sidecar = ?object.header, "two headers of one object differ");
        }
    }

    fn data(&self, object: &GdsObject) -> PathBuf {
        // What is known has a name.
        let name = ClassicName::of(&object.key, object.dtype).expect("it was found by its name");
        self.dir.root.join(name.data(object.suffix))
    }

    /// Stores one object and answers its key.
    pub(crate) fn store(&self, mut item: PutItem, position: usize, done: &PutSink) {
        let fits = check_buf(STORE, item.buf.len(), item.layout.bytes(), item.buf.region().kind());
        let digest = match fits.and_then(|()| item.digest()) {
            Ok(digest) => digest,
            Err(e) => {
                drop(item);
                done.answer(position, Err(e));
                return;
            }
        };
        let PutItem { key, layout, buf, .. } = item;
        let header = Header { layout, fmt: self.fmt, digest };
        if self.is_there(&key, &header) {
            drop(buf);
            done.answer(position, Ok(Stored::Present));
            return;
        }
        let written = self.write(&key, header, &buf);
        drop(buf);
        match written {
            Ok(new) => self.publish(new, position, done),
            Err(e) => drop(done.answer(position, Err(e.with("key", &key)))),
        }
    }

    fn is_there(&self, key: &ObjectKey, header: &Header) -> bool {
        let same = |o: &GdsObject| o.header.layout == header.layout && o.header.digest == header.digest;
        self.index.lock().get(key).as_ref().is_some_and(same)
    }

    /// Writes both files under names of this writer's own.
    fn write(&self, key: &ObjectKey, header: Header, buf: &ReadBuf) -> Result<New<'_, D>> {
        let unsupported = |why: &str| Error::new(ErrorKind::Unsupported, STORE, why);
        let block =
            header.encode().ok_or_else(|| unsupported("LMCache's GDS layout holds objects of one tensor"))?;
        let usual = header.layout.tensors().first().and_then(|t| KeyDType::of(t.dtype));
        let dtype = self
            .dtype(usual)
            .ok_or_else(|| unsupported("no key of LMCache's has this dtype; `kv_dtype` says which to use"))?;
        let name = ClassicName::of(key, dtype).ok_or_else(|| {
            unsupported("the key has no name in LMCache's GDS layout: it has a salt, or it is too long")
        })?;
        let data = self.dir.root.join(name.data(self.suffix));
        let io = |e| Error::io(STORE, e).with("path", data.display());
        let disk = &*self.dir.disk;
        let (mut new, file) = self.create(&data).map_err(io)?;
        disk.write_all_at(&file, 0, &block).map_err(io)?;
        disk.write_buf_at(&file, HEADER_BYTES as u64, buf, buf.len()).map_err(io)?;
        drop(file);
        let beside = self.made(&mut new, sidecar(&data)).map_err(io)?;
        disk.write_all_at(&beside, 0, &block).map_err(io)?;
        new.object = Some(GdsObject { key: key.clone(), header, dtype, suffix: self.suffix });
        Ok(new)
    }

    /// A file under a name of its own beside `data`; its directory is made if it is not there.
    fn create(&self, data: &Path) -> io::Result<(New<'_, D>, D::File)> {
        let mut new = New { files: self, paths: Vec::new(), object: None };
        match self.made(&mut new, data.to_owned()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            made => return made.map(|file| (new, file)),
        }
        self.dir.disk.create_dir_all(data.parent().expect("a file lies in a directory"))?;
        let file = self.made(&mut new, data.to_owned())?;
        Ok((new, file))
    }

    fn made(&self, new: &mut New<'_, D>, published: PathBuf) -> io::Result<D::File> {
        let how = Open { write: true, create_new: true, ..Open::default() };
        for _ in 0..TRIES {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let number = ((self.run ^ self.run >> 32) as u32).wrapping_add(serial as u32);
            let mut temp = published.as_os_str().to_owned();
            temp.push(format!(".tmp{number:08x}"));
            match self.dir.disk.open(Path::new(&temp), how) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(file) => {
                    new.paths.push((temp.into(), published));
                    return Ok(file);
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "all names for a file being written are taken"))
    }

    fn publish(&self, mut new: New<'_, D>, position: usize, done: &PutSink) {
        let object = new.object.take().expect("a written object");
        let key = object.key.clone();
        let _changing = self.stripe(&key).write();
        if self.is_there(&key, &object.header) {
            drop(new);
            done.answer(position, Ok(Stored::Present));
            return;
        }
        let published = self.take_away(&key).and_then(|_| new.publish());
        // Nothing that may hang comes after this: what has timed out by now is taken off again.
        let claim = done.claim(position);
        match (published, claim) {
            (Ok(()), Some(claim)) => {
                self.index.lock().insert(object);
                claim.answer(Ok(Stored::Written));
            }
            (Ok(()), None) => {
                drop(self.unlink(&self.data(&object)));
                // Somebody may have found it by its name meanwhile.
                self.index.lock().remove(&key);
            }
            (Err(e), claim) => {
                drop(new);
                let e = Error::io(STORE, e).with("key", &key);
                claim.into_iter().for_each(|claim| claim.answer(Err(e.clone())));
            }
        }
    }

    /// Removes an object; whether it was there.
    pub(crate) fn remove(&self, key: &ObjectKey) -> Result<bool> {
        let _changing = self.stripe(key).write();
        self.take_away(key).map_err(|e| Error::io("remove object", e).with("key", key))
    }

    /// The caller holds the key's lock.
    fn take_away(&self, key: &ObjectKey) -> io::Result<bool> {
        let Some(object) = self.index.lock().get(key) else { return Ok(false) };
        self.unlink(&self.data(&object))?;
        self.index.lock().remove(key);
        Ok(true)
    }

    fn unlink(&self, data: &Path) -> io::Result<()> {
        for path in [sidecar(data), data.to_owned()] {
            match self.dir.disk.unlink(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Files that are written and not published; they go when this does.
struct New<'a, D: Disk> {
    files: &'a Files<D>,
    /// The data file first: where each is, and where it belongs.
    paths: Vec<(PathBuf, PathBuf)>,
    object: Option<GdsObject>,
}

impl<D: Disk> New<'_, D> {
    fn publish(&mut self) -> io::Result<()> {
        for at in 0..self.paths.len() {
            let (temp, published) = &self.paths[at];
            if let Err(e) = self.files.dir.disk.rename(temp, published) {
                // The data file alone is nothing; it goes with what was not published.
                self.paths[..at].iter_mut().for_each(|(temp, published)| temp.clone_from(published));
                return Err(e);
            }
        }
        self.paths.clear();
        Ok(())
    }
}

impl<D: Disk> Drop for New<'_, D> {
    fn drop(&mut self) {
        for (temp, _) in &self.paths {
            drop(self.files.dir.disk.unlink(temp));
        }
    }
}
