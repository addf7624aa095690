//! What goes with a payload: our own description beside it, or LMCache's header before it.

use kvstrata_core::{DType, Digest, Error, ErrorKind, Layout, LayoutId, ObjectKey, Result, TensorDesc};
use kvstrata_l2::Miss;

/// The description of an object, kept as a small object of its own beside it, so that the payload's object is what LMCache
/// would have stored.
///
/// | bytes | field |
/// |---|---|
/// | 4 | `KVSm` |
/// | 2 + 2 | version, 1; flags: bit 0, there is a digest |
/// | 8 | the payload's length |
/// | 16 | the layout |
/// | 8 | the digest |
/// | 16 | the first half of the key's fingerprint |
/// | 8 | CRC-64/NVMe of what is before |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Description {
    pub(crate) len: u64,
    pub(crate) layout: LayoutId,
    pub(crate) digest: Option<Digest>,
}

/// What the name of the description ends with. An object of LMCache's has no such name: there `@` is in no part of it.
pub(crate) const SUFFIX: &str = "@@kvs1";

impl Description {
    /// Bytes of a description.
    pub(crate) const LEN: usize = 64;

    pub(crate) fn encode(&self, key: &ObjectKey) -> [u8; Self::LEN] {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend(b"KVSm\x01\0");
        out.extend(u16::from(self.digest.is_some()).to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.layout.as_bytes());
        out.extend(self.digest.map_or(0, Digest::to_u64).to_le_bytes());
        out.extend(&key.fingerprint256()[..16]);
        out.extend(crc(&out).to_le_bytes());
        let mut whole = [0; Self::LEN];
        whole.copy_from_slice(&out);
        whole
    }

    /// Reads the description of `key`.
    pub(crate) fn decode(bytes: &[u8; Self::LEN], key: &ObjectKey) -> Result<Self, Miss> {
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(w)
        };
        if !bytes.starts_with(b"KVSm\x01\0") || word(56) != crc(&bytes[..56]) {
            return Err(Miss::Header);
        }
        if bytes[40..56] != key.fingerprint256()[..16] {
            return Err(Miss::Foreign);
        }
        let mut layout = [0; 16];
        layout.copy_from_slice(&bytes[16..32]);
        let digest = (bytes[6] & 1 == 1).then(|| Digest::from_u64(word(32)));
        Ok(Self { len: word(8), layout: LayoutId::from_bytes(layout), digest })
    }
}

fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// LMCache's number of an element type; of two that are the same type it writes the later.
fn type_number(dtype: DType) -> Option<i32> {
    Some(match dtype {
        DType::F16 => 2,
        DType::BF16 => 3,
        DType::F32 => 4,
        DType::F64 => 5,
        DType::U8 => 6,
        DType::F8E4M3FN => 7,
        DType::F8E5M2 => 8,
        _ => return None,
    })
}

/// `KV_2LTD`: key and value, layers, tokens, hidden size.
const FORMAT: i32 = 1;

/// The header that LMCache writes before a chunk with `save_chunk_meta`: the payload's length, its format, and per tensor the
/// element type and four dimensions, each a little-endian 32-bit number.
///
/// # Errors
/// `Unsupported` for what LMCache has no numbers for: its other element types, five dimensions, two GiB.
pub(crate) fn lmcache_header(layout: &Layout) -> Result<Vec<u8>> {
    const OP: &str = "write LMCache header";
    let cannot =
        |why: &str| Error::new(ErrorKind::Unsupported, OP, why).with("layout", format_args!("{layout:?}"));
    let number = |n: u64| i32::try_from(n).map_err(|_| cannot("a number is over 2^31 - 1"));
    let mut out = Vec::with_capacity(header_len(layout.tensors().len()));
    out.extend(number(layout.bytes())?.to_le_bytes());
    out.extend(FORMAT.to_le_bytes());
    for TensorDesc { dtype, shape } in layout.tensors() {
        let ty = type_number(*dtype).ok_or_else(|| cannot("LMCache has no number for this element type"))?;
        out.extend(ty.to_le_bytes());
        if shape.len() > 4 {
            return Err(cannot("a shape has at most 4 dimensions there"));
        }
        for at in 0..4 {
            out.extend(number(shape.get(at).copied().unwrap_or(0))?.to_le_bytes());
        }
    }
    Ok(out)
}

