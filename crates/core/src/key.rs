//! What an object is called.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Result, encode};

/// Which shard of a model's KV cache an object is: the parallelism of the engine and the place in it.
///
/// Every number fits one byte, because LMCache packs them into a `u32`; there, larger numbers bleed into their
/// neighbours and alias. Here they are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KvRank {
    world_size: u8,
    global_rank: u8,
    local_world_size: u8,
    local_rank: u8,
}

impl KvRank {
    /// The rank of an engine on one device.
    pub const fn single() -> Self {
        Self { world_size: 1, global_rank: 0, local_world_size: 1, local_rank: 0 }
    }

    /// A rank of a parallel engine.
    ///
    /// # Errors
    /// `Invalid` if a size is 0 or over 255, or a rank is not below its size.
    pub fn new(world_size: u32, global_rank: u32, local_world_size: u32, local_rank: u32) -> Result<Self> {
        let size = |name, n: u32| match u8::try_from(n) {
            Ok(n @ 1..) => Ok(n),
            _ => Err(Error::invalid("make kv rank", "a world size is from 1 to 255").with(name, n)),
        };
        let rank = |name, n: u32, of: u32| match u8::try_from(n) {
            Ok(r) if n < of => Ok(r),
            _ => Err(Error::invalid("make kv rank", "a rank is below its world size")
                .with(name, n)
                .with("of", of)),
        };
        Ok(Self {
            world_size: size("world_size", world_size)?,
            global_rank: rank("global_rank", global_rank, world_size)?,
            local_world_size: size("local_world_size", local_world_size)?,
            local_rank: rank("local_rank", local_rank, local_world_size)?,
        })
    }

    /// LMCache's packed form: `world_size << 24 | global_rank << 16 | local_world_size << 8 | local_rank`.
    pub const fn packed(self) -> u32 {
        u32::from_be_bytes([self.world_size, self.global_rank, self.local_world_size, self.local_rank])
    }

    /// Reads the packed form.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_packed(packed: u32) -> Result<Self> {
        let [w, g, lw, l] = packed.to_be_bytes().map(u32::from);
        Self::new(w, g, lw, l)
    }

    /// How many shards the KV cache has.
    pub const fn world_size(self) -> u8 {
        self.world_size
    }

    /// Which of them this is.
    pub const fn global_rank(self) -> u8 {
        self.global_rank
    }

    /// How many shards are on this machine.
    pub const fn local_world_size(self) -> u8 {
        self.local_world_size
    }

    /// Which of those this is.
    pub const fn local_rank(self) -> u8 {
        self.local_rank
    }
}

/// The hash of a token prefix: 1 to 64 bytes, compared byte for byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash {
    len: u8,
    bytes: [u8; Self::MAX],
}

impl ChunkHash {
    /// The most bytes a hash may have.
    pub const MAX: usize = 64;

