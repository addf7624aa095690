//! The defects of a peer's storage layer, one test each: LMCache 0.5.6, by the numbers under which they were written down.
//!
//! A test has one check, which knows no implementation. It passes on ours. Then it is given a *double*: a small model of the
//! mechanism that has the defect, and must find it there. So no check passes because it looks at nothing.
#![forbid(unsafe_code)]

mod eviction;
mod gds;
mod local_disk;
mod memory;
mod room;
mod shared_files;
mod support;
mod transfers;
