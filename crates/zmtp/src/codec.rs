//! Bytes to events and back, without I/O.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The bytes of a greeting.
pub const GREETING_LEN: usize = 64;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a peer sent that no ZeroMQ peer may send, or more than the limits allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The greeting is not ZMTP 3 with the mechanism `NULL`.
    Greeting,
    /// A frame's flags have bits that nobody defined, or a command claims to have more parts.
    Flags,
    /// A command that cannot be read.
    Command,
    /// The handshake's `READY` is missing, or names a socket type that does not talk to a ROUTER.
    Handshake,
    /// A message is longer than the limit.
    TooLong,
    /// A message has more parts than the limit.
    TooManyParts,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "the greeting is not ZMTP 3 with NULL security",
            Self::Flags => "a frame has undefined flags",
            Self::Command => "a command cannot be read",
            Self::Handshake => "the handshake is not that of a DEALER, REQ or ROUTER",
            Self::TooLong => "a message is longer than the limit",
            Self::TooManyParts => "a message has more parts than the limit",
        })
    }
}

impl std::error::Error for Malformed {}

/// What came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The peer is ready, and so is this side once it has sent its own [`ready`].
    Ready,
    /// A whole message.
    Message(Vec<Bytes>),
    /// A ping: answer with [`Event::pong`] of its context.
    Ping(Bytes),
}

enum Phase {
    Greeting,
    Handshake,
    Traffic,
}

/// Takes what arrives apart. Holds no more than one message, and no more of that than its limits.
pub struct Decoder {
    phase: Phase,
    parts: Vec<Bytes>,
    bytes: usize,
    max_bytes: usize,
    max_parts: usize,
}

impl Decoder {
    /// A decoder for one connection: messages of at most so many bytes, in so many parts.
    pub fn new(max_bytes: usize, max_parts: usize) -> Self {
        Self { phase: Phase::Greeting, parts: Vec::new(), bytes: 0, max_bytes, max_parts }
    }

    /// Takes the next event from the front of `input`; `None` if it needs more bytes. What follows an error is not to be
    /// read.
    ///
    /// # Errors
    /// What the peer did wrong.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Malformed> {
        if let Phase::Greeting = self.phase {
            if !check_greeting(input)? {
                return Ok(None);
            }
            input.advance(GREETING_LEN);
            self.phase = Phase::Handshake;
        }
        loop {
            let Some((flags, body)) = self.frame(input)? else { return Ok(None) };
            match (&self.phase, flags & COMMAND != 0) {
                (Phase::Handshake, true) => {
                    check_ready(&body)?;
                    self.phase = Phase::Traffic;
                    return Ok(Some(Event::Ready));
                }
                (Phase::Handshake, false) => return Err(Malformed::Handshake),
                (_, true) => match command(&body)? {
                    // A time to live of two bytes comes before the context.
                    (b"PING", rest) if rest.len() >= 2 => {
                        let context = body.slice_ref(&rest[2..]);
                        return Ok(Some(Event::Ping(context.slice(..context.len().min(16)))));
                    }
                    // Commands nobody here knows are passed over, as the specification says.
                    _ => {}
                },
                (_, false) => {
                    self.bytes += body.len();
                    self.parts.push(body);
                    if flags & MORE == 0 {
                        self.bytes = 0;
                        return Ok(Some(Event::Message(std::mem::take(&mut self.parts))));
                    }
                }
            }
        }
    }

    /// How many bytes a whole frame still needs that has begun in `input`, so that the reader can make room at once.
    pub fn wants(&self, input: &BytesMut) -> usize {
        match header(input) {
            Some((_, head, len)) if !matches!(self.phase, Phase::Greeting) => {
                (head + len.min(self.max_bytes)).saturating_sub(input.len())
            }
            _ => 0,
        }
    }

    /// How many bytes of a message are here that is not whole yet, beside those in the input.
    pub fn unfinished(&self) -> usize {
        self.bytes
    }

    fn frame(&self, input: &mut BytesMut) -> Result<Option<(u8, Bytes)>, Malformed> {
        let Some(&flags) = input.first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
            return Err(Malformed::Flags);
        }
        let Some((flags, head, len)) = header(input) else { return Ok(None) };
        if flags & COMMAND != 0 {
            // No command that means anything here comes near this.
            if len > 1 << 16 {
                return Err(Malformed::TooLong);
            }
        } else {
            if len > self.max_bytes - self.bytes.min(self.max_bytes) {
                return Err(Malformed::TooLong);
            }
            if self.parts.len() >= self.max_parts {
                return Err(Malformed::TooManyParts);
            }
        }
        if input.len() < head + len {
            return Ok(None);
        }
        input.advance(head);
        Ok(Some((flags, input.split_to(len).freeze())))
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({} parts, {} bytes of a message)", self.parts.len(), self.bytes)
    }
}

