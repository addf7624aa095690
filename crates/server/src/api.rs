//! What clients ask and what they are told, whatever the wire.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{DType, Error, KeyScope, KvRank, Result};

/// The tokens of a prompt as big-endian `u32`s, one after the other: what chunk hashes are made of.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tokens(Vec<u8>);

impl Tokens {
    /// Takes big-endian `u32`s. What does not fill one at the end is cut off.
    pub fn from_be_bytes(mut bytes: Vec<u8>) -> Self {
        bytes.truncate(bytes.len() / 4 * 4);
        Self(bytes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_be_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u32]> for Tokens {
    fn from(tokens: &[u32]) -> Self {
        Self(tokens.iter().flat_map(|t| t.to_be_bytes()).collect())
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.len())
    }
}

/// A range of a prompt's chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// The model, as the engine names it.
    pub model: String,
    /// Shards of the KV cache.
    pub world_size: i64,
    /// The shard that is meant; `None` is all of them.
    pub worker: Option<i64>,
    /// The whole prompt.
    pub tokens: Tokens,
    /// The first token of the range; a multiple of the chunk size.
    pub start: i64,
    /// The token after the range. What does not fill a chunk at its end does not count.
    pub end: i64,
    /// The engine's request, which is the session.
    pub request: String,
    /// The tenant's cache salt.
    pub salt: String,
    /// What the engine set for this request, as MessagePack. Not part of what the key means.
    pub configs: Option<Vec<u8>>,
    /// How many workers will retrieve each object of a lookup: each takes one lock.
    pub readers: i64,
}

impl Key {
    /// The scope of one shard's objects.
    ///
    /// # Errors
    /// `Invalid` for names that keys cannot have, or a shard that does not exist.
    pub fn scope(&self, rank: u32, group: u32) -> Result<Arc<KeyScope>> {
        let world = u32::try_from(self.world_size).unwrap_or(0);
        // LMCache's packed rank takes the whole world as local.
        KeyScope::new(&self.model, KvRank::new(world, rank, world, rank)?, group, &self.salt)
    }

    /// The shards that are meant.
    ///
    /// # Errors
    /// `Invalid` unless the world has 1 to 255 shards and the worker is one of them.
    pub fn ranks(&self) -> Result<std::ops::Range<u32>> {
        let world =
            u32::try_from(self.world_size).ok().filter(|w| (1..=255).contains(w)).ok_or_else(|| {
                Error::invalid("read key", "a world has 1 to 255 shards").with("world_size", self.world_size)
            })?;
        match self.worker {
            None => Ok(0..world),
            Some(w) => {
                let rank = u32::try_from(w).ok().filter(|r| *r < world).ok_or_else(|| {
                    Error::invalid("read key", "a worker is one of its world's shards").with("worker_id", w)
                })?;
                Ok(rank..rank + 1)
            }
        }
    }

    /// The range in chunks of this many tokens, cut at the prompt's end.
    ///
    /// # Errors
    /// `Invalid` for a range that is negative, backwards, or does not begin with a chunk.
    pub fn chunks(&self, tokens: usize) -> Result<std::ops::Range<usize>> {
        let bad = |what| {
            Error::invalid("read key", what)
                .with("start", self.start)
                .with("end", self.end)
                .with("chunk_size", tokens)
        };
        let (Ok(start), Ok(end)) = (usize::try_from(self.start), usize::try_from(self.end)) else {
            return Err(bad("a range has no negative ends"));
        };
        if start > end {
            return Err(bad("a range does not end before it begins"));
        }
        if start % tokens != 0 {
            return Err(bad("a range begins with a chunk"));
        }
        let chunks = end.min(self.tokens.len()) / tokens;
        Ok((start / tokens).min(chunks)..chunks)
    }
}

/// How an engine-driven worker's chunks look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineDriven {
    /// The worker.
    pub instance: i64,
    /// The model.
    pub model: String,
    /// Shards of the KV cache.
    pub world_size: i64,
    /// Tokens per block of the engine.
    pub block_size: i64,
    /// Layers.
    pub layers: i64,
    /// The flattened hidden dimension per token.
    pub hidden: i64,
    /// The element type by torch's name.
    pub dtype: String,
    /// One plane instead of keys and values apart.
    pub mla: bool,
    /// Slots of one chunk; unset, as many as it has tokens.
    pub slots: Option<i64>,
}

/// An element type by torch's name.
pub fn torch_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "uint8" => DType::U8,
        "int8" => DType::I8,
        "uint16" => DType::U16,
        "int16" | "short" => DType::I16,
        "uint32" => DType::U32,
        "int32" | "int" => DType::I32,
        "uint64" => DType::U64,
        "int64" | "long" => DType::I64,
        "float16" | "half" => DType::F16,
        "bfloat16" => DType::BF16,
        "float32" | "float" => DType::F32,
        "float64" | "double" => DType::F64,
        "float8_e4m3fn" => DType::F8E4M3FN,
        "float8_e5m2" => DType::F8E5M2,
        _ => return None,
    })
}

