//! How much of a device each way of moving bytes reaches, and what it costs: reads and writes of a file past the page cache,
//! the same ones in turn by one blocking thread for each request under way, by this workspace's thread pool with four and
//! with eight threads, by its default engine, by a bare io_uring loop with registered memory and file, and by `fio` where
//! it is installed. Last the whole adapter: batches to a full store of segments with its defaults, digests made and checked.
//!
//! The memory has huge pages, as L1 has unless it is told otherwise: some devices, virtual ones above all, are several times as fast
//! with them. `--pages 4k` is for machines where there are none to be had.
//!
//! `cargo bench -p kvstrata-benches --bench device [-- --dir DIR] [--rounds N] [--mib N] [--only WORD] [--pages 4k|huge] [--figures FILE]`

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use io_uring::{IoUring, opcode, types};
use kvstrata_benches::{Figures, Flags, append, median, scratch};
use kvstrata_core::{Affinity, ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_disk::{Wanted, Writer};
use kvstrata_io::{
    Completion, CompletionSink, Disk, EngineKind, IoBuf, IoEngine, IoOp, Open, OsDisk, OsFile, OsOptions,
};
use kvstrata_l2::{
    Adapter, Checked, Context, Get, GetItem, GetSink, Put, PutDigest, PutItem, PutSink, Stored, Verify,
};
use kvstrata_l2_fs::{FsConfig, LayoutChoice, Switch, open_os};
use kvstrata_mem::{Allocate, HugePages, MmapRegion, Pool, ReadBuf, RegionOptions, Slab, WriteBuf};
use tokio::runtime::Runtime;

type Result<T, E = String> = std::result::Result<T, E>;

/// Bytes per request, and how many are under way at once where a number is needed.
const CELLS: [(&str, usize, usize); 3] =
    [("64 KiB", 64 << 10, 32), ("1 MiB", 1 << 20, 8), ("16 MiB", 16 << 20, 4)];

/// One way of moving bytes: all requests of one round, from first to last.
trait Mover {
    fn name(&self) -> &'static str;
    fn go(&mut self, read: bool, offsets: &[u64], size: usize) -> Result<()>;
}

/// Buffers, one for each request.
struct Buffers {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Buffers {
    fn new(bytes: usize, huge_pages: HugePages) -> Result<Self> {
        let options = RegionOptions { huge_pages, prefault: true, ..RegionOptions::default() };
        let region = MmapRegion::new(bytes, &options).map_err(|e| e.to_string())?;
        let pool = Slab::new(vec![region]).map_err(|e| e.to_string())?.pool("bench", bytes as u64);
        Ok(Self { pool, bytes })
    }

    fn empty(&self, size: usize) -> WriteBuf {
        self.pool.reserve(size, 4096).expect("there is a buffer for each request")
    }

    fn full(&self, size: usize) -> ReadBuf {
        self.empty(size).seal(size)
    }
}

/// An engine of ours.
struct Ours {
    name: &'static str,
    disk: OsDisk,
    file: Arc<OsFile>,
    buffers: Arc<Buffers>,
}

/// Counts the requests of a round; whoever waits is woken by the last one.
struct Round {
    size: usize,
    left: Mutex<(usize, Result<()>)>,
    ended: Condvar,
}

impl Round {
    fn new(requests: usize, size: usize) -> Arc<Self> {
        Arc::new(Self { size, left: Mutex::new((requests, Ok(()))), ended: Condvar::new() })
    }

    fn wait(&self) -> Result<()> {
        let left = self.left.lock().expect("no panic");
        let mut left = self.ended.wait_while(left, |(left, _)| *left > 0).expect("no panic");
        std::mem::replace(&mut left.1, Ok(()))
    }
}

impl CompletionSink<OsFile> for Round {
    fn complete(&self, completion: Completion<OsFile>) {
        let Completion { op, result } = completion;
        // Its buffer is free before anybody hears of it.
        drop(op);
        let moved = result.map_err(|e| e.to_string()).and_then(|n| whole(n, self.size));
        let mut left = self.left.lock().expect("no panic");
        left.0 -= 1;
        if moved.is_err() {
            left.1 = moved;
        }
        if left.0 == 0 {
            self.ended.notify_one();
        }
    }
}

impl Ours {
    fn new(
        name: &'static str,
        engine: EngineKind,
        threads: usize,
        path: &Path,
        buffers: &Arc<Buffers>,
    ) -> Result<Self> {
        let memory = Some(Arc::clone(&buffers.pool) as Arc<dyn Allocate>);
        let disk = OsDisk::new(OsOptions { engine, threads, memory, ..OsOptions::default() })
            .map_err(|e| e.to_string())?;
        let how = Open { write: true, direct: true, ..Open::default() };
        let file = Arc::new(disk.open(path, how).map_err(|e| e.to_string())?);
        Ok(Self { name, disk, file, buffers: Arc::clone(buffers) })
    }
}

impl Mover for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn go(&mut self, read: bool, offsets: &[u64], size: usize) -> Result<()> {
        let buf = || {
            if read { IoBuf::Read(self.buffers.empty(size)) } else { IoBuf::Write(self.buffers.full(size)) }
        };
        let op = |(tag, offset): (usize, &u64)| IoOp {
            tag: tag as u64,
            file: Arc::clone(&self.file),
            offset: *offset,
            len: size,
            buf: buf(),
        };
        let ops = offsets.iter().enumerate().map(op).collect();
        let round = Round::new(offsets.len(), size);
        self.disk.engine().submit(ops, Arc::clone(&round) as _).map_err(|r| r.why.to_string())?;
        round.wait()
    }
}

/// The adapter over a store of segments that is full: each batch of new objects takes the place of one before.
struct Whole {
    adapter: Adapter,
    runtime: Runtime,
    buffers: Arc<Buffers>,
    scope: Arc<KeyScope>,
    root: PathBuf,
    /// The first key of the batch that was stored last.
    last: u64,
    next: u64,
}

impl Whole {
    fn new(dir: &Path, buffers: &Arc<Buffers>, size: usize, read: bool) -> Result<Self> {
        let said = |e: kvstrata_core::Error| e.to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        let root = scratch(dir, "device-store");
        // Of a store that is only read, not all has to be there.
        let batches = if read { 2 } else { 16 };
        let config = FsConfig {
            layout: LayoutChoice::Slab,
            use_odirect: Some(Switch(Wanted::Require)),
            // Its log is written anew every few batches only, as those of stores of any size are.
            max_capacity_gb: (batches * buffers.bytes) as f64 / f64::from(1 << 30),
            ..FsConfig::new(&root)
        };
        let memory = Some(Arc::clone(&buffers.pool) as Arc<dyn Allocate>);
        let cx = Context::tokio(runtime.handle().clone());
        let writer = Writer { pid: std::process::id(), id: 9 << 32 };
        let store = open_os(&config, cx.clone(), writer, vec![], memory).map_err(said)?;
        let scope = KeyScope::new("model", KvRank::single(), 0, "").map_err(said)?;
        let adapter = Checked::new(store.adapter(), Verify::On, cx).adapter;
        let buffers = Arc::clone(buffers);
        let mut new = Self { adapter, runtime, buffers, scope, root, last: 0, next: 0 };
        // Written all over, so that no block of it is new.
        let offsets = vec![0; new.buffers.bytes / size];
        for _ in 0..if read { 1 } else { batches + 1 } {
            new.go(false, &offsets, size)?;
        }
        Ok(new)
    }

    fn key(&self, n: u64) -> ObjectKey {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_le_bytes());
        ObjectKey::new(&self.scope, ChunkHash::from(hash))
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.runtime.block_on(self.adapter.store.shutdown(kvstrata_core::Instant::FAR_FUTURE)).ok();
        drop(std::fs::remove_dir_all(&self.root));
    }
}

