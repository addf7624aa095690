//! The adapter on a live cluster: whose bytes they are, what is counted, and what happens when something dies, fills up or
//! stands still.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Cluster;
use kvstrata_core::{ErrorKind, Result, Retry};
use kvstrata_l2::{Checked, Miss, Stored, Verify};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector};
use kvstrata_l2_mooncake::{Attach, Code, MooncakeConfig, Route};
use kvstrata_mem::Allocate;
use kvstrata_mooncake_sys::{Source, Target};
use kvstrata_testkit::{gated, named, payload};
use libtest_mimic::Arguments;
use rig::{Rig, keys};

const PYTHON: &str = r#"
import sys, ctypes
from mooncake.store import MooncakeDistributedStore
master, what, names, size = sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4])
s = MooncakeDistributedStore()
assert s.setup("127.0.0.1", "P2PHANDSHAKE", 0, 64 << 20, "tcp", "", master) == 0
room = ctypes.create_string_buffer(size * len(names))
base = ctypes.addressof(room)
assert s.register_buffer(base, len(room)) == 0
at = [base + i * size for i in range(len(names))]
pattern = lambda i: bytes((j * 7 + i) % 251 for j in range(size))
if what == "put":
    for i in range(len(names)):
        ctypes.memmove(at[i], pattern(i), size)
    single = s.put_from(names[0], at[0], size)
    batch = s.batch_put_from(names[1:], at[1:], [size] * (len(names) - 1))
    print("put", single, batch)
else:
    single = s.get_into(names[0], at[0], size)
    batch = s.batch_get_into(names[1:], at[1:], [size] * (len(names) - 1))
    whole = s.get(names[0])
    got = [ctypes.string_at(a, size) for a in at]
    print("got", single, batch, whole == got[0], all(g == pattern(i) for i, g in enumerate(got)))
s.close()
"#;

const LEN: usize = 300_001;

fn pattern(i: usize) -> Vec<u8> {
    (0..LEN).map(|j| ((j * 7 + i) % 251) as u8).collect()
}

/// Ours are Mooncake's, and the reverse, single and batched, in the form in which LMCache has them.
fn bytes_are_the_same_for_mooncakes_own_client() {
    let cluster = Cluster::start("256MB");
    let pool = common::shared_pool(32 << 20);
    let route = Attach::connect(cluster.client(0), None, common::run()).expect("the client");
    let names: Vec<String> = (0..5).map(|i| format!("ours-{i}")).collect();
    let bufs: Vec<_> = (0..5).map(|i| common::filled(&pool, &pattern(i))).collect();
    let from: Vec<_> = bufs.iter().map(Source::of).collect();
    assert_eq!(route.put_from(&names[..1], &from[..1]).expect("a put"), [Ok(())]);
    assert_eq!(route.put_from(&names[1..], &from[1..]).expect("a batch"), [Ok(()); 4]);
    let said = cluster.python(PYTHON, &["get".into(), names.join(","), LEN.to_string()]);
    assert!(said.contains(&format!("got {LEN} [{LEN}, {LEN}, {LEN}, {LEN}] True True")), "{said}");

    let theirs: Vec<String> = (0..5).map(|i| format!("theirs-{i}")).collect();
    let said = cluster.python(PYTHON, &["put".into(), theirs.join(","), LEN.to_string()]);
    assert!(said.contains("put 0 [0, 0, 0, 0]"), "{said}");
    let mut room: Vec<_> = (0..5).map(|_| pool.reserve(LEN, 4096).expect("room")).collect();
    let (first, rest) = room.split_at_mut(1);
    assert_eq!(
        route.get_into(&theirs[..1], &mut [Target::of(&mut first[0])]).expect("a get"),
        [Ok(LEN as u64)]
    );
    let mut to: Vec<_> = rest.iter_mut().map(Target::of).collect();
    assert_eq!(route.get_into(&theirs[1..], &mut to).expect("a batch"), [Ok(LEN as u64); 4]);
    for (i, buf) in room.iter().enumerate() {
        let mut bytes = vec![0; LEN];
        buf.read_at(0, &mut bytes).expect("inside");
        assert!(bytes == pattern(i), "object {i} of Mooncake's client differs");
    }
    route.close();
}

