//! Spans of the server's requests, for a collector.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use kvstrata_otlp::{Endpoint, Exporter, Span};
use kvstrata_server::{Answered, RequestWatch, Service};

/// Makes a span of each answer. Requests of one session, which is an engine's request, are one trace.
struct Spans {
    exporter: Exporter,
    /// Which run of the server this is.
    run: u64,
    count: AtomicU64,
}

/// A number that is not zero, the same for the same.
fn number(of: impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    of.hash(&mut h);
    h.finish().max(1)
}

fn trace(of: impl Hash) -> [u8; 16] {
    let halves = [number(("trace", &of)), number(("of", &of))].map(u64::to_be_bytes);
    *halves.as_flattened().first_chunk().expect("two of eight")
}

impl RequestWatch for Spans {
    fn answered(&self, answer: &Answered<'_>) {
        let end = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
        let own = (self.run, self.count.fetch_add(1, Ordering::Relaxed));
        let session = answer.session;
        let mut attributes = vec![("rpc.system", "lmcache".into()), ("rpc.method", answer.operation.into())];
        if !session.is_empty() {
            attributes.push(("kvstrata.request_id", session.into()));
        }
        self.exporter.export(Span {
            trace: if session.is_empty() { trace(own) } else { trace(session) },
            id: number(own).to_be_bytes(),
            name: answer.operation,
            start_nanos: end.saturating_sub(answer.took.as_nanos() as u64),
            end_nanos: end,
            attributes,
            error: answer.error.map(ToString::to_string),
        });
    }
}

/// Has a span of every answer sent to a collector, as long as the server runs. Those of its last moment may be lost.
pub(crate) fn send(service: &Service, endpoint: Endpoint, run: u64) {
    let resource = vec![
        ("service.name", "kvstrata".into()),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
        ("process.pid", i64::from(std::process::id()).into()),
    ];
    let (exporter, sending) = Exporter::new(endpoint, resource);
    service.watch_requests(Arc::new(Spans { exporter, run, count: AtomicU64::new(0) }));
    tokio::spawn(sending);
}
