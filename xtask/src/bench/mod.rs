//! The benchmarks: those of this workspace with short settings, or everything that `docs/performance.md` shows.

mod chart;
mod criterion;
mod page;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::{Workspace, cargo};

pub(crate) const USAGE: &str = "\
usage: cargo xtask bench [--compare [--write] [--again]] [NAME..]

Without --compare: the criterion benches of this workspace with short settings, to see that they run and what is slow.
With --compare: the tables of docs/performance.md, measured again beside the others that do the same. The tables and their
drawings go to target/figures; --write also puts them into docs/performance.md and docs/img. That takes half an hour, on a
machine that should have nothing else to do. --again measures nothing, and takes what the last run left.

  NAME              only these; `cargo xtask bench --compare help` lists them
  LMCACHE_PYTHON    environment: a Python with lmcache 0.5.6 (a GPU is not needed), for the table `lmcache`; without it
                    the page keeps that table as it is";

/// The criterion benches.
const BENCHES: [&str; 4] = ["alloc", "evict", "hashing", "manager"];
/// Settings with which a bench takes seconds.
const SHORT: [&str; 6] = ["--warm-up-time", "0.2", "--measurement-time", "0.5", "--sample-size", "10"];

/// How a program that measures is run.
enum Program {
    /// A bench of this workspace that takes `--figures`.
    Bench(&'static [&'static str]),
    /// A bench of this workspace with criterion, and how its table is made.
    Criterion(fn(&Path) -> Result<Figures>),
    /// A command of the comparison package.
    Compare(&'static [&'static str]),
}

const PROGRAMS: [(&str, Program); 11] = [
    ("evict", Program::Criterion(criterion::evict)),
    ("alloc", Program::Criterion(criterion::alloc)),
    ("manager", Program::Criterion(criterion::manager)),
    ("hashing", Program::Bench(&[])),
    ("fs", Program::Bench(&[])),
    ("startup", Program::Bench(&[])),
    ("burst", Program::Bench(&[])),
    ("policies", Program::Compare(&["--rounds", "12"])),
    ("memory", Program::Compare(&[])),
    ("kvbm-logical", Program::Compare(&[])),
    ("foyer-disk", Program::Compare(&[])),
];

/// One table, as the programs write it.
#[derive(Clone, Deserialize, Debug)]
pub(crate) struct Figures {
    name: String,
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    charts: Vec<Chart>,
}

#[derive(Clone, Deserialize, Debug)]
struct Chart {
    title: String,
    unit: String,
    bars: Vec<Bar>,
}

#[derive(Clone, Deserialize, Debug)]
struct Bar {
    group: String,
    label: String,
    value: f64,
}

pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let flag = |name: &str| args.iter().any(|a| a == name);
    let (compare, write, again) = (flag("--compare"), flag("--write"), flag("--again"));
    let names: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    let known: Vec<&str> = if compare {
        PROGRAMS.iter().map(|(name, _)| *name).chain(["lmcache"]).collect()
    } else {
        BENCHES.into()
    };
    let unknown = args.iter().find(|a| {
        let flags: &[&str] = if compare { &["--compare", "--write", "--again"] } else { &[] };
        !flags.contains(&a.as_str()) && !known.contains(&a.as_str())
    });
    if let Some(unknown) = unknown {
        println!("{USAGE}\n\nnames here: {}", known.join(", "));
        return Ok(if ["help", "--help", "-h"].contains(&unknown.as_str()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(2)
        });
    }
    let wanted = |name: &str| names.is_empty() || names.contains(&name);
    let workspace = Workspace::load()?;
    if compare {
        all_tables(&workspace, &wanted, write, again)?;
    } else {
        for name in BENCHES.into_iter().filter(|name| wanted(name)) {
            let mut command = bench(&workspace, name);
            if name == "evict" {
                // The other sizes take minutes.
                command.arg("/1k/");
            }
            succeed(command.args(SHORT))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bench(workspace: &Workspace, name: &str) -> Command {
    let mut command = cargo();
    command.args(["bench", "--quiet", "-p", "kvstrata-benches", "--bench", name, "--"]);
    command.current_dir(&workspace.root);
    command
}

fn compare(workspace: &Workspace, name: &str) -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--", name]);
    command.current_dir(workspace.root.join("benches/compare"));
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    println!("$ {command:?}");
    let status = command.status().with_context(|| format!("could not start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn all_tables(workspace: &Workspace, wanted: &dyn Fn(&str) -> bool, write: bool, again: bool) -> Result<()> {
    let out = workspace.root.join("target/figures");
    std::fs::create_dir_all(&out)?;
    let measured = workspace.root.join("target/criterion");
    let mut tables = Vec::new();
    for (name, program) in PROGRAMS.iter().filter(|(name, _)| wanted(name)) {
        let file = out.join(format!("{name}.jsonl"));
        if again {
            match program {
                Program::Criterion(table) if measured.is_dir() => tables.push(table(&measured)?),
                _ if file.is_file() => tables.extend(page::read(&file)?),
                _ => println!("{name}: no run has left figures"),
            }
            continue;
        }
        match program {
            Program::Bench(args) => succeed(bench(workspace, name).args(*args).args(to(&file)?))?,
            Program::Compare(args) => succeed(compare(workspace, name).args(*args).args(to(&file)?))?,
            Program::Criterion(table) => {
                succeed(&mut bench(workspace, name))?;
                tables.push(table(&measured)?);
                continue;
            }
        }
        tables.extend(page::read(&file)?);
    }
    let file = out.join("lmcache.jsonl");
    match std::env::var_os("LMCACHE_PYTHON") {
        _ if !wanted("lmcache") => {}
        _ if again && file.is_file() => tables.extend(page::read(&file)?),
        Some(python) if !again => {
            succeed(compare(workspace, "lmcache").arg("--python").arg(python).args(to(&file)?))?;
            tables.extend(page::read(&file)?);
        }
        _ => println!("lmcache: not run, because LMCACHE_PYTHON names no Python that has it"),
    }
    if tables.is_empty() {
        bail!("nothing was measured");
    }
    page::put(&tables, &out, write.then_some(&workspace.root))
}

/// A new file for the figures of one program.
fn to(file: &Path) -> Result<[PathBuf; 2]> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", file.display()))
        }
        _ => Ok(["--figures".into(), file.to_owned()]),
    }
}