impl Mover for Whole {
    fn name(&self) -> &'static str {
        "adapter, digests on"
    }

    fn go(&mut self, read: bool, offsets: &[u64], size: usize) -> Result<()> {
        let (deadline, affinity) = (kvstrata_core::Instant::FAR_FUTURE, Affinity::default());
        let layout = Layout::opaque(size as u64).map_err(|e| e.to_string())?;
        let bad = Arc::new(Mutex::new(None));
        let note = |bad: &Mutex<Option<String>>, why: String| *bad.lock().expect("no panic") = Some(why);
        let to = Arc::clone(&bad);
        if read {
            let item = |offset: &u64| GetItem {
                key: self.key(self.last + offset / size as u64),
                layout: layout.clone(),
                buf: self.buffers.empty(size),
            };
            let items: Vec<GetItem> = offsets.iter().map(item).collect();
            let sink = GetSink::new(
                items.len(),
                Arc::new(move |at, answer: kvstrata_l2::Answer| {
                    if !matches!(answer, kvstrata_l2::Answer::Loaded(_)) {
                        note(&to, format!("object {at}: {answer:?}"));
                    }
                }),
            );
            self.runtime.block_on(self.adapter.store.get(Get { items, deadline, affinity }, sink));
        } else {
            self.last = self.next;
            self.next += offsets.len() as u64;
            let item = |n| PutItem {
                key: self.key(n),
                layout: layout.clone(),
                digest: PutDigest::None,
                buf: self.buffers.full(size),
            };
            let items: Vec<PutItem> = (self.last..self.next).map(item).collect();
            let sink = PutSink::new(
                items.len(),
                Arc::new(move |at, answer: kvstrata_core::Result<Stored>| {
                    if !matches!(answer, Ok(Stored::Written)) {
                        note(&to, format!("object {at}: {answer:?}"));
                    }
                }),
            );
            self.runtime.block_on(self.adapter.store.put(Put { items, deadline, affinity }, sink));
        }
        bad.lock().expect("no panic").take().map_or(Ok(()), Err)
    }
}

