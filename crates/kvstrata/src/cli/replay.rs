//! `kvstrata replay`: a trace of real requests through the manager, with every loaded byte checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use kvstrata_config::ByteSize;
use kvstrata_core::{Error, KeyMask, KeyScope, KvRank, Layout, Namespace, ObjectKey};
use kvstrata_manager::{Grant, Layouts, LoadAnswer, LoadMode, Manager, Request, Reserved, TierId, Wait};
use kvstrata_testkit::payload;
use kvstrata_testkit::trace::{self, Reader};
use serde::Serialize;

use super::flags::ConfigFlags;
use super::report::{self, Latency, Percentiles, Progress};
use super::stack::Stack;

/// Replay a trace through the cache and check every loaded byte
///
/// Every block of every request is looked up; what is there is loaded and compared with what was stored; what is missing is
/// stored. Payloads are derived from the block's key. The trace is in Mooncake's format: one JSON object a line with
/// `timestamp` (ms), `input_length`, `output_length` (tokens) and `hash_ids` (ids of prefix-chained blocks).
///
/// Example: kvstrata replay --trace trace.jsonl --l1-size-gb 0.25 --l2-adapter '{"type":"fs","base_path":"/var/cache/kv"}'
#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// The trace
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Bytes per block
    #[arg(long, value_name = "BYTES", default_value = "64KiB", allow_negative_numbers = true)]
    block_bytes: ByteSize,
    /// As fast as it goes, or at the trace's own pace
    #[arg(long, value_enum, default_value_t = Speed::Max)]
    speed: Speed,
    /// Stop after so many requests
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// After so many requests, close everything and open it again
    #[arg(long, value_name = "N")]
    restart_at: Option<u64>,
    /// Write the figures here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFlags,
}

/// The model that a replay's keys name.
const MODEL: &str = "replay";
/// The hash schema of a replay's keys: the trace's own block ids, no chain of tokens.
const TRACE_IDS: u16 = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Speed {
    /// As fast as it goes
    Max,
    /// Requests start at their timestamps
    Real,
}

/// The figures. `schema_version` changes when the meaning of a field does.
#[derive(Serialize, Debug, Default)]
struct Figures {
    schema_version: u32,
    requests: u64,
    blocks: u64,
    /// Hits of any tier over all block accesses.
    block_hit_ratio: f64,
    /// Blocks of the longest prefix that was there, over all block accesses.
    prefix_hit_ratio: f64,
    l1_hit_ratio: f64,
    l2_hit_ratio: f64,
    l1_hit_blocks: u64,
    l2_hit_blocks: u64,
    stored_bytes: u64,
    loaded_bytes: u64,
    evicted_blocks: u64,
    /// Blocks that L1 had no room for, and blocks that an adapter declined for good.
    declined_stores: u64,
    /// Of those, the ones that L1 had no room for.
    declined_by_l1: u64,
    /// What adapters answered to stores that they did not take, attempts that were repeated included.
    refusals: BTreeMap<&'static str, u64>,
    /// Blocks that the admission rule kept out and no adapter was there to take.
    not_admitted_blocks: u64,
    /// Loads that ended with an error, lateness included, although a lookup had found the block.
    failed_loads: u64,
    /// Blocks that a lookup had found and that were not there any more, or not whole, when they were loaded.
    missed_loads: u64,
    /// Both by reason: a miss's, or the kind of an error.
    lost_between: BTreeMap<&'static str, u64>,
    /// Loads whose digest nobody checked.
    unverified_loads: u64,
    wrong_bytes: u64,
    pins_left: u64,
    /// The most that L2 used at any time the replay looked (after each request), over all adapters that say.
    l2_peak_bytes: u64,
    l2_limit_bytes: Option<u64>,
    lookup_us: Option<Percentiles>,
    load_us: Option<Percentiles>,
    store_us: Option<Percentiles>,
    seconds: f64,
    throughput_gbps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    l2_hit_blocks_after_restart: Option<u64>,
    policy: String,
    admission: String,
    /// Policies that panicked, and with them what is out of service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<String>,
}

