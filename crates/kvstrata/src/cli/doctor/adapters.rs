//! What lies under the adapters' paths.

use std::ops::ControlFlow;
use std::path::Path;

use kvstrata_config::AdapterSettings;
use kvstrata_disk::{HEADER_BYTES, Manifest, StoreLayout, Wanted, choose_layout};
use kvstrata_io::{Disk, Mount, OsDisk, OsOptions, Support, probe};
use kvstrata_l2_fs::FsConfig;
use serde_json::Value;

use super::memory::Machine;
use super::{Findings, State};
use crate::cli::report::bytes;
use crate::cli::store_path;

pub(super) fn examine(name: &str, adapter: &AdapterSettings, machine: &Machine, findings: &mut Findings) {
    if adapter.kind() == "gds" {
        return gpus(name, adapter, findings);
    }
    match kvstrata_config::fs_paths(adapter) {
        Ok(Some((sharding, each))) if adapter.kind().starts_with("fs") => {
            let names: Vec<&str> = each.iter().map(|(place, _)| place.name.as_str()).collect();
            if names.len() > 1 {
                findings
                    .ok(format!("{name}: paths"), format!("{} over {}", sharding.name(), names.join(", ")));
            }
            for (place, settings) in &each {
                files(
                    &of_path(name, &place.name, names.len()),
                    Path::new(&place.name),
                    None,
                    settings,
                    findings,
                );
            }
            return;
        }
        // The settings were checked.
        _ => {}
    }
    match adapter.keys().get("base_path").and_then(Value::as_str) {
        Some(path) => files(name, Path::new(path), None, adapter, findings),
        None => in_memory(name, adapter, machine, findings),
    }
}

/// What a path is called, if there are several.
fn of_path(name: &str, path: &str, paths: usize) -> String {
    if paths > 1 { format!("{name} {path}") } else { name.to_owned() }
}

/// Paths for GPU memory, and the way to each.
fn gpus(name: &str, adapter: &AdapterSettings, findings: &mut Findings) {
    let (each, prober) = match kvstrata_config::gds_settings(adapter) {
        Ok(settings) => settings,
        Err(e) => {
            let what = format!("{name}: GPU memory");
            return findings.add(what, State::Problem, e.to_string(), "mend the setting");
        }
    };
    for config in &each {
        let name = of_path(name, &config.gds_path.to_string_lossy(), each.len());
        way(&name, config, &prober, adapter, findings);
    }
}

fn way(
    name: &str,
    config: &kvstrata_l2_gds::GdsConfig,
    prober: &kvstrata_l2_gds::Prober,
    adapter: &AdapterSettings,
    findings: &mut Findings,
) {
    let what = format!("{name}: GPU memory");
    let direct = if config.use_direct_io == Some(false) { Wanted::Off } else { Wanted::Try };
    // Each path's part of the limit is in its own settings.
    let mut own = adapter.keys().clone();
    own.insert("max_capacity_gb".into(), config.max_capacity_gb.into());
    files(name, &config.gds_path, Some(direct), &own.into(), findings);
    let gpus = match kvstrata_l2_gds::cuda() {
        Ok(gpus) => gpus,
        Err(e) if config.allow_host => {
            return findings.add(what, State::Fallback, format!("host memory alone: {e}"), "");
        }
        Err(e) => {
            let advice = "install a driver, or let it work on host memory with allow_host";
            return findings.add(what, State::Problem, e.to_string(), advice);
        }
    };
    let path = std::path::absolute(&config.gds_path).unwrap_or_else(|_| config.gds_path.clone());
    let Some(dir) = path.ancestors().find(|p| p.is_dir()) else { return };
    let file = dir.join(format!("{}gds-{}", kvstrata_io::PROBE_PREFIX, std::process::id()));
    for (gpu, choice) in kvstrata_l2_gds::foresee(config, &*gpus, prober, &file) {
        let what = format!("{name}: memory of GPU {gpu}");
        match choice {
            Ok(choice) => findings.ok(what, choice.to_string()),
            Err(e) => findings.add(what, State::Problem, e.to_string(), "leave gds_way to be chosen"),
        }
    }
}

fn gib(adapter: &AdapterSettings, key: &str) -> u64 {
    // The settings were checked: it is a sane number or not there.
    adapter.keys().get(key).and_then(Value::as_f64).map_or(0, |gb| (gb * f64::from(1 << 30)) as u64)
}

fn in_memory(name: &str, adapter: &AdapterSettings, machine: &Machine, findings: &mut Findings) {
    let (what, size) = (format!("adapter {name}"), gib(adapter, "max_size_gb"));
    let why = format!("keeps up to {} in this process's memory; nothing survives it", bytes(size));
    match machine.available_bytes {
        Some(available) if size > available => {
            let why = format!("{why}, and {} are available", bytes(available));
            findings.add(what, State::Problem, why, "lower max_size_gb");
        }
        _ => findings.ok(what, why),
    }
}

