//! Checks that need more than the toolchain that builds the workspace.

use std::process::Command;

use anyhow::{Context, Result};

use crate::ci::Outcome;
use crate::workspace::Workspace;

/// The tests of `mem` under Miri: its unsafe code against the rules of the language. Its example is left out, because it
/// maps memory and asks the system how much there is.
pub(crate) fn miri(workspace: &Workspace) -> Result<Outcome> {
    let nightly = |args: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo"]).args(args).current_dir(&workspace.root);
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
