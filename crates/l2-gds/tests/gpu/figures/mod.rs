//! Figures, on request only (`gds-bench [--host] [--mib N] [ways|memory|lmcache].. [DIR]`): each ratio from interleaved runs
//! of one process, medians of five rounds. With `--host` the GPU is a [model](crate::model).

mod lmcache;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_core::Layout;
use kvstrata_l2::{Answer, Fail, Get, GetItem, L2Store, PayloadCrc, Put, PutDigest, PutItem, Sink};
use kvstrata_l2_gds::{Direction, GdsWay};
use kvstrata_mem::{Allocate, ReadBuf, Slab, UNIT, WriteBuf};
use libtest_mimic::Failed;
use parking_lot::Mutex;

use crate::model::Model;
use crate::rig::{Gpu, Rig, folder, gpu0, key};

const ROUNDS: usize = 5;
const O_DIRECT: i32 = 0o40000;
const MIB: usize = 1 << 20;

const PARTS: [&str; 3] = ["ways", "memory", "lmcache"];

pub(crate) fn main(told: impl Iterator<Item = OsString>) -> ExitCode {
    let mut asked = Asked { host: false, total: 512 * MIB, parts: Vec::new(), dir: None };
    match asked.parse(told).and_then(|()| measure(&asked)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("it failed"));
            ExitCode::FAILURE
        }
    }
}

struct Asked {
    host: bool,
    /// Bytes that each run moves: a slow disk wants fewer.
    total: usize,
    parts: Vec<String>,
    dir: Option<PathBuf>,
}

impl Asked {
    fn parse(&mut self, mut told: impl Iterator<Item = OsString>) -> Result<(), Failed> {
        const MOST: usize = 16 << 10;
        while let Some(word) = told.next() {
            match word.to_str() {
                Some("--host") => self.host = true,
                Some("--mib") => {
                    let mib = told.next().and_then(|n| n.to_str()?.parse().ok());
                    // A run of the largest chunks has as many as are in flight, at least.
                    let mib = mib.filter(|mib| (128..=MOST).contains(mib) && mib % 16 == 0);
                    self.total = mib.ok_or("--mib wants a multiple of 16 from 128 to 16384")? * MIB;
                }
                Some(flag) if flag.starts_with('-') => {
                    return Err(format!("unknown flag {flag}; there are --host and --mib N").into());
                }
                Some(part) if PARTS.contains(&part) => self.parts.push(part.to_owned()),
                _ => self.dir = Some(PathBuf::from(word)),
            }
        }
        Ok(())
    }
}

fn measure(asked: &Asked) -> Result<(), Failed> {
    let Asked { host, total, ref parts, ref dir } = *asked;
    let gpu = if host {
        println!("no GPU: a model of its copy engines, which costs the host nothing and moves nothing");
        Gpu::over(Arc::new(Model::default()))?
    } else {
        Gpu::open()?
    };
    let own = folder();
    let dir = dir.as_deref().unwrap_or(own.path());
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    if wanted("ways") {
        ways(&gpu, dir, total, host)?;
    }
    if wanted("memory") {
        memory(&gpu, total)?;
    }
    if wanted("lmcache") {
        lmcache::run(&gpu, dir, total, host)?;
    }
    Ok(())
}

