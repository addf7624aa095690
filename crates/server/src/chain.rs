//! The chunk hashes of a session's prompt, kept so that each token is hashed once.

use std::sync::Arc;

use kvstrata_core::chunk::{ChunkHasher, link};
use kvstrata_core::{ChunkHash, KeyScope, ObjectKey};

use crate::api::Tokens;

/// The hashes of a prompt's first chunks, and what shows that a later request has the same prompt: a digest of its tokens,
/// which costs a tenth of the chain and needs no copy of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Bytes of the tokens that the digest is of: whole chunks.
    covered: usize,
    digest: [u8; 32],
    hashes: Arc<Vec<[u8; 32]>>,
}

impl Chain {
    /// Makes sure that the first `chunks` chunks of the prompt have hashes; how many had to be made.
    pub(crate) fn cover(&mut self, hasher: &ChunkHasher, tokens: &Tokens, chunks: usize) -> usize {
        let chunk = hasher.chunk_tokens() * 4;
        let all = tokens.as_be_bytes();
        let want = chunks.min(all.len() / chunk) * chunk;
        let same = self.covered <= all.len() && *blake3::hash(&all[..self.covered]).as_bytes() == self.digest;
        if self.covered > 0 && !same {
            *self = Self::default();
        }
        if want <= self.covered {
            return 0;
        }
        let made = (want - self.covered) / chunk;
        let hashes = Arc::make_mut(&mut self.hashes);
        let mut previous = hashes.last().copied().unwrap_or_else(|| hasher.seed());
        hashes.reserve_exact(made);
        for tokens in all[self.covered..want].chunks_exact(chunk) {
            previous = link(&previous, tokens);
            hashes.push(previous);
        }
        self.covered = want;
        self.digest = *blake3::hash(&all[..want]).as_bytes();
        made
    }

    /// The hashes that are known.
    pub(crate) fn hashes(&self) -> &Arc<Vec<[u8; 32]>> {
        &self.hashes
    }
}

/// The objects of one scope with these hashes.
pub(crate) fn keys(scope: &Arc<KeyScope>, hashes: &[[u8; 32]]) -> Vec<ObjectKey> {
    hashes.iter().map(|hash| ObjectKey::new(scope, ChunkHash::from(*hash))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(tokens: &[u32]) -> Vec<[u8; 32]> {
        let hasher = ChunkHasher::lmcache(4).unwrap();
        hasher.hashes(tokens).map(|h| *h.as_bytes().first_chunk().unwrap()).collect()
    }

    #[test]
    fn a_prompt_that_grows_or_changes_has_the_hashes_of_one_that_is_new() {
        let hasher = ChunkHasher::lmcache(4).unwrap();
        let mut chain = Chain::default();
        let prompt: Vec<u32> = (0..18).collect();
        assert_eq!(chain.cover(&hasher, &Tokens::from(&prompt[..9]), 9), 2);
        assert_eq!(**chain.hashes(), hashes(&prompt[..8]), "whole chunks only");
        chain.cover(&hasher, &Tokens::from(&prompt[..]), 3);
        assert_eq!(**chain.hashes(), hashes(&prompt[..12]), "as many as were asked for");
        let kept = Arc::clone(chain.hashes());
        assert_eq!(chain.cover(&hasher, &Tokens::from(&prompt[..]), 2), 0);
        assert!(Arc::ptr_eq(&kept, chain.hashes()), "nothing was hashed again");
        let mut other = prompt.clone();
        other[1] = 99;
        chain.cover(&hasher, &Tokens::from(&other[..]), 4);
        assert_eq!(**chain.hashes(), hashes(&other[..16]));
        chain.cover(&hasher, &Tokens::from(&other[..5]), 4);
        assert_eq!(**chain.hashes(), hashes(&other[..4]), "a shorter prompt is another one");
    }
}
