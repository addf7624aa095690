//! `kvstrata import`: the objects of another program's cache into a store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use kvstrata_config::{AdapterSettings, BuildContext, ByteSize, Registry};
use kvstrata_core::{Affinity, DType, Error, ErrorKind, Layout, ObjectKey, TensorDesc};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{
    Answer, Checked, Fail, Get, GetItem, GetSink, Probe, Put, PutDigest, PutItem, PutSink, Sink, Stored,
    Verify,
};
use kvstrata_lmcache_files::{FlatConfig, GdsConfig, LmcacheFs, LmcacheGds, Refusal, Refused, scan_flat};
use kvstrata_mem::{Allocate, MmapRegion, Pool, RegionOptions, Slab, UNIT};
use serde::Serialize;
use serde_json::json;

use super::report::{self, Progress};

/// Import the objects of an LMCache directory into a store
///
/// Every object is read, gets a digest, and is stored; the directory is only read. An object that the store has already is
/// left as it is, so an import that was stopped goes on where it was. Files that are no whole object are passed over and
/// counted by reason. LMCache keeps no digests: what its disk has changed before the import cannot be known.
///
/// `lmcache-fs`: a directory of the `fs` and `fs_native` adapters. The files do not say what their bytes are: `--layout` does,
/// for all of them, and files of another length are passed over; without it they are plain bytes. A model with -SEP- in its
/// own name is named by `--model`.
///
/// `lmcache-gds`: a directory of the GDS backend. Layouts are in the files. How many workers there were on each machine is
/// not: `--local-world-size`, all of them unless given.
///
/// Exit status: 0 every object is in the store, 1 some are not, 2 the command line or a directory is wrong.
///
/// Example: kvstrata import --from lmcache-gds /mnt/lmcache --to /var/cache/kv --dry-run
#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// What wrote the directory
    #[arg(long, value_enum)]
    from: From,
    /// The directory
    path: PathBuf,
    /// The store's directory; it is made if it is not there
    #[arg(long, value_name = "STORE")]
    to: PathBuf,
    /// The store's limit in GiB, as in its adapter's settings; 0 is no limit
    #[arg(long, value_name = "GIB", default_value_t = 0.0, allow_negative_numbers = true)]
    max_capacity_gb: f64,
    /// Only these models
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// What the bytes of each file are, such as `BF16[2,32,256,8,128]`; several tensors are joined by `+`
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<String>,
    /// Workers on each machine
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    local_world_size: Option<u32>,
    /// Memory for objects on their way
    #[arg(long, value_name = "BYTES", default_value = "256MiB", allow_negative_numbers = true)]
    memory: ByteSize,
    /// Threads that read, and as many that write
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Load each stored object again and check its digest
    #[arg(long)]
    verify: bool,
    /// Say what there is to import, and store nothing
    #[arg(long)]
    dry_run: bool,
    /// Write what was done here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum From {
    LmcacheFs,
    LmcacheGds,
}

/// What was done. `schema_version` changes when the meaning of a field does.
#[derive(Serialize, Debug, Default)]
struct Report {
    schema_version: u32,
    path: PathBuf,
    to: PathBuf,
    dry_run: bool,
    /// Objects in the directory, and their payload bytes.
    objects: u64,
    bytes: u64,
    /// Files that are no object, by reason.
    refused: BTreeMap<&'static str, u64>,
    imported: u64,
    imported_bytes: u64,
    /// Those that the store had already.
    present: u64,
    /// Keys under which the store has something of another layout; it is kept.
    other_layout: u64,
    /// Those that the store had no room for.
    no_room: u64,
    /// Those that could not be read, or stored, or found again, and why the first of them was not.
    failed: u64,
    first_failure: Option<String>,
    /// Those that were loaded again and were right.
    verified: u64,
    seconds: f64,
}

/// Far above what a batch takes; a device that hangs ends the import.
const WITHIN: Duration = Duration::from_secs(600);
/// Objects of one batch, at most.
const BATCH: usize = 256;

type Objects = Vec<(ObjectKey, Layout)>;