/// A frame's flags, the length of its header, and that of its body, if the header is there.
fn header(input: &[u8]) -> Option<(u8, usize, usize)> {
    let (&flags, rest) = input.split_first()?;
    if flags & LONG == 0 {
        return Some((flags, 2, (*rest.first()?).into()));
    }
    let len = u64::from_be_bytes(*rest.first_chunk::<8>()?);
    // Too long for any limit stays too long.
    Some((flags, 9, usize::try_from(len).unwrap_or(usize::MAX >> 1).min(usize::MAX >> 1)))
}

/// Whether the whole greeting is there; wrong bytes are told as soon as they are seen.
fn check_greeting(input: &[u8]) -> Result<bool, Malformed> {
    let wrong = |at: usize, good: &dyn Fn(u8) -> bool| input.get(at).is_some_and(|b| !good(*b));
    let mechanism = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let bad = wrong(0, &|b| b == 0xff)
        || wrong(9, &|b| b == 0x7f)
        || wrong(10, &|b| b >= 3)
        || (12..32).any(|i| wrong(i, &|b| b == mechanism[i - 12]));
    if bad { Err(Malformed::Greeting) } else { Ok(input.len() >= GREETING_LEN) }
}

/// A command's name and what follows it.
fn command(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (&len, rest) = body.split_first().ok_or(Malformed::Command)?;
    rest.split_at_checked(len.into()).ok_or(Malformed::Command)
}

fn check_ready(body: &[u8]) -> Result<(), Malformed> {
    let (name, mut rest) = command(body)?;
    if name != b"READY" {
        return Err(Malformed::Handshake);
    }
    while !rest.is_empty() {
        let (key, after) = command(rest)?;
        let len = after.first_chunk::<4>().ok_or(Malformed::Command)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| Malformed::Command)?;
        let (value, after) = after[4..].split_at_checked(len).ok_or(Malformed::Command)?;
        if key.eq_ignore_ascii_case(b"socket-type") {
            let known = [&b"DEALER"[..], b"REQ", b"ROUTER"].contains(&value);
            return if known { Ok(()) } else { Err(Malformed::Handshake) };
        }
        rest = after;
    }
    Err(Malformed::Handshake)
}

/// The greeting to send first.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut out = [0; GREETING_LEN];
    out[0] = 0xff;
    out[9] = 0x7f;
    out[10] = 3;
    out[12..16].copy_from_slice(b"NULL");
    out
}

/// The `READY` of a socket of this type.
pub fn ready(socket_type: &str, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY\x0bSocket-Type");
    body.put_u32(socket_type.len() as u32);
    body.put_slice(socket_type.as_bytes());
    frame_into(COMMAND, &body, out);
}

impl Event {
    /// The answer to a ping with this context.
    pub fn pong(context: &[u8], out: &mut BytesMut) {
        frame_into(COMMAND, &[b"\x04PONG", context].concat(), out);
    }
}

/// Appends a message. A message without parts is none, and appends nothing.
pub fn message_into<T: AsRef<[u8]>>(parts: &[T], out: &mut BytesMut) {
    for (i, part) in parts.iter().enumerate() {
        frame_into(if i + 1 < parts.len() { MORE } else { 0 }, part.as_ref(), out);
    }
}

