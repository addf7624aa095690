//! Kills of a server that keeps its cache in a directory: what was on disk before a kill is served after it, and whatever is
//! served is what was stored.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kvstrata_server::api::{Key, Reply, Request};
use kvstrata_tests::live::Worker;
use serde_json::Value;

use crate::server::{Engine, SLOT_BYTES, Server, WITHIN, key, start};

const CHUNKS: usize = 3;

fn over(directory: &Path) -> Server {
    let adapter = serde_json::json!({ "type": "fs", "base_path": directory, "max_capacity_gb": 0.25 });
    start(&["--l2-adapter", &adapter.to_string()])
}

async fn register(server: &Server) -> Worker {
    let engine = Engine::connect(&server.endpoint).await.expect("it listens");
    Worker::register(engine, 7).await.expect("it takes workers")
}

/// A prompt, apart from all others by its salt too.
fn prompt(number: u32, request: &str, worker: Option<i64>) -> Key {
    key(number, CHUNKS, &format!("{request}-{number}"), &format!("p{number}"), worker)
}

async fn store(worker: &mut Worker, number: u32) {
    let key = prompt(number, "store", Some(0));
    let slots = worker.prepare(&key).await.expect("an answer").expect("room");
    assert_eq!(slots.len(), CHUNKS);
    for slot in &slots {
        worker.fill(slot, number, SLOT_BYTES).expect("a slot");
    }
    assert!(worker.commit(&key).await.expect("an answer"));
    worker.end(&key.request).await.expect("an answer");
}

/// Looks a prompt up and reads what is there of it; how many chunks that is.
async fn read(worker: &mut Worker, number: u32) -> usize {
    let found = worker.engine.look_up(prompt(number, "read", None)).await as usize;
    let mut key = prompt(number, "read", Some(0));
    let request = key.request.clone();
    if found > 0 {
        key.end = found as i64 * 256;
        let slots = worker.slots(&key).await.expect("an answer").expect("what was found is there");
        assert_eq!(slots.len(), found);
        for (chunk, slot) in slots.iter().enumerate() {
            worker.check(slot, number, chunk as u64).expect("the bytes that were stored");
        }
        let commit = Request::CommitRetrieve(key, worker.instance);
        assert_eq!(worker.engine.ask(&commit).await, Reply::Bool(true));
    }
    worker.end(&request).await.expect("an answer");
    found
}

/// How many chunks of each prompt the directory's adapter says it has.
fn on_disk(server: &Server) -> BTreeMap<u32, usize> {
    let (status, body) = server.ask("GET", "/cache/objects?tier=l2&adapter=fs&page_size=5000", "");
    assert_eq!(status, 200, "{body}");
    let listed: Value = serde_json::from_str(&body).expect("JSON");
    let mut prompts = BTreeMap::new();
    for entry in listed["entries"].as_array().expect("entries") {
        let salt = entry["key"]["cache_salt"].as_str().and_then(|s| s.strip_prefix('p')).expect("a salt");
        *prompts.entry(salt.parse().expect("a prompt's number")).or_default() += 1;
    }
    prompts
}

#[tokio::test]
async fn what_was_on_disk_before_a_kill_is_served_after_it() {
    const KILLS: u32 = 12;
    let directory = tempfile::tempdir().expect("a directory");
    let mut before = BTreeMap::new();
    for round in 0..=KILLS {
        let server = over(directory.path());
        let mut worker = register(&server).await;
        for number in 0..2 * round {
            let found = read(&mut worker, number).await;
            let sure = before.get(&number) == Some(&CHUNKS);
            assert!(!sure || found == CHUNKS, "round {round}, prompt {number}: {found} of {CHUNKS} chunks");
        }
        let (status, status_page) = server.ask("GET", "/status", "");
        let served: Value = serde_json::from_str(&status_page).expect("JSON");
        assert_eq!((status, &served["served"]["hit_l1_tokens"]), (200, &Value::from(0)), "all from disk");
        // One that gets to disk before the kill, and one that is on its way somewhere.
        store(&mut worker, 2 * round).await;
        let begun = Instant::now();
        before = loop {
            let disk = on_disk(&server);
            if disk.get(&(2 * round)) == Some(&CHUNKS) {
                break disk;
            }
            assert!(begun.elapsed() < WITHIN, "round {round}: it does not get to disk");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        store(&mut worker, 2 * round + 1).await;
        tokio::time::sleep(Duration::from_micros(u64::from(round * 370 % 970))).await;
    }
}
