//! Chunks in LMCache's layout: a file for each chunk, with a 4 KiB header and a second file that repeats it, each made under
//! another name and renamed; the file registered anew for each transfer.
//!
//! Both sides meet the medium in the same state: once past the page cache, and once through it with everything in it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_cufile_sys::{BoolParam, Driver, FileHandle, Library, Search};
use kvstrata_l2_gds::{Copies, Direction, GdsWay};
use kvstrata_mem::{Allocate, MmapRegion, RegionOptions, Slab, UNIT, WriteBuf};
use libtest_mimic::Failed;

use super::{MIB, O_DIRECT, ROUNDS, Runs, adapter, room};
use crate::rig::{Gpu, library};

const THREADS: usize = 4;
const HEADER: usize = 4096;

pub(super) fn run(gpu: &Gpu, dir: &Path, total: usize, modelled: bool) -> Result<(), Failed> {
    let driver = driver(gpu);
    println!(
        "\nchunks, {THREADS} at a time, GB/s write read: LMCache's layout by {}, the adapter, and the ratios",
        if driver.is_some() { "cuFile" } else { "plain files and pageable copies (no cuFile here)" }
    );
    let mut next = 1 << 32;
    for direct in [true, false] {
        let rig = gpu.store(&dir.join(format!("chunks-{direct}")), GdsWay::Bounce, |c| {
            c.max_capacity_gb = room(total);
            c.use_direct_io = Some(direct);
        })?;
        for block in [MIB, 4 * MIB] {
            let (mut theirs, mut ours) = (Runs::default(), Runs::default());
            let mut chunks: Vec<Chunk> = (0..THREADS)
                .map(|t| Chunk::new(gpu, t as u64, block, modelled))
                .collect::<Result<_, Failed>>()?;
            for round in 0..=ROUNDS {
                let files = tempfile::tempdir_in(dir)?;
                let how = How { driver: driver.as_ref(), direct, dir: files.path(), total };
                let (written, read) = (how.all(gpu, &mut chunks, true)?, how.all(gpu, &mut chunks, false)?);
                // Before the other side begins, what this one left to be written is.
                drop(files);
                let (ow, or) = adapter(&rig, &mut next, block, total, THREADS)?;
                if round > 0 {
                    theirs.add(total, written, read);
                    ours.add(total, ow, or);
                }
            }
            println!(
                "{:>5} MiB {}: theirs {} ours {} ratio {}",
                block / MIB,
                if direct { "past the page cache   " } else { "through the page cache" },
                theirs.show(),
                ours.show(),
                ours.over(&theirs)
            );
        }
        rig.close()?;
    }
    Ok(())
}

fn driver(gpu: &Gpu) -> Option<Arc<Driver>> {
    if kvstrata_cufile_sys::open_hazard().is_some() || gpu.has(GdsWay::Compat).is_err() {
        return None;
    }
    let search = Search { explicit: library(), ..Search::default() };
    // SAFETY: the names are NVIDIA's, or what the caller gives as that.
    let library = unsafe { Library::open(&search) }.ok()?;
    library.set_bool(BoolParam::ALLOW_COMPAT_MODE, true).ok();
    library.open_driver().ok()
}

/// What a thread moves: a chunk of the GPU's, and pageable memory of the host's where there is no cuFile.
struct Chunk {
    device: WriteBuf,
    host: WriteBuf,
    /// Where the driver of a GPU copies pageable memory first, so that the GPU can reach it. A model has no driver.
    staged: Option<Vec<u8>>,
}

impl Chunk {
    fn new(gpu: &Gpu, n: u64, len: usize, modelled: bool) -> Result<Self, Failed> {
        let region = MmapRegion::new(len, &RegionOptions { prefault: true, ..RegionOptions::default() })?;
        let host = Slab::new(vec![region])?.pool("pageable", len as u64).reserve(len, UNIT)?;
        Ok(Self { device: gpu.chunk(n, len)?, host, staged: modelled.then(|| vec![1; len]) })
    }
}

