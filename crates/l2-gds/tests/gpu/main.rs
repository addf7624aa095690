//! The adapter on a real GPU, by each way that is there. Without a GPU every test is ignored, with the reason; with
//! `KVSTRATA_REQUIRE_GPU` set that is a failure. A way that a machine does not have is ignored with its own reason.
//!
//! Files go below `KVSTRATA_GPU_DIR`, or else below the current folder. `KV_CUFILE_LIB` names the
//! libcufile to be tried. `gds-bench [--host] [DIR]` measures instead.

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod figures;
mod identity;
mod killed;
mod leaks;
mod model;
mod order;
#[path = "../common/pretend.rs"]
#[expect(dead_code, reason = "its memory alone is used here")]
mod pretend;
mod rig;
mod suite;
#[path = "../common/via.rs"]
mod via;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_l2_gds::{GdsWay, Gpus, Prober};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use rig::Gpu;

type Test = fn(&Gpu, GdsWay) -> Result<(), Failed>;
type Single = fn(&Gpu) -> Result<(), Failed>;

/// Run by each way.
const TESTS: &[(&str, Test)] = &[
    ("identity::every_size_and_sub_range", identity::sizes),
    ("identity::batches_of_one_to_three_hundred_keys", identity::batches),
    ("identity::host_and_device_read_the_same_bytes", identity::host_and_device),
    ("order::copies_run_behind_the_engines_event_and_signal_one", order::events),
    ("failures::no_space_is_declined_and_loads_go_on", failures::no_space),
    ("failures::an_object_that_lost_its_bytes_is_a_miss", failures::deleted),
    ("failures::dropped_with_transfers_in_flight", |gpu, way| failures::dropped(gpu, way, 20)),
    ("killed::no_torn_object_after_a_kill", killed::no_torn_object),
    ("leaks::ten_thousand_cycles_leave_nothing", leaks::cycles),
];

const WAYS: [(&str, GdsWay); 3] =
    [("bounce", GdsWay::Bounce), ("compat", GdsWay::Compat), ("direct", GdsWay::Direct)];

fn gpus() -> kvstrata_core::Result<Arc<dyn Gpus>> {
    kvstrata_l2_gds::cuda()
}

fn prober(library: Option<PathBuf>) -> Prober {
    common::prober(library)
}

fn ignored(name: String, why: &str) -> Trial {
    let why = why.to_owned();
    Trial::ignorable_test(name, move || Ok(Completion::ignored_with(why)))
}

fn main() -> ExitCode {
    let mut told = std::env::args_os().skip(1);
    let first = told.next();
    if first.as_ref().is_some_and(|first| first == "gds-bench") {
        return figures::main(told);
    }
    if first.is_some_and(|first| first == "gds-probe") {
        return kvstrata_l2_gds::child(told, kvstrata_l2_gds::cuda(), &mut std::io::stdout());
    }
    if let Some(code) = killed::child().or_else(failures::child) {
        return code;
    }
    let mut args = Arguments::from_args();
    // They share one GPU, and some count what the process holds.
    args.test_threads = Some(1);
    let required = std::env::var_os("KVSTRATA_REQUIRE_GPU").is_some();
    let gpu = if args.list { Err("only listed".to_owned()) } else { Gpu::open() };
    let gpu: &'static Result<Gpu, String> = Box::leak(Box::new(gpu));
    let mut all = Vec::new();
    for (name, way) in WAYS {
        let there = gpu.as_ref().map_err(Clone::clone).and_then(|gpu| gpu.has(way));
        for &(test, run) in TESTS {
            let name = format!("{name}/{test}");
            all.push(match (gpu, &there) {
                (Ok(gpu), Ok(())) => Trial::test(name, move || run(gpu, way)),
                (Err(why), _) if required => {
                    let why = why.clone();
                    Trial::test(name, move || Err(Failed::from(why)))
                }
                (_, Err(why)) => ignored(name, why),
                (Err(why), _) => ignored(name, why),
            });
        }
    }
    for (name, way) in [("bounce", GdsWay::Bounce), ("compat", GdsWay::Compat)] {
        let name = format!("{name}/failures::a_full_and_a_read_only_device");
        let there = gpu.as_ref().map_err(Clone::clone).and_then(|gpu| gpu.has(way));
        all.push(match (gpu, there.and_then(|()| failures::can_mount())) {
            (Ok(_), Ok(())) => Trial::ignorable_test(name, move || failures::mounted(way)),
            (Err(why), _) if required => {
                let why = why.clone();
                Trial::test(name, move || Err(Failed::from(why)))
            }
            (_, Err(why)) => ignored(name, &why),
            (Err(why), _) => ignored(name, why),
        });
    }
    let single: &[(&str, Single)] = &[
        ("ways/written_one_way_is_read_by_every_other", identity::ways),
        ("ways/a_library_that_is_missing_is_a_reason", failures::library),
        ("ways/the_choice_is_said", identity::choice),
    ];
    for &(name, run) in single {
        all.push(match gpu {
            Ok(gpu) => Trial::test(name, move || run(gpu)),
            Err(why) if required => {
                let why = why.clone();
                Trial::test(name, move || Err(Failed::from(why)))
            }
            Err(why) => ignored(name.to_owned(), why),
        });
    }
    all.extend(suite::trials(
        gpu.as_ref().ok().map(|gpu| Arc::clone(&gpu.gpus)),
        gpu.as_ref().err().map(String::as_str),
        required,
    ));
    libtest_mimic::run(&args, all).exit_code()
}
