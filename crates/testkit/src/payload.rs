//! Bytes that belong to one key, so that any load can be checked without keeping a copy.
//!
//! ```
//! use kvstrata_core::{ChunkHash, KeyScope, KvRank, ObjectKey};
//! use kvstrata_testkit::payload;
//!
//! let scope = KeyScope::new("m", KvRank::single(), 0, "")?;
//! let [a, b] = [1, 2].map(|i| ObjectKey::new(&scope, ChunkHash::new(&[i]).unwrap()));
//! let mut bytes = vec![0; 1000];
//! payload::fill(&a, &mut bytes);
//! assert_eq!(payload::check(&a, &bytes), Ok(()));
//! bytes[77] ^= 1;
//! assert_eq!(payload::check(&a, &bytes).unwrap_err().first, 77);
//! assert!(payload::check(&b, &bytes).unwrap_err().count > 900, "another key's bytes are other bytes");
//! # Ok::<(), kvstrata_core::Error>(())
//! ```

use std::fmt;

use kvstrata_core::{ObjectKey, Result};
use kvstrata_mem::{ReadBuf, WriteBuf};

/// Bytes that are not the key's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongBytes {
    /// How many.
    pub count: u64,
    /// Where the first is.
    pub first: u64,
}

impl fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wrong bytes, the first at {}", self.count, self.first)
    }
}

impl std::error::Error for WrongBytes {}

/// The stream of a key: word `i` is `(a + i * b) ^ c`, all three from the key's fingerprint and `b` odd. It costs about as
/// much as the memory does, and a byte that moved, or came from another key, is almost surely another byte.
#[derive(Clone, Copy)]
struct Stream([u64; 3]);

impl Stream {
    fn of(key: &ObjectKey) -> Self {
        let words = key.fingerprint256().as_chunks::<8>().0;
        let word = |i: usize| u64::from_le_bytes(words[i]);
        Self([word(0), word(1) | 1, word(2)])
    }

    fn word(self, i: u64) -> [u8; 8] {
        let [a, b, c] = self.0;
        (a.wrapping_add(i.wrapping_mul(b)) ^ c).to_le_bytes()
    }

    fn byte(self, at: u64) -> u8 {
        self.word(at / 8)[(at % 8) as usize]
    }
}

/// Words made at once: counters that are only added to become vector registers, where a product per word would not.
const LANES: usize = 8;

/// The next words of a stream, [`LANES`] at a time.
struct Lanes {
    sums: [u64; LANES],
    step: u64,
    c: u64,
}

impl Lanes {
    fn new(stream: Stream, first: u64) -> Self {
        let [a, b, c] = stream.0;
        let sums = std::array::from_fn(|i| a.wrapping_add((first + i as u64).wrapping_mul(b)));
        Self { sums, step: b.wrapping_mul(LANES as u64), c }
    }

    fn take(&mut self) -> [[u8; 8]; LANES] {
        let words = self.sums.map(|sum| (sum ^ self.c).to_le_bytes());
        self.sums = self.sums.map(|sum| sum.wrapping_add(self.step));
        words
    }
}

/// Writes the first `bytes.len()` bytes of the key's payload.
pub fn fill(key: &ObjectKey, bytes: &mut [u8]) {
    fill_at(key, 0, bytes);
}

/// Writes the key's payload from `offset` on; for payloads that are made piece by piece.
pub fn fill_at(key: &ObjectKey, offset: u64, bytes: &mut [u8]) {
    let stream = Stream::of(key);
    let head = ((8 - offset % 8) % 8).min(bytes.len() as u64) as usize;
    let (first, rest) = bytes.split_at_mut(head);
    for (at, byte) in (offset..).zip(first) {
        *byte = stream.byte(at);
    }
    let start = (offset + head as u64) / 8;
    let mut lanes = Lanes::new(stream, start);
    let (words, tail) = rest.as_chunks_mut::<8>();
    let (blocks, odd) = words.as_chunks_mut::<LANES>();
    for block in blocks {
        *block = lanes.take();
    }
    let last = lanes.take();
    odd.copy_from_slice(&last[..odd.len()]);
    tail.copy_from_slice(&last[odd.len()][..tail.len()]);
}

/// Compares `bytes` with the key's payload.
///
/// # Errors
/// How many bytes are wrong, and where they start.
pub fn check(key: &ObjectKey, bytes: &[u8]) -> Result<(), WrongBytes> {
    check_at(key, 0, bytes)
}

