//! Tries cuFile in a process of its own: see `kvstrata_l2_gds::probe`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kvstrata_l2_gds::child(std::env::args_os().skip(1), kvstrata_l2_gds::cuda(), &mut std::io::stdout())
}
