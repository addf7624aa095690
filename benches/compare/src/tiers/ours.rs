//! The storage manager as the comparisons use it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_disk::Writer;
use kvstrata_l2::Context;
use kvstrata_l2_fs::{FsConfig, open_os};
use kvstrata_manager::{Grant, Layouts, LoadMode, Manager, Options, Parts, Reserved, Wait};
use kvstrata_mem::{MmapRegion, RegionOptions, Slab};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(60);

/// A manager, and the threads it runs on.
pub(crate) struct Ours {
    runtime: Runtime,
    pub(crate) manager: Manager,
    layouts: Layouts,
    len: usize,
}

impl Ours {
    /// Memory for so many chunks of `len` bytes, and as many more to load into.
    pub(crate) fn new(chunks: usize, len: usize, policy: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
        let bytes = chunks * len.next_multiple_of(4096);
        let options = RegionOptions { prefault: true, ..RegionOptions::default() };
        let slab = Slab::new(vec![MmapRegion::new(2 * bytes, &options)?])?;
        let parts = Parts {
            cache: slab.pool("cache", bytes as u64),
            staging: slab.pool("staging", bytes as u64),
            eviction: kvstrata_evict::by_name(policy)?,
            admission: kvstrata_evict::admission_by_name("always")?,
            store: kvstrata_policy::store_by_name("default")?,
            prefetch: kvstrata_policy::prefetch_by_name("default")?,
            cx: Context::tokio(runtime.handle().clone()),
        };
        let manager = Manager::new(parts, Options::default())?;
        let layouts = Layouts::from(Layout::opaque(len as u64)?);
        Ok(Self { runtime, manager, layouts, len })
    }

    /// Puts files in `dir` below it.
    pub(crate) fn with_files(self, dir: &Path, workers: usize, direct: bool) -> Result<Self> {
        let config: FsConfig = serde_json::from_value(serde_json::json!({
            "base_path": dir, "num_workers": workers, "use_odirect": if direct { "require".into() } else { serde_json::Value::from(false) },
        }))?;
        let writer = Writer { pid: std::process::id(), id: 1 };
        let fs = open_os(&config, Context::tokio(self.runtime.handle().clone()), writer, vec![])?;
        self.manager.add_adapter(fs.adapter(), 1)?;
        Ok(self)
    }

    /// Keys of one chain.
    pub(crate) fn keys(first: u64, n: usize) -> Result<Vec<ObjectKey>> {
        let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
        let hash = |n: u64| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            ChunkHash::from(hash)
        };
        Ok((first..first + n as u64).map(|n| ObjectKey::new(&scope, hash(n))).collect())
    }

    /// Reserves, fills where there is something to fill with, and commits; how many.
    pub(crate) fn write(&self, keys: &[ObjectKey], sources: &[Vec<u8>]) -> usize {
        let rq = self.manager.request(PATIENCE);
        let reserved =
            self.manager.try_reserve(&rq, keys, &KeyMask::all(keys.len()), &self.layouts, Grant::Whole);
        self.commit(reserved, sources)
    }

    fn commit(&self, reserved: Vec<Reserved>, sources: &[Vec<u8>]) -> usize {
        let mut filled = Vec::with_capacity(reserved.len());
        for (at, reserved) in reserved.into_iter().enumerate() {
            let Reserved::Granted(mut chunk) = reserved else { continue };
            if let Some(source) = sources.get(at) {
                chunk.buf().as_mut_slice().expect("private memory").copy_from_slice(source);
            }
            filled.push(chunk);
        }
        self.manager.commit(filled).len()
    }

    /// Pins what is in memory, marks it used, and lets go.
    pub(crate) fn read(&self, keys: &[ObjectKey]) -> usize {
        let rq = self.manager.request(PATIENCE);
        let hits = self.manager.read(&rq, keys);
        self.manager.touch(&rq, keys, &hits.mask());
        std::hint::black_box(hits.len())
    }

    /// Stores through memory to the files, and waits until all of it can be found there.
    pub(crate) fn store(&self, keys: &[ObjectKey], sources: &[Vec<u8>], batch: usize) -> Result<()> {
        self.runtime.block_on(async {
            for (keys, sources) in keys.chunks(batch).zip(sources.chunks(batch)) {
                let rq = self.manager.request(PATIENCE);
                let wanted = KeyMask::all(keys.len());
                let reserved = self
                    .manager
                    .reserve(&rq, keys, &wanted, &self.layouts, Grant::Whole, Wait::UntilDeadline)
                    .await;
                ensure!(self.commit(reserved, sources) == keys.len(), "a minute was not enough for room");
            }
            self.manager.flush(PATIENCE).await.context("flush")
        })
    }

    /// Looks a batch up and loads it, from files if memory was cleared; what came, by position.
    pub(crate) fn load(&self, keys: &[ObjectKey]) -> kvstrata_manager::Hits {
        let keys: kvstrata_l2::Keys = keys.into();
        self.runtime.block_on(async {
            let rq = self.manager.request(PATIENCE);
            let lookup = self.manager.lookup(&rq, &keys).await;
            self.manager.load(lookup, &self.layouts, LoadMode::Any).finish().await.hits
        })
    }

    /// How many of the hits are not what was stored.
    pub(crate) fn wrong(&self, hits: &kvstrata_manager::Hits, sources: &[Vec<u8>]) -> usize {
        let differs = |(at, source): (usize, &Vec<u8>)| {
            hits.buf(at).is_none_or(|buf| buf.as_slice().is_none_or(|bytes| bytes[..self.len] != source[..]))
        };
        sources.iter().enumerate().filter(|s| differs(*s)).count()
    }

    pub(crate) fn close(self) -> Result<()> {
        self.runtime.block_on(self.manager.shutdown(PATIENCE)).context("shut down")
    }
}
