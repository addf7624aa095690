//! Tests on file systems of their own: the test program runs itself once more in a private mount namespace.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

const INSIDE: &str = "KVSTRATA_TEST_MOUNTS";

/// Where this run may mount, or why it may not.
pub(crate) type Mounts = Result<PathBuf, String>;

/// Goes into a private mount namespace if that is possible, by running this program again inside one.
pub(crate) fn enter() -> Mounts {
    let dir = PathBuf::from(concat!(env!("CARGO_TARGET_TMPDIR"), "/mounts"));
    if std::env::var_os(INSIDE).is_some() {
        // What is made here ends with the namespace.
        return mount(&dir, "", "tmpfs", "mode=0700");
    }
    let can = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    match can {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            return Err(format!("mounts are not permitted: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
        Err(e) => return Err(format!("unshare cannot be run: {e}")),
    }
    let me = std::env::current_exe().expect("this program");
    let e = Command::new("unshare")
        .args(["-m", "--"])
        .arg(me)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("unshare cannot be run: {e}"))
}

/// Mounts a file system on a fresh directory below `at`.
pub(crate) fn mount(at: &std::path::Path, name: &str, kind: &str, options: &str) -> Result<PathBuf, String> {
    let dir = at.join(name);
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let out = Command::new("mount").args(["-t", kind, "-o", options, "none"]).arg(&dir).output();
    match out {
        Ok(out) if out.status.success() => Ok(dir),
        Ok(out) => Err(format!("{kind} cannot be mounted: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("mount cannot be run: {e}")),
    }
}
