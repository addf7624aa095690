//! What is wrong with settings, found before anything is changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kvstrata_core::{Error, KeyScope, KvRank, Result};

use crate::registry::Registry;
use crate::settings::{HugePages, Settings};
use crate::size::ByteSize;
use crate::warning::Warning;

const OP: &str = "check settings";

/// The machine that settings are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Bytes of memory that the process may have at most.
    pub memory: u64,
}

impl Machine {
    /// This one; a control group's limit counts.
    pub fn here() -> Self {
        Self { memory: kvstrata_mem::machine_memory() }
    }
}

/// An error about one field; what reports it adds where the field was given.
fn wrong(field: &'static str, message: impl Into<String>) -> Error {
    Error::invalid(OP, message).with("field", field)
}

/// Checks everything that can be checked without changing anything: ranges, names, paths, and combinations. The
/// warnings are the adapters'.
///
/// # Errors
/// `Invalid` (`Unsupported` for what is not built in this version) with the field and what would be accepted.
pub(crate) fn check(settings: &Settings, machine: &Machine, registry: &Registry) -> Result<Vec<Warning>> {
    numbers(settings)?;
    memory(settings, machine)?;
    policies(settings)?;
    let mut warnings = adapters(settings, registry)?;
    warnings.extend(promises(settings));
    combinations(settings)?;
    Ok(warnings)
}

fn numbers(s: &Settings) -> Result<()> {
    if s.chunk_size == 0 {
        return Err(wrong("chunk_size", "a chunk has at least one token"));
    }
    let d = &s.deadlines;
    for (field, span) in [
        ("deadlines.load_timeout", d.load_timeout),
        ("deadlines.store_timeout", d.store_timeout),
        ("deadlines.shutdown_timeout", d.shutdown_timeout),
    ] {
        if span == Duration::ZERO {
            return Err(wrong(field, "a time limit is above 0: nothing ends at once").with("value", "0s"));
        }
    }
    if s.store.retries == u32::MAX {
        return Err(wrong("store.retries", "a store is not tried for ever"));
    }
    if s.store.backoff > s.store.backoff_max {
        let e = wrong("store.backoff", "the first wait is at most the longest, store.backoff_max");
        return Err(e
            .with("backoff", crate::size::span::text(s.store.backoff))
            .with("backoff_max", crate::size::span::text(s.store.backoff_max)));
    }
    if s.local_disk.num_workers == Some(0) {
        return Err(wrong("local_disk.num_workers", "at least one thread reads and writes"));
    }
    Ok(())
}

fn memory(s: &Settings, machine: &Machine) -> Result<()> {
    let l1 = &s.l1;
    let align = l1.align.0;
    if !align.is_power_of_two() || align > 4096 {
        let e = wrong(
            "l1.align",
            "an alignment is a power of two and at most 4096, which every buffer has anyway",
        );
        return Err(e.with("value", align));
    }
    for (field, size) in [("l1.size", l1.size), ("l1.staging_size", l1.staging())] {
        if size.0 < 4096 {
            let e = wrong(field, "at least one unit of 4096 bytes is expected");
            return Err(e.with("value", size));
        }
        if size.0 > machine.memory {
            let e = wrong(field, "that is more than this machine's memory");
            return Err(e.with("value", size).with("machine", in_gib(machine.memory)));
        }
    }
    if l1.size.0.saturating_add(l1.staging().0) > machine.memory {
        let e = wrong("l1.size", "l1.size and l1.staging_size together are more than this machine's memory");
        return Err(e
            .with("size", l1.size)
            .with("staging_size", l1.staging())
            .with("machine", in_gib(machine.memory)));
    }
    if let Some(name) = &l1.shm_name {
        let plain = name.strip_prefix('/').unwrap_or(name);
        if plain.is_empty() || plain.contains('/') || plain.len() > 250 || matches!(plain, "." | "..") {
            let m = "a shared-memory name has 1 to 250 bytes and no `/` but perhaps a leading one";
            return Err(wrong("l1.shm_name", m).with("value", name));
        }
        if l1.hugepages == HugePages::Explicit {
            let m = "POSIX shared memory has no explicit huge pages: leave out l1.shm_name, or choose transparent";
            return Err(wrong("l1.hugepages", m).with("l1.shm_name", name));
        }
    }
    Ok(())
}

fn in_gib(bytes: u64) -> String {
    format!("{:.1}GiB", ByteSize(bytes).gib())
}

fn policies(s: &Settings) -> Result<()> {
    // The policies' own messages list those there are; those of `evict` say the nearest, too.
    if let Err(e) = kvstrata_evict::by_name(&s.eviction.policy) {
        return Err(misplaced("eviction.policy", &s.eviction.policy, e.to_string()));
    }
    if let Err(e) = kvstrata_evict::admission_by_name(&s.admission) {
        return Err(misplaced("admission", &s.admission, e.to_string()));
    }
    let near = |e: &dyn std::fmt::Display, name: &str, known: &[&str]| {
        let near = crate::names::nearest(&name.to_lowercase(), known.iter().map(|k| k.to_lowercase()));
        format!("{e}{}", near.map(|n| format!("; the nearest is {n}")).unwrap_or_default())
    };
    if let Err(e) = kvstrata_policy::store_by_name(&s.store.policy) {
        return Err(misplaced("store.policy", &s.store.policy, near(&e, &s.store.policy, e.known)));
    }
    if let Err(e) = kvstrata_policy::prefetch_by_name(&s.prefetch.policy) {
        return Err(misplaced("prefetch.policy", &s.prefetch.policy, near(&e, &s.prefetch.policy, e.known)));
    }
    quotas(s)
}