fn whole(n: usize, size: usize) -> Result<()> {
    if n == size { Ok(()) } else { Err(format!("{n} of {size} bytes")) }
}

type Request = Box<dyn FnOnce() -> Result<()> + Send>;

/// As many threads as requests under way; each request is handed to one of them.
struct Threads {
    disk: Arc<OsDisk>,
    file: Arc<OsFile>,
    buffers: Arc<Buffers>,
    give: Option<mpsc::Sender<Request>>,
    done: mpsc::Receiver<Result<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn new(depth: usize, path: &Path, buffers: &Arc<Buffers>) -> Result<Self> {
        let (give, take) = mpsc::channel::<Request>();
        let (say, done) = mpsc::channel();
        let take = Arc::new(Mutex::new(take));
        let worker = |_| {
            let (take, say) = (Arc::clone(&take), say.clone());
            std::thread::spawn(move || {
                while let Ok(request) = { take.lock().expect("no request panics").recv() } {
                    drop(say.send(request()));
                }
            })
        };
        let threads = (0..depth).map(worker).collect();
        let ours = Ours::new("", EngineKind::Threads, 1, path, buffers)?;
        Ok(Self {
            disk: Arc::new(ours.disk),
            file: ours.file,
            buffers: ours.buffers,
            give: Some(give),
            done,
            threads,
        })
    }
}

impl Mover for Threads {
    fn name(&self) -> &'static str {
        "thread per request"
    }

    fn go(&mut self, read: bool, offsets: &[u64], size: usize) -> Result<()> {
        let give = self.give.as_ref().ok_or("ended")?;
        for &offset in offsets {
            let (disk, file, buffers) =
                (Arc::clone(&self.disk), Arc::clone(&self.file), Arc::clone(&self.buffers));
            let request = move || {
                let moved = if read {
                    disk.read_buf_at(&file, offset, &mut buffers.empty(size), size)
                } else {
                    disk.write_buf_at(&file, offset, &buffers.full(size), size).map(|()| size)
                };
                whole(moved.map_err(|e| e.to_string())?, size)
            };
            give.send(Box::new(request)).map_err(|e| e.to_string())?;
        }
        offsets.iter().try_for_each(|_| self.done.recv().map_err(|e| e.to_string())?)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.give = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// A ring and nothing around it: so many requests under way, from one thread that does nothing else. In the same memory as
/// all others: on a virtual machine one region may read half as fast again as another.
struct Bare {
    ring: IoUring,
    depth: usize,
    _file: File,
    /// What is registered.
    at: NonNull<u8>,
    buffers: Arc<Buffers>,
}

impl Bare {
    fn new(depth: usize, path: &Path, buffers: &Arc<Buffers>) -> Result<Self> {
        let make = || -> std::io::Result<Self> {
            let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(depth as u32)?;
            let file = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
            let (at, buffers) = (buffers.empty(buffers.bytes).as_ptr(), Arc::clone(buffers));
            let all = libc::iovec { iov_base: at.as_ptr().cast(), iov_len: buffers.bytes };
            // SAFETY: the memory lives as long as the ring; it is dropped after it.
            unsafe { ring.submitter().register_buffers(&[all]) }?;
            ring.submitter().register_files(&[file.as_raw_fd()])?;
            Ok(Self { ring, depth, _file: file, at, buffers })
        };
        make().map_err(|e| e.to_string())
    }
}

impl Mover for Bare {
    fn name(&self) -> &'static str {
        "bare ring"
    }

    fn go(&mut self, read: bool, offsets: &[u64], size: usize) -> Result<()> {
        let memory = self.buffers.empty(self.buffers.bytes);
        assert_eq!(memory.as_ptr(), self.at, "all of it begins where it is registered");
        let (mut next, mut under_way) = (0, 0);
        while next < offsets.len() || under_way > 0 {
            while next < offsets.len() && under_way < self.depth {
                // SAFETY: there is memory for all requests of a round, one piece each.
                let at = unsafe { self.at.as_ptr().add(next * size) };
                let (fd, len) = (types::Fixed(0), size as u32);
                let entry = if read {
                    opcode::ReadFixed::new(fd, at, len, 0).offset(offsets[next]).build()
                } else {
                    opcode::WriteFixed::new(fd, at, len, 0).offset(offsets[next]).build()
                };
                // SAFETY: memory and file outlive the request: all are waited for below.
                unsafe { self.ring.submission().push(&entry) }.map_err(|e| e.to_string())?;
                (next, under_way) = (next + 1, under_way + 1);
            }
            self.ring.submit_and_wait(1).map_err(|e| e.to_string())?;
            for done in self.ring.completion() {
                under_way -= 1;
                if done.result() != size as i32 {
                    // The other requests may still write to the memory: nothing is freed any more.
                    eprintln!("a bare request of {size} bytes answered {}", done.result());
                    std::process::abort();
                }
            }
        }
        Ok(())
    }
}

