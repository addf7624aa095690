//! NVIDIA's library on a machine without a GPU.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::wheel::Wheel;
use super::{build_tests, succeeds};
use crate::ci::Outcome;
use crate::workspace::Workspace;

/// How crates call their tests that need the library and no GPU.
const TEST: &str = "cufile_host";
const SHIM: &str = "xtask/gpu/proc_modules.rs";
/// Many times what the tests take.
const LIMIT_S: &str = "120";

/// Fetches the library, and moves bytes through it in host memory. Without the library it fails: it is the one place where
/// the declarations meet the real thing in CI.
pub(crate) fn step(workspace: &Workspace) -> Result<Outcome> {
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        return Ok(Outcome::NotRun("the pinned wheel of the library is for x86-64 Linux".into()));
    }
    let wheel = match Wheel::get(workspace) {
        Ok(wheel) => wheel,
        // The steps after this one say something all the same.
        Err(e) => {
            println!("{e:#}");
            return Ok(Outcome::Failed);
        }
    };
    let preload = if PathBuf::from("/proc/modules").exists() { None } else { Some(shim(workspace)?) };
    let mut content = true;
    for test in build_tests(workspace, TEST, "dev")? {
        let mut command = Command::new("timeout");
        command.arg(LIMIT_S).arg(&test.executable).current_dir(&workspace.root);
        command.env("KV_CUFILE_LIB", wheel.library()).env("KVSTRATA_REQUIRE_CUFILE", "1");
        // In memory, where the library asks for no record of udev; its log is looked for there only.
        command.env("KVSTRATA_GPU_DIR", "/dev/shm").env("CUFILE_LOGFILE_PATH", "/dev/null");
        if let Some(shim) = &preload {
            command.env("LD_PRELOAD", shim);
        }
        println!("$ {}: {TEST}, with libcufile of {}", test.package, wheel.library().display());
        content &= succeeds(&mut command)?;
    }
    Ok(if content { Outcome::Passed } else { Outcome::Failed })
}

/// Builds what lets the library start where the kernel has no modules.
fn shim(workspace: &Workspace) -> Result<PathBuf> {
    let to = workspace.root.join("target/cufile/proc_modules.so");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]);
    command.arg(&to).arg(workspace.root.join(SHIM));
    if succeeds(&mut command)? { Ok(to) } else { bail!("{SHIM} does not compile") }
}
