//! Figures, on request only (`gds-bench [--host] [ways|memory|lmcache].. [DIR]`): each ratio from interleaved runs of one
//! process, medians of five rounds. With `--host` the GPU is a [model](crate::model).

mod lmcache;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstrata_core::Layout;
use kvstrata_l2::{Answer, Fail, Get, GetItem, L2Store, Put, PutDigest, PutItem, Sink};
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
    let (mut host, mut parts, mut dir) = (false, Vec::new(), None);
    for word in told {
        match word.to_str() {
            Some("--host") => host = true,
            Some(part) if PARTS.contains(&part) => parts.push(part.to_owned()),
            _ => dir = Some(PathBuf::from(word)),
        }
    }
    match measure(host, &parts, dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("it failed"));
            ExitCode::FAILURE
        }
    }
}

fn measure(host: bool, parts: &[String], dir: Option<PathBuf>) -> Result<(), Failed> {
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
        ways(&gpu, dir, host)?;
    }
    if wanted("memory") {
        memory(&gpu)?;
    }
    if wanted("lmcache") {
        lmcache::run(&gpu, dir)?;
    }
    Ok(())
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

fn ways(gpu: &Gpu, dir: &Path, host: bool) -> Result<(), Failed> {
    const TOTAL: usize = 512 * MIB;
    println!(
        "disk at {}: GB/s write read; ratios write read, medians of {ROUNDS} interleaved rounds",
        dir.display()
    );
    println!(
        "{:>9} {:>9} | {:^15} | {:^15} | {:^15} | {:^11} | {:^11}",
        "block", "in flight", "raw disk", "bounce", "compat", "bounce/raw", "bounce/compat"
    );
    let raw = Raw::new(gpu, dir, TOTAL)?;
    let bounce = gpu.store(&dir.join("bounce"), GdsWay::Bounce, |c| {
        c.disk_io_threads = Some(8);
        c.max_capacity_gb = 2.0;
    })?;
    // cuFile would refuse memory that is no GPU's.
    let compat = (!host).then(|| {
        gpu.store(&dir.join("compat"), GdsWay::Compat, |c| {
            c.disk_io_threads = Some(8);
            c.max_capacity_gb = 2.0;
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
                let (bw, br) = adapter(&bounce, &mut next, block, TOTAL, in_flight)?;
                let by_compat = compat
                    .as_ref()
                    .and_then(|c| c.as_ref().ok())
                    .map(|c| adapter(c, &mut next, block, TOTAL, in_flight))
                    .transpose()?;
                // The first lap is over space that was never written.
                if round > 0 {
                    r.add(TOTAL, rw, rr);
                    b.add(TOTAL, bw, br);
                    if let Some((w, read)) = by_compat {
                        c.add(TOTAL, w, read);
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
        let mut bufs = self.pinned.lock();
        let mut timed = |write: bool| -> Result<Duration, Failed> {
            let begin = Instant::now();
            std::thread::scope(|scope| {
                let all: Vec<_> = bufs
                    .iter_mut()
                    .take(threads)
                    .enumerate()
                    .map(|(t, buf)| {
                        scope.spawn(move || {
                            let bytes = &mut buf.as_mut_slice().expect("host memory")[..block];
                            for at in (t * block..self.total).step_by(threads * block) {
                                if write {
                                    self.file.write_all_at(bytes, at as u64)?;
                                } else {
                                    self.file.read_exact_at(bytes, at as u64)?;
                                }
                            }
                            Ok::<_, std::io::Error>(())
                        })
                    })
                    .collect();
                all.into_iter().try_for_each(|t| t.join().expect("a thread"))
            })?;
            Ok(begin.elapsed())
        };
        Ok((timed(true)?, timed(false)?))
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

fn memory(gpu: &Gpu) -> Result<(), Failed> {
    const TOTAL: usize = 1024 * MIB;
    let dir = tempfile::tempdir_in("/dev/shm")?;
    println!(
        "\nfiles in memory: GB/s of bounce reads, of reads of the same file into pinned memory by as many threads, of the copy engine"
    );
    let rig = gpu.store(dir.path(), GdsWay::Bounce, |c| c.disk_io_threads = Some(8))?;
    let raw = Raw::new(gpu, dir.path(), TOTAL)?;
    let mut stream = gpu.gpus.copies(0)?;
    let mut next = 0;
    for block in [MIB, 4 * MIB, 16 * MIB] {
        for in_flight in [1, 4, 8] {
            let (mut reads, mut copies, mut engine, mut ratio) = (vec![], vec![], vec![], vec![]);
            let pinned =
                Slab::new(vec![gpu.gpus.pinned(block)?])?.pool("p", block as u64).reserve(block, UNIT)?;
            let to = gpu.poisoned(block)?;
            for round in 0..=ROUNDS {
                let (_, bounce) = adapter(&rig, &mut next, block, TOTAL, in_flight)?;
                let (_, memcpy) = raw.run(block, in_flight)?;
                let begin = Instant::now();
                for _ in 0..TOTAL / block {
                    // SAFETY: both are so long and held until the stream was drained.
                    unsafe { stream.copy(Direction::ToDevice, to.as_ptr(), pinned.as_ptr(), block) }?;
                }
                stream.drain();
                let copied = begin.elapsed();
                if round > 0 {
                    let rate = |d: Duration| TOTAL as f64 / d.as_secs_f64() / 1e9;
                    reads.push(rate(bounce));
                    copies.push(rate(memcpy));
                    engine.push(rate(copied));
                    ratio.push(rate(bounce) / rate(memcpy).min(rate(copied)));
                }
            }
            println!(
                "{:>5} MiB {in_flight:>2} in flight: bounce {:6.2}  memcpy {:6.2}  copy engine {:6.2}  ratio to the lesser {:.2}",
                block / MIB,
                median(reads),
                median(copies),
                median(engine),
                median(ratio)
            );
        }
    }
    rig.close()
}
