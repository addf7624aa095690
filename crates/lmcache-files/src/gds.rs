//! The adapter over a directory of LMCache's GDS backend, read and, where that is asked for, written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_io::{Disk, OsDisk, OsOptions};
use kvstrata_l2::{
    Adapter, Answer, Context, Driver, Found, Get, GetItem, GetSink, Keys, L2Desc, L2List, L2Remove, L2Store,
    L2Usage, ListPage, MemoryKinds, PartUsage, Pass, Probe, Put, PutItem, PutSink, StoreUsage, closed,
};
use parking_lot::Mutex;

use crate::files::Files;
use crate::hex::parse_hex;
use crate::jobs::{ask, spread};
use crate::scan::{GdsDir, GdsObject};
use crate::{GdsConfig, HEADER_BYTES, NoAtime, Refused, refuse_own_store};

/// A directory of LMCache's GDS backend, with an index of what is in it. Cheap to clone.
#[derive(Debug)]
pub struct LmcacheGds<D: Disk>(Arc<Inner<D>>);

impl<D: Disk> Clone for LmcacheGds<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Inner<D: Disk> {
    desc: L2Desc,
    driver: Driver,
    threads: usize,
    writable: bool,
    refused: Refused,
    files: Arc<Files<D>>,
}

/// What was counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GdsStats {
    /// Files that the scan at the start passed over.
    pub refused: Refused,
    /// Objects that came after the start and were found by name.
    pub found_late: u64,
    /// Data files whose header was not that of the sidecar; only counted with `debug_checks`.
    pub disagreed: u64,
    /// Whether files are opened without touching their access times.
    pub leaves_access_times: bool,
}

/// The objects that are known, by fingerprint.
#[derive(Debug, Default)]
pub(crate) struct Index {
    objects: BTreeMap<[u8; 32], GdsObject>,
    bytes: u64,
}

/// What an object takes on disk: its payload, its header, its sidecar.
fn cost(object: &GdsObject) -> u64 {
    object.header.layout.bytes() + 2 * HEADER_BYTES as u64
}

impl Index {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<GdsObject> {
        self.objects.get(key.fingerprint256()).cloned()
    }

    pub(crate) fn insert(&mut self, object: GdsObject) {
        self.bytes += cost(&object);
        if let Some(old) = self.objects.insert(*object.key.fingerprint256(), object) {
            self.bytes -= cost(&old);
        }
    }

    /// Adds what was found by name, unless something is there by now.
    pub(crate) fn add(&mut self, object: GdsObject) {
        if let Entry::Vacant(free) = self.objects.entry(*object.key.fingerprint256()) {
            self.bytes += cost(&object);
            free.insert(object);
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<GdsObject> {
        let gone = self.objects.remove(key.fingerprint256())?;
        self.bytes -= cost(&gone);
        Some(gone)
    }
}

impl LmcacheGds<OsDisk> {
    /// Opens a directory of this machine's, with `num_workers` threads for it. `run` is a number that no other writer has.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_os(config: &GdsConfig, cx: Context, run: u64) -> Result<Self> {
        config.validate()?;
        let options =
            OsOptions { threads: config.num_workers, thread_name: "kvs-lmc".into(), ..OsOptions::default() };
        let disk = OsDisk::new(options).map_err(|e| Error::io("start disk threads", e))?;
        Self::open(config, Arc::new(disk), cx, run)
    }
}

impl<D: Disk> LmcacheGds<D> {
    /// Opens a directory and indexes it: every sidecar is read, on this thread and the engine's, and when this returns the
    /// index is whole. Blocks meanwhile. `run` is a number that no other writer has.
    ///
    /// # Errors
    /// `Invalid` names the setting; `NotFound` and `Io` if the directory cannot be listed, or not be made where it is to be
    /// written; `Mismatch` if it is a store of this project's.
    pub fn open(config: &GdsConfig, disk: Arc<D>, cx: Context, run: u64) -> Result<Self> {
        config.validate()?;
        let root = config.base_path.clone();
        if config.writable {
            disk.create_dir_all(&root)
                .map_err(|e| Error::io("make directory", e).with("base_path", root.display()))?;
        }
        refuse_own_store(&*disk, &root)?;
        let no_atime = NoAtime::new(config.no_atime);
        let dir = Arc::new(GdsDir { disk, root, no_atime, local_world_size: config.local_world_size });
        let (objects, refused) = dir.scan(config.num_workers)?;
        if refused.total() > 0 {
            tracing::warn!(adapter = %config.name, ?refused, "files in LMCache's directory were passed over");
        }
        let mut index = Index::default();
        objects.into_iter().for_each(|object| index.insert(object));
        let desc = L2Desc {
            name: config.name.clone(),
            alignment: 1,
            kinds: MemoryKinds::HOST,
            max_batch: 4096,
            durable: true,
            shared: true,
        };
        let files = Files::new(dir, index, config, run)?;
        let (threads, writable) = (config.num_workers, config.writable);
        let (driver, files) = (Driver::new(cx), Arc::new(files));
        Ok(Self(Arc::new(Inner { desc, driver, threads, writable, refused, files })))
    }

