//! The server's side of ZeroMQ's wire protocol: a ROUTER that answers DEALERs and REQs, over TCP and Unix sockets.
//!
//! A [`Router`] listens at `tcp://HOST:PORT` or `ipc://PATH` and hands every message to a [`Handler`], which answers at once
//! into the [`Outbox`] or keeps the [`Ticket`] and answers later, from anywhere. Each connection is a task of its own: a
//! peer that is slow, silent or hostile holds up nobody else, and no peer can make this side hold more than the
//! [`Limits`] say.
//!
//! ```
//! use std::sync::Arc;
//! use kvstrata_zmtp::{Handler, Limits, Message, Outbox, PeerId, Router, Ticket};
//!
//! /// Sends every message back.
//! struct Echo;
//! impl Handler for Echo {
//!     fn connected(&self, _: PeerId) {}
//!     fn message(&self, _: PeerId, message: Message, out: &mut Outbox, _: Ticket) {
//!         out.push(message);
//!     }
//!     fn disconnected(&self, _: PeerId) {}
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let router = Router::bind("tcp://127.0.0.1:0", Limits::default()).await?;
//! assert!(router.endpoint().starts_with("tcp://127.0.0.1:"));
//! let serving = tokio::spawn(router.serve(Arc::new(Echo)));
//! serving.abort();
//! # Ok(())
//! # }
//! ```
//!
//! Spoken: ZMTP 3.0 and what 3.1 adds for pings, security mechanism `NULL`, as <https://rfc.zeromq.org/spec/23/> and
//! [37](https://rfc.zeromq.org/spec/37/) say. One connection is one peer, so there is no table of routing ids, and the
//! identity that a peer announces is not used for anything.
//!
//! Beside it there is a [`Dealer`], the least that a client is, for tests and simple tools.
//!
//! Deliberately absent: other socket types, clients that reconnect, CURVE and PLAIN, older protocols (ZMTP 1 and 2), and queues
//! that outlive a connection: what a peer did not take before it went is gone.
#![forbid(unsafe_code)]

mod codec;
mod connection;
mod dealer;
mod router;

pub use codec::{Decoder, Event, GREETING_LEN, Malformed, greeting, message_into, ready};
pub use dealer::Dealer;
pub use router::{Handler, Limits, Message, Outbox, PeerId, Router, Ticket};
