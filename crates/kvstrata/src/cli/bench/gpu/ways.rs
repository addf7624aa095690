//! GPU memory to disk and back, each way beside the disk itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvstrata_config::{AdapterSettings, BuildContext, Registry};
use kvstrata_core::{Affinity, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_cuda::{Device, DeviceRegion};
use kvstrata_l2::{Adapter, Answer, Checked, Get, GetItem, Put, PutDigest, PutItem, Stored, Verify};
use kvstrata_mem::{Allocate, ReadBuf, Slab, WriteBuf};
use kvstrata_testkit::trace;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Series;
use super::raw::Raw;
use crate::cli::bench::figures::cpu_seconds;
use crate::cli::bench::{collect, take};
use crate::cli::report;

/// Far above what a chunk takes; a device that hangs ends the bench.
const WITHIN: Duration = Duration::from_secs(120);

/// What is measured.
pub(super) struct Plan<'a> {
    pub(super) path: &'a Path,
    pub(super) ways: &'a [String],
    pub(super) sizes: Vec<usize>,
    pub(super) in_flight: &'a [usize],
    /// Bytes per measurement, at least.
    pub(super) bytes: usize,
    pub(super) settings: Map<String, Value>,
    pub(super) digests: bool,
    pub(super) rounds: u32,
}

/// One way at one size and so many chunks in flight. Throughputs are 10^9 bytes a second; they and the ratios are medians of
/// the rounds.
#[derive(Serialize, Debug)]
pub(super) struct WayFigure {
    way: String,
    size: usize,
    in_flight: usize,
    chunks: usize,
    write_gbps: f64,
    read_gbps: f64,
    /// To whole transfers of pinned host memory, in the same round.
    write_to_raw: f64,
    read_to_raw: f64,
    /// To cuFile's compat way in the same round, where both were measured.
    write_to_compat: Option<f64>,
    read_to_compat: Option<f64>,
    /// Seconds of all cores for each 10^9 bytes.
    write_cpu_s_per_gb: f64,
    read_cpu_s_per_gb: f64,
}

/// What the disk does by itself.
#[derive(Serialize, Debug)]
pub(super) struct RawFigure {
    size: usize,
    in_flight: usize,
    direct: bool,
    write_gbps: f64,
    read_gbps: f64,
}

/// A way that is not to be had here.
#[derive(Serialize, Debug)]
pub(super) struct Absent {
    pub(super) way: String,
    pub(super) why: String,
}

#[derive(Serialize, Debug, Default)]
pub(super) struct WayFigures {
    pub(super) raw: Vec<RawFigure>,
    pub(super) ways: Vec<WayFigure>,
    pub(super) absent: Vec<Absent>,
}

/// A store that is used one way.
struct Store {
    way: String,
    adapter: Checked,
}

/// Chunks on the GPU: as many to store as there are in flight, and as many to load into.
struct Chunks {
    pool: Arc<dyn Allocate>,
    sources: Vec<ReadBuf>,
    len: usize,
}

#[derive(Default)]
struct Sides {
    write: Series,
    read: Series,
}

pub(super) async fn measure(
    device: &Arc<Device>,
    cx: &BuildContext,
    plan: &Plan<'_>,
    mut step: impl FnMut() -> Result<()>,
) -> Result<WayFigures> {
    let largest = plan.sizes.iter().max().copied().unwrap_or(4096).next_multiple_of(4096);
    let most = plan.in_flight.iter().max().copied().unwrap_or(1);
    let room = 2 * largest * most;
    let pool: Arc<dyn Allocate> =
        Slab::new(vec![DeviceRegion::new(device, room)?])?.pool("bench", room as u64);
    let mut figures = WayFigures::default();
    let root = plan.path.join(format!("bench-gpu-{:016x}", cx.run));
    std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let _gone = Gone(root.clone());
    let mut stores = Vec::new();
    for way in plan.ways {
        match open(cx, plan, &root, way, &pool) {
            Ok(adapter) => stores.push(Store { way: way.clone(), adapter }),
            Err(e) => figures.absent.push(Absent { way: way.clone(), why: format!("{e:#}") }),
        }
    }
    figures.absent.push(Absent {
        way: "LMCache's layout".into(),
        why: "the packed GPU tests compare with it, because they may call cuFile themselves: \
              cargo xtask test-gpu --pack DIR, then DIR/tests/kvstrata-l2-gds gds-bench lmcache PATH"
            .into(),
    });
    let done = async {
        for &len in &plan.sizes {
            for &in_flight in plan.in_flight {
                let each = plan.bytes.div_ceil(len * in_flight).max(1);
                cell(device, cx, plan, &root, (len, in_flight, each), &pool, &stores, &mut figures).await?;
                step()?;
            }
        }
        Ok(())
    }
    .await;
    for store in &stores {
        let closed = store.adapter.adapter.store.shutdown(cx.l2.timer.now() + WITHIN).await;
        closed.with_context(|| format!("close the store of way {}", store.way))?;
    }
    done.map(|()| figures)
}

