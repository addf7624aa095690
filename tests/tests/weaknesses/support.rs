//! What the checks have in common: keys, our file adapter as a tier, and how a defect is reported.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::{Affinity, Instant, KeyScope, KvRank, Layout, ObjectKey, Result as CoreResult};
use kvstrata_disk::{Writer, names};
use kvstrata_io::{Disk, Open, OsDisk, OsOptions, SimDisk, SimOptions};
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Get, GetItem, GetSink, Keys, Put, PutSink, Stored, Verify,
};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

/// The payload of every object.
pub(crate) const LEN: usize = 16 << 10;
/// No space left on device.
pub(crate) const ENOSPC: i32 = 28;

/// Says what a check found.
pub(crate) fn ensure(holds: bool, defect: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(defect.into()) }
}

/// A check must have found the defect of a double, in words that tell it from others.
#[track_caller]
pub(crate) fn found(defect: Result<(), String>, says: &[&str]) {
    let text = defect.expect_err("the check passes on a double that has the defect");
    for part in says {
        assert!(text.contains(part), "the check found something else: {part:?} is not in: {text}");
    }
}

pub(crate) fn key(n: u64) -> ObjectKey {
    key_of("model", n)
}

pub(crate) fn key_of(model: &str, n: u64) -> ObjectKey {
    trace::key(&KeyScope::new(model, KvRank::single(), 0, "").expect("a scope"), n)
}

pub(crate) fn payload_of(key: &ObjectKey) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    payload::fill(key, &mut bytes);
    bytes
}

/// What a load gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// The bytes that were stored.
    Exact,
    /// Other bytes, as if they were the key's.
    Wrong(String),
    /// Nothing, and that was the answer.
    Miss,
    /// An error.
    Error(String),
}

impl Got {
    /// Judges bytes that were given out as the key's.
    pub(crate) fn judge(key: &ObjectKey, bytes: &[u8]) -> Self {
        match payload::check(key, bytes) {
            Ok(()) if bytes.len() == LEN => Self::Exact,
            Ok(()) => Self::Wrong(format!("{} bytes of {LEN}", bytes.len())),
            Err(e) => Self::Wrong(e.to_string()),
        }
    }
}

/// A tier of files: what the checks of file formats need of one.
pub(crate) trait Tier {
    type Disk: Disk;
    async fn put(&mut self, key: &ObjectKey) -> Result<(), String>;
    async fn get(&mut self, key: &ObjectKey) -> Got;
    async fn remove(&mut self, key: &ObjectKey) -> bool;
    /// Where the files are.
    fn disk(&self) -> &Self::Disk;
    /// The file of an object.
    fn file(&self, key: &ObjectKey) -> PathBuf;
    /// Buffers that are in use although nobody asks for anything.
    fn buffers(&self) -> u64;
    /// Bytes that it says are taken.
    fn charged(&self) -> u64;
}

/// Our file adapter, with the checks that go on top of every adapter.
pub(crate) struct Fs<D: Disk> {
    pub(crate) fs: FsStore<D>,
    adapter: Adapter,
    disk: Arc<D>,
    root: PathBuf,
    pub(crate) arena: Arena,
}

pub(crate) fn os_disk() -> Arc<OsDisk> {
    Arc::new(OsDisk::new(OsOptions { threads: 2, ..OsOptions::default() }).expect("threads"))
}

pub(crate) fn sim_disk(options: SimOptions) -> Arc<SimDisk> {
    Arc::new(SimDisk::new(options))
}

impl<D: Disk> Fs<D> {
    pub(crate) fn open(disk: Arc<D>, root: &Path, writer: u64) -> CoreResult<Self> {
        Self::on(Memory::Private, disk, root, writer)
    }

    pub(crate) fn on(memory: Memory, disk: Arc<D>, root: &Path, writer: u64) -> CoreResult<Self> {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let context = FsContext {
            disk: Arc::clone(&disk),
            l2: cx.clone(),
            writer: Writer { pid: 7, id: writer << 32 },
            namespaces: vec![],
        };
        let fs = FsStore::open(&FsConfig::new(root), context)?;
        let adapter = Checked::new(fs.adapter(), Verify::On, cx).adapter;
        let arena = Arena::new(memory, 2 << 20)?;
        Ok(Self { fs, adapter, disk, root: root.into(), arena })
    }

