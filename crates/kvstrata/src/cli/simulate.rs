//! `kvstrata simulate`: what policies would hit on a trace, without storing a byte.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};
use clap::Args;
use kvstrata_config::{ByteSize, Settings};
use kvstrata_core::Error;
use kvstrata_testkit::hits::{Belady, Cache, Lookup, Lookups, NextUses, Order, Tally};
use kvstrata_testkit::trace::Reader;
use serde::Serialize;

use super::plot::{self, Panel, Series};
use super::report::{self, Progress};

/// Say what eviction policies would hit on a trace, without storing anything
///
/// The trace goes past a cache of every policy and capacity at once; it may be larger than memory. Beside them stands
/// Belady, the most that anybody who knew the future could hit. The trace is in Mooncake's format, as for `replay`.
///
/// Example: kvstrata simulate --trace trace.jsonl --policy lru,s3-fifo,default --capacity 1000,5000 --plot hits.svg
#[derive(Args, Debug)]
pub(crate) struct SimulateArgs {
    /// The traces
    #[arg(long, value_name = "FILE", required = true, value_delimiter = ',')]
    trace: Vec<PathBuf>,
    /// Eviction policies, as `--eviction-policy` takes them; `default` is the product's own
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = policy, default_value = "default")]
    policy: Vec<Named>,
    /// Admission rules, as `--admission` of `replay` takes them; `default` is the product's own
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = admission, default_value = "always")]
    admission: Vec<Named>,
    /// Sizes of the cache in blocks
    #[arg(
        long,
        value_name = "BLOCKS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..i64::from(u32::MAX)),
        default_value = "500,1000,2500,5000,10000,20000,40000"
    )]
    capacity: Vec<u32>,
    /// The order of events within a request
    #[arg(long, value_enum, default_value_t = OrderArg::Batch)]
    order: OrderArg,
    /// The engine's own GPU cache before it, a policy and a size in blocks: what it holds of a request's first blocks does
    /// not reach the simulated cache
    #[arg(long, value_name = "lru:BLOCKS", value_parser = front)]
    front: Option<Front>,
    /// Bytes per block
    #[arg(long, value_name = "BYTES", default_value = "64KiB")]
    block_bytes: ByteSize,
    /// Tokens per block
    #[arg(long, value_name = "N", default_value_t = Lookups::BLOCK_TOKENS, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    block_tokens: u64,
    /// Draw the hit ratios over the capacity here, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the rows here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum OrderArg {
    /// As `replay`: look all blocks up, store what is missing, touch the hits
    Batch,
    /// Each block is looked up, and touched or stored, before the next
    Block,
}

/// A name as it was given, and as its owner writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Named {
    given: String,
    name: &'static str,
}

