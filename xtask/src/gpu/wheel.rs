//! NVIDIA's wheel of cuFile: its header and its library, for checks. They are fetched into `target`, and go nowhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::succeeds;
use crate::workspace::Workspace;

const PACKAGE: &str = "nvidia-cufile";
const VERSION: &str = "1.20.0.107";
/// Of the wheel for x86-64 Linux.
const SHA256: &str = "d134f10ce336c411664d79e3538e4797b38a41d3388edad1ec4a1a8c64c8c03a";

/// The unpacked wheel.
pub(super) struct Wheel {
    root: PathBuf,
}

impl Wheel {
    /// Fetches it with pip, checks its hash and unpacks it, unless that was done before.
    pub(super) fn get(workspace: &Workspace) -> Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            bail!("the hash of {PACKAGE}'s wheel is known for x86-64 only");
        }
        let wheel = Self { root: workspace.root.join("target/cufile").join(VERSION) };
        if wheel.library().exists() && wheel.header().exists() {
            return Ok(wheel);
        }
        let files = workspace.root.join("target/cufile/wheel");
        std::fs::create_dir_all(&files)?;
        let wanted = files.join("requirements.txt");
        std::fs::write(&wanted, format!("{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n"))?;
        python(&[
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .arg("--require-hashes")
        .arg("--dest")
        .arg(&files)
        .arg("--requirement")
        .arg(&wanted)
        .run(&format!("{PACKAGE} {VERSION} could not be fetched with pip"))?;
        let fetched = (std::fs::read_dir(&files)?.filter_map(Result::ok).map(|e| e.path()))
            .find(|p| p.extension().is_some_and(|e| e == "whl"))
            .context("pip fetched no wheel")?;
        python(&["-m", "zipfile", "-e"])
            .arg(&fetched)
            .arg(&wheel.root)
            .run("the wheel could not be unpacked")?;
        if !wheel.library().exists() || !wheel.header().exists() {
            bail!("the wheel has no {} or no {}", wheel.library().display(), wheel.header().display());
        }
        Ok(wheel)
    }

    pub(super) fn library(&self) -> PathBuf {
        self.root.join("nvidia/cu13/lib/libcufile.so.0")
    }

    pub(super) fn header(&self) -> PathBuf {
        self.root.join("nvidia/cu13/include/cufile.h")
    }
}

/// A call of Python.
struct Python(Command);

fn python(arguments: &[&str]) -> Python {
    let mut command = Command::new("python3");
    command.args(arguments);
    Python(command)
}

impl Python {
    fn arg(mut self, argument: impl AsRef<Path>) -> Self {
        self.0.arg(argument.as_ref());
        self
    }

    fn run(mut self, failure: &str) -> Result<()> {
        if succeeds(&mut self.0)? { Ok(()) } else { bail!("{failure}") }
    }
}