/// n keys are one put request and one get request, and the bytes through our sockets are those of names and numbers.
fn a_batch_is_one_request_and_no_copy() {
    let cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 128 << 20).expect("an adapter");
    let keys = keys("counted", 0..32);
    let asked = |name: &str| cluster.metric(name).unwrap_or(-1.0);
    let before = (
        asked("master_batch_put_start_requests_total"),
        asked("master_batch_get_replica_list_requests_total"),
    );
    assert!(rig.put(&keys, 1 << 20).iter().all(|a| a.as_ref().is_ok_and(|s| *s == Stored::Written)));
    let puts = rig.store.counts();
    assert_eq!((puts.puts, puts.put_keys, puts.gets, puts.copied), (1, 64, 0, 0), "{puts:?}");
    assert!(rig.get(&keys, 1 << 20, Duration::from_secs(60)).iter().all(std::result::Result::is_ok));
    let gets = rig.store.counts();
    assert_eq!(
        (gets.puts, gets.gets, gets.get_keys, gets.copied, gets.removes),
        (1, 1, 64, 0, 0),
        "{gets:?}"
    );
    let after = (
        asked("master_batch_put_start_requests_total"),
        asked("master_batch_get_replica_list_requests_total"),
    );
    if before.0 >= 0.0 {
        assert_eq!(after.0 - before.0, 1.0, "the master saw one put");
    }
    rig.finish();
}

/// Write-once underneath, and still: the same again is present, and something else takes its place.
fn a_second_store_is_present_or_takes_its_place() {
    let cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let (keys, other) = (keys("again", 0..4), keys("other", 0..4));
    let kinds =
        |answers: Vec<Result<Stored>>| answers.into_iter().map(|a| a.expect("a put")).collect::<Vec<_>>();
    let far = Duration::from_secs(60);
    assert_eq!(kinds(rig.put_as(&keys, &other, LEN, far)), [Stored::Written; 4]);
    assert_eq!(kinds(rig.put_as(&keys[..2], &other[..2], LEN, far)), [Stored::Present; 2]);
    assert_eq!(kinds(rig.put(&keys, LEN)), [Stored::Written; 4]);
    assert_eq!(rig.get(&keys, LEN, far), [Ok(()), Ok(()), Ok(()), Ok(())]);
    rig.finish();
}

/// A payload that nothing describes, such as LMCache's own, and a description without its payload, as after an eviction: both
/// are misses, and the next store takes their place.
fn half_an_object_is_a_miss_and_replaced() {
    let cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let route = Attach::connect(cluster.client(0), None, common::run()).expect("the client");
    let (all, far) = (keys("half", 0..4), Duration::from_secs(60));
    let name = |i: usize| format!("{}{}", rig.store.key_prefix(), all[i]);
    // 0: another payload alone; 1: its description alone; 2: another payload under its description; 3: whole.
    assert!(rig.put(&all[1..], LEN).iter().all(|a| matches!(a, Ok(Stored::Written))));
    common::replace(&route, &rig.pool, &name(0), &pattern(0)).expect("a put");
    assert_eq!(route.remove(&[name(1)]).expect("an answer"), [Ok(())]);
    common::replace(&route, &rig.pool, &name(2), &pattern(2)).expect("a put");
    route.close();
    let got = rig.get(&all, LEN, far);
    assert!(got[..3].iter().all(std::result::Result::is_err) && got[3].is_ok(), "{got:?}");
    let again: Vec<_> = rig.put(&all, LEN).into_iter().map(|a| a.expect("a put")).collect();
    assert_eq!(again, [Stored::Written, Stored::Written, Stored::Written, Stored::Present]);
    assert_eq!(rig.get(&all, LEN, far), [Ok(()), Ok(()), Ok(()), Ok(())]);
    rig.finish();
}