/// Seconds of processor time that this process has had.
fn cpu() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel fills the structure; the arguments are fixed.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } != 0 {
        return f64::NAN;
    }
    // SAFETY: the call succeeded.
    let usage = unsafe { usage.assume_init() };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

struct Args {
    dir: PathBuf,
    rounds: usize,
    bytes: usize,
    only: String,
    pages: HugePages,
    figures: Option<PathBuf>,
}

fn args() -> Result<Args> {
    let flags = Flags::read(&["--dir", "--rounds", "--mib", "--only", "--pages", "--figures"])?;
    Ok(Args {
        dir: flags.path("--dir").unwrap_or_else(std::env::temp_dir),
        rounds: flags.number("--rounds", 7)?.max(1),
        bytes: flags.number("--mib", 256)?.max(64) << 20,
        only: flags.text("--only").unwrap_or_default().into(),
        pages: match flags.text("--pages").unwrap_or("huge") {
            "huge" => HugePages::Transparent,
            "4k" => HugePages::None,
            other => return Err(format!("--pages {other}: 4k or huge")),
        },
        figures: flags.path("--figures"),
    })
}

/// Gigabytes a second and processor seconds per gigabyte of `fio`'s own ring, or of its threads.
fn fio(path: &Path, read: bool, size: usize, depth: usize, bytes: usize, rings: bool) -> Option<(f64, f64)> {
    let rw = if read { "read" } else { "write" };
    let mut command = Command::new("fio");
    command.args(["--name=device", "--direct=1", "--output-format=json", "--overwrite=1", "--randrepeat=0"]);
    command.arg(format!("--filename={}", path.display()));
    command.args([format!("--rw={rw}"), format!("--bs={size}"), format!("--size={bytes}")]);
    if rings {
        command.args([
            "--ioengine=io_uring",
            "--fixedbufs=1",
            "--registerfiles=1",
            &format!("--iodepth={depth}"),
        ]);
    } else {
        let jobs = depth.min(8);
        command.args(["--ioengine=psync", "--thread", "--group_reporting", &format!("--numjobs={jobs}")]);
        command.args([format!("--size={}", bytes / jobs), format!("--offset_increment={}", bytes / jobs)]);
    }
    let output = command.output().ok()?;
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let job = &found["jobs"][0];
    let bps = job[rw]["bw_bytes"].as_f64()?;
    // Of one processor, over the run of each job.
    let busy = (job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?) / 100.0;
    let jobs = if rings { 1.0 } else { depth.min(8) as f64 };
    Some((bps / 1e9, busy * jobs / (bps / 1e9)))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args = args()?;
    let path = scratch(&args.dir, "device");
    let made = measure(&args, &path);
    drop(std::fs::remove_file(&path));
    append(&[made?], args.figures.as_ref()).map_err(|e| format!("--figures: {e}"))
}