/// The GiB of a store that has room for a run: with a limit it is one of segments, which each run writes again.
fn room(total: usize) -> f64 {
    (total * 3 / 2).max(1 << 30) as f64 / f64::from(1 << 30)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The medians of both directions, and of their ratios to another's in the same round.
#[derive(Default)]
struct Runs {
    write: Vec<f64>,
    read: Vec<f64>,
}

impl Runs {
    fn add(&mut self, bytes: usize, write: Duration, read: Duration) {
        self.write.push(bytes as f64 / write.as_secs_f64() / 1e9);
        self.read.push(bytes as f64 / read.as_secs_f64() / 1e9);
    }
    fn show(&self) -> String {
        if self.write.is_empty() {
            return "      –       –".into();
        }
        format!("{:7.2} {:7.2}", median(self.write.clone()), median(self.read.clone()))
    }
    fn over(&self, other: &Self) -> String {
        if self.write.is_empty() || other.write.is_empty() {
            return "    –     –".into();
        }
        let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
        format!("{:5.2} {:5.2}", ratio(&self.write, &other.write), ratio(&self.read, &other.read))
    }
}

// --- ways side by side ----------------------------------------------------------------------------------------------------

fn ways(gpu: &Gpu, dir: &Path, total: usize, host: bool) -> Result<(), Failed> {
    println!(
        "disk at {}: GB/s write read; ratios write read, medians of {ROUNDS} interleaved rounds",
        dir.display()
    );
    println!(
        "{:>9} {:>9} | {:^15} | {:^15} | {:^15} | {:^11} | {:^11}",
        "block", "in flight", "raw disk", "bounce", "compat", "bounce/raw", "bounce/compat"
    );
    let raw = Raw::new(gpu, dir, total)?;
    let bounce = gpu.store(&dir.join("bounce"), GdsWay::Bounce, |c| {
        c.disk_io_threads = Some(8);
        c.max_capacity_gb = room(total);
    })?;
    // cuFile would refuse memory that is no GPU's.
    let compat = (!host).then(|| {
        gpu.store(&dir.join("compat"), GdsWay::Compat, |c| {
            c.disk_io_threads = Some(8);
            c.max_capacity_gb = room(total);
        })
    });
    if let Some(Err(e)) = &compat {
        println!("compat is not here: {e}");
    }
    let mut next = 0;
    for block in [MIB, 4 * MIB, 16 * MIB] {
        for in_flight in [1, 4, 8] {
            let (mut r, mut b, mut c) = (Runs::default(), Runs::default(), Runs::default());
            for round in 0..=ROUNDS {
                let (rw, rr) = raw.run(block, in_flight)?;
                let (bw, br) = adapter(&bounce, &mut next, block, total, in_flight)?;
                let by_compat = compat
                    .as_ref()
                    .and_then(|c| c.as_ref().ok())
                    .map(|c| adapter(c, &mut next, block, total, in_flight))
                    .transpose()?;
                // The first lap is over space that was never written.
                if round > 0 {
                    r.add(total, rw, rr);
                    b.add(total, bw, br);
                    if let Some((w, read)) = by_compat {
                        c.add(total, w, read);
                    }
                }
            }
            println!(
                "{:>5} MiB {in_flight:>9} | {} | {} | {} | {} | {}",
                block / MIB,
                r.show(),
                b.show(),
                c.show(),
                b.over(&r),
                b.over(&c)
            );
        }
    }
    println!("bounce: {:?}", bounce.gds.ways());
    bounce.close()
}

/// Plain direct reads and writes from pinned memory.
struct Raw {
    file: File,
    pinned: Mutex<Vec<WriteBuf>>,
    total: usize,
    path: PathBuf,
}

impl Raw {
    fn new(gpu: &Gpu, dir: &Path, total: usize) -> Result<Self, Failed> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("raw");
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(true);
        let file = how.clone().custom_flags(O_DIRECT).open(&path).or_else(|_| how.open(&path))?;
        let pool = Slab::new(vec![gpu.gpus.pinned(128 * MIB)?])?.pool("raw", 128 * MIB as u64);
        let pinned = (0..8).map(|_| pool.reserve(16 * MIB, UNIT)).collect::<kvstrata_core::Result<_>>()?;
        Ok(Self { file, pinned: Mutex::new(pinned), total, path })
    }

    fn run(&self, block: usize, threads: usize) -> Result<(Duration, Duration), Failed> {
        let write = self.timed(block, threads, |bytes, at| self.file.write_all_at(bytes, at))?;
        Ok((write, self.timed(block, threads, |bytes, at| self.file.read_exact_at(bytes, at))?))
    }

    /// Reads, and takes the CRC of what was read just now: what a load by the bounce cannot do without.
    fn read_and_check(&self, block: usize, threads: usize) -> Result<Duration, Failed> {
        self.timed(block, threads, |bytes, at| {
            let mut crc = PayloadCrc::new();
            for (i, piece) in bytes.chunks_mut(256 << 10).enumerate() {
                self.file.read_exact_at(piece, at + (i << 18) as u64)?;
                crc.update(piece);
            }
            std::hint::black_box(crc.finish());
            Ok(())
        })
    }

    /// Does `one` for each block of the file, a thread's all with the same memory.
    fn timed(
        &self,
        block: usize,
        threads: usize,
        one: impl Fn(&mut [u8], u64) -> std::io::Result<()> + Sync,
    ) -> Result<Duration, Failed> {
        let (mut bufs, one) = (self.pinned.lock(), &one);
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let work = |(t, buf): (usize, &'_ mut WriteBuf)| {
                let bytes = &mut buf.as_mut_slice().expect("host memory")[..block];
                let mut mine = (t * block..self.total).step_by(threads * block);
                mine.try_for_each(|at| one(bytes, at as u64))
            };
            let lanes = bufs.iter_mut().take(threads).enumerate();
            let all: Vec<_> = lanes.map(|lane| scope.spawn(move || work(lane))).collect();
            all.into_iter().try_for_each(|t| t.join().expect("a thread"))
        })?;
        Ok(begin.elapsed())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Stores and loads `total` bytes of GPU memory by an adapter, digests on, so many chunks at a time; then removes them.