/// The replay in progress.
struct Replay {
    stack: Stack,
    layouts: Layouts,
    within: Duration,
    figures: Figures,
    prefix_blocks: u64,
    lookup: Latency,
    load: Latency,
    store: Latency,
}

pub(crate) async fn run(args: ReplayArgs) -> Result<bool> {
    let resolved = args.config.resolve()?;
    if !(1..=Layout::MAX_BYTES).contains(&args.block_bytes.0) {
        let e = Error::invalid("replay", "a block has from 1 byte to 16 GiB");
        return Err(e.with("--block-bytes", args.block_bytes).into());
    }
    let layout = Layout::opaque(args.block_bytes.0)?;
    // Read once before anything is opened: a line that does not parse is found now, and the bar knows its end.
    let mut total = 0;
    for request in Reader::open(&args.trace)? {
        request?;
        total += 1;
    }
    let total = args.requests.map_or(total, |n| n.min(total));
    if args.restart_at.is_some_and(|at| at >= total) {
        let e = Error::invalid(
            "replay",
            format!("--restart-at is below the number of requests, which is {total}"),
        );
        return Err(e.into());
    }
    let scope = KeyScope::new(MODEL, KvRank::single(), 0, "")?;
    let namespace = Namespace {
        model: MODEL.into(),
        world_size: 1,
        chunk_tokens: resolved.settings.chunk_size,
        hash_schema: TRACE_IDS,
        layout: layout.clone(),
    };
    let mut replay = Replay {
        within: resolved.settings.deadlines.load_timeout,
        stack: Stack::open(&resolved, &namespace)?,
        layouts: Layouts::from(layout),
        figures: Figures {
            schema_version: 1,
            policy: resolved.settings.eviction.policy.clone(),
            admission: resolved.settings.admission.clone(),
            ..Figures::default()
        },
        prefix_blocks: 0,
        lookup: Latency::new(),
        load: Latency::new(),
        store: Latency::new(),
    };
    let mut progress = Progress::new("replay", total);
    let started = Instant::now();
    let mut before_restart = None;
    for request in Reader::open(&args.trace)?.take(total as usize) {
        let request = request?;
        if args.restart_at == Some(replay.figures.requests) {
            replay.close().await?;
            replay.stack = Stack::open(&resolved, &namespace)?;
            before_restart = Some(replay.figures.l2_hit_blocks);
        }
        if args.speed == Speed::Real {
            let due = Duration::from_millis(request.timestamp);
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        }
        let keys: Vec<ObjectKey> = request.hash_ids.iter().map(|id| trace::key(&scope, *id)).collect();
        replay.request(&keys).await?;
        progress.step(1);
    }
    drop(progress);
    replay.close().await?;
    let mut figures = replay.finish(started.elapsed());
    figures.l2_hit_blocks_after_restart = before_restart.map(|before| figures.l2_hit_blocks - before);
    if !report::to_stdout(args.json.as_ref()) {
        print(&figures);
    }
    if let Some(path) = &args.json {
        report::write_json(path, &figures)?;
    }
    Ok(figures.wrong_bytes == 0 && figures.pins_left == 0)
}

