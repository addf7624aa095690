//! The disk itself: whole transfers of pinned memory past the page cache, on as many threads as there are in flight.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kvstrata_cuda::{Device, PinnedRegion};
use kvstrata_io::{Disk, Open, OsDisk, OsOptions, probe};
use kvstrata_mem::{Allocate, ReadBuf, Slab, WriteBuf};

/// A file per thread, written once before it counts: space that was written before is written faster.
pub(super) struct Raw {
    disk: OsDisk,
    dir: PathBuf,
    /// Whether writes and reads bypass the page cache.
    pub(super) direct: bool,
    len: usize,
    each: usize,
    sources: Vec<ReadBuf>,
    targets: Vec<Mutex<WriteBuf>>,
}

impl Raw {
    /// `in_flight` files of `each` transfers of `len` bytes.
    pub(super) fn start(
        device: &Arc<Device>,
        dir: PathBuf,
        in_flight: usize,
        len: usize,
        each: usize,
    ) -> Result<Self> {
        let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let can = probe(&disk, &dir)?;
        let direct = can.direct_read.is_yes() && can.direct_write.is_yes();
        let room = 2 * len.next_multiple_of(4096) * in_flight;
        let pool = Slab::new(vec![PinnedRegion::new(device, room)?])?.pool("raw", room as u64);
        let mut raw = Self { disk, dir, direct, len, each, sources: Vec::new(), targets: Vec::new() };
        for n in 0..in_flight {
            let mut buf = pool.reserve(len, 4096)?;
            buf.write_at(0, &vec![n as u8 + 1; len])?;
            raw.sources.push(buf.seal(len));
            raw.targets.push(Mutex::new(pool.reserve(len, 4096)?));
            let how = Open { write: true, create_new: true, ..Open::default() };
            raw.disk.open(&raw.path(n), how)?;
        }
        raw.write()?;
        Ok(raw)
    }

    fn path(&self, n: usize) -> PathBuf {
        self.dir.join(n.to_string())
    }

    fn room(&self) -> usize {
        if self.direct { self.len.next_multiple_of(4096) } else { self.len }
    }

    fn at(&self, i: usize) -> u64 {
        (i * self.len.next_multiple_of(4096)) as u64
    }

    /// Every thread writes its file.
    pub(super) fn write(&self) -> Result<Duration> {
        self.on_each(|n| {
            let how = Open { write: true, direct: self.direct, ..Open::default() };
            let file = self.disk.open(&self.path(n), how)?;
            (0..self.each).try_for_each(|i| {
                Ok(self.disk.write_buf_at(&file, self.at(i), &self.sources[n], self.room())?)
            })
        })
    }

    /// Every thread reads its file.
    pub(super) fn read(&self) -> Result<Duration> {
        self.on_each(|n| {
            let file = self.disk.open(&self.path(n), Open { direct: self.direct, ..Open::default() })?;
            let mut buf = self.targets[n].lock().unwrap_or_else(PoisonError::into_inner);
            (0..self.each).try_for_each(|i| {
                let got = self.disk.read_buf_at(&file, self.at(i), &mut buf, self.room())?;
                ensure!(got >= self.len, "{got} of {} bytes read", self.len);
                Ok(())
            })
        })
    }

    fn on_each(&self, work: impl Fn(usize) -> Result<()> + Sync) -> Result<Duration> {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let work = &work;
            let all: Vec<_> = (0..self.sources.len()).map(|n| scope.spawn(move || work(n))).collect();
            all.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
        .with_context(|| format!("plain calls in {}", self.dir.display()))?;
        Ok(begun.elapsed())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), error = %e, "the files of the plain calls stay");
        }
    }
}
