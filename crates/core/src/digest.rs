//! The checksum that travels with every payload.

use crate::{LayoutId, ObjectKey};

/// A 64-bit digest of a payload, bound to the key, the layout and the length it was stored under.
///
/// The payload part is a CRC-64/NVMe (computed where the bytes are: see `kvstrata-l2`). The binding is xored in, so a
/// payload that is whole but belongs to another key, layout or length does not verify either. The value is what adapters
/// keep on disk; its definition is part of the format:
///
/// `crc64nvme(payload) ^ mix(fp[0..8] ^ mix(layout[0..8] ^ mix(length)))`, all little-endian, where `fp` is
/// [`ObjectKey::fingerprint256`], `layout` is [`LayoutId`], and `mix` is the finaliser of SplitMix64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(u64);

impl Digest {
    /// Binds the CRC-64/NVMe of a payload of `len` bytes to its key and layout.
    pub fn bind(crc64: u64, key: &ObjectKey, layout: LayoutId, len: u64) -> Self {
        let fp = u64::from_le_bytes(*key.fingerprint256().first_chunk().expect("32 bytes"));
        let layout = u64::from_le_bytes(*layout.as_bytes().first_chunk().expect("16 bytes"));
        Self(crc64 ^ mix(fp ^ mix(layout ^ mix(len))))
    }

    /// A digest read back from where [`Self::to_u64`] was kept.
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }

    /// The value to keep.
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

/// The SplitMix64 finaliser (Steele, Lea, Flood 2014): a bijection in which every input bit moves every output bit.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChunkHash, KeyScope, KvRank, Layout};

    #[test]
    fn key_layout_and_length_each_change_the_digest_of_the_same_bytes() {
        let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
        let key = |b| ObjectKey::new(&scope, ChunkHash::new(&[b; 32]).unwrap());
        let (a, b) = (Layout::opaque(4096).unwrap(), Layout::opaque(8192).unwrap());
        let base = Digest::bind(7, &key(1), a.id(), 4096);
        assert_eq!(base, Digest::bind(7, &key(1), a.id(), 4096));
        assert_ne!(base, Digest::bind(7, &key(2), a.id(), 4096));
        assert_ne!(base, Digest::bind(7, &key(1), b.id(), 4096));
        assert_ne!(base, Digest::bind(7, &key(1), a.id(), 4095));
        assert_ne!(base, Digest::bind(8, &key(1), a.id(), 4096));
    }
}
