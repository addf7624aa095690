//! A peer of a router, for tests and simple clients.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::codec::{Decoder, Event, greeting, message_into, ready};
use crate::{Limits, Message};

/// One connection to a router over TCP: sends messages, and receives them in the order they come. It does not reconnect,
/// and sets no deadlines: whoever waits bounds the wait.
#[derive(Debug)]
pub struct Dealer {
    socket: TcpStream,
    decoder: Decoder,
    input: BytesMut,
}

impl Dealer {
    /// Connects to `tcp://HOST:PORT` and shakes hands.
    ///
    /// # Errors
    /// `InvalidInput` for another endpoint, `InvalidData` for a peer that is no router, and what the system says.
    pub async fn connect(endpoint: &str) -> io::Result<Self> {
        let address = endpoint.strip_prefix("tcp://").ok_or(io::ErrorKind::InvalidInput)?;
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let limits = Limits::default();
        let mut this = Self {
            socket,
            decoder: Decoder::new(limits.message_bytes, limits.message_parts),
            input: BytesMut::new(),
        };
        let mut hello = BytesMut::from(&greeting()[..]);
        ready("DEALER", &mut hello);
        this.socket.write_all(&hello).await?;
        match this.event().await? {
            Event::Ready => Ok(this),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send<T: AsRef<[u8]>>(&mut self, parts: &[T]) -> io::Result<()> {
        let mut out = BytesMut::new();
        message_into(parts, &mut out);
        self.socket.write_all(&out).await
    }

    /// Receives a message.
    ///
    /// # Errors
    /// `UnexpectedEof` if the router has gone, and what the system says.
    pub async fn receive(&mut self) -> io::Result<Message> {
        loop {
            if let Event::Message(message) = self.event().await? {
                return Ok(message);
            }
        }
    }

    async fn event(&mut self) -> io::Result<Event> {
        loop {
            let malformed = |e| io::Error::new(io::ErrorKind::InvalidData, e);
            if let Some(event) = self.decoder.next(&mut self.input).map_err(malformed)? {
                return Ok(event);
            }
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