impl Named {
    fn of(name: &'static str) -> Self {
        Self { given: name.into(), name }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Front {
    policy: &'static str,
    blocks: u32,
}

fn policy(text: &str) -> Result<Named, String> {
    let given = text.trim();
    let own = Settings::default().eviction.policy;
    let asked = if given.eq_ignore_ascii_case("default") { own.as_str() } else { given };
    let known = kvstrata_evict::by_name(asked).map_err(|e| format!("{e}; `default` is {own}"))?;
    Ok(Named { given: given.into(), name: known.name() })
}

fn admission(text: &str) -> Result<Named, String> {
    let given = text.trim();
    let own = Settings::default().admission;
    let asked = if given.eq_ignore_ascii_case("default") { own.as_str() } else { given };
    let known = kvstrata_evict::admission_by_name(asked).map_err(|e| format!("{e}; `default` is {own}"))?;
    Ok(Named { given: given.into(), name: known.name() })
}

fn front(text: &str) -> Result<Front, String> {
    let form = "a front is a policy and a number of blocks from 1, such as lru:2000";
    let (name, blocks) = text.split_once(':').ok_or(form)?;
    let blocks = blocks.parse().ok().filter(|n| (1..u32::MAX).contains(n)).ok_or(form)?;
    Ok(Front { policy: policy(name)?.name, blocks })
}

/// A line of the answer.
#[derive(Clone, Serialize, Debug)]
struct Row {
    trace: String,
    /// As it was asked for.
    policy: String,
    /// As the policy calls itself: what `default` stands for.
    policy_name: &'static str,
    admission: String,
    /// As the rule calls itself.
    admission_name: &'static str,
    capacity: u32,
    order: &'static str,
    object_hit_ratio: f64,
    prefix_hit_ratio: f64,
    blocks: u64,
    blocks_written: u64,
    blocks_declined: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
}

/// What is said beside when there is a front.
#[derive(Clone, Serialize, Debug)]
struct Tokens {
    front: String,
    /// Of the prefixes that the front and the cache had together.
    tokens_not_recomputed: u64,
    /// Of them those that the front did not have.
    tokens_saved: u64,
    blocks_written_per_token_saved: Option<f64>,
}

/// One simulated cache.
#[derive(Debug)]
enum Simulated {
    Online { policy: Named, admission: Named, capacity: u32, order: Order, cache: Cache },
    Best { capacity: u32, cache: Belady },
}

impl Simulated {
    fn request(&mut self, lookup: &Lookup) {
        match self {
            Self::Online { cache, order, .. } => _ = cache.request(lookup, *order),
            Self::Best { cache, .. } => _ = cache.request(lookup),
        }
    }
}

pub(crate) fn run(args: SimulateArgs) -> Result<bool> {
    let block_bytes = u32::try_from(args.block_bytes.0)
        .ok()
        .filter(|n| (1..=1 << 31).contains(n))
        .map(|n| n.next_multiple_of(kvstrata_mem::UNIT as u32))
        .ok_or_else(|| {
            Error::invalid("simulate", "a block has 1 byte to 2 GiB").with("block-bytes", args.block_bytes)
        })?;
    // A file that is not there is found before the others have been read.
    for trace in &args.trace {
        open(trace)?;
    }
    let mut rows = Vec::new();
    for trace in &args.trace {
        rows.extend(simulate(&args, trace, block_bytes)?);
    }
    match &args.json {
        Some(path) if path == Path::new("-") => report::write_json(path, &rows)?,
        Some(path) => {
            print(&rows);
            report::write_json(path, &rows)?;
        }
        None => print(&rows),
    }
    if let Some(path) = &args.plot {
        let panels: Vec<Panel> = args.trace.iter().map(|t| panel(&args, t, &rows)).collect();
        std::fs::write(path, plot::svg(&panels)).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(true)
}

/// One trace past all caches.
fn simulate(args: &SimulateArgs, trace: &Path, block_bytes: u32) -> Result<Vec<Row>> {
    let lookups = || -> Result<Lookups> {
        let cache = |f: &Front| {
            Ok::<_, anyhow::Error>(Cache::new(kvstrata_evict::by_name(f.policy)?, f.blocks, block_bytes)?)
        };
        let front = args.front.as_ref().map(cache).transpose()?;
        // The scope of `replay`, so that the policies see the same prints.
        Ok(Lookups::new("replay", front)?.with_block_tokens(args.block_tokens))
    };
    let future = future(trace, lookups()?, kvstrata_mem::machine_memory() / 4)?;
    let mut all = Vec::new();
    for policy in &args.policy {
        for admission in &args.admission {
            for &capacity in &args.capacity {
                let order = match args.order {
                    OrderArg::Batch => Order::Batch,
                    OrderArg::Block => Order::by_block(policy.name),
                };
                let cache = Cache::new(kvstrata_evict::by_name(policy.name)?, capacity, block_bytes)?
                    .with_admission(kvstrata_evict::admission_by_name(admission.name)?);
                let (policy, admission) = (policy.clone(), admission.clone());
                all.push(Simulated::Online { policy, admission, capacity, order, cache });
            }
        }
    }
    if let Some(future) = future {
        let best =
            |&capacity| Simulated::Best { capacity, cache: Belady::new(Arc::clone(&future), capacity) };
        all.extend(args.capacity.iter().map(best));
    }
    let all = lockstep(all, |send| {
        let mut batch = Batch::default();
        each("simulate", trace, lookups()?, |lookup| {
            batch.push(lookup, send);
            Ok(ControlFlow::Continue(()))
        })?;
        batch.flush(send);
        Ok(())
    })?;
    let trace = trace.display().to_string();
    let row = |s: &Simulated| match s {
        Simulated::Online { policy, admission, capacity, cache, .. } => {
            row(args, &trace, [policy, admission], *capacity, cache.tally())
        }
        Simulated::Best { capacity, cache } => {
            row(args, &trace, [&Named::of(BELADY), &Named::of(OPTIMAL)], *capacity, cache.tally())
        }
    };
    Ok(all.iter().map(row).collect())
}

/// What Belady has to know: the only thing here that grows with the trace. Without it if it would take more memory than
/// `most`, so that the policies can be simulated on a trace of any length.
fn future(trace: &Path, lookups: Lookups, most: u64) -> Result<Option<Arc<Vec<u32>>>> {
    let mut future = Some(NextUses::default());
    each("read", trace, lookups, |lookup| {
        let Some(next) = &mut future else { return Ok(ControlFlow::Break(())) };
        if next.memory() as u64 <= most && next.push(&lookup).is_ok() {
            return Ok(ControlFlow::Continue(()));
        }
        future = None;
        Ok(ControlFlow::Break(()))
    })?;
    if future.is_none() {
        let what = "without Belady: the future of a trace this long does not fit into memory";
        eprintln!("{}: {what}", trace.display());
    }
    Ok(future.map(NextUses::finish))
}

const BELADY: &str = "Belady";
/// What Belady takes in is a part of the optimum.
const OPTIMAL: &str = "optimal";

fn row(args: &SimulateArgs, trace: &str, [policy, admission]: [&Named; 2], capacity: u32, t: &Tally) -> Row {
    let six = |r: f64| (r * 1e6).round() / 1e6;
    Row {
        trace: trace.into(),
        policy: policy.given.clone(),
        policy_name: policy.name,
        admission: admission.given.clone(),
        admission_name: admission.name,
        capacity,
        order: if args.order == OrderArg::Batch { "batch" } else { "block" },
        object_hit_ratio: six(t.object_hit_ratio()),
        prefix_hit_ratio: six(t.prefix_hit_ratio()),
        blocks: t.accesses,
        blocks_written: t.written,
        blocks_declined: t.declined,
        tokens: args.front.as_ref().map(|f| Tokens {
            front: format!("{}:{}", f.policy, f.blocks),
            tokens_not_recomputed: t.tokens_not_recomputed(),
            tokens_saved: t.tokens_saved,
            blocks_written_per_token_saved: t.written_per_token_saved(),
        }),
    }
}

// ---- reading the trace once for many caches --------------------------------------------------------------------

/// A file that says how far it was read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(to)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A trace and its length in bytes.
fn open(trace: &Path) -> Result<(File, u64)> {
    const OP: &str = "open trace";
    let failed = |e| Error::io(OP, e).with("path", trace.display());
    let file = File::open(trace).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let what = "a trace is read twice, and this is not a file";
        return Err(Error::invalid(OP, what).with("path", trace.display()).into());
    }
    Ok((file, metadata.len()))
}

/// The lookups of a trace until `with` has enough, with progress by the bytes read.
fn each(
    what: &'static str,
    trace: &Path,
    mut lookups: Lookups,
    mut with: impl FnMut(Lookup) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (file, total) = open(trace)?;
    let read = Arc::new(AtomicU64::new(0));
    let from = BufReader::with_capacity(256 << 10, Counted { file, read: Arc::clone(&read) });
    let mut progress = Progress::bytes(what, total);
    for request in Reader::new(from) {
        let request = request.with_context(|| trace.display().to_string())?;
        if with(lookups.next(&request))?.is_break() {
            break;
        }
        progress.step(read.swap(0, Ordering::Relaxed));
    }
    Ok(())
}

/// Lookups on their way to the workers: enough that handing them over costs nothing, and few enough for memory.
#[derive(Default)]
struct Batch {
    lookups: Vec<Lookup>,
    blocks: usize,
}

impl Batch {
    const BLOCKS: usize = 1 << 15;

    fn push(&mut self, lookup: Lookup, to: &[SyncSender<Arc<Vec<Lookup>>>]) {
        self.blocks += lookup.blocks.len();
        self.lookups.push(lookup);
        if self.blocks >= Self::BLOCKS {
            self.flush(to);
        }
    }

    fn flush(&mut self, to: &[SyncSender<Arc<Vec<Lookup>>>]) {
        let lookups = Arc::new(std::mem::take(&mut self.lookups));
        self.blocks = 0;
        for worker in to {
            // A worker only goes away by a panic, which its scope reports.
            _ = worker.send(Arc::clone(&lookups));
        }
    }
}

/// Sends what `feed` reads past all caches, on all cores. The caches come back in their order.
fn lockstep(
    all: Vec<Simulated>,
    feed: impl FnOnce(&[SyncSender<Arc<Vec<Lookup>>>]) -> Result<()>,
) -> Result<Vec<Simulated>> {
    let workers = std::thread::available_parallelism().map_or(1, Into::into).min(all.len());
    let mut shares: Vec<Vec<(usize, Simulated)>> = (0..workers).map(|_| Vec::new()).collect();
    for (i, simulated) in all.into_iter().enumerate() {
        shares[i % workers].push((i, simulated));
    }
    let work = |mut share: Vec<(usize, Simulated)>, from: Receiver<Arc<Vec<Lookup>>>| {
        for lookups in from {
            for (_, simulated) in &mut share {
                lookups.iter().for_each(|l| simulated.request(l));
            }
        }
        share
    };
    let mut done = std::thread::scope(|scope| {
        let (senders, handles): (Vec<_>, Vec<_>) = shares
            .into_iter()
            .map(|share| {
                let (send, receive) = sync_channel(4);
                (send, scope.spawn(move || work(share, receive)))
            })
            .unzip();
        let fed = feed(&senders);
        drop(senders);
        let done: Vec<_> = handles
            .into_iter()
            .flat_map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        fed.map(|()| done)
    })?;
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, s)| s).collect())
}