pub(crate) async fn run(args: ImportArgs) -> Result<bool> {
    let begun = Instant::now();
    let cx = BuildContext::tokio(tokio::runtime::Handle::current());
    check(&args)?;
    let (source, objects, refused) = match args.from {
        From::LmcacheFs => flat(&args, &cx)?,
        From::LmcacheGds => gds(&args, &cx)?,
    };
    let mut report = Report {
        schema_version: 1,
        path: args.path.clone(),
        to: args.to.clone(),
        dry_run: args.dry_run,
        objects: objects.len() as u64,
        bytes: objects.iter().map(|(_, layout)| layout.bytes()).sum(),
        refused: refused.reasons().map(|(why, n)| (why.name(), n)).collect(),
        ..Report::default()
    };
    if !args.dry_run {
        let destination = destination(&args, &cx)?;
        let import = Import { cx, source, destination, pool: memory(&args)?, verify: args.verify };
        let mut progress = Progress::bytes("import", report.bytes);
        let mut rest = &objects[..];
        while !rest.is_empty() {
            let n = import.batch(rest, &mut report).await;
            progress.step(rest[..n].iter().map(|(_, layout)| layout.bytes()).sum());
            rest = &rest[n..];
        }
        drop(progress);
        // What is durable is made so: a store that does not close is told to whoever waits for it.
        let deadline = import.cx.l2.timer.now() + WITHIN;
        import.destination.adapter.store.shutdown(deadline).await?;
    }
    report.seconds = begun.elapsed().as_secs_f64();
    if !report::to_stdout(args.json.as_ref()) {
        report.print();
    }
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    Ok(report.failed + report.no_room + report.other_layout == 0)
}

/// What can be said to be wrong before anything is opened.
fn check(args: &ImportArgs) -> Result<()> {
    const OP: &str = "import";
    let only = |flag: &'static str, given: bool, of: From| {
        if given && args.from != of {
            let what = if of == From::LmcacheFs { "lmcache-fs" } else { "lmcache-gds" };
            let e = Error::invalid(OP, format!("this flag means something for --from {what} only"));
            return Err(e.with("flag", flag));
        }
        Ok(())
    };
    only("--layout", args.layout.is_some(), From::LmcacheFs)?;
    only("--local-world-size", args.local_world_size.is_some(), From::LmcacheGds)?;
    let same = |a: &Path, b: &Path| {
        a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    if same(&args.path, &args.to) {
        let e = Error::invalid(OP, "the store needs a directory of its own");
        return Err(e.with("--to", args.to.display()).into());
    }
    Ok(())
}

fn flat(args: &ImportArgs, cx: &BuildContext) -> Result<(Checked, Objects, Refused)> {
    let config = FlatConfig {
        models: args.model.clone(),
        num_workers: args.threads.into(),
        ..FlatConfig::new(&args.path)
    };
    let layout = args.layout.as_deref().map(parse_layout).transpose()?;
    let source = LmcacheFs::open_os(&config, cx.l2.clone())?;
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    let (found, refused) = scan_flat(&disk, &args.path, &config.models()?, layout.as_ref())?;
    let objects = found.into_iter().map(|o| (o.key, o.layout)).collect();
    Ok((Checked::new(source.adapter(), Verify::On, cx.l2.clone()), objects, refused))
}

fn gds(args: &ImportArgs, cx: &BuildContext) -> Result<(Checked, Objects, Refused)> {
    let config = GdsConfig {
        num_workers: args.threads.into(),
        local_world_size: args.local_world_size,
        ..GdsConfig::new(&args.path)
    };
    let source = LmcacheGds::open_os(&config, cx.l2.clone(), cx.run)?;
    let wanted =
        |key: &ObjectKey| args.model.is_empty() || args.model.iter().any(|m| m == key.scope().model());
    let (found, others): (Vec<_>, Vec<_>) = source.objects().into_iter().partition(|o| wanted(&o.key));
    let objects = found.into_iter().map(|o| (o.key, o.header.layout)).collect();
    let mut refused = source.stats().refused;
    others.iter().for_each(|_| refused.add(Refusal::Foreign));
    Ok((Checked::new(source.adapter(), Verify::On, cx.l2.clone()), objects, refused))
}

fn destination(args: &ImportArgs, cx: &BuildContext) -> Result<Checked> {
    let settings = json!({
        "type": "fs",
        "base_path": args.to,
        "num_workers": args.threads,
        "max_capacity_gb": args.max_capacity_gb,
    });
    let settings: AdapterSettings = serde_json::from_value(settings)?;
    let adapter = Registry::builtin().build("store", &settings, cx)?;
    Ok(Checked::new(adapter, Verify::On, cx.l2.clone()))
}

