//! The binary form of a key: versioned, fixed-width little-endian numbers, one encoding per key and one key per encoding.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 + n | length of the chunk hash (1–64), the hash |
//! | 4 | world size, global rank, local world size, local rank |
//! | 4 | object group |
//! | 2 + n | length of the model name, the name (UTF-8) |
//! | 2 + n | length of the cache salt, the salt (UTF-8) |

use crate::{ChunkHash, Error, ErrorKind, KeyScope, KvRank, ObjectKey, Result};

/// The version that [`encode_key`] writes.
pub const KEY_VERSION: u8 = 1;

/// The longest encoding in bytes (a salt has at most 128 characters of at most 4 bytes).
pub const MAX_KEY: usize =
    1 + 1 + ChunkHash::MAX + 4 + 4 + 2 + KeyScope::MAX_MODEL + 2 + KeyScope::MAX_SALT * 4;

/// Appends the encoding of `key` to `out`.
pub fn encode_key(key: &ObjectKey, out: &mut Vec<u8>) {
    out.push(KEY_VERSION);
    out.push(key.hash().as_bytes().len() as u8);
    out.extend_from_slice(key.hash().as_bytes());
    scope(key.scope(), out);
}

/// The part of the encoding that all keys of a scope share; also what a scope's identity is computed from.
pub(crate) fn scope(scope: &KeyScope, out: &mut Vec<u8>) {
    out.extend_from_slice(&scope.rank().packed().to_be_bytes());
    out.extend_from_slice(&scope.group().to_le_bytes());
    for text in [scope.model(), scope.salt()] {
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
}

/// Reads one key that fills all of `bytes`.
///
/// # Errors
/// `Mismatch` for another version, `Corrupt` if bytes are missing, left over, or break a rule of the key.
pub fn decode_key(bytes: &[u8]) -> Result<ObjectKey> {
    let mut r = Reader(bytes);
    let version = r.u8()?;
    if version != KEY_VERSION {
        return Err(Error::new(ErrorKind::Mismatch, "decode key", "the key's encoding has another version")
            .with("version", version)
            .with("known", KEY_VERSION));
    }
    let n = r.u8()?;
    let hash = ChunkHash::new(r.take(n.into())?).map_err(broken)?;
    let rank = KvRank::from_packed(u32::from_be_bytes(r.array()?)).map_err(broken)?;
    let group = u32::from_le_bytes(r.array()?);
    let (model, salt) = (r.text()?, r.text()?);
    if !r.0.is_empty() {
        return Err(corrupt("bytes are left over").with("bytes", r.0.len()));
    }
    Ok(ObjectKey::new(&KeyScope::new(model, rank, group, salt).map_err(broken)?, hash))
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "decode key", what)
}

fn broken(rule: Error) -> Error {
    corrupt("a field breaks its rule").caused_by(rule)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| corrupt("bytes are missing"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.take(N)?.first_chunk().expect("took N"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn text(&mut self) -> Result<&'a str> {
        let n = u16::from_le_bytes(self.array()?);
        std::str::from_utf8(self.take(n.into())?).map_err(|e| corrupt("a name is not UTF-8").caused_by(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = ObjectKey> {
        let rank = (1u32..=255, 1u32..=255)
            .prop_flat_map(|(w, l)| (Just(w), 0..w, Just(l), 0..l))
            .prop_map(|(w, g, lw, l)| KvRank::new(w, g, lw, l).unwrap());
        ("[^@\0]{1,40}", rank, any::<u32>(), "[^@/\\\\\0]{0,40}", prop::collection::vec(any::<u8>(), 1..=64))
            .prop_map(|(model, rank, group, salt, hash)| {
                let scope = KeyScope::new(&model, rank, group, &salt).unwrap();
                ObjectKey::new(&scope, ChunkHash::new(&hash).unwrap())
            })
    }

    fn encoded(key: &ObjectKey) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key(key, &mut out);
        out
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in any_key()) {
            let bytes = encoded(&key);
            prop_assert!(bytes.len() <= MAX_KEY);
            prop_assert_eq!(decode_key(&bytes).unwrap(), key);
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(mut bytes in any_key().prop_map(|k| encoded(&k)), at: prop::sample::Index, x: u8) {
            let at = at.index(bytes.len());
            bytes[at] ^= x;
            if let Ok(key) = decode_key(&bytes) {
                prop_assert_eq!(encoded(&key), bytes);
            }
        }

        #[test]
        fn a_cut_or_a_longer_encoding_is_refused(key in any_key(), cut: prop::sample::Index) {
            let mut bytes = encoded(&key);
            prop_assert!(decode_key(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert_eq!(decode_key(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_key(&bytes);
        }
    }

    #[test]
    fn the_encoding_is_frozen() {
        let scope = KeyScope::new("org/m", KvRank::new(8, 5, 4, 1).unwrap(), 11, "ten").unwrap();
        let key = ObjectKey::new(&scope, ChunkHash::new(&[0xab, 0xcd]).unwrap());
        assert_eq!(encoded(&key), b"\x01\x02\xab\xcd\x08\x05\x04\x01\x0b\0\0\0\x05\0org/m\x03\0ten");
        assert_eq!(
            key.fingerprint(),
            0xd5e7_a055_b59e_d21c_def8_9d81_a06d_baed,
            "as an independent blake3 computes it"
        );
        let e = decode_key(b"\x02").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
    }
}
