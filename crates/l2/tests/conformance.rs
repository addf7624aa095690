//! Each decorator around each adapter holds to the obligations of an adapter.

use std::process::ExitCode;

use kvstrata_l2::{Adapter, Breaker, BreakerOptions, Context, LimitOptions, Limited, Metered};

#[path = "common/subjects.rs"]
mod subjects;

use subjects::Extent::{Once, Whole};

/// The suite hangs the device again and again and expects calls to go on right after it: a breaker that never opens.
fn breaker(inner: Adapter, cx: &Context) -> Adapter {
    let options = BreakerOptions { consecutive: u32::MAX, ratio: 1.0, ..BreakerOptions::default() };
    Breaker::new(inner, options, cx).expect("valid options").adapter
}

/// A few of the suite's larger batches have to wait; what hangs has room.
fn limited(inner: Adapter, cx: &Context) -> Adapter {
    let options = LimitOptions { waiting: 8 << 20, ..LimitOptions::new(2 << 20) };
    Limited::new(inner, options, cx).expect("valid options").adapter
}

fn metered(inner: Adapter, cx: &Context) -> Adapter {
    Metered::new(inner, cx).adapter
}

fn stacked(inner: Adapter, cx: &Context) -> Adapter {
    metered(breaker(limited(inner, cx), cx), cx)
}

fn main() -> ExitCode {
    subjects::main(&[
        ("breaker", Once, breaker),
        ("limited", Once, limited),
        ("metered", Once, metered),
        ("stacked", Whole, stacked),
    ])
}
