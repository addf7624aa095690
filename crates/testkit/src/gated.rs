//! Tests of what a machine may lack: a GPU, a library. Where it is not there, each is listed as ignored with the reason,
//! unless it is required.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A test by its name. It gets what [`run`] opened.
pub type Test<C> = (&'static str, fn(&C) -> Result<(), Failed>);

/// Opens what all of the tests need, and runs them one after the other. Without it they are ignored, and with `required`
/// they fail.
///
/// ```no_run
/// # fn open() -> Result<u32, String> { Ok(1) }
/// use kvstrata_testkit::gated::{self, Test};
/// const TESTS: &[Test<u32>] = &[("it_is_one", |n| if *n == 1 { Ok(()) } else { Err("another".into()) })];
/// # fn main() -> std::process::ExitCode {
/// gated::run(open, std::env::var_os("KVSTRATA_REQUIRE_GPU").is_some(), TESTS)
/// # }
/// ```
pub fn run<C: Sync + 'static>(
    open: impl FnOnce() -> Result<C, String>,
    required: bool,
    tests: &[Test<C>],
) -> ExitCode {
    let mut args = Arguments::from_args();
    // They share what was opened, and some count what the process holds.
    args.test_threads = Some(1);
    let there = if args.list { Err("only listed".to_owned()) } else { open() };
    // Tests are asked to be 'static: it stays until the process ends.
    let there: &'static Result<C, String> = Box::leak(Box::new(there));
    let trials = tests.iter().map(|&(name, test)| match there {
        Ok(context) => Trial::test(name, move || test(context)),
        Err(_) if args.list => Trial::test(name, || Ok(())),
        Err(why) if required => Trial::test(name, || Err(why.clone().into())),
        Err(why) => Trial::test(format!("{name} (not here: {why})"), || Ok(())).with_ignored_flag(true),
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

/// Functions that panic where they fail, as trials. If `absent` says what they need and is not here, each is ignored with that
/// reason.
///
/// ```
/// use kvstrata_testkit::{gated, named};
/// fn it_adds_up() {
///     assert_eq!(1 + 1, 2);
/// }
/// let trials = gated::trials(None, &named![it_adds_up]);
/// assert_eq!(trials[0].name(), "it_adds_up");
/// ```
pub fn trials(absent: Option<&str>, tests: &[(&'static str, fn())]) -> Vec<Trial> {
    let trial = |&(name, test): &(&'static str, fn())| {
        let absent = absent.map(str::to_owned);
        Trial::ignorable_test(name, move || match absent {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => match std::panic::catch_unwind(test) {
                Ok(()) => Ok(Completion::Completed),
                Err(_) => Err(Failed::from("it panicked; see above")),
            },
        })
    };
    tests.iter().map(trial).collect()
}

/// Functions with their names, for [`gated::trials`](crate::gated::trials).
#[macro_export]
macro_rules! named {
    ($($name:ident)*) => { [$((stringify!($name), $name as fn())),*] };
}
