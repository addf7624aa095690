//! Spans for an OpenTelemetry collector: OTLP/HTTP with protobuf, the least of it that a traced server needs.
//!
//! An [`Exporter`] takes [`Span`]s and never waits: they are queued, sent in batches by the future that comes with it, and
//! dropped and counted where the collector is not there or too slow. What is sent is an `ExportTraceServiceRequest` as
//! <https://github.com/open-telemetry/opentelemetry-proto> has it (`collector/trace/v1`, `trace/v1`), written by hand: it is
//! five messages of a stable format (`docs/adr/0013-otlp-by-hand.md` says why no library does it).
//!
//! ```
//! use kvstrata_otlp::{Endpoint, Exporter, Span, Value};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), kvstrata_otlp::BadEndpoint> {
//! let endpoint: Endpoint = "http://localhost:4318".parse()?;
//! let (exporter, sending) = Exporter::new(endpoint, vec![("service.name", Value::from("my-server"))]);
//! tokio::spawn(sending);
//! exporter.export(Span {
//!     trace: [1; 16],
//!     id: [2; 8],
//!     name: "lookup",
//!     start_nanos: 1_700_000_000_000_000_000,
//!     end_nanos: 1_700_000_000_000_250_000,
//!     attributes: vec![("chunks", Value::from(12))],
//!     error: None,
//! });
//! # Ok(())
//! # }
//! ```
//!
//! Deliberately absent: metrics and logs, gRPC, TLS (a collector on this machine forwards), retries, sampling, parents and
//! links of spans, and a clock: whoever makes a span says when it was.
#![forbid(unsafe_code)]

mod encode;
mod endpoint;
mod export;

pub use encode::encode;
pub use endpoint::{BadEndpoint, Endpoint};
pub use export::{Exporter, Losses};

/// What an attribute says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
    /// A truth.
    Bool(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

/// A name and what it says.
pub type Attribute = (&'static str, Value);

/// Something that was done, from when to when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// What it belongs to. Not all zeros.
    pub trace: [u8; 16],
    /// Its own number. Not all zeros.
    pub id: [u8; 8],
    /// What was done.
    pub name: &'static str,
    /// Its beginning, in nanoseconds since 1970.
    pub start_nanos: u64,
    /// Its end.
    pub end_nanos: u64,
    /// What else there is to say.
    pub attributes: Vec<Attribute>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}
