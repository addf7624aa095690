//! The obligations of `Disk` and `IoEngine`, by their numbers, on every disk there is.

mod disk;
mod engine;
mod rig;

use std::path::Path;

use disk::*;
use engine::*;
use kvstrata_io::*;
use libtest_mimic::{Arguments, Trial};
use rig::*;

/// One test on one disk, ignored if there is a reason.
fn add<D: Disk>(
    all: &mut Vec<Trial>,
    name: &str,
    rig: fn() -> Rig<D>,
    ignored: Option<&str>,
    test: impl FnOnce(Rig<D>) + Send + 'static,
) {
    let name = ignored.map_or(name.to_owned(), |why| format!("{name} (not here: {why})"));
    let trial = Trial::test(name, move || {
        test(rig());
        Ok(())
    });
    all.push(trial.with_ignored_flag(ignored.is_some()));
}

/// What holds on every disk. `missing` says why there is none of this kind, `no_direct` why it has no direct transfers.
fn trials<D: Disk>(
    all: &mut Vec<Trial>,
    name: &str,
    rig: fn() -> Rig<D>,
    missing: Option<&str>,
    no_direct: Option<&str>,
) {
    let mut one = |test: &str, ignored: Option<&str>, f: Box<dyn FnOnce(Rig<D>) + Send>| {
        add(all, &format!("{name}::{test}"), rig, missing.or(ignored), f);
    };
    macro_rules! shared {
        ($($test:ident)*) => { $(one(stringify!($test), None, Box::new(|rig| $test(&rig)));)* };
    }
    shared! {
        disk_1_rename_new_never_replaces disk_2_all_bytes_or_an_error disk_3_syncing_works
        disk_4_list_misses_nothing_that_stays files_and_directories_answer_as_documented
        a_lock_is_held_until_the_file_is_dropped a_shared_lock_keeps_out_exclusive_ones_only the_probe_leaves_nothing_behind
        engine_2_each_operation_completes_exactly_once engine_3_transfers_are_whole
        engine_5_a_panic_is_contained_and_counted engine_6_closing_finishes_what_was_accepted
    }
    one(
        "direct_transfers_read_and_write_the_same_bytes",
        no_direct,
        Box::new(|rig| direct_transfers_read_and_write_the_same_bytes(&rig)),
    );
    one(
        "engine_1_dropping_finishes_what_was_submitted",
        None,
        Box::new(engine_1_dropping_finishes_what_was_submitted),
    );
}

/// Panics that a test makes on purpose would fill the output with backtraces.
fn expect_panics_on_purpose() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.ends_with("on purpose")) {
            usual(panic);
        }
    }));
}

fn main() {
    expect_panics_on_purpose();
    let probed = ring();
    let no_ring = probed.disk.engine().io_uring().reason();
    let found = probe(&probed.disk, Path::new(&probed.root)).expect("the temporary directory works");
    let no_direct = found.direct_read.reason().or(found.direct_write.reason());
    let mut all = Vec::new();
    trials(&mut all, "os", threads, None, no_direct);
    trials(&mut all, "os_link", links, None, no_direct);
    trials(&mut all, "os_ring", ring, no_ring, no_direct);
    trials(&mut all, "sim_inline", || sim(SimMode::Inline), None, None);
    trials(&mut all, "sim_stepped", || sim(SimMode::Stepped { seed: 7 }), None, None);
    trials(&mut all, "sim_threads", || sim(SimMode::Threads(1)), None, None);
    add(&mut all, "os::engine_4_loads_go_first", threads, None, engine_4_loads_go_first);
    add(
        &mut all,
        "os_ring::engine_4_loads_go_first",
        narrow_ring,
        no_ring,
        engine_4_loads_go_first_in_a_ring,
    );
    let stepped = || sim(SimMode::Stepped { seed: 7 });
    add(
        &mut all,
        "sim_inline::engine_4_loads_go_first",
        || sim(SimMode::Inline),
        None,
        engine_4_loads_go_first,
    );
    add(&mut all, "sim_stepped::engine_4_loads_go_first", stepped, None, engine_4_loads_go_first);
    add(
        &mut all,
        "sim_threads::engine_4_loads_go_first",
        || sim(SimMode::Threads(1)),
        None,
        engine_4_loads_go_first,
    );
    add(&mut all, "os::engine_1_it_is_left_at_any_time", threads, None, engine_1_it_is_left_at_any_time);
    add(&mut all, "os_ring::engine_1_it_is_left_at_any_time", ring, no_ring, engine_1_it_is_left_at_any_time);
    add(&mut all, "os_ring::registered_files_let_go", ring, no_ring, |rig| registered_files_let_go(&rig));
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}
