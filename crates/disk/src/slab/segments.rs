//! The segments' files: made when they are needed, opened once, and kept open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_io::{Disk, Open};
use parking_lot::RwLock;

use super::format::{read_segment_block, segment_block};
use super::{Geometry, segment_name};
use crate::Block;
use crate::modes::Modes;

/// The files of one segment that are open.
#[derive(Debug)]
struct Files<F> {
    direct: Option<Arc<F>>,
    plain: Option<Arc<F>>,
}

/// All segments.
#[derive(Debug)]
pub(crate) struct Segments<D: Disk> {
    dir: PathBuf,
    open: RwLock<Vec<Files<D::File>>>,
}

/// What a start finds of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// So many bytes of it are there; objects beyond are lost.
    Good(u64),
    /// Not there, or not this store's: nothing in it can be what the log says.
    Lost,
}

impl<D: Disk> Segments<D> {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.into(), open: RwLock::default() }
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(number))
    }

    /// The file, if it is open already.
    pub(crate) fn opened(&self, number: u64, direct: bool) -> Option<Arc<D::File>> {
        let open = self.open.read();
        let files = open.get(number as usize)?;
        if direct { files.direct.clone() } else { files.plain.clone() }
    }

    /// The file; also whether it bypasses the page cache.
    pub(crate) fn open(
        &self,
        disk: &D,
        number: u64,
        write: bool,
        modes: &Modes,
    ) -> io::Result<(Arc<D::File>, bool)> {
        let path = self.path(number);
        loop {
            let class = if write { &modes.direct_write } else { &modes.direct_read };
            let (direct, no_atime) = (class.on(), modes.no_atime.on());
            if let Some(file) = self.opened(number, direct) {
                return Ok((file, direct));
            }
            match disk.open(&path, Open { write: true, direct, no_atime, ..Open::default() }) {
                Ok(file) => {
                    let file = Arc::new(file);
                    let mut open = self.open.write();
                    while open.len() <= number as usize {
                        open.push(Files { direct: None, plain: None });
                    }
                    let files = &mut open[number as usize];
                    let place = if direct { &mut files.direct } else { &mut files.plain };
                    return Ok((Arc::clone(place.get_or_insert(file)), direct));
                }
                Err(e) if class.refused(direct, &e, &path) || modes.no_atime.refused(no_atime, &e, &path) => {
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Makes the next segment, or makes one anew: its whole length is set aside. A file that could not be made is gone.
    pub(crate) fn make(&self, disk: &D, number: u64, g: &Geometry, store_id: u128) -> io::Result<()> {
        let path = self.path(number);
        let made = self.fill(disk, &path, number, g, store_id);
        if made.is_err() {
            drop(disk.unlink(&path));
        }
        made
    }

    fn fill(&self, disk: &D, path: &Path, number: u64, g: &Geometry, store_id: u128) -> io::Result<()> {
        match disk.unlink(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = disk.open(path, Open { write: true, create_new: true, ..Open::default() })?;
        set_aside(disk, &file, g.len_of(number))?;
        disk.set_len(&file, g.len_of(number))?;
        disk.write_all_at(&file, 0, segment_block(store_id, number, g.segment).bytes())?;
        disk.sync_file(&file)?;
        drop(file);
        disk.sync_dir(&self.dir)
    }

    /// Looks at a segment that should be there, and makes it as long as it is to be.
    pub(crate) fn look(&self, disk: &D, number: u64, g: &Geometry, store_id: u128) -> io::Result<State> {
        let how = Open { write: true, ..Open::default() };
        let file = match disk.open(&self.path(number), how) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Lost),
            opened => opened?,
        };
        let mut block = Block::zeroed();
        match disk.read_exact_at(&file, 0, block.bytes_mut()) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(State::Lost),
            read => read?,
        }
        if read_segment_block(&block) != Some((store_id, number, g.segment)) {
            return Ok(State::Lost);
        }
        let (len, wanted) = (disk.file_metadata(&file)?.len, g.len_of(number));
        if len != wanted {
            // Longer or shorter: the capacity is another, or somebody cut it.
            disk.set_len(&file, wanted)?;
        }
        set_aside(disk, &file, wanted)?;
        Ok(State::Good(len.min(wanted)))
    }
}

/// Sets blocks aside where the file system can.
pub(crate) fn set_aside<D: Disk>(disk: &D, file: &D::File, len: u64) -> io::Result<()> {
    match disk.allocate(file, len) {
        Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(()),
        done => done,
    }
}
