//! A store by one way, and GPU memory to put into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Affinity, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Answer, Checked, Context, Get, GetItem, GetSink, L2Store, Miss, Put, PutDigest, PutItem, PutSink, Stored,
    Verify,
};
use kvstrata_l2_gds::{GdsConfig, GdsContext, GdsStore, GdsWay, Gpus, os_disk};
use kvstrata_mem::{Allocate, MmapRegion, Pool, ReadBuf, RegionOptions, Slab, UNIT, WriteBuf};
use kvstrata_testkit::{payload, trace};
use libtest_mimic::Failed;
use parking_lot::Mutex;

use crate::common::{self, device::Device};

pub(crate) const POOL: usize = 192 << 20;
const LARGEST: usize = 72 << 20;

/// The GPU, and what all tests use of it.
pub(crate) struct Gpu {
    pub(crate) gpus: Arc<dyn Gpus>,
    pub(crate) device: Arc<Device>,
    pub(crate) host: Arc<Pool>,
    pub(crate) runtime: tokio::runtime::Runtime,
}

pub(crate) fn library() -> Option<PathBuf> {
    std::env::var_os("KV_CUFILE_LIB").map(PathBuf::from)
}

pub(crate) fn folder() -> tempfile::TempDir {
    let base =
        std::env::var_os("KVSTRATA_GPU_DIR").map(PathBuf::from).or_else(|| std::env::current_dir().ok());
    tempfile::tempdir_in(base.unwrap_or_else(std::env::temp_dir)).expect("a folder for files")
}

pub(crate) fn key(n: u64) -> ObjectKey {
    trace::key(&KeyScope::new("gpu", KvRank::single(), 0, "").expect("a scope"), n)
}

pub(crate) fn bytes_of(n: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    payload::fill(&key(n), &mut bytes);
    bytes
}

impl Gpu {
    pub(crate) fn open() -> Result<Self, String> {
        Self::over(crate::gpus().map_err(|e| e.to_string())?)
    }

    pub(crate) fn over(gpus: Arc<dyn Gpus>) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .map_err(|e| e.to_string())?;
        let device = Device::new(Arc::clone(&gpus), POOL, LARGEST).map_err(|e| e.to_string())?;
        let region = MmapRegion::new(POOL, &RegionOptions::default()).map_err(|e| e.to_string())?;
        let host = Slab::new(vec![region]).map_err(|e| e.to_string())?.pool("host", POOL as u64);
        Ok(Self { gpus, device, host, runtime })
    }

    /// Whether this machine has a way.
    pub(crate) fn has(&self, way: GdsWay) -> Result<(), String> {
        let dir = folder();
        self.store(dir.path(), way, |_| ()).map(drop).map_err(|e| e.to_string())
    }

    /// A store in `dir`, by one way.
    pub(crate) fn store(
        &self,
        dir: &Path,
        way: GdsWay,
        change: impl FnOnce(&mut GdsConfig),
    ) -> Result<Rig<'_>> {
        let mut config = GdsConfig { gds_way: way, gds_buffer_size: 192, ..common::config(dir) };
        if way == GdsWay::Direct || way == GdsWay::Compat {
            config.use_gds = Some(true);
        }
        change(&mut config);
        let cx = Context::tokio(self.runtime.handle().clone());
        let context = common::context(os_disk(&config)?, cx.clone(), Ok(Arc::clone(&self.gpus)));
        let memory = Some(Arc::clone(&self.device.pool) as Arc<dyn Allocate>);
        let context = GdsContext { prober: crate::prober(library()), memory, ..context };
        let gds = GdsStore::open(&config, context)?;
        let checked = Checked::new(gds.adapter(), Verify::On, cx.clone()).adapter.store;
        Ok(Rig { gpu: self, gds, checked, cx })
    }

    /// A chunk of GPU memory with the bytes of a key.
    pub(crate) fn chunk(&self, n: u64, len: usize) -> Result<WriteBuf> {
        self.device.filled(len, |to| {
            payload::fill(&key(n), to);
            Ok(())
        })
    }

    /// A chunk of host memory.
    pub(crate) fn host_reserve(&self, len: usize) -> Result<WriteBuf> {
        self.host.reserve(len, UNIT)
    }

    /// A chunk that holds bytes of no key.
    pub(crate) fn poisoned(&self, len: usize) -> Result<WriteBuf> {
        self.device.filled(len, |to| {
            to.fill(0x5a);
            Ok(())
        })
    }
}