/// A path on a disk. Whether direct I/O is wanted, where the adapter's settings do not say it as `fs` does.
fn files(
    name: &str,
    path: &Path,
    direct: Option<Wanted>,
    adapter: &AdapterSettings,
    findings: &mut Findings,
) {
    let what = |of: &str| format!("{name}: {of}");
    let disk = match OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }) {
        Ok(disk) => disk,
        Err(e) => return findings.add(what("path"), State::Problem, format!("no thread for it: {e}"), ""),
    };
    let store = match look(&disk, path) {
        Ok(store) => store,
        Err(e) => {
            return findings.add(what("path"), State::Problem, format!("{e:#}"), "choose another base_path");
        }
    };
    // What is not there yet is not made here.
    let at = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let Some(at) = at.ancestors().find(|p| p.exists()) else {
        return findings.add(what("path"), State::Problem, format!("{} has no parent", path.display()), "");
    };
    let can = match probe(&disk, at) {
        Ok(can) => can,
        Err(e) => {
            let advice = "make the path writable, make room, or choose another base_path";
            return findings.add(what("path"), State::Problem, e.to_string(), advice);
        }
    };
    let place = if at == path || path.exists() {
        format!("{} on {}, {store}", path.display(), can.space.fs)
    } else {
        format!("{} is not there yet; {} is on {}", path.display(), at.display(), can.space.fs)
    };
    let shared = adapter.keys().get("shared").and_then(Value::as_bool).unwrap_or(false);
    if shared {
        findings.ok(what("path"), format!("{place}; shared with other processes, each with its own limit"));
    } else if can.space.fs.is_shared() {
        let why = format!("{place}; other machines may mount it, and a store has one user");
        findings.add(
            what("path"),
            State::Fallback,
            why,
            "give each machine a directory of its own, or set shared in all of them",
        );
    } else {
        findings.ok(what("path"), place);
    }
    capacity(&disk, &what("capacity"), path, gib(adapter, "max_capacity_gb"), can.space, findings);

    let unset = FsConfig::new(path);
    let layout = layout(&disk, &what("layout"), path, adapter, findings);
    if layout == StoreLayout::Files && Mount::of(at).is_some_and(|mount| mount.has("discard")) {
        let why = "mounted with discard: a full store waits for the device with each file that it removes";
        let advice = "set layout to slab, or mount it without discard and let fstrim run instead";
        findings.add(what("discard"), State::Fallback, why, advice);
    }
    let direct = direct.unwrap_or_else(|| wanted(adapter.keys().get("use_odirect"), unset.direct(layout)));
    let instead = "direct I/O is switched off: through the page cache";
    support(&what("O_DIRECT reads"), direct, &can.direct_read, instead, findings);
    support(&what("O_DIRECT writes"), direct, &can.direct_write, instead, findings);
    engine(&what("io_uring"), adapter, disk.engine().io_uring(), direct, findings);
    let no_atime = wanted(adapter.keys().get("no_atime"), unset.no_atime.0);
    support(
        &what("O_NOATIME"),
        no_atime,
        &can.no_atime,
        "no_atime is false: access times are kept",
        findings,
    );
    let required = |of: &str, support: &Support, findings: &mut Findings| match support {
        Support::Yes => findings.ok(what(of), "works"),
        Support::No(why) => findings.add(what(of), State::Problem, why.clone(), "choose another file system"),
    };
    required("rename without replacing", &can.rename_new, findings);
    required("lock", &can.lock, findings);
    match adapter.keys().get("sync").and_then(Value::as_str).unwrap_or("none") {
        "none" => {
            findings.off(what("sync"), "sync is none: the newest objects may not survive a power failure")
        }
        _ => required("sync of directories", &can.sync_dir, findings),
    }
}

/// What will move the bytes.
fn engine(
    what: &str,
    adapter: &AdapterSettings,
    io_uring: &Support,
    direct: Wanted,
    findings: &mut Findings,
) {
    let asked = adapter.keys().get("io_engine").and_then(Value::as_str).unwrap_or("auto");
    match (asked, io_uring) {
        ("posix", _) => findings.off(what, "io_engine is posix: threads move the bytes"),
        (_, Support::No(why)) => {
            let advice = "let the container use io_uring_setup, or set io_engine to posix";
            findings.add(what, State::Fallback, format!("threads instead: {why}"), advice);
        }
        ("auto", _) if direct == Wanted::Off => {
            findings.off(what, "use_odirect is false: threads copy from and to the page cache");
        }
        _ => findings.ok(what, "works"),
    }
}

