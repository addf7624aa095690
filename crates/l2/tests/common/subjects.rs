//! Stores for the conformance suite to put decorators around: one in memory, and one of files.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_disk::Wanted;
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{Adapter, Context};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore, Switch};
use kvstrata_l2_mock::{Damage as Rot, Mock, MockConfig};
use kvstrata_testkit::conformance::{Damage, Device, Factory, Ignored, Subject, Suite};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

#[path = "../../../l2-fs/tests/common/mod.rs"]
mod files;

/// Puts a decorator around an adapter.
pub(crate) type Wrap = fn(Adapter, &Context) -> Adapter;

/// How much of the suite is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// Every case once: plain, from private memory.
    Once,
}

struct Mocks(Wrap);

struct Hung(Mock);

impl Device for Hung {
    fn hang(&self) {
        self.0.hang();
    }
    fn resume(&self) {
        self.0.resume();
    }
}

#[async_trait::async_trait]
impl Factory for Mocks {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let gb = capacity.unwrap_or(1 << 30) as f64 / f64::from(1 << 30);
        let mock = Mock::open(&MockConfig::new(gb, 100.0), cx.clone())?;
        let rot = mock.clone();
        let damage = move |damage: Damage<'_>| match damage {
            Damage::Flip(key) => rot.damage(key, Rot::Flip(1234)),
            Damage::Truncate(key) => rot.damage(key, Rot::Truncate(1234)),
            Damage::Swap(a, b) => rot.swap(a, b),
            // Descriptions live in this process's memory.
            Damage::Header(_) => false,
        };
        Ok(Subject {
            damage: Some(Box::new(damage)),
            device: Some(Arc::new(Hung(mock.clone()))),
            ..Subject::new((self.0)(mock.adapter(), &cx))
        })
    }
}

struct Files(Wrap);

fn open(config: &FsConfig, disk: &Arc<OsDisk>, cx: Context, wrap: Wrap) -> Result<Adapter> {
    let fs =
        FsContext { disk: Arc::clone(disk), l2: cx.clone(), writer: files::writer(), namespaces: vec![] };
    Ok(wrap(FsStore::open(config, fs)?.adapter(), &cx))
}

#[async_trait::async_trait]
impl Factory for Files {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::tempdir_in(base).map_err(|e| Error::io("make directory", e))?;
        let disk = Arc::new(OsDisk::new(OsOptions::default()).map_err(|e| Error::io("start threads", e))?);
        let config = FsConfig {
            max_capacity_gb: capacity.unwrap_or(0) as f64 / f64::from(1 << 30),
            use_odirect: Some(Switch(Wanted::Off)),
            ..FsConfig::new(dir.path().join("kv"))
        };
        let wrap = self.0;
        let adapter = open(&config, &disk, cx, wrap)?;
        let (roots, damaged) = ([config.base_path.clone()], Arc::clone(&disk));
        let reopen = {
            let disk = Arc::clone(&disk);
            move |cx| {
                let (config, disk) = (config.clone(), Arc::clone(&disk));
                Box::pin(async move { open(&config, &disk, cx, wrap) }) as _
            }
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(move |damage| files::damage(&*damaged, &roots, damage))),
            device: Some(files::hang(disk)),
            keep: Box::new(dir),
            ..Subject::new(adapter)
        })
    }
}

fn trials(name: &str, extent: Extent, suite: &Suite, not_durable: bool) -> Vec<Trial> {
    let cases = suite.cases().into_iter();
    let cases = cases.filter(|case| extent == Extent::Whole || case.name().ends_with("/plain/private"));
    let cases = cases.map(|case| {
        let may_ignore =
            not_durable && (case.name().contains("reopening") || case.name().contains("broken_header"));
        Trial::ignorable_test(format!("{name}/{}", case.name()), move || match case.run() {
            Ok(()) => Ok(Completion::Completed),
            Err(Ignored(reason)) if may_ignore => Ok(Completion::ignored_with(reason)),
            Err(Ignored(reason)) => Err(Failed::from(format!("did not run, and has to: {reason}"))),
        })
    });
    cases.collect()
}

/// Runs the suite for each decorator around each adapter.
pub(crate) fn main(decorators: &[(&str, Extent, Wrap)]) -> ExitCode {
    let mut all = Vec::new();
    for (name, extent, wrap) in decorators {
        all.extend(trials(&format!("{name}/mock"), *extent, &Suite::new(Mocks(*wrap)), true));
        all.extend(trials(&format!("{name}/fs"), *extent, &Suite::new(Files(*wrap)), false));
    }
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
