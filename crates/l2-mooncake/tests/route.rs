//! The numbered obligations of [`Route`], for the attached way on a live cluster and for the one through a library.

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::Cluster;
use kvstrata_core::ErrorKind;
use kvstrata_l2_mooncake::{Attach, Capi, Code, Route};
use kvstrata_mem::{Allocate, Pool, ReadBuf};
use kvstrata_mooncake_sys::{Source, Target};
use kvstrata_testkit::{gated, named};
use libtest_mimic::Arguments;

const LEN: usize = 200_000;

/// A library of its own, its switch, and what was called.
struct Stub {
    route: Capi,
    hung: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Stub {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (route, hung) = common::stub(dir.path()).expect("the stand-in");
        Self { route, hung, _dir: dir }
    }

    /// The calls so far.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.hung.with_extension("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn attach(cluster: &Cluster) -> Attach {
    Attach::connect(cluster.client(0), None, common::run()).expect("the client")
}

fn names(of: &str, n: usize) -> Vec<String> {
    let run = common::run();
    (0..n).map(|i| format!("{of}-{run}-{i}")).collect()
}

fn bytes(i: usize) -> Vec<u8> {
    (0..LEN).map(|j| ((j * 13 + i) % 253) as u8).collect()
}

fn buffers(pool: &Arc<Pool>, n: usize) -> Vec<ReadBuf> {
    (0..n).map(|i| common::filled(pool, &bytes(i))).collect()
}

fn put(route: &dyn Route, names: &[String], bufs: &[ReadBuf]) {
    let from: Vec<_> = bufs.iter().map(Source::of).collect();
    let put = route.put_from(names, &from).expect("a put");
    assert!(put.iter().all(Result::is_ok), "{put:?}");
}

/// Loads each into a buffer of its own; what was answered, and what is in the buffers.
fn get(route: &dyn Route, pool: &Arc<Pool>, names: &[String]) -> (Vec<Result<u64, Code>>, Vec<Vec<u8>>) {
    let mut room: Vec<_> = names.iter().map(|_| pool.reserve(LEN, 4096).expect("room")).collect();
    let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
    let got = route.get_into(names, &mut to).expect("a get");
    drop(to);
    let read = |buf: &kvstrata_mem::WriteBuf| {
        let mut bytes = vec![0; LEN];
        buf.read_at(0, &mut bytes).expect("inside");
        bytes
    };
    (got, room.iter().map(read).collect())
}

/// As many keys as a request takes are one call; through the attached way's sockets go far fewer bytes than they have.
fn attach_1_one_request_and_no_copy() {
    let cluster = Cluster::start("256MB");
    let (route, pool) = (attach(&cluster), common::shared_pool(64 << 20));
    route.register(buffers(&pool, 1)[0].region()).expect("the region");
    let n = 100;
    let (all, bufs) = (names("one", n), buffers(&pool, n));
    let before = route.traffic();
    put(&route, &all, &bufs);
    let (got, found) = get(&route, &pool, &all);
    let after = route.traffic();
    assert!(got.iter().all(|g| *g == Ok(LEN as u64)));
    assert!(found.iter().enumerate().all(|(i, f)| *f == bytes(i)));
    // A heartbeat may fall between them.
    let (calls, moved) = (after.0 - before.0, after.1 - before.1);
    assert!((2..=4).contains(&calls), "{calls} calls for two batches");
    assert!(moved < 40_000, "{moved} bytes through sockets for {} of payload", 2 * n * LEN);
    route.close();
}

fn capi_1_one_request_and_no_copy() {
    let (stub, pool) = (Stub::open(), common::shared_pool(32 << 20));
    let n = stub.route.max_keys();
    let (all, bufs) = (names("one", n), buffers(&pool, n));
    put(&stub.route, &all, &bufs);
    let (got, found) = get(&stub.route, &pool, &all);
    assert!(got.iter().all(|g| *g == Ok(LEN as u64)));
    assert!(found.iter().enumerate().all(|(i, f)| *f == bytes(i)));
    let calls: Vec<_> = stub.calls().into_iter().filter(|c| !c.starts_with("register")).collect();
    assert_eq!(calls, [format!("put {n}"), format!("get {n}")]);
}

