//! One connection: reads, hands over, writes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;

use crate::codec::{Decoder, Event, greeting, message_into, ready};
use crate::router::{Handler, Limits, Message, Outbox, PeerId, Ticket};

/// What a connection's buffer may keep when nothing is in it.
const KEEP: usize = 64 << 10;
/// The most room that is made at once for what a peer announced and has not sent.
const STEP: usize = 1 << 20;

/// The room for messages that are not whole yet, shared by all connections, in units of [`KEEP`].
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    pub(crate) fn new(limits: &Limits) -> Self {
        let bytes = limits.unfinished_bytes.max(limits.message_bytes.saturating_add(STEP));
        Self(Arc::new(Semaphore::new((bytes / KEEP).min(Semaphore::MAX_PERMITS))))
    }

    /// Waits until there is so much more of it.
    async fn more(&self, units: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(units).ok()?;
        Arc::clone(&self.0).acquire_many_owned(units).await.ok()
    }
}

/// Tells the handler that a peer has gone, however the connection ends.
struct Connected<'a>(&'a dyn Handler, PeerId);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.disconnected(self.1);
    }
}

pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    peer: PeerId,
    handler: &dyn Handler,
    limits: &Limits,
    room: Room,
) -> io::Result<()> {
    let mut decoder = Decoder::new(limits.message_bytes, limits.message_parts);
    let mut input = BytesMut::new();
    let mut hello = BytesMut::from(&greeting()[..]);
    ready("ROUTER", &mut hello);
    let handshake = async {
        socket.write_all(&hello).await?;
        loop {
            if decoder.next(&mut input).map_err(malformed)?.is_some() {
                return Ok(());
            }
            if socket.read_buf(&mut input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    within(limits.handshake, handshake).await?;
    handler.connected(peer);
    let _connected = Connected(handler, peer);

    let permits = Arc::new(Semaphore::new(limits.in_flight));
    let (send, mut later) = mpsc::unbounded_channel::<Message>();
    let mut out = Outbox::default();
    // A message that waits for a place among those in flight.
    let mut next: Option<Vec<Bytes>> = None;
    // What of the shared room this connection has, and when the message has to be whole that it is for.
    let mut held: Option<OwnedSemaphorePermit> = None;
    let mut due: Option<Pin<Box<Sleep>>> = None;
    loop {
        // Everything that is here is looked at before anything is waited for.
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => match decoder.next(&mut input).map_err(malformed)? {
                    Some(Event::Message(message)) => {
                        due = None;
                        message
                    }
                    Some(Event::Ping(context)) => {
                        Event::pong(&context, &mut out.0);
                        continue;
                    }
                    Some(Event::Ready) | None => break,
                },
            };
            match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => {
                    let ticket = Ticket { send: send.clone(), _permit: permit };
                    handler.message(peer, message, &mut out, ticket);
                }
                Err(_) => {
                    next = Some(message);
                    break;
                }
            }
            if out.0.len() >= STEP {
                break;
            }
        }
        while let Ok(message) = later.try_recv() {
            message_into(&message, &mut out.0);
        }
        if !out.0.is_empty() {
            within(limits.send, socket.write_all(&out.0)).await?;
            shrink(&mut out.0);
            continue;
        }
        if input.is_empty() {
            shrink(&mut input);
        }
        let (unfinished, frame) = (decoder.unfinished() + input.len(), decoder.wants(&input).max(4096));
        let wants = frame.min(STEP);
        // For the whole frame at once: two that each had room for half of theirs would wait for each other.
        let units =
            if unfinished == 0 { 0 } else { (unfinished + frame).saturating_sub(KEEP).div_ceil(KEEP) };
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if has > units {
            let excess = held.as_mut().and_then(|held| held.split(has - units));
            drop(excess);
        }
        let (fits, reads) = (has >= units, next.is_none());
        if fits && reads {
            input.reserve(wants);
        }
        // A peer that has begun a message has so long to finish it, time for room included.
        if unfinished == 0 || !reads {
            due = None;
        } else if due.is_none() {
            due = Some(Box::pin(tokio::time::sleep(limits.receive)));
        }
        let overdue = async {
            match &mut due {
                Some(due) => due.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(message) = later.recv() => message_into(&message, &mut out.0),
            _ = permits.acquire(), if !reads => {}
            more = room.more(units.saturating_sub(has)), if reads && !fits => {
                match (&mut held, more) {
                    (Some(held), Some(more)) => held.merge(more),
                    (held, more) => *held = more,
                }
            }
            read = socket.read_buf(&mut input), if reads && fits => if read? == 0 { return Ok(()) },
            () = overdue => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn shrink(buffer: &mut BytesMut) {
    buffer.clear();
    if buffer.capacity() > KEEP {
        *buffer = BytesMut::new();
    }
}

fn malformed(e: crate::Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
