//! Prompts that are loaded ahead of time.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use kvstrata_core::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Failure;
use crate::state::Admin;

/// The longest prompt of one request, in tokens; LMCache's number.
const MOST_TOKENS: usize = 1_000_000;

/// A prompt to load ahead of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefetch {
    /// The model, as the engine names it.
    pub model_name: String,
    /// Shards of its KV cache.
    pub world_size: i64,
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// The tenant's cache salt.
    pub cache_salt: String,
}

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prefetched {
    /// It is not over.
    Pending,
    /// It is over, and so many of so many objects are in L1.
    Completed {
        /// Those that are in L1.
        found: usize,
        /// Those of the prompt.
        total: usize,
    },
}

type Submit = dyn Fn(&Prefetch) -> Result<Option<(String, usize)>> + Send + Sync;
type Ask = dyn Fn(&str) -> Option<Prefetched> + Send + Sync;

/// Who begins them, and who knows how far they are.
pub(crate) type Prefetches = (Arc<Submit>, Arc<Ask>);

#[derive(Deserialize)]
pub(crate) struct Asked {
    model_name: String,
    world_size: i64,
    token_ids: Vec<u32>,
    #[serde(default)]
    cache_salt: String,
    source_tier: Option<String>,
    target_tier: Option<String>,
}

fn prefetches(admin: &Admin) -> Result<Prefetches, Failure> {
    let none = || Failure(StatusCode::NOT_IMPLEMENTED, "nothing is loaded ahead of time here".into());
    admin.0.prefetches.clone().ok_or_else(none)
}

pub(crate) async fn submit(
    State(admin): State<Admin>,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let Json(asked) = body?;
    let (submit, _) = prefetches(&admin)?;
    for (field, tier, only) in
        [("source_tier", &asked.source_tier, "l2"), ("target_tier", &asked.target_tier, "l1")]
    {
        if let Some(tier) = tier.as_deref().filter(|tier| *tier != only) {
            return Err(Failure::bad_request(format!("{field}: only '{only}', not {tier:?}")));
        }
    }
    let tokens = asked.token_ids.len();
    if tokens > MOST_TOKENS {
        return Err(Failure::bad_request(format!("token_ids: at most {MOST_TOKENS}, not {tokens}")));
    }
    let Asked { model_name, world_size, token_ids, cache_salt, .. } = asked;
    let prompt = Prefetch { model_name, world_size, token_ids, cache_salt };
    // Hashing a long prompt takes its time.
    let begun = tokio::task::spawn_blocking(move || submit(&prompt)).await;
    let lost = |_| Failure(StatusCode::INTERNAL_SERVER_ERROR, "the load was not begun".into());
    let answer = match begun.map_err(lost)?? {
        Some((id, chunks)) => json!({ "request_id": id, "chunks": chunks, "status": "submitted" }),
        None => json!({ "chunks": 0, "status": "noop" }),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

pub(crate) async fn status(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let (_, ask) = prefetches(&admin)?;
    match ask(&id) {
        Some(Prefetched::Pending) => Ok(Json(json!({ "request_id": id, "status": "pending" }))),
        Some(Prefetched::Completed { found, total }) => Ok(Json(json!({
            "request_id": id,
            "status": "completed",
            "found_keys": found,
            "total_keys": total,
        }))),
        None => {
            let what =
                format!("request_id: {id:?} is not known: it was never submitted, or its end was told");
            Err(Failure(StatusCode::NOT_FOUND, what))
        }
    }
}
