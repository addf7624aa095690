//! A store, or several on paths of their own, with the digest check on top, and verified payloads to store and load through it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Affinity, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::{StoreStats, Writer};
use kvstrata_io::OsDisk;
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Found, Get, GetItem, GetSink, Miss, Put, PutDigest, PutItem, PutSink,
    Stored, Verify,
};
use kvstrata_l2_fs::{FsConfig, FsStore, LayoutChoice, Sync, open_os};
use kvstrata_l2_paths::{Member, Paths, PathsOptions};
use kvstrata_mem::{Allocate, HeapRegion, Pool, Slab, UNIT};
use kvstrata_policy::{Place, Sharding};
use kvstrata_testkit::rng::mix;
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

/// The longest that one call may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Keys of one call.
pub const BATCH: usize = 16;
/// The longest payload.
pub const LONGEST: u64 = 48 << 10;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct How {
    /// Its directory.
    pub dir: PathBuf,
    /// Directories below it with a store each, which share the limit; 1 for a store in `dir` itself.
    pub paths: usize,
    /// How objects lie in files.
    pub layout: LayoutChoice,
    /// Its limit in bytes; 0 for none.
    pub capacity: u64,
    /// What a store waits for.
    pub sync: Sync,
    /// A number that no other opening has.
    pub writer: u64,
    /// Whether other processes may have it open too.
    pub shared: bool,
}

/// What came of a load.
#[derive(Debug)]
pub enum Got {
    /// The bytes that were stored.
    Right,
    /// Other bytes: how.
    Wrong(String),
    /// A miss.
    Miss(Miss),
    /// An error.
    Failed(kvstrata_core::Error),
}

/// An open store.
#[derive(Debug)]
pub struct Shelf {
    /// The stores: one, or one on each path.
    pub stores: Vec<FsStore<OsDisk>>,
    /// The adapter over them.
    pub adapter: Adapter,
    /// The adapter with its digest check.
    pub checked: Checked,
    /// Its clock.
    pub cx: Context,
    pool: Arc<Pool>,
}

/// The scope of all keys here.
pub fn scope() -> Arc<KeyScope> {
    KeyScope::new("model", KvRank::single(), 0, "").expect("a good scope")
}

/// The key with this number.
pub fn key(scope: &Arc<KeyScope>, id: u64) -> ObjectKey {
    trace::key(scope, id)
}

/// The number of a key.
pub fn id_of(key: &ObjectKey) -> Option<u64> {
    u64::from_str_radix(&key.hash().to_string(), 16).ok()
}

/// The layout of the key with this number: some are tiny, most some KiB, and few lengths are whole blocks.
pub fn layout(id: u64) -> Layout {
    let roll = mix(id ^ 0x0005_ca1e);
    let bytes = match roll % 8 {
        0 => 1 + (roll >> 8) % 64,
        1 => 4096,
        2 => LONGEST,
        _ => 1 + (roll >> 8) % (24 << 10),
    };
    Layout::opaque(bytes).expect("a good layout")
}

impl How {
    /// The directories of the stores.
    pub fn dirs(&self) -> Vec<PathBuf> {
        if self.paths == 1 {
            return vec![self.dir.clone()];
        }
        (0..self.paths).map(|n| self.dir.join(format!("path-{n}"))).collect()
    }
}

/// The settings of each store.
pub fn settings(how: &How) -> Vec<FsConfig> {
    let one = |dir| FsConfig {
        layout: how.layout,
        max_capacity_gb: (how.capacity / how.paths as u64) as f64 / (1u64 << 30) as f64,
        sync: how.sync,
        shared: how.shared,
        ..FsConfig::new(dir)
    };
    how.dirs().into_iter().map(one).collect()
}

impl Shelf {
    /// Opens the store, on the runtime that this is called on.
    ///
    /// # Errors
    /// As [`open_os`].
    pub fn open(how: &How) -> Result<Self> {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let writer = Writer { pid: std::process::id(), id: how.writer };
        let open = |config: &FsConfig| open_os(config, cx.clone(), writer, vec![], None);
        let stores = settings(how).iter().map(open).collect::<Result<Vec<_>>>()?;
        let adapter = match &stores[..] {
            [one] => one.adapter(),
            each => {
                let member = |(n, one): (usize, &FsStore<OsDisk>)| Member {
                    place: Place { name: n.to_string(), weight: 1, devices: vec![] },
                    adapter: Ok(one.adapter()),
                    open: None,
                };
                let members = each.iter().enumerate().map(member).collect();
                Paths::new("fs", Sharding::ByKey, members, PathsOptions::default(), cx.clone())?.adapter()
            }
        };
        let bytes = 2 * BATCH * LONGEST as usize;
        let pool = Slab::new(vec![HeapRegion::new(bytes)?])?.pool("shelf", bytes as u64);
        Ok(Self { checked: Checked::new(adapter.clone(), Verify::On, cx.clone()), stores, adapter, cx, pool })
    }

