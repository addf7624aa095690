//! A small dose of `cargo xtask kill`.

use kvstrata_tests::kill::{Options, run};
use kvstrata_tests::report::Progress;

#[test]
fn twenty_four_kills_lose_nothing_that_was_acknowledged_and_leave_nothing_unfinished() {
    let program = env!("CARGO_BIN_EXE_kill").into();
    let options = Options { program, rounds: 24, seed: 1, longest_ms: 300, layout: None, paths: None };
    let report = run(&options, &mut Progress::silent());
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!((report.kills, report.torn), (24, 0));
    // It was not for want of anything to find.
    assert!(report.while_opening < report.kills, "{report:?}");
    assert!(report.acknowledged > 0 && report.verified > 0, "{report:?}");
}
