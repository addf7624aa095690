//! What several paths add to one, under virtual time: speed, strategies, and a path that dies under load and comes back.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{KIB, LEN, Rig, context, member, options};
use kvstrata_core::{Affinity, Error, ErrorKind, Layout, Result};
use kvstrata_disk::Writer;
use kvstrata_io::{Fault, OpKind, Rule, SimDisk};
use kvstrata_l2::{Adapter, Context, Put, PutSink, Stored};
use kvstrata_l2_fs::{FsConfig, FsContext, FsStore};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_l2_paths::{Member, OpenPath, PathState, Paths, PathsOptions};
use kvstrata_policy::{Device, Sharding};
use parking_lot::Mutex;

fn mocks(n: usize, gb: f64, cx: &Context) -> Vec<Mock> {
    (0..n).map(|_| Mock::open(&MockConfig::new(1.0, gb), cx.clone()).unwrap()).collect()
}

fn over_mocks(mocks: &[Mock]) -> Vec<Member> {
    mocks.iter().enumerate().map(|(i, mock)| member(i, Ok(mock.adapter()))).collect()
}

fn objects(mock: &Mock) -> u64 {
    mock.adapter().usage.unwrap().usage().objects
}

/// Each simulated device moves 4 MiB a second. 8 192 keys over n paths: the fullest has a few per cent more than its share.
#[tokio::test(start_paused = true)]
async fn n_paths_are_n_times_as_fast() {
    let per_device = 4.0 / 1024.0;
    for n in [1, 2, 4] {
        let cx = context();
        let rig = Rig::new(Sharding::ByKey, over_mocks(&mocks(n, per_device, &cx)), options(), cx);
        let ids: Vec<u64> = (0..8192).collect();
        let begin = rig.cx.timer.now();
        let stored = ids
            .chunks(4096)
            .map(|ids| rig.put_from(ids, |id| id, 4 * KIB, Affinity::default(), Duration::from_secs(100)));
        let stored: Vec<_> = kvstrata_l2::all(stored.map(|call| Box::pin(call) as _).collect()).await;
        assert!(stored.into_iter().flatten().all(|answer| answer == Ok(Stored::Written)));
        let seconds = rig.cx.timer.now().since(begin).as_secs_f64();
        let (rate, sum) = (32.0 / seconds, 4.0 * n as f64);
        println!("{n} paths of 4 MiB/s: {rate:.2} MiB/s, {:.3} of the sum", rate / sum);
        assert!(rate >= 0.95 * sum && rate <= 1.01 * sum, "{n} paths: {rate} of {sum} MiB/s");
        let fewest = rig.paths.views().iter().map(|view| view.usage.objects).min();
        assert!(fewest >= Some(8192 / n as u64 * 9 / 10), "{:?}", rig.paths.views());
    }
}

