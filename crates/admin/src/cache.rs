//! What operators do to the cache.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use kvstrata_core::{ChunkHash, KeyScope, KvRank, ObjectKey, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::state::{Admin, Listed};

/// The most keys of one removal, and the most entries of one page; LMCache's numbers.
const MOST_KEYS: usize = 10_000;
const MOST_ENTRIES: usize = 5_000;
const ENTRIES: usize = 500;

/// When an adapter has to have removed what was asked for.
const WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Tier {
    L1,
    L2,
    All,
}

#[derive(Deserialize)]
pub(crate) struct Clear {
    #[serde(default = "l1")]
    tier: Tier,
    /// There is nothing to force: what is held goes with its last holder.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, as LMCache's clients send it")]
    force: bool,
}

fn l1() -> Tier {
    Tier::L1
}

fn l2() -> Tier {
    Tier::L2
}

pub(crate) async fn clear(
    State(admin): State<Admin>,
    body: axum::body::Bytes,
) -> Result<Json<Value>, Failure> {
    let tier = if body.is_empty() {
        Tier::L1
    } else {
        let clear: Clear = serde_json::from_slice(&body)
            .map_err(|e| Failure(StatusCode::UNPROCESSABLE_ENTITY, format!("the body: {e}")))?;
        clear.tier
    };
    if tier != Tier::L1 {
        return Err(Failure::bad_request("tier: only 'l1' can be cleared"));
    }
    let objects = admin.0.manager.clear();
    tracing::info!(objects, "L1 was cleared over HTTP");
    Ok(Json(json!({ "status": "ok", "cleared": { "tier": "l1", "objects": objects } })))
}

/// A key as LMCache writes it in JSON.
#[derive(Serialize, Deserialize)]
struct Encoded {
    chunk_hash_hex: String,
    model_name: String,
    kv_rank: u32,
    #[serde(default)]
    object_group_id: u32,
    #[serde(default)]
    cache_salt: String,
}

impl Encoded {
    fn of(key: &ObjectKey) -> Self {
        let scope = key.scope();
        Self {
            chunk_hash_hex: key.hash().to_string(),
            model_name: scope.model().into(),
            kv_rank: scope.rank().packed(),
            object_group_id: scope.group(),
            cache_salt: scope.salt().into(),
        }
    }

    fn key(&self) -> Result<ObjectKey> {
        let rank = KvRank::from_packed(self.kv_rank)?;
        let scope = KeyScope::new(&self.model_name, rank, self.object_group_id, &self.cache_salt)?;
        Ok(ObjectKey::new(&scope, self.chunk_hash_hex.parse::<ChunkHash>()?))
    }
}

fn chosen<'a>(adapters: &'a [Listed], by: Option<&str>) -> Result<&'a Listed, Failure> {
    let none = || Failure(StatusCode::SERVICE_UNAVAILABLE, "no L2 adapter is configured".into());
    let first = adapters.first().ok_or_else(none)?;
    let Some(by) = by else { return Ok(first) };
    let names = |l: &&Listed| l.type_name == by || l.adapter.store.desc().name == by;
    adapters.iter().find(names).ok_or_else(|| {
        let known: Vec<_> = adapters.iter().map(|l| l.adapter.store.desc().name.as_str()).collect();
        Failure(StatusCode::NOT_FOUND, format!("adapter: there is no {by:?}; there are {}", known.join(", ")))
    })
}

#[derive(Deserialize)]
pub(crate) struct Page {
    #[serde(default = "l2")]
    tier: Tier,
    adapter: Option<String>,
    model_name: Option<String>,
    page_size: Option<usize>,
    page_token: Option<String>,
}

pub(crate) async fn list(
    State(admin): State<Admin>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let Query(page) = page?;
    if page.tier != Tier::L2 {
        return Err(Failure::bad_request("tier: only 'l2' can be listed"));
    }
    let size = page.page_size.unwrap_or(ENTRIES);
    if !(1..=MOST_ENTRIES).contains(&size) {
        let what = format!("page_size: 1 to {MOST_ENTRIES}, not {size}");
        return Err(Failure(StatusCode::UNPROCESSABLE_ENTITY, what));
    }
    let listed = chosen(&admin.0.adapters, page.adapter.as_deref())?;
    let Some(list) = &listed.adapter.list else {
        let what = format!("the adapter {:?} does not list", listed.adapter.store.desc().name);
        return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, what));
    };
    let got = list.list(page.page_token.as_deref(), size).await?;
    // A page of another model's objects may be empty and not the last one; LMCache's pages are so too.
    let wanted = |key: &ObjectKey| page.model_name.as_deref().is_none_or(|m| key.scope().model() == m);
    let entries: Vec<Value> = got
        .entries
        .iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, found)| json!({ "key": Encoded::of(key), "size_bytes": found.len }))
        .collect();
    Ok(Json(json!({
        "adapter": listed.type_name,
        "shared": listed.shared,
        "entries": entries,
        "next_page_token": got.next,
    })))
}

#[derive(Deserialize)]
pub(crate) struct Removal {
    keys: Vec<Encoded>,
    #[serde(default = "l2")]
    tier: Tier,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "accepted, as LMCache's clients send it: what is held goes with its last holder"
    )]
    force: bool,
    adapter: Option<String>,
}

pub(crate) async fn remove(
    State(admin): State<Admin>,
    body: Result<Json<Removal>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(removal) = body?;
    if removal.keys.len() > MOST_KEYS {
        let what = format!("keys: at most {MOST_KEYS}, not {}", removal.keys.len());
        return Err(Failure::bad_request(what));
    }
    let mut keys = Vec::with_capacity(removal.keys.len());
    for (at, key) in removal.keys.iter().enumerate() {
        keys.push(key.key().map_err(|e| Failure::bad_request(format!("keys[{at}]: {e}")))?);
    }
    let manager = &admin.0.manager;
    let (deleted, failed) = match removal.tier {
        Tier::L1 => {
            let what = "tier: 'l2' takes objects from one adapter, 'all' from L1 and every adapter; L1 alone is cleared";
            return Err(Failure::bad_request(what));
        }
        Tier::All => {
            let deleted = manager.delete(&manager.request(WITHIN), &keys).await;
            let failed = deleted.failed.iter().map(|(adapter, why)| format!("{adapter}: {why}")).collect();
            (deleted.l1.count() + deleted.l2.count(), failed)
        }
        Tier::L2 => {
            let listed = chosen(&admin.0.adapters, removal.adapter.as_deref())?;
            let Some(remove) = &listed.adapter.remove else {
                let what = format!("the adapter {:?} does not remove", listed.adapter.store.desc().name);
                return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, what));
            };
            let answers = remove.remove(keys.into(), manager.request(WITHIN).deadline).await;
            let gone = answers.iter().filter(|a| matches!(a, Ok(true))).count();
            let failed: Vec<String> =
                answers.iter().filter_map(|a| Some(a.as_ref().err()?.to_string())).collect();
            (gone, failed)
        }
    };
    let mut out = json!({ "deleted": deleted, "skipped": 0, "ok": failed.is_empty() });
    if let Some(first) = failed.first() {
        out["error"] = format!("{} of them: {first}", failed.len()).into();
    }
    Ok(Json(out))
}