/// Compares `bytes` with the key's payload from `offset` on. Positions are counted from the payload's start.
///
/// # Errors
/// As [`check`].
pub fn check_at(key: &ObjectKey, offset: u64, bytes: &[u8]) -> Result<(), WrongBytes> {
    let stream = Stream::of(key);
    let head = ((8 - offset % 8) % 8).min(bytes.len() as u64) as usize;
    let (first, rest) = bytes.split_at(head);
    let start = (offset + head as u64) / 8;
    let mut lanes = Lanes::new(stream, start);
    let (words, tail) = rest.as_chunks::<8>();
    let (blocks, odd) = words.as_chunks::<LANES>();
    // Without an early exit, so that the loop becomes vector code; wrong bytes are the exception.
    let mut differs = [0; LANES];
    for block in blocks {
        let right = lanes.take();
        for ((d, is), right) in differs.iter_mut().zip(block).zip(right) {
            *d |= u64::from_ne_bytes(*is) ^ u64::from_ne_bytes(right);
        }
    }
    let last = lanes.take();
    let same = differs == [0; LANES]
        && odd == &last[..odd.len()]
        && tail == &last[odd.len()][..tail.len()]
        && (offset..).zip(first).all(|(at, b)| *b == stream.byte(at));
    if same {
        return Ok(());
    }
    let mut wrong = (offset..).zip(bytes).filter(|(at, b)| **b != stream.byte(*at)).map(|(at, _)| at);
    match wrong.next() {
        Some(first) => Err(WrongBytes { count: 1 + wrong.count() as u64, first }),
        None => Ok(()),
    }
}

/// Fills a buffer of any host memory.
///
/// # Errors
/// `Unsupported` for device memory.
pub fn write(key: &ObjectKey, buf: &mut WriteBuf) -> Result<()> {
    if let Some(bytes) = buf.as_mut_slice() {
        fill(key, bytes);
        return Ok(());
    }
    let mut piece = [0; 16 << 10];
    for at in (0..buf.len()).step_by(piece.len()) {
        let n = piece.len().min(buf.len() - at);
        fill_at(key, at as u64, &mut piece[..n]);
        buf.write_at(at, &piece[..n])?;
    }
    Ok(())
}

/// Compares a buffer of any host memory; the inner result is that of [`check`].
///
/// # Errors
/// `Unsupported` for device memory.
pub fn verify(key: &ObjectKey, buf: &ReadBuf) -> Result<Result<(), WrongBytes>> {
    let mut at = 0;
    let mut wrong: Option<WrongBytes> = None;
    buf.visit(|piece| {
        if let Err(more) = check_at(key, at, piece) {
            let so_far = wrong.get_or_insert(WrongBytes { count: 0, first: more.first });
            so_far.count += more.count;
        }
        at += piece.len() as u64;
    })?;
    Ok(wrong.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::key;
    use kvstrata_core::{KeyScope, KvRank};
    use kvstrata_mem::{Allocate, MemfdRegion, RegionOptions, Slab};

    fn a_key(id: u64) -> ObjectKey {
        key(&KeyScope::new("m", KvRank::single(), 0, "").unwrap(), id)
    }

    #[test]
    fn pieces_make_the_same_payload_and_every_wrong_byte_is_found() {
        let key = a_key(1);
        let mut whole = [0; 200];
        fill(&key, &mut whole);
        for cut in 0..whole.len() {
            let mut pieces = [0; 200];
            let (a, b) = pieces.split_at_mut(cut);
            fill(&key, a);
            fill_at(&key, cut as u64, b);
            assert_eq!(pieces, whole, "cut at {cut}");
            assert_eq!(check_at(&key, cut as u64, &whole[cut..]), Ok(()));
            let mut bad = whole;
            bad[cut] ^= 0x10;
            assert_eq!(check(&key, &bad), Err(WrongBytes { count: 1, first: cut as u64 }));
        }
    }

    #[test]
    fn another_key_and_a_shift_do_not_pass() {
        let mut bytes = [0; 4096];
        fill(&a_key(1), &mut bytes);
        assert!(check(&a_key(2), &bytes).unwrap_err().count > 4000);
        assert!(check(&a_key(1), &bytes[8..]).unwrap_err().count > 3000);
        assert!(check(&a_key(1), &bytes[1..]).unwrap_err().count > 3000);
    }

    #[test]
    fn shared_memory_is_filled_and_verified_in_pieces() {
        let region = MemfdRegion::new("payload", 1 << 20, &RegionOptions::default()).unwrap();
        let pool = Slab::new(vec![region]).unwrap().pool("test", 1 << 20);
        let mut buf = pool.reserve(100_001, 4096).unwrap();
        write(&a_key(3), &mut buf).unwrap();
        let mut byte = [0];
        buf.read_at(40_000, &mut byte).unwrap();
        let mut bad = pool.reserve(100_001, 4096).unwrap();
        write(&a_key(3), &mut bad).unwrap();
        bad.write_at(40_000, &[byte[0] ^ 1]).unwrap();
        assert_eq!(verify(&a_key(3), &buf.seal(100_001)).unwrap(), Ok(()));
        assert_eq!(
            verify(&a_key(3), &bad.seal(100_001)).unwrap(),
            Err(WrongBytes { count: 1, first: 40_000 })
        );
    }
}
