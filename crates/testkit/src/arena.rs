//! Memory for tests that shows who touches it after it was freed.

use std::sync::Arc;

use kvstrata_core::{Error, Layout, ObjectKey, Result};
use kvstrata_l2::{PutDigest, PutItem, digest_of};
use kvstrata_mem::{Allocate, MemfdRegion, MmapRegion, Pool, ReadBuf, RegionOptions, Slab, UNIT, WriteBuf};

use crate::payload;

/// What freed memory is filled with.
const POISON: u8 = 0xdb;
/// What buffers to load into hold at first, so that bytes nobody loaded show.
const UNLOADED: u8 = 0x5a;

/// The kinds of memory that tests can make here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Private to this process.
    Private,
    /// A memfd, as other processes map it.
    Shared,
}

/// A small pool for one test.
#[derive(Debug)]
pub struct Arena {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Arena {
    /// A pool of `bytes` bytes.
    ///
    /// # Errors
    /// As mapping memory.
    pub fn new(memory: Memory, bytes: usize) -> Result<Self> {
        let options = RegionOptions::default();
        let slab = match memory {
            Memory::Private => Slab::new(vec![MmapRegion::new(bytes, &options)?])?,
            Memory::Shared => Slab::new(vec![MemfdRegion::new("kvstrata-test", bytes, &options)?])?,
        };
        Ok(Self { pool: slab.pool("test", bytes as u64), bytes })
    }

    /// A buffer to load into. It holds bytes that no key has.
    ///
    /// # Errors
    /// As [`Allocate::reserve`].
    pub fn empty(&self, len: usize) -> Result<WriteBuf> {
        let mut buf = self.pool.reserve(len, UNIT)?;
        cover(&mut buf, UNLOADED)?;
        Ok(buf)
    }

    /// A buffer with the payload of `key`.
    ///
    /// # Errors
    /// As [`Allocate::reserve`].
    pub fn filled(&self, key: &ObjectKey, len: usize) -> Result<ReadBuf> {
        let mut buf = self.pool.reserve(len, UNIT)?;
        payload::write(key, &mut buf)?;
        Ok(buf.seal(len))
    }

    /// What it takes to store the payload of `content` as `key`, digest included.
    ///
    /// # Errors
    /// As [`Allocate::reserve`].
    pub fn item(&self, key: &ObjectKey, content: &ObjectKey, layout: &Layout) -> Result<PutItem> {
        let len = usize::try_from(layout.bytes())
            .map_err(|e| Error::invalid("make item", "the layout does not fit this machine").caused_by(e))?;
        let buf = self.filled(content, len)?;
        let digest = PutDigest::Is(digest_of(key, layout.id(), &buf)?);
        Ok(PutItem { key: key.clone(), layout: layout.clone(), digest, buf })
    }

    /// How many buffers are out.
    pub fn in_use(&self) -> u64 {
        self.pool.usage().buffers
    }

    /// Takes all memory that is free now, and poisons it. Who reads it reads poison; who writes it is found out by
    /// [`Poisoned::is_untouched`].
    ///
    /// # Errors
    /// `Unsupported` never, for this is host memory.
    pub fn poison(&self) -> Result<Poisoned> {
        let mut bufs = Vec::new();
        let mut size = self.bytes;
        while size >= UNIT {
            match self.pool.reserve(size, UNIT) {
                Ok(mut buf) => {
                    cover(&mut buf, POISON)?;
                    bufs.push(buf);
                }
                Err(_) => size = size / 2 / UNIT * UNIT,
            }
        }
        Ok(Poisoned(bufs))
    }
}

/// Memory that was free, and is poisoned. It is free again when this is dropped.
#[derive(Debug)]
pub struct Poisoned(Vec<WriteBuf>);

impl Poisoned {
    /// How many buffers it holds; they count as out.
    pub fn buffers(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether nobody has written to it.
    pub fn is_untouched(&self) -> bool {
        self.0.iter().all(|buf| {
            let mut clean = true;
            buf.visit(|piece| clean &= piece.iter().all(|b| *b == POISON)).is_ok() && clean
        })
    }
}

fn cover(buf: &mut WriteBuf, with: u8) -> Result<()> {
    let piece = [with; 16 << 10];
    for at in (0..buf.len()).step_by(piece.len()) {
        let n = piece.len().min(buf.len() - at);
        buf.write_at(at, &piece[..n])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::key;
    use kvstrata_core::{KeyScope, KvRank};

    #[test]
    fn all_free_memory_is_poisoned_and_a_single_write_shows() {
        let key = key(&KeyScope::new("m", KvRank::single(), 0, "").unwrap(), 1);
        for memory in [Memory::Private, Memory::Shared] {
            let arena = Arena::new(memory, 1 << 20).unwrap();
            let kept = arena.filled(&key, 5000).unwrap();
            let hole = arena.empty(9000).unwrap();
            let tail = arena.empty(4096).unwrap();
            drop(hole);
            let mut poisoned = arena.poison().unwrap();
            assert!(poisoned.is_untouched());
            assert_eq!(arena.in_use(), 2 + poisoned.buffers());
            let bytes: usize = poisoned.0.iter().map(WriteBuf::capacity).sum();
            assert_eq!(bytes, (1 << 20) - 8192 - 4096, "all that is free");
            let last = poisoned.0.last_mut().unwrap();
            last.write_at(last.len() - 1, &[0]).unwrap();
            assert!(!poisoned.is_untouched());
            assert_eq!(payload::verify(&key, &kept).unwrap(), Ok(()), "what is out is left alone");
            drop((poisoned, tail, kept));
            assert_eq!(arena.in_use(), 0);
        }
    }
}