    /// The adapter, with what it offers: removing only where it is writable.
    pub fn adapter(&self) -> Adapter {
        Adapter {
            store: Arc::new(self.clone()),
            remove: self.0.writable.then(|| Arc::new(self.clone()) as _),
            list: Some(Arc::new(self.clone())),
            usage: Some(Arc::new(self.clone())),
            quotas: None,
        }
    }

    /// What was counted.
    pub fn stats(&self) -> GdsStats {
        let files = &self.0.files;
        GdsStats {
            refused: self.0.refused,
            found_late: files.found_late.load(Ordering::Relaxed),
            disagreed: files.disagreed.load(Ordering::Relaxed),
            leaves_access_times: files.dir.no_atime.is_on(),
        }
    }

    /// The objects that are known now, in the order of their fingerprints.
    pub fn objects(&self) -> Vec<GdsObject> {
        self.0.files.index.lock().objects.values().cloned().collect()
    }
}

/// One item of a request on its way, and what it is answered through.
struct Item<T, S> {
    item: T,
    position: usize,
    done: S,
    pass: Pass,
}

#[async_trait]
impl<D: Disk> L2Store for LmcacheGds<D> {
    fn desc(&self) -> &L2Desc {
        &self.0.desc
    }

    async fn put(&self, request: Put, done: PutSink) {
        const OP: &str = "store objects";
        let Put { items, deadline, .. } = request;
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) if self.0.writable => pass,
            refused => {
                drop(items);
                let why = "this directory of LMCache's is only read; `writable` changes that";
                let e = refused.err().unwrap_or_else(|| Error::new(ErrorKind::Unsupported, OP, why));
                return done.answer_rest(|_| Err(e.clone()));
            }
        };
        let work = items.into_iter().enumerate().map(|(position, item)| Item {
            item,
            position,
            done: done.clone(),
            pass: pass.clone(),
        });
        let files = Arc::clone(&self.0.files);
        let disk = &*self.0.files.dir.disk;
        let run = move |work: Item<PutItem, PutSink>| {
            let Item { item, position, done, pass } = work;
            if done.is_open(position) {
                files.store(item, position, &done);
            } else {
                drop(item);
            }
            drop(pass);
        };
        if !spread(disk, false, self.0.threads, work.collect(), run) {
            done.answer_rest(|_| Err(closed(OP)));
        }
        let answered = done.answered();
        self.0.driver.watch(pass, OP, deadline, done, answered).await;
    }

    async fn get(&self, request: Get, done: GetSink) {
        const OP: &str = "load objects";
        let deadline = request.deadline;
        let pass = match self.0.driver.enter(OP, deadline) {
            Ok(pass) => pass,
            Err(e) => return request.refuse(&done, &e),
        };
        let work = request.items.into_iter().enumerate().map(|(position, item)| Item {
            item,
            position,
            done: done.clone(),
            pass: pass.clone(),
        });
        let files = Arc::clone(&self.0.files);
        let disk = &*self.0.files.dir.disk;
        let run = move |work: Item<GetItem, GetSink>| {
            let Item { item, position, done, pass } = work;
            if done.is_open(position) {
                // If the key has timed out, the buffer ends here.
                done.answer(position, files.load(item));
            } else {
                drop(item);
            }
            drop(pass);
        };
        if !spread(disk, true, self.0.threads, work.collect(), run) {
            done.answer_rest(|_| Answer::Failed(closed(OP), None));
        }
        let answered = done.answered();
        self.0.driver.watch(pass, OP, deadline, done, answered).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        const OP: &str = "look objects up";
        let files = &self.0.files;
        let mut found: Vec<Result<Option<Found>>> = Vec::with_capacity(request.keys.len());
        let mut unknown = Vec::new();
        match self.0.driver.enter(OP, request.deadline) {
            Ok(_pass) => {
                let index = files.index.lock();
                for (at, key) in request.keys.iter().enumerate() {
                    let object = index.objects.get(key.fingerprint256());
                    if object.is_none() && files.kv_dtype.is_some() {
                        unknown.push((at, key.clone()));
                    }
                    found.push(Ok(object.map(found_of)));
                }
            }
            Err(e) => return request.keys.iter().map(|_| Err(e.clone())).collect(),
        }
        if unknown.is_empty() {
            return found;
        }
        // What came after the start has a name that can be looked for.
        let at: Vec<usize> = unknown.iter().map(|(at, _)| *at).collect();
        let keys = unknown.into_iter().map(|(_, key)| key).collect();
        let on = (&*files.dir.disk, true, self.0.threads);
        let mine = Arc::clone(files);
        let late = ask(&self.0.driver, on, (OP, request.deadline), keys, move |key| {
            Ok(mine.find(&key, None).as_ref().map(found_of))
        });
        for (at, answer) in at.into_iter().zip(late.await) {
            found[at] = answer;
        }
        found
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.driver.shutdown(deadline).await
    }
}