/// The pool is full: what had no room says so, with when to come again, and loads go on; when room comes, stores do too. What was
/// stored is there, but for what the master itself says it gave up since: a release may do that as soon as a store fails, and
/// 0.3.10 does.
fn a_full_pool_declines_and_recovers() {
    let cluster = Cluster::start("64MB");
    let rig = Rig::open(&cluster.config(), 256 << 20).expect("an adapter");
    let all = keys("full", 0..48);
    let answers = rig.put(&all, 4 << 20);
    let stored: Vec<_> =
        all.iter().zip(&answers).filter(|(_, a)| a.is_ok()).map(|(k, _)| k.clone()).collect();
    let declined: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    assert!(
        !stored.is_empty() && !declined.is_empty(),
        "{} stored, {} declined",
        stored.len(),
        declined.len()
    );
    for e in declined {
        assert_eq!((e.kind(), matches!(e.retry(), Retry::After(_))), (ErrorKind::NoSpace, true), "{e}");
    }
    let loaded = rig.get(&stored, 4 << 20, Duration::from_secs(60));
    let given_up = cluster.metric("master_evicted_key_count").expect("the master's count");
    let lost: Vec<_> = loaded.iter().filter_map(|l| l.as_ref().err()).collect();
    assert!(lost.iter().all(|why| *why == Miss::Absent.name()), "what is given up is a miss: {loaded:?}");
    assert!(
        lost.len() as f64 <= given_up && lost.len() < stored.len(),
        "loads go on in a full pool of which {given_up} objects were given up: {loaded:?}"
    );
    let kept: Vec<_> =
        stored.iter().zip(&loaded).filter(|(_, l)| l.is_ok()).map(|(k, _)| k.clone()).collect();
    let gone: Vec<_> = all.iter().filter(|k| !stored.contains(k)).cloned().collect();
    assert!(rig.found(&gone).into_iter().all(|f| !f.expect("a probe")), "what was declined is not there");
    let deadline = rig.within(Duration::from_secs(20));
    let remove = rig.adapter.remove.as_ref().expect("the ability");
    let removed = rig.runtime.block_on(remove.remove(kept.as_slice().into(), deadline));
    assert!(removed.into_iter().all(|r| r.expect("a removal")), "leased objects are removed too");
    let answers = rig.put(&gone[..1], 4 << 20);
    assert!(answers[0].is_ok(), "room came back: {answers:?}");
    rig.finish();
}