/// A tensor of an engine's KV cache that lies in shared memory or on a device, as far as this server can use it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceTensor {
    /// How it is shared: `cpu_shm`, `cuda`, `cuda_raw`, `cuda_vmm`, …
    pub kind: String,
    /// The shared-memory object, of a `cpu_shm`.
    pub shm_name: String,
    /// Its bytes.
    pub bytes: i64,
    /// The element type by torch's name.
    pub dtype: String,
    /// The extent of each dimension.
    pub shape: Vec<i64>,
    /// Elements from one index to the next, of each dimension.
    pub stride: Vec<i64>,
    /// The element that the tensor begins with.
    pub offset: i64,
    /// The device, `cpu` for host memory.
    pub device: String,
}

/// Layers that share a block table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineGroup {
    /// The engine's number for it.
    pub id: i64,
    /// Indices into the registered tensors.
    pub layers: Vec<i64>,
    /// Tokens per block.
    pub block_tokens: i64,
    /// The attention window in tokens; -1 is full attention.
    pub window: i64,
    /// Keeps groups of equal windows apart.
    pub tag: i64,
    /// Its layers keep a state instead of keys and values.
    pub recurrent: bool,
}

/// What an engine says of its layout under one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hint {
    /// A word.
    Text(String),
    /// A number.
    Int(i64),
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Hint {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

/// How an LMCache-driven worker's KV cache looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LmcacheDriven {
    /// The worker.
    pub instance: i64,
    /// Its tensors.
    pub tensors: Vec<DeviceTensor>,
    /// The model.
    pub model: String,
    /// Shards of the KV cache.
    pub world_size: i64,
    /// `vllm`, `sglang`, …
    pub engine: String,
    /// What the engine says of its layout: `kv_layout` and such, as far as it is text or a number.
    pub hints: Vec<(String, Hint)>,
    /// Its groups of layers.
    pub groups: Vec<EngineGroup>,
}

/// What a client asks.
#[derive(Clone, PartialEq, Debug)]
#[expect(
    missing_docs,
    reason = "the operations are LMCache's; the module `service` says what each does here"
)]
pub enum Request {
    RegisterKvCache(Box<LmcacheDriven>),
    UnregisterKvCache(i64),
    Store {
        key: Key,
        instance: i64,
        blocks: Vec<Vec<i64>>,
        event: Vec<u8>,
    },
    Retrieve {
        key: Key,
        instance: i64,
        blocks: Vec<Vec<i64>>,
        event: Vec<u8>,
        skip: i64,
    },
    Lookup(Key),
    QueryPrefetchStatus(String),
    WaitPrefetchStatus(String, Duration),
    FreeLookupLocks(Key),
    EndSession(String),
    RegisterEngineDriven(EngineDriven),
    UnregisterEngineDriven(i64),
    PrepareStore(Key, i64),
    /// With a payload it is the pickled form, which is not taken.
    CommitStore {
        key: Key,
        instance: i64,
        payload: Vec<u8>,
    },
    PrepareRetrieve(Key, i64),
    CommitRetrieve(Key, i64),
    Clear {
        force: bool,
    },
    GetChunkSize,
    Ping(Option<i64>),
    /// Not looked into: nothing here counts the engine's own blocks.
    ReportBlockAllocation {
        instance: i64,
        model: String,
        records: Vec<u8>,
    },
    Noop,
    GetExperimental,
    SubscribeKvEvents {
        instance: i64,
        model: String,
        cursor: i64,
        max_events: i64,
    },
}

/// Where an object's bytes are in the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// From the pool's start, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The tensor's shape.
    pub shape: Arc<[u64]>,
    /// Its element type by torch's name.
    pub dtype: Arc<str>,
}

/// A change of what L1 holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEvent {
    /// Counts events.
    pub seq: u64,
    /// Whether the chunks came or went.
    pub stored: bool,
    /// The model.
    pub model: Arc<str>,
    /// The chunks' hashes.
    pub hashes: Vec<[u8; 32]>,
    /// What the first is chained to, if it is not the first of its prompt.
    pub parent: Option<[u8; 32]>,
    /// The chunk's tokens, of one that came.
    pub tokens: Tokens,
}

/// A piece of the stream of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEventBatch {
    /// Whether there are events at all.
    pub enabled: bool,
    /// Which run of the server counts.
    pub incarnation: u64,
    /// What to ask for next.
    pub next_cursor: u64,
    /// Whether events are missing before these.
    pub lost: bool,
    /// The events.
    pub events: Vec<Arc<KvEvent>>,
}

/// What a client is told.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// Done, or nothing known yet.
    None,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(u64),
    /// A text.
    Text(Cow<'static, str>),
    /// Texts.
    Texts(Vec<Cow<'static, str>>),
    /// The pool to map; an empty name if there is none.
    Pool {
        /// Its POSIX name.
        name: String,
        /// Its bytes.
        bytes: u64,
    },
    /// Slots to fill, and which chunks of the range they are for. `None`: the store is refused.
    PrepareStore(Option<(Vec<Slot>, Vec<u64>)>),
    /// Slots to read, one per chunk of the range. `None`: not all of it is there.
    PrepareRetrieve(Option<Vec<Slot>>),
    /// A transfer by this side is over; whether it succeeded. No device work is pending.
    Transferred(bool),
    /// Events.
    Events(KvEventBatch),
    /// The request failed, and its operation has no answer of its own that says so.
    Refused,
}
