//! What the server's HTTP interface shows beside the manager.

use std::sync::Arc;

use kvstrata_admin::{Admin, Listed, Prefetch, Prefetched};
use kvstrata_config::{Components, Resolved};
use kvstrata_manager::Manager;
use kvstrata_metrics::{Metrics, ServerMetrics};
use kvstrata_server::api::{Key, Tokens};
use kvstrata_server::{Options, Service, Warmed};
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};

/// The adapters as `/cache/objects` lists them.
pub(crate) fn listed(resolved: &Resolved, components: &Components) -> Vec<Listed> {
    let kinds: Vec<(String, String)> =
        resolved.settings.adapters().into_iter().map(|(name, keys)| (name, keys.kind().to_owned())).collect();
    let kind = |name: &str| kinds.iter().find(|(n, _)| n == name).map_or(name, |(_, kind)| kind).to_owned();
    let list = |(name, _, adapter): &(String, _, kvstrata_l2::Adapter)| Listed {
        type_name: kind(name),
        shared: adapter.store.desc().shared,
        adapter: adapter.clone(),
    };
    components.adapters.iter().map(list).collect()
}

/// The interface of a server.
pub(crate) fn admin(
    manager: Manager,
    service: &Service,
    resolved: &Resolved,
    adapters: Vec<Listed>,
) -> Admin {
    let more = {
        let service = service.clone();
        move || status(&service)
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics::of(manager.clone())));
    registry.register_collector(Box::new(ServerMetrics::of(service.clone())));
    Admin::new(manager)
        .with_registry(Arc::new(registry))
        .with_adapters(adapters)
        .with_eviction_policy(&resolved.settings.eviction.policy)
        .with_config(config(service.options(), resolved))
        .with_version(env!("CARGO_PKG_VERSION"), "")
        .with_status(more)
        .with_checksums({
            let service = service.clone();
            move |instance, blocks, per_digest, layerwise| {
                service.checksums(instance, blocks, per_digest, layerwise)
            }
        })
        .with_prefetches(
            {
                let service = service.clone();
                move |wanted| service.prefetch(&key(wanted))
            },
            {
                let service = service.clone();
                move |id| {
                    Some(match service.prefetched(id)? {
                        Warmed::Pending => Prefetched::Pending,
                        Warmed::Completed { found, total } => Prefetched::Completed { found, total },
                    })
                }
            },
        )
}

/// The key of a prompt that is to be loaded ahead of time.
fn key(wanted: &Prefetch) -> Key {
    Key {
        model: wanted.model_name.clone(),
        world_size: wanted.world_size,
        worker: None,
        tokens: Tokens::from(&wanted.token_ids[..]),
        start: 0,
        end: wanted.token_ids.len() as i64,
        request: String::new(),
        salt: wanted.cache_salt.clone(),
        configs: None,
        readers: 1,
    }
}

/// `/config`: LMCache's SDK asks for `mp.chunk_size` and `mp.shm_name`.
fn config(options: &Options, resolved: &Resolved) -> Value {
    let rows: Map<String, Value> =
        resolved.rows().into_iter().map(|r| (r.name.to_owned(), r.value.into())).collect();
    json!({
        "mp": {
            "chunk_size": options.chunk_tokens,
            "shm_name": options.pool.as_ref().map_or("", |p| &p.name),
            "transport": "zmq",
            "hash_algorithm": "blake3",
            "supported_transfer_mode": "auto",
            "worker_reap_timeout_seconds": options.reap_timeout.as_secs_f64(),
            "worker_registration_grace_seconds": options.registration_grace.as_secs_f64(),
            "session_ttl_seconds": options.session_ttl.as_secs_f64(),
        },
        "storage_manager": rows,
    })
}

/// What `/status` has of the service: LMCache's names where they mean the same.
fn status(service: &Service) -> Map<String, Value> {
    let s = service.status();
    let ids: Vec<i64> = s.workers.iter().map(|w| w.instance).collect();
    let meta = |w: &kvstrata_server::WorkerStatus| {
        let tensor = &w.layout.tensors()[0];
        json!({
            "model_name": &*w.model,
            "world_size": w.world_size,
            "block_size": w.block_size,
            "use_mla": w.mla,
            "connected": w.connected,
            "num_layers": w.layers,
            "chunk_shape": tensor.shape,
            "chunk_dtype": tensor.dtype.name(),
        })
    };
    let workers: Map<String, Value> = s.workers.iter().map(|w| (w.instance.to_string(), meta(w))).collect();
    let options = service.options();
    let c = s.counts;
    let all = json!({
        "chunk_size": s.chunk_tokens,
        "active_sessions": s.sessions,
        "active_prefetch_jobs": s.lookups_running,
        "registered_non_cuda_instance_ids": ids,
        "non_cuda_context_meta": workers,
        "worker_liveness": {
            "enabled": !options.reap_timeout.is_zero(),
            "reap_timeout_seconds": options.reap_timeout.as_secs_f64(),
            "registration_grace_seconds": options.registration_grace.as_secs_f64(),
            "tracked_instances": s.workers.len(),
        },
        "held": { "locked_chunks": s.locked_chunks, "leases": s.leases, "quarantined": s.quarantined },
        "served": {
            "requests": c.requests,
            "refused": c.refused,
            "chunks_hashed": c.chunks_hashed,
            "lookups": c.lookups,
            "lookup_tokens": c.lookup_tokens,
            "hit_tokens": c.hit_tokens,
            "hit_l1_tokens": c.hit_l1_tokens,
            "stores_prepared": c.stores_prepared,
            "stores_committed": c.stores_committed,
            "stores_aborted": c.stores_aborted,
            "stored_chunks": c.stored_chunks,
            "stored_bytes": c.stored_bytes,
            "chunks_declined": c.chunks_declined,
            "retrieves_committed": c.retrieves_committed,
            "retrieves_missed": c.retrieves_missed,
            "retrieved_chunks": c.retrieved_chunks,
            "retrieved_bytes": c.retrieved_bytes,
            "leases_lapsed": c.leases_lapsed,
            "workers_reaped": c.workers_reaped,
            "sessions_expired": c.sessions_expired,
        },
    });
    match all {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
