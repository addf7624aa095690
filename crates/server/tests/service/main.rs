//! The dispatcher over a real manager and real shared memory. The client's side of the pool is the file in /dev/shm, as
//! another process would have it.

mod events;
mod lmcache_driven;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvstrata_core::ErrorKind;
use kvstrata_l2::Context;
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{Manager, Parts};
use kvstrata_mem::{RegionOptions, ShmRegion, Slab, Stale};
use kvstrata_server::api::{EngineDriven, Key, Reply, Request, Slot, Tokens};
use kvstrata_server::{Answer, ClientId, Options, Pool, Service};

const CHUNK: usize = 16;
/// 2 × 2 layers × 16 slots × 64 wide × 2 bytes.
const BYTES: usize = 2 * 2 * CHUNK * 64 * 2;
const ME: ClientId = ClientId(1);

struct World {
    service: Service,
    manager: Manager,
    pool: File,
}

fn world_with(mib: usize, options: Options, l2: Option<&str>) -> World {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("kvstrata-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let region = ShmRegion::create(&name, (mib + 1) << 20, &RegionOptions::default(), Stale::Refuse).unwrap();
    let pool = File::options().read(true).write(true).open(format!("/dev/shm/{name}")).unwrap();
    let slab = Slab::new(vec![region]).unwrap();
    let cx = Context::tokio(tokio::runtime::Handle::current());
    let parts = Parts {
        cache: slab.pool("cache", (mib as u64) << 20),
        staging: slab.pool("staging", 1 << 20),
        eviction: kvstrata_evict::by_name("lru").unwrap(),
        admission: kvstrata_evict::admission_by_name("always").unwrap(),
        store: kvstrata_policy::store_by_name("default").unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name("default").unwrap(),
        cx: cx.clone(),
    };
    let manager = Manager::new(parts, kvstrata_manager::Options::default()).unwrap();
    if let Some(json) = l2 {
        let config: MockConfig = serde_json::from_str(json).unwrap();
        manager.add_adapter(Mock::open(&config, cx.clone()).unwrap().adapter(), 1).unwrap();
    }
    let pool_info = Some(Pool { name, bytes: ((mib + 1) as u64) << 20 });
    let options = Options { chunk_tokens: CHUNK, pool: pool_info, ..options };
    let service = Service::new(manager.clone(), cx, options).unwrap();
    World { service, manager, pool }
}

fn world() -> World {
    world_with(4, Options::default(), None)
}

fn engine(instance: i64, world_size: i64, mla: bool) -> Request {
    Request::RegisterEngineDriven(EngineDriven {
        instance,
        model: "m".into(),
        world_size,
        block_size: 16,
        layers: if mla { 4 } else { 2 },
        hidden: 64,
        dtype: "float16".into(),
        mla,
        slots: None,
    })
}

/// A prompt of so many chunks, told apart by its first token.
fn key(prompt: u32, chunks: usize, request: &str, worker: Option<i64>) -> Key {
    let tokens: Vec<u32> = (0..chunks * CHUNK).map(|i| if i == 0 { prompt } else { i as u32 }).collect();
    Key {
        model: "m".into(),
        world_size: 1,
        worker,
        tokens: Tokens::from(&tokens[..]),
        start: 0,
        end: (chunks * CHUNK) as i64,
        request: request.into(),
        salt: String::new(),
        configs: None,
        readers: 1,
    }
}

impl World {
    fn now(&self, request: Request) -> Reply {
        self.from(ME, request)
    }

    fn from(&self, client: ClientId, request: Request) -> Reply {
        match self.service.call(client, request) {
            Ok(Answer::Now(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn prepare(&self, key: &Key, instance: i64) -> (Vec<Slot>, Vec<u64>) {
        match self.now(Request::PrepareStore(key.clone(), instance)) {
            Reply::PrepareStore(Some(granted)) => granted,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&self, key: &Key, instance: i64) -> bool {
        let commit = Request::CommitStore { key: key.clone(), instance, payload: Vec::new() };
        self.service.call(ME, commit).is_ok_and(|a| matches!(a, Answer::Now(Reply::Bool(true))))
    }

    fn store(&self, key: &Key, instance: i64, fill: u8) {
        let (slots, indices) = self.prepare(key, instance);
        for (slot, i) in slots.iter().zip(indices) {
            assert_eq!((slot.length as usize, slot.dtype.as_ref()), (BYTES, "float16"));
            self.pool.write_all_at(&vec![fill + i as u8; BYTES], slot.offset).unwrap();
        }
        assert!(self.commit(key, instance));
    }

    fn hits(&self, key: &Key) -> u64 {
        assert_eq!(self.now(Request::Lookup(Key { worker: None, ..key.clone() })), Reply::None);
        match self.now(Request::QueryPrefetchStatus(key.request.clone())) {
            Reply::Int(n) => n,
            other => panic!("{other:?}"),
        }
    }

    fn retrieve(&self, key: &Key, instance: i64) -> Option<Vec<Slot>> {
        match self.now(Request::PrepareRetrieve(key.clone(), instance)) {
            Reply::PrepareRetrieve(slots) => slots,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, slot: &Slot) -> Vec<u8> {
        let mut bytes = vec![0; slot.length as usize];
        self.pool.read_exact_at(&mut bytes, slot.offset).unwrap();
        bytes
    }

    fn end(&self, request: &str) {
        assert_eq!(self.now(Request::EndSession(request.into())), Reply::None);
    }

    fn assert_nothing_held(&self) {
        let (usage, status) = (self.manager.usage(), self.service.status());
        assert_eq!((usage.pinned, usage.reserved, usage.staging.buffers), (0, 0, 0), "{usage:?}");
        assert_eq!((status.locked_chunks, status.leases, status.quarantined), (0, 0, 0), "{status:?}");
    }
}

#[tokio::test]
async fn what_one_worker_stores_another_reads_and_nothing_is_left_held() {
    let w = world();
    let Reply::Pool { bytes, .. } = w.now(engine(1, 1, false)) else { panic!("a pool") };
    assert_eq!(bytes, 5 << 20);
    w.now(engine(2, 1, false));
    let stored = key(1, 6, "a", Some(0));
    assert_eq!(w.hits(&stored), 0);
    w.store(&stored, 1, 10);
    w.end("a");
    // The same prompt, longer: what is there of it.
    let longer = key(1, 9, "b", Some(0));
    assert_eq!(w.hits(&longer), 6);
    assert_eq!(w.now(Request::QueryPrefetchStatus("b".into())), Reply::Int(0), "told once");
    assert!(w.retrieve(&longer, 2).is_none(), "not all of the range is there");
    let part = Key { start: 2 * CHUNK as i64, end: 6 * CHUNK as i64, ..longer.clone() };
    let slots = w.retrieve(&part, 2).unwrap();
    assert_eq!(slots.len(), 4);
    for (i, slot) in slots.iter().enumerate() {
        assert_eq!(w.read(slot), vec![12 + i as u8; BYTES]);
    }
    assert_eq!(w.now(Request::CommitRetrieve(part.clone(), 2)), Reply::Bool(true));
    assert_eq!(w.service.status().locked_chunks, 2, "those before the range");
    let front = Key { start: 0, end: 2 * CHUNK as i64, ..longer.clone() };
    assert_eq!(w.now(Request::FreeLookupLocks(front)), Reply::None);
    w.assert_nothing_held();
    // Storing the longer one reserves only what is new.
    let (slots, indices) = w.prepare(&longer, 2);
    assert_eq!((slots.len(), indices), (3, vec![6, 7, 8]));
    assert!(w.commit(&longer, 2));
    assert_eq!(w.prepare(&longer, 2), (vec![], vec![]), "all of it is there");
    assert!(!w.commit(&longer, 2), "nothing was prepared");
    w.end("b");
    let c = w.service.status().counts;
    assert_eq!((c.stored_chunks, c.retrieved_chunks, c.hit_tokens), (9, 4, 6 * CHUNK as u64));
    w.assert_nothing_held();
}

#[tokio::test]
async fn what_was_not_committed_is_never_seen() {
    let w = world();
    for round in 0..20 {
        w.now(engine(1, 1, false));
        let k = key(7, 4, &format!("r{round}"), Some(0));
        let (slots, _) = w.prepare(&k, 1);
        assert_eq!(slots.len(), 4, "round {round}: nothing of it was published");
        w.pool.write_all_at(&[0xee; BYTES / 2], slots[0].offset).unwrap();
        w.now(Request::UnregisterEngineDriven(1));
        assert!(
            w.service.call(ME, Request::PrepareStore(k.clone(), 1)).is_err(),
            "it is not registered any more"
        );
        w.now(engine(1, 1, false));
        assert_eq!(w.hits(&k), 0);
        assert!(!w.commit(&k, 1), "what it prepared before is gone");
        w.end(&format!("r{round}"));
        assert_eq!(w.manager.usage().cache.used, 0);
    }
    assert_eq!(w.service.status().counts.stores_aborted, 20);
    w.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_connections_end_is_gone_after_a_moment_unless_it_comes_back() {
    let w = world();
    w.now(engine(1, 1, false));
    let k = key(7, 4, "r", Some(0));
    w.prepare(&k, 1);
    w.service.disconnected(ME);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It speaks again, over another connection.
    w.from(ClientId(2), Request::Ping(Some(1)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(w.manager.usage().reserved, 4);
    w.service.disconnected(ClientId(2));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((w.manager.usage().reserved, w.manager.usage().cache.used), (0, 0));
    assert!(!w.commit(&k, 1));
    w.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_is_void_and_kept_until_its_worker_is_gone() {
    let options = Options {
        write_lease: Duration::from_secs(40),
        read_lease: Duration::from_secs(20),
        ..Options::default()
    };
    let w = world_with(4, options, None);
    w.now(engine(1, 1, false));
    w.store(&key(1, 2, "a", Some(0)), 1, 1);
    let slow = key(2, 3, "b", Some(0));
    w.prepare(&slow, 1);
    assert_eq!(w.hits(&key(1, 2, "c", Some(0))), 2);
    assert_eq!(w.service.status().locked_chunks, 2);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(w.service.status().locked_chunks, 0, "nobody came to read");
    assert_eq!(w.retrieve(&key(1, 2, "c", Some(0)), 1).unwrap().len(), 2, "it is still there");
    assert_eq!(w.now(Request::CommitRetrieve(key(1, 2, "c", Some(0)), 1)), Reply::Bool(true));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((w.service.status().quarantined, w.manager.usage().reserved), (1, 3));
    assert!(!w.commit(&slow, 1), "too late");
    assert_eq!(w.manager.usage().reserved, 3, "it may still write there");
    w.service.disconnected(ME);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((w.service.status().quarantined, w.manager.usage().reserved), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn silent_workers_are_forgotten_but_not_freed_while_connected() {
    let w = world();
    w.now(engine(1, 1, false));
    w.now(Request::Ping(Some(1)));
    w.from(ClientId(2), engine(2, 1, false));
    let k = key(2, 3, "b", Some(0));
    w.prepare(&k, 1);
    tokio::time::sleep(Duration::from_secs(200)).await;
    let status = w.service.status();
    assert_eq!(
        status.workers.iter().map(|w| w.instance).collect::<Vec<_>>(),
        [2],
        "the other one never pinged"
    );
    assert_eq!((status.counts.workers_reaped, status.quarantined, w.manager.usage().reserved), (1, 1, 3));
    w.now(engine(1, 1, false));
    assert!(!w.commit(&k, 1), "that was another life");
    w.service.disconnected(ME);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(w.manager.usage().reserved, 0);
}

#[tokio::test]
async fn every_shard_has_to_have_it_and_every_reader_takes_its_own_lock() {
    let w = world();
    for rank in 0..2 {
        w.now(engine(rank, 2, false));
    }
    let of = |rank, request: &str, chunks| Key { world_size: 2, ..key(1, chunks, request, rank) };
    w.store(&of(Some(0), "a", 4), 0, 1);
    assert_eq!(w.hits(&of(None, "b", 4)), 0);
    w.store(&of(Some(1), "a", 3), 1, 50);
    assert_eq!(w.hits(&of(None, "c", 4)), 3);
    assert_eq!(w.service.status().locked_chunks, 6);
    for rank in 0..2 {
        let slots = w.retrieve(&of(Some(rank), "c", 3), rank).unwrap();
        assert_eq!(w.read(&slots[2])[0], [3, 52][rank as usize]);
        assert_eq!(w.now(Request::CommitRetrieve(of(Some(rank), "c", 3), rank)), Reply::Bool(true));
    }
    w.assert_nothing_held();
    // One object, two readers.
    w.now(engine(5, 1, true));
    let mla = |request: &str| Key { readers: 2, ..key(9, 2, request, Some(0)) };
    w.store(&mla("d"), 5, 70);
    assert_eq!(w.hits(&mla("e")), 2);
    for left in [2, 0] {
        w.retrieve(&mla("e"), 5).unwrap();
        assert_eq!(w.now(Request::CommitRetrieve(mla("e"), 5)), Reply::Bool(true));
        assert_eq!(w.service.status().locked_chunks, left);
    }
    w.assert_nothing_held();
}

#[tokio::test]
async fn a_session_that_ends_gives_its_locks_back_and_leaves_a_reader_what_it_reads() {
    let w = world();
    w.now(engine(1, 1, false));
    let k = key(1, 8, "a", Some(0));
    w.store(&k, 1, 30);
    let r = key(1, 8, "b", Some(0));
    assert_eq!(w.hits(&r), 8);
    let slots = w.retrieve(&r, 1).unwrap();
    w.end("b");
    assert_eq!(w.service.status().locked_chunks, 0);
    w.now(Request::Clear { force: true });
    // What is cleared is not handed out again while somebody reads it.
    for other in 100..160 {
        let k = key(other, 8, &format!("x{other}"), Some(0));
        w.store(&k, 1, 200);
        w.end(&format!("x{other}"));
    }
    slots.iter().enumerate().for_each(|(i, slot)| assert_eq!(w.read(slot), vec![30 + i as u8; BYTES]));
    assert_eq!(w.now(Request::CommitRetrieve(r, 1)), Reply::Bool(true));
    w.assert_nothing_held();
}

#[tokio::test]
async fn a_full_cache_declines_visibly_and_never_says_that_it_has_what_it_has_not() {
    let w = world_with(1, Options::default(), None);
    w.now(engine(1, 1, false));
    let room = (1 << 20) / BYTES;
    let big = key(1, room, "a", Some(0));
    assert_eq!(w.prepare(&big, 1).0.len(), room);
    let other = key(2, 2, "b", Some(0));
    assert_eq!(
        w.now(Request::PrepareStore(other.clone(), 1)),
        Reply::PrepareStore(None),
        "all of it is being written"
    );
    assert!(!w.commit(&other, 1), "the client is told that it was not stored");
    assert_eq!(w.service.status().counts.chunks_declined, 2);
    assert!(w.commit(&big, 1));
    w.store(&other, 1, 1);
    w.assert_nothing_held();
}

#[tokio::test]
async fn a_slow_tier_below_delays_nobody_else() {
    let slow = r#"{"max_size_gb": 1, "mock_bandwidth_gb": 100, "delay_ms": 700}"#;
    let w = world_with(4, Options::default(), Some(slow));
    w.now(engine(1, 1, false));
    let k = key(1, 4, "a", Some(0));
    w.store(&k, 1, 5);
    w.manager.flush(Duration::from_secs(20)).await.unwrap();
    w.now(Request::Clear { force: false });
    let k = key(1, 4, "b", Some(0));
    assert_eq!(w.now(Request::Lookup(Key { worker: None, ..k.clone() })), Reply::None);
    assert_eq!(w.now(Request::QueryPrefetchStatus("b".into())), Reply::None, "still on its way");
    let Ok(Answer::Later(short)) =
        w.service.call(ME, Request::WaitPrefetchStatus("b".into(), Duration::from_millis(20)))
    else {
        panic!("that takes time")
    };
    assert_eq!(short.await.unwrap(), Reply::None);
    // Calls answer on the spot, whatever is under way.
    assert_eq!(w.now(Request::Ping(None)), Reply::Bool(true));
    w.store(&key(2, 4, "c", Some(0)), 1, 9);
    assert_eq!(w.hits(&key(2, 4, "d", Some(0))), 4, "what L1 has never asks below");
    let Ok(Answer::Later(long)) =
        w.service.call(ME, Request::WaitPrefetchStatus("b".into(), Duration::from_secs(20)))
    else {
        panic!("that takes time")
    };
    assert_eq!(long.await.unwrap(), Reply::Int(4));
    let slots = w.retrieve(&k, 1).unwrap();
    assert_eq!(w.read(&slots[3]), vec![8; BYTES]);
    assert_eq!(w.now(Request::CommitRetrieve(k, 1)), Reply::Bool(true));
    for request in ["a", "b", "c", "d"] {
        w.end(request);
    }
    w.manager.flush(Duration::from_secs(20)).await.unwrap();
    w.assert_nothing_held();
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_its_field_and_leaves_nothing() {
    let w = world();
    let refused = |request: Request| w.service.call(ME, request).expect_err("refused");
    assert_eq!(refused(Request::PrepareStore(key(1, 1, "a", Some(0)), 9)).kind(), ErrorKind::NotFound);
    let e = refused(Request::Lookup(Key { readers: 0, ..key(1, 1, "a", None) }));
    assert!(e.to_string().contains("num_kv_readers: 0"), "{e}");
    assert_eq!(w.now(Request::QueryPrefetchStatus("a".into())), Reply::Int(0), "and it is over");
    assert_eq!(w.hits(&key(1, 1, "b", None)), 0, "no worker has said how chunks of this model look");
    w.now(engine(1, 1, false));
    for bad in [
        Key { worker: None, ..key(1, 1, "c", Some(0)) },
        Key { worker: Some(1), ..key(1, 1, "c", Some(0)) },
        Key { world_size: 0, ..key(1, 1, "c", Some(0)) },
        Key { world_size: 300, ..key(1, 1, "c", Some(0)) },
        Key { start: 3, ..key(1, 1, "c", Some(0)) },
        Key { start: -16, ..key(1, 1, "c", Some(0)) },
        Key { end: -1, ..key(1, 1, "c", Some(0)) },
        Key { start: 32, ..key(1, 1, "c", Some(0)) },
        Key { salt: "a/b".into(), ..key(1, 1, "c", Some(0)) },
        Key { model: "other".into(), ..key(1, 1, "c", Some(0)) },
        Key { request: "r".repeat(2000), ..key(1, 1, "c", Some(0)) },
    ] {
        let e = refused(Request::PrepareStore(bad.clone(), 1));
        assert_eq!(e.kind(), ErrorKind::Invalid, "{bad:?}: {e}");
    }
    let Request::RegisterEngineDriven(good) = engine(3, 1, false) else { unreachable!() };
    for bad in [
        EngineDriven { dtype: "complex64".into(), ..good.clone() },
        EngineDriven { layers: 0, ..good.clone() },
        EngineDriven { hidden: i64::MAX, ..good.clone() },
        EngineDriven { slots: Some(-1), ..good.clone() },
        EngineDriven { model: "a@b".into(), ..good.clone() },
        EngineDriven { world_size: 256, ..good.clone() },
    ] {
        assert_eq!(refused(Request::RegisterEngineDriven(bad.clone())).kind(), ErrorKind::Invalid, "{bad:?}");
    }
    let k = key(5, 1, "d", Some(0));
    w.prepare(&k, 1);
    let pickled = Request::CommitStore { key: k.clone(), instance: 1, payload: vec![1] };
    assert_eq!(refused(pickled).kind(), ErrorKind::Unsupported);
    assert_eq!(w.hits(&key(5, 1, "e", None)), 0);
    assert_eq!(w.service.status().workers.len(), 1);
    w.end("d");
    w.end("e");
    w.assert_nothing_held();
    assert_eq!(w.manager.usage().cache.used, 0);
}

#[tokio::test(start_paused = true)]
async fn sessions_are_bounded_in_number_and_in_time() {
    let w = world_with(
        4,
        Options { max_sessions: 3, session_ttl: Duration::from_secs(60), ..Options::default() },
        None,
    );
    w.now(engine(1, 1, false));
    for i in 0..3 {
        assert_eq!(w.hits(&key(1, 1, &format!("s{i}"), None)), 0);
    }
    let e = w.service.call(ME, Request::Lookup(key(1, 1, "one too many", None))).expect_err("refused");
    assert_eq!(e.kind(), ErrorKind::Busy);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(w.service.status().sessions, 0);
    assert_eq!(w.hits(&key(1, 1, "now there is room", None)), 0);
}

#[tokio::test]
async fn the_end_gives_everything_back() {
    let w = world();
    w.now(engine(1, 1, false));
    w.store(&key(1, 2, "a", Some(0)), 1, 1);
    assert_eq!(w.hits(&key(1, 2, "b", None)), 2);
    w.prepare(&key(2, 2, "c", Some(0)), 1);
    w.retrieve(&key(1, 2, "b", Some(0)), 1).unwrap();
    w.service.close();
    w.assert_nothing_held();
}
