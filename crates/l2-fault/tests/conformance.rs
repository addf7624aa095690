//! Without faults, an adapter in here holds to all obligations of the one inside; delays change none of them.

use std::process::ExitCode;

use kvstrata_l2::{Adapter, Context};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};

#[path = "../../l2/tests/common/subjects.rs"]
mod subjects;

use subjects::Extent::{Once, Whole};

fn quiet(inner: Adapter, cx: &Context) -> Adapter {
    Injector::new(inner, &FaultConfig::default(), cx.clone()).expect("valid settings").adapter()
}

/// Every third key waits, and goes its way as a task.
fn delayed(inner: Adapter, cx: &Context) -> Adapter {
    let delay = |op| Rule { every: Some(3), delay_ms: Some(1), ..Rule::new(op, Fault::Delay) };
    let config = FaultConfig::scripted(Op::ALL.into_iter().map(delay).collect());
    Injector::new(inner, &config, cx.clone()).expect("valid settings").adapter()
}

fn main() -> ExitCode {
    subjects::main(&[("quiet", Once, quiet), ("delayed", Whole, delayed)])
}