impl Replay {
    /// One request: look up, load and check, store what was missing, touch the hits, let go.
    async fn request(&mut self, keys: &[ObjectKey]) -> Result<()> {
        let manager = self.stack.manager.clone();
        let rq = manager.request(self.within);
        let shared: kvstrata_l2::Keys = keys.into();

        let begun = Instant::now();
        let lookup = manager.lookup(&rq, &shared).await;
        self.lookup.record(begun.elapsed());
        let (l1, l2) = (lookup.l1(), lookup.l2());

        let begun = Instant::now();
        let loaded = manager.load(lookup, &self.layouts, LoadMode::Any).finish().await;
        if !(l1.is_clear() && l2.is_clear()) {
            self.load.record(begun.elapsed());
        }
        let hits = loaded.hits.mask();
        for i in hits.iter() {
            let buf = loaded.hits.buf(i).expect("a hit has bytes");
            if let Err(wrong) = payload::verify(&keys[i], buf)? {
                self.figures.wrong_bytes += wrong.count;
            }
            match loaded.hits.source(i) {
                Some(TierId::L1) => self.figures.l1_hit_blocks += 1,
                _ => self.figures.l2_hit_blocks += 1,
            }
            self.figures.loaded_bytes += buf.len() as u64;
        }
        for (i, answer) in loaded.misses.iter().filter(|(i, _)| l1.get(*i) || l2.get(*i)) {
            let (count, reason) = match answer {
                LoadAnswer::Hit(_) => unreachable!("a hit is no miss"),
                LoadAnswer::Miss(why) => (&mut self.figures.missed_loads, why.name()),
                LoadAnswer::Failed(e) => {
                    tracing::debug!(key = %keys[*i], error = %e, "a block that was found could not be loaded");
                    (&mut self.figures.failed_loads, e.kind().name())
                }
            };
            *count += 1;
            *self.figures.lost_between.entry(reason).or_default() += 1;
        }
        self.figures.requests += 1;
        self.figures.blocks += keys.len() as u64;
        self.prefix_blocks += hits.prefix() as u64;

        self.store(&manager, &rq, keys, hits.complement()).await?;
        manager.touch(&rq, keys, &hits);
        drop(loaded);
        self.watch_l2(&manager);
        Ok(())
    }

    /// Stores what is missing, in as many steps as L1 has room for. With an L2 the steps go on while earlier ones drain;
    /// without one a second step would only evict the first.
    async fn store(
        &mut self,
        manager: &Manager,
        rq: &Request,
        keys: &[ObjectKey],
        mut missing: KeyMask,
    ) -> Result<()> {
        let drains = !manager.adapters().is_empty();
        // The load may have used its time up; the store has its own. To policies it is still the same request.
        let rq = Request { deadline: rq.deadline + self.within, ..*rq };
        while !missing.is_clear() {
            let begun = Instant::now();
            let wait = if drains { Wait::UntilDeadline } else { Wait::No };
            let mut filled = Vec::new();
            let mut refused = 0;
            for (i, reserved) in manager
                .reserve(&rq, keys, &missing, &self.layouts, Grant::Part, wait)
                .await
                .into_iter()
                .enumerate()
            {
                match reserved {
                    Reserved::Granted(mut chunk) => {
                        payload::write(&keys[i], chunk.buf())?;
                        missing.clear(i);
                        filled.push(chunk);
                    }
                    Reserved::Unwanted => {}
                    Reserved::Resident | Reserved::Busy => missing.clear(i),
                    Reserved::NotAdmitted => {
                        missing.clear(i);
                        self.figures.not_admitted_blocks += 1;
                    }
                    Reserved::Refused(_) => refused += 1,
                }
            }
            let progress = !filled.is_empty();
            manager.commit(filled);
            self.store.record(begun.elapsed());
            if refused > 0 && !(drains && progress) {
                self.figures.declined_stores += refused;
                self.figures.declined_by_l1 += refused;
                break;
            }
        }
        Ok(())
    }

    fn watch_l2(&mut self, manager: &Manager) {
        let mut used = 0;
        let mut limit = Some(0);
        for usage in manager.usage().adapters.iter().filter_map(|a| a.usage) {
            used += usage.used;
            limit = limit.zip(usage.capacity).map(|(a, b)| a + b);
        }
        self.figures.l2_peak_bytes = self.figures.l2_peak_bytes.max(used);
        self.figures.l2_limit_bytes = limit.filter(|l| *l > 0);
    }

    /// Waits for what is in flight, takes the counts, and shuts everything down.
    async fn close(&mut self) -> Result<()> {
        let manager = &self.stack.manager;
        manager.flush(self.stack.shutdown_timeout).await.context("wait for stores in flight")?;
        let usage = manager.usage();
        let f = &mut self.figures;
        f.stored_bytes += usage.stats.committed_bytes;
        f.evicted_blocks += usage.stats.evicted;
        f.declined_stores += usage.stats.store_gave_up;
        f.faults.extend(usage.faults.iter().map(|f| format!("{} policy: {}", f.part.name(), f.panic)));
        f.pins_left += (usage.pinned + usage.reserved) as u64 + usage.staging.buffers;
        for adapter in &usage.adapters {
            let checks = &adapter.checks;
            f.unverified_loads +=
                checks.unverified_off + checks.unverified_no_digest + checks.unverified_device;
            let refused = |(answer, n): &(&str, u64)| *n > 0 && !["ok", "present"].contains(answer);
            for (answer, n) in adapter.meter.put.outcomes().filter(refused) {
                *f.refusals.entry(answer).or_default() += n;
            }
        }
        self.stack.close().await
    }