fn adapter(
    rig: &Rig<'_>,
    next: &mut u64,
    block: usize,
    total: usize,
    in_flight: usize,
) -> Result<(Duration, Duration), Failed> {
    let keys: Vec<u64> = (*next..*next + (total / block) as u64).collect();
    *next += keys.len() as u64;
    let layout = Layout::opaque(block as u64)?;
    let deadline = rig.cx.timer.now() + Duration::from_secs(300);

    let mut bufs: Vec<ReadBuf> = Vec::new();
    for t in 0..in_flight {
        bufs.push(rig.gpu.chunk(t as u64, block)?.seal(block));
    }
    let of = layout.clone();
    let write = lanes(rig, &keys, bufs, move |store, n, buf| {
        let item = PutItem { key: key(n), layout: of.clone(), digest: PutDigest::None, buf: buf.clone() };
        async move {
            let (answer, sink) = one_answer();
            store.put(Put { items: vec![item], deadline, affinity: gpu0() }, sink).await;
            match answer.lock().take() {
                Some(Ok(_)) => Ok(buf),
                other => Err(format!("a store: {other:?}")),
            }
        }
    })?;

    let mut bufs: Vec<WriteBuf> = Vec::new();
    for _ in 0..in_flight {
        bufs.push(rig.gpu.poisoned(block)?);
    }
    let read = lanes(rig, &keys, bufs, move |store, n, buf| {
        let item = GetItem { key: key(n), layout: layout.clone(), buf };
        async move {
            let (answer, sink) = one_answer();
            store.get(Get { items: vec![item], deadline, affinity: gpu0() }, sink).await;
            match answer.lock().take() {
                Some(Answer::Loaded(loaded)) => Ok(loaded.buf),
                other => Err(format!("a load: {other:?}")),
            }
        }
    })?;
    let remove = rig.gds.adapter().remove.ok_or("it removes")?;
    let keys: Vec<_> = keys.into_iter().map(key).collect();
    rig.gpu.runtime.block_on(remove.remove(keys.into(), deadline));
    Ok((write, read))
}

