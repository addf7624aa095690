//! How long a store of many objects takes to open: with the index snapshot that an orderly end leaves, and without it, when
//! every header is read. Beside the first stands reading the snapshot and asking for the times of all directories; beside the
//! second, opening every file and reading its first 4 KiB: what no index of such a store can do without.
//!
//! `cargo bench -p kvstrata-benches --bench startup [-- --dir DIR] [--objects N] [--rounds N] [--figures FILE]`; the
//! default directory is `/dev/shm`, where each object takes 8 KiB.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_benches::{Figures, Flags, append, least, median, scratch};
use kvstrata_core::{Affinity, ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_disk::{HEADER_BYTES, Writer, names};
use kvstrata_l2::{Context, L2Store, Put, PutDigest, PutItem, PutSink};
use kvstrata_l2_fs::{FsConfig, open_os};
use kvstrata_mem::{Allocate, HeapRegion, Slab};
use tokio::runtime::Runtime;

const BATCH: u64 = 4096;
const PAYLOAD: usize = 64;

struct Args {
    dir: PathBuf,
    objects: u64,
    rounds: usize,
    figures: Option<PathBuf>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let flags = Flags::read(&["--dir", "--objects", "--rounds", "--figures"])?;
        Ok(Self {
            dir: flags.path("--dir").unwrap_or_else(|| "/dev/shm".into()),
            objects: flags.number("--objects", 500_000)?,
            rounds: flags.number("--rounds", 3)?,
            figures: flags.path("--figures"),
        })
    }
}

/// A store's directory, removed at the end.
struct Bench {
    runtime: Runtime,
    config: FsConfig,
    objects: u64,
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.config.base_path) {
            eprintln!("{}: {e}", self.config.base_path.display());
        }
    }
}

impl Bench {
    /// Seconds until the store is open. It is shut down again, which leaves a snapshot.
    fn open(&self, id: u128, work: impl AsyncFnOnce(&dyn L2Store)) -> f64 {
        self.runtime.block_on(async {
            let cx = Context::tokio(tokio::runtime::Handle::current());
            let deadline = cx.timer.now() + Duration::from_secs(3600);
            let begun = Instant::now();
            let writer = Writer { pid: std::process::id(), id: id as _ };
            let store = open_os(&self.config, cx, writer, vec![], None).expect("a store of our own");
            let took = begun.elapsed().as_secs_f64();
            let adapter = store.adapter();
            work(&*adapter.store).await;
            let held = store.store().usage();
            assert!(held.used >= self.objects * HEADER_BYTES, "every object is known: {held:?}");
            adapter.store.shutdown(deadline).await.expect("nothing is in flight");
            took
        })
    }

    async fn fill(&self, store: &dyn L2Store) {
        let len = (BATCH as usize) * 4096;
        let slab = Slab::new(vec![HeapRegion::new(len).expect("memory")]).expect("a region");
        let pool = slab.pool("payload", len as u64);
        let buf = pool.reserve(PAYLOAD, 4096).expect("an empty pool").seal(PAYLOAD);
        let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
        let layout = Layout::opaque(PAYLOAD as u64).expect("good");
        for first in (0..self.objects).step_by(BATCH as usize) {
            let items: Vec<PutItem> = (first..(first + BATCH).min(self.objects))
                .map(|n| {
                    let mut hash = [0; 32];
                    hash[..8].copy_from_slice(&n.to_le_bytes());
                    let key = ObjectKey::new(&scope, ChunkHash::from(hash));
                    PutItem { key, layout: layout.clone(), digest: PutDigest::None, buf: buf.clone() }
                })
                .collect();
            let sink = PutSink::new(
                items.len(),
                Arc::new(|_, answer: kvstrata_core::Result<_>| {
                    answer.expect("there is room");
                }),
            );
            let request =
                Put { items, deadline: kvstrata_core::Instant::FAR_FUTURE, affinity: Affinity::default() };
            store.put(request, sink).await;
        }
    }

    fn snapshot(&self) -> PathBuf {
        self.config.base_path.join(names::SNAPSHOT)
    }
}

/// The directories below `dir`, `depth` levels down.
fn below(dir: &Path, depth: u32) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for dir in found {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    next.push(entry.path());
                }
            }
        }
        found = next;
    }
    Ok(found)
}

/// Reads the snapshot, and asks for the times of all leaf directories.
fn plain_snapshot(root: &Path) -> io::Result<f64> {
    let begun = Instant::now();
    std::hint::black_box(fs::read(root.join(names::SNAPSHOT))?);
    for leaf in below(root, 2)? {
        std::hint::black_box(fs::metadata(leaf)?.modified()?);
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Opens every file and reads its first 4 KiB.
fn plain_headers(root: &Path) -> io::Result<f64> {
    let begun = Instant::now();
    let mut header = [0; HEADER_BYTES as usize];
    for leaf in below(root, 2)? {
        for entry in fs::read_dir(leaf)? {
            File::open(entry?.path())?.read_exact_at(&mut header, 0)?;
            std::hint::black_box(&header);
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn main() {
    if let Err(e) = run() {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let args = Args::read()?;
    let mut config = FsConfig::new(scratch(&args.dir, "bench-startup"));
    config.eviction_policy = Some("noop".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let bench = Bench { runtime, config, objects: args.objects };
    bench.open(0, async |store| {
        bench.fill(store).await;
        // A directory that changed a moment ago is read again at the next start, because clocks are coarse.
        tokio::time::sleep(Duration::from_secs(3)).await;
    });
    let io = |e: io::Error| format!("{}: {e}", bench.config.base_path.display());
    let (mut snapshot, mut plain_one, mut headers, mut plain_two) = (vec![], vec![], vec![], vec![]);
    for round in 0..args.rounds as u128 {
        snapshot.push(bench.open(1 + 2 * round, async |_| {}));
        plain_one.push(plain_snapshot(&bench.config.base_path).map_err(io)?);
        fs::remove_file(bench.snapshot()).map_err(io)?;
        headers.push(bench.open(2 + 2 * round, async |_| {}));
        plain_two.push(plain_headers(&bench.config.base_path).map_err(io)?);
    }
    let mut table = Figures::new(
        "startup",
        &["start of a store", "objects", "seconds", "objects/s", "plain seconds", "to plain, same round"],
    );
    for (what, ours, plain) in
        [("with its snapshot", snapshot, plain_one), ("reading every header", headers, plain_two)]
    {
        let ratio = median(ours.iter().zip(&plain).map(|(a, b)| a / b).collect());
        let took = least(&ours);
        table.rows.push(vec![
            what.into(),
            args.objects.to_string(),
            format!("{took:.3}"),
            format!("{:.0}", args.objects as f64 / took),
            format!("{:.3}", least(&plain)),
            format!("{ratio:.2}"),
        ]);
    }
    append(&[table], args.figures.as_ref()).map_err(|e| format!("--figures: {e}"))
}
