//! A small dose of `cargo xtask rot`.

use kvstrata_tests::report::Progress;
use kvstrata_tests::rot::{Options, run};

#[test]
fn four_hundred_damaged_files_are_found_for_a_reason_and_healed() {
    let report = run(&Options { faults: 400, seed: 1 }, &mut Progress::silent());
    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.wrong, 0);
    assert!(report.states.iter().all(|n| *n > 0), "{report:?}");
}