/// The bytes of LMCache's header for so many tensors.
pub(crate) const fn header_len(tensors: usize) -> usize {
    4 * (2 + 5 * tensors)
}

/// Whether a header says that the payload is of this layout. Its format number is not looked at: it says in which order an
/// engine has the dimensions, and the layout has them as they are.
pub(crate) fn lmcache_header_fits(header: &[u8], layout: &Layout) -> Result<(), Miss> {
    let words: Vec<i32> = header.as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect();
    let want = lmcache_header(layout).map_err(|_| Miss::Layout)?;
    let want: Vec<i32> = want.as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect();
    if !header.len().is_multiple_of(4) || words.len() != want.len() {
        return Err(Miss::Header);
    }
    let same = words.iter().zip(&want).enumerate().all(|(i, (got, want))| {
        // Half precision has two numbers.
        let half = i >= 2 && (i - 2) % 5 == 0 && *want == 2 && *got == 1;
        i == 1 || got == want || half
    });
    if same { Ok(()) } else { Err(Miss::Layout) }
}

#[cfg(test)]
mod tests {
    use kvstrata_core::{ChunkHash, KeyScope, KvRank};

    use super::*;

    fn key(n: u8) -> ObjectKey {
        let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
        ObjectKey::new(&scope, ChunkHash::new(&[n]).unwrap())
    }

    #[test]
    fn a_description_is_its_keys_and_shows_every_flipped_bit() {
        let layout = Layout::opaque(4096).unwrap().id();
        for digest in [None, Some(Digest::from_u64(0)), Some(Digest::from_u64(u64::MAX))] {
            let description = Description { len: 4096, layout, digest };
            let bytes = description.encode(&key(1));
            assert_eq!(Description::decode(&bytes, &key(1)), Ok(description));
            assert_eq!(Description::decode(&bytes, &key(2)), Err(Miss::Foreign));
            for bit in 0..bytes.len() * 8 {
                let mut bent = bytes;
                bent[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Description::decode(&bent, &key(1)), Err(Miss::Header), "bit {bit}");
            }
        }
    }

    /// As Python's struct.pack writes it in LMCache 0.5.6: two groups of [2, 4, 256, 128] in bfloat16 and [7] in uint8.
    #[test]
    fn the_header_is_lmcaches() {
        let kv = TensorDesc { dtype: DType::BF16, shape: vec![2, 4, 256, 128] };
        let layout = Layout::new(vec![kv.clone(), TensorDesc { dtype: DType::U8, shape: vec![7] }]).unwrap();
        let header = lmcache_header(&layout).unwrap();
        let words: Vec<i32> = header.as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect();
        assert_eq!(words, [524_295, 1, 3, 2, 4, 256, 128, 6, 7, 0, 0, 0]);
        assert_eq!(header.len(), header_len(2));
        assert_eq!(lmcache_header_fits(&header, &layout), Ok(()));
        let other = Layout::new(vec![kv]).unwrap();
        assert_eq!(lmcache_header_fits(&header, &other), Err(Miss::Header));
        assert_eq!(lmcache_header_fits(&lmcache_header(&other).unwrap(), &layout), Err(Miss::Header));
        let half = |n: i32| {
            let layout = Layout::new(vec![TensorDesc { dtype: DType::F16, shape: vec![8] }]).unwrap();
            let mut header = lmcache_header(&layout).unwrap();
            header[8..12].copy_from_slice(&n.to_le_bytes());
            lmcache_header_fits(&header, &layout)
        };
        assert_eq!((half(1), half(2), half(3)), (Ok(()), Ok(()), Err(Miss::Layout)));
    }

    #[test]
    fn what_lmcache_has_no_numbers_for_is_refused() {
        for (dtype, shape) in [(DType::I64, vec![2]), (DType::U8, vec![1; 5]), (DType::U8, vec![3 << 30])] {
            let layout = Layout::new(vec![TensorDesc { dtype, shape }]).unwrap();
            assert_eq!(lmcache_header(&layout).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
}
