//! The compat way by NVIDIA's own library, over a pretended GPU in host memory: what the adapter does with cuFile's files
//! and handles, on a machine without a GPU. The tests are those of `tests/gpu`.
//!
//! `cargo xtask test-cufile-host` fetches the library and names it by `KV_CUFILE_LIB`; without that the tests are ignored,
//! with `KVSTRATA_REQUIRE_CUFILE` that is a failure. Files go below `KVSTRATA_GPU_DIR`: a folder in memory, where no record
//! of udev is asked for.

#[path = "../common/mod.rs"]
mod common;
#[path = "../gpu/failures.rs"]
mod failures;
#[path = "../gpu/identity.rs"]
mod identity;
#[path = "../gpu/killed.rs"]
mod killed;
#[path = "../common/pretend.rs"]
mod pretend;
#[path = "../gpu/rig.rs"]
mod rig;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_cufile_sys::{BoolParam, Library};
use kvstrata_l2_gds::{GdsWay, Gpus, Prober, Search};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use rig::{Gpu, folder};

type Test = fn(&Gpu) -> Result<(), Failed>;
type Run = Box<dyn FnOnce(&Gpu) -> Result<Completion, Failed> + Send>;

const WAYS: [(&str, GdsWay); 2] = [("bounce", GdsWay::Bounce), ("compat", GdsWay::Compat)];

const TESTS: &[(&str, Test)] = &[
    ("every_size_and_sub_range", |gpu| identity::sizes(gpu, GdsWay::Compat)),
    ("batches_of_one_to_three_hundred_keys", |gpu| identity::batches(gpu, GdsWay::Compat)),
    ("host_and_device_read_the_same_bytes", |gpu| identity::host_and_device(gpu, GdsWay::Compat)),
    ("written_one_way_is_read_by_every_other", identity::ways),
    ("the_choice_is_said", identity::choice),
    ("segments_are_registered_once_each", segments),
    ("trial_files_lie_where_the_store_removes_them", trial_files),
    ("no_space_is_declined_and_loads_go_on", |gpu| failures::no_space(gpu, GdsWay::Compat)),
    ("an_object_that_lost_its_bytes_is_a_miss", |gpu| failures::deleted(gpu, GdsWay::Compat)),
    ("dropped_with_transfers_in_flight", |gpu| failures::dropped(gpu, GdsWay::Compat, 4)),
    ("a_library_that_is_missing_is_a_reason", failures::library),
    ("no_torn_object_after_a_kill", |gpu| killed::no_torn_object(gpu, GdsWay::Compat)),
];

/// The pretended GPU, with a library that takes host memory.
fn gpus() -> Result<Arc<dyn Gpus>> {
    let library = rig::library().ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, "open libcufile", "KV_CUFILE_LIB does not name a libcufile")
    })?;
    let unavailable = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Unavailable, "let cuFile take host memory", e.to_string())
    };
    let search = Search { explicit: Some(library), ..Search::default() };
    // SAFETY: whoever runs this names NVIDIA's library.
    let library = unsafe { Library::open(&search) }.map_err(|e| unavailable(&e))?;
    library.set_bool(BoolParam::ALLOW_SYSTEM_MEMORY, true).map_err(|e| unavailable(&e))?;
    Ok(pretend::Pretend::new())
}

/// The test itself is the probe.
fn prober(library: Option<PathBuf>) -> Prober {
    Prober {
        program: std::env::current_exe().ok(),
        args: vec!["gds-probe".into()],
        ..common::prober(library)
    }
}

/// A store of segments: its files stay open and registered, and are read and written by one handle.
fn segments(gpu: &Gpu) -> Result<(), Failed> {
    let dir = folder();
    let limit = |c: &mut kvstrata_l2_gds::GdsConfig| c.max_capacity_gb = 0.125;
    let rig = gpu.store(dir.path(), GdsWay::Compat, limit)?;
    if rig.gds.store().layout() != kvstrata_disk::StoreLayout::Slab {
        return Err("a store with a limit is no store of segments".into());
    }
    for n in 0..8 {
        rig.write(n, (1 << 20) + n as usize * 1000)?;
    }
    for n in 0..8 {
        rig.check(n, (1 << 20) + n as usize * 1000)?;
        rig.check_host(n, (1 << 20) + n as usize * 1000)?;
    }
    let (files, regions) = rig.gds.registered();
    if (files, regions) != (1, 1) {
        return Err(format!("{files} files and {regions} regions are registered").into());
    }
    rig.close()
}

/// In both layouts; nothing of them is left.
fn trial_files(gpu: &Gpu) -> Result<(), Failed> {
    for limit in [0.0, 0.125] {
        let dir = folder();
        let rig = gpu.store(dir.path(), GdsWay::Compat, |c| c.max_capacity_gb = limit)?;
        let left = std::fs::read_dir(rig.gds.store().tmp())?.collect::<Result<Vec<_>, _>>()?;
        let left = left.iter().filter(|e| kvstrata_disk::names::is_temp_name(&e.file_name())).count();
        if left > 0 {
            return Err(format!("{left} files are left with a limit of {limit} GiB").into());
        }
        rig.close()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut told = std::env::args_os().skip(1);
    if told.next().is_some_and(|first| first == "gds-probe") {
        return kvstrata_l2_gds::child(told, gpus(), &mut std::io::stdout());
    }
    if let Some(code) = killed::child().or_else(failures::child) {
        return code;
    }
    let mut args = Arguments::from_args();
    // The library's driver and its settings are the process's.
    args.test_threads = Some(1);
    let required = std::env::var_os("KVSTRATA_REQUIRE_CUFILE").is_some();
    let gpu = if args.list { Err("only listed".to_owned()) } else { Gpu::open() };
    let there = gpu.and_then(|gpu| gpu.has(GdsWay::Compat).map(|()| gpu));
    let gpu: &'static Result<Gpu, String> = Box::leak(Box::new(there));
    let trial = |name: &str, run: Run| {
        Trial::ignorable_test(name, move || match gpu {
            Ok(gpu) => run(gpu),
            Err(why) if required => Err(why.clone().into()),
            Err(why) => Ok(Completion::ignored_with(why.clone())),
        })
    };
    let mut all: Vec<_> = (TESTS.iter())
        .map(|&(name, run)| trial(name, Box::new(move |gpu| run(gpu).map(|()| Completion::Completed))))
        .collect();
    for (name, way) in WAYS {
        let run = move |_: &Gpu| match failures::can_mount() {
            Ok(()) => failures::mounted(way),
            Err(why) => Ok(Completion::ignored_with(why)),
        };
        all.push(trial(&format!("a_full_and_a_read_only_device/{name}"), Box::new(run)));
    }
    libtest_mimic::run(&args, all).exit_code()
}
