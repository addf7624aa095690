//! Several paths hold to the obligations of an adapter as one does: over memory and over directories, with every strategy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Error, Result};
use kvstrata_io::{OsDisk, OsOptions};
use kvstrata_l2::{Adapter, BreakerOptions, Context};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore};
use kvstrata_l2_mock::{Damage as Rot, Mock, MockConfig};
use kvstrata_l2_paths::{Member, Paths, PathsOptions};
use kvstrata_policy::{Place, SHARDING_NAMES, Sharding};
use kvstrata_testkit::conformance::{BusyThreads, Damage, Device, Factory, Ignored, Subject, Suite};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

#[path = "../../l2-fs/tests/common/mod.rs"]
mod files;

/// The suite hangs the device again and again and expects calls to go on right after it: breakers that never open.
fn options() -> PathsOptions {
    let breaker = BreakerOptions { consecutive: u32::MAX, ratio: 1.0, ..BreakerOptions::default() };
    PathsOptions { breaker, full_for: std::time::Duration::ZERO, ..PathsOptions::default() }
}

fn together(sharding: Sharding, adapters: Vec<Adapter>, cx: Context) -> Result<Adapter> {
    let member = |(i, adapter)| Member {
        place: Place { name: format!("path{i}"), weight: 1, devices: vec![] },
        adapter: Ok(adapter),
        open: None,
    };
    let members = adapters.into_iter().enumerate().map(member).collect();
    Ok(Paths::new("paths", sharding, members, options(), cx)?.adapter())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

struct Hung<D>(Vec<D>);

impl Device for Hung<Mock> {
    fn hang(&self) {
        self.0.iter().for_each(Mock::hang);
    }
    fn resume(&self) {
        self.0.iter().for_each(Mock::resume);
    }
}

impl Device for Hung<Arc<BusyThreads>> {
    fn hang(&self) {
        self.0.iter().for_each(|one| one.hang());
    }
    fn resume(&self) {
        self.0.iter().for_each(|one| one.resume());
    }
}

/// So many stores in memory.
struct Mocks(Sharding, usize);

#[async_trait::async_trait]
impl Factory for Mocks {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let (n, rest) = (self.1 as u64, |bytes: u64, i| if i == 0 { bytes % self.1 as u64 } else { 0 });
        let room = |bytes: u64, i| bytes / n + rest(bytes, i);
        let gb = |i| capacity.map_or(1.0, |bytes| gib(room(bytes, i)));
        let mocks: Result<Vec<Mock>> =
            (0..self.1).map(|i| Mock::open(&MockConfig::new(gb(i), 100.0), cx.clone())).collect();
        let mocks = mocks?;
        let rot = mocks.clone();
        let damage = move |damage: Damage<'_>| {
            let any = |one: &dyn Fn(&Mock) -> bool| rot.iter().any(one);
            match damage {
                Damage::Flip(key) => any(&|mock| mock.damage(key, Rot::Flip(1234))),
                Damage::Truncate(key) => any(&|mock| mock.damage(key, Rot::Truncate(1234))),
                // Of two objects in two stores' memory there is no such damage.
                Damage::Swap(a, b) => any(&|mock| mock.swap(a, b)),
                // Descriptions live in this process's memory.
                Damage::Header(_) => false,
            }
        };
        let adapters = mocks.iter().map(Mock::adapter).collect();
        Ok(Subject {
            damage: Some(Box::new(damage)),
            device: Some(Arc::new(Hung(mocks))),
            ..Subject::new(together(self.0, adapters, cx)?)
        })
    }
}

/// So many directories.
struct Files(Sharding, usize);

fn open(sharding: Sharding, configs: &[(FsConfig, Arc<OsDisk>)], cx: Context) -> Result<Adapter> {
    let adapters = configs.iter().map(|(config, disk)| {
        let fs =
            FsContext { disk: Arc::clone(disk), l2: cx.clone(), writer: files::writer(), namespaces: vec![] };
        Ok(FsStore::open(config, fs)?.adapter())
    });
    together(sharding, adapters.collect::<Result<_>>()?, cx)
}

#[async_trait::async_trait]
impl Factory for Files {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::tempdir_in(base).map_err(|e| Error::io("make directory", e))?;
        let disk = || OsDisk::new(OsOptions::default()).map_err(|e| Error::io("start threads", e));
        let config = |i| FsConfig {
            max_capacity_gb: capacity.map_or(0.0, |bytes| gib(bytes / self.1 as u64)),
            ..FsConfig::new(dir.path().join(format!("kv{i}")))
        };
        let configs: Result<Vec<_>> = (0..self.1).map(|i| Ok((config(i), Arc::new(disk()?)))).collect();
        let configs = configs?;
        let roots: Vec<PathBuf> = configs.iter().map(|(config, _)| config.base_path.clone()).collect();
        let hang = configs.iter().map(|(_, disk)| files::hang(Arc::clone(disk))).collect();
        let (sharding, damaged) = (self.0, Arc::clone(&configs[0].1));
        let adapter = open(sharding, &configs, cx)?;
        let configs = Arc::new(configs);
        let reopen = move |cx| {
            let configs = Arc::clone(&configs);
            Box::pin(async move { open(sharding, &configs, cx) }) as _
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(move |how| files::damage(&*damaged, &roots, how))),
            device: Some(Arc::new(Hung::<Arc<BusyThreads>>(hang))),
            keep: Box::new(dir),
            ..Subject::new(adapter)
        })
    }
}

fn trials(name: &str, suite: &Suite, whole: bool, may_ignore: &[&'static str]) -> Vec<Trial> {
    let cases = suite.cases().into_iter();
    let run = |name: &str| name.ends_with("/plain/private") || (whole && name.ends_with("/checked/shared"));
    let cases = cases.filter(|case| run(case.name()));
    let cases = cases.map(|case| {
        let may_ignore = may_ignore.iter().any(|part| case.name().contains(part));
        Trial::ignorable_test(format!("{name}/{}", case.name()), move || match case.run() {
            Ok(()) => Ok(Completion::Completed),
            Err(Ignored(reason)) if may_ignore => Ok(Completion::ignored_with(reason)),
            Err(Ignored(reason)) => Err(Failed::from(format!("did not run, and has to: {reason}"))),
        })
    });
    cases.collect()
}

fn main() -> ExitCode {
    let mut all = Vec::new();
    for name in SHARDING_NAMES {
        let sharding = Sharding::by_name(name).expect("a listed name");
        let memory = ["reopening", "broken_header", "swapped"];
        all.extend(trials(&format!("{name}/mock"), &Suite::new(Mocks(sharding, 3)), false, &memory));
        let whole = sharding == Sharding::ByKey;
        all.extend(trials(&format!("{name}/fs"), &Suite::new(Files(sharding, 2)), whole, &[]));
    }
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