    pub(crate) async fn close(self) {
        self.adapter.store.shutdown(Instant::FAR_FUTURE).await.expect("it ends");
    }
}

fn layout() -> Layout {
    Layout::opaque(LEN as u64).expect("a layout")
}

impl<D: Disk> Tier for Fs<D> {
    type Disk = D;

    async fn put(&mut self, key: &ObjectKey) -> Result<(), String> {
        let item = self.arena.item(key, key, &layout()).expect("memory");
        let request = Put { items: vec![item], deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        let answer = Arc::<Mutex<Option<CoreResult<Stored>>>>::default();
        let to = Arc::clone(&answer);
        let sink = PutSink::new(1, Arc::new(move |_, a: CoreResult<Stored>| *to.lock() = Some(a)));
        self.adapter.store.put(request, sink).await;
        let answer = answer.lock().take().expect("an answer");
        answer.map(drop).map_err(|e| e.to_string())
    }

    async fn get(&mut self, key: &ObjectKey) -> Got {
        let buf = self.arena.empty(LEN).expect("memory");
        let items = vec![GetItem { key: key.clone(), layout: layout(), buf }];
        let request = Get { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
        let answer = Arc::<Mutex<Option<Answer>>>::default();
        let to = Arc::clone(&answer);
        let sink = GetSink::new(1, Arc::new(move |_, a: Answer| *to.lock() = Some(a)));
        self.adapter.store.get(request, sink).await;
        let answer = answer.lock().take().expect("an answer");
        match answer {
            Answer::Loaded(loaded) => {
                let mut bytes = vec![0; loaded.buf.len()];
                loaded.buf.read_at(0, &mut bytes).expect("host memory");
                Got::judge(key, &bytes)
            }
            Answer::Miss(..) => Got::Miss,
            Answer::Failed(e, _) => Got::Error(e.to_string()),
        }
    }

    async fn remove(&mut self, key: &ObjectKey) -> bool {
        let remove = self.adapter.remove.as_ref().expect("it can remove");
        let keys: Keys = [key.clone()].into();
        matches!(remove.remove(keys, Instant::FAR_FUTURE).await[0], Ok(true))
    }

    fn disk(&self) -> &D {
        &self.disk
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        names::object_path(&self.root, key.fingerprint256())
    }

    fn buffers(&self) -> u64 {
        self.arena.in_use()
    }

    fn charged(&self) -> u64 {
        let store = self.fs.store();
        store.usage().used + store.overhead_bytes()
    }
}

// ---- damage ----------------------------------------------------------------------------------------------------

fn edit<D: Disk>(disk: &D, path: &Path) -> D::File {
    disk.open(path, Open { write: true, ..Open::default() }).expect("the object's file")
}

/// Makes a file shorter or longer by so many bytes.
pub(crate) fn resize<D: Disk>(disk: &D, path: &Path, by: i64) {
    let len = disk.metadata(path).expect("the object's file").len;
    disk.set_len(&edit(disk, path), len.saturating_add_signed(by)).expect("another length");
}

/// Flips a bit this far before the end of a file.
pub(crate) fn flip<D: Disk>(disk: &D, path: &Path, before_end: u64) {
    let file = edit(disk, path);
    let at = disk.metadata(path).expect("the object's file").len - before_end;
    let mut byte = [0];
    disk.read_exact_at(&file, at, &mut byte).expect("a byte");
    disk.write_all_at(&file, at, &[byte[0] ^ 4]).expect("a byte");
}

/// Puts the file of each key under the other's name.
pub(crate) fn swap<D: Disk>(disk: &D, a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    disk.rename(a, &aside).expect("a rename");
    disk.rename(b, a).expect("a rename");
    disk.rename(&aside, b).expect("a rename");
}

/// What a directory takes on its device, as `du` counts.
pub(crate) fn taken<D: Disk>(disk: &D, dir: &Path) -> u64 {
    let entries = disk.list(dir).expect("a directory");
    let below = entries.iter().map(|entry| {
        let path = dir.join(&entry.name);
        match entry.kind {
            kvstrata_io::FileKind::Dir => taken(disk, &path),
            _ => disk.metadata(&path).expect("a file").allocated,
        }
    });
    disk.metadata(dir).expect("a directory").allocated + below.sum::<u64>()
}
