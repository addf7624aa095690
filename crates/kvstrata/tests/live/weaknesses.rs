//! What LMCache's server is weak at, each as a check that fails where the weakness is. What of them is time is measured in
//! `docs/performance.md`; here it is counted. The sixth is among the crowds.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvstrata_server::api::{Key, Reply, Request};
use kvstrata_server::wire::{Operation, request_parts};
use kvstrata_tests::live::{Prompt, SLOT_BYTES, Server, WITHIN, engine_driven};

use crate::{Done, Test, engine, program, server, with, worker};

pub(crate) const TESTS: &[Test] = &[
    ("w1_a_lookup_costs_less_than_a_millisecond_of_cpu", w1_a_lookup_costs_less_than_a_millisecond_of_cpu),
    ("w2_a_prompt_is_hashed_once_per_request", w2_a_prompt_is_hashed_once_per_request),
    ("w3_the_dearer_wire_is_refused_by_name", w3_the_dearer_wire_is_refused_by_name),
    ("w4_a_slow_tier_holds_up_nobody_else", w4_a_slow_tier_holds_up_nobody_else),
    ("w5_every_request_is_answered", w5_every_request_is_answered),
    ("w7_no_room_is_not_taken_for_stored", w7_no_room_is_not_taken_for_stored),
    ("w8_what_l1_has_in_full_is_not_asked_below", w8_what_l1_has_in_full_is_not_asked_below),
    ("w9_pickled_bytes_are_not_taken", w9_pickled_bytes_are_not_taken),
    (
        "w10_the_pool_is_faulted_in_before_anybody_touches_it",
        w10_the_pool_is_faulted_in_before_anybody_touches_it,
    ),
    (
        "w11_it_is_small_and_stores_show_in_counts_and_events",
        w11_it_is_small_and_stores_show_in_counts_and_events,
    ),
    ("w11_a_commit_writes_no_line_to_the_log", w11_a_commit_writes_no_line_to_the_log),
];

fn prompt(number: u32, chunks: usize) -> Prompt {
    Prompt { number, chunks }
}

/// LMCache's server takes 1.1 to 1.3 ms at this length, and four clients are served no faster than that.
fn w1_a_lookup_costs_less_than_a_millisecond_of_cpu() -> Done {
    const EACH: u32 = 100;
    const CLIENTS: u32 = 4;
    let server = server();
    with(async {
        worker(&server, 1).await.store(prompt(1, 16), "store").await.expect("it stores");
        let before = server.cpu();
        let client = async |n: u32| {
            let mut engine = engine(&server).await;
            for i in 0..EACH {
                let request = format!("{n}-{i}");
                let found = engine.look_up(prompt(1 + i % 2, 16).key(&request, None)).await;
                assert_eq!(found, if i % 2 == 0 { 16 } else { 0 });
                engine.ask(&Request::EndSession(request)).await;
            }
        };
        tokio::join!(client(0), client(1), client(2), client(3));
        let each = (server.cpu() - before) / (EACH * CLIENTS);
        assert!(each < Duration::from_millis(1), "a lookup of 4096 tokens costs {each:?} of processor time");
    });
    Ok(())
}

fn w2_a_prompt_is_hashed_once_per_request() -> Done {
    const CHUNKS: usize = 512;
    let server = server();
    let hashed = || server.metric("kvstrata_server_hashed_chunks_total") as usize;
    with(async {
        let mut worker = worker(&server, 1).await;
        let long = prompt(1, CHUNKS);
        assert_eq!(worker.engine.look_up(long.key("a", None)).await, 0);
        assert!(worker.store(long, "a").await.expect("it stores"));
        assert_eq!(hashed(), CHUNKS, "a lookup, a prepare and a commit");
        assert_eq!(worker.engine.look_up(long.key("b", None)).await, CHUNKS as u64);
        assert_eq!(worker.load(long, "b").await.expect("it loads"), Some(CHUNKS as u64));
        assert_eq!(hashed(), 2 * CHUNKS, "the same of another request");
        for request in ["a", "b"] {
            worker.end(request).await.expect("it answers");
        }
    });
    assert_eq!(server.settle(WITHIN), Vec::<String>::new());
    Ok(())
}

fn w3_the_dearer_wire_is_refused_by_name() -> Done {
    let out = Command::new(program()).args(["serve", "--transport", "grpc"]).output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("transport") && text.contains("tcp://"), "{text}");
    Ok(())
}

