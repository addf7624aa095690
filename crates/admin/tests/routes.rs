//! What clients of LMCache's HTTP interface ask for and read.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use kvstrata_admin::{Admin, Listed, Prefetch, Prefetched, router};
use kvstrata_core::{ChunkHash, Error, ErrorKind, KeyMask, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::Context;
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_manager::{AdapterOptions, Grant, Layouts, Manager, Options, Parts, Reserved};
use kvstrata_mem::{HeapRegion, Slab};
use serde_json::{Value, json};
use tower::ServiceExt;

const CHUNK: u64 = 64 << 10;

/// A manager with a mock adapter and `objects` chunks of the model `org/model` in both, 4 of them with the salt `team`.
async fn stack(objects: u8, policy: &str) -> (Manager, Router) {
    let slab = Slab::new(vec![HeapRegion::new(4 << 20).unwrap()]).unwrap();
    let parts = Parts {
        cache: slab.pool("cache", 3 << 20),
        staging: slab.pool("staging", 1 << 20),
        eviction: kvstrata_evict::by_name(policy).unwrap(),
        admission: kvstrata_evict::admission_by_name("always").unwrap(),
        store: kvstrata_policy::store_by_name("default").unwrap(),
        prefetch: kvstrata_policy::prefetch_by_name("default").unwrap(),
        cx: Context::tokio(tokio::runtime::Handle::current()),
    };
    let manager = Manager::new(parts, Options::default()).unwrap();
    let mock = Mock::open(&MockConfig::new(0.1, 10.0), Context::tokio(tokio::runtime::Handle::current()));
    let adapter = mock.unwrap().adapter();
    manager.add_adapter(adapter.clone(), AdapterOptions::default()).unwrap();

    let keys: Vec<_> = (0..objects).map(key).collect();
    let rq = manager.request(Duration::from_secs(10));
    let layouts = Layouts::from(Layout::opaque(CHUNK).unwrap());
    for reserved in manager.try_reserve(&rq, &keys, &KeyMask::all(keys.len()), &layouts, Grant::Whole) {
        let Reserved::Granted(chunk) = reserved else { panic!("there is room") };
        manager.commit(vec![chunk]);
    }
    manager.flush(Duration::from_secs(10)).await.unwrap();

    let admin = Admin::new(manager.clone())
        .with_adapters(vec![Listed { type_name: "mock".into(), shared: false, adapter }])
        .with_config(json!({ "mp": { "chunk_size": 256, "shm_name": "pool" } }))
        .with_eviction_policy(policy)
        .with_version("1.2.3", "abc")
        .with_status(|| {
            let mut more = serde_json::Map::new();
            more.insert("active_sessions".into(), 3.into());
            more.insert("chunk_size".into(), 256.into());
            more
        });
    (manager, router(admin))
}

fn key(n: u8) -> ObjectKey {
    let salt = if n < 4 { "team" } else { "" };
    let scope = KeyScope::new("org/model", KvRank::single(), 0, salt).unwrap();
    ObjectKey::new(&scope, ChunkHash::from([n; 32]))
}

async fn call(routes: &Router, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = routes.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 16 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn get(routes: &Router, path: &str) -> Value {
    let (status, body) = call(routes, Method::GET, path, Body::empty()).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    body
}

#[tokio::test]
async fn what_probes_and_describe_read_is_there() {
    let (_manager, routes) = stack(6, "lru").await;
    assert_eq!(get(&routes, "/healthcheck").await, json!({ "status": "healthy" }));
    assert_eq!(get(&routes, "/").await["status"], "ok");
    for (path, is) in [("/version", "1.2.3"), ("/lmc_version", "1.2.3"), ("/commit_id", "abc")] {
        assert_eq!(get(&routes, path).await, is, "{path}");
    }
    assert_eq!(get(&routes, "/config").await["mp"]["chunk_size"], 256);

    let status = get(&routes, "/status").await;
    assert_eq!(status["is_healthy"], true);
    assert_eq!((&status["active_sessions"], &status["chunk_size"]), (&3.into(), &256.into()));
    let l1 = &status["storage_manager"]["l1_manager"];
    assert_eq!(l1["memory_total_bytes"], 4 << 20);
    assert_eq!(l1["memory_used_bytes"], 6 * CHUNK);
    assert_eq!(l1["total_object_count"], 6);
    assert!((l1["memory_usage_ratio"].as_f64().unwrap() - 6.0 / 64.0).abs() < 1e-9);
    assert_eq!(status["storage_manager"]["eviction_controller"]["eviction_policy"], "lru");
    let adapter = &status["storage_manager"]["l2_adapters"][0];
    assert_eq!((&adapter["type"], &adapter["is_healthy"]), (&"mock".into(), &true.into()));
    assert_eq!(adapter["stored_object_count"], 6);
    assert!(
        adapter["max_capacity_bytes"].as_u64().unwrap() > adapter["current_size_bytes"].as_u64().unwrap()
    );
    assert!(status["cache_context_meta"].as_object().unwrap().is_empty());

    let listed = &get(&routes, "/config/adapters").await["adapters"][0];
    assert_eq!(
        (&listed["type_name"], &listed["primary"], &listed["tier"]),
        (&"mock".into(), &true.into(), &"l2".into())
    );
    let Value::String(page) = get(&routes, "/metrics").await else { panic!("metrics are text") };
    assert!(page.contains("kvstrata_l2_objects{adapter=\"mock\"} 6") && page.ends_with("# EOF\n"));
}

#[tokio::test]
async fn l1_is_cleared_and_l2_is_not() {
    let (manager, routes) = stack(6, "lru").await;
    let (status, body) = call(&routes, Method::POST, "/cache/clear", r#"{"tier": "l2"}"#).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["detail"].as_str().unwrap().contains("tier"), "{body}");
    let (status, _) = call(&routes, Method::POST, "/cache/clear", r#"{"tier": 7}"#).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(manager.usage().resident, 6, "a refusal changes nothing");

    let (status, body) = call(&routes, Method::POST, "/cache/clear", Body::empty()).await;
    assert_eq!(
        (status, &body["status"], &body["cleared"]["tier"]),
        (StatusCode::OK, &"ok".into(), &"l1".into())
    );
    assert_eq!(manager.usage().resident, 0);
    assert_eq!(manager.usage().adapters[0].usage.unwrap().objects, 6);
    let (_, body) = call(&routes, Method::POST, "/cache/clear", r#"{"tier": "l1", "force": true}"#).await;
    assert_eq!(body["cleared"]["objects"], 0);
}

#[tokio::test]
async fn objects_are_listed_by_pages_and_removed_by_key() {
    let (manager, routes) = stack(10, "lru").await;
    let mut token = String::new();
    let mut entries = Vec::new();
    for _ in 0..20 {
        let page = get(&routes, &format!("/cache/objects?page_size=3{token}")).await;
        assert_eq!((&page["adapter"], &page["shared"]), (&"mock".into(), &false.into()));
        entries.extend(page["entries"].as_array().unwrap().clone());
        let Some(next) = page["next_page_token"].as_str() else { break };
        token = format!("&page_token={next}");
    }
    assert_eq!(entries.len(), 10);
    assert!(entries.iter().all(|e| e["size_bytes"] == CHUNK && e["key"]["model_name"] == "org/model"));
    assert_eq!(get(&routes, "/cache/objects?model_name=other").await["entries"], json!([]));

    let keys: Vec<&Value> = entries.iter().map(|e| &e["key"]).collect();
    let body = json!({ "keys": &keys[..4], "tier": "all" }).to_string();
    let (status, gone) = call(&routes, Method::DELETE, "/cache/objects", body).await;
    assert_eq!((status, gone), (StatusCode::OK, json!({ "deleted": 8, "skipped": 0, "ok": true })));
    assert_eq!(manager.usage().resident, 6);
    let body = json!({ "keys": &keys[2..7], "adapter": "mock" }).to_string();
    let (_, gone) = call(&routes, Method::DELETE, "/cache/objects", body).await;
    assert_eq!(gone["deleted"], 3, "two had gone before");
    assert_eq!((manager.usage().resident, manager.usage().adapters[0].usage.unwrap().objects), (6, 3));
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong_and_change_nothing() {
    let (manager, routes) = stack(6, "lru").await;
    let hash = "ab".repeat(32);
    let one = json!({ "chunk_hash_hex": hash, "model_name": "m", "kv_rank": 0x0100_0100 });
    let bad_model = json!({ "chunk_hash_hex": hash, "model_name": "a@b", "kv_rank": 0x0100_0100 });
    let bad_hash = json!({ "chunk_hash_hex": "xyz", "model_name": "m", "kv_rank": 0x0100_0100 });
    let many = vec![&one; 10_001];
    for (method, path, body, status, says) in [
        (Method::GET, "/cache/objects?tier=l1", String::new(), 400, "tier"),
        (Method::GET, "/cache/objects?tier=l9", String::new(), 400, "tier"),
        (Method::GET, "/cache/objects?page_size=0", String::new(), 422, "page_size"),
        (Method::GET, "/cache/objects?page_size=5001", String::new(), 422, "5000"),
        (Method::GET, "/cache/objects?adapter=fs", String::new(), 404, "mock"),
        (Method::GET, "/cache/objects?page_token=zz", String::new(), 400, "cursor"),
        (Method::DELETE, "/cache/objects", json!({ "keys": [one, bad_hash] }).to_string(), 400, "keys[1]"),
        (Method::DELETE, "/cache/objects", json!({ "keys": [bad_model] }).to_string(), 400, "keys[0]"),
        (Method::DELETE, "/cache/objects", json!({ "keys": many }).to_string(), 400, "10000"),
        (Method::DELETE, "/cache/objects", json!({ "keys": [one], "tier": "l1" }).to_string(), 400, "tier"),
        (Method::DELETE, "/cache/objects", "{".into(), 400, "JSON"),
        (Method::DELETE, "/cache/objects", "{}".into(), 422, "keys"),
        (Method::PUT, "/quota/team", "{}".into(), 400, "limit_gb"),
        (Method::PUT, "/quota/team", json!({ "limit_gb": -1 }).to_string(), 400, "limit_gb"),
        (Method::PUT, "/quota/team", json!({ "limit_gb": 1 }).to_string(), 501, "IsolatedLRU"),
        (Method::POST, "/run_script", String::new(), 501, "runs no code"),
        (Method::POST, "/cache/checksums", "{}".into(), 501, "memory"),
        (Method::POST, "/cache/prefetches", json!({ "model_name": "m" }).to_string(), 422, "world_size"),
        (Method::GET, "/cache/prefetches/x", String::new(), 501, "ahead of time"),
        (Method::GET, "/nothing", String::new(), 404, "nothing here"),
        (Method::POST, "/status", String::new(), 405, ""),
        (Method::DELETE, "/cache/objects", "x".repeat(9 << 20), 413, ""),
    ] {
        let (got, answer) = call(&routes, method.clone(), path, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {answer}");
        assert!(answer.to_string().contains(says), "{method} {path}: {answer} does not say {says:?}");
    }
    assert_eq!(manager.usage().resident, 6);
    assert_eq!(manager.usage().adapters[0].usage.unwrap().objects, 6);
}

#[tokio::test]
async fn quotas_come_and_go() {
    let (manager, routes) = stack(6, "IsolatedLRU").await;
    assert_eq!(get(&routes, "/quota").await, json!({ "users": {} }));
    let (status, body) =
        call(&routes, Method::PUT, "/quota/team", json!({ "limit_gb": 0.001 }).to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body, json!({ "cache_salt": "team", "limit_gb": 0.001, "status": "ok" }));
    let team = get(&routes, "/quota/team").await;
    assert_eq!(team["exists"], true);
    assert_eq!(team["current_usage_gb"].as_f64().unwrap(), (4 * CHUNK) as f64 / f64::from(1 << 30));
    assert_eq!(
        manager.tenants(kvstrata_manager::TierId::L1).unwrap()[1].quota,
        Some((0.001 * 2f64.powi(30)) as u64)
    );

    let (_, body) = call(&routes, Method::PUT, "/quota/_default", json!({ "limit_gb": 2 }).to_string()).await;
    assert_eq!(body["cache_salt"], "_default");
    let all = get(&routes, "/quota").await;
    assert_eq!(all["users"].as_object().unwrap().keys().collect::<Vec<_>>(), ["_default", "team"]);
    for is in ["removed", "not_found"] {
        let (_, body) = call(&routes, Method::DELETE, "/quota/team", Body::empty()).await;
        assert_eq!(body, json!({ "cache_salt": "team", "status": is }));
    }
    assert_eq!(get(&routes, "/quota/team").await["exists"], false);
}

#[tokio::test]
async fn prompts_are_loaded_ahead_of_time_and_their_end_is_told_in_lmcaches_words() {
    let (manager, _) = stack(1, "lru").await;
    let submit = |wanted: &Prefetch| match wanted.model_name.as_str() {
        "nobody" => Err(Error::new(ErrorKind::Unavailable, "load", "no worker has said")),
        "a@b" => Err(Error::invalid("load", "no name").with("model_name", "a@b")),
        _ if wanted.token_ids.len() < 4 => Ok(None),
        _ => Ok(Some((format!("{}-{}", wanted.cache_salt, wanted.world_size), wanted.token_ids.len() / 4))),
    };
    let ask = |id: &str| match id {
        "team-2" => Some(Prefetched::Pending),
        "-1" => Some(Prefetched::Completed { found: 3, total: 4 }),
        _ => None,
    };
    let routes = router(Admin::new(manager).with_prefetches(submit, ask));
    let body = |model: &str, tokens: usize| json!({ "model_name": model, "world_size": 1, "token_ids": vec![7; tokens] });
    let mut salted = body("m", 9);
    (salted["cache_salt"], salted["world_size"]) = ("team".into(), 2.into());
    let mut up = body("m", 9);
    (up["source_tier"], up["target_tier"]) = ("l2".into(), "l1".into());
    let mut down = body("m", 9);
    down["target_tier"] = "l2".into();
    for (body, status, answer) in [
        (salted, 202, json!({ "request_id": "team-2", "chunks": 2, "status": "submitted" })),
        (up, 202, json!({ "request_id": "-1", "chunks": 2, "status": "submitted" })),
        (body("m", 3), 202, json!({ "chunks": 0, "status": "noop" })),
        (body("nobody", 9), 503, json!("no worker has said")),
        (body("a@b", 9), 400, json!("model_name")),
        (down, 400, json!("target_tier")),
        (body("m", 1_000_001), 400, json!("token_ids")),
        (json!({ "model_name": "m", "world_size": 1, "token_ids": [-1] }), 422, json!("token_ids")),
    ] {
        let (got, said) = call(&routes, Method::POST, "/cache/prefetches", body.to_string()).await;
        assert_eq!(got.as_u16(), status, "{said}");
        match answer.as_str() {
            Some(words) => assert!(said["detail"].as_str().unwrap().contains(words), "{said}"),
            None => assert_eq!(said, answer),
        }
    }
    let pending = json!({ "request_id": "team-2", "status": "pending" });
    assert_eq!(get(&routes, "/cache/prefetches/team-2").await, pending);
    let done = json!({ "request_id": "-1", "status": "completed", "found_keys": 3, "total_keys": 4 });
    assert_eq!(get(&routes, "/cache/prefetches/-1").await, done);
    let (status, said) = call(&routes, Method::GET, "/cache/prefetches/other", Body::empty()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
}

#[tokio::test]
async fn digests_of_a_workers_blocks_are_shown_as_one_list_or_by_layer() {
    let (manager, _) = stack(1, "lru").await;
    let digests = |instance: i64, blocks: &[i64], per_digest: usize, layerwise: bool| {
        if instance != 7 {
            return Err(Error::new(ErrorKind::NotFound, "digest blocks", "no such worker"));
        }
        if per_digest == 0 {
            return Err(
                Error::invalid("digest blocks", "a digest is of a block at least").with("chunk_size", 0)
            );
        }
        let one =
            |layer: usize| blocks.chunks(per_digest).map(|c| format!("{layer}:{c:?}")).collect::<Vec<_>>();
        Ok((0..if layerwise { 2 } else { 1 }).map(one).collect())
    };
    let routes = router(Admin::new(manager).with_checksums(digests));
    let ask = |body: Value| call(&routes, Method::POST, "/cache/checksums", body.to_string());
    let asked = json!({ "instance_id": 7, "block_ids": [4, 5, 6, 9], "chunk_size": 2 });
    let (status, whole) = ask(asked.clone()).await;
    assert_eq!(status, StatusCode::OK, "{whole}");
    assert_eq!(
        whole,
        json!({
            "status": "success", "chunk_size": 2, "num_chunks": 2, "layerwise": false,
            "chunk_checksums": ["0:[4, 5]", "0:[6, 9]"], "block_id_ranges": [[4, 6], 9],
        })
    );
    let mut by_layer = asked;
    by_layer["layerwise"] = true.into();
    let (_, layers) = ask(by_layer).await;
    assert_eq!(layers["chunk_checksums"]["layer_1"], json!(["1:[4, 5]", "1:[6, 9]"]));
    for (body, status, says) in [
        (json!({ "instance_id": 8, "block_ids": [1], "chunk_size": 1 }), 404, "worker"),
        (json!({ "instance_id": 7, "block_ids": [1] }), 400, "chunk_size"),
        (json!({ "instance_id": 7, "block_ids": "all" }), 422, "block_ids"),
    ] {
        let (got, said) = ask(body).await;
        assert_eq!(got.as_u16(), status, "{said}");
        assert!(said.to_string().contains(says), "{said}");
    }
}

#[tokio::test]
async fn it_serves_until_it_is_told_to_stop() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (manager, _) = stack(1, "lru").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(kvstrata_admin::serve(listener, Admin::new(manager), async {
        drop(stopped.await);
    }));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"status":"healthy"}"#), "{answer}");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}
