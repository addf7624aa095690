//! The wire against messages that LMCache 0.5.6 encoded, byte for byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvstrata_server::Unreadable;
use kvstrata_server::api::{KvEvent, KvEventBatch, Reply, Request, Slot, Tokens};
use kvstrata_server::wire::{Operation, read_answer, read_request, reply_parts, request_parts};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/lmcache-0.5.6-zmq.json")).unwrap()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn frames(v: &Value, which: &str) -> Option<Vec<Bytes>> {
    Some(v.get(which)?.as_array()?.iter().map(|f| unhex(f.as_str().unwrap())).collect())
}

fn operations() -> Vec<(Operation, Value)> {
    let vectors = vectors();
    let by_name = vectors["operations"].as_object().unwrap();
    let find = |name: &str| Operation::ALL.iter().find(|op| op.name() == name).copied();
    let mut all: Vec<_> =
        by_name.iter().map(|(name, v)| (find(name).unwrap_or_else(|| panic!("{name}")), v.clone())).collect();
    all.sort_by_key(|(op, _)| op.name());
    all
}

/// The operations that exist there and are refused here.
const REFUSED: &[&str] = &[
    "cb_protocol_handshake",
    "cb_unified_lookup",
    "p2p_lookup_and_lock",
    "p2p_query_lookup_results",
    "p2p_unlock_objects",
    "server_module_call",
];