/// Whoever hears of a key may count what is out. A path that refuses sends it on to the next.
#[tokio::test(start_paused = true)]
async fn a_buffer_is_free_before_its_key_is_answered() {
    for failing in [0, 1, 3] {
        let cx = context();
        let mocks = mocks(3, 100.0, &cx);
        let rig = Arc::new(Rig::new(Sharding::ByKey, over_mocks(&mocks), options(), cx));
        for mock in &mocks[..failing] {
            mock.adapter().store.shutdown(rig.cx.timer.now() + Duration::from_secs(1)).await.unwrap();
        }
        let (layout, seen) = (Layout::opaque(LEN as u64).unwrap(), Arc::new(Mutex::new(Vec::new())));
        for id in 0..20 {
            let item = rig.arena.item(&rig.key(id), &rig.key(id), &layout).unwrap();
            let (to, of) = (Arc::clone(&seen), Arc::clone(&rig));
            let answered = move |_: usize, a: Result<Stored>| to.lock().push((a.is_ok(), of.arena.in_use()));
            let request = Put {
                items: vec![item],
                deadline: rig.cx.timer.now() + Duration::from_secs(1),
                affinity: Affinity::default(),
            };
            rig.adapter.store.put(request, PutSink::new(1, Arc::new(answered))).await;
        }
        assert_eq!(*seen.lock(), vec![(failing < 3, 0); 20], "{failing} of 3 paths are closed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_writes_to_its_path_and_reads_from_any() {
    let uuid = [7; 16];
    let by_gpu = |ordinal| Affinity { ordinal: Some(ordinal), uuid: None };
    for sharding in [Sharding::ByGpu, Sharding::Map] {
        let cx = context();
        let mocks = mocks(2, 100.0, &cx);
        let mut members = over_mocks(&mocks);
        members[0].place.devices = vec![Device::Ordinal(0), Device::Ordinal(2)];
        members[1].place.devices = vec![Device::Ordinal(1), Device::Uuid(uuid)];
        let rig = Rig::new(sharding, members, options(), cx);
        let second = Duration::from_secs(1);
        for (id, from, path) in [(1, by_gpu(0), 0), (2, by_gpu(1), 1), (3, by_gpu(2), 0), (4, by_gpu(1), 1)] {
            let before = objects(&mocks[path]);
            rig.put_from(&[id], |id| id, LEN, from, second).await.remove(0).unwrap();
            assert_eq!(objects(&mocks[path]), before + 1, "{sharding:?}: key {id}");
        }
        assert_eq!(rig.get(&[1, 2, 3, 4, 5]).await, [Ok(true), Ok(true), Ok(true), Ok(true), Ok(false)]);
        // What another device has stored is there already; other bytes take its place, and there is one version.
        let again = rig.put_from(&[1], |id| id, LEN, by_gpu(1), second).await;
        assert_eq!(again, [Ok(Stored::Present)]);
        assert_eq!(rig.put_from(&[1], |_| 9, LEN, by_gpu(1), second).await, [Ok(Stored::Written)]);
        assert_eq!((objects(&mocks[0]), objects(&mocks[1])), (1, 3));
        assert_eq!(rig.get_of(&[1], |_| 9, second).await, [Ok(true)]);
        let mut listed = rig.listed().await;
        listed.sort_by_key(|key| key.fingerprint());
        let mut all: Vec<_> = (1..5).map(|id| rig.key(id)).collect();
        all.sort_by_key(|key| key.fingerprint());
        assert_eq!(listed, all);
        assert_eq!((rig.remove(2).await, rig.remove(2).await), (Ok(true), Ok(false)));
        assert!(!rig.found(2).await && rig.found(1).await);
    }
}

fn on_disk(disk: &SimDisk, cx: &Context, run: u64) -> Result<Adapter> {
    let fs = FsContext {
        disk: Arc::new(disk.clone()),
        l2: cx.clone(),
        writer: Writer { pid: 1, id: run },
        namespaces: vec![],
    };
    Ok(FsStore::open(&FsConfig::new("/kv"), fs)?.adapter())
}

/// One of three paths dies under load, in each way there is, and comes back.
async fn one_dies(
    what: &str,
    (cx, members): (Context, Vec<Member>),
    dies: impl Fn(),
    mends: impl Fn(),
    (may_fail, takes_out): (usize, bool),
) {
    let rig = Rig::new(Sharding::ByKey, members, options(), cx);
    let old: Vec<u64> = (0..300).collect();
    assert!(rig.put(&old).await.iter().all(Result::is_ok));
    let theirs = rig.paths.views()[1].usage.objects;
    assert!((60..140).contains(&theirs), "{theirs} of 300");

    dies();
    let (mut next, mut failed, mut out) = (1000, 0, false);
    for round in 0..60 {
        let ids: Vec<u64> = (next..next + 10).collect();
        next += 10;
        let begin = rig.cx.timer.now();
        let stored = rig.put(&ids).await;
        out = rig.states()[1] == PathState::Out;
        if out && rig.cx.timer.now() > begin {
            panic!("{what}: stores wait for a path that is out, in round {round}");
        }
        failed += stored.iter().filter(|answer| answer.is_err()).count();
        for (id, answer) in ids.iter().zip(&stored) {
            let is = rig.get(&[*id]).await.remove(0);
            assert!(answer.is_err() || is == Ok(true) || !out, "{what}: key {id} was stored and is {is:?}");
        }
        rig.get(&old[round * 5..round * 5 + 5]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(failed <= may_fail, "{what}: {failed} stores failed");
    assert_eq!(out, takes_out, "{what}: {:?}", rig.states());

    // Of what that disk has, something is removed, and something is stored anew with other bytes.
    let found = futures_found(&rig, &old).await;
    let lost: Vec<u64> = old.iter().copied().filter(|id| !found.contains(id)).collect();
    assert_eq!(lost.is_empty(), !takes_out, "{what}: objects of a path that is out are misses");
    if let [removed, anew, ..] = lost[..] {
        rig.remove(removed).await.unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(
            rig.put_from(&[anew], |_| 77_777, LEN, Affinity::default(), second).await,
            [Ok(Stored::Written)]
        );
        mends();
        rig.until_all_live(50_000).await;
        assert!(!rig.found(removed).await, "{what}: what was removed came back");
        assert_eq!(rig.get_of(&[anew], |_| 77_777, second).await, [Ok(true)], "{what}");
        let back: Vec<u64> = lost[2..].to_vec();
        assert!(rig.get(&back).await.iter().all(|is| *is == Ok(true)), "{what}: everything else came back");
    } else {
        mends();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = rig.paths.views()[1].usage.objects;
    let more: Vec<u64> = (60_000..60_300).collect();
    assert!(rig.put(&more).await.iter().all(Result::is_ok));
    assert!(rig.paths.views()[1].usage.objects >= before + 60, "{what}: it takes its share again");
    assert!(rig.get(&more).await.iter().all(|is| *is == Ok(true)));
    let listed = rig.listed().await;
    let once: std::collections::HashSet<_> = listed.iter().collect();
    assert_eq!(once.len(), listed.len(), "{what}: one version of each");
    let deadline = rig.cx.timer.now() + Duration::from_secs(5);
    rig.adapter.store.shutdown(deadline).await.unwrap();
    assert_eq!(rig.arena.in_use(), 0, "{what}: every buffer came back");
}

async fn futures_found(rig: &Rig, ids: &[u64]) -> Vec<u64> {
    let mut found = Vec::new();
    for id in ids {
        if rig.found(*id).await {
            found.push(*id);
        }
    }
    found
}

async fn one_disk_fails(what: &str, fault: Fault, kinds: &[OpKind], expected: (usize, bool)) {
    let cx = context();
    let disks: Vec<SimDisk> = (0..3).map(|_| SimDisk::default()).collect();
    let members = disks.iter().zip(0..).map(|(disk, i)| member(i, on_disk(disk, &cx, i as u64))).collect();
    let dies = || drop(disks[1].faults().add(Rule::new(fault).on(kinds)));
    one_dies(what, (cx, members), dies, || disks[1].faults().clear(), expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_path_with_errors_is_left_out_and_comes_back() {
    let kinds = [OpKind::Read, OpKind::Write, OpKind::Open, OpKind::RenameNew, OpKind::Rename];
    one_disk_fails("errors", Fault::Errno(5), &kinds, (0, true)).await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_full_takes_no_stores_and_goes_on_loading() {
    let kinds = [OpKind::Write, OpKind::Allocate, OpKind::SetLen];
    one_disk_fails("fills", Fault::Errno(28), &kinds, (0, false)).await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_hangs_is_left_out_and_comes_back() {
    let cx = context();
    let mocks = mocks(3, 100.0, &cx);
    let members = over_mocks(&mocks);
    one_dies("hangs", (cx, members), || mocks[1].hang(), || mocks[1].resume(), (30, true)).await;
}

#[derive(Debug)]
struct Reopen {
    mock: Mock,
    works: Arc<Mutex<bool>>,
}

#[async_trait::async_trait]
impl OpenPath for Reopen {
    async fn open(&self) -> Result<Adapter> {
        if *self.works.lock() {
            Ok(self.mock.adapter())
        } else {
            Err(Error::new(ErrorKind::Io, "open store", "there is no such device"))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_that_cannot_be_opened_is_opened_later() {
    let cx = context();
    let mocks = mocks(2, 100.0, &cx);
    let works = Arc::new(Mutex::new(false));
    let closed = || {
        let open = Reopen { mock: mocks[1].clone(), works: Arc::clone(&works) };
        let e = Error::new(ErrorKind::Io, "open store", "there is no such device");
        Member { open: Some(Arc::new(open)), ..member(1, Err(e)) }
    };
    let none = Paths::new("paths", Sharding::ByKey, vec![closed()], options(), cx.clone()).unwrap_err();
    assert!(none.kind() == ErrorKind::Io && none.to_string().contains("/mnt/1"), "{none}");
    let never = member(1, Err(Error::new(ErrorKind::Io, "open store", "no")));
    let members = vec![member(0, Ok(mocks[0].adapter())), never];
    assert!(Paths::new("paths", Sharding::ByKey, members, options(), cx.clone()).is_err());

    // What it has of a key that is stored elsewhere meanwhile is old.
    let members = vec![member(0, Ok(mocks[0].adapter())), closed()];
    let rig = Rig::new(Sharding::ByKey, members, options(), cx.clone());
    let alone = Rig::new(Sharding::ByKey, vec![member(1, Ok(mocks[1].adapter()))], options(), cx);
    let second = Duration::from_secs(1);
    alone.put_from(&[1, 2, 3], |_| 9, LEN, Affinity::default(), second).await;
    assert_eq!(rig.states(), [PathState::Live, PathState::Closed]);
    assert!(rig.put(&[1, 4, 5, 6]).await.iter().all(|answer| *answer == Ok(Stored::Written)));
    rig.remove(2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.states(), [PathState::Live, PathState::Closed]);
    assert!(rig.paths.views()[1].why.as_ref().is_some_and(|e| e.to_string().contains("no such device")));
    *works.lock() = true;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.states(), [PathState::Live, PathState::Live]);
    assert_eq!(rig.get(&[1, 2, 4]).await, [Ok(true), Ok(false), Ok(true)]);
    assert_eq!(rig.get_of(&[3], |_| 9, second).await, [Ok(true)]);
    assert_eq!(objects(&mocks[1]), 1);
}

#[tokio::test(start_paused = true)]
async fn more_removals_than_are_remembered_bring_a_path_back_empty() {
    let cx = context();
    let mocks = mocks(2, 100.0, &cx);
    let options = PathsOptions { remembered: 3, ..options() };
    let rig = Rig::new(Sharding::ByKey, over_mocks(&mocks), options, cx);
    let ids: Vec<u64> = (0..40).collect();
    assert!(rig.put(&ids).await.iter().all(Result::is_ok));
    mocks[1].hang();
    for id in 100..110 {
        rig.put(&[id]).await;
    }
    assert_eq!(rig.states()[1], PathState::Out);
    let here = objects(&mocks[0]);
    assert!(here < 48);
    for id in &ids {
        rig.remove(*id).await.unwrap();
    }
    mocks[1].resume();
    rig.until_all_live(1000).await;
    for id in &ids {
        assert!(!rig.found(*id).await, "key {id} came back");
    }
}

#[tokio::test]
async fn bad_paths_are_refused() {
    let cx = context();
    let open = |members| Paths::new("paths", Sharding::ByKey, members, options(), cx.clone());
    let e = open(vec![]).unwrap_err();
    assert_eq!(e.context().next().unwrap().0, "paths");
    let mocks = mocks(2, 1.0, &cx);
    let twice = vec![member(0, Ok(mocks[0].adapter())), member(0, Ok(mocks[1].adapter()))];
    assert!(open(twice).unwrap_err().to_string().contains("one name"));
    let blind = Adapter { list: None, ..mocks[0].adapter() };
    assert_eq!(open(vec![member(0, Ok(blind))]).unwrap_err().kind(), ErrorKind::Unsupported);
    let options = PathsOptions { lookup: Duration::ZERO, ..options() };
    assert!(Paths::new("p", Sharding::ByKey, over_mocks(&mocks), options, cx.clone()).is_err());
}
