//! Spans on their way to a collector.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{Attribute, Endpoint, Span, encode};

/// Spans that wait at most.
const QUEUE: usize = 8192;
/// Spans of one request at most.
const BATCH: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(500);
/// How long a collector may take for a batch.
const WITHIN: Duration = Duration::from_secs(5);

/// Takes spans. Clones give to the same collector.
#[derive(Clone, Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    lost: Arc<AtomicU64>,
}

/// Spans that no collector got.
#[derive(Clone, Debug)]
pub struct Losses(Arc<AtomicU64>);

impl Losses {
    /// How many, since the start.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Exporter {
    /// An exporter, and what sends: a future that ends when all clones are dropped and what they gave is sent. `resource`
    /// says who made the spans.
    pub fn new(
        endpoint: Endpoint,
        resource: Vec<Attribute>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, spans) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let sending = send_all(endpoint, resource, spans, Arc::clone(&lost));
        (Self { queue, lost }, sending)
    }

    /// Gives a span away. Never waits: without room it is lost, and counted.
    pub fn export(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is lost, now and later.
    pub fn losses(&self) -> Losses {
        Losses(Arc::clone(&self.lost))
    }
}

async fn send_all(
    endpoint: Endpoint,
    resource: Vec<Attribute>,
    mut spans: mpsc::Receiver<Span>,
    lost: Arc<AtomicU64>,
) {
    let mut reached = true;
    let mut batch = Vec::new();
    while let Some(first) = spans.recv().await {
        batch.push(first);
        let more = async {
            while batch.len() < BATCH {
                match spans.recv().await {
                    Some(span) => batch.push(span),
                    None => return,
                }
            }
        };
        // Whatever came by then is in the batch.
        let _ = tokio::time::timeout(LINGER, more).await;
        let body = encode(&resource, "kvstrata", &batch);
        let sent = tokio::time::timeout(WITHIN, post(&endpoint, &body)).await;
        match sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => reached = true,
            Err(e) => {
                lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
                // Once for as long as it lasts.
                if std::mem::replace(&mut reached, false) {
                    tracing::warn!(collector = endpoint.address, error = %e, "spans are lost");
                }
            }
        }
        batch.clear();
    }
}

/// One request on a connection of its own.
async fn post(endpoint: &Endpoint, body: &[u8]) -> io::Result<()> {
    let mut socket = TcpStream::connect(&endpoint.address).await?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        endpoint.path,
        endpoint.address,
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body).await?;
    // Its first line says what became of it.
    let mut answer = Vec::new();
    while answer.len() < 12 {
        if socket.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    match &answer[..12] {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2', ..] => Ok(()),
        line => Err(io::Error::other(format!("the collector answered {:?}", String::from_utf8_lossy(line)))),
    }
}