fn memory(args: &ImportArgs) -> Result<Arc<Pool>> {
    let bytes = usize::try_from(args.memory.0).context("--memory")?.next_multiple_of(UNIT).max(UNIT);
    let region = MmapRegion::new(bytes, &RegionOptions::default()).context("--memory")?;
    Ok(Slab::new(vec![region])?.pool("import", bytes as u64))
}

/// Reads a layout as listings show it: `BF16[2, 32, 256, 8, 128] + U8[16]`.
fn parse_layout(text: &str) -> Result<Layout> {
    let bad = |part: &str| {
        Error::invalid("read layout", "a tensor is written as its type and its extents, BF16[2,32,256,8,128]")
            .with("--layout", part)
    };
    let tensor = |part: &str| {
        let (dtype, shape) = part.trim().strip_suffix(']')?.split_once('[')?;
        let shape = shape.split(',').map(|d| d.trim().parse().ok()).collect::<Option<Vec<u64>>>()?;
        Some(TensorDesc { dtype: DType::from_name(dtype.trim())?, shape })
    };
    let tensors = text.split('+').map(|part| tensor(part).ok_or_else(|| bad(part)));
    let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    Ok(Layout::new(tensors).map_err(|e| e.with("--layout", text))?)
}

struct Import {
    cx: BuildContext,
    source: Checked,
    destination: Checked,
    pool: Arc<Pool>,
    verify: bool,
}

impl Import {
    /// Imports as many of the first objects as memory has room for; how many those were.
    async fn batch(&self, objects: &[(ObjectKey, Layout)], report: &mut Report) -> usize {
        let deadline = self.cx.l2.timer.now() + WITHIN;
        let affinity = Affinity::default();
        let some = &objects[..objects.len().min(BATCH)];
        let keys: Vec<ObjectKey> = some.iter().map(|(key, _)| key.clone()).collect();
        let probe = Probe { keys: keys.into(), deadline, affinity };
        let known = self.destination.adapter.store.probe(probe).await;
        let (mut taken, mut items) = (0, Vec::new());
        for ((key, layout), known) in some.iter().zip(known) {
            match known {
                Ok(Some(found)) if found.layout == Some(layout.id()) => report.present += 1,
                Ok(Some(_)) => report.other_layout += 1,
                Err(e) => report.fail(e),
                Ok(None) => match self.pool.reserve(layout.bytes() as usize, UNIT) {
                    Ok(buf) => items.push(GetItem { key: key.clone(), layout: layout.clone(), buf }),
                    Err(_) if !items.is_empty() => break,
                    Err(e) => report.fail(e.with("key", key).with("--memory", self.pool.usage().limit)),
                },
            }
            taken += 1;
        }
        if items.is_empty() {
            return taken;
        }
        let (mut sent, mut puts) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for (answer, (key, layout)) in self.load(&self.source, items).await {
            match answer {
                Answer::Loaded(loaded) => {
                    let buf = loaded.buf.seal(layout.bytes() as usize);
                    puts.push(PutItem {
                        key: key.clone(),
                        layout: layout.clone(),
                        digest: PutDigest::None,
                        buf,
                    });
                    sent.push((key, layout));
                }
                Answer::Miss(miss, _) => report.lose(&key, miss.name()),
                Answer::Failed(e, _) => report.fail(e),
            }
        }
        let put =
            |sink: PutSink| self.destination.adapter.store.put(Put { items: puts, deadline, affinity }, sink);
        let answers = collect(sent.len(), put).await;
        let mut stored = Vec::with_capacity(sent.len());
        for (answer, (key, layout)) in answers.into_iter().zip(sent) {
            match answer {
                Ok(Stored::Written) => {
                    report.imported += 1;
                    report.imported_bytes += layout.bytes();
                    stored.push((key, layout));
                }
                Ok(Stored::Present) => report.present += 1,
                Err(e) if e.kind() == ErrorKind::NoSpace => report.no_room += 1,
                Err(e) => report.fail(e),
            }
        }
        if self.verify {
            self.check(&stored, report).await;
        }
        taken
    }

