//! coro_rpc: one call at a time over one connection.
//!
//! A request is a header of 20 bytes (magic, version, serialisation, type; sequence, function, body, attachment) and its
//! body; an answer has a header of 16 bytes (magic, version, error, type; sequence, body, attachment).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::md5;
use super::pack::Garbled;

const MAGIC: u8 = 21;
/// More than any answer has: an entry per key of a batch.
const LONGEST: usize = 16 << 20;
/// How long a peer on this machine may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// There was nobody to call.
    Unreachable(io::Error),
    /// The connection broke during the call. Whether the peer did, does or will do what it was asked is not known.
    Lost(io::Error),
    /// The peer does not take the call: an unknown function, or arguments of other types.
    Refused(u8, String),
    /// The answer is not what was expected.
    Garbled(Garbled),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(e) => write!(f, "nobody answers ({e})"),
            Self::Lost(e) => write!(f, "the connection broke ({e})"),
            Self::Refused(code, why) => write!(f, "the peer refused the call ({code}: {why})"),
            Self::Garbled(Garbled(why)) => write!(f, "the answer cannot be read: {why}"),
        }
    }
}

/// Bytes that went through sockets, for all connections together.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) calls: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    sequence: u32,
    traffic: Arc<Traffic>,
}

impl Connection {
    pub(crate) fn open(to: SocketAddr, traffic: &Arc<Traffic>) -> Result<Self, CallError> {
        let stream = TcpStream::connect_timeout(&to, CONNECT).map_err(CallError::Unreachable)?;
        stream.set_nodelay(true).map_err(CallError::Unreachable)?;
        Ok(Self { stream, sequence: 0, traffic: Arc::clone(traffic) })
    }

    /// Ends waits for an answer after so long; without it a call waits for as long as the peer lives. For calls that give no
    /// memory away.
    pub(crate) fn patience(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))
    }

    /// Calls `mooncake::RealClient::FUNCTION`. After a lost connection this one is of no use any more.
    pub(crate) fn call(&mut self, function: &str, body: &[u8]) -> Result<Vec<u8>, CallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let id = md5::first32(format!("mooncake::RealClient::{function}").as_bytes());
        let len = u32::try_from(body.len())
            .map_err(|_| CallError::Refused(0, format!("a body of {} bytes is too long", body.len())))?;
        let mut message = vec![MAGIC, 0, 0, 0];
        for word in [self.sequence, id, len, 0] {
            message.extend(word.to_le_bytes());
        }
        message.extend_from_slice(body);
        self.traffic.calls.fetch_add(1, Ordering::Relaxed);
        self.traffic.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.stream.write_all(&message).map_err(CallError::Lost)?;
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).map_err(CallError::Lost)?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (sequence, len) = (word(4), word(8) as usize + word(12) as usize);
        if header[0] != MAGIC || sequence != self.sequence || len > LONGEST {
            let why = format!("no answer to call {} begins with {header:02x?}", self.sequence);
            return Err(CallError::Lost(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).map_err(CallError::Lost)?;
        self.traffic.bytes.fetch_add((header.len() + len) as u64, Ordering::Relaxed);
        match header[2] {
            0 => Ok(body),
            code => Err(CallError::Refused(code, readable(&body))),
        }
    }
}

/// What can be read of an error's text, which comes with a few bytes about its length.
fn readable(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().filter(|c| !c.is_control() && *c != '\u{fffd}').collect()
}