/// What was stored and never asked for can go at once: with a pool of 64 MB, stores of 256 MB go on, because none of them leaves a
/// lease of ten seconds behind.
fn stores_do_not_lease_what_they_store() {
    let cluster = Cluster::start("64MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let (mut stored, mut asked) = (0, 0);
    for batch in 0..32 {
        let some = keys("lease", batch * 8..batch * 8 + 8);
        let mut left = some.clone();
        // The master gives up objects when a store fails, and a moment after it.
        for _ in 0..20 {
            let answers = rig.put(&left, 1 << 20);
            asked += left.len();
            left = left.into_iter().zip(&answers).filter(|(_, a)| a.is_err()).map(|(k, _)| k).collect();
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        stored += some.len() - left.len();
    }
    assert_eq!(stored, 256, "of {asked} that were asked for");
    rig.finish();
}

/// The client dies under calls: they end, nothing is wrong, and after its restart the same adapter goes on.
fn a_killed_client_is_attached_to_again() {
    let mut cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let all = keys("killed", 0..8);
    assert!(rig.put(&all, 1 << 20).iter().all(Result::is_ok));
    cluster.kill_client(0);
    let soon = Duration::from_secs(5);
    assert!(rig.get(&all, 1 << 20, soon).iter().all(std::result::Result::is_err), "nobody is there");
    assert!(rig.put_as(&all, &all, 1 << 20, soon).iter().all(Result::is_err));
    cluster.start_client(0);
    let works = (0..60).any(|_| {
        let again = rig.put(&all, 1 << 20).iter().all(Result::is_ok);
        again || {
            std::thread::sleep(Duration::from_millis(500));
            false
        }
    });
    assert!(works, "the adapter recovers without a restart of its own");
    assert!(rig.get(&all, 1 << 20, Duration::from_secs(60)).iter().all(std::result::Result::is_ok));
    rig.finish();
}

/// The master dies and comes back, empty.
fn a_killed_master_is_an_error_and_then_misses() {
    let mut cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let all = keys("master", 0..4);
    assert!(rig.put(&all, 1 << 20).iter().all(Result::is_ok));
    cluster.kill_master();
    let limit = Duration::from_secs(3);
    let answers = rig.put_as(&keys("master", 10..12), &all[..2], 1 << 20, limit);
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    cluster.start_master();
    let works = (0..120).any(|_| {
        let again = rig.put(&all, 1 << 20).iter().all(Result::is_ok);
        again || {
            std::thread::sleep(Duration::from_millis(500));
            false
        }
    });
    assert!(works, "the adapter recovers without a restart of its own");
    assert!(rig.get(&all, 1 << 20, Duration::from_secs(60)).iter().all(std::result::Result::is_ok));
    rig.finish();
}

/// Another machine's segment: its owner stands still, and then is killed. Calls end by their deadlines, and a dead owner is a
/// miss.
fn a_slow_owner_and_a_dead_one() {
    let mut cluster = Cluster::with_clients(&["0", "256MB"]);
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let all = keys("owner", 0..4);
    assert!(rig.put(&all, 1 << 20).iter().all(Result::is_ok));
    let owner = cluster.client_pid(1);
    common::signal(owner, true);
    let limit = Duration::from_millis(1500);
    let got = rig.get(&all, 1 << 20, limit);
    assert!(got.iter().all(std::result::Result::is_err), "{got:?}");
    let poison = rig.pool.usage().buffers;
    common::signal(owner, false);
    let loaded = (0..60).any(|_| {
        rig.get(&all, 1 << 20, Duration::from_secs(20)).iter().all(std::result::Result::is_ok) || {
            std::thread::sleep(Duration::from_millis(500));
            false
        }
    });
    assert!(loaded, "it goes on when its owner does ({poison} buffers were out meanwhile)");
    cluster.kill_client(1);
    let got = rig.get(&all, 1 << 20, Duration::from_secs(20));
    assert!(got.iter().all(|g| g.as_ref().is_err_and(|why| why == Miss::Absent.name())), "{got:?}");
    rig.finish();
}

/// The client has dropped us, as after ten seconds without a heartbeat: memory is handed over again, once.
fn an_expired_attachment_is_renewed_once() {
    let cluster = Cluster::start("256MB");
    let pool = common::shared_pool(8 << 20);
    let (run, name) = (common::run(), ["expired".to_owned()]);
    let route = Attach::connect(cluster.client(0), None, run).expect("the client");
    let buf = common::filled(&pool, &pattern(1));
    assert_eq!(route.put_from(&name, &[Source::of(&buf)]).expect("a put"), [Ok(())]);
    assert_eq!(route.attachments(), 1);
    route.let_forget().expect("the client");
    let mut room = pool.reserve(LEN, 4096).expect("room");
    assert_eq!(route.get_into(&name, &mut [Target::of(&mut room)]).expect("a get"), [Ok(LEN as u64)]);
    assert_eq!(route.attachments(), 2);
    // A size that does not fit is the same code, and no reason to attach again.
    let mut small = pool.reserve(4096, 4096).expect("room");
    assert_eq!(
        route.get_into(&name, &mut [Target::of(&mut small)]).expect("a get"),
        [Err(Code::INVALID_PARAMS)]
    );
    assert_eq!(route.attachments(), 2);
    route.close();
}

/// Ten thousand batches that fail leave no buffer behind.
fn failing_batches_leak_nothing() {
    let mut cluster = Cluster::start("64MB");
    let rig = Rig::open(&cluster.config(), 8 << 20).expect("an adapter");
    cluster.kill_client(0);
    let keys = keys("leak", 0..3);
    let limit = Duration::from_secs(5);
    for i in 0..5000 {
        assert!(rig.get(&keys, 5000, limit).iter().all(std::result::Result::is_err), "batch {i}");
        assert!(rig.put_as(&keys, &keys, 5000, limit).iter().all(Result::is_err), "batch {i}");
    }
    rig.finish();
}

/// Faults of all classes, below the checks and above a live cluster: no wrong byte, and no buffer left.
fn a_storm_of_faults_yields_no_wrong_byte() {
    let cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let classes: Vec<_> =
        Fault::ALL.into_iter().filter(|f| !matches!(f, Fault::Hang | Fault::Panic)).collect();
    let faults = FaultConfig { delay_ms: 1, ..FaultConfig::new(0.2, 7, &classes) };
    let injector = Injector::new(rig.store.adapter(), &faults, rig.cx.clone()).expect("settings");
    let adapter = Checked::new(injector.adapter(), Verify::On, rig.cx.clone()).adapter;
    let rig = Rig { adapter, ..rig };
    let limit = Duration::from_secs(10);
    let (mut loaded, mut lost) = (0, 0);
    for round in 0..60 {
        let first = round * 7 % 40;
        let some = keys("storm", first..first + 12);
        drop(rig.put_as(&some, &some, 40_000, limit));
        for answer in rig.get(&some, 40_000, limit) {
            *if answer.is_ok() { &mut loaded } else { &mut lost } += 1;
        }
        drop(rig.found(&some));
        if round % 5 == 4 {
            let remove = rig.adapter.remove.as_ref().expect("the ability");
            drop(rig.runtime.block_on(remove.remove(some[..4].into(), rig.within(limit))));
        }
    }
    assert!(loaded > 100 && lost > 20, "{loaded} were loaded, {lost} were not");
    let counts = injector.counts();
    for class in classes {
        assert!(counts.of(class).injected > 0, "{} never happened", class.name());
    }
    rig.finish();
}

/// Connections break, the client lives: calls end with an answer that is right, and the adapter goes on with new ones.
fn a_broken_connection_to_a_living_client_is_replaced() {
    let cluster = Cluster::start("256MB");
    let rig = Rig::open(&cluster.config(), 128 << 20).expect("an adapter");
    let all = keys("cut", 0..16);
    assert!(rig.put(&all, 1 << 20).iter().all(Result::is_ok));
    let done = AtomicBool::new(false);
    let cuts = std::thread::scope(|s| {
        let cutter = s.spawn(|| {
            let mut cuts = 0;
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(3));
                cuts += common::cut(cluster.client(0));
            }
            cuts
        });
        for round in 0..40 {
            let limit = Duration::from_secs(20);
            // Each is right or said to be missing or failed.
            drop(rig.get(&all, 1 << 20, limit));
            let more = keys("cut", 100 + round..102 + round);
            drop(rig.put_as(&more, &more, 1 << 20, limit));
        }
        done.store(true, Ordering::Relaxed);
        cutter.join().expect("the cutter")
    });
    assert!(cuts > 20, "{cuts} connections were broken");
    let again = (0..40).any(|_| {
        let right = rig.get(&all, 1 << 20, Duration::from_secs(20)).iter().all(std::result::Result::is_ok);
        right || {
            assert!(rig.put(&all, 1 << 20).iter().all(Result::is_ok), "stores go on");
            false
        }
    });
    assert!(again, "it goes on with new connections");
    rig.finish();
}

