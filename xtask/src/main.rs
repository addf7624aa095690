//! The checks of this workspace, as `cargo xtask <command>`.
//!
//! ```text
//! cargo xtask dag          every arrow between crates against docs/dag.toml
//! cargo xtask tidy         what a compiler does not check: sizes, clocks, doc pages, links
//! cargo xtask deps         what each library crate pulls in against docs/deps.toml
//! cargo xtask schedules    the schedules of the threads that meet in mem, l2 and manager, under a model checker
//! cargo xtask services mooncake [fetch | start | check | stop] [--release X]   Mooncake's own programs, for tests and trials
//! cargo xtask miri         the unsafe code of mem under Miri, where a nightly toolchain has it
//! cargo xtask ci [STEP..]  everything that CI runs, or only these steps of it
//! cargo xtask bench ..     the benchmarks, or all tables of docs/performance.md; `bench help` says how
//! cargo xtask test-gpu ..  the tests that need a GPU: [--require] [NAME..] runs them, --pack DIR packs them for a machine
//!                          without cargo
//! cargo xtask test-cufile-host    NVIDIA's cuFile library, fetched with pip, against host memory
//! cargo xtask cufile-bindings ..  the declarations of cufile-sys against NVIDIA's header: --header FILE, --wheel
//! cargo xtask compat-lmcache  LMCache's released client against `kvstrata serve`, through kills; needs Python and a package
//!                             index. `compat-lmcache cli`: its command line; `compat-lmcache figures`: both servers measured
//! cargo xtask sim ..       plays seeds of the simulation; `--help` says how
//! cargo xtask faults ..    a million faults below the digest check, over memory and over files
//! cargo xtask kill ..      kills a process that stores, and looks at what it leaves
//! cargo xtask torn ..      kills clients of `kvstrata serve` while they write, and looks for what they left
//! cargo xtask soak ..      lets a thousand clients of `kvstrata serve` come and go, and looks at what it holds then
//! cargo xtask rot ..       lets a store's files rot, and looks at what is delivered
//! ```
//!
//! Every finding says where it is and what to do next. Exit codes: 0 nothing found, 1 something found, 2 wrong usage.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod compat;
mod dag;
mod deps;
mod extra;
mod findings;
mod gpu;
mod programs;
mod services;
mod source;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use findings::Findings;
use workspace::Workspace;

fn usage() -> String {
    format!(
        "usage: cargo xtask dag | tidy | deps | schedules | services | miri | ci [STEP..] | bench [ARG..] | \
         test-gpu [ARG..] | test-cufile-host | cufile-bindings [ARG..] | {} [ARG..]\nsteps of ci: {}",
        programs::NAMES.join(" | "),
        ci::step_names().join(", ")
    )
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match args.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[] as &[String]),
    };
    let done = match (command, rest) {
        ("dag", []) => report("dag", dag::run),
        ("tidy", []) => report("tidy", tidy::run),
        ("deps", []) => report("deps", deps::run),
        ("schedules", []) => ci::one(extra::schedules),
        ("bench", args) => bench::run(args),
        ("compat-lmcache", args) => compat::run(args),
        ("test-gpu", args) => gpu::test_gpu(args),
        ("test-cufile-host", []) => ci::one(gpu::test_cufile_host),
        ("cufile-bindings", args) => gpu::cufile_bindings(args),
        ("services", args) => services::run(args),
        ("miri", []) => ci::one(extra::miri),
        ("ci", steps) if ci::knows(steps) => ci::run(steps),
        (name, args) if programs::NAMES.contains(&name) => programs::run(name, args),
        ("help" | "--help" | "-h", _) => {
            println!("{}", usage());
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("xtask: cannot make sense of '{}'\n{}", args.join(" "), usage());
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("xtask {command}: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one check and prints what it found.
fn report(name: &str, check: fn(&Workspace, &mut Findings) -> Result<()>) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut findings = Findings::default();
    check(&workspace, &mut findings)?;
    Ok(if findings.print(name) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
