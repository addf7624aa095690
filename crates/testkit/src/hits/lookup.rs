use std::sync::Arc;

use kvstrata_core::{KeyScope, KvRank, Result};

use super::{Cache, Order};
use crate::trace::{self, Request};

/// What of one request reaches the cache: all its blocks, or those that a front did not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lookup {
    /// The request's number, from 1.
    pub request: u64,
    /// The number of the first block among all that ever reached the cache, from 0.
    pub at: u64,
    /// How many blocks of the chain the front answered.
    pub first: u32,
    /// The blocks after those, and the upper half of their keys' fingerprints, as eviction policies see them.
    pub blocks: Vec<(u64, u64)>,
    /// Tokens of the prompt.
    input_tokens: u64,
    block_tokens: u64,
}

impl Lookup {
    /// Tokens of the prompt that the first blocks hold: those before the lookup and so many of its own.
    pub fn tokens(&self, blocks: usize) -> u64 {
        ((u64::from(self.first) + blocks as u64) * self.block_tokens).min(self.input_tokens)
    }
}

/// Makes lookups of requests. With a front, a request's leading blocks that the front holds do not reach the cache; the
/// front then holds the whole chain, as an engine does that computes or loads what it lacks.
#[derive(Debug)]
pub struct Lookups {
    scope: Arc<KeyScope>,
    front: Option<Cache>,
    requests: u64,
    blocks: u64,
    block_tokens: u64,
}

impl Lookups {
    /// Tokens per block in the published traces.
    pub const BLOCK_TOKENS: u64 = 512;

    /// Keys are those of the model with this name, a single shard of it.
    ///
    /// # Errors
    /// `Invalid` if it cannot be a model's name.
    pub fn new(model: &str, front: Option<Cache>) -> Result<Self> {
        let scope = KeyScope::new(model, KvRank::single(), 0, "")?;
        Ok(Self { scope, front, requests: 0, blocks: 0, block_tokens: Self::BLOCK_TOKENS })
    }

    /// The same with so many tokens per block.
    #[must_use]
    pub fn with_block_tokens(mut self, tokens: u64) -> Self {
        self.block_tokens = tokens;
        self
    }

    /// The next request's lookup.
    pub fn next(&mut self, request: &Request) -> Lookup {
        let print = |id: u64| (trace::key(&self.scope, id).fingerprint() >> 64) as u64;
        self.requests += 1;
        let mut lookup = Lookup {
            request: self.requests,
            at: self.blocks,
            first: 0,
            blocks: request.hash_ids.iter().map(|id| (*id, print(*id))).collect(),
            input_tokens: request.input_length,
            block_tokens: self.block_tokens,
        };
        if let Some(front) = &mut self.front {
            let held = front.request(&lookup, Order::Batch).iter().take_while(|h| **h).count();
            lookup.blocks.drain(..held);
            lookup.first = held as u32;
        }
        self.blocks += lookup.blocks.len() as u64;
        lookup
    }
}
