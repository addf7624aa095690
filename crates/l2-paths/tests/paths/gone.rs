//! Directories that disappear under load, and paths whose stores are opened again, on real files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Rig, context, member};
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_disk::Writer;
use kvstrata_io::{Fault, OpKind, Rule, SimDisk};
use kvstrata_l2::{Adapter, BreakerOptions, Context};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore, LayoutChoice, open_os};
use kvstrata_l2_paths::{Member, OpenPath, PathState, PathsOptions};
use kvstrata_policy::Sharding;

/// Short, so that a path that is out is tried, and opened again, within moments.
fn options() -> PathsOptions {
    let (cool_down, cool_down_max) = (Duration::from_millis(20), Duration::from_millis(100));
    let breaker = BreakerOptions { cool_down, cool_down_max, ..PathsOptions::default().breaker };
    PathsOptions { breaker, reopen_after: Duration::from_millis(20), ..PathsOptions::default() }
}

#[derive(Debug)]
struct Directory {
    config: FsConfig,
    cx: Context,
    /// How often it was opened.
    opened: AtomicUsize,
}

impl Directory {
    fn new(base: &Path, name: &str, layout: LayoutChoice, cx: &Context) -> Arc<Self> {
        let capacity = 64.0 / 1024.0;
        let config = FsConfig { layout, max_capacity_gb: capacity, ..FsConfig::new(base.join(name)) };
        Arc::new(Self { config, cx: cx.clone(), opened: AtomicUsize::new(0) })
    }

    fn open_now(&self) -> Result<Adapter> {
        let id = (self.opened.fetch_add(1, Ordering::Relaxed) as u64 + 1) << 32;
        let writer = Writer { pid: std::process::id(), id };
        Ok(open_os(&self.config, self.cx.clone(), writer, vec![], None)?.adapter())
    }

    fn member(self: &Arc<Self>, i: usize) -> Member {
        Member { open: Some(Arc::clone(self) as _), ..member(i, self.open_now()) }
    }
}

#[async_trait::async_trait]
impl OpenPath for Directory {
    async fn open(&self) -> Result<Adapter> {
        // Files are opened within moments here, and no test waits meanwhile.
        tokio::task::block_in_place(|| self.open_now())
    }
}

fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
    entries.map(|e| count(e.path())).sum()
}