    /// How full the stores are, what they take beside objects included.
    pub fn taken(&self) -> u64 {
        self.stores.iter().map(|one| one.store().usage().used + one.store().overhead_bytes()).sum()
    }

    /// What all of them counted.
    pub fn sum(&self, of: impl Fn(StoreStats) -> u64) -> u64 {
        self.stores.iter().map(|one| of(one.stats())).sum()
    }

    /// When a call that begins now must have ended.
    pub fn deadline(&self) -> Instant {
        self.cx.timer.now() + PATIENCE
    }

    /// Stores keys with their payloads, at most [`BATCH`].
    pub async fn put(&self, scope: &Arc<KeyScope>, ids: &[u64]) -> Vec<Result<Stored>> {
        let item = |&id: &u64| {
            let (key, layout) = (key(scope, id), layout(id));
            let len = layout.bytes() as usize;
            let mut buf = self.pool.reserve(len, UNIT).expect("room for a batch");
            payload::write(&key, &mut buf).expect("host memory");
            PutItem { key, layout, digest: PutDigest::None, buf: buf.seal(len) }
        };
        let items: Vec<_> = ids.iter().map(item).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |at: usize, answer| to.lock()[at] = Some(answer)));
        let request = Put { items, deadline: self.deadline(), affinity: Affinity::default() };
        self.checked.adapter.store.put(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(|a| a.expect("every key is answered")).collect()
    }

    /// Loads keys and compares every byte, at most [`BATCH`].
    pub async fn get(&self, scope: &Arc<KeyScope>, ids: &[u64]) -> Vec<Got> {
        let item = |&id: &u64| {
            let (key, layout) = (key(scope, id), layout(id));
            let buf = self.pool.reserve(layout.bytes() as usize, UNIT).expect("room for a batch");
            GetItem { key, layout, buf }
        };
        let items: Vec<_> = ids.iter().map(item).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = GetSink::new(items.len(), Arc::new(move |at: usize, answer| to.lock()[at] = Some(answer)));
        let request = Get { items, deadline: self.deadline(), affinity: Affinity::default() };
        self.checked.adapter.store.get(request, sink).await;
        let answers = std::mem::take(&mut *got.lock());
        let judge = |(&id, answer): (&u64, Option<Answer>)| match answer.expect("every key is answered") {
            Answer::Loaded(loaded) if !loaded.verified => Got::Wrong("delivered without a check".into()),
            Answer::Loaded(loaded) => {
                let buf = loaded.buf.seal(layout(id).bytes() as usize);
                match payload::verify(&key(scope, id), &buf).expect("host memory") {
                    Ok(()) => Got::Right,
                    Err(bytes) => Got::Wrong(bytes.to_string()),
                }
            }
            Answer::Miss(miss, _) => Got::Miss(miss),
            Answer::Failed(e, _) => Got::Failed(e),
        };
        ids.iter().zip(answers).map(judge).collect()
    }

    /// Everything that is listed.
    ///
    /// # Errors
    /// What the listing says.
    pub async fn list(&self) -> Result<Vec<(ObjectKey, Found)>> {
        let list = self.checked.adapter.list.as_ref().expect("files can be listed");
        let (mut out, mut cursor) = (Vec::new(), None);
        loop {
            let page = list.list(cursor.as_deref(), 512).await?;
            out.extend(page.entries);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(out),
            }
        }
    }

    /// Shuts the store down, which writes its snapshot.
    ///
    /// # Errors
    /// `TimedOut` if it does not end.
    pub async fn close(self) -> Result<()> {
        self.checked.adapter.store.shutdown(self.deadline()).await
    }

    /// Buffers that are out.
    pub fn buffers(&self) -> u64 {
        self.pool.usage().buffers
    }
}

/// What a directory takes on the device, as `du` counts it.
pub fn du(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = std::fs::symlink_metadata(dir)?.blocks() * 512;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += du(&entry.path())?;
        } else {
            bytes += entry.metadata()?.blocks() * 512;
        }
    }
    Ok(bytes)
}

/// The names in a directory; none if it is not there.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