/// How objects will lie in files, and why.
fn layout(
    disk: &OsDisk,
    what: &str,
    path: &Path,
    adapter: &AdapterSettings,
    findings: &mut Findings,
) -> StoreLayout {
    let limit = Some(gib(adapter, "max_capacity_gb")).filter(|limit| *limit > 0);
    let stored = Manifest::read(disk, path).ok().flatten().map(|manifest| manifest.layout());
    let shared = adapter.keys().get("shared").and_then(Value::as_bool).unwrap_or(false);
    let asked = match adapter.keys().get("layout").and_then(Value::as_str) {
        _ if shared => Some(StoreLayout::Files),
        Some("slab") => Some(StoreLayout::Slab),
        Some("files") => Some(StoreLayout::Files),
        _ => None,
    };
    if let (Some(stored), Some(asked)) = (stored, asked)
        && stored != asked
    {
        let why = format!(
            "the store that is there is {}, and {} asks for {}",
            stored.name(),
            if shared { "shared" } else { "layout" },
            asked.name()
        );
        findings.add(what, State::Problem, why, "set layout to auto, or choose another base_path");
        return stored;
    }
    let (layout, why) = match (stored, asked) {
        (Some(stored), _) => (stored, "the store that is there keeps its layout".into()),
        (None, Some(asked)) => (asked, format!("set by {}", if shared { "shared" } else { "layout" })),
        (None, None) => match choose_layout(disk, path, limit) {
            Ok(chosen) => chosen,
            Err(e) => (StoreLayout::Files, e.to_string()),
        },
    };
    findings.ok(what, format!("{}: {why}", layout.name()));
    layout
}

/// What is at the path already.
fn look(disk: &OsDisk, path: &Path) -> anyhow::Result<String> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok("nothing there yet".into()),
        entries => entries?.count(),
    };
    if entries == 0 {
        return Ok("empty".into());
    }
    match Manifest::read(disk, path)? {
        Some(manifest) => {
            drop(store_path::lock(disk, path)?);
            let n = manifest.namespaces.len();
            Ok(format!("a store of {n} described model{}", if n == 1 { "" } else { "s" }))
        }
        // Foreign files do no harm, but another program's cache is not to be mixed with ours.
        None => match store_path::foreign(path)? {
            Some(what) => anyhow::bail!("{}: {what}", path.display()),
            None => Ok("not a store yet, with files of others".into()),
        },
    }
}

fn capacity(
    disk: &OsDisk,
    what: &str,
    path: &Path,
    limit: u64,
    space: kvstrata_io::Space,
    findings: &mut Findings,
) {
    let room = format!("{} of {} available", bytes(space.available), bytes(space.total));
    if space.total == 0 {
        return findings.ok(what, "the file system has no size of its own");
    }
    if limit == 0 {
        let why = format!("no limit: stores go on until the file system is full ({room})");
        return findings.add(what, State::Ok, why, "set max_capacity_gb");
    }
    // What the store holds already is part of the limit, and no longer available. Only looked at where it matters.
    let mut held = 0;
    if limit > space.available {
        // No store yet holds nothing.
        match Manifest::read(disk, path).ok().flatten().map(|manifest| manifest.layout()) {
            Some(StoreLayout::Slab) => held = set_aside(disk, &path.join(kvstrata_disk::names::SLAB)),
            _ => {
                let add = |shown: Result<(_, kvstrata_l2::Found), _>| {
                    held += shown.map_or(0, |(_, found)| (HEADER_BYTES + found.len).next_multiple_of(4096));
                    ControlFlow::Continue(())
                };
                drop(kvstrata_disk::list(disk, path, add));
            }
        }
    }
    if limit > space.available + held {
        let why = format!("the limit is {}, and there are {room}", bytes(limit));
        findings.add(what, State::Problem, why, "lower max_capacity_gb, or make room");
    } else {
        findings.ok(what, format!("{}, {room}", bytes(limit)));
    }
}

/// What the files of a store of segments take, whatever is in them.
fn set_aside(disk: &OsDisk, dir: &Path) -> u64 {
    let entries = disk.list(dir).unwrap_or_default();
    entries.iter().filter_map(|e| Some(disk.metadata(&dir.join(&e.name)).ok()?.allocated)).sum()
}

/// `false`, `true` (where it works) or `"require"`.
fn wanted(value: Option<&Value>, unset: Wanted) -> Wanted {
    match value {
        Some(Value::Bool(false)) => Wanted::Off,
        Some(Value::Bool(true)) => Wanted::Try,
        Some(Value::String(_)) => Wanted::Require,
        _ => unset,
    }
}

fn support(what: &str, wanted: Wanted, support: &Support, off: &str, findings: &mut Findings) {
    match (wanted, support) {
        (Wanted::Off, support) => {
            let here = if support.is_yes() { "it would work here" } else { "it would not work here" };
            findings.off(what, format!("{off} ({here})"));
        }
        (_, Support::Yes) => findings.ok(what, "works"),
        (Wanted::Try, Support::No(why)) => {
            findings.add(
                what,
                State::Fallback,
                format!("done without: {why}"),
                "another file system, or leave it",
            );
        }
        (Wanted::Require, Support::No(why)) => {
            findings.add(what, State::Problem, format!("required, and refused: {why}"), "do not require it");
        }
    }
}