/// The folder of the bench, with all that is in it.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), error = %e, "the bench's files stay");
        }
    }
}

fn open(
    cx: &BuildContext,
    plan: &Plan<'_>,
    root: &Path,
    way: &str,
    pool: &Arc<dyn Allocate>,
) -> Result<Checked> {
    let mut settings = Map::from_iter([
        ("type".to_owned(), Value::from("gds")),
        ("gds_path".to_owned(), Value::from(root.join(way).display().to_string())),
        ("gds_way".to_owned(), Value::from(way)),
        ("disk_io_threads".to_owned(), Value::from(plan.in_flight.iter().max().copied().unwrap_or(1) + 1)),
    ]);
    settings.extend(plan.settings.clone());
    let cx = cx.clone().over(Arc::clone(pool));
    let adapter: Adapter = Registry::builtin().build(way, &AdapterSettings::from(settings), &cx)?;
    let verify = if plan.digests { Verify::On } else { Verify::Off };
    Ok(Checked::new(adapter, verify, cx.l2.clone()))
}

/// One size with one number in flight: every way and the raw disk in each round.
#[expect(clippy::too_many_arguments, reason = "one cell of the table is all of these")]
async fn cell(
    device: &Arc<Device>,
    cx: &BuildContext,
    plan: &Plan<'_>,
    root: &Path,
    (len, in_flight, each): (usize, usize, usize),
    pool: &Arc<dyn Allocate>,
    stores: &[Store],
    figures: &mut WayFigures,
) -> Result<()> {
    let raw = Raw::start(device, root.join("raw"), in_flight, len, each)?;
    let chunks = Chunks::new(device, pool, len, in_flight)?;
    let total = (len * in_flight * each) as u64;
    let mut plain = Sides::default();
    let mut all: Vec<Sides> = stores.iter().map(|_| Sides::default()).collect();
    for round in 0..plan.rounds as usize {
        plain.write.record(total, raw.write()?);
        // Who goes first changes, so that none always finds what another left behind.
        for n in 0..stores.len() {
            let n = (n + round) % stores.len();
            let scope = KeyScope::new(&format!("kvstrata-bench-{:016x}", cx.run), KvRank::single(), 0, "")?;
            let keys: Vec<ObjectKey> =
                (0..(in_flight * each) as u64).map(|i| trace::key(&scope, i)).collect();
            let cpu = cpu_seconds();
            let took = chunks.store(cx, &stores[n], &keys).await?;
            all[n].write.record_with(total, took, cpu_seconds() - cpu);
            let cpu = cpu_seconds();
            let took = chunks.load(cx, device, &stores[n], &keys).await?;
            all[n].read.record_with(total, took, cpu_seconds() - cpu);
            chunks.remove(cx, &stores[n], &keys).await?;
        }
        plain.read.record(total, raw.read()?);
    }
    figures.raw.push(RawFigure {
        size: len,
        in_flight,
        direct: raw.direct,
        write_gbps: plain.write.median(),
        read_gbps: plain.read.median(),
    });
    let compat = stores.iter().position(|s| s.way == "compat");
    for (n, (store, sides)) in stores.iter().zip(&all).enumerate() {
        let other = compat.filter(|c| *c != n).map(|c| &all[c]);
        figures.ways.push(WayFigure {
            way: store.way.clone(),
            size: len,
            in_flight,
            chunks: in_flight * each,
            write_gbps: sides.write.median(),
            read_gbps: sides.read.median(),
            write_to_raw: sides.write.ratio_to(&plain.write),
            read_to_raw: sides.read.ratio_to(&plain.read),
            write_to_compat: other.map(|o| sides.write.ratio_to(&o.write)),
            read_to_compat: other.map(|o| sides.read.ratio_to(&o.read)),
            write_cpu_s_per_gb: sides.write.cpu_per_gb(),
            read_cpu_s_per_gb: sides.read.cpu_per_gb(),
        });
    }
    Ok(())
}

impl Chunks {
    fn new(device: &Arc<Device>, pool: &Arc<dyn Allocate>, len: usize, in_flight: usize) -> Result<Self> {
        let mut chunks = Self { pool: Arc::clone(pool), sources: Vec::new(), len };
        for n in 0..in_flight {
            let mut buf = pool.reserve(len, 4096)?;
            device.write_buf(&mut buf, 0, &pattern(n, len))?;
            chunks.sources.push(buf.seal(len));
        }
        Ok(chunks)
    }

