//! Programs that prove something, built for speed and run.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// Binaries of the package `kvstrata-tests`.
pub(crate) const NAMES: &[&str] = &["faults", "kill", "rot", "sim", "soak", "torn"];

/// Those that start the command itself, which lies beside them then.
const SERVED: &[&str] = &["soak", "torn"];

/// Builds and runs one of them; its exit code is ours.
pub(crate) fn run(name: &str, args: &[String]) -> Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if SERVED.contains(&name) {
        let built = Command::new(&cargo).args(["build", "--quiet", "--release", "-p", "kvstrata"]).status();
        if !built.context("build kvstrata")?.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "-p", "kvstrata-tests", "--bin", name, "--"])
        .args(args)
        .status()
        .with_context(|| format!("run {name}"))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
