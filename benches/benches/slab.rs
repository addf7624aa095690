//! The slab layout: how fast a full store takes new objects beside one with a file for each object, in turn on the same
//! directory; and how long an index of a million and of ten million objects takes to open, from its snapshot and log over
//! segments that are sparse, so that no payload could be read.
//!
//! `cargo bench -p kvstrata-benches --bench slab [-- --dir DIR] [--gib N] [--rounds N] [--objects N,N] [--figures FILE]`

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kvstrata_benches::{Figures, Flags, append, least, median, scratch};
use kvstrata_core::{Affinity, ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_disk::{Durability, Quotas, Settings, Store, StoreLayout, Wanted, Writer, generate_index};
use kvstrata_io::{DirEntry, Disk, Meta, Mount, Open, OsDisk, OsOptions, Space};
use kvstrata_l2::{Adapter, Context, Put, PutItem, PutSink};
use kvstrata_l2_fs::{FsConfig, LayoutChoice, Switch, open_os};
use kvstrata_mem::{Allocate, HeapRegion, ReadBuf, Slab, WriteBuf};
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;
const BATCH: u64 = 16;

struct Args {
    dir: PathBuf,
    gib: u64,
    rounds: usize,
    objects: Vec<u64>,
    figures: Option<PathBuf>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let flags = Flags::read(&["--dir", "--gib", "--rounds", "--objects", "--figures"])?;
        let objects = flags.text("--objects").unwrap_or("1000000,10000000");
        let objects = objects.split(',').filter(|n| !n.is_empty());
        Ok(Self {
            dir: flags.path("--dir").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()),
            gib: flags.number("--gib", 4)?,
            rounds: flags.number("--rounds", 5)?,
            objects: objects
                .map(|n| n.parse().map_err(|e| format!("--objects {n}: {e}")))
                .collect::<Result<_, _>>()?,
            figures: flags.path("--figures"),
        })
    }
}

fn key(scope: &Arc<KeyScope>, n: u64) -> ObjectKey {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&n.to_le_bytes());
    ObjectKey::new(scope, ChunkHash::from(hash))
}

fn scope() -> Arc<KeyScope> {
    KeyScope::new("model", KvRank::single(), 0, "").expect("good")
}

// --- churn ---------------------------------------------------------------------------------------------------------------

/// A store that is kept full.
struct Full {
    adapter: Adapter,
    root: PathBuf,
    buf: ReadBuf,
    next: u64,
}

impl Drop for Full {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.root));
    }
}

impl Full {
    fn new(runtime: &Runtime, root: PathBuf, gib: u64, layout: LayoutChoice, direct: Wanted) -> Self {
        let config = FsConfig {
            layout,
            use_odirect: Some(Switch(direct)),
            max_capacity_gb: gib as f64,
            ..FsConfig::new(&root)
        };
        let writer = Writer { pid: std::process::id(), id: 7 << 32 };
        let cx = Context::tokio(runtime.handle().clone());
        let adapter = open_os(&config, cx, writer, vec![], None).expect("a store of our own").adapter();
        let slab = Slab::new(vec![HeapRegion::new(MIB).expect("memory")]).expect("a region");
        let mut buf = slab.pool("payload", MIB as u64).reserve(MIB, 4096).expect("an empty pool");
        let noise: Vec<u8> = (0..MIB as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        buf.write_at(0, &noise).expect("host memory");
        Self { adapter, root, buf: buf.seal(MIB), next: 0 }
    }

    /// Stores so many new objects; seconds. Each has a digest, made up: nobody loads them.
    fn store(&mut self, runtime: &Runtime, objects: u64) -> f64 {
        let (scope, layout) = (scope(), Layout::opaque(MIB as u64).expect("good"));
        let begun = Instant::now();
        for _ in 0..objects / BATCH {
            let items: Vec<PutItem> = (self.next..self.next + BATCH)
                .map(|n| PutItem {
                    key: key(&scope, n),
                    layout: layout.clone(),
                    digest: Some(kvstrata_core::Digest::from_u64(n)).into(),
                    buf: self.buf.clone(),
                })
                .collect();
            self.next += BATCH;
            let sink = PutSink::new(
                items.len(),
                Arc::new(|_, answer: kvstrata_core::Result<_>| {
                    answer.expect("room is made");
                }),
            );
            let deadline = kvstrata_core::Instant::FAR_FUTURE;
            let put = Put { items, deadline, affinity: Affinity::default() };
            runtime.block_on(self.adapter.store.put(put, sink));
        }
        begun.elapsed().as_secs_f64()
    }
}

/// What is mounted where a directory lies, as the kernel says.
fn mount_of(dir: &Path) -> String {
    Mount::of(dir).map_or_else(|| "unknown".into(), |m| format!("{} ({})", m.fs, m.options.join(",")))
}

/// Waits until the device has all that was written: nobody begins with what another one left in the page cache, and what
/// goes for new objects was written for good, as it is in a store that is larger than memory.
fn settle(dir: &Path) {
    let dir = std::fs::File::open(dir).expect("it was made");
    // SAFETY: a descriptor that is open.
    assert_eq!(unsafe { libc::syncfs(dir.as_raw_fd()) }, 0, "{}", io::Error::last_os_error());
}

fn churn(args: &Args) -> Figures {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let mut table = Figures::new(
        "slab-churn",
        &[
            "full store, each new 1 MiB object evicts one",
            "slab MiB/s",
            "files MiB/s",
            "slab to files, same round",
            "mount",
        ],
    );
    for (what, direct) in [("past the page cache", Wanted::Require), ("through the page cache", Wanted::Off)]
    {
        let full = |name: &str, layout| {
            let mut full = Full::new(&runtime, scratch(&args.dir, name), args.gib, layout, direct);
            full.store(&runtime, args.gib * 1024 + BATCH);
            let usage = full.adapter.usage.as_ref().expect("it counts").usage();
            assert!(usage.evicted > 0, "it is full");
            full
        };
        let mut slab = full("bench-slab", LayoutChoice::Slab);
        let mut files = full("bench-files", LayoutChoice::Files);
        let objects = (args.gib * 1024 / 4).next_multiple_of(BATCH);
        let (mut a, mut b) = (vec![], vec![]);
        for _ in 0..args.rounds {
            settle(&args.dir);
            a.push(slab.store(&runtime, objects));
            settle(&args.dir);
            b.push(files.store(&runtime, objects));
        }
        let ratio = median(a.iter().zip(&b).map(|(a, b)| b / a).collect());
        let rate = |times: &[f64]| format!("{:.0}", objects as f64 / least(times));
        table.rows.push(vec![what.into(), rate(&a), rate(&b), format!("{ratio:.2}"), mount_of(&args.dir)]);
    }
    table
}

// --- start ---------------------------------------------------------------------------------------------------------------

/// A file system with room for everything that nobody sets aside.
#[derive(Debug)]
struct Sparse(OsDisk);

type File = <OsDisk as Disk>::File;

impl Disk for Sparse {
    type File = File;
    type Engine = <OsDisk as Disk>::Engine;

