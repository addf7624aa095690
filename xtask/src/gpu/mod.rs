//! What needs a GPU, or NVIDIA's cuFile library.

mod bindings;
mod host;
mod pack;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace::{Workspace, cargo};

pub(crate) use bindings::run as cufile_bindings;
pub(crate) use host::step as test_cufile_host;
pub(crate) use pack::run as test_gpu;

/// A line of what cargo tells a program.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    src_path: PathBuf,
}

/// A program that cargo built, and the package that it belongs to.
struct Built {
    package: String,
    executable: PathBuf,
}

/// The packages that have a test of this name: `tests/NAME.rs` or `tests/NAME/main.rs`.
fn packages_with_test<'a>(workspace: &'a Workspace, test: &str) -> Vec<&'a str> {
    let has = |dir: &Path| {
        let tests = workspace.root.join(dir).join("tests");
        tests.join(format!("{test}.rs")).exists() || tests.join(test).join("main.rs").exists()
    };
    workspace.packages.iter().filter(|p| has(&p.dir)).map(|p| p.name.as_str()).collect()
}

/// Builds with cargo's arguments, and tells the programs called `name` that came of it.
fn build(workspace: &Workspace, arguments: &[&str], name: &str) -> Result<Vec<Built>> {
    println!("$ cargo {}", arguments.join(" "));
    let output = cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(&workspace.root)
        .stderr(Stdio::inherit())
        .output()
        .context("could not start cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    let mut built = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(Message { target: Some(target), executable: Some(executable) }) = serde_json::from_str(line)
        else {
            continue;
        };
        if target.name != name {
            continue;
        }
        let relative = target.src_path.strip_prefix(&workspace.root).unwrap_or(&target.src_path);
        let package = workspace.packages.iter().find(|p| relative.starts_with(&p.dir));
        let package = package.with_context(|| format!("{} is no package's", relative.display()))?;
        built.push(Built { package: package.name.clone(), executable });
    }
    Ok(built)
}

/// Builds the tests of this name.
fn build_tests(workspace: &Workspace, test: &str, profile: &str) -> Result<Vec<Built>> {
    let packages = packages_with_test(workspace, test);
    let mut arguments = vec!["test", "--no-run", "--profile", profile, "--test", test];
    packages.iter().for_each(|p| arguments.extend(["--package", *p]));
    build(workspace, &arguments, test)
}

/// Runs it to its end, and says whether it was content.
fn succeeds(command: &mut Command) -> Result<bool> {
    Ok(command.status().with_context(|| format!("could not start {command:?}"))?.success())
}
