//! Listening, and what a message is handed to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::codec::message_into;
use crate::connection;

/// A message: its parts.
pub type Message = Vec<Bytes>;

/// One connection, as this router numbers them; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// What peers may ask of this side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of one message, over all its parts.
    pub message_bytes: usize,
    /// Parts of one message.
    pub message_parts: usize,
    /// Messages of one connection that are neither answered nor given up. At the limit nothing more is read from it.
    pub in_flight: usize,
    /// Connections. What comes above that is closed at once.
    pub connections: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a peer may take to receive what is sent to it.
    pub send: Duration,
    /// Bytes of messages that are not whole yet, over all connections and beyond 64 KiB of each. At the limit a connection
    /// waits for others to be done; room for one message of the largest size there always is.
    pub unfinished_bytes: usize,
    /// How long a message may take to come from its first byte to its last.
    pub receive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 16 << 20,
            message_parts: 16,
            in_flight: 256,
            connections: 4096,
            handshake: Duration::from_secs(10),
            send: Duration::from_secs(30),
            unfinished_bytes: 128 << 20,
            receive: Duration::from_secs(30),
        }
    }
}

/// Who gets the messages.
///
/// 1. `connected` comes before any message of a peer, `disconnected` after all of them, each once.
/// 2. The messages of one peer come one at a time, in order. Those of different peers come at the same time.
/// 3. A call must not block: it runs on the connection's task, and other connections may share its thread.
pub trait Handler: Send + Sync + 'static {
    /// A peer's handshake is done.
    fn connected(&self, peer: PeerId);
    /// A message came. Answers go into `out` at once, or through the ticket later; a ticket that is dropped is no answer.
    fn message(&self, peer: PeerId, message: Message, out: &mut Outbox, ticket: Ticket);
    /// The connection has ended.
    fn disconnected(&self, peer: PeerId);
}

/// What goes out to the peer as soon as its messages that are here have been looked at.
#[derive(Debug, Default)]
pub struct Outbox(pub(crate) BytesMut);

impl Outbox {
    /// Adds an answer.
    pub fn push(&mut self, message: Message) {
        message_into(&message, &mut self.0);
    }
}

/// The right to answer a message later. While it lives, the message counts as in flight.
pub struct Ticket {
    pub(crate) send: mpsc::UnboundedSender<Message>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Ticket {
    /// Sends an answer; `false` if the peer has gone. Streams call this more than once, and wait for their own credit in
    /// between: nothing else bounds what is queued.
    pub fn send(&self, message: Message) -> bool {
        self.send.send(message).is_ok()
    }

    /// Resolves when the peer has gone.
    pub async fn gone(&self) {
        self.send.closed().await;
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(gone: {})", self.send.is_closed())
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// The file of a Unix socket; removed when dropped, which is all it is for.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A socket that listens, and not yet accepts.
pub struct Router {
    listener: Listener,
    endpoint: String,
    limits: Limits,
}

impl Router {
    /// Listens at `tcp://HOST:PORT` (port 0: any) or `ipc://PATH`. A socket file that nobody listens on any more is replaced;
    /// a new one is for this user alone.
    ///
    /// # Errors
    /// `InvalidInput` for another endpoint; what the system says.
    pub async fn bind(endpoint: &str, limits: Limits) -> io::Result<Self> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidInput, "an endpoint is tcp://HOST:PORT or ipc://PATH");
        if let Some(address) = endpoint.strip_prefix("tcp://") {
            if !address.contains(':') {
                return Err(invalid());
            }
            let listener = TcpListener::bind(address).await?;
            let endpoint = format!("tcp://{}", listener.local_addr()?);
            return Ok(Self { listener: Listener::Tcp(listener), endpoint, limits });
        }
        let path = endpoint.strip_prefix("ipc://").filter(|p| !p.is_empty()).ok_or_else(invalid)?;
        let listener = bind_unix(Path::new(path)).await?;
        let file = SocketFile(path.into());
        Ok(Self { listener: Listener::Unix { listener, _file: file }, endpoint: endpoint.to_owned(), limits })
    }

    /// Where it listens, with the port that was chosen.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Accepts peers until the future is dropped; then all connections end.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let places = Arc::new(Semaphore::new(self.limits.connections));
        let room = connection::Room::new(&self.limits);
        let numbers = AtomicU64::new(1);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let socket = match accepted {
                Ok(socket) => socket,
                Err(e) => {
                    // Out of descriptors, most likely: others must end before it gets better.
                    tracing::warn!(error = %e, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(
                    limit = self.limits.connections,
                    "a connection was refused: there are too many"
                );
                continue;
            };
            let peer = PeerId(numbers.fetch_add(1, Ordering::Relaxed));
            let (handler, limits, room) = (Arc::clone(&handler), self.limits, room.clone());
            connections.spawn(async move {
                let ended = match socket {
                    Socket::Tcp(socket) => connection::run(socket, peer, &*handler, &limits, room).await,
                    Socket::Unix(socket) => connection::run(socket, peer, &*handler, &limits, room).await,
                };
                if let Err(e) = ended {
                    tracing::debug!(peer = peer.0, error = %e, "a connection ended");
                }
                drop(place);
            });
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Router({})", self.endpoint)
    }
}

enum Socket {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                // Small answers are not held back for more to come.
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            Self::Unix { listener, .. } => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