    fn engine(&self) -> &Self::Engine {
        self.0.engine()
    }
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        self.0.open(path, how)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename_new(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.unlink(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(path)
    }
    fn metadata(&self, path: &Path) -> io::Result<Meta> {
        self.0.metadata(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        Ok(Space { total: 1 << 50, available: 1 << 50, ..self.0.space(path)? })
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn read_exact_at(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(file, offset, buf)
    }
    fn write_all_at(&self, file: &File, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_all_at(file, offset, buf)
    }
    fn read_buf_at(&self, file: &File, offset: u64, buf: &mut WriteBuf, len: usize) -> io::Result<usize> {
        self.0.read_buf_at(file, offset, buf, len)
    }
    fn write_buf_at(&self, file: &File, offset: u64, buf: &ReadBuf, len: usize) -> io::Result<()> {
        self.0.write_buf_at(file, offset, buf, len)
    }
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.0.set_len(file, len)
    }
    fn allocate(&self, _: &File, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.0.sync_file(file)
    }
    fn file_metadata(&self, file: &File) -> io::Result<Meta> {
        self.0.file_metadata(file)
    }
    fn try_lock(&self, file: &File) -> io::Result<()> {
        self.0.try_lock(file)
    }
    fn try_lock_shared(&self, file: &File) -> io::Result<()> {
        self.0.try_lock_shared(file)
    }
}

fn start(args: &Args) -> Result<Figures, String> {
    let mut table = Figures::new(
        "slab-start",
        &[
            "index of a store of segments",
            "objects",
            "index bytes",
            "seconds",
            "objects/s",
            "reading the same bytes, seconds",
        ],
    );
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).map_err(|e| e.to_string())?;
    let disk = Arc::new(Sparse(disk));
    for &objects in &args.objects {
        let root = scratch(&args.dir, "bench-slab-start");
        // So that the snapshot of all of them is within its part of the store.
        let capacity = ((objects * 48) << 10).max(1 << 30);
        let scope = scope();
        let made = generate_index(&*disk, &root, capacity, objects, |n| (key(&scope, n), 4096));
        let bytes = made.map_err(|e| e.to_string())?;
        let (mut ours, mut plain) = (vec![], vec![]);
        for round in 0..args.rounds.min(3) as u64 {
            let begun = Instant::now();
            for entry in std::fs::read_dir(root.join("slab")).map_err(|e| e.to_string())?.flatten() {
                if !entry.file_name().to_string_lossy().starts_with("segment") {
                    std::hint::black_box(std::fs::read(entry.path()).map_err(|e| e.to_string())?);
                }
            }
            plain.push(begun.elapsed().as_secs_f64());
            let settings = Settings {
                root: root.clone(),
                layout: Some(StoreLayout::Slab),
                tmp: None,
                capacity: Some(capacity),
                policy: kvstrata_evict::by_name("LRU").map_err(|e| e.to_string())?,
                quotas: Quotas::default(),
                durability: Durability::None,
                direct: Wanted::Try,
                no_atime: Wanted::Try,
                writer: Writer { pid: std::process::id(), id: round << 32 },
                namespaces: vec![],
                shared: false,
            };
            let begun = Instant::now();
            let store = Store::open(Arc::clone(&disk), settings).map_err(|e| e.to_string())?;
            ours.push(begun.elapsed().as_secs_f64());
            assert_eq!(store.usage().objects, objects, "every object is known");
        }
        drop(std::fs::remove_dir_all(&root));
        let took = least(&ours);
        table.rows.push(vec![
            "snapshot and log, sparse segments".into(),
            objects.to_string(),
            bytes.to_string(),
            format!("{took:.3}"),
            format!("{:.0}", objects as f64 / took),
            format!("{:.3}", least(&plain)),
        ]);
    }
    Ok(table)
}

fn main() {
    let run = || -> Result<(), String> {
        let args = Args::read()?;
        let mut tables = Vec::new();
        if args.gib > 0 {
            tables.push(churn(&args));
        }
        if !args.objects.is_empty() {
            tables.push(start(&args)?);
        }
        append(&tables, args.figures.as_ref()).map_err(|e| format!("--figures: {e}"))
    };
    if let Err(e) = run() {
        eprintln!("{e}");
        std::process::exit(1);
    }
}