    /// Loads again what was stored; it fits into memory as it did before.
    async fn check(&self, stored: &[(ObjectKey, Layout)], report: &mut Report) {
        let mut items = Vec::with_capacity(stored.len());
        for (key, layout) in stored {
            match self.pool.reserve(layout.bytes() as usize, UNIT) {
                Ok(buf) => items.push(GetItem { key: key.clone(), layout: layout.clone(), buf }),
                Err(e) => report.fail(e.with("key", key)),
            }
        }
        for (answer, (key, _)) in self.load(&self.destination, items).await {
            match answer {
                Answer::Loaded(loaded) if loaded.verified => report.verified += 1,
                Answer::Loaded(_) => report.lose(&key, "not verified"),
                Answer::Miss(miss, _) => report.lose(&key, miss.name()),
                Answer::Failed(e, _) => report.fail(e),
            }
        }
    }

    async fn load(&self, from: &Checked, items: Vec<GetItem>) -> Vec<(Answer, (ObjectKey, Layout))> {
        let about: Objects = items.iter().map(|item| (item.key.clone(), item.layout.clone())).collect();
        let deadline = self.cx.l2.timer.now() + WITHIN;
        let request = Get { items, deadline, affinity: Affinity::default() };
        let answers = collect(about.len(), |sink: GetSink| from.adapter.store.get(request, sink)).await;
        answers.into_iter().zip(about).collect()
    }
}

/// The answers of one call, in order. The call ends when all are there.
async fn collect<T: Fail, F: Future<Output = ()>>(n: usize, call: impl FnOnce(Sink<T>) -> F) -> Vec<T> {
    let answers: Arc<Mutex<Vec<Option<T>>>> = Arc::new(Mutex::new((0..n).map(|_| None).collect()));
    let to = Arc::clone(&answers);
    let receive = move |at: usize, answer: T| {
        to.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(answer);
    };
    call(Sink::new(n, Arc::new(receive))).await;
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = || T::failed(Error::new(ErrorKind::Internal, "import", "the answer got lost"));
    answers.iter_mut().map(|answer| answer.take().unwrap_or_else(lost)).collect()
}

impl Report {
    fn fail(&mut self, e: impl std::fmt::Display) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| e.to_string());
    }

    fn lose(&mut self, key: &ObjectKey, why: &str) {
        self.fail(format_args!("an object that was there is not there any more: {why} (key: {key})"));
    }

    fn print(&self) {
        let mut rows = vec![("objects", format!("{}, {}", self.objects, report::bytes(self.bytes)))];
        let refused: Vec<String> = self.refused.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let none = if refused.is_empty() { "0".into() } else { refused.join(", ") };
        rows.push(("files passed over", none));
        if self.dry_run {
            rows.push(("result", "nothing was stored: this was a dry run".into()));
            return report::table(&rows);
        }
        rows.push(("imported", format!("{}, {}", self.imported, report::bytes(self.imported_bytes))));
        rows.push(("there before", self.present.to_string()));
        rows.push(("there in another layout", self.other_layout.to_string()));
        rows.push(("no room for", self.no_room.to_string()));
        rows.push(("failed", self.failed.to_string()));
        if let Some(why) = &self.first_failure {
            rows.push(("  the first of these", why.clone()));
        }
        rows.push(("loaded again and right", self.verified.to_string()));
        let took = Duration::from_secs_f64(self.seconds);
        rows.push((
            "took",
            format!("{:.1} s, {:.3} GB/s", self.seconds, report::gbps(self.imported_bytes, took)),
        ));
        report::table(&rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_read_as_they_are_shown() {
        for text in ["BF16[2, 32, 256, 8, 128]", "F8E4M3FN[1]", "U8[3] + F16[4, 5]"] {
            assert_eq!(format!("{:?}", parse_layout(text).unwrap()), text);
        }
        assert_eq!(parse_layout("BF16[2,32]").unwrap().bytes(), 128);
        for text in ["", "BF16", "BF16[]", "BF17[1]", "BF16[0]", "BF16[-1]", "BF16[1]+", "BF16[1]x", "[1]"] {
            assert!(parse_layout(text).unwrap_err().to_string().contains("--layout"), "{text}");
        }
    }
}
