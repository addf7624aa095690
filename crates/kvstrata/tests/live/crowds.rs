//! Small doses of `cargo xtask torn` and `cargo xtask soak`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kvstrata_tests::report::Progress;
use kvstrata_tests::{soak, torn};

use crate::{Done, Test, program};

pub(crate) const TESTS: &[Test] = &[
    ("w6_what_was_not_committed_is_never_seen", w6_what_was_not_committed_is_never_seen),
    ("clients_that_die_at_random_leave_nothing", clients_that_die_at_random_leave_nothing),
];

#[derive(Parser)]
struct Clients {
    #[command(flatten)]
    args: soak::ClientArgs,
}

/// What this program is when it was started by itself.
pub(crate) fn child(args: &[String]) -> Option<ExitCode> {
    match args.first()?.as_str() {
        "writer" => Some(torn::writer(&args[1..])),
        "clients" => Some(soak::clients(&Clients::parse_from(args).args)),
        _ => None,
    }
}

fn w6_what_was_not_committed_is_never_seen() -> Done {
    let options = torn::Options {
        server: program().into(),
        writer: (std::env::current_exe()?, vec!["writer".into()]),
        rounds: 150,
        seed: 1,
    };
    let report = torn::run(&options, &mut Progress::silent());
    assert_eq!(report.failures, Vec::<String>::new());
    // It was not for want of anything to find.
    assert!(report.killed > 60 && report.dropped > 0 && report.unregistered > 0, "{report:?}");
    assert!(report.committing > 0 && report.compared > 300, "{report:?}");
    Ok(())
}

fn clients_that_die_at_random_leave_nothing() -> Done {
    let options = soak::Options {
        server: program().into(),
        clients_program: (std::env::current_exe()?, vec!["clients".into()]),
        seconds: 5,
        clients: 200,
        processes: 3,
        kill_every: Duration::from_millis(1500),
        pause_ms: 150,
        seed: 1,
    };
    let report = soak::run(&options, &mut Progress::silent());
    assert_eq!(report.failures, Vec::<String>::new(), "{}", report.text());
    let s = &report.seen;
    assert!(report.kills > 0 && s.deaths > 0 && s.stores > 0 && s.loads > 0, "{}", report.text());
    Ok(())
}
