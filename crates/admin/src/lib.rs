//! The HTTP interface of a cache server: health, status, metrics, quotas, and what operators do to a cache.
//!
//! Paths and JSON shapes are LMCache's, where its command line, its SDK and its users' dashboards and probes ask for them:
//! `lmcache ping kvcache`, `describe kvcache`, `kvcache clear` and `quota` work against it. [`router`] makes the routes of an
//! [`Admin`]; [`serve`] answers on a listener until it is told to stop.
//!
//! | method and path | what |
//! |---|---|
//! | `GET /`, `/healthcheck`, `/version`, `/lmc_version`, `/commit_id` | that it is there, and which it is |
//! | `GET /status`, `/config`, `/config/adapters` | what it does, and how it was set up |
//! | `GET /metrics` | OpenMetrics text for Prometheus |
//! | `POST /cache/clear` | empties L1 |
//! | `GET`, `DELETE /cache/objects` | the objects of an adapter, a page at a time; removes some by key |
//! | `POST /cache/prefetches`, `GET /cache/prefetches/{id}` | loads what L2 has of a prompt into L1, and says how far it is |
//! | `POST /cache/checksums` | digests of blocks of a worker's own KV cache |
//! | `GET /quota`, `GET`, `PUT`, `DELETE /quota/{salt}` | what tenants may hold and do hold; `_default` is the empty salt |
//!
//! ```
//! use kvstrata_admin::{Admin, router};
//! # use kvstrata_l2::Context;
//! # use kvstrata_manager::{Manager, Options, Parts};
//! # use kvstrata_mem::{HeapRegion, Slab};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let slab = Slab::new(vec![HeapRegion::new(2 << 20)?])?;
//! # let parts = Parts {
//! #     cache: slab.pool("cache", 1 << 20),
//! #     staging: slab.pool("staging", 1 << 20),
//! #     eviction: kvstrata_evict::by_name("lru")?,
//! #     admission: kvstrata_evict::admission_by_name("always")?,
//! #     store: kvstrata_policy::store_by_name("default")?,
//! #     prefetch: kvstrata_policy::prefetch_by_name("default")?,
//! #     cx: Context::tokio(tokio::runtime::Handle::current()),
//! # };
//! let manager = Manager::new(parts, Options::default())?;
//! let routes: axum::Router = router(Admin::new(manager));
//! # Ok(())
//! # }
//! ```
//!
//! Deliberately absent: authentication (bind it to loopback, or put something in front), and everything that runs code
//! which a client sends.
//!
//! Architecture invariant: it asks and tells the parts it was given, and keeps nothing of its own.
#![forbid(unsafe_code)]

mod cache;
mod checksums;
mod error;
mod info;
mod prefetches;
mod quota;
mod state;

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post};
use tower_http::timeout::TimeoutLayer;

pub use prefetches::{Prefetch, Prefetched};
pub use state::{Admin, Listed};

/// The largest body that is read, in bytes: 10 000 keys of a removal, and room to spare.
const BODY: usize = 8 << 20;

/// When a request is over at the latest. What it started with an adapter ends by itself.
const WITHIN: Duration = Duration::from_secs(30);

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(info::root))
        .route("/healthcheck", get(info::healthcheck))
        .route("/version", get(info::version))
        .route("/lmc_version", get(info::version))
        .route("/commit_id", get(info::commit_id))
        .route("/status", get(info::status))
        .route("/config", get(info::config))
        .route("/config/adapters", get(info::adapters))
        .route("/metrics", get(info::metrics))
        .route("/cache/clear", post(cache::clear))
        .route("/cache/checksums", post(checksums::checksums))
        .route("/cache/objects", get(cache::list).delete(cache::remove))
        .route("/cache/prefetches", post(prefetches::submit))
        .route("/cache/prefetches/{id}", get(prefetches::status))
        .route("/quota", get(quota::all))
        .route("/quota/{salt}", get(quota::one).put(quota::set).delete(quota::unset))
        .fallback(error::nothing_here)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, WITHIN))
        .with_state(admin)
}

/// Answers on `listener` until `stop` is ready; requests that are under way then are finished.
///
/// # Errors
/// What the listener says.
pub async fn serve(
    listener: tokio::net::TcpListener,
    admin: Admin,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(admin)).with_graceful_shutdown(stop).await
}
