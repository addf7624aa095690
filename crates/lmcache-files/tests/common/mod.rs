//! What the tests share: directories as LMCache leaves them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kvstrata_core::{
    Affinity, ChunkHash, DType, Instant, KeyScope, KvRank, Layout, ObjectKey, Result, TensorDesc,
};
use kvstrata_io::{Disk, Open};
use kvstrata_l2::{Adapter, Answer, Context, Found, Get, GetItem, GetSink, Probe};
use kvstrata_lmcache_files::{Format, Header};
use kvstrata_mem::{Allocate, HeapRegion, Pool, Slab};

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
}

pub(crate) fn cx(of: &tokio::runtime::Runtime) -> Context {
    Context::tokio(of.handle().clone())
}

/// The key of worker 0 of 1 for the number `n` as chunk hash.
pub(crate) fn key(n: u64) -> ObjectKey {
    let scope = KeyScope::new("org/model", KvRank::single(), 0, "").expect("a scope");
    ObjectKey::new(&scope, ChunkHash::new(&n.to_be_bytes()).expect("a hash"))
}

/// 2 × 2 × 8 numbers of bf16: 64 bytes.
pub(crate) fn layout() -> Layout {
    Layout::new(vec![TensorDesc { dtype: DType::BF16, shape: vec![2, 2, 8] }]).expect("a layout")
}

pub(crate) fn header() -> Header {
    Header { layout: layout(), fmt: Format::Kv2ltd, digest: None }
}

pub(crate) fn payload(n: u64) -> Vec<u8> {
    (0..64).map(|i| (n * 31 + i) as u8).collect()
}

/// Where LMCache puts the object of [`key`], written out by hand.
pub(crate) fn place(n: u64) -> PathBuf {
    let text = n.to_string();
    let mut path = PathBuf::from(&text[..text.len().min(2)]);
    if text.len() > 2 {
        path.push(&text[2..text.len().min(4)]);
    }
    path.join(format!("org%2Fmodel%401%400%40{n:x}%40bfloat16.kvcache.safetensors"))
}

pub(crate) fn sidecar(data: &Path) -> PathBuf {
    PathBuf::from(format!("{}.metadata", data.display()))
}

pub(crate) fn write<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) {
    disk.create_dir_all(path.parent().expect("a parent")).expect("a directory");
    drop(disk.unlink(path));
    let how = Open { write: true, create_new: true, ..Open::default() };
    let file = disk.open(path, how).expect("a new file");
    disk.write_all_at(&file, 0, bytes).expect("a write");
}

/// Writes the two files of an object with this header.
pub(crate) fn gds_object<D: Disk>(disk: &D, root: &Path, n: u64, head: &[u8]) {
    let data = root.join(place(n));
    write(disk, &data, &[head, &payload(n)].concat());
    write(disk, &sidecar(&data), head);
}

pub(crate) fn pool() -> Arc<Pool> {
    Slab::new(vec![HeapRegion::new(4 << 20).expect("memory")]).expect("a slab").pool("test", 4 << 20)
}

pub(crate) fn probe(
    rt: &tokio::runtime::Runtime,
    adapter: &Adapter,
    keys: &[ObjectKey],
) -> Vec<Result<Option<Found>>> {
    let request = Probe { keys: keys.into(), deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
    rt.block_on(adapter.store.probe(request))
}

/// The answers to loads of these keys, as text: the payload, the miss, the error's kind.
pub(crate) fn get(
    rt: &tokio::runtime::Runtime,
    adapter: &Adapter,
    keys: &[ObjectKey],
    layout: &Layout,
) -> Vec<String> {
    let pool = pool();
    let items = keys
        .iter()
        .map(|key| {
            let buf = pool.reserve(layout.bytes() as usize, 4096).expect("a buffer");
            GetItem { key: key.clone(), layout: layout.clone(), buf }
        })
        .collect();
    let answers = Arc::new(Mutex::new(vec![String::new(); keys.len()]));
    let to = Arc::clone(&answers);
    let sink = GetSink::new(
        keys.len(),
        Arc::new(move |at: usize, answer: Answer| {
            to.lock().expect("no panic")[at] = match answer {
                Answer::Loaded(mut loaded) => {
                    assert_eq!(loaded.found.len, loaded.buf.len() as u64);
                    format!("{:?}", loaded.buf.as_mut_slice().expect("private memory"))
                }
                Answer::Miss(miss, buf) => {
                    assert!(buf.is_some(), "the buffer comes back");
                    miss.name().to_owned()
                }
                Answer::Failed(e, _) => e.kind().name().to_owned(),
            };
        }),
    );
    let request = Get { items, deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
    rt.block_on(adapter.store.get(request, sink));
    let answers = answers.lock().expect("no panic");
    answers.clone()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    format!("{bytes:?}")
}
