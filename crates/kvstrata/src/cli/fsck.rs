//! `kvstrata fsck`: whether a store is as it should be, and putting it right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use kvstrata_config::BuildContext;
use kvstrata_disk::{FileState, FsckOptions, FsckReport, Writer, fsck};
use kvstrata_io::{OsDisk, OsOptions};
use serde::Serialize;

use super::report::{self, Progress};
use super::store_path;

/// Check every object of a store, and repair what can be
///
/// Reads every object: its header, its length, and its payload against its digest. `--repair` moves bad objects to the
/// store's quarantine, deletes what dead writers left and an index that does not decode, and makes a new manifest where it
/// is lost or does not parse. A store that is in use is refused.
///
/// Exit status: 0 the store is clean or all was repaired, 1 problems are left, 2 this is no store.
///
/// Example: kvstrata fsck /var/cache/kv --repair
#[derive(Args, Debug)]
pub(crate) struct FsckArgs {
    /// The store's directory
    path: PathBuf,
    /// Put right what is wrong
    #[arg(long)]
    repair: bool,
    /// Where files are written before they are published, as in the adapter's settings
    #[arg(long, value_name = "DIR")]
    relative_tmp_dir: Option<PathBuf>,
    /// Write what was found here as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize, Debug)]
struct BadObject {
    path: PathBuf,
    reason: &'static str,
}

/// What was found. `schema_version` changes when the meaning of a field does.
#[derive(Serialize, Debug)]
struct Findings {
    schema_version: u32,
    path: PathBuf,
    /// Whether nothing was wrong.
    clean: bool,
    /// Things that were wrong.
    faults: u64,
    /// Those that are put right.
    repaired: u64,
    /// Whole objects, and their payload bytes.
    objects: u64,
    bytes: u64,
    /// Objects without a digest: nothing says whether their payload is whole.
    unverified: u64,
    bad: Vec<BadObject>,
    bad_by_reason: BTreeMap<&'static str, u64>,
    orphans: Vec<PathBuf>,
    /// Files in quarantine before the check.
    quarantined: u64,
    /// Files that are none of the store's; they are left alone.
    strangers: Vec<PathBuf>,
    manifest: String,
    snapshot: String,
}

pub(crate) fn run(args: FsckArgs) -> Result<bool> {
    store_path::check(&args.path, true)?;
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() })?;
    let run = BuildContext::tokio(tokio::runtime::Handle::current()).run;
    let options = FsckOptions {
        payloads: true,
        repair: args.repair,
        tmp: args.relative_tmp_dir.clone(),
        writer: Writer { pid: std::process::id(), id: run },
    };
    let mut progress = Progress::new("fsck", store_path::count_objects(&args.path)?);
    let mut seen = 0;
    let report = fsck(&disk, &args.path, &options, |objects, _| {
        progress.step(objects - seen);
        seen = objects;
    })?;
    drop(progress);
    let findings = Findings::of(&args.path, report);
    if !report::to_stdout(args.json.as_ref()) {
        findings.print(args.repair);
    }
    if let Some(path) = &args.json {
        report::write_json(path, &findings)?;
    }
    Ok(findings.repaired == findings.faults)
}

fn state(state: &FileState) -> String {
    match state {
        FileState::Good => "good".into(),
        FileState::Missing => "missing".into(),
        FileState::Bad(why) => format!("bad: {why}"),
    }
}

impl Findings {
    fn of(path: &Path, report: FsckReport) -> Self {
        let mut bad_by_reason = BTreeMap::new();
        for (_, reason) in &report.bad {
            *bad_by_reason.entry(reason.name()).or_default() += 1;
        }
        Self {
            schema_version: 1,
            path: path.to_owned(),
            clean: report.is_clean(),
            faults: report.faults(),
            repaired: report.repaired,
            objects: report.objects,
            bytes: report.bytes,
            unverified: report.unverified,
            bad_by_reason,
            manifest: state(&report.manifest),
            snapshot: state(&report.snapshot),
            bad: report.bad.into_iter().map(|(path, r)| BadObject { path, reason: r.name() }).collect(),
            orphans: report.orphans,
            quarantined: report.quarantined.len() as u64,
            strangers: report.strangers,
        }
    }

    fn print(&self, repair: bool) {
        for bad in &self.bad {
            println!("bad ({})  {}", bad.reason, bad.path.display());
        }
        for orphan in &self.orphans {
            println!("left by a dead writer  {}", orphan.display());
        }
        let mut rows = vec![
            ("objects", format!("{} whole, {}", self.objects, report::bytes(self.bytes))),
            ("without a digest", self.unverified.to_string()),
            ("bad objects", self.bad.len().to_string()),
        ];
        let reasons: Vec<String> = self.bad_by_reason.iter().map(|(why, n)| format!("{n} {why}")).collect();
        if !reasons.is_empty() {
            rows.push(("  of these", reasons.join(", ")));
        }
        rows.push(("left by dead writers", self.orphans.len().to_string()));
        rows.push(("in quarantine before", self.quarantined.to_string()));
        rows.push(("none of the store's", self.strangers.len().to_string()));
        rows.push(("manifest", self.manifest.clone()));
        rows.push(("index snapshot", self.snapshot.clone()));
        rows.push((
            "result",
            match (self.faults, self.repaired) {
                (0, _) => "clean".into(),
                (faults, repaired) if repaired == faults => format!("{faults} problems, all repaired"),
                (faults, _) if !repair => format!("{faults} problems; --repair puts them right"),
                (faults, repaired) => format!("{faults} problems, {repaired} repaired"),
            },
        ));
        report::table(&rows);
    }
}
