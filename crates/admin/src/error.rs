//! What a client is told when a request fails.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kvstrata_core::{Error, ErrorKind};
use serde_json::json;

/// A status and a text. The body is `{"detail": …}`, as LMCache's clients read it.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) StatusCode, pub(crate) String);

impl Failure {
    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let status = match e.kind() {
            ErrorKind::Invalid | ErrorKind::Mismatch => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

impl From<JsonRejection> for Failure {
    fn from(e: JsonRejection) -> Self {
        Self(e.status(), e.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(e: QueryRejection) -> Self {
        Self(e.status(), e.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "detail": self.1 }))).into_response()
    }
}

/// Paths that LMCache's server has and this one has not, by how they begin, and why.
const ABSENT: [(&str, &str); 7] = [
    ("/run_script", "this server runs no code that a client sends"),
    ("/reconfigure", "adapters are set up at the start; change the configuration and start again"),
    ("/metrics/reset", "counters only grow; take differences"),
    ("/env", "the environment may hold secrets; /config says what was made of it"),
    ("/loglevel", "the log level is set at the start"),
    ("/threads", "there are no Python threads"),
    ("/periodic-threads", "there are no periodic threads"),
];

/// A path that is not there.
pub(crate) async fn nothing_here(uri: Uri) -> Failure {
    let path = uri.path();
    match ABSENT.iter().find(|(begin, _)| path.starts_with(begin)) {
        Some((_, why)) => Failure(StatusCode::NOT_IMPLEMENTED, format!("{path}: {why}")),
        None => Failure(StatusCode::NOT_FOUND, format!("{path}: there is nothing here")),
    }
}