/// Present and absent keys in turn, for each call: an entry for each, in order.
fn obligation_2(route: &dyn Route) {
    let pool = common::shared_pool(16 << 20);
    let all = names("order", 7);
    let there: Vec<_> = all.iter().step_by(2).cloned().collect();
    put(route, &there, &buffers(&pool, there.len()));
    let (got, found) = get(route, &pool, &all);
    for i in 0..all.len() {
        let want = if i % 2 == 0 { Ok(LEN as u64) } else { Err(Code::NOT_FOUND) };
        assert_eq!(got[i], want, "key {i}");
        assert!(i % 2 == 1 || found[i] == bytes(i / 2), "key {i}");
    }
    let there: Vec<_> = (0..all.len()).map(|i| i % 2 == 0).collect();
    let exist: Vec<_> = route.exists(&all).expect("an answer").into_iter().map(|e| e == Ok(true)).collect();
    assert_eq!(exist, there);
    let sizes: Vec<_> = route.sizes(&all).expect("an answer").into_iter().map(|s| s.is_ok()).collect();
    assert_eq!(sizes, there);
    let removed: Vec<_> = route.remove(&all).expect("an answer").into_iter().map(|r| r.is_ok()).collect();
    assert_eq!(removed, there);
}

fn attach_2_an_entry_for_each_key_in_order() {
    let cluster = Cluster::start("64MB");
    let route = attach(&cluster);
    obligation_2(&route);
    route.close();
}

fn capi_2_an_entry_for_each_key_in_order() {
    obligation_2(&Stub::open().route);
}

/// One key of a batch that does not fit its room fails alone; without a client the whole call is an error.
fn attach_3_a_call_fails_whole_or_by_key() {
    let mut cluster = Cluster::start("64MB");
    let (route, pool) = (attach(&cluster), common::shared_pool(8 << 20));
    let all = names("fails", 3);
    put(&route, &all, &buffers(&pool, 3));
    let mut room: Vec<_> = [LEN, 1000, LEN].map(|n| pool.reserve(n, 4096).expect("room")).into();
    let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
    let got = route.get_into(&all, &mut to).expect("a get");
    assert_eq!(got, [Ok(LEN as u64), Err(Code::INVALID_PARAMS), Ok(LEN as u64)]);
    drop(to);
    cluster.kill_client(0);
    let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
    let e = route.get_into(&all, &mut to).expect_err("nobody is there");
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert_eq!(route.exists(&all).expect_err("nobody is there").kind(), ErrorKind::Unavailable);
    route.close();
}

fn capi_3_a_call_fails_whole_or_by_key() {
    let (stub, pool) = (Stub::open(), common::shared_pool(8 << 20));
    let all = names("fails", 3);
    put(&stub.route, &all, &buffers(&pool, 3));
    let mut room: Vec<_> = [LEN, 1000, LEN].map(|n| pool.reserve(n, 4096).expect("room")).into();
    let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
    let got = stub.route.get_into(&all, &mut to).expect("a get");
    assert_eq!(got, [Ok(LEN as u64), Err(Code::INVALID_PARAMS), Ok(LEN as u64)]);
    // The C interface has no such keys at all.
    let nul = [all[0].clone(), "a\0b".into(), all[2].clone()];
    let e = stub.route.get_into(&nul, &mut to).expect_err("a key that cannot be asked for");
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
}

/// Registered once, however often it is used; again, once, by itself after the client has forgotten us.
fn attach_4_regions_are_registered_once_and_again_if_forgotten() {
    let cluster = Cluster::start("64MB");
    let (route, pool) = (attach(&cluster), common::shared_pool(8 << 20));
    let (all, bufs) = (names("known", 3), buffers(&pool, 3));
    for _ in 0..3 {
        route.register(bufs[0].region()).expect("the region");
    }
    put(&route, &all, &bufs);
    assert_eq!(route.attachments(), 1);
    for forgotten in 1..=3 {
        route.let_forget().expect("the client");
        for _ in 0..2 {
            let (got, found) = get(&route, &pool, &all);
            assert!(got.iter().all(|g| *g == Ok(LEN as u64)), "{got:?}");
            assert!(found.iter().enumerate().all(|(i, f)| *f == bytes(i)));
        }
        assert_eq!(route.attachments(), 1 + forgotten);
    }
    // A region that was given up is not needed for the others.
    let other = common::shared_pool(1 << 20);
    let more = buffers(&other, 1);
    put(&route, &names("known", 1), &more);
    route.unregister(more[0].region());
    assert!(get(&route, &pool, &all).0.iter().all(Result::is_ok));
    route.close();
}