/// A writer died after it had begun an object: Mooncake answers the next put of it with success and stores nothing. Here that
/// is a failure, of this key alone.
fn a_put_that_stored_nothing_is_no_success() {
    let mut cluster = Cluster::with_clients(&["0", "256MB", "0"]);
    let rig = Rig::open(&cluster.config(), 64 << 20).expect("an adapter");
    let all = keys("claimed", 0..3);
    let name = [format!("{}{}", rig.store.key_prefix(), all[1])];
    let buf = common::filled(&rig.pool, &pattern(0));
    common::signal(cluster.client_pid(1), true);
    let writer = Attach::connect(cluster.client(2), None, common::run()).expect("the client");
    std::thread::scope(|s| {
        let put = s.spawn(|| writer.put_from(&name, &[Source::of(&buf)]));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!put.is_finished(), "the owner stands still");
        cluster.kill_client(2);
        assert!(put.join().expect("a thread").is_err(), "its client is dead");
    });
    writer.close();
    common::signal(cluster.client_pid(1), false);
    // What Mooncake says by itself.
    let plain = Attach::connect(cluster.client(0), None, common::run()).expect("the client");
    assert_eq!(plain.put_from(&name, &[Source::of(&buf)]).expect("a put"), [Ok(())]);
    assert!(matches!(plain.exists(&name).expect("an answer")[..], [Ok(false)]));
    plain.close();
    drop(buf);
    let answers = rig.put(&all, LEN);
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert_eq!(answers[1].as_ref().expect_err("nothing was stored").kind(), ErrorKind::Busy);
    let got = rig.get(&all, LEN, Duration::from_secs(20));
    assert!(got[0].is_ok() && got[1].is_err() && got[2].is_ok(), "{got:?}");
    // Not for ever: the master gives up what nobody goes on with.
    let landed = (0..60).any(|_| {
        std::thread::sleep(Duration::from_millis(250));
        rig.put(&all[1..2], LEN)[0].is_ok()
    });
    assert!(landed, "a writer that is gone does not keep its key");
    assert_eq!(rig.get(&all, LEN, Duration::from_secs(20)), [Ok(()), Ok(()), Ok(())]);
    rig.finish();
}