/// Does `one` for each key, as many at a time as there are buffers: each goes from one key to the next.
fn lanes<B, F>(
    rig: &Rig<'_>,
    keys: &[u64],
    bufs: Vec<B>,
    one: impl Fn(Arc<dyn L2Store>, u64, B) -> F + Clone + Send + 'static,
) -> Result<Duration, Failed>
where
    B: Send + 'static,
    F: Future<Output = Result<B, String>> + Send + 'static,
{
    let begin = Instant::now();
    let n = bufs.len();
    rig.gpu.runtime.block_on(async {
        let lane = |(t, mut buf): (usize, B)| {
            let mine: Vec<u64> = keys.iter().copied().skip(t).step_by(n).collect();
            let (store, one) = (Arc::clone(&rig.checked), one.clone());
            tokio::spawn(async move {
                for n in mine {
                    buf = one(Arc::clone(&store), n, buf).await?;
                }
                Ok::<_, String>(())
            })
        };
        let tasks: Vec<_> = bufs.into_iter().enumerate().map(lane).collect();
        for task in tasks {
            task.await.expect("a task")?;
        }
        Ok::<_, String>(())
    })?;
    Ok(begin.elapsed())
}

/// A sink for one answer, and where it will be.
fn one_answer<T: Fail>() -> (Arc<Mutex<Option<T>>>, Sink<T>) {
    let at = Arc::new(Mutex::new(None));
    let to = Arc::clone(&at);
    (at, Sink::new(1, Arc::new(move |_: usize, answer: T| *to.lock() = Some(answer))))
}

// --- files in memory --------------------------------------------------------------------------------------------------------

fn memory(gpu: &Gpu, total: usize) -> Result<(), Failed> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    println!(
        "\nfiles in memory: GB/s of bounce reads; of reads of one file into pinned memory by as many threads, and of those with a CRC; of the copy engine"
    );
    let rig = gpu.store(dir.path(), GdsWay::Bounce, |c| {
        c.disk_io_threads = Some(8);
        c.max_capacity_gb = room(total);
    })?;
    let raw = Raw::new(gpu, dir.path(), total)?;
    let mut stream = gpu.gpus.copies(0)?;
    let mut next = 0;
    for block in [MIB, 4 * MIB, 16 * MIB] {
        for in_flight in [1, 4, 8] {
            let (mut reads, mut copies, mut checked, mut engine) = (vec![], vec![], vec![], vec![]);
            let (mut ratio, mut bound) = (vec![], vec![]);
            let pinned =
                Slab::new(vec![gpu.gpus.pinned(block)?])?.pool("p", block as u64).reserve(block, UNIT)?;
            let to = gpu.poisoned(block)?;
            for round in 0..=ROUNDS {
                let (_, bounce) = adapter(&rig, &mut next, block, total, in_flight)?;
                let (_, memcpy) = raw.run(block, in_flight)?;
                let check = raw.read_and_check(block, in_flight)?;
                let begin = Instant::now();
                for _ in 0..total / block {
                    // SAFETY: both are so long and held until the stream was drained.
                    unsafe { stream.copy(Direction::ToDevice, to.as_ptr(), pinned.as_ptr(), block) }?;
                }
                stream.drain();
                let copied = begin.elapsed();
                if round > 0 {
                    let rate = |d: Duration| total as f64 / d.as_secs_f64() / 1e9;
                    reads.push(rate(bounce));
                    copies.push(rate(memcpy));
                    checked.push(rate(check));
                    engine.push(rate(copied));
                    ratio.push(rate(bounce) / rate(memcpy).min(rate(copied)));
                    bound.push(rate(bounce) / rate(check).min(rate(copied)));
                }
            }
            println!(
                "{:>5} MiB {in_flight:>2} in flight: bounce {:6.2}  memcpy {:6.2}  with CRC {:6.2}  copy engine {:6.2}  ratio to the lesser of memcpy and engine {:.2}, with CRC {:.2}",
                block / MIB,
                median(reads),
                median(copies),
                median(checked),
                median(engine),
                median(ratio),
                median(bound)
            );
        }
    }
    rig.close()
}
