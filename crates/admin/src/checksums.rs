//! Digests of the blocks of a worker's own KV cache, for clients that check what came back.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use kvstrata_core::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::Failure;
use crate::state::Admin;

/// The digests of a worker's blocks, so many blocks in each: over all layers, or a list for each layer.
pub(crate) type Checksums = dyn Fn(i64, &[i64], usize, bool) -> Result<Vec<Vec<String>>> + Send + Sync;

#[derive(Deserialize)]
pub(crate) struct Asked {
    #[serde(default)]
    block_ids: Vec<i64>,
    /// In blocks.
    #[serde(default)]
    chunk_size: usize,
    #[serde(default)]
    instance_id: i64,
    #[serde(default)]
    layerwise: bool,
}

pub(crate) async fn checksums(
    State(admin): State<Admin>,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(Asked { block_ids, chunk_size, instance_id, layerwise }) = body?;
    let Some(digest) = admin.0.checksums.clone() else {
        let m = "no worker's memory is open here";
        return Err(Failure(StatusCode::NOT_IMPLEMENTED, m.into()));
    };
    let blocks = block_ids.clone();
    let made = tokio::task::spawn_blocking(move || digest(instance_id, &blocks, chunk_size, layerwise)).await;
    let lost = |_| Failure(StatusCode::INTERNAL_SERVER_ERROR, "the digests were not made".into());
    let mut made = made.map_err(lost)??;
    let digests = if layerwise {
        let layers = made.into_iter().enumerate().map(|(i, d)| (format!("layer_{i}"), json!(d)));
        Value::Object(layers.collect::<Map<_, _>>())
    } else {
        json!(made.pop().unwrap_or_default())
    };
    Ok(Json(json!({
        "status": "success",
        "chunk_size": chunk_size,
        "num_chunks": block_ids.len().div_ceil(chunk_size.max(1)),
        "chunk_checksums": digests,
        "layerwise": layerwise,
        "block_id_ranges": ranges(&block_ids),
    })))
}

/// Runs of consecutive numbers by their ends, and what stands alone.
fn ranges(ids: &[i64]) -> Vec<Value> {
    let runs = ids.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    runs.map(|run| match run {
        [one] => json!(one),
        _ => json!([run[0], run[run.len() - 1]]),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_shown_by_their_ends() {
        assert_eq!(json!(ranges(&[1, 2, 3, 7, 9, 10])), json!([[1, 3], 7, [9, 10]]));
        assert!(ranges(&[]).is_empty());
    }
}
