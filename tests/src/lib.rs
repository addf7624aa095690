//! End-to-end tests across the crates of this workspace, as a user of the facade or of the command would meet them, and the
//! programs that go further than a test can in its time.
//!
//! The tests are in `tests/tests/`. A test of one crate lives in that crate; what needs two adapters, a restart of the
//! whole, or the command belongs here. The programs are in `tests/src/bin/`, run by `cargo xtask NAME`; what they do is in
//! this library, so that the tests do a little of it every time.
#![forbid(unsafe_code)]

pub mod census;
pub mod faults;
pub mod kill;
pub mod live;
pub mod report;
pub mod rot;
pub mod shelf;
pub mod soak;
pub mod torn;
