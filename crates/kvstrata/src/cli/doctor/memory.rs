//! The machine, and the memory of L1 on it.

use std::fs;
use std::path::Path;

use kvstrata_config::{HugePages, Settings};
use kvstrata_core::Result;
use kvstrata_io::{Disk, OsDisk, OsOptions};
use kvstrata_mem::{Fallback, MemfdRegion, MmapRegion, RegionOptions};
use serde::Serialize;

use super::{Findings, State};
use crate::cli::report::bytes;

/// Explicit huge pages have this size.
const HUGE: u64 = 2 << 20;

/// What the machine has.
#[derive(Serialize, Debug)]
pub(super) struct Machine {
    cores: usize,
    /// What this process may have at most; a control group's limit counts.
    pub(super) memory_bytes: u64,
    /// What can be had now without swapping.
    pub(super) available_bytes: Option<u64>,
    free_huge_pages_2m: Option<u64>,
    transparent_huge_pages: Option<String>,
    /// Nodes with memory, as the kernel lists them.
    numa_nodes: Option<String>,
    /// The limit on locked memory in bytes; none is no limit.
    memlock_bytes: Option<u64>,
    shm_available_bytes: Option<u64>,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let meminfo = read("/proc/meminfo").unwrap_or_default();
        let limits = read("/proc/self/limits").unwrap_or_default();
        let setting = read("/sys/kernel/mm/transparent_hugepage/enabled");
        Self {
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            memory_bytes: kvstrata_mem::machine_memory(),
            available_bytes: kib(&meminfo, "MemAvailable:"),
            free_huge_pages_2m: read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
                .and_then(|n| n.parse().ok()),
            transparent_huge_pages: setting.and_then(|s| chosen(&s).map(str::to_owned)),
            numa_nodes: read("/sys/devices/system/node/has_memory"),
            memlock_bytes: soft_limit(&limits, "Max locked memory"),
            shm_available_bytes: OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })
                .and_then(|disk| disk.space(Path::new("/dev/shm")))
                .ok()
                .map(|space| space.available),
        }
    }
}

/// A line of `/proc/meminfo`, in bytes.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The chosen word of `always [madvise] never`.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// A soft limit of `/proc/self/limits`; `None` for unlimited, too.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(super) fn examine(settings: &Settings, machine: &Machine, findings: &mut Findings) {
    findings.ok("cpu", format!("{} cores", machine.cores));
    let l1 = &settings.l1;
    let want = l1.size.0.saturating_add(l1.staging().0);
    let asks = format!("L1 takes up to {} with its staging part", bytes(want));
    match machine.available_bytes {
        Some(available) if want > available => findings.add(
            "memory",
            State::Problem,
            format!("{asks}, and {} of {} are available", bytes(available), bytes(machine.memory_bytes)),
            "lower l1.size, or make room",
        ),
        Some(available) => findings.ok(
            "memory",
            format!("{} of {} available; {asks}", bytes(available), bytes(machine.memory_bytes)),
        ),
        None => findings.ok("memory", format!("{}; {asks}", bytes(machine.memory_bytes))),
    }
    let tried = try_out(settings, want);
    huge_pages(settings, machine, &tried, want, findings);
    numa(settings, machine, &tried, findings);
    lock(settings, machine, want, findings);
    shared(settings, machine, want, findings);
    if let Err(e) = &tried {
        findings.add("L1 memory", State::Problem, format!("it cannot be had: {e}"), "");
    }
}

/// Maps all of L1 as it would be, without filling it: what the kernel refuses, it refuses now.
fn try_out(settings: &Settings, want: u64) -> Result<Vec<Fallback>> {
    let l1 = &settings.l1;
    let options = RegionOptions {
        huge_pages: match l1.hugepages {
            HugePages::None => kvstrata_mem::HugePages::None,
            HugePages::Transparent => kvstrata_mem::HugePages::Transparent,
            HugePages::Explicit => kvstrata_mem::HugePages::Explicit,
        },
        prefault: false,
        numa_node: l1.numa,
        lock: l1.mlock,
    };
    let len = usize::try_from(want.next_multiple_of(HUGE)).unwrap_or(usize::MAX);
    if l1.shm_name.is_some() {
        // A memfd is shared memory of the same kind, and takes no name from anybody.
        return MemfdRegion::new("kvstrata-doctor", len, &options).map(|region| region.fallbacks().to_vec());
    }
    MmapRegion::new(len, &options).map(|region| region.fallbacks().to_vec())
}

