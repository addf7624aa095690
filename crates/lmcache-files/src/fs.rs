//! The adapter over a directory of LMCache's `fs` adapters, which is only read.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_io::{Disk, FileKind, OsDisk, OsOptions};
use kvstrata_l2::{
    Adapter, Answer, Context, Driver, Found, Get, GetItem, GetSink, L2Desc, L2Store, Loaded, MemoryKinds,
    Miss, Pass, Probe, Put, PutSink, closed,
};
use kvstrata_mem::WriteBuf;

use crate::flat::{Models, names};
use crate::jobs::{ask, check_buf, spread};
use crate::scan::holds;
use crate::{FlatConfig, NoAtime, refuse_own_store};

/// A directory of LMCache's `fs` or `fs_native` adapter. Objects are looked for by name when they are asked for, so what
/// LMCache writes meanwhile is found. Cheap to clone.
#[derive(Debug)]
pub struct LmcacheFs<D: Disk>(Arc<Inner<D>>);

impl<D: Disk> Clone for LmcacheFs<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<D: Disk> {
    desc: L2Desc,
    driver: Driver,
    threads: usize,
    files: Arc<Files<D>>,
}

/// What jobs on the engine's threads share.
#[derive(Debug)]
struct Files<D> {
    disk: Arc<D>,
    root: std::path::PathBuf,
    models: Models,
    no_atime: NoAtime,
}

impl LmcacheFs<OsDisk> {
    /// Opens a directory of this machine's, with `num_workers` threads for it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_os(config: &FlatConfig, cx: Context) -> Result<Self> {
        config.validate()?;
        let options =
            OsOptions { threads: config.num_workers, thread_name: "kvs-lmc".into(), ..OsOptions::default() };
        let disk = OsDisk::new(options).map_err(|e| Error::io("start disk threads", e))?;
        Self::open(config, Arc::new(disk), cx)
    }
}

impl<D: Disk> LmcacheFs<D> {
    /// Opens a directory. Nothing in it is read yet.
    ///
    /// # Errors
    /// `Invalid` names the setting; `NotFound` and `Io` if the directory cannot be listed; `Mismatch` if it is a store of
    /// this project's.
    pub fn open(config: &FlatConfig, disk: Arc<D>, cx: Context) -> Result<Self> {
        config.validate()?;
        refuse_own_store(&*disk, &config.base_path)?;
        let desc = L2Desc {
            name: config.name.clone(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: 4096,
            durable: true,
            shared: true,
        };
        let files = Files {
            disk,
            root: config.base_path.clone(),
            models: config.models()?,
            no_atime: NoAtime::new(config.no_atime),
        };
        let (driver, threads) = (Driver::new(cx), config.num_workers);
        Ok(Self(Arc::new(Inner { desc, driver, threads, files: Arc::new(files) })))
    }

    /// The adapter. It cannot remove, list or count: the directory is LMCache's.
    pub fn adapter(&self) -> Adapter {
        Adapter { store: Arc::new(self.clone()), remove: None, list: None, usage: None, quotas: None }
    }

    /// Whether files are opened without touching their access times.
    pub fn leaves_access_times(&self) -> bool {
        self.0.files.no_atime.is_on()
    }
}

/// One object on its way from the disk.
struct Load {
    item: GetItem,
    position: usize,
    done: GetSink,
    pass: Pass,
}

impl<D: Disk> Files<D> {
    fn look(&self, key: &ObjectKey) -> Result<Option<Found>> {
        for name in names(key, &self.models) {
            match self.disk.metadata(&self.root.join(name)) {
                Ok(meta) if meta.kind == FileKind::File && meta.len > 0 => {
                    return Ok(Some(Found { len: meta.len, layout: None, digest: None }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("look object up", e).with("key", key)),
            }
        }
        Ok(None)
    }

    fn load(&self, item: GetItem) -> Answer {
        const OP: &str = "load object";
        let GetItem { key, layout, mut buf } = item;
        if let Err(e) = check_buf(OP, buf.len(), layout.bytes(), buf.region().kind()) {
            return Answer::Failed(e, Some(buf));
        }
        for name in names(&key, &self.models) {
            let path = self.root.join(name);
            match self.read(&path, layout.bytes(), &mut buf) {
                Ok(Ok(())) => {
                    let found = Found { len: layout.bytes(), layout: None, digest: None };
                    return Answer::Loaded(Loaded::new(buf, found));
                }
                Ok(Err(miss)) => return Answer::Miss(miss, Some(buf)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    return Answer::Failed(Error::io(OP, e).with("path", path.display()), Some(buf));
                }
            }
        }
        Answer::Miss(Miss::Absent, Some(buf))
    }

    fn read(&self, path: &std::path::Path, bytes: u64, buf: &mut WriteBuf) -> io::Result<Result<(), Miss>> {
        let file = self.no_atime.open(&*self.disk, path)?;
        let meta = self.disk.file_metadata(&file)?;
        if meta.kind != FileKind::File {
            return Ok(Err(Miss::Foreign));
        }
        if !holds(meta.len, bytes) {
            return Ok(Err(Miss::Truncated));
        }
        let got = self.disk.read_buf_at(&file, 0, buf, bytes as usize)?;
        Ok(if got as u64 == bytes { Ok(()) } else { Err(Miss::Truncated) })
    }
}

#[async_trait]
impl<D: Disk> L2Store for LmcacheFs<D> {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    /// Refuses everything: files without a header keep no digest and no layout, so what is written belongs in a store.
    async fn put(&self, request: Put, done: PutSink) {
        let entered = self.0.driver.enter("store objects", request.deadline);
        drop(request);
        let why = "directories of LMCache's fs adapters are only read; store to an adapter of type fs";
        let e = entered.err().unwrap_or_else(|| Error::new(ErrorKind::Unsupported, "store objects", why));
        done.answer_rest(|_| Err(e.clone()));
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load objects";
        let deadline = request.deadline;
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return request.refuse(&done, &e),
        };
        let loads = request.items.into_iter().enumerate().map(|(position, item)| Load {
            item,
            position,
            done: done.clone(),
            pass: pass.clone(),
        });
        let files = Arc::clone(&self.0.files);
        let taken = spread(&*self.0.files.disk, true, self.0.threads, loads.collect(), move |load: Load| {
            let Load { item, position, done, pass } = load;
            if done.is_open(position) {
                // If the key has timed out, the buffer ends here.
                done.answer(position, files.load(item));
            } else {
                drop(item);
            }
            drop(pass);
        });
        if !taken {
            done.answer_rest(|_| Answer::Failed(closed(OP), None));
        }
        let answered = done.answered();
        self.0.driver.watch(pass, OP, deadline, done, answered).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let files = Arc::clone(&self.0.files);
        let on = (&*self.0.files.disk, true, self.0.threads);
        let what = ("look objects up", request.deadline);
        ask(&self.0.driver, on, what, request.keys.to_vec(), move |key| files.look(&key)).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.driver.shutdown(deadline).await
    }
}
