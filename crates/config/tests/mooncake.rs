//! Mooncake Store's settings as users of LMCache write them: what is accepted, what is refused by name, and what is shown.

use kvstrata_config::{BuildContext, Machine, Registry, Resolved, Sources};
use kvstrata_core::{ErrorKind, Result};
use serde_json::{Value, json};

fn load(adapter: &Value) -> Result<Resolved> {
    let flags = [("l1-size", "64MiB".to_owned()), ("l2-adapter", adapter.to_string())];
    let flags = flags.map(|(name, value)| (name.to_owned(), Some(value))).into();
    Resolved::load(&Sources { flags, ..Sources::default() }, &Machine::here(), &Registry::builtin())
}

#[test]
fn lmcaches_forms_are_taken() {
    for adapter in [
        json!({"type": "mooncake_store", "num_workers": 4, "per_op_workers": {"lookup": 1, "retrieve": 2, "store": 2, "delete": 1},
            "local_hostname": "localhost", "metadata_server": "http://localhost:8080/metadata", "master_server_addr": "localhost:50051",
            "protocol": "tcp", "rdma_devices": "", "global_segment_size": 3_355_443_200_u64, "local_buffer_size": "1gb", "transfer_timeout": 1}),
        json!({"type": "mooncake_store", "remote_url": "mooncakestore://localhost:50051/", "extra_config": {
            "save_chunk_meta": false, "local_hostname": "localhost", "metadata_server": "P2PHANDSHAKE", "protocol": "rdma",
            "device_name": "mlx5_0", "global_segment_size": 0, "transfer_timeout": 1, "storage_root_dir": null}}),
        json!({"type": "mooncake_store", "mooncake_local_hostname": "localhost", "mooncake_master_server_address": "localhost:50051",
            "mooncake_protocol": "rdma", "mooncake_device_name": "mlx5_0,mlx5_1", "mooncake_global_segment_size": "3.5 GiB",
            "mooncake_local_buffer_size": "512MiB", "mooncake_transfer_timeout": "30s", "mooncake_prefer_local_alloc": true}),
        json!({"type": "mooncake_store", "digests": false, "save_chunk_meta": true, "chunk_meta_groups": 2}),
    ] {
        load(&adapter).unwrap_or_else(|e| panic!("{adapter}: {e}"));
    }
}

#[test]
fn what_is_wrong_is_refused_by_name_with_what_is_accepted() {
    for (adapter, says) in [
        (json!({"remote_url": "redis://h:1"}), ["remote_url", "mooncakestore://HOST:PORT"]),
        (json!({"global_segment_size": "3 parsecs"}), ["global_segment_size", "parsecs"]),
        (json!({"mooncake_local_buffer_size": 4096}), ["local_buffer_size", "at least 1 MiB"]),
        (json!({"transfer_timeout": -1}), ["transfer_timeout", "above zero"]),
        (json!({"num_workers": 0}), ["num_workers", "1 to 1024"]),
        (json!({"per_op_workers": {"store": 0}}), ["per_op_workers.store", "1 to 1024"]),
        (json!({"mode": "native"}), ["mode", "attach"]),
        (json!({"master_server_addr": "a:1", "master_server_address": "b:1"}), ["a:1", "b:1"]),
        (json!({"master_server_adress": "a:1"}), ["master_server_adress", "master_server_address"]),
        (json!({"digests": true, "save_chunk_meta": true}), ["save_chunk_meta", "digests"]),
        (json!({"extra_config": {"mooncake_protocl": "tcp"}}), ["mooncake_protocl", ""]),
    ] {
        let mut adapter = adapter;
        adapter["type"] = "mooncake_store".into();
        let e = load(&adapter).map(|_| panic!("{adapter} is accepted")).unwrap_or_else(|e| e);
        assert_eq!(e.kind(), ErrorKind::Invalid, "{adapter}: {e}");
        for part in says {
            assert!(e.to_string().contains(part), "{adapter}: {part:?} is not in: {e}");
        }
    }
}

#[test]
fn where_the_cluster_is_is_not_shown() {
    let places = ["inner.example:50051", "meta.example:8080", "url.example:1"];
    let adapter = json!({"type": "mooncake_store", "master_server_address": places[0], "metadata_server": places[1],
        "remote_url": format!("mooncakestore://{}", places[2]), "extra_config": {"master_server_addr": places[0]}, "protocol": "rdma"});
    let resolved = load(&adapter).unwrap();
    let shown: String = resolved.rows().iter().map(|r| format!("{} = {}\n", r.name, r.value)).collect();
    assert!(shown.contains("rdma"), "{shown}");
    for place in places {
        assert!(!shown.contains(place), "{place} in {shown}");
    }
}

/// Nothing listens there, and that is said at the start, with the address.
#[tokio::test]
async fn a_master_that_is_not_there_fails_at_the_start() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let adapter = json!({"type": "mooncake_store", "remote_url": format!("mooncakestore://{closed}")});
    let resolved = load(&adapter).unwrap();
    let cx = BuildContext::tokio(tokio::runtime::Handle::current());
    let Err(e) = resolved.build(&cx) else { panic!("there is no master") };
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.to_string().contains(&closed.to_string()), "{e}");
}