    fn finish(self, took: Duration) -> Figures {
        let mut f = self.figures;
        let ratio = |n: u64| n as f64 / (f.blocks.max(1)) as f64;
        f.block_hit_ratio = ratio(f.l1_hit_blocks + f.l2_hit_blocks);
        f.prefix_hit_ratio = ratio(self.prefix_blocks);
        f.l1_hit_ratio = ratio(f.l1_hit_blocks);
        f.l2_hit_ratio = ratio(f.l2_hit_blocks);
        f.lookup_us = Some(self.lookup.percentiles());
        f.load_us = Some(self.load.percentiles());
        f.store_us = Some(self.store.percentiles());
        f.seconds = took.as_secs_f64();
        f.throughput_gbps = report::gbps(f.stored_bytes + f.loaded_bytes, took);
        f
    }
}

fn by_reason(counts: &BTreeMap<&'static str, u64>) -> String {
    counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect::<Vec<_>>().join(", ")
}

fn print(f: &Figures) {
    let percent = |r: f64| format!("{:.2} %", 100.0 * r);
    let mut rows = vec![
        ("requests", f.requests.to_string()),
        ("blocks", f.blocks.to_string()),
        ("block hit ratio", format!("{:.4} ({})", f.block_hit_ratio, percent(f.block_hit_ratio))),
        ("prefix hit ratio", format!("{:.4}", f.prefix_hit_ratio)),
        ("  of L1", format!("{:.4} ({} blocks)", f.l1_hit_ratio, f.l1_hit_blocks)),
        ("  of L2", format!("{:.4} ({} blocks)", f.l2_hit_ratio, f.l2_hit_blocks)),
        ("stored", report::bytes(f.stored_bytes)),
        ("loaded", report::bytes(f.loaded_bytes)),
        ("throughput", format!("{:.2} GB/s over {:.1} s", f.throughput_gbps, f.seconds)),
    ];
    let times = [("lookup", f.lookup_us), ("load", f.load_us), ("store", f.store_us)];
    rows.extend(times.into_iter().filter_map(|(name, p)| Some((name, p?.to_string()))));
    rows.push(("evicted from L1", format!("{} blocks by {}", f.evicted_blocks, f.policy)));
    rows.push(("declined stores", f.declined_stores.to_string()));
    if f.declined_by_l1 > 0 {
        rows.push(("  by L1", f.declined_by_l1.to_string()));
    }
    if !f.refusals.is_empty() {
        rows.push(("  L2 answered", by_reason(&f.refusals)));
    }
    if f.not_admitted_blocks > 0 {
        rows.push(("not admitted", format!("{} blocks by {}", f.not_admitted_blocks, f.admission)));
    }
    rows.push(("failed loads", f.failed_loads.to_string()));
    if !f.lost_between.is_empty() {
        rows.push(("found and not loaded", by_reason(&f.lost_between)));
    }
    if f.unverified_loads > 0 {
        rows.push(("unverified loads", f.unverified_loads.to_string()));
    }
    if f.l2_peak_bytes > 0 {
        let limit = f.l2_limit_bytes.map_or("no limit".into(), report::bytes);
        rows.push(("L2 peak", format!("{} of {limit}", report::bytes(f.l2_peak_bytes))));
    }
    if let Some(n) = f.l2_hit_blocks_after_restart {
        rows.push(("L2 hits after restart", n.to_string()));
    }
    rows.push(("wrong bytes", f.wrong_bytes.to_string()));
    rows.push(("pins left", f.pins_left.to_string()));
    rows.extend(f.faults.iter().map(|fault| ("out of service", fault.clone())));
    report::table(&rows);
}