/// A policy's name that is none for this field: perhaps it is one for another.
fn misplaced(field: &'static str, name: &str, message: String) -> Error {
    let there = [
        ("eviction.policy", "an eviction policy", kvstrata_evict::by_name(name).is_ok()),
        ("admission", "an admission rule", kvstrata_evict::admission_by_name(name).is_ok()),
        ("store.policy", "a store policy", kvstrata_policy::store_by_name(name).is_ok()),
        ("prefetch.policy", "a prefetch policy", kvstrata_policy::prefetch_by_name(name).is_ok()),
    ];
    match there.iter().find(|(_, _, is)| *is) {
        Some((there, what, _)) => wrong(field, format!("{message}; {name} is {what}: it goes to {there}")),
        None => wrong(field, message),
    }
}

fn quotas(s: &Settings) -> Result<()> {
    let e = &s.eviction;
    let given = match (e.default_quota, e.quotas.is_empty()) {
        (None, true) => return Ok(()),
        (Some(_), _) => "eviction.default_quota",
        (None, false) => "eviction.quotas",
    };
    if kvstrata_evict::by_name(&e.policy).is_ok_and(|policy| policy.quotas().is_none()) {
        let m = "this eviction policy keeps no quotas: choose IsolatedLRU (eviction.policy), or leave the quotas out";
        return Err(wrong(given, m).with("eviction.policy", &e.policy));
    }
    let mut salts = std::collections::BTreeSet::new();
    for quota in &e.quotas {
        if KeyScope::new("model", KvRank::single(), 0, &quota.salt).is_err() {
            let m = "no key has this salt: it has at most 128 characters, and no '@', '/', '\\' and no NUL";
            return Err(wrong("eviction.quotas", m).with("salt", format_args!("{:?}", quota.salt)));
        }
        if !salts.insert(&quota.salt) {
            return Err(wrong("eviction.quotas", "a tenant has one quota").with("salt", &quota.salt));
        }
    }
    let all = e.quotas.iter().map(|q| ("eviction.quotas", q.size));
    for (field, size) in all.chain(e.default_quota.map(|size| ("eviction.default_quota", size))) {
        if size > s.l1.size {
            let e = wrong(field, "a quota of more than L1 holds can never be reached").with("quota", size);
            return Err(e.with("eviction.policy", &s.eviction.policy).with("l1.size", s.l1.size));
        }
    }
    Ok(())
}

/// Quotas that cannot all be kept at once.
fn promises(s: &Settings) -> Option<Warning> {
    let all = s.eviction.quotas.iter().fold(0u64, |sum, quota| sum.saturating_add(quota.size.0));
    (all > s.l1.size.0).then(|| {
        let m = format!(
            "together {}, more than L1 holds ({}): tenants within their quotas take from each other",
            ByteSize(all),
            s.l1.size
        );
        Warning::new("eviction.quotas", "settings", m)
    })
}

fn adapters(s: &Settings, registry: &Registry) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let mut names: BTreeMap<String, ()> = BTreeMap::new();
    let mut paths: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (name, adapter) in s.adapters() {
        let field = if name == "local_disk" && adapter.kind() == "fs" && s.local_disk.path.is_some() {
            "local_disk.path"
        } else {
            "l2.adapters"
        };
        warnings.extend(registry.check(&name, &adapter).map_err(|e| e.with("field", field))?);
        if names.insert(name.clone(), ()).is_some() {
            return Err(wrong(field, "two adapters have one name").with("name", name));
        }
        for path in registry.paths(&adapter)? {
            let real =
                crate::paths::resolve(&path).map_err(|e| e.with("adapter", &name).with("field", field))?;
            if let Some(other) = paths.insert(real.clone(), name.clone()) {
                if other == name {
                    let e = wrong(field, "two paths are one directory");
                    return Err(e.with("adapter", name).with("path", real.display()));
                }
                let e = wrong(field, "two adapters have one path");
                return Err(e.with("adapters", format!("{other}, {name}")).with("path", real.display()));
            }
        }
    }
    Ok(warnings)
}

fn combinations(s: &Settings) -> Result<()> {
    if !s.adapters().is_empty() {
        return Ok(());
    }
    if s.staging_only() {
        let m = "with local_cpu=false nothing stays in L1, and there is no adapter to keep it: add one (l2.adapters)";
        return Err(wrong("local_cpu", m));
    }
    if kvstrata_policy::store_by_name(&s.store.policy).is_ok_and(|p| p.name() == "skip_l1") {
        let m = "with skip_l1 nothing stays in L1, and there is no adapter to keep it: add one (l2.adapters)";
        return Err(wrong("store.policy", m));
    }
    Ok(())
}