struct How<'a> {
    driver: Option<&'a Arc<Driver>>,
    direct: bool,
    dir: &'a Path,
    total: usize,
}

impl How<'_> {
    fn all(&self, gpu: &Gpu, chunks: &mut [Chunk], write: bool) -> Result<Duration, Failed> {
        let len = chunks[0].device.len();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let all = chunks.iter_mut().enumerate().map(|(t, chunk)| {
                scope.spawn(move || {
                    let mut done = Ok(());
                    let mut work = || {
                        done = gpu.gpus.copies(0).map_err(Failed::from).and_then(|mut copies| {
                            (t..self.total / len).step_by(THREADS).try_for_each(|n| {
                                let path = self.dir.join(format!("{n}.kvcache.safetensors"));
                                if write {
                                    self.store(&mut *copies, chunk, &path)
                                } else {
                                    self.load(&mut *copies, chunk, &path)
                                }
                            })
                        });
                    };
                    gpu.gpus.within(0, &mut work)?;
                    done
                })
            });
            all.collect::<Vec<_>>().into_iter().try_for_each(|t| t.join().expect("a thread"))
        })?;
        Ok(begin.elapsed())
    }

    fn open(&self, path: &Path, write: bool) -> std::io::Result<File> {
        let flags = if self.direct { O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
    }

    fn store(&self, copies: &mut dyn Copies, chunk: &mut Chunk, path: &Path) -> Result<(), Failed> {
        let header = [b' '; HEADER];
        let tmp = path.with_extension("tmp1");
        std::fs::write(&tmp, header)?;
        let (file, len) = (self.open(&tmp, true)?, chunk.device.len());
        if let Some(driver) = self.driver {
            let handle = FileHandle::register(driver, file).map_err(|f| f.to_string())?;
            let (base, at) = (chunk.device.region().base(), chunk.device.extent().offset);
            // SAFETY: the chunk is the GPU's memory, and this thread has the GPU's context.
            let n = unsafe { handle.write(base, at, len, HEADER as u64) }.map_err(|f| f.to_string())?;
            if n != len {
                return Err("a short write".into());
            }
        } else {
            // SAFETY: both are so long, and the queue is drained before either is used.
            unsafe { copies.copy(Direction::ToHost, chunk.host.as_ptr(), chunk.device.as_ptr(), len) }?;
            copies.drain();
            let host = chunk.host.as_mut_slice().expect("host memory");
            if let Some(staged) = &chunk.staged {
                host.copy_from_slice(staged);
            }
            file.write_all_at(host, HEADER as u64)?;
        }
        std::fs::rename(&tmp, path)?;
        let tmp = path.with_extension("tmp2");
        std::fs::write(&tmp, header)?;
        Ok(std::fs::rename(&tmp, path.with_extension("metadata"))?)
    }

    fn load(&self, copies: &mut dyn Copies, chunk: &mut Chunk, path: &Path) -> Result<(), Failed> {
        let (file, len) = (self.open(path, false)?, chunk.device.len());
        if let Some(driver) = self.driver {
            let handle = FileHandle::register(driver, file).map_err(|f| f.to_string())?;
            let (base, at) = (chunk.device.region().base(), chunk.device.extent().offset);
            // SAFETY: as above; nobody else uses the chunk.
            let n = unsafe { handle.read(base, at, len, HEADER as u64) }.map_err(|f| f.to_string())?;
            if n != len {
                return Err("a short read".into());
            }
            return Ok(());
        }
        let host = chunk.host.as_mut_slice().expect("host memory");
        file.read_exact_at(host, HEADER as u64)?;
        if let Some(staged) = &mut chunk.staged {
            staged.copy_from_slice(host);
        }
        // SAFETY: as above.
        unsafe { copies.copy(Direction::ToDevice, chunk.device.as_ptr(), chunk.host.as_ptr(), len) }?;
        copies.drain();
        Ok(())
    }
}
