//! What tenants may hold.
//!
//! A quota is set in every tier that keeps quotas: L1 and those adapters whose eviction policy keeps tenants apart. Sizes are
//! in GiB (2^30 bytes), as in LMCache, whose quotas are limits of the L2 tier; there a salt without a quota has a limit of 0
//! and is emptied, here it shares what is left (`--default-quota` changes that).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_manager::{Manager, TierId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Failure;
use crate::state::Admin;

/// The empty salt's name in a path.
const DEFAULT: &str = "_default";

fn salt(path: &str) -> &str {
    if path == DEFAULT { "" } else { path }
}

fn shown(salt: &str) -> &str {
    if salt.is_empty() { DEFAULT } else { salt }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// A tenant over all tiers: the sum of what it holds, and the largest of its quotas.
#[derive(Clone, Copy, Default)]
struct Tenant {
    used: u64,
    quota: Option<u64>,
}

fn tiers(manager: &Manager) -> Vec<TierId> {
    let l2 = manager.adapters().into_iter().map(|(id, _)| TierId::L2(id));
    [TierId::L1].into_iter().chain(l2).collect()
}

fn tenants(manager: &Manager) -> BTreeMap<String, Tenant> {
    let mut out = BTreeMap::<String, Tenant>::new();
    for tier in tiers(manager) {
        // A tier that keeps no quotas has nothing to tell.
        for tenant in manager.tenants(tier).unwrap_or_default() {
            let all = out.entry(tenant.salt).or_default();
            all.used += tenant.used;
            all.quota = all.quota.max(tenant.quota);
        }
    }
    out
}

/// Sets it wherever quotas are kept.
///
/// # Errors
/// `Unsupported` if that is nowhere.
fn set_everywhere(manager: &Manager, salt: &str, bytes: Option<u64>) -> Result<()> {
    let mut kept = false;
    for tier in tiers(manager) {
        match manager.set_quota(tier, salt, bytes) {
            Ok(()) => kept = true,
            Err(e) if e.kind() == ErrorKind::Unsupported => {}
            Err(e) => return Err(e),
        }
    }
    if kept {
        return Ok(());
    }
    let what =
        "no tier keeps quotas: start with --eviction-policy IsolatedLRU, or give an adapter that policy";
    Err(Error::new(ErrorKind::Unsupported, "set quota", what))
}

pub(crate) async fn all(State(admin): State<Admin>) -> Json<Value> {
    let users = tenants(&admin.0.manager).into_iter().filter_map(|(salt, tenant)| {
        let usage = json!({ "limit_gb": gib(tenant.quota?), "current_usage_gb": gib(tenant.used) });
        Some((shown(&salt).to_owned(), usage))
    });
    Json(json!({ "users": users.collect::<serde_json::Map<_, _>>() }))
}

pub(crate) async fn one(State(admin): State<Admin>, Path(path): Path<String>) -> Json<Value> {
    let tenant = tenants(&admin.0.manager).get(salt(&path)).copied().unwrap_or_default();
    Json(json!({
        "cache_salt": shown(salt(&path)),
        "limit_gb": gib(tenant.quota.unwrap_or(0)),
        "current_usage_gb": gib(tenant.used),
        "exists": tenant.quota.is_some(),
    }))
}

#[derive(Deserialize)]
pub(crate) struct Limit {
    limit_gb: f64,
}

pub(crate) async fn set(
    State(admin): State<Admin>,
    Path(path): Path<String>,
    body: Result<Json<Limit>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(Limit { limit_gb }) = body
        .map_err(|e| Failure::bad_request(format!("the body is {{\"limit_gb\": <number of GiB>}}: {e}")))?;
    let bytes = limit_gb * f64::from(1 << 30);
    if !(bytes >= 0.0 && bytes < 2f64.powi(63)) {
        return Err(Failure::bad_request(format!(
            "limit_gb is a number of GiB that is not negative: {limit_gb}"
        )));
    }
    set_everywhere(&admin.0.manager, salt(&path), Some(bytes as u64))?;
    Ok(Json(json!({ "cache_salt": shown(salt(&path)), "limit_gb": limit_gb, "status": "ok" })))
}

pub(crate) async fn unset(
    State(admin): State<Admin>,
    Path(path): Path<String>,
) -> Result<Json<Value>, Failure> {
    let manager = &admin.0.manager;
    let existed = tenants(manager).get(salt(&path)).is_some_and(|t| t.quota.is_some());
    if existed {
        set_everywhere(manager, salt(&path), None)?;
    }
    let status = if existed { "removed" } else { "not_found" };
    Ok(Json(json!({ "cache_salt": shown(salt(&path)), "status": status })))
}
