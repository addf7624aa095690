//! A live server's page after traffic that is known to the last request.

use std::collections::BTreeMap;

use kvstrata_server::api::{Reply, Request};

use serde_json::{Value, json};

use crate::server::{Engine, SLOT_BYTES, Server, WITHIN, engine_driven, key, start};

const WORKER: i64 = 7;
const BYTES: f64 = SLOT_BYTES as f64;

fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|l| !l.starts_with('#'));
    let pairs = lines.map(|l| l.rsplit_once(' ').expect("a name and a value"));
    pairs.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

/// Stores a prompt of four chunks, reads it, finds half of a longer one, and asks for what is not there.
async fn traffic(server: &Server) -> Engine {
    let mut engine = Engine::connect(&server.endpoint).await.expect("it listens");
    // Nobody has registered: nothing can be there, and nothing is looked for.
    assert_eq!(engine.look_up(key(1, 4, "early", "", None)).await, 0);
    assert!(matches!(engine.ask(&engine_driven(WORKER)).await, Reply::Pool { .. }));

    let stored = key(1, 4, "store", "", Some(0));
    assert_eq!(engine.look_up(key(1, 4, "store", "", None)).await, 0);
    engine.ask(&Request::PrepareStore(stored.clone(), WORKER)).await;
    let commit = Request::CommitStore { key: stored, instance: WORKER, payload: Vec::new() };
    assert_eq!(engine.ask(&commit).await, Reply::Bool(true));
    engine.ask(&Request::EndSession("store".into())).await;

    assert_eq!(engine.look_up(key(1, 4, "read", "", None)).await, 4);
    engine.ask(&Request::PrepareRetrieve(key(1, 4, "read", "", Some(0)), WORKER)).await;
    let done = Request::CommitRetrieve(key(1, 4, "read", "", Some(0)), WORKER);
    assert_eq!(engine.ask(&done).await, Reply::Bool(true));
    // Another salt is another cache.
    assert_eq!(engine.look_up(key(1, 4, "salted", "team", None)).await, 0);
    assert_eq!(engine.look_up(key(1, 0, "short", "", None)).await, 0);
    // Six chunks of which four are there, and stay locked.
    assert_eq!(engine.look_up(key(1, 6, "longer", "", None)).await, 4);
    // Prepared and never committed.
    engine.ask(&Request::PrepareStore(key(9, 2, "torn", "", Some(0)), WORKER)).await;
    for _ in 0..3 {
        assert_eq!(engine.ask(&Request::Ping(Some(WORKER))).await, Reply::Bool(true));
    }
    // Of a worker that nobody knows.
    engine.ask(&Request::PrepareStore(key(1, 4, "store", "", Some(0)), 99)).await;
    engine
}