// ---- telling ---------------------------------------------------------------------------------------------------

fn print(rows: &[Row]) {
    let mut lines = vec![vec![
        "trace".to_string(),
        "policy".into(),
        "admission".into(),
        "capacity".into(),
        "object hits".into(),
        "prefix hits".into(),
        "blocks written".into(),
    ]];
    let front = rows.iter().any(|r| r.tokens.is_some());
    if front {
        lines[0].extend(["tokens not recomputed".into(), "written/token saved".into()]);
    }
    for r in rows {
        let policy = match r.policy.eq_ignore_ascii_case("default") {
            true => format!("default ({})", r.policy_name),
            false => r.policy_name.into(),
        };
        let mut line = vec![
            short(&r.trace),
            policy,
            r.admission_name.into(),
            r.capacity.to_string(),
            format!("{:.6}", r.object_hit_ratio),
            format!("{:.6}", r.prefix_hit_ratio),
            r.blocks_written.to_string(),
        ];
        if let Some(t) = &r.tokens {
            line.push(t.tokens_not_recomputed.to_string());
            line.push(t.blocks_written_per_token_saved.map_or("-".into(), |n| format!("{n:.6}")));
        }
        lines.push(line);
    }
    report::columns(&lines, 3);
}

/// A trace's file name.
fn short(trace: &str) -> String {
    Path::new(trace).file_name().map_or_else(|| trace.into(), |n| n.to_string_lossy().into_owned())
}

