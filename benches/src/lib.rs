//! Benchmarks across the crates of this workspace, in `benches/benches/`. This library is empty: nothing builds on the
//! package.
#![forbid(unsafe_code)]