/// LMCache's objects in both forms, bit for bit.
fn lmcaches_forms_are_kept() {
    let cluster = Cluster::start("256MB");
    let pool = common::shared_pool(8 << 20);
    let route = Attach::connect(cluster.client(0), None, common::run()).expect("the client");
    for (meta, header) in [(false, 0), (true, 28)] {
        let config = MooncakeConfig {
            digests: false,
            save_chunk_meta: Some(meta),
            key_prefix: format!("form-{meta}-"),
            local_buffer_size: 64 << 20,
            ..cluster.config()
        };
        let rig = Rig::open(&config, 64 << 20).expect("an adapter");
        let all = keys("forms", 0..3);
        assert!(rig.put(&all, LEN).iter().all(Result::is_ok));
        assert_eq!(rig.get(&all, LEN, Duration::from_secs(60)), [Ok(()), Ok(()), Ok(())]);
        assert!(rig.found(&all).into_iter().all(|f| f.expect("a probe")));
        let prefix = rig.store.key_prefix().to_owned();
        let bytes = common::raw(&route, &pool, &format!("{prefix}{}", all[0])).expect("the object");
        let mut payload = vec![0; LEN];
        payload::fill(&all[0], &mut payload);
        assert_eq!(bytes.len(), header + LEN);
        assert!(bytes[header..] == payload, "the payload is as it is");
        if meta {
            let words: Vec<i32> =
                bytes[..28].as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect();
            assert_eq!(words, [LEN as i32, 1, 6, LEN as i32, 0, 0, 0]);
            assert_eq!(rig.store.counts().copied, 2 * 3 * LEN as u64, "this form is copied, once each way");
        }
        rig.finish();
    }
    route.close();
}

/// A master that is not there, or a client of no known release, fails at the start with what was tried.
fn what_is_not_there_fails_at_the_start() {
    let cluster = Cluster::start("64MB");
    let nowhere = MooncakeConfig { master_server_address: Some("127.0.0.1:1".into()), ..cluster.config() };
    let e = Rig::open(&nowhere, 1 << 20).err().expect("refused");
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().contains("127.0.0.1:1"), "{e}");
    let no_client = MooncakeConfig { client_address: "127.0.0.1:1".into(), ..cluster.config() };
    let e = Rig::open(&no_client, 1 << 20).err().expect("refused");
    assert!(e.to_string().contains("none is named"), "{e}");
    // The master speaks the same protocol and has none of the client's functions.
    let master =
        MooncakeConfig { client_address: format!("127.0.0.1:{}", cluster.ports.master), ..cluster.config() };
    let e = Rig::open(&master, 1 << 20).err().expect("refused");
    assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
}

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let tests = named![
        bytes_are_the_same_for_mooncakes_own_client
        a_batch_is_one_request_and_no_copy
        a_second_store_is_present_or_takes_its_place
        half_an_object_is_a_miss_and_replaced
        a_full_pool_declines_and_recovers
        stores_do_not_lease_what_they_store
        a_killed_client_is_attached_to_again
        a_killed_master_is_an_error_and_then_misses
        a_slow_owner_and_a_dead_one
        an_expired_attachment_is_renewed_once
        failing_batches_leak_nothing
        a_storm_of_faults_yields_no_wrong_byte
        a_broken_connection_to_a_living_client_is_replaced
        a_put_that_stored_nothing_is_no_success
        lmcaches_forms_are_kept
        what_is_not_there_fails_at_the_start
    ];
    libtest_mimic::run(&args, gated::trials(common::wheel().err().as_deref(), &tests)).exit_code()
}
