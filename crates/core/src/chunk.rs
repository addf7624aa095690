//! From tokens to chunk hashes.
//!
//! A chunk is named by the hash of the whole prefix that it ends, so two prompts share a chunk only if they share every
//! token before it. The chain has a schema number, which the namespace of a store records: schema 1 is LMCache's BLAKE3
//! chain, so that both programs name the same chunk alike.
//!
//! Schema 1 (LMCache 0.5.6, `--hash-algorithm blake3`): `hash = blake3(previous ‖ tokens as u32 big-endian)`, 32 bytes,
//! where the first previous is `blake3(i64-BE(0) ‖ u32-BE(0))`. Only full chunks have a hash.

use crate::{ChunkHash, Error, Result};

/// The chain's schema number as namespaces record it.
pub const SCHEMA_LMCACHE_BLAKE3: u16 = 1;

/// A chain of chunk hashes: its chunk size in tokens and its seed.
#[derive(Clone, Debug)]
pub struct ChunkHasher {
    tokens: usize,
    seed: [u8; 32],
}

impl ChunkHasher {
    /// LMCache's BLAKE3 chain with chunks of `tokens` tokens.
    ///
    /// # Errors
    /// `Invalid` if `tokens` is 0 or over 2^20.
    pub fn lmcache(tokens: usize) -> Result<Self> {
        if tokens == 0 || tokens > 1 << 20 {
            return Err(
                Error::invalid("make chunk hasher", "a chunk has 1 to 1048576 tokens").with("tokens", tokens)
            );
        }
        let mut seed = blake3::Hasher::new();
        seed.update(&0i64.to_be_bytes()).update(&0u32.to_be_bytes());
        Ok(Self { tokens, seed: *seed.finalize().as_bytes() })
    }

    /// Tokens per chunk.
    pub fn chunk_tokens(&self) -> usize {
        self.tokens
    }

    /// What the first chunk is chained to.
    pub fn seed(&self) -> [u8; 32] {
        self.seed
    }

    /// The hashes of the full chunks of `tokens`, first to last.
    pub fn hashes<'a>(&'a self, tokens: &'a [u32]) -> impl Iterator<Item = ChunkHash> + 'a {
        self.resume(self.seed, tokens)
    }

    /// Like [`Self::hashes`], for tokens that follow a prefix whose last chunk has the hash `previous`.
    pub fn resume<'a>(
        &'a self,
        previous: [u8; 32],
        tokens: &'a [u32],
    ) -> impl Iterator<Item = ChunkHash> + 'a {
        let mut bytes = vec![0u8; self.tokens * 4];
        tokens.chunks_exact(self.tokens).scan(previous, move |previous, chunk| {
            for (to, token) in bytes.chunks_exact_mut(4).zip(chunk) {
                to.copy_from_slice(&token.to_be_bytes());
            }
            *previous = link(previous, &bytes);
            Some(ChunkHash::from(*previous))
        })
    }
}

/// One link of the chain from tokens that are big-endian `u32`s already (as some wires carry them).
pub fn link(previous: &[u8; 32], tokens_be: &[u8]) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    h.update(previous).update(tokens_be);
    *h.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(h: &[u8]) -> String {
        h.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_chain_is_lmcaches() {
        let c = ChunkHasher::lmcache(256).unwrap();
        assert_eq!(hex(&c.seed()), "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b");
        let tokens: Vec<u32> = (0..1024 + 255).collect();
        let got: Vec<String> = c.hashes(&tokens).map(|h| h.to_string()).collect();
        assert_eq!(
            got,
            [
                "084547b6c40ed5b05ba8cd0305db5bf74d5617673948d9ed193ab7d6cbc484d4",
                "e5ffee45c2b9db326814c9692dc594369887ba3b0df5761817820b60f864c8e0",
                "4d63c63139bfd6f32e22b9a3356d2aab5bcc52694fad77206308b1f5c0d58898",
                "a0ec7dfe7261a56bb12a7f16528d1cd3a2cb960b9aafd140865ab5b7bcf4c291",
            ]
        );
        let c = ChunkHasher::lmcache(16).unwrap();
        let got: Vec<String> = c.hashes(&[100_000; 32]).map(|h| h.to_string()).collect();
        assert_eq!(got[0], "584d97240bec3dac3f767be6d6931d8d539309eb80f53e784524418a36f53d10");
        assert_eq!(got[1], "299b32f22be963cfe5d4c074afa10d94907979514402435e67672b30ac5f5c1f");
    }

    #[test]
    fn a_chain_can_be_resumed_anywhere() {
        let c = ChunkHasher::lmcache(4).unwrap();
        let tokens: Vec<u32> = (0..16).collect();
        let whole: Vec<ChunkHash> = c.hashes(&tokens).collect();
        let second = *whole[1].as_bytes().first_chunk().unwrap();
        assert_eq!(c.resume(second, &tokens[8..]).collect::<Vec<_>>(), whole[2..]);
        assert_eq!(c.hashes(&tokens[..3]).count(), 0, "no full chunk, no hash");
        assert!(ChunkHasher::lmcache(0).is_err());
    }
}
