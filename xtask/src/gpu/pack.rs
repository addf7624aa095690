//! The tests that need a GPU, here or in a folder that is carried to one.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use super::{build, build_tests, succeeds};
use crate::workspace::Workspace;

/// How each crate calls its tests that need a GPU.
const TEST: &str = "gpu";
const RUNNER: &str = "xtask/gpu/run.sh";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    require: bool,
    pack: Option<PathBuf>,
    names: Vec<String>,
}

impl Asked {
    fn parse(args: &[String]) -> Result<Self> {
        let mut asked = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--require" => asked.require = true,
                "--pack" => asked.pack = Some(args.next().context("--pack needs a folder")?.into()),
                flag if flag.starts_with('-') => {
                    bail!("unknown flag {flag}; there are --require, --pack DIR, and names of tests")
                }
                name => asked.names.push(name.to_owned()),
            }
        }
        if asked.pack.is_some() && (asked.require || !asked.names.is_empty()) {
            bail!("--pack only builds: give --require and names to run.sh in the folder");
        }
        Ok(asked)
    }
}

/// Builds and runs them, or packs them.
pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let asked = Asked::parse(args)?;
    let workspace = Workspace::load()?;
    if let Some(folder) = &asked.pack {
        pack(&workspace, folder, "pack", true)?;
        println!(
            "packed into {}: {} of it runs the tests",
            folder.display(),
            folder.join("run.sh").display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    // As they are built for all other tests, so that nothing is built twice.
    let folder = workspace.root.join("target/gpu");
    pack(&workspace, &folder, "dev", false)?;
    let mut command = Command::new(folder.join("run.sh"));
    command.args(asked.require.then_some("--require")).args(&asked.names);
    Ok(if succeeds(&mut command)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `folder/tests/PACKAGE` for each, `folder/run.sh`, and the command if it is wanted.
fn pack(workspace: &Workspace, folder: &Path, profile: &str, command: bool) -> Result<()> {
    let tests = build_tests(workspace, TEST, profile)?;
    let to = folder.join("tests");
    // What an earlier pack left would run too.
    if to.exists() {
        std::fs::remove_dir_all(&to).with_context(|| format!("could not clear {}", to.display()))?;
    }
    std::fs::create_dir_all(&to).with_context(|| format!("could not make {}", to.display()))?;
    for test in tests {
        copy(&test.executable, &to.join(&test.package))?;
    }
    copy(&workspace.root.join(RUNNER), &folder.join("run.sh"))?;
    if command {
        let arguments = ["build", "--profile", profile, "--package", "kvstrata", "--bin", "kvstrata"];
        std::fs::create_dir_all(folder.join("bin"))?;
        for built in build(workspace, &arguments, "kvstrata")? {
            copy(&built.executable, &folder.join("bin").join(&built.package))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("could not copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_only_builds() {
        let parse =
            |text: &str| Asked::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let asked = parse("--require ipc copies").unwrap();
        assert!(asked.require && asked.names == ["ipc", "copies"]);
        assert_eq!(parse("--pack x").unwrap().pack, Some("x".into()));
        for bad in ["--pack", "--pack x --require", "--pack x y", "--all"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
