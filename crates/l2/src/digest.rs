//! Digests of buffers: the CRC-64/NVMe of the payload, bound to what it was stored as.

use std::fmt;

use kvstrata_core::{Digest, LayoutId, ObjectKey, Result};
use kvstrata_mem::{ReadBuf, WriteBuf};

/// The part of a digest that is of the bytes alone: for adapters that see a payload pass piece by piece on its way from or
/// to memory that the CPU does not touch.
///
/// ```
/// let mut crc = kvstrata_l2::PayloadCrc::new();
/// crc.update(b"1234");
/// crc.update(b"56789");
/// assert_eq!(crc.finish(), 0xae8b_1486_0a79_9888);
/// ```
pub struct PayloadCrc(crc_fast::Digest);

impl PayloadCrc {
    /// Of no bytes.
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
    }

    /// The next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The CRC, to be bound with [`Digest::bind`].
    pub fn finish(self) -> u64 {
        self.0.finalize()
    }
}

impl Default for PayloadCrc {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PayloadCrc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PayloadCrc")
    }
}

fn crc64(visit: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<()>) -> Result<u64> {
    let mut crc = PayloadCrc::new();
    visit(&mut |piece| crc.update(piece))?;
    Ok(crc.finish())
}

/// The digest of a payload that is about to be stored as `key` with this layout. Private memory is read in place, memory
/// that another process may write through a small copy.
///
/// ```
/// use kvstrata_core::{ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
/// use kvstrata_l2::digest_of;
/// use kvstrata_mem::{Allocate, HeapRegion, Slab};
///
/// let slab = Slab::new(vec![HeapRegion::new(8192)?])?;
/// let mut buf = slab.pool("cache", 8192).reserve(9, 4096)?;
/// buf.write_at(0, b"123456789")?;
/// let key = ObjectKey::new(&KeyScope::new("m", KvRank::single(), 0, "")?, ChunkHash::new(&[1])?);
/// let layout = Layout::opaque(9)?;
/// let digest = digest_of(&key, layout.id(), &buf.seal(9))?;
/// assert_eq!(digest, kvstrata_core::Digest::bind(0xae8b_1486_0a79_9888, &key, layout.id(), 9));
/// # Ok::<(), kvstrata_core::Error>(())
/// ```
///
/// # Errors
/// `Unsupported` for device memory.
pub fn digest_of(key: &ObjectKey, layout: LayoutId, buf: &ReadBuf) -> Result<Digest> {
    Ok(Digest::bind(crc64(|f| buf.visit(f))?, key, layout, buf.len() as u64))
}

/// The digest of what a driver loaded into `buf`.
///
/// # Errors
/// `Unsupported` for device memory.
pub fn digest_of_filled(key: &ObjectKey, layout: LayoutId, buf: &WriteBuf) -> Result<Digest> {
    Ok(Digest::bind(crc64(|f| buf.visit(f))?, key, layout, buf.len() as u64))
}
