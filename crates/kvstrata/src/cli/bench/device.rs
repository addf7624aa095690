//! What the device gives: reads and writes of the same size, as many at once, in one file that is there already, and what
//! `fio` makes of that file if it is installed.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvstrata_io::{
    Completion, CompletionSink, Disk, IoBuf, IoEngine, IoOp, Open, OsDisk, OsFile, OsOptions, probe,
};
use kvstrata_mem::{ReadBuf, WriteBuf};
use serde_json::Value;

use super::plain::{Manner, transfer};

/// A file with a place for each object, removed when this is dropped.
pub(super) struct Device {
    disk: OsDisk,
    file: Arc<OsFile>,
    path: PathBuf,
    /// Bytes of an object, and of its place.
    len: usize,
    place: usize,
    keys: usize,
    /// Whether the page cache is bypassed.
    pub(super) direct: bool,
}

struct Tell(Sender<Completion<OsFile>>);

impl CompletionSink<OsFile> for Tell {
    fn complete(&self, completion: Completion<OsFile>) {
        // Nobody listens any more after a failure.
        drop(self.0.send(completion));
    }
}

impl Device {
    /// Makes the file beside the adapter's, and writes all of it once with the bytes of `buf`, so that no block is new.
    pub(super) fn start(manner: &Manner, run: u64, keys: usize, buf: &ReadBuf) -> Result<Self> {
        let disk = OsDisk::new(OsOptions { threads: manner.threads, ..OsOptions::default() })?;
        let can = probe(&disk, &manner.base_path)?;
        let direct = manner.direct && can.direct_read.is_yes() && can.direct_write.is_yes();
        let path = manner.base_path.join(format!("bench-{run:016x}.device"));
        let how = Open { write: true, create_new: true, direct, ..Open::default() };
        let file = disk.open(&path, how).with_context(|| format!("create {}", path.display()))?;
        let (len, place) = (buf.len(), buf.len().next_multiple_of(4096));
        let device = Self { disk, file: Arc::new(file), path, len, place, keys, direct };
        for at in 0..keys {
            device.disk.write_buf_at(&device.file, (at * place) as u64, buf, transfer(len, direct))?;
        }
        Ok(device)
    }

    /// Writes the places from `first` on.
    pub(super) fn store(&self, first: usize, bufs: Vec<ReadBuf>) -> Result<Duration> {
        self.all(first, bufs.into_iter().map(IoBuf::Write))
    }

    /// Reads the places from `first` on.
    pub(super) fn load(&self, first: usize, bufs: Vec<WriteBuf>) -> Result<Duration> {
        self.all(first, bufs.into_iter().map(IoBuf::Read))
    }

    /// Gives the engine all of them at once; how long that took until the last one ended.
    fn all(&self, first: usize, bufs: impl Iterator<Item = IoBuf>) -> Result<Duration> {
        let op = |(i, buf): (usize, IoBuf)| IoOp {
            tag: i as u64,
            file: Arc::clone(&self.file),
            offset: ((first + i) * self.place) as u64,
            len: transfer(self.len, self.direct),
            buf,
        };
        let ops: Vec<_> = bufs.enumerate().map(op).collect();
        let n = ops.len();
        let (tell, told) = channel();
        let begun = Instant::now();
        self.disk.engine().submit(ops, Arc::new(Tell(tell))).map_err(|rejected| rejected.why)?;
        let mut ended = Vec::with_capacity(n);
        for _ in 0..n {
            ended.push(told.recv().context("the engine ended")?);
        }
        let took = begun.elapsed();
        for done in ended {
            let moved = done.result.with_context(|| self.path.display().to_string())?;
            if moved < self.len {
                bail!("{}: {moved} of {} bytes", self.path.display(), self.len);
            }
        }
        Ok(took)
    }

    /// 10^9 bytes a second that `fio` writes or reads in this file, with so many requests under way; `None` if it is not
    /// installed, or says nothing that is understood.
    pub(super) fn fio(&self, write: bool, depth: usize) -> Option<f64> {
        let rw = if write { "write" } else { "read" };
        let output = Command::new("fio")
            .args(["--name=device", "--ioengine=io_uring", "--overwrite=1", "--output-format=json"])
            .arg(format!("--direct={}", u8::from(self.direct)))
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--rw=rand{rw}"))
            .arg(format!("--bs={}", self.place))
            .arg(format!("--size={}", self.place * self.keys))
            .arg(format!("--iodepth={}", depth.min(1024)))
            .output()
            .ok()?;
        let said: Value = serde_json::from_slice(&output.stdout).ok()?;
        said["jobs"][0][rw]["bw_bytes"].as_f64().filter(|bytes| *bytes > 0.0).map(|bytes| bytes / 1e9)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "the file of the bench stays");
        }
    }
}
