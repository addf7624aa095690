//! A small dose of `cargo xtask rot`.

use kvstrata_tests::report::Progress;
use kvstrata_tests::rot::{Options, Rot, run};

#[test]
fn four_hundred_damaged_files_are_found_for_a_reason_and_healed() {
    found_and_healed(1);
}

#[test]
fn on_three_paths_too() {
    found_and_healed(3);
}

fn found_and_healed(paths: usize) {
    let report = run(&Options { faults: 400, seed: 1, paths }, &mut Progress::silent());
    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.wrong, 0);
    assert!(report.verified > 0, "{report:?}");
    for rot in Rot::ALL {
        let happened = report.classes.get(&rot).is_some_and(|count| count.faults > 0);
        // Root reads what nobody may read; the report says so.
        let cannot = rot == Rot::Unreadable && !report.not_run.is_empty();
        assert!(happened || cannot, "{}: {report:?}", rot.name());
    }
    assert!(report.states.iter().all(|n| *n > 0), "{report:?}");
}