fn frame_into(flags: u8, body: &[u8], out: &mut BytesMut) {
    out.reserve(body.len() + 9);
    match u8::try_from(body.len()) {
        Ok(len) => out.put_slice(&[flags, len]),
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(body.len() as u64);
        }
    }
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(parts: &[Vec<u8>]) -> BytesMut {
        let mut bytes = BytesMut::from(&greeting()[..]);
        ready("DEALER", &mut bytes);
        message_into(parts, &mut bytes);
        bytes
    }

    fn all(decoder: &mut Decoder, input: &mut BytesMut) -> Result<Vec<Event>, Malformed> {
        std::iter::from_fn(|| decoder.next(input).transpose()).collect()
    }

    #[test]
    fn what_is_sent_comes_in_whatever_the_pieces() {
        let parts = vec![vec![0], vec![], vec![7; 255], vec![8; 256], vec![9; 4 << 20]];
        let whole = stream(&parts);
        let mut got = Decoder::new(8 << 20, 8);
        let events = all(&mut got, &mut whole.clone()).unwrap();
        let message = parts.iter().map(|p| Bytes::from(p.clone())).collect();
        assert_eq!(events, [Event::Ready, Event::Message(message)]);
        let small = stream(&[vec![1], vec![2; 300]]);
        for cut in 0..small.len() {
            let mut decoder = Decoder::new(1024, 8);
            let mut input = BytesMut::from(&small[..cut]);
            let mut seen = all(&mut decoder, &mut input).unwrap();
            input.extend_from_slice(&small[cut..]);
            seen.extend(all(&mut decoder, &mut input).unwrap());
            assert_eq!(seen.len(), 2, "cut at {cut}");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn what_no_peer_may_send_is_told() {
        let try_bytes =
            |bytes: &[u8], max, parts| all(&mut Decoder::new(max, parts), &mut BytesMut::from(bytes));
        assert_eq!(try_bytes(b"GET / HTTP/1.1\r\n", 99, 9), Err(Malformed::Greeting));
        let mut old = greeting();
        old[10] = 1;
        assert_eq!(try_bytes(&old, 99, 9), Err(Malformed::Greeting));
        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        assert_eq!(try_bytes(&curve, 99, 9), Err(Malformed::Greeting));
        let after = |tail: &[u8]| [&greeting()[..], tail].concat();
        assert_eq!(try_bytes(&after(&[0, 1, 1]), 99, 9), Err(Malformed::Handshake), "traffic before READY");
        assert_eq!(try_bytes(&after(b"\x04\x06\x05ERROR"), 99, 9), Err(Malformed::Handshake));
        assert_eq!(try_bytes(&after(b"\x04\x02\x05R"), 99, 9), Err(Malformed::Command));
        let mut publisher = BytesMut::new();
        ready("PUB", &mut publisher);
        assert_eq!(try_bytes(&after(&publisher), 99, 9), Err(Malformed::Handshake));
        assert_eq!(try_bytes(&after(&[0x80, 0]), 99, 9), Err(Malformed::Flags));
        assert_eq!(try_bytes(&after(&[5, 0]), 99, 9), Err(Malformed::Flags), "a command with more parts");
        assert_eq!(try_bytes(&stream(&[vec![0; 100]]), 99, 9), Err(Malformed::TooLong));
        assert_eq!(try_bytes(&stream(&[vec![0; 60], vec![0; 60]]), 99, 9), Err(Malformed::TooLong));
        assert_eq!(try_bytes(&stream(&[vec![0], vec![0]]), 99, 1), Err(Malformed::TooManyParts));
        let mut huge = stream(&[]);
        huge.extend_from_slice(&[2, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(try_bytes(&huge, 99, 9), Err(Malformed::TooLong));
    }

    #[test]
    fn pings_are_told_with_their_context_and_unknown_commands_passed_over() {
        let mut bytes = stream(&[]);
        frame_into(COMMAND, b"\x04PING\0\x0acontext", &mut bytes);
        frame_into(COMMAND, b"\x03WHO", &mut bytes);
        frame_into(0, b"x", &mut bytes);
        let events = all(&mut Decoder::new(99, 9), &mut bytes).unwrap();
        let context = Bytes::from_static(b"context");
        assert_eq!(events[1..], [Event::Ping(context), Event::Message(vec![Bytes::from_static(b"x")])]);
    }
}