    /// Chunk `i` goes with the task `i` modulo the number in flight, which stores its own one after the other.
    async fn store(&self, cx: &BuildContext, store: &Store, keys: &[ObjectKey]) -> Result<Duration> {
        let layout = Layout::opaque(self.len as u64)?;
        let affinity = Affinity { ordinal: Some(0), uuid: None };
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, source) in self.sources.iter().enumerate() {
            let (l2, adapter) = (cx.l2.clone(), Arc::clone(&store.adapter.adapter.store));
            let (buf, layout, way) = (source.clone(), layout.clone(), store.way.clone());
            let keys: Vec<ObjectKey> = keys.iter().skip(n).step_by(self.sources.len()).cloned().collect();
            tasks.spawn(async move {
                for key in keys {
                    let item =
                        PutItem { key, layout: layout.clone(), digest: PutDigest::None, buf: buf.clone() };
                    let (sink, answers) = collect(1);
                    let deadline = l2.timer.now() + WITHIN;
                    adapter.put(Put { items: vec![item], deadline, affinity }, sink).await;
                    match take(&answers).pop().flatten() {
                        Some(Ok(Stored::Written)) => {}
                        other => bail!("store by way {way}: {other:?}"),
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.context("a task ended")??;
        }
        Ok(begun.elapsed())
    }

    async fn load(
        &self,
        cx: &BuildContext,
        device: &Arc<Device>,
        store: &Store,
        keys: &[ObjectKey],
    ) -> Result<Duration> {
        let layout = Layout::opaque(self.len as u64)?;
        let affinity = Affinity { ordinal: Some(0), uuid: None };
        let bufs: Vec<WriteBuf> = (self.sources.iter())
            .map(|_| {
                let mut buf = self.pool.reserve(self.len, 4096)?;
                // What nobody loads shows.
                device.write_buf(&mut buf, 0, &vec![0xa5; self.len])?;
                Ok(buf)
            })
            .collect::<Result<_>>()?;
        let begun = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, mut buf) in bufs.into_iter().enumerate() {
            let (l2, adapter) = (cx.l2.clone(), Arc::clone(&store.adapter.adapter.store));
            let (layout, way) = (layout.clone(), store.way.clone());
            let keys: Vec<ObjectKey> = keys.iter().skip(n).step_by(self.sources.len()).cloned().collect();
            tasks.spawn(async move {
                for key in keys {
                    let item = GetItem { key, layout: layout.clone(), buf };
                    let (sink, answers) = collect(1);
                    let deadline = l2.timer.now() + WITHIN;
                    adapter.get(Get { items: vec![item], deadline, affinity }, sink).await;
                    buf = match take(&answers).pop().flatten() {
                        Some(Answer::Loaded(found)) => found.buf,
                        other => bail!("load by way {way}: {other:?}"),
                    };
                }
                Ok((n, buf))
            });
        }
        let mut loaded = Vec::new();
        while let Some(done) = tasks.join_next().await {
            loaded.push(done.context("a task ended")??);
        }
        let took = begun.elapsed();
        for (n, buf) in loaded {
            let mut seen = vec![0; self.len];
            device.read_buf(&buf.seal(self.len), 0, &mut seen)?;
            if seen != pattern(n, self.len) {
                bail!("wrong bytes by way {}", store.way);
            }
        }
        Ok(took)
    }

    async fn remove(&self, cx: &BuildContext, store: &Store, keys: &[ObjectKey]) -> Result<()> {
        let remove = store.adapter.adapter.remove.as_ref().context("the adapter cannot delete")?;
        for answer in remove.remove(keys.into(), cx.l2.timer.now() + WITHIN).await {
            answer?;
        }
        Ok(())
    }
}

/// The bytes of the chunk that goes with task `n`.
fn pattern(n: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n as u64) << 7;
        word.copy_from_slice(&mixed.to_le_bytes()[..word.len()]);
    }
    bytes
}

impl RawFigure {
    pub(super) fn print(&self) {
        let how = if self.direct { "past the page cache" } else { "through the page cache" };
        println!(
            "{:<8} {:>10} x {:<3} write {:>7.2}                 read {:>7.2}                 {how}",
            "raw",
            report::bytes(self.size as u64),
            self.in_flight,
            self.write_gbps,
            self.read_gbps
        );
    }
}

impl WayFigure {
    pub(super) fn is_beside(&self, raw: &RawFigure) -> bool {
        (self.size, self.in_flight) == (raw.size, raw.in_flight)
    }

    pub(super) fn print(&self) {
        let to = |raw: f64, compat: Option<f64>| {
            compat.map_or_else(|| format!("({raw:.2})"), |compat| format!("({raw:.2}; {compat:.2})"))
        };
        println!(
            "{:<8} {:>10} x {:<3} write {:>7.2} {:<15} read {:>7.2} {:<15} cpu s/GB {:.2} / {:.2}",
            self.way,
            report::bytes(self.size as u64),
            self.in_flight,
            self.write_gbps,
            to(self.write_to_raw, self.write_to_compat),
            self.read_gbps,
            to(self.read_to_raw, self.read_to_compat),
            self.write_cpu_s_per_gb,
            self.read_cpu_s_per_gb
        );
    }
}
