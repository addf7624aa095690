//! A small dose of `cargo xtask faults`.

use std::time::Duration;

use kvstrata_tests::faults::{Options, run, watch_panics};
use kvstrata_tests::report::Progress;

#[test]
fn five_thousand_faults_leave_no_wrong_byte_no_leak_and_no_late_answer() {
    // Over files a minute is no wait at all on a machine that is busy with other tests; over memory the margin is none.
    let options = Options {
        count: 5_000,
        seed: 1,
        threads: 2,
        margin: Duration::from_secs(60),
        layout: None,
        paths: None,
    };
    let report = run(&options, &watch_panics(), &mut Progress::silent());
    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!((report.all.wrong_bytes, report.all.leaks, report.all.late), (0, 0, 0));
    assert!(report.all.verified > 1000, "{}", report.text());
}
