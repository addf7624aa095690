//! The adapter against its obligations: through the page cache, past it, and where the file system refuses that.

mod common;
#[path = "common/namespace.rs"]
mod namespace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_disk::Wanted;
use kvstrata_io::{EngineKind, OsDisk, OsOptions};
use kvstrata_l2::Context;
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore, LayoutChoice, Switch};
use kvstrata_testkit::conformance::{Factory, Ignored, Subject, Suite};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Stores in directories below `base`.
struct Fs {
    base: PathBuf,
    layout: LayoutChoice,
    direct: Wanted,
    /// Whether direct transfers do work there.
    works: bool,
    /// What moves bytes. The hook hangs threads, so that a ring cannot be hung.
    engine: EngineKind,
    /// Whether other processes could have it open too.
    shared: bool,
}

impl Fs {
    fn new(base: &Path, layout: LayoutChoice, direct: Wanted, works: bool) -> Self {
        Self { base: base.into(), layout, direct, works, engine: EngineKind::Threads, shared: false }
    }
}

fn open(config: &FsConfig, disk: &Arc<OsDisk>, cx: Context) -> Result<FsStore<OsDisk>> {
    let cx = FsContext { disk: Arc::clone(disk), l2: cx, writer: common::writer(), namespaces: vec![] };
    FsStore::open(config, cx)
}

#[async_trait::async_trait]
impl Factory for Fs {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let dir = tempfile::tempdir_in(&self.base).map_err(|e| Error::io("make directory", e))?;
        let options = OsOptions { engine: self.engine, ..OsOptions::default() };
        let disk = Arc::new(OsDisk::new(options).map_err(|e| Error::io("start threads", e))?);
        // Segments have a limit; where the case asks for none, it is out of reach.
        let unset = if self.layout == LayoutChoice::Slab { 256 << 20 } else { 0 };
        let config = FsConfig {
            max_capacity_gb: capacity.unwrap_or(unset) as f64 / f64::from(1 << 30),
            layout: self.layout,
            use_odirect: Some(Switch(self.direct)),
            shared: self.shared,
            ..FsConfig::new(dir.path().join("kv"))
        };
        let fs = open(&config, &disk, cx)?;
        assert_eq!(
            fs.store().direct(),
            (self.works, self.works),
            "direct transfers are what this run is about"
        );
        let adapter = fs.adapter();
        let (roots, damaged) = ([config.base_path.clone()], Arc::clone(&disk));
        let reopen = {
            let disk = Arc::clone(&disk);
            move |cx| {
                let (config, disk) = (config.clone(), Arc::clone(&disk));
                Box::pin(async move { Ok(open(&config, &disk, cx)?.adapter()) }) as _
            }
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(move |damage| common::damage(&*damaged, &roots, damage))),
            device: (self.engine == EngineKind::Threads).then(|| common::hang(disk) as _),
            keep: Box::new(dir),
            ..Subject::new(adapter)
        })
    }
}

fn trials(mode: &str, suite: &Suite, ignored: Option<&str>) -> Vec<Trial> {
    let ring = mode.ends_with("/ring");
    let cases = suite.cases().into_iter().map(|case| {
        let why = ignored.map(str::to_owned);
        Trial::ignorable_test(format!("{mode}/{}", case.name()), move || match why {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => match case.run() {
                Ok(()) => Ok(Completion::Completed),
                Err(Ignored(reason)) if ring => Ok(Completion::ignored_with(reason)),
                Err(Ignored(reason)) => Err(Failed::from(format!("did not run, and has to: {reason}"))),
            },
        })
    });
    cases.collect()
}

fn main() -> ExitCode {
    let mounts = namespace::enter();
    let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let layouts = [("files", LayoutChoice::Files), ("slab", LayoutChoice::Slab)];
    let mut all = Vec::new();
    for (name, layout) in layouts {
        let buffered = Fs::new(&base, layout, Wanted::Off, false);
        all.extend(trials(&format!("{name}/buffered"), &Suite::new(buffered), None));
    }

    let shared = Fs { shared: true, ..Fs::new(&base, LayoutChoice::Files, Wanted::Off, false) };
    all.extend(trials("files/shared", &Suite::new(shared), None));

    let refused = {
        let dir = tempfile::tempdir_in(&base).expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let disk = Arc::new(OsDisk::new(OsOptions::default()).expect("threads"));
        let config =
            FsConfig { use_odirect: Some(Switch(Wanted::Require)), ..FsConfig::new(dir.path().join("kv")) };
        open(&config, &disk, Context::tokio(runtime.handle().clone())).err().map(|e| e.to_string())
    };
    for (name, layout) in layouts {
        let direct = Fs::new(&base, layout, Wanted::Require, true);
        all.extend(trials(&format!("{name}/direct"), &Suite::new(direct), refused.as_deref()));
    }

    let ring = OsDisk::new(OsOptions { engine: EngineKind::IoUring, ..OsOptions::default() });
    let why = refused.clone().or_else(|| ring.err().map(|e| e.to_string()));
    for (name, layout) in layouts {
        let ring = Fs { engine: EngineKind::IoUring, ..Fs::new(&base, layout, Wanted::Require, true) };
        all.extend(trials(&format!("{name}/ring"), &Suite::new(ring), why.as_deref()));
    }

    let ramfs = mounts.and_then(|at| namespace::mount(&at, "ramfs", "ramfs", "mode=0700"));
    let why = ramfs.as_ref().err().cloned();
    for (name, layout) in layouts {
        let refused = Fs::new(ramfs.as_deref().unwrap_or(Path::new("")), layout, Wanted::Try, false);
        all.extend(trials(&format!("{name}/refused"), &Suite::new(refused), why.as_deref()));
    }
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