fn w4_a_slow_tier_holds_up_nobody_else() -> Done {
    let slow = r#"{"type":"mock","name":"disk","max_size_gb":0.1,"mock_bandwidth_gb":100,"delay_ms":1500}"#;
    let server = Server::start(program(), &["--l1-size-gb", "0.0625", "--l2-adapter", slow]);
    with(async {
        let mut worker = worker(&server, 1).await;
        assert!(worker.store(prompt(1, 4), "a").await.expect("it stores"));
        worker.end("a").await.expect("it answers");
    });
    assert_eq!(server.settle(WITHIN), Vec::<String>::new(), "the tier below has it");
    assert_eq!(server.ask("POST", "/cache/clear", "").0, 200);
    with(async {
        let mut client = worker(&server, 2).await;
        // All on one connection, and the wait before the rest.
        let mut sent = Vec::new();
        for request in [
            Request::Lookup(prompt(1, 4).key("b", None)),
            Request::WaitPrefetchStatus("b".into(), Duration::from_secs(15)),
            Request::Ping(Some(2)),
            Request::PrepareStore(prompt(9, 1).key("c", Some(0)), 2),
        ] {
            let [number, _] = client.engine.send(&request).await.expect("it reads");
            sent.push(number);
        }
        let mut came = Vec::new();
        for _ in 0..4 {
            came.push(client.engine.receive().await.expect("it answers")[0].clone());
        }
        assert_eq!(came, [&sent[0], &sent[2], &sent[3], &sent[1]], "the wait is answered last, and it alone");
        assert_eq!(client.load(prompt(1, 4), "b").await.expect("it loads"), Some(4));
    });
    Ok(())
}

fn w5_every_request_is_answered() -> Done {
    let server = server();
    with(async {
        let mut engine = engine(&server).await;
        let mut number = 0u8;
        // Numbers and names of operations that exist, that existed, and that never did.
        let mut operations: Vec<Vec<u8>> = Operation::ALL.iter().map(|op| op.part().to_vec()).collect();
        operations.extend([
            vec![0],
            vec![11],
            vec![34],
            vec![0xc0],
            b"\xa4noop".to_vec(),
            b"\xa5hello".to_vec(),
            vec![0xff],
        ]);
        let known = prompt(1, 2).key("a", Some(0));
        let key = request_parts(0, &Request::PrepareStore(known, 77))[2].to_vec();
        let nested = vec![0x91; 1 << 20];
        let arguments: [Vec<&[u8]>; 6] = [
            vec![],
            vec![&[0xc1]],
            vec![&[0xc0], &[0xc0]],
            vec![b"\xa1x"; 7],
            vec![&key, &[77]],
            vec![&nested],
        ];
        for operation in &operations {
            for arguments in &arguments {
                number = (number + 1) % 128;
                let mut parts: Vec<&[u8]> = vec![std::slice::from_ref(&number), operation];
                parts.extend(arguments);
                engine.send_parts(&parts).await.expect("it reads");
                let answer = engine
                    .receive()
                    .await
                    .unwrap_or_else(|e| panic!("{operation:?} {}: {e}", arguments.len()));
                assert_eq!(answer[0][..], [number], "{operation:?}");
            }
        }
        // A worker that nobody registered: the operation's own no, at once.
        for (request, no) in [
            (Request::PrepareStore(prompt(1, 2).key("b", Some(0)), 77), Reply::PrepareStore(None)),
            (Request::PrepareRetrieve(prompt(1, 2).key("b", Some(0)), 77), Reply::PrepareRetrieve(None)),
            (Request::CommitRetrieve(prompt(1, 2).key("b", Some(0)), 77), Reply::Bool(false)),
        ] {
            assert_eq!(engine.ask(&request).await, no);
        }
    });
    assert_eq!(server.settle(WITHIN), Vec::<String>::new());
    Ok(())
}

fn w7_no_room_is_not_taken_for_stored() -> Done {
    let server = server();
    with(async {
        let mut full = worker(&server, 1).await;
        let room = (64 << 20) / SLOT_BYTES;
        let all = full
            .prepare(&prompt(1, room).key("a", Some(0)))
            .await
            .expect("it answers")
            .expect("there is room");
        assert_eq!(all.len(), room);
        let mut other = worker(&server, 2).await;
        let key = prompt(2, 3).key("b", Some(0));
        assert_eq!(other.prepare(&key).await.expect("it answers"), None, "that is no");
        assert!(!other.commit(&key).await.expect("it answers"), "nothing was stored");
        assert_eq!(server.metric("kvstrata_server_chunks_declined_total"), 3.0);
        // What is there already is another answer.
        full.engine.ask(&Request::UnregisterEngineDriven(1)).await;
        assert!(other.store(prompt(2, 3), "b").await.expect("it stores"));
        assert_eq!(other.prepare(&key).await.expect("it answers"), Some(vec![]));
    });
    Ok(())
}

fn w8_what_l1_has_in_full_is_not_asked_below() -> Done {
    let server = server();
    let asked = || {
        let of = |op| server.metric(&format!("kvstrata_l2_calls_total{{adapter=\"disk\",op=\"{op}\"}}"));
        of("probe") + of("get")
    };
    with(async {
        let mut worker = worker(&server, 1).await;
        assert!(worker.store(prompt(1, 8), "a").await.expect("it stores"));
        let before = asked();
        for i in 0..10 {
            assert_eq!(worker.engine.look_up(prompt(1, 8).key(&format!("b{i}"), None)).await, 8);
        }
        assert_eq!(asked(), before, "L1 has all of it");
        // It is not that it is never asked.
        assert_eq!(worker.engine.look_up(prompt(1, 9).key("c", None)).await, 8);
        assert!(asked() > before);
    });
    Ok(())
}

