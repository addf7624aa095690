//! The 4 KiB block at the start of every object.
//!
//! All numbers are little-endian. What is not listed is zero.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic, `KVSTRATA` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 2 | length of this block, 4096: where the payload starts |
//! | 12 | 4 | flags, none yet |
//! | 16 | 8 | length of the payload in bytes, without padding |
//! | 24 | 16 | layout id |
//! | 40 | 1 | kind of the digest: 0 none, 1 CRC-64/NVMe bound to key, layout and length |
//! | 48 | 8 | digest |
//! | 56 | 8 | generation: unique per written object |
//! | 64 | 4 | namespace, as numbered by the manifest; 0 for none |
//! | 68 | 2 | length of the key |
//! | 128 | ≤ 3960 | the key, as [`kvstrata_core::encode`] writes it |
//! | 4088 | 8 | CRC-64/NVMe of the 4088 bytes before |

use crc_fast::{CrcAlgorithm, checksum};
use kvstrata_core::{Digest, Layout, LayoutId, ObjectKey, encode};

/// The length of the header block, and so the offset of the payload in an object's file.
pub const HEADER_BYTES: u64 = 4096;
/// The version this crate reads and writes.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"KVSTRATA";
const KEY_AT: usize = 128;
const CRC_AT: usize = 4088;
const DIGEST_NONE: u8 = 0;
const DIGEST_BOUND: u8 = 1;

/// A 4 KiB block whose address suits direct I/O.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Block([u8; 4096]);

impl Block {
    /// A block of zeros.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; 4096]))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.0
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        &mut self.0
    }

    fn put<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&value);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.0[at..].first_chunk().expect("inside the block")
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Block(4096 bytes)")
    }
}

/// What the header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whose payload it is.
    pub key: ObjectKey,
    /// The payload's length in bytes.
    pub len: u64,
    /// What the payload is.
    pub layout: LayoutId,
    /// The digest that came with it.
    pub digest: Option<Digest>,
    /// Tells two objects of one key apart.
    pub generation: u64,
    /// The namespace's number in the manifest; 0 for none.
    pub namespace: u32,
}

/// Why a block is not a header. All but `Version` mean that the object is rotten or was never one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Another magic.
    Magic,
    /// The block's own checksum does not fit.
    Checksum,
    /// Whole, but of a version this crate does not know.
    Version(u16),
    /// Whole, but a field breaks its rule: written by a program with a defect.
    Field(&'static str),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("not an object's header"),
            Self::Checksum => f.write_str("the header's checksum does not fit"),
            Self::Version(v) => write!(f, "format version {v} is not known (known: {FORMAT_VERSION})"),
            Self::Field(name) => write!(f, "the header's {name} breaks its rule"),
        }
    }
}

impl Header {
    /// The block that says this.
    pub fn encode(&self) -> Box<Block> {
        let mut b = Block::zeroed();
        b.put(0, *MAGIC);
        b.put(8, FORMAT_VERSION.to_le_bytes());
        b.put(10, (HEADER_BYTES as u16).to_le_bytes());
        b.put(16, self.len.to_le_bytes());
        b.put(24, *self.layout.as_bytes());
        b.put(40, [if self.digest.is_some() { DIGEST_BOUND } else { DIGEST_NONE }]);
        b.put(48, self.digest.map_or(0, Digest::to_u64).to_le_bytes());
        b.put(56, self.generation.to_le_bytes());
        b.put(64, self.namespace.to_le_bytes());
        let mut key = Vec::with_capacity(256);
        encode::encode_key(&self.key, &mut key);
        b.put(68, (key.len() as u16).to_le_bytes());
        b.0[KEY_AT..KEY_AT + key.len()].copy_from_slice(&key);
        let crc = checksum(CrcAlgorithm::Crc64Nvme, &b.0[..CRC_AT]);
        b.put(CRC_AT, crc.to_le_bytes());
        b
    }