fn measure(args: &Args, path: &Path) -> Result<Figures> {
    let buffers = Arc::new(Buffers::new(args.bytes, args.pages)?);
    {
        // Written once, so that no round is the first one.
        let disk = OsDisk::new(OsOptions::default()).map_err(|e| e.to_string())?;
        let how = Open { write: true, create_new: true, direct: true, no_atime: false };
        let file = disk.open(path, how).map_err(|e| format!("{}: {e}", path.display()))?;
        let zeros = buffers.full(args.bytes);
        disk.write_buf_at(&file, 0, &zeros, args.bytes).map_err(|e| e.to_string())?;
    }
    let mut table = Figures::new(
        "device",
        &["requests", "by", "GB/s", "of the best other engine", "CPU s/GB", "of a thread per request"],
    );
    for (size_name, size, depth) in CELLS {
        let mut offsets: Vec<u64> = (0..args.bytes / size).map(|i| (i * size) as u64).collect();
        // In no order, the same one for all.
        let mut random = 1u64;
        for i in (1..offsets.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            offsets.swap(i, (random >> 33) as usize % (i + 1));
        }
        for read in [false, true] {
            let what = format!("{size_name}, {}", if read { "reads" } else { "writes" });
            if !what.contains(&args.only) {
                continue;
            }
            let mut movers: Vec<Box<dyn Mover>> = vec![
                Box::new(Threads::new(depth, path, &buffers)?),
                Box::new(Ours::new("pool of 4", EngineKind::Threads, 4, path, &buffers)?),
                Box::new(Ours::new("pool of 8", EngineKind::Threads, 8, path, &buffers)?),
            ];
            match Bare::new(depth, path, &buffers) {
                Ok(bare) => movers.push(Box::new(bare)),
                Err(e) => eprintln!("{what}: no bare ring: {e}"),
            }
            movers.push(Box::new(Ours::new("kvstrata", EngineKind::Auto, 4, path, &buffers)?));
            // A ratio is to the best of these.
            let raw = movers.len();
            movers.push(Box::new(Whole::new(&args.dir, &buffers, size, read)?));
            let n = movers.len();
            // A round that is not counted: threads and rings get to know the device.
            let mut figures = vec![(Vec::new(), Vec::new()); n];
            for round in 0..=args.rounds {
                for at in (0..n).map(|i| (i + round) % n) {
                    let (begun, used) = (Instant::now(), cpu());
                    movers[at].go(read, &offsets, size).map_err(|e| format!("{}: {e}", movers[at].name()))?;
                    let gb = (offsets.len() * size) as f64 / 1e9;
                    if round > 0 {
                        figures[at].0.push(gb / begun.elapsed().as_secs_f64());
                        figures[at].1.push((cpu() - used) / gb);
                    }
                }
            }
            let speed = |at: usize| median(figures[at].0.clone());
            let mut rows: Vec<(String, f64, f64, Option<f64>)> = Vec::new();
            for (at, (gbps, cost)) in figures.iter().enumerate() {
                // The best of the other engines is the one with the best median: the fastest of each round would be whoever was
                // lucky then.
                let others = (0..raw).filter(|other| *other != at);
                let best = others.max_by(|a, b| speed(*a).total_cmp(&speed(*b))).expect("several engines");
                let ratio = (0..args.rounds).map(|r| gbps[r] / figures[best].0[r]);
                rows.push((
                    movers[at].name().into(),
                    speed(at),
                    median(cost.clone()),
                    Some(median(ratio.collect())),
                ));
            }
            for (name, rings) in [("fio, io_uring", true), ("fio, threads", false)] {
                let all: Vec<_> = (0..args.rounds)
                    .filter_map(|_| fio(path, read, size, depth, args.bytes, rings))
                    .collect();
                if !all.is_empty() {
                    let (gbps, cost) = all.into_iter().unzip();
                    rows.push((name.into(), median(gbps), median(cost), None));
                }
            }
            let per_request = rows[0].2;
            for (name, gbps, cost, ratio) in rows {
                let ratio = ratio.map_or("-".into(), |r| format!("{r:.2}"));
                let row = [
                    what.clone(),
                    name,
                    format!("{gbps:.2}"),
                    ratio,
                    format!("{cost:.3}"),
                    format!("{:.2}", cost / per_request),
                ];
                eprintln!("{}", row.join("  "));
                table.rows.push(row.into());
            }
        }
    }
    Ok(table)
}