#[tokio::test]
async fn the_page_counts_what_was_done_and_nothing_else() {
    let server = start(&[]);
    let mut engine = traffic(&server).await;
    let page = server.metrics();
    let samples_now = samples(&page);
    let of =
        |name: &str| *samples_now.get(name).unwrap_or_else(|| panic!("{name} is not on the page:\n{page}"));

    let plain = r#"{model_name="org/model",cache_salt=""}"#;
    let team = r#"{model_name="org/model",cache_salt="team"}"#;
    for (name, unsalted, salted) in [
        ("lookups_requests", 3.0, 1.0),
        ("lookup_requested_tokens", 14.0 * 256.0, 4.0 * 256.0),
        ("lookup_hit_tokens", 8.0 * 256.0, 0.0),
        ("lookup_hit_l1_tokens", 8.0 * 256.0, 0.0),
        ("lookup_hit_l2_tokens", 0.0, 0.0),
        ("lookup_hit_l1_keys", 8.0, 0.0),
        ("lookup_hit_l2_keys", 0.0, 0.0),
        ("num_chunks_loaded", 4.0, 0.0),
    ] {
        assert_eq!(of(&format!("lmcache_mp_{name}_total{plain}")), unsalted, "{name}");
        assert_eq!(of(&format!("lmcache_mp_{name}_total{team}")), salted, "{name}");
    }
    for (name, n) in [
        (r#"lmcache_mp_num_submitted_stores_total{device="cpu"}"#, 2.0),
        (r#"lmcache_mp_num_finished_stores_total{device="cpu"}"#, 1.0),
        (r#"lmcache_mp_num_submitted_retrieves_total{device="cpu"}"#, 1.0),
        (r#"lmcache_mp_num_finished_retrieves_total{device="cpu"}"#, 1.0),
        ("lmcache_mp_active_prefetch_jobs", 0.0),
        (r#"lmcache_mp_l1_write_chunks_total{l1_tag="_default"}"#, 4.0),
        (r#"kvstrata_server_tokens_total{model_name="org/model",cache_salt="",what="stored"}"#, 1024.0),
        (r#"kvstrata_server_tokens_total{model_name="org/model",cache_salt="",what="retrieved"}"#, 1024.0),
        (r#"kvstrata_server_bytes_total{what="stored"}"#, 4.0 * BYTES),
        (r#"kvstrata_server_bytes_total{what="retrieved"}"#, 4.0 * BYTES),
        (r#"kvstrata_server_stores_total{result="aborted"}"#, 0.0),
        (r#"kvstrata_server_request_duration_seconds_count{operation="ping"}"#, 3.0),
        (r#"kvstrata_server_request_duration_seconds_count{operation="lookup"}"#, 6.0),
        (r#"kvstrata_server_request_duration_seconds_count{operation="prepare_store"}"#, 3.0),
        (r#"kvstrata_server_request_duration_seconds_count{operation="noop"}"#, 0.0),
        (r#"kvstrata_server_requests_refused_total{operation="prepare_store"}"#, 1.0),
        (r#"kvstrata_server_requests_refused_total{operation="ping"}"#, 0.0),
        ("kvstrata_server_refused_total", 1.0),
        ("kvstrata_server_lookup_duration_seconds_count", 4.0),
        (r#"kvstrata_server_lookup_ends_total{reason="whole"}"#, 1.0),
        (r#"kvstrata_server_lookup_ends_total{reason="absent"}"#, 3.0),
        (r#"kvstrata_server_lookup_ends_total{reason="not_loaded"}"#, 0.0),
        (r#"kvstrata_server_lookup_ends_total{reason="no_worker"}"#, 1.0),
        (r#"kvstrata_server_lookup_ends_total{reason="too_short"}"#, 1.0),
        ("kvstrata_server_sessions", 6.0),
        (r#"kvstrata_server_workers{connected="yes"}"#, 1.0),
        (r#"kvstrata_server_workers{connected="no"}"#, 0.0),
        ("kvstrata_server_locked_chunks", 4.0),
        (r#"kvstrata_server_leases{state="live"}"#, 1.0),
        (r#"kvstrata_server_leases{state="quarantined"}"#, 0.0),
        (r#"kvstrata_server_oldest_pin_seconds{holder="read"}"#, 0.0),
        (r#"kvstrata_l2_breaker{adapter="disk",state="closed"}"#, 1.0),
    ] {
        assert_eq!(of(name), n, "{name}");
    }
    for holder in ["lookup", "write"] {
        let age = of(&format!("kvstrata_server_oldest_pin_seconds{{holder=\"{holder}\"}}"));
        assert!(age > 0.0 && age < 60.0, "{holder}: {age}");
    }

    // What was begun is dropped with the worker, and counted; what was stored is found in L2 when L1 is empty.
    engine.ask(&Request::UnregisterEngineDriven(WORKER)).await;
    let (status, _) = server.ask("POST", "/cache/clear", "");
    assert_eq!(status, 200);
    let after = samples(&server.metrics());
    assert_eq!(after[r#"kvstrata_server_stores_total{result="aborted"}"#], 1.0);
    assert_eq!(after[r#"kvstrata_server_oldest_pin_seconds{holder="write"}"#], 0.0);
    assert_eq!(after[r#"kvstrata_server_workers{connected="yes"}"#], 0.0);
}

/// The families of a page, with the suffixes that their samples have.
pub(crate) fn names(page: &str) -> std::collections::BTreeSet<String> {
    samples(page).into_keys().map(|name| name.split('{').next().unwrap_or("").to_owned()).collect()
}

#[tokio::test]
async fn a_dashboard_and_its_alerts_ask_for_nothing_that_is_not_there() {
    let server = start(&[]);
    traffic(&server).await;
    let known = names(&server.metrics());
    let asked = crate::deploy::queries();
    assert!(asked.len() > 20, "{} queries", asked.len());
    for (from, query) in &asked {
        let metrics = crate::deploy::metrics_of(query);
        assert!(!metrics.is_empty(), "{from}: {query} asks for no metric");
        for metric in metrics {
            assert!(known.contains(&metric), "{from}: {query} asks for {metric}, which is not on the page");
        }
    }
}

#[tokio::test]
async fn a_prompt_that_is_loaded_ahead_of_time_is_in_l1_when_it_is_looked_up() {
    let server = start(&[]);
    let mut engine = Engine::connect(&server.endpoint).await.expect("it listens");
    let submit = |tokens: usize| {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| if i == 0 { 1 } else { i }).collect();
        let body = json!({ "model_name": "org/model", "world_size": 1, "token_ids": ids });
        let (status, answer) = server.ask("POST", "/cache/prefetches", &body.to_string());
        (status, serde_json::from_str::<Value>(&answer).expect("JSON"))
    };
    let (status, answer) = submit(1024);
    assert_eq!(status, 503, "{answer}: no worker has said how chunks look");
    engine.ask(&engine_driven(WORKER)).await;
    let stored = key(1, 4, "store", "", Some(0));
    engine.ask(&Request::PrepareStore(stored.clone(), WORKER)).await;
    let commit = Request::CommitStore { key: stored, instance: WORKER, payload: Vec::new() };
    assert_eq!(engine.ask(&commit).await, Reply::Bool(true));
    engine.ask(&Request::EndSession("store".into())).await;
    assert_eq!(server.settle(WITHIN), Vec::<String>::new());
    assert_eq!(server.ask("POST", "/cache/clear", "").0, 200);

    assert_eq!(submit(255), (202, json!({ "chunks": 0, "status": "noop" })));
    // Five chunks, of which the tier below has four.
    let (status, answer) = submit(5 * 256);
    assert_eq!((status, &answer["chunks"], &answer["status"]), (202, &5.into(), &"submitted".into()));
    let path = format!("/cache/prefetches/{}", answer["request_id"].as_str().expect("a name"));
    let mut done = Value::Null;
    for _ in 0..2000 {
        let (status, answer) = server.ask("GET", &path, "");
        assert_eq!(status, 200, "{answer}");
        done = serde_json::from_str(&answer).expect("JSON");
        if done["status"] != "pending" {
            break;
        }
    }
    assert_eq!(
        (&done["status"], &done["found_keys"], &done["total_keys"]),
        (&"completed".into(), &4.into(), &5.into())
    );
    assert_eq!(server.ask("GET", &path, "").0, 404, "it is told once");
    assert_eq!(server.settle(WITHIN), Vec::<String>::new(), "nobody reads it yet");
    let loads = || server.metric("kvstrata_l2_calls_total{adapter=\"disk\",op=\"get\"}");
    let before = loads();
    assert_eq!(engine.look_up(key(1, 4, "read", "", None)).await, 4);
    assert_eq!(loads(), before, "L1 has it");
}
