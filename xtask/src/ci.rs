//! Everything that CI runs, step by step.

use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::extra;
use crate::gpu;
use crate::services;
use crate::workspace::{Workspace, cargo};

/// How a newcomer runs all tests; the README gives the same line.
pub(crate) const TEST_COMMAND: &str = "cargo test --workspace";

/// The cheap ones come first; the tests come last, so that their closing lines are near the end of the log.
const STEPS: [(&str, Step); 13] = [
    ("fmt", |w| commands(w, &[&["fmt", "--all", "--check"]])),
    ("dag", |w| commands(w, &[&["xtask", "dag"]])),
    ("tidy", |w| commands(w, &[&["xtask", "tidy"]])),
    ("deps", |w| commands(w, &[&["xtask", "deps"]])),
    ("deny", deny),
    // Examples and benches are among the targets.
    ("clippy", |w| {
        commands(w, &[&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]])
    }),
    ("alone", alone),
    ("doc", |w| commands(w, &[&["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]])),
    ("schedules", extra::schedules),
    ("miri", extra::miri),
    ("cufile", gpu::test_cufile_host),
    ("services", services::fetched),
    ("tests", |w| {
        let words: Vec<&str> = TEST_COMMAND.split(' ').skip(1).collect();
        commands(w, &[&words])
    }),
];

type Step = fn(&Workspace) -> Result<Outcome>;

/// How a step ended.
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// It cannot run here, for this reason.
    NotRun(String),
}

/// The names of the steps, in order.
pub(crate) fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|(name, _)| *name).collect()
}

/// Whether these are all names of steps.
pub(crate) fn knows(steps: &[String]) -> bool {
    steps.iter().all(|step| step_names().contains(&step.as_str()))
}

/// Runs the named steps, or all. A step that fails does not keep the later ones from running: one run tells everything.
pub(crate) fn run(wanted: &[String]) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut lines: Vec<(&str, Duration, Outcome)> = Vec::new();
    for (name, step) in STEPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name))
    {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = step(&workspace).with_context(|| format!("step {name}"))?;
        lines.push((name, start.elapsed(), outcome));
    }
    println!("\n== ci");
    let mut total = Duration::ZERO;
    let mut failed = false;
    for (name, time, outcome) in &lines {
        let verdict = match outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::NotRun(why) => &format!("not run: {why}"),
        };
        println!("{name:<8} {:>7.1} s  {verdict}", time.as_secs_f64());
        total += *time;
        failed |= matches!(outcome, Outcome::Failed);
    }
    println!("{:<8} {:>7.1} s  {}", "ci", total.as_secs_f64(), if failed { "FAILED" } else { "ok" });
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs one step by itself; that it cannot run here is said, and is no failure.
pub(crate) fn one(step: Step) -> Result<ExitCode> {
    Ok(match step(&Workspace::load()?)? {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::NotRun(why) => {
            println!("not run: {why}");
            ExitCode::SUCCESS
        }
    })
}

/// Runs cargo with each list of arguments, to the first that fails.
fn commands(workspace: &Workspace, lines: &[&[&str]]) -> Result<Outcome> {
    for line in lines {
        println!("$ cargo {}", line.join(" "));
        if !status(workspace, cargo().args(*line))?.success() {
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Passed)
}

fn status(workspace: &Workspace, command: &mut Command) -> Result<ExitStatus> {
    // Only rustdoc reads this one; clippy gets its own -D warnings, and the others have been through clippy.
    command.current_dir(&workspace.root).env("RUSTDOCFLAGS", "-D warnings");
    command.status().with_context(|| format!("could not start {command:?}"))
}

/// Each crate builds alone, and so do its tests: in a build of the whole workspace a crate also gets the features that its
/// neighbours ask for, and what it forgot to ask for itself does not show. The same goes for each feature of a crate.
fn alone(workspace: &Workspace) -> Result<Outcome> {
    let mut outcome = Outcome::Passed;
    for package in workspace.packages.iter().filter(|p| p.is_library_crate()) {
        let check = ["check", "--locked", "--quiet", "--package", &package.name];
        let mut lines = vec![check.to_vec(), [&check[..], &["--all-targets"]].concat()];
        if !package.features.is_empty() {
            lines.push([&check[..], &["--no-default-features"]].concat());
        }
        for feature in &package.features {
            lines.push([&check[..], &["--no-default-features", "--features", feature]].concat());
        }
        for line in &lines {
            if let Outcome::Failed = commands(workspace, &[line])? {
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}

/// Licences, advisories and duplicates, where the tool is installed.
fn deny(workspace: &Workspace) -> Result<Outcome> {
    if !cargo().args(["deny", "--version"]).output().is_ok_and(|o| o.status.success()) {
        return Ok(Outcome::NotRun("cargo-deny is not installed (cargo install cargo-deny)".into()));
    }
    // The advisory database comes over the network; the rest of the checks are true without it.
    commands(workspace, &[&["deny", "--offline", "check", "bans", "licenses", "sources"]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_command_is_cargos_and_its_step_is_the_last() {
        assert!(TEST_COMMAND.starts_with("cargo test "));
        assert_eq!(step_names().last(), Some(&"tests"));
    }

    #[test]
    fn an_unknown_step_is_told_from_a_known() {
        assert!(knows(&[]) && knows(&["fmt".into(), "tests".into()]));
        assert!(!knows(&["fmt".into(), "test".into()]));
    }
}