fn w9_pickled_bytes_are_not_taken() -> Done {
    let server = server();
    with(async {
        let mut worker = worker(&server, 1).await;
        // The pool is always there, so that no client has to send bytes.
        let Reply::Pool { name, bytes } = worker.engine.ask(&engine_driven(1)).await else {
            panic!("a pool")
        };
        assert!(!name.is_empty() && bytes >= 64 << 20);
        let key: Key = prompt(1, 2).key("a", Some(0));
        assert!(worker.prepare(&key).await.expect("it answers").is_some());
        let pickle = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93.".to_vec();
        let commit = Request::CommitStore { key, instance: 1, payload: pickle };
        assert_eq!(worker.engine.ask(&commit).await, Reply::Bool(false));
        assert_eq!(worker.engine.look_up(prompt(1, 2).key("b", None)).await, 0);
        for request in ["a", "b"] {
            worker.end(request).await.expect("it answers");
        }
    });
    assert_eq!(server.settle(WITHIN), Vec::<String>::new());
    Ok(())
}

fn w10_the_pool_is_faulted_in_before_anybody_touches_it() -> Done {
    let server = server();
    let until = Instant::now() + WITHIN;
    while server.pool_faulted_in() < 64 << 20 {
        assert!(Instant::now() < until, "{} bytes have memory behind them", server.pool_faulted_in());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn w11_it_is_small_and_stores_show_in_counts_and_events() -> Done {
    let server = server();
    with(async {
        let mut worker = worker(&server, 1).await;
        let mut follower = engine(&server).await;
        let model = "org/model".to_owned();
        let follow = Request::SubscribeKvEvents { instance: 5, model, cursor: 0, max_events: 64 };
        let [number, operation] = follower.send(&follow).await.expect("it reads");
        let mut events = Vec::new();
        let mut stored = false;
        // The first batch says where the log stands; then each comes for a credit.
        while events.len() < 3 {
            let batch = follower.receive().await.expect("a batch");
            assert_eq!(batch[..2], [number.clone(), operation.clone()]);
            let read = kvstrata_server::wire::read_answer(Operation::SubscribeKvEvents, &batch[1..]);
            let Ok(Reply::Events(batch)) = read else { panic!("{read:?}") };
            assert!(batch.enabled && !batch.lost);
            events.extend(batch.events);
            if !std::mem::replace(&mut stored, true) {
                assert!(worker.store(prompt(1, 3), "a").await.expect("it stores"));
            }
            follower.send_parts(&[&number[..], b"", b"ack"]).await.expect("it reads");
        }
        let tokens = prompt(1, 3).key("a", None).tokens;
        for (i, event) in events.iter().enumerate() {
            assert!(event.stored && event.hashes.len() == 1);
            let parent = i.checked_sub(1).map(|before| events[before].hashes[0]);
            assert_eq!(event.parent, parent, "chained to the chunk before it");
            assert_eq!(event.tokens.as_be_bytes(), &tokens.as_be_bytes()[i * 1024..(i + 1) * 1024]);
        }
        follower.send_parts(&[&number[..], b"", b"cancel"]).await.expect("it reads");
        assert!(worker.load(prompt(1, 3), "a").await.expect("it loads").is_some());
    });
    assert_eq!(server.metric(r#"lmcache_mp_num_finished_stores_total{device="cpu"}"#), 1.0);
    assert_eq!(server.metric(r#"lmcache_mp_num_finished_retrieves_total{device="cpu"}"#), 1.0);
    let kib = server.anonymous_kib();
    assert!(kib < 30 << 10, "{kib} KiB of its own, where LMCache's server has 416 MB of anonymous memory");
    Ok(())
}

fn w11_a_commit_writes_no_line_to_the_log() -> Done {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("log");
    let flags = ["--l1-size-gb", "0.0625", "--l2-adapter", crate::MOCK];
    let server = Server::start_logging(program(), "info", Stdio::from(File::create(&path)?), &flags);
    let lines = || BufReader::new(File::open(&path).expect("the log")).lines().count();
    // What is told once is told by then.
    let until = Instant::now() + WITHIN;
    while server.pool_faulted_in() < 64 << 20 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    with(async {
        let mut worker = worker(&server, 1).await;
        for n in 0..2 {
            worker.store(prompt(n, 2), &n.to_string()).await.expect("it stores");
        }
        std::thread::sleep(Duration::from_millis(300));
        let before = lines();
        assert!(before > 0, "it logs");
        for n in 2..102 {
            assert!(worker.store(prompt(n, 2), &n.to_string()).await.expect("it stores"));
            assert_eq!(worker.engine.look_up(prompt(n, 2).key(&n.to_string(), None)).await, 2);
            assert!(worker.load(prompt(n, 2), &n.to_string()).await.expect("it loads").is_some());
            worker.end(&n.to_string()).await.expect("it answers");
        }
        assert_eq!(lines(), before, "a hundred stores and loads");
    });
    Ok(())
}