fn capi_4_regions_are_registered_once_and_given_up_at_the_end() {
    let (stub, pool) = (Stub::open(), common::shared_pool(8 << 20));
    let (all, bufs) = (names("known", 3), buffers(&pool, 3));
    stub.route.register(bufs[0].region()).expect("the region");
    stub.route.register(bufs[0].region()).expect("the region");
    put(&stub.route, &all, &bufs);
    assert!(get(&stub.route, &pool, &all).0.iter().all(Result::is_ok));
    let count = |what: &str| stub.calls().iter().filter(|c| c.split(' ').next() == Some(what)).count();
    assert_eq!((count("register"), count("unregister")), (1, 0));
    stub.route.close();
    assert_eq!((count("register"), count("unregister")), (1, 1));
}

/// The connection of a load from an owner that stands still is broken, again and again. When the call has returned, the
/// buffers are somebody else's, and stay as they are when the owner goes on.
fn attach_5_nothing_touches_the_buffers_of_a_call_that_returned() {
    let cluster = Cluster::with_clients(&["0", "256MB"]);
    let (route, pool) = (attach(&cluster), common::shared_pool(8 << 20));
    let all = names("after", 4);
    put(&route, &all, &buffers(&pool, 4));
    let owner = cluster.client_pid(1);
    common::signal(owner, true);
    let mut room: Vec<_> = all.iter().map(|_| pool.reserve(LEN, 4096).expect("room")).collect();
    let returned = std::thread::scope(|s| {
        let (route, all) = (&route, &all);
        let room = &mut room;
        let get = s.spawn(move || {
            let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
            route.get_into(all, &mut to)
        });
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(200));
            common::cut(cluster.client(0));
            if get.is_finished() {
                break;
            }
        }
        // Either the call has returned by now, or it waits for the transfer, which the owner lets go on.
        let early = get.is_finished();
        if !early {
            common::signal(owner, false);
        }
        drop(get.join().expect("a thread"));
        early
    });
    let mine = vec![0xa5; LEN];
    room.iter_mut().for_each(|buf| buf.write_at(0, &mine).expect("inside"));
    if returned {
        common::signal(owner, false);
    }
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        for buf in &room {
            let mut now = vec![0; LEN];
            buf.read_at(0, &mut now).expect("inside");
            assert!(now == mine, "a buffer was written after its call had returned (early: {returned})");
        }
    }
    route.close();
}

fn capi_5_nothing_touches_the_buffers_of_a_call_that_returned() {
    let (stub, pool) = (Stub::open(), common::shared_pool(8 << 20));
    let all = names("after", 2);
    put(&stub.route, &all, &buffers(&pool, 2));
    std::fs::write(&stub.hung, "").expect("the switch");
    let mut room: Vec<_> = all.iter().map(|_| pool.reserve(LEN, 4096).expect("room")).collect();
    std::thread::scope(|s| {
        let (route, all) = (&stub.route, &all);
        let room = &mut room;
        let get = s.spawn(move || {
            let mut to: Vec<_> = room.iter_mut().map(Target::of).collect();
            route.get_into(all, &mut to)
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!get.is_finished(), "a call returns when the transport is done, and not before");
        std::fs::remove_file(&stub.hung).expect("the switch");
        assert!(get.join().expect("a thread").expect("a get").iter().all(Result::is_ok));
    });
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let compiler = std::process::Command::new("cc").arg("--version").output().err();
    let compiler = compiler.map(|e| format!("no C compiler (cc): {e}"));
    let attach = named![
        attach_1_one_request_and_no_copy
        attach_2_an_entry_for_each_key_in_order
        attach_3_a_call_fails_whole_or_by_key
        attach_4_regions_are_registered_once_and_again_if_forgotten
        attach_5_nothing_touches_the_buffers_of_a_call_that_returned
    ];
    let capi = named![
        capi_1_one_request_and_no_copy
        capi_2_an_entry_for_each_key_in_order
        capi_3_a_call_fails_whole_or_by_key
        capi_4_regions_are_registered_once_and_given_up_at_the_end
        capi_5_nothing_touches_the_buffers_of_a_call_that_returned
    ];
    let mut all = gated::trials(common::wheel().err().as_deref(), &attach);
    all.extend(gated::trials(compiler.as_deref(), &capi));
    libtest_mimic::run(&args, all).exit_code()
}