/// A store.
pub(crate) struct Rig<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) gds: GdsStore,
    pub(crate) checked: Arc<dyn L2Store>,
    pub(crate) cx: Context,
}

pub(crate) fn gpu0() -> Affinity {
    Affinity { ordinal: Some(0), uuid: None }
}

type Answers<T> = Arc<Mutex<Vec<Option<T>>>>;

impl Rig<'_> {
    pub(crate) fn put(&self, items: Vec<(u64, ReadBuf)>) -> Vec<Result<Stored>> {
        let n = items.len();
        let items = items
            .into_iter()
            .map(|(n, buf)| PutItem {
                key: key(n),
                layout: Layout::opaque(buf.len() as u64).expect("a layout"),
                digest: PutDigest::None,
                buf,
            })
            .collect();
        let answers: Answers<Result<Stored>> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
        let to = Arc::clone(&answers);
        let sink = PutSink::new(n, Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        self.gpu.runtime.block_on(self.checked.put(Put { items, deadline, affinity: gpu0() }, sink));
        let all = std::mem::take(&mut *answers.lock());
        all.into_iter().map(|a| a.expect("an answer")).collect()
    }

    pub(crate) fn get(&self, items: Vec<(u64, WriteBuf)>) -> Vec<Answer> {
        let n = items.len();
        let items = items
            .into_iter()
            .map(|(n, buf)| GetItem {
                key: key(n),
                layout: Layout::opaque(buf.len() as u64).expect("a layout"),
                buf,
            })
            .collect();
        let answers: Answers<Answer> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
        let to = Arc::clone(&answers);
        let sink = GetSink::new(n, Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        self.gpu.runtime.block_on(self.checked.get(Get { items, deadline, affinity: gpu0() }, sink));
        let all = std::mem::take(&mut *answers.lock());
        all.into_iter().map(|a| a.expect("an answer")).collect()
    }

    /// Stores a key's bytes from GPU memory.
    pub(crate) fn write(&self, n: u64, len: usize) -> Result<(), Failed> {
        let buf = self.gpu.chunk(n, len)?.seal(len);
        match self.put(vec![(n, buf)]).remove(0)? {
            Stored::Written => Ok(()),
            Stored::Present => Err("it was there already".into()),
        }
    }

    /// Loads a key into poisoned GPU memory, and compares.
    pub(crate) fn check(&self, n: u64, len: usize) -> Result<(), Failed> {
        let buf = self.gpu.poisoned(len)?;
        self.compare(n, len, self.get(vec![(n, buf)]).remove(0))
    }

    pub(crate) fn compare(&self, n: u64, len: usize, answer: Answer) -> Result<(), Failed> {
        let loaded = match answer {
            Answer::Loaded(loaded) => loaded,
            Answer::Miss(miss, _) => return Err(format!("key {n} of {len} bytes is a miss: {miss:?}").into()),
            Answer::Failed(e, _) => return Err(format!("key {n} of {len} bytes: {e}").into()),
        };
        let got = self.gpu.device.bytes(&loaded.buf)?;
        same(n, &got, &bytes_of(n, len))
    }

    /// Loads a key through host memory, and compares.
    pub(crate) fn check_host(&self, n: u64, len: usize) -> Result<(), Failed> {
        let buf = self.gpu.host.reserve(len, UNIT)?;
        match self.get(vec![(n, buf)]).remove(0) {
            Answer::Loaded(loaded) => {
                let mut got = vec![0; len];
                loaded.buf.read_at(0, &mut got)?;
                same(n, &got, &bytes_of(n, len))
            }
            other => Err(format!("key {n} of {len} bytes: {other:?}").into()),
        }
    }

    pub(crate) fn miss(&self, n: u64, len: usize) -> Result<Miss, Failed> {
        match self.get(vec![(n, self.gpu.poisoned(len)?)]).remove(0) {
            Answer::Miss(miss, _) => Ok(miss),
            other => Err(format!("key {n} is no miss: {other:?}").into()),
        }
    }

    pub(crate) fn close(self) -> Result<(), Failed> {
        let deadline = self.cx.timer.now() + Duration::from_secs(60);
        Ok(self.gpu.runtime.block_on(self.checked.shutdown(deadline))?)
    }
}

fn same(n: u64, got: &[u8], want: &[u8]) -> Result<(), Failed> {
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None if got.len() == want.len() => Ok(()),
        at => Err(format!("key {n}: byte {at:?} of {} differs", want.len()).into()),
    }
}
