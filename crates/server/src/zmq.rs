//! The ZeroMQ wire over a service: [`wire`] for the messages, `kvstrata-zmtp` for the sockets.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use kvstrata_core::Error;
use kvstrata_l2::Spawn;
use kvstrata_zmtp::{Handler, Message, Outbox, PeerId, Ticket};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::api::{Reply, Request};
use crate::wire::{self, Operation};
use crate::{Answer, ClientId, Service, Subscription};

/// Answers the messages of LMCache's clients. Give it to a [`kvstrata_zmtp::Router`].
#[derive(Clone, Debug)]
pub struct Zmq {
    service: Service,
    spawn: Arc<dyn Spawn>,
    streams: Arc<Streams>,
}

/// The streams that run, by peer and the number of the request that began each. What is sent is a credit; the end of the
/// channel is the end of the stream.
type Streams = Mutex<HashMap<(PeerId, Bytes), mpsc::Sender<()>>>;

impl Zmq {
    /// Over this service; answers that take time run on `spawn`.
    pub fn new(service: Service, spawn: Arc<dyn Spawn>) -> Self {
        Self { service, spawn, streams: Arc::default() }
    }

    /// A message's number, operation and arguments.
    fn split(message: &Message) -> Option<(&Bytes, Operation, &[Bytes])> {
        let [uid, op, arguments @ ..] = message.as_slice() else { return None };
        match Operation::read(op) {
            Ok(op) => Some((uid, op, arguments)),
            Err(e) => {
                tracing::debug!(error = %e, "a message of no known operation");
                None
            }
        }
    }
}

impl Zmq {
    /// A control frame of a stream: the credit for one more batch, or its end.
    fn control(&self, peer: PeerId, uid: &Bytes, what: &[u8]) {
        let mut streams = self.streams.lock();
        let key = (peer, uid.clone());
        match what {
            b"ack" => {
                // One credit at a time is all that a client has to give.
                if let Some(stream) = streams.get(&key) {
                    let _ = stream.try_send(());
                }
            }
            b"cancel" => drop(streams.remove(&key)),
            _ => self.service.unreadable(),
        }
    }

    /// Sends batches, each after the credit for the one before it.
    fn stream(&self, peer: PeerId, uid: Bytes, op: Operation, mut from: Subscription, ticket: Ticket) {
        let (credit, mut credits) = mpsc::channel(1);
        let key = (peer, uid.clone());
        self.streams.lock().insert(key.clone(), credit);
        let streams = Arc::clone(&self.streams);
        self.spawn.spawn(Box::pin(async move {
            let work = async {
                while let Some(batch) = from.next().await {
                    ticket.send(wire::reply_parts(uid.clone(), op, &Reply::Events(batch)));
                    if credits.recv().await.is_none() {
                        return;
                    }
                }
                ticket.send(wire::reply_parts(uid.clone(), op, &Reply::None));
            };
            tokio::select! {
                biased;
                () = ticket.gone() => {}
                () = work => {}
            }
            streams.lock().remove(&key);
        }));
    }
}

fn said_no(op: Operation, session: &str, e: &Error) -> Reply {
    tracing::warn!(operation = op.name(), request = session, error = %e, "a request was refused");
    op.negative()
}

impl Handler for Zmq {
    fn connected(&self, _: PeerId) {}

    fn message(&self, peer: PeerId, message: Message, out: &mut Outbox, ticket: Ticket) {
        if let [uid, op, what] = message.as_slice()
            && op.is_empty()
        {
            return self.control(peer, uid, what);
        }
        let Some((uid, op, arguments)) = Self::split(&message) else {
            self.service.unreadable();
            // A client's own message has a number and an operation; only then there is somebody to tell.
            if let [uid, op, ..] = message.as_slice()
                && !op.is_empty()
            {
                out.push(wire::reply_parts(uid.clone(), Operation::Noop, &Reply::Refused));
            }
            return;
        };
        let request: Request = match wire::read_request(op, arguments) {
            Ok(request) => request,
            Err(e) => {
                self.service.unreadable();
                tracing::warn!(operation = op.name(), error = %e, "a request could not be read");
                out.push(wire::reply_parts(uid.clone(), op, &op.negative()));
                return;
            }
        };
        let session = wire::session_of(&request).into_owned();
        match self.service.call(ClientId(peer.0), request) {
            Ok(Answer::Now(reply)) => out.push(wire::reply_parts(uid.clone(), op, &reply)),
            Ok(Answer::Later(later)) => {
                let uid = uid.clone();
                self.spawn.spawn(Box::pin(async move {
                    let reply = tokio::select! {
                        biased;
                        () = ticket.gone() => return,
                        reply = later => reply,
                    };
                    let reply = reply.unwrap_or_else(|e| said_no(op, &session, &e));
                    ticket.send(wire::reply_parts(uid, op, &reply));
                }));
            }
            Ok(Answer::Stream(from)) => self.stream(peer, uid.clone(), op, from, ticket),
            Err(e) => out.push(wire::reply_parts(uid.clone(), op, &said_no(op, &session, &e))),
        }
    }

    fn disconnected(&self, peer: PeerId) {
        self.service.disconnected(ClientId(peer.0));
    }
}
