//! The manager and host memory.

use std::fmt;

use kvstrata_manager::{ManagerUsage, Part};
use kvstrata_mem::Usage;

use crate::page::{Labels, Page};

pub(crate) fn write(page: &mut Page<'_>, usage: &ManagerUsage) -> fmt::Result {
    memory(page, usage)?;
    keys(page, usage)?;
    theirs(page, usage)?;
    page.gauge(
        "kvstrata_out_of_service",
        "1 for what a faulty policy took out of service: eviction, admission, store, prefetch",
        [Part::Eviction, Part::Admission, Part::Store, Part::Prefetch].map(|part| {
            let out = usage.faults.iter().any(|fault| fault.part == part);
            (vec![("part", part.name())], f64::from(u8::from(out)))
        }),
    )
}

fn memory(page: &mut Page<'_>, usage: &ManagerUsage) -> fmt::Result {
    let budgets = [("cache", &usage.cache), ("staging", &usage.staging)];
    let of = |value: fn(&Usage) -> u64| {
        budgets.map(|(name, budget)| (vec![("budget", name)], value(budget) as f64))
    };
    page.gauge("kvstrata_l1_used_bytes", "Host memory handed out, by budget", of(|b| b.used))?;
    page.gauge("kvstrata_l1_limit_bytes", "Host memory that may be handed out, by budget", of(|b| b.limit))?;
    page.gauge("kvstrata_l1_peak_bytes", "The most that was handed out at once, by budget", of(|b| b.peak))?;
    page.gauge(
        "kvstrata_l1_chunks",
        "Chunks: found by lookups, those of them that readers or stores hold, reserved and not committed, being stored in L2",
        [
            ("resident", usage.resident),
            ("pinned", usage.pinned),
            ("reserved", usage.reserved),
            ("storing", usage.storing),
        ]
        .map(|(state, n)| (vec![("state", state)], n as f64)),
    )
}

fn keys(page: &mut Page<'_>, usage: &ManagerUsage) -> fmt::Result {
    let s = &usage.stats;
    fn by<const N: usize>(
        label: &'static str,
        of: [(&'static str, u64); N],
    ) -> impl Iterator<Item = (Labels<'static>, u64)> {
        of.into_iter().map(move |(value, n)| (vec![(label, value)], n))
    }
    page.counter(
        "kvstrata_lookups",
        "Keys looked up, by where they were found",
        by("result", [("l1", s.l1_hits), ("l2", s.l2_hits), ("miss", s.misses)]),
    )?;
    page.counter(
        "kvstrata_commits",
        "Reservations by how they ended",
        by(
            "result",
            [
                ("committed", s.commits.saturating_sub(s.duplicates)),
                ("duplicate", s.duplicates),
                ("aborted", s.aborts),
            ],
        ),
    )?;
    page.counter(
        "kvstrata_declined",
        "Keys that L1 did not take: no room, or kept out by the admission rule with no L2 to go to",
        by("reason", [("no_space", s.declined), ("not_admitted", s.not_admitted)]),
    )?;
    page.counter(
        "kvstrata_l2_stores",
        "Keys by what became of their store in L2: taken, there already, given up, not offered because of an open breaker, \
         gone from L1 with no adapter having them, perhaps still there though deleted",
        by("result", [
            ("written", s.stored),
            ("present", s.stored_present),
            ("gave_up", s.store_gave_up),
            ("skipped", s.store_skipped),
            ("lost", s.lost),
            ("undo_failed", s.undo_failures),
        ]),
    )?;
    page.counter(
        "kvstrata_l2_store_failures",
        "Attempts to store a key that failed",
        [(vec![], s.store_failures)],
    )?;
    page.counter("kvstrata_l2_store_retries", "Stores that were tried again", [(vec![], s.store_retries)])?;
    page.counter(
        "kvstrata_l2_loads",
        "Keys by what became of their load from L2",
        by(
            "result",
            [
                ("loaded", s.loaded),
                ("failed", s.load_failures),
                ("timed_out", s.load_timeouts),
                ("no_space", s.load_no_space),
                ("miss", s.load_misses),
            ],
        ),
    )?;
    page.counter(
        "kvstrata_bytes",
        "Payload bytes committed to L1, evicted from it, stored in L2 and loaded from there",
        by(
            "what",
            [
                ("committed", s.committed_bytes),
                ("evicted", s.evicted_bytes),
                ("stored", s.stored_bytes),
                ("loaded", s.loaded_bytes),
            ],
        ),
    )?;
    page.counter("kvstrata_hook_panics", "Completion hooks that panicked", [(vec![], s.hook_panics)])
}

/// What LMCache's dashboards ask for.
fn theirs(page: &mut Page<'_>, usage: &ManagerUsage) -> fmt::Result {
    let s = &usage.stats;
    let l1: Labels<'_> = vec![("backend", "dram"), ("l1_tag", "_default")];
    let tag: Labels<'_> = vec![("l1_tag", "_default")];
    let used = (usage.cache.used + usage.staging.used) as f64;
    let limit = (usage.cache.limit + usage.staging.limit) as f64;
    page.gauge("lmcache_mp_l1_memory_usage_bytes", "Host memory handed out", [(l1.clone(), used)])?;
    let ratio = if limit > 0.0 { used / limit } else { 0.0 };
    page.gauge(
        "lmcache_mp_l1_usage_ratio",
        "Host memory handed out, of what there is",
        [(l1.clone(), ratio)],
    )?;
    let staging = usage.staging.used as f64;
    page.gauge("lmcache_mp_l1_staging_bytes", "Host memory of chunks on their way from L2", [(l1, staging)])?;
    page.gauge(
        "lmcache_mp_inflight_load_memory_usage_bytes",
        "Host memory of chunks on their way from L2",
        [(vec![], staging)],
    )?;
    page.gauge(
        "lmcache_mp_num_inflight_l2_stores",
        "Keys that are being stored in L2 or wait for a retry",
        [(vec![], usage.storing as f64)],
    )?;
    let counters: [(&str, &str, Labels<'_>, u64); 7] = [
        ("l1_read_chunks", "Chunks handed to readers", tag.clone(), s.l1_hits + s.loaded),
        ("l1_write_chunks", "Chunks committed to L1", tag.clone(), s.commits),
        ("l1_evicted_chunks", "Chunks evicted from L1 for room", tag, s.evicted),
        ("l1_allocation_failure", "Keys that were refused room in L1", vec![], s.declined + s.load_no_space),
        (
            "l2_store_completed_objects_chunks",
            "Chunks that an adapter took or had",
            vec![],
            s.stored + s.stored_present,
        ),
        ("l2_prefetch_load_completed_chunks", "Chunks loaded from L2", vec![], s.loaded),
        ("l2_prefetch_failure", "Loads from L2 that failed", vec![], s.load_failures + s.load_timeouts),
    ];
    for (name, help, labels, value) in counters {
        page.counter(&format!("lmcache_mp_{name}"), help, [(labels, value)])?;
    }
    Ok(())
}