    /// Takes the bytes of a hash.
    ///
    /// # Errors
    /// `Invalid` unless there are 1 to 64 bytes.
    pub fn new(hash: &[u8]) -> Result<Self> {
        if hash.is_empty() || hash.len() > Self::MAX {
            return Err(
                Error::invalid("make chunk hash", "a chunk hash has 1 to 64 bytes").with("bytes", hash.len())
            );
        }
        let mut bytes = [0; Self::MAX];
        bytes[..hash.len()].copy_from_slice(hash);
        Ok(Self { len: hash.len() as u8, bytes })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl From<[u8; 32]> for ChunkHash {
    fn from(hash: [u8; 32]) -> Self {
        let mut bytes = [0; Self::MAX];
        bytes[..32].copy_from_slice(&hash);
        Self { len: 32, bytes }
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for ChunkHash {
    type Err = Error;

    /// Reads hexadecimal digits, two for each byte.
    ///
    /// # Errors
    /// `Invalid` for other characters, an odd number of digits, and as [`ChunkHash::new`].
    fn from_str(hex: &str) -> Result<Self> {
        if !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            let message = "a chunk hash is an even number of hexadecimal digits";
            return Err(Error::invalid("parse chunk hash", message).with("hash", hex));
        }
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hexadecimal digits");
        Self::new(&(0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>())
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything of a key but the chunk hash: one per (model, shard, group, tenant), shared by all its keys.
#[derive(PartialEq, Eq, Debug)]
pub struct KeyScope {
    model: Box<str>,
    rank: KvRank,
    group: u32,
    salt: Box<str>,
    /// Keys the fingerprint of every key of this scope.
    id: [u8; 32],
}

impl KeyScope {
    /// The longest model name in bytes; with everything else a key then fits one 4 KiB header block many times over.
    pub const MAX_MODEL: usize = 1024;
    /// The longest cache salt in characters, as in LMCache.
    pub const MAX_SALT: usize = 128;

    /// Names a scope: the model, the shard, the object group, and the cache salt that separates tenants (may be empty).
    ///
    /// # Errors
    /// `Invalid` if the model is empty, over 1024 bytes, or has `@` or NUL; or the salt is over 128 characters or has
    /// `@`, `/`, `\` or NUL.
    pub fn new(model: &str, rank: KvRank, group: u32, salt: &str) -> Result<Arc<Self>> {
        let bad = |what: &str, field: &'static str, value: &str| {
            Err(Error::invalid("make key", what).with(field, format_args!("{value:?}")))
        };
        if model.is_empty() || model.len() > Self::MAX_MODEL {
            return bad("a model name has 1 to 1024 bytes", "model", model);
        }
        if model.contains(['@', '\0']) {
            return bad("a model name has no '@' and no NUL", "model", model);
        }
        if salt.chars().count() > Self::MAX_SALT {
            return bad("a cache salt has at most 128 characters", "cache_salt", salt);
        }
        if salt.contains(['@', '/', '\\', '\0']) {
            return bad("a cache salt has no '@', '/', '\\' and no NUL", "cache_salt", salt);
        }
        let mut scope = Self { model: model.into(), rank, group, salt: salt.into(), id: [0; 32] };
        let mut text = Vec::with_capacity(model.len() + salt.len() + 16);
        encode::scope(&scope, &mut text);
        scope.id = *blake3::hash(&text).as_bytes();
        Ok(Arc::new(scope))
    }

    /// The model's name, as the engine gives it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The shard.
    pub fn rank(&self) -> KvRank {
        self.rank
    }

    /// The object group: layers that share one attention window are kept together.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// The cache salt: two tenants with different salts never see each other's objects.
    pub fn salt(&self) -> &str {
        &self.salt
    }
}

/// The name of one stored object. Cheap to clone, to compare and to hash.
#[derive(Clone)]
pub struct ObjectKey {
    scope: Arc<KeyScope>,
    hash: ChunkHash,
    fingerprint: [u8; 32],
}

impl ObjectKey {
    /// The object of `scope` that ends the token prefix with this hash.
    pub fn new(scope: &Arc<KeyScope>, hash: ChunkHash) -> Self {
        // Keyed by the scope's own digest, so that this is one compression however long the names are.
        let fingerprint = *blake3::keyed_hash(&scope.id, hash.as_bytes()).as_bytes();
        Self { scope: Arc::clone(scope), hash, fingerprint }
    }

    /// As [`Self::new`], with the fingerprint that an earlier [`Self::fingerprint256`] gave and somebody kept. It is believed:
    /// only for what a checksum of the keeper's own vouches for.
    pub fn with_fingerprint(scope: &Arc<KeyScope>, hash: ChunkHash, fingerprint: [u8; 32]) -> Self {
        Self { scope: Arc::clone(scope), hash, fingerprint }
    }

    /// Model, shard, group and salt.
    pub fn scope(&self) -> &Arc<KeyScope> {
        &self.scope
    }

    /// The chunk hash.
    pub fn hash(&self) -> &ChunkHash {
        &self.hash
    }

    /// 256 bits that stand for the whole key: `blake3` of the chunk hash, keyed by `blake3` of the encoded scope.
    pub fn fingerprint256(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The first 128 bits of the fingerprint, little-endian, for maps. Every bit is uniform.
    pub fn fingerprint(&self) -> u128 {
        u128::from_le_bytes(*self.fingerprint.first_chunk().expect("32 bytes"))
    }
}

impl PartialEq for ObjectKey {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && self.hash == other.hash
            && (Arc::ptr_eq(&self.scope, &other.scope) || self.scope == other.scope)
    }
}

impl Eq for ObjectKey {}

impl Hash for ObjectKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from_le_bytes(*self.fingerprint.first_chunk().expect("32 bytes")));
    }
}

/// Writes LMCache's connector name: it has every field of the key.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::text::connector_name(self))
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which device a request comes from. It steers the choice among several paths; it is never part of the identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Affinity {
    /// The device's index as the process sees it (changes with `CUDA_VISIBLE_DEVICES`).
    pub ordinal: Option<u32>,
    /// The device's UUID (does not change).
    pub uuid: Option<[u8; 16]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_as_they_are_shown() {
        let hash = ChunkHash::new(&[0, 1, 0xfe, 0xff]).unwrap();
        assert_eq!(hash.to_string(), "0001feff");
        assert_eq!("0001FEff".parse::<ChunkHash>().unwrap(), hash);
        for bad in ["", "0", "000", "0g", "+1", "ä0"] {
            assert_eq!(bad.parse::<ChunkHash>().unwrap_err().kind(), crate::ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn ranks_pack_as_lmcache_does_and_refuse_what_would_alias() {
        assert_eq!(KvRank::single().packed(), 0x0100_0100);
        assert_eq!(KvRank::new(8, 5, 8, 5).unwrap().packed(), 134_547_461);
        assert_eq!(KvRank::from_packed(134_547_461).unwrap(), KvRank::new(8, 5, 8, 5).unwrap());
        for (w, g, lw, l) in
            [(256, 0, 1, 0), (0, 0, 1, 0), (8, 8, 1, 0), (300, 299, 1, 0), (1, 0, 0, 0), (1, 0, 2, 2)]
        {
            assert_eq!(
                KvRank::new(w, g, lw, l).unwrap_err().kind(),
                crate::ErrorKind::Invalid,
                "{w} {g} {lw} {l}"
            );
        }
    }

    #[test]
    fn each_rule_of_a_scope_is_checked_and_names_its_field() {
        let long = "x".repeat(129);
        for (model, salt, field) in [
            ("", "", "model"),
            ("a@b", "", "model"),
            ("a\0b", "", "model"),
            ("m", "a@b", "cache_salt"),
            ("m", "a/b", "cache_salt"),
            ("m", "a\\b", "cache_salt"),
            ("m", "a\0b", "cache_salt"),
            ("m", long.as_str(), "cache_salt"),
        ] {
            let e = KeyScope::new(model, KvRank::single(), 0, salt).unwrap_err();
            assert_eq!(e.context().next().unwrap().0, field, "{e}");
        }
        assert!(KeyScope::new("org/model", KvRank::single(), u32::MAX, &long[1..]).is_ok());
        assert!(KeyScope::new(&"x".repeat(1025), KvRank::single(), 0, "").is_err());
        assert!(
            ChunkHash::new(&[]).is_err()
                && ChunkHash::new(&[0; 65]).is_err()
                && ChunkHash::new(&[0; 64]).is_ok()
        );
    }

    #[test]
    fn equal_keys_have_equal_fingerprints_and_each_field_separates() {
        let scope = |m, r, g, s| KeyScope::new(m, r, g, s).unwrap();
        let tp = KvRank::new(2, 1, 2, 1).unwrap();
        let one = KvRank::single();
        let keys: Vec<ObjectKey> = [
            (scope("m", one, 0, ""), &[1u8; 32][..]),
            (scope("n", one, 0, ""), &[1; 32]),
            (scope("m", tp, 0, ""), &[1; 32]),
            (scope("m", one, 1, ""), &[1; 32]),
            (scope("m", one, 0, "s"), &[1; 32]),
            (scope("ms", one, 0, ""), &[1; 32]),
            (scope("m", one, 0, ""), &[1; 31]),
            (scope("m", one, 0, ""), &[2; 32]),
            (scope("m", one, 0, ""), &[0]),
            (scope("m", one, 0, ""), &[0, 0]),
        ]
        .into_iter()
        .map(|(s, h)| ObjectKey::new(&s, ChunkHash::new(h).unwrap()))
        .collect();
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(a == b, i == j, "{a} {b}");
                assert_eq!(a.fingerprint() == b.fingerprint(), i == j, "{a} {b}");
            }
        }
        let again = ObjectKey::new(&scope("m", one, 0, ""), ChunkHash::new(&[1; 32]).unwrap());
        assert_eq!(again, keys[0], "two scopes with the same names are the same scope");
    }
}