#[test]
fn every_operation_has_its_number_or_name() {
    let all = operations();
    assert_eq!(all.len(), Operation::ALL.len());
    for (op, v) in all {
        let part = unhex(v["operation"].as_str().unwrap());
        assert_eq!(op.part(), part, "{}", op.name());
        assert_eq!(Operation::read(&part), Ok(op));
    }
    for bad in [&[0u8][..], &[11], &[34], b"\xa4noop", b"\xc0", b"", &[1, 1], &[0xff]] {
        assert!(Operation::read(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn every_request_is_read_and_written_as_lmcache_writes_it() {
    let mut seen = 0;
    for (op, v) in operations() {
        let Some(request) = frames(&v, "request") else { continue };
        let read = read_request(op, &request[2..]);
        if REFUSED.contains(&op.name()) {
            assert_eq!(read.unwrap_err().field, "operation");
            continue;
        }
        let read = read.unwrap_or_else(|e| panic!("{}: {e}", op.name()));
        assert_eq!(request_parts(0, &read), request, "{}", op.name());
        seen += 1;
    }
    assert_eq!(seen, 22, "all that this server offers");
}

fn slot() -> Slot {
    Slot { offset: 4096, length: 1 << 20, shape: Arc::from([2, 1, 256, 1024]), dtype: "float16".into() }
}

#[test]
fn every_reply_is_written_as_lmcache_writes_it() {
    let events = KvEventBatch {
        enabled: true,
        incarnation: 5,
        next_cursor: 3,
        lost: false,
        events: vec![Arc::new(KvEvent {
            seq: 1,
            stored: true,
            model: "m".into(),
            hashes: vec![[1; 32]],
            parent: None,
            tokens: Tokens::from(&[1u32, 2][..]),
        })],
    };
    let replies = [
        ("lookup", Reply::None),
        ("query_prefetch_status", Reply::Int(3)),
        ("wait_prefetch_status", Reply::Int(3)),
        ("free_lookup_locks", Reply::None),
        ("end_session", Reply::None),
        (
            "register_kv_cache_engine_driven_context",
            Reply::Pool { name: "lmcache_l1_pool_x".into(), bytes: 1 << 32 },
        ),
        ("unregister_kv_cache_engine_driven_context", Reply::None),
        ("prepare_store", Reply::PrepareStore(Some((vec![slot()], vec![0])))),
        ("commit_store", Reply::Bool(true)),
        ("prepare_retrieve", Reply::PrepareRetrieve(Some(vec![slot()]))),
        ("commit_retrieve", Reply::Bool(true)),
        ("clear", Reply::None),
        ("get_chunk_size", Reply::Int(256)),
        ("ping", Reply::Bool(true)),
        ("report_block_allocation", Reply::None),
        ("noop", Reply::Text("OK".into())),
        ("get_experimental", Reply::Texts(vec!["kv_event_stream".into()])),
        ("subscribe_kv_events", Reply::Events(events)),
        ("register_kv_cache", Reply::None),
        ("unregister_kv_cache", Reply::None),
    ];
    let all = operations();
    for (name, reply) in &replies {
        let (op, v) = all.iter().find(|(op, _)| op.name() == *name).unwrap();
        let sample = frames(v, "response").unwrap();
        assert_eq!(reply_parts(Bytes::from_static(&[0]), *op, reply), sample, "{name}");
        assert_eq!(read_answer(*op, &sample[1..]).as_ref(), Ok(reply), "{name}");
    }
    // The samples carry a device's event; without device work the handle is empty.
    let done = reply_parts(Bytes::from_static(&[0]), Operation::Store, &Reply::Transferred(true));
    assert_eq!(done[2][..], [0x92, 0xc4, 0, 0xc3]);
    // No answer of LMCache's is left out.
    for (op, v) in &all {
        let Some(sample) = frames(v, "response") else { continue };
        let read = read_answer(*op, &sample[1..]);
        if let Operation::Store | Operation::Retrieve = op {
            assert_eq!(read, Ok(Reply::Transferred(true)));
        } else if !REFUSED.contains(&op.name()) {
            assert!(replies.iter().any(|(name, _)| *name == op.name()), "{}", op.name());
        } else if sample.len() > 2 {
            assert_eq!(read.unwrap_err().field, "result", "{}", op.name());
        }
    }
}

#[test]
fn every_no_is_read_as_it_was_meant() {
    for op in Operation::ALL {
        let parts = reply_parts(Bytes::from_static(&[7]), *op, &op.negative());
        assert_eq!(read_answer(*op, &parts[1..]), Ok(op.negative()), "{}", op.name());
    }
}

#[test]
fn every_answer_cut_or_mistyped_is_an_error_that_names_a_field() {
    for (op, v) in operations() {
        let sample = frames(&v, "response").filter(|_| !REFUSED.contains(&op.name()));
        let Some([_, operation, result]) = sample.as_deref() else { continue };
        let read = |result: Bytes| read_answer(op, &[operation.clone(), result]);
        for cut in 0..result.len() {
            let e = read(result.slice(..cut)).expect_err("cut short");
            assert!(!e.field.is_empty() && !e.expected.is_empty());
        }
        assert!(
            read([&result[..], &result[..]].concat().into()).is_err(),
            "{}: something follows",
            op.name()
        );
        assert!(read(Bytes::from_static(&[0xd4, 9, 9])).is_err(), "{}", op.name());
        let three = [operation.clone(), result.clone(), result.clone()];
        assert_eq!(read_answer(op, &three).unwrap_err().field, "answer");
    }
    assert!(read_answer(Operation::Lookup, &[]).is_err());
}

#[test]
fn another_number_of_arguments_is_refused_for_each() {
    for (op, v) in operations() {
        let Some(request) = frames(&v, "request").filter(|_| !REFUSED.contains(&op.name())) else { continue };
        let arguments = &request[2..];
        let more: Vec<_> = arguments.iter().cloned().chain([Bytes::from_static(&[0xc0])]).collect();
        assert_eq!(read_request(op, &more).unwrap_err().field, "arguments", "{}", op.name());
        if let Some((_, fewer)) = arguments.split_last() {
            assert_eq!(read_request(op, fewer).unwrap_err().field, "arguments", "{}", op.name());
        }
    }
}

#[test]
fn every_argument_cut_or_mistyped_is_an_error_that_names_a_field() {
    for (op, v) in operations() {
        let Some(request) = frames(&v, "request").filter(|_| !REFUSED.contains(&op.name())) else { continue };
        for (i, argument) in request[2..].iter().enumerate() {
            let with = |bytes: Bytes| {
                let mut all = request[2..].to_vec();
                all[i] = bytes;
                read_request(op, &all)
            };
            for cut in 0..argument.len() {
                let e = with(argument.slice(..cut)).expect_err("cut short");
                assert!(!e.field.is_empty() && !e.expected.is_empty());
            }
            let twice: Bytes = [&argument[..], &argument[..]].concat().into();
            assert!(with(twice).is_err(), "{} {i}: something follows", op.name());
            // No argument is of this type.
            assert!(
                with(Bytes::from_static(&[0xd4, 9, 9])).is_err() || op.name() == "report_block_allocation"
            );
        }
    }
}

#[test]
fn unknown_fields_are_passed_over_and_defaults_may_be_missing() {
    // {"zzz": {"a": [1, nil]}, "model_name": "m", …} without cache_salt, request_configs and num_kv_readers.
    let mut key = vec![0x88];
    key.extend_from_slice(
        b"\xa3zzz\x81\xa1a\x92\x01\xc0\xaamodel_name\xa1m\xaaworld_size\x01\xa9worker_id\xc0",
    );
    key.extend_from_slice(b"\xa9token_ids\x92\x01\x02\xa5start\x00\xa3end\x02\xaarequest_id\xa1r");
    let read = |key: &[u8]| {
        read_request(Operation::Lookup, &[Bytes::copy_from_slice(key), Bytes::from_static(&[1])])
    };
    let Ok(Request::Lookup(got)) = read(&key) else { panic!("{:?}", read(&key)) };
    assert_eq!((got.model.as_str(), got.worker, got.tokens.len(), got.end), ("m", None, 2, 2));
    assert_eq!((got.salt.as_str(), got.configs, got.readers), ("", None, 0));
    // Without the last required field.
    key[0] = 0x87;
    key.truncate(key.len() - 13);
    let e = Unreadable { field: "request_id", expected: "given" };
    assert_eq!(read(&key).unwrap_err(), e);
    let wait = |bytes: &'static [u8]| {
        read_request(
            Operation::WaitPrefetchStatus,
            &[Bytes::from_static(b"\xa1r"), Bytes::from_static(bytes)],
        )
    };
    let waits = |t| Ok(Request::WaitPrefetchStatus("r".into(), t));
    assert_eq!(wait(&[5]), waits(Duration::from_secs(5)), "whole numbers are times, too");
    assert_eq!(wait(&[0xff]), waits(Duration::ZERO));
    assert_eq!(wait(&[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0]), waits(Duration::ZERO), "not a number");
    assert_eq!(wait(&[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0]), waits(Duration::MAX), "infinity");
}

#[test]
fn device_descriptors_are_told_apart() {
    let vectors = vectors();
    let body = |name: &str| unhex(vectors["descriptors"][name].as_str().unwrap()).to_vec();
    let read = |body: &[u8]| {
        let mut list = vec![0x91, 0xc8];
        list.extend_from_slice(&(body.len() as u16).to_be_bytes());
        list.push(1);
        list.extend_from_slice(body);
        let part = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let arguments = [
            part(&[7]),
            list.into(),
            part(b"\xa1m"),
            part(&[1]),
            part(b"\xa4vllm"),
            part(&[0x80]),
            part(&[0x90]),
        ];
        read_request(Operation::RegisterKvCache, &arguments).map(|request| match request {
            Request::RegisterKvCache(r) => r.tensors[0].clone(),
            other => panic!("{other:?}"),
        })
    };
    let of = |name: &str| read(&body(name)).unwrap();
    let cpu = of("cpu_shm");
    assert_eq!(
        (cpu.kind.as_str(), cpu.shm_name.as_str(), cpu.bytes),
        ("cpu_shm", "/lmcache_kv_1_0", 262_144)
    );
    assert_eq!((cpu.shape, cpu.stride), (vec![2, 4, 16, 8, 128], vec![65_536, 16_384, 1024, 128, 1]));
    assert_eq!(of("cuda").kind, "cuda");
    assert_eq!(of("cuda_raw").kind, "cuda_raw");
    // A field that nobody here knows may say where the bytes are.
    let with_unknown = |name: &str| {
        let mut body = body(name);
        body[0] += 1;
        body.extend_from_slice(b"\xa3zzz\xc0");
        read(&body)
    };
    assert_eq!(with_unknown("cpu_shm").unwrap_err().field, "kv_caches");
    assert_eq!(with_unknown("cuda").unwrap().kind, "cuda", "it is refused for what it is");
}
