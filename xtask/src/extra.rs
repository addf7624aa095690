//! Checks that need more than the toolchain that builds the workspace.

use std::process::Command;

use anyhow::{Context, Result};

use crate::ci::Outcome;
use crate::workspace::{Workspace, cargo};

/// The tests of `mem` under Miri: its unsafe code against the rules of the language. Its example is left out, because it
/// maps memory and asks the system how much there is.
pub(crate) fn miri(workspace: &Workspace) -> Result<Outcome> {
    let nightly = |args: &[&str]| {
        // What hangs is stopped: half an hour is many times what it takes.
        let mut command = Command::new("timeout");
        command.args(["1800", "rustup", "run", "nightly", "cargo"]).args(args).current_dir(&workspace.root);
        // What this toolchain's cargo set for its children.
        for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
            command.env_remove(name);
        }
        command
    };
    if !nightly(&["miri", "--version"]).output().is_ok_and(|o| o.status.success()) {
        let why =
            "there is no nightly toolchain with Miri (rustup toolchain install nightly -c miri,rust-src)";
        return Ok(Outcome::NotRun(why.into()));
    }
    let line = ["miri", "test", "--locked", "--package", "kvstrata-mem", "--lib", "--tests"];
    println!("$ cargo +nightly {}", line.join(" "));
    // parking_lot keeps pointers as integers.
    let mut command = nightly(&line);
    command.args(["--target-dir", "target/miri"]).env("MIRIFLAGS", "-Zmiri-permissive-provenance");
    let status = command.status().context("could not start Miri")?;
    Ok(if status.success() { Outcome::Passed } else { Outcome::Failed })
}

/// The tests of `--cfg kvstrata_shuttle`: real code whose locks are the model checker's, so that every schedule of a small test is
/// tried, and thousands of a larger one.
pub(crate) fn schedules(workspace: &Workspace) -> Result<Outcome> {
    let line = ["test", "--locked", "--package", "kvstrata-manager", "--test", "schedules"];
    println!("$ RUSTFLAGS=\"--cfg kvstrata_shuttle\" cargo {}", line.join(" "));
    // Other flags are another build: without a folder of its own each would undo the other.
    let mut command = cargo();
    command.args(line).args(["--target-dir", "target/shuttle"]).current_dir(&workspace.root);
    // Seconds of running are not worth minutes of compiling.
    command.args(["--config", "profile.dev.package.'*'.opt-level=0"]);
    command.env("RUSTFLAGS", "--cfg kvstrata_shuttle");
    let status = command.status().context("could not start cargo")?;
    Ok(if status.success() { Outcome::Passed } else { Outcome::Failed })
}
