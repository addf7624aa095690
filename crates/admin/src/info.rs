//! What it is, and how it is.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kvstrata_l2::{PartUsage, Phase};
use kvstrata_manager::AdapterUsage;
use prometheus_client::encoding::text::encode;
use serde_json::{Map, Value, json};

use crate::error::Failure;
use crate::state::{Admin, Parts};

pub(crate) async fn root() -> Json<Value> {
    Json(json!({ "status": "ok", "service": "KVStrata HTTP API" }))
}

/// Whether it can do its work: 503 while L1 is out of service. A tier below that fails is no reason to be restarted.
pub(crate) async fn healthcheck(State(admin): State<Admin>) -> Response {
    let faults = admin.0.manager.usage().faults;
    match faults.first() {
        None => Json(json!({ "status": "healthy" })).into_response(),
        Some(fault) => {
            let reason = format!("the {} policy is out of service: {}", fault.part.name(), fault.panic);
            let body = json!({ "status": "unhealthy", "reason": reason });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

pub(crate) async fn version(State(admin): State<Admin>) -> Json<String> {
    Json(admin.0.version.clone())
}

pub(crate) async fn commit_id(State(admin): State<Admin>) -> Json<String> {
    Json(admin.0.commit.clone())
}

pub(crate) async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json(admin.0.config.clone())
}

pub(crate) async fn adapters(State(admin): State<Admin>) -> Json<Value> {
    let adapters = admin.0.adapters.iter().enumerate().map(|(index, listed)| {
        json!({
            "index": index,
            "name": listed.adapter.store.desc().name,
            "type_name": listed.type_name,
            "tier": "l2",
            "primary": index == 0,
            "reconfigurable": false,
        })
    });
    Json(json!({ "adapters": adapters.collect::<Vec<_>>() }))
}

pub(crate) async fn metrics(State(admin): State<Admin>) -> Result<Response, Failure> {
    let mut page = String::new();
    encode(&mut page, &admin.0.registry).map_err(|e| {
        Failure(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {e}"))
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page).into_response())
}

/// Everything at one moment, in the shape that `lmcache describe kvcache` and the SDK read.
pub(crate) async fn status(State(admin): State<Admin>) -> Json<Value> {
    let parts = &admin.0;
    let usage = parts.manager.usage();
    let healthy = usage.faults.is_empty();
    let total = usage.cache.limit + usage.staging.limit;
    let used = usage.cache.used + usage.staging.used;
    let mut status = json!({
        "is_healthy": healthy,
        "engine_type": "KVStrata",
        "hash_algorithm": "blake3",
        "version": parts.version,
        "storage_manager": {
            "is_healthy": healthy,
            "l1_manager": {
                "is_healthy": healthy,
                "memory_total_bytes": total,
                "memory_used_bytes": used,
                "memory_usage_ratio": if total > 0 { used as f64 / total as f64 } else { 0.0 },
                "total_object_count": usage.resident,
                "read_locked_count": usage.pinned,
                "write_locked_count": usage.reserved,
                "temporary_bytes": usage.staging.used,
            },
            "eviction_controller": {
                "eviction_policy": parts.eviction_policy,
                "evicted_object_count": usage.stats.evicted,
            },
            "store_controller": { "in_flight_count": usage.storing },
            "faults": usage.faults.iter().map(|f| json!({ "part": f.part.name(), "panic": f.panic })).collect::<Vec<_>>(),
            "l2_adapters": usage.adapters.iter().map(|a| adapter(parts, a)).collect::<Vec<_>>(),
        },
        "cache_context_meta": {},
    });
    let top: &mut Map<String, Value> = status.as_object_mut().expect("it was made as an object");
    top.extend((parts.more)());
    Json(status)
}

fn part(part: &PartUsage) -> Value {
    json!({
        "name": part.name,
        "state": part.state,
        "is_healthy": part.in_service,
        "stored_object_count": part.usage.objects,
        "current_size_bytes": part.usage.used,
        "max_capacity_bytes": part.usage.capacity,
        "evicted_object_count": part.usage.evicted,
        "error_count": part.errors,
        "outage_count": part.outages,
        "why": part.why,
    })
}

fn adapter(parts: &Parts, adapter: &AdapterUsage) -> Value {
    let listed = parts.adapters.iter().find(|l| l.adapter.store.desc().name == adapter.name);
    let phase = adapter.breaker.map_or(Phase::Closed, |b| b.phase);
    let mut out = json!({
        "name": adapter.name,
        "type": listed.map_or(adapter.name.as_str(), |l| l.type_name.as_str()),
        "is_healthy": phase == Phase::Closed,
        "breaker": phase.name(),
        "verified_loads": adapter.checks.verified,
        "unverified_loads": adapter.checks.unverified(),
    });
    if let Some(usage) = adapter.usage {
        out["stored_object_count"] = usage.objects.into();
        out["current_size_bytes"] = usage.used.into();
        out["evicted_object_count"] = usage.evicted.into();
        out["declined_store_count"] = usage.declined.into();
        if let Some(capacity) = usage.capacity {
            out["max_capacity_bytes"] = capacity.into();
        }
    }
    if !adapter.parts.is_empty() {
        out["paths"] = adapter.parts.iter().map(part).collect();
    }
    out
}