/// One trace's plot.
fn panel(args: &SimulateArgs, trace: &Path, rows: &[Row]) -> Panel {
    let name = trace.display().to_string();
    let mut series: Vec<Series> = Vec::new();
    for r in rows.iter().filter(|r| r.trace == name) {
        let label = match r.admission_name {
            "always" | OPTIMAL => r.policy_name.to_string(),
            rule => format!("{} + {rule}", r.policy_name),
        };
        let at = match series.iter().position(|s| s.label == label) {
            Some(at) => at,
            None => {
                series.push(Series { label, best: r.policy_name == BELADY, points: Vec::new() });
                series.len() - 1
            }
        };
        series[at].points.push((r.capacity, r.object_hit_ratio));
    }
    for s in &mut series {
        s.points.sort_by_key(|(capacity, _)| *capacity);
        s.points.dedup_by_key(|(capacity, _)| *capacity);
    }
    let order = if args.order == OrderArg::Batch { "a request at a time" } else { "block by block" };
    let behind = args
        .front
        .as_ref()
        .map_or(String::new(), |f| format!(", behind {} of {} blocks", f.policy, f.blocks));
    let blocks = rows.iter().find(|r| r.trace == name).map_or(0, |r| r.blocks);
    Panel {
        title: short(&name),
        note: format!("{} block accesses, {order}{behind}", plot::grouped(blocks)),
        series,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_future_is_left_out_when_it_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        let made = kvstrata_testkit::trace::Synthetic::default().generate().unwrap();
        kvstrata_testkit::trace::write(File::create(&path).unwrap(), made).unwrap();
        let future = |most| future(&path, Lookups::new("m", None).unwrap(), most).unwrap().map(|f| f.len());
        assert_eq!(future(1000), None);
        assert!(future(1 << 20).is_some_and(|accesses| accesses > 5000));
    }
}
