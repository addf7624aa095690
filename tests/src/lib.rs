//! End-to-end tests across the crates of this workspace, as a user of the facade or of the command would meet them.
//!
//! The tests are in `tests/tests/`. A test of one crate lives in that crate; what needs two adapters, a restart of the
//! whole, or the command belongs here. This library is empty: nothing builds on the package.
#![forbid(unsafe_code)]