/// Some load, until the condition holds.
async fn until(rig: &Rig, from: u64, what: &str, holds: impl Fn() -> bool) {
    for id in from..from + 2000 {
        rig.put(&[id]).await;
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: {:?}", rig.paths.views());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_disappears_takes_its_path_out_and_comes_back_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context();
    let each: Vec<_> =
        ["a", "b", "c"].map(|name| Directory::new(dir.path(), name, LayoutChoice::Files, &cx)).to_vec();
    let members = each.iter().zip(0..).map(|(each, i)| each.member(i)).collect();
    let rig = Rig::new(Sharding::ByKey, members, options(), cx);
    let ids: Vec<u64> = (0..90).collect();
    assert!(rig.put(&ids).await.iter().all(Result::is_ok));
    let lost = rig.paths.views()[1].usage.objects;
    assert!((10..80).contains(&lost), "{:?}", rig.paths.views());

    // As a mount point looks once what was mounted there is gone: the name is there, and nothing below it.
    let (b, aside) = (dir.path().join("b"), dir.path().join("aside"));
    std::fs::rename(&b, &aside).unwrap();
    std::fs::create_dir(&b).unwrap();
    std::fs::set_permissions(&b, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let opened = each[1].opened.load(Ordering::Relaxed);
    let refuse = || {
        // It is not opened meanwhile: a file is where its lock would be.
        std::fs::create_dir_all(b.join("kvstrata.lock")).unwrap();
    };
    refuse();
    until(&rig, 1000, "it is taken out", || rig.states()[1] != PathState::Live).await;
    // Nothing is made where nobody meant it, what it had is missed, and the others have the rest.
    assert_eq!(files_below(&b), 0, "nothing is written below the mount point");
    let got = rig.get(&ids).await;
    assert!(got.iter().all(Result::is_ok), "{got:?}");
    assert_eq!(got.iter().filter(|got| **got == Ok(false)).count() as u64, lost);
    let more: Vec<u64> = (5000..5050).collect();
    assert!(rig.put(&more).await.iter().all(Result::is_ok));
    assert!(rig.get(&more).await.iter().all(|got| *got == Ok(true)));
    until(&rig, 6000, "its store is closed", || rig.states()[1] == PathState::Closed).await;

    // It is mounted again.
    std::fs::remove_dir_all(&b).unwrap();
    std::fs::rename(&aside, &b).unwrap();
    until(&rig, 10_000, "it comes back", || rig.states()[1] == PathState::Live).await;
    assert!(each[1].opened.load(Ordering::Relaxed) > opened, "opened again");
    let got = rig.get(&ids).await;
    assert!(got.iter().all(|got| *got == Ok(true)), "all that it had is there again: {got:?}");
    let deadline = rig.cx.timer.now() + Duration::from_secs(10);
    rig.adapter.store.shutdown(deadline).await.unwrap();
    assert_eq!(rig.arena.in_use(), 0, "every buffer came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_whose_directory_was_removed_serve_until_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let cx = context();
    let each = ["a", "b"].map(|name| Directory::new(dir.path(), name, LayoutChoice::Slab, &cx));
    let members = each.iter().zip(0..).map(|(each, i)| each.member(i)).collect();
    let rig = Rig::new(Sharding::ByKey, members, options(), cx);
    let ids: Vec<u64> = (0..64).collect();
    assert!(rig.put(&ids).await.iter().all(Result::is_ok));
    std::fs::remove_dir_all(dir.path().join("b")).unwrap();
    // The files that are open are there still: nothing is wrong, and nothing waits.
    let more: Vec<u64> = (100..164).collect();
    assert!(rig.put(&more).await.iter().all(Result::is_ok));
    for ids in [&ids, &more] {
        let got = rig.get(ids).await;
        assert!(got.iter().all(|got| *got == Ok(true)), "{got:?}");
    }
    let deadline = rig.cx.timer.now() + Duration::from_secs(10);
    rig.adapter.store.shutdown(deadline).await.unwrap();
}

/// A store on a simulated disk, which is another one each time it is opened.
#[derive(Debug)]
struct Replaced {
    cx: Context,
    opened: AtomicUsize,
}

fn on(disk: &SimDisk, cx: &Context, id: u64) -> Result<Adapter> {
    let writer = Writer { pid: 1, id: id << 32 };
    let cx = FsContext { disk: Arc::new(disk.clone()), l2: cx.clone(), writer, namespaces: vec![] };
    Ok(FsStore::open(&FsConfig::new("/kv"), cx)?.adapter())
}

#[async_trait::async_trait]
impl OpenPath for Replaced {
    async fn open(&self) -> Result<Adapter> {
        if self.opened.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(Error::new(ErrorKind::Io, "open store", "not yet"));
        }
        on(&SimDisk::default(), &self.cx, 9)
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_out_for_long_is_opened_again() {
    let cx = context();
    let disks = [SimDisk::default(), SimDisk::default()];
    let replaced = Arc::new(Replaced { cx: cx.clone(), opened: AtomicUsize::new(0) });
    let members = vec![
        member(0, on(&disks[0], &cx, 1)),
        Member { open: Some(Arc::clone(&replaced) as _), ..member(1, on(&disks[1], &cx, 2)) },
    ];
    let rig = Rig::new(Sharding::ByKey, members, options(), cx);
    assert!(rig.put(&(0..40).collect::<Vec<_>>()).await.iter().all(Result::is_ok));
    // For good: the disk is replaced by an empty one.
    disks[1].faults().add(Rule::new(Fault::Errno(5)).on(&[
        OpKind::Open,
        OpKind::Read,
        OpKind::Write,
        OpKind::RenameNew,
    ]));
    until(&rig, 1000, "it is opened again", || replaced.opened.load(Ordering::Relaxed) >= 2).await;
    until(&rig, 5000, "it is back", || rig.states()[1] == PathState::Live).await;
    let view = rig.paths.views().remove(1);
    assert!(view.outages == 1 && view.errors > 0 && view.why.is_none(), "{view:?}");
    let more: Vec<u64> = (9000..9040).collect();
    assert!(rig.put(&more).await.iter().all(Result::is_ok));
    assert!(rig.paths.views()[1].usage.objects > view.usage.objects, "it takes its share again");
    assert!(rig.get(&more).await.iter().all(|got| *got == Ok(true)));
}
