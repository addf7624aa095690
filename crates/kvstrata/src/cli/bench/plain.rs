//! The same bytes through plain calls: open, one `pwrite` or `pread` of the whole object, close, on as many threads as the
//! adapter has.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvstrata_config::AdapterSettings;
use kvstrata_disk::{Manifest, StoreLayout};
use kvstrata_io::{Disk, Open, OsDisk, OsOptions, probe};
use kvstrata_l2_fs::FsConfig;
use kvstrata_mem::{ReadBuf, WriteBuf};

/// What an adapter's settings say about how it uses its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Manner {
    pub(super) base_path: PathBuf,
    pub(super) threads: usize,
    pub(super) direct: bool,
    /// Whether stores wait for the bytes.
    pub(super) sync: bool,
}

impl Manner {
    /// `None` for an adapter without files.
    pub(super) fn of(settings: &AdapterSettings) -> Option<Self> {
        let keys = settings.keys();
        let base_path = PathBuf::from(keys.get("base_path")?.as_str()?);
        let threads = keys.get("num_workers").and_then(|n| usize::try_from(n.as_u64()?).ok());
        let set = |key, off| keys.get(key).is_some_and(|v| !v.is_null() && *v != off);
        Some(Self {
            threads: threads.unwrap_or_else(|| FsConfig::new(&base_path).num_workers).max(1),
            base_path,
            direct: set("use_odirect", serde_json::Value::Bool(false)),
            sync: set("sync", "none".into()),
        })
    }
}

impl Manner {
    /// Of a store of segments that is open now and was told nothing about the page cache: it bypasses it.
    pub(super) fn once_open(self, settings: &AdapterSettings, disk: &OsDisk) -> Self {
        let unsaid = settings.keys().get("use_odirect").is_none_or(serde_json::Value::is_null);
        let manifest = Manifest::read(disk, &self.base_path).ok().flatten();
        let segments = manifest.is_some_and(|manifest| manifest.layout() == StoreLayout::Slab);
        Self { direct: self.direct || unsaid && segments, ..self }
    }
}

type Job = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Threads that make plain calls in a directory of their own, which goes when this does.
pub(super) struct Plain {
    disk: Arc<OsDisk>,
    dir: PathBuf,
    /// Whether reads and writes bypass the page cache.
    pub(super) direct: (bool, bool),
    sync: bool,
    workers: Vec<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    done: Receiver<io::Result<()>>,
}

impl Plain {
    /// Makes the directory inside the adapter's, which must exist, so that both are on one file system.
    pub(super) fn start(manner: &Manner, run: u64) -> Result<Self> {
        let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
        let dir = manner.base_path.join(format!("bench-{run:016x}"));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let (answer, done) = channel();
        let mut plain = Self {
            disk: Arc::new(disk),
            dir,
            direct: (false, false),
            sync: manner.sync,
            workers: Vec::new(),
            threads: Vec::new(),
            done,
        };
        if manner.direct {
            let can = probe(&*plain.disk, &plain.dir)?;
            plain.direct = (can.direct_read.is_yes(), can.direct_write.is_yes());
        }
        for _ in 0..manner.threads {
            let (to, jobs) = channel::<Job>();
            let answer = answer.clone();
            plain.threads.push(std::thread::Builder::new().name("plain".into()).spawn(move || {
                for job in jobs {
                    let result = job();
                    // Buffers are free when the answer is there.
                    drop(job);
                    if answer.send(result).is_err() {
                        return;
                    }
                }
            })?);
            plain.workers.push(to);
        }
        Ok(plain)
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Writes one new file per buffer, numbered from `first`.
    pub(super) fn store(&self, first: usize, bufs: Vec<ReadBuf>) -> Result<Duration> {
        let (disk, dir, direct, sync) = (Arc::clone(&self.disk), self.dir.clone(), self.direct.1, self.sync);
        self.each(bufs.len(), move |i| {
            let how = Open { write: true, create_new: true, direct, ..Open::default() };
            let file = disk.open(&path(&dir, first + i), how)?;
            disk.write_buf_at(&file, 0, &bufs[i], transfer(bufs[i].len(), direct))?;
            if sync { disk.sync_file(&file) } else { Ok(()) }
        })
    }

    /// Reads one file per buffer, numbered from `first`.
    pub(super) fn load(&self, first: usize, bufs: Vec<WriteBuf>) -> Result<(Duration, Vec<WriteBuf>)> {
        let (disk, dir, direct) = (Arc::clone(&self.disk), self.dir.clone(), self.direct.0);
        let bufs: Arc<Vec<_>> = Arc::new(bufs.into_iter().map(|b| Mutex::new(Some(b))).collect());
        let theirs = Arc::clone(&bufs);
        let took = self.each(bufs.len(), move |i| {
            let mut slot = theirs[i].lock().unwrap_or_else(PoisonError::into_inner);
            let buf = slot.as_mut().expect("taken at the end");
            let file = disk.open(&path(&dir, first + i), Open { direct, ..Open::default() })?;
            let len = buf.len();
            match disk.read_buf_at(&file, 0, buf, transfer(len, direct))? {
                n if n < len => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            }
        })?;
        let take = |b: &Mutex<Option<WriteBuf>>| b.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((took, bufs.iter().filter_map(take).collect()))
    }

    /// Removes the files from `first` on.
    pub(super) fn delete(&self, first: usize, n: usize) -> Result<()> {
        let dir = self.dir.clone();
        self.each(n, move |i| std::fs::remove_file(path(&dir, first + i))).map(drop)
    }

    /// Has every number below `n` worked on once, by whichever thread is free; how long that took.
    fn each(
        &self,
        n: usize,
        work: impl Fn(usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let job: Job = Arc::new(move || {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    i if i < n => work(i)?,
                    _ => return Ok(()),
                }
            }
        });
        let begun = Instant::now();
        for worker in &self.workers {
            worker.send(Arc::clone(&job)).context("a plain thread ended")?;
        }
        drop(job);
        let mut result = Ok(());
        for _ in &self.workers {
            result = result.and(self.done.recv().context("a plain thread ended")?);
        }
        let took = begun.elapsed();
        result.with_context(|| format!("plain calls in {}", self.dir.display()))?;
        Ok(took)
    }
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("{n:08}"))
}

/// Direct transfers are whole blocks; buffers have room for that.
pub(super) fn transfer(len: usize, direct: bool) -> usize {
    if direct { len.next_multiple_of(4096) } else { len }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.workers.clear();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
        if let Err(e) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), error = %e, "the files of the plain calls stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manner(json: serde_json::Value) -> Option<Manner> {
        Manner::of(&AdapterSettings::from(json.as_object().cloned().unwrap_or_default()))
    }

    #[test]
    fn the_adapters_manner_is_taken_over() {
        assert_eq!(manner(serde_json::json!({"type": "mock"})), None);
        let least = manner(serde_json::json!({"base_path": "/d", "use_odirect": false, "sync": "none"}));
        let base_path = PathBuf::from("/d");
        let as_default =
            Manner { base_path, threads: FsConfig::new("/d").num_workers, direct: false, sync: false };
        assert_eq!(least, Some(as_default.clone()));
        let all = serde_json::json!({"base_path": "/d", "num_workers": 7, "use_odirect": "require", "sync": "data"});
        assert_eq!(manner(all), Some(Manner { threads: 7, direct: true, sync: true, ..as_default }));
    }
}