pub(crate) fn found_of(object: &GdsObject) -> Found {
    let header = &object.header;
    Found { len: header.layout.bytes(), layout: Some(header.layout.id()), digest: header.digest }
}

#[async_trait]
impl<D: Disk> L2Remove for LmcacheGds<D> {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let files = Arc::clone(&self.0.files);
        let on = (&*self.0.files.dir.disk, false, self.0.threads);
        let what = ("remove objects", deadline);
        ask(&self.0.driver, on, what, keys.to_vec(), move |key| files.remove(&key)).await
    }
}

#[async_trait]
impl<D: Disk> L2List for LmcacheGds<D> {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        const OP: &str = "list objects";
        if self.0.driver.is_closed() {
            return Err(closed(OP));
        }
        if limit == 0 {
            return Err(Error::invalid(OP, "a page has at least one entry").with("limit", limit));
        }
        let after = match cursor {
            None => Bound::Unbounded,
            Some(text) => {
                let read = parse_hex(text).and_then(|b| <[u8; 32]>::try_from(b).ok());
                let bad =
                    || Error::invalid(OP, "a cursor is what a page gave as its next").with("cursor", text);
                Bound::Excluded(read.ok_or_else(bad)?)
            }
        };
        let index = self.0.files.index.lock();
        let mut objects = index.objects.range((after, Bound::Unbounded));
        let mut page = ListPage::default();
        let mut last = None;
        for (fingerprint, object) in objects.by_ref().take(limit) {
            page.entries.push((object.key.clone(), found_of(object)));
            last = Some(fingerprint);
        }
        if objects.next().is_some() {
            page.next = last.map(|f| f.iter().map(|b| format!("{b:02x}")).collect());
        }
        Ok(page)
    }
}

impl<D: Disk> L2Usage for LmcacheGds<D> {
    fn usage(&self) -> StoreUsage {
        let index = self.0.files.index.lock();
        StoreUsage { used: index.bytes, objects: index.objects.len() as u64, ..StoreUsage::default() }
    }

    fn parts(&self) -> Vec<PartUsage> {
        Vec::new()
    }
}

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The lock over the index; held for moments only.
pub(crate) type Shared = Mutex<Index>;