    /// Reads a block. Never panics, whatever is in it.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn decode(b: &Block) -> Result<Self, Fault> {
        if b.get::<8>(0) != *MAGIC {
            return Err(Fault::Magic);
        }
        if checksum(CrcAlgorithm::Crc64Nvme, &b.0[..CRC_AT]) != u64::from_le_bytes(b.get(CRC_AT)) {
            return Err(Fault::Checksum);
        }
        let version = u16::from_le_bytes(b.get(8));
        if version != FORMAT_VERSION {
            return Err(Fault::Version(version));
        }
        if u64::from(u16::from_le_bytes(b.get(10))) != HEADER_BYTES {
            return Err(Fault::Field("header length"));
        }
        if b.get::<4>(12) != [0; 4] {
            return Err(Fault::Field("flags"));
        }
        let len = u64::from_le_bytes(b.get(16));
        if len == 0 || len > Layout::MAX_BYTES {
            return Err(Fault::Field("payload length"));
        }
        let digest = match b.0[40] {
            DIGEST_NONE => None,
            DIGEST_BOUND => Some(Digest::from_u64(u64::from_le_bytes(b.get(48)))),
            _ => return Err(Fault::Field("digest kind")),
        };
        let n = usize::from(u16::from_le_bytes(b.get(68)));
        let key = b.0[KEY_AT..CRC_AT].get(..n).ok_or(Fault::Field("key length"))?;
        Ok(Self {
            key: encode::decode_key(key).map_err(|_| Fault::Field("key"))?,
            len,
            layout: LayoutId::from_bytes(b.get(24)),
            digest,
            generation: u64::from_le_bytes(b.get(56)),
            namespace: u32::from_le_bytes(b.get(64)),
        })
    }

    /// Whether a file of this length can hold the payload: it ends with it, or with its last 4 KiB block.
    pub fn fits(&self, file_len: u64) -> bool {
        file_len == HEADER_BYTES + self.len || file_len == HEADER_BYTES + self.len.next_multiple_of(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_core::{ChunkHash, KeyScope, KvRank};
    use proptest::prelude::*;

    fn header(model: &str, hash: &[u8], len: u64, digest: Option<u64>) -> Header {
        let scope = KeyScope::new(model, KvRank::new(8, 5, 8, 5).unwrap(), 11, "salt").unwrap();
        Header {
            key: ObjectKey::new(&scope, ChunkHash::new(hash).unwrap()),
            len,
            layout: Layout::opaque(len).unwrap().id(),
            digest: digest.map(Digest::from_u64),
            generation: 0x0102_0304_0506_0708,
            namespace: 3,
        }
    }

    fn block(bytes: &[u8; 4096]) -> Box<Block> {
        let mut b = Block::zeroed();
        *b.bytes_mut() = *bytes;
        b
    }

    /// The bytes of version 1. A change here is a new version.
    #[test]
    fn the_format_is_frozen() {
        let golden = include_bytes!("../tests/golden/header-v1.bin");
        let h = header("org/model", &[0xab; 32], 1 << 20, Some(0x1122_3344_5566_7788));
        assert!(h.encode().bytes() == golden, "the encoding differs from the golden file");
        assert_eq!(Header::decode(&block(golden)).unwrap(), h);
    }

    #[test]
    fn another_version_is_told_from_rot() {
        let mut b = header("m", &[1], 5, None).encode();
        b.put(8, 2u16.to_le_bytes());
        assert_eq!(Header::decode(&b), Err(Fault::Checksum));
        let crc = checksum(CrcAlgorithm::Crc64Nvme, &b.0[..CRC_AT]);
        b.put(CRC_AT, crc.to_le_bytes());
        assert_eq!(Header::decode(&b), Err(Fault::Version(2)));
    }

    #[test]
    fn the_longest_key_fits() {
        let salt = "\u{1F600}".repeat(128);
        let scope = KeyScope::new(&"m".repeat(1024), KvRank::single(), u32::MAX, &salt).unwrap();
        let key = ObjectKey::new(&scope, ChunkHash::new(&[7; 64]).unwrap());
        let h = Header { key, ..header("m", &[1], 1, None) };
        assert_eq!(Header::decode(&h.encode()).unwrap(), h);
    }

    #[test]
    fn a_file_is_as_long_as_the_payload_or_its_last_block() {
        let h = header("m", &[1], 5000, None);
        assert!(h.fits(4096 + 5000) && h.fits(4096 + 8192));
        assert!(!h.fits(4096 + 4999) && !h.fits(4096 + 5001) && !h.fits(4096 + 8191) && !h.fits(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_header_comes_back(model in "[^@\0]{1,40}", hash in prop::collection::vec(any::<u8>(), 1..=64),
            len in 1u64..=Layout::MAX_BYTES, digest: Option<u64>, generation: u64, namespace: u32)
        {
            let h = Header { generation, namespace, ..header(&model, &hash, len, digest) };
            prop_assert_eq!(Header::decode(&h.encode()).unwrap(), h);
        }

        #[test]
        fn every_flipped_bit_is_noticed(at in 0usize..4096, bit in 0u8..8) {
            let mut b = header("m", &[9; 32], 4096, Some(1)).encode();
            b.0[at] ^= 1 << bit;
            prop_assert!(Header::decode(&b).is_err());
        }

        #[test]
        fn arbitrary_fields_never_panic(bytes in prop::collection::vec(any::<u8>(), 200)) {
            // With a whole checksum, so that the fields are looked at.
            let mut b = Block::zeroed();
            b.0[..200].copy_from_slice(&bytes);
            b.put(0, *MAGIC);
            b.put(8, FORMAT_VERSION.to_le_bytes());
            let crc = checksum(CrcAlgorithm::Crc64Nvme, &b.0[..CRC_AT]);
            b.put(CRC_AT, crc.to_le_bytes());
            let _ = Header::decode(&b);
        }
    }
}