fn fallback<'a>(tried: &'a Result<Vec<Fallback>>, option: &str) -> Option<&'a Fallback> {
    tried.iter().flatten().find(|f| f.option == option)
}

fn huge_pages(
    settings: &Settings,
    machine: &Machine,
    tried: &Result<Vec<Fallback>>,
    want: u64,
    findings: &mut Findings,
) {
    const WHAT: &str = "huge pages";
    let setting = machine.transparent_huge_pages.as_deref().unwrap_or("not there");
    let free = machine.free_huge_pages_2m.unwrap_or(0);
    match settings.l1.hugepages {
        HugePages::None => {
            findings
                .off(WHAT, format!("l1.hugepages is none (transparent: {setting}; free of 2 MiB: {free})"));
        }
        HugePages::Transparent => match fallback(tried, "huge_pages") {
            Some(why) => findings.add(
                WHAT,
                State::Fallback,
                format!("ordinary pages: {}", why.reason),
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (shmem_enabled: advise)",
            ),
            None => findings.ok(WHAT, format!("transparent, as the kernel finds them (setting: {setting})")),
        },
        HugePages::Explicit => {
            let need = want.div_ceil(HUGE);
            let why = format!("L1 needs {need} explicit pages of 2 MiB, and {free} are free");
            let advice = format!("raise /proc/sys/vm/nr_hugepages by {}", need.saturating_sub(free));
            if free < need {
                findings.add(WHAT, State::Problem, why, advice);
            } else {
                findings.ok(WHAT, why);
            }
        }
    }
}

fn numa(settings: &Settings, machine: &Machine, tried: &Result<Vec<Fallback>>, findings: &mut Findings) {
    let nodes = machine.numa_nodes.as_deref().unwrap_or("not listed");
    match (settings.l1.numa, fallback(tried, "numa_node")) {
        (None, _) => findings.ok("NUMA", format!("nodes with memory: {nodes}; the kernel chooses")),
        (Some(node), Some(why)) => {
            let why = format!("node {node} is not preferred: {}", why.reason);
            findings.add("NUMA", State::Fallback, why, "");
        }
        (Some(node), None) if tried.is_ok() => {
            findings.ok("NUMA", format!("L1 is on node {node} (nodes with memory: {nodes})"));
        }
        // The error of the trial says it.
        (Some(_), None) => {}
    }
}

fn lock(settings: &Settings, machine: &Machine, want: u64, findings: &mut Findings) {
    let limit = machine.memlock_bytes.map_or("no limit".into(), bytes);
    if settings.l1.mlock {
        findings.ok("locked memory", format!("L1 asks for {} (limit: {limit}; root has none)", bytes(want)));
    } else {
        findings.off("locked memory", format!("l1.mlock is false (limit: {limit})"));
    }
}

fn shared(settings: &Settings, machine: &Machine, want: u64, findings: &mut Findings) {
    const WHAT: &str = "/dev/shm";
    let room = machine.shm_available_bytes;
    let has = room.map_or("it is not there".into(), |n| format!("{} available", bytes(n)));
    match &settings.l1.shm_name {
        None => findings.off(WHAT, format!("l1.shm_name is not set, L1 is private ({has})")),
        Some(name) if room.is_some_and(|room| room >= want) => findings.ok(WHAT, format!("{has} for {name}")),
        Some(name) => findings.add(
            WHAT,
            State::Problem,
            format!("L1 ({name}) takes up to {}, and {has}", bytes(want)),
            "mount -o remount,size=… /dev/shm (--shm-size of a container), or lower l1.size",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(kib("MemTotal: 5 kB\nMemAvailable:   12 kB\n", "MemAvailable:"), Some(12 << 10));
        assert_eq!(kib("MemTotal: 5 kB\n", "MemAvailable:"), None);
        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        let limits =
            "Limit  Soft  Hard  Units\nMax locked memory   8388608   unlimited  bytes\nMax nice  0 0";
        assert_eq!(soft_limit(limits, "Max locked memory"), Some(8 << 20));
        assert_eq!(soft_limit("Max locked memory  unlimited unlimited bytes", "Max locked memory"), None);
    }
}
