//! A small dose of `cargo xtask rot --layout slab`.

use kvstrata_tests::report::Progress;
use kvstrata_tests::rot::Options;
use kvstrata_tests::rot::segments::run;

fn rots(paths: usize) {
    let report = run(&Options { faults: 60, seed: 11, paths }, &mut Progress::silent());
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!(report.wrong, 0);
    // It was not for want of anything to find.
    assert!(report.lost > 50 && report.verified > 1000, "{report:?}");
}

#[test]
fn bits_of_any_file_rot_and_no_byte_is_wrong() {
    rots(1);
}

#[test]
fn on_three_paths_too() {
    rots(3);
}
