//! `kvstrata doctor`: what this machine offers, and what is fallen back from.

mod adapters;
mod memory;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kvstrata_config::Resolved;
use serde::Serialize;

use super::flags::ConfigFlags;
use super::report;

/// Say what this machine offers to a configuration, and what is fallen back from
///
/// Tries out what the settings ask for: the memory of L1 with its pages, its NUMA node and its lock (nothing is filled),
/// and for each adapter over files what the file system under its path can do (with a small file that is gone afterwards;
/// a path that is not there yet is not made, its nearest parent is tried). States: ok; fallback, it works in another way;
/// off, not used; problem, it cannot work as configured.
///
/// Exit status: 0 everything configured can work, 1 there is a problem, 2 the configuration is wrong.
///
/// Example: kvstrata doctor --l1-size-gb 4 --l2-adapter '{"type":"fs","base_path":"/var/cache/kv","use_odirect":true}'
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Write it here as JSON instead of a table (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Fallback,
    Off,
    Problem,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fallback => "fallback",
            Self::Off => "off",
            Self::Problem => "problem",
        }
    }
}

/// One line of the report.
#[derive(Serialize, Debug)]
struct Finding {
    what: String,
    state: State,
    why: String,
    /// What to do about it; empty where there is nothing to do.
    advice: String,
}

/// The report as it grows.
#[derive(Default, Debug)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        what: impl Into<String>,
        state: State,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding { what: what.into(), state, why: why.into(), advice: advice.into() });
    }

    fn ok(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.add(what, State::Ok, why, "");
    }

    fn off(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.add(what, State::Off, why, "");
    }
}

#[derive(Serialize, Debug)]
struct Report<'a> {
    schema_version: u32,
    /// Whether everything that is configured can work.
    ok: bool,
    machine: memory::Machine,
    findings: &'a [Finding],
}

pub(crate) fn run(args: DoctorArgs) -> Result<bool> {
    // The warnings are lines of the report.
    let resolved = args.config.resolve_silently()?;
    let machine = memory::Machine::look();
    let mut findings = Findings::default();
    memory::examine(&resolved.settings, &machine, &mut findings);
    for (name, adapter) in resolved.settings.adapters() {
        adapters::examine(&name, &adapter, &machine, &mut findings);
    }
    if resolved.settings.adapters().is_empty() {
        findings.off("adapters", "none is configured: what leaves L1 is gone");
    }
    features(&resolved, &mut findings);
    let Findings(findings) = findings;
    let ok = findings.iter().all(|f| f.state != State::Problem);
    let report = Report { schema_version: 1, ok, machine, findings: &findings };
    match &args.json {
        Some(path) => report::write_json(path, &report)?,
        None => print(&findings),
    }
    if !ok && args.json.is_some() {
        for problem in findings.iter().filter(|f| f.state == State::Problem) {
            eprintln!("kvstrata: {}: {}", problem.what, problem.why);
        }
    }
    Ok(ok)
}

/// What does not hang on the machine.
fn features(resolved: &Resolved, findings: &mut Findings) {
    if resolved.settings.digests {
        findings.ok("digests", "every store carries one, every load is checked");
    } else {
        let why = format!("digests are off ({}): wrong bytes go unnoticed", resolved.origin("digests"));
        findings.add("digests", State::Off, why, "set digests = true");
    }
    for warning in &resolved.warnings {
        let what = format!("setting {}", warning.name);
        findings.off(what, format!("{} ({})", warning.message, warning.origin));
    }
}

fn print(findings: &[Finding]) {
    let titles = ["what", "state", "why", "what to do"].map(str::to_owned).to_vec();
    let mut lines = vec![titles];
    let line = |f: &Finding| vec![f.what.clone(), f.state.name().into(), f.why.clone(), f.advice.clone()];
    lines.extend(findings.iter().map(line));
    report::columns(&lines, 4);
}
