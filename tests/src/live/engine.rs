//! Clients of the wire.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use kvstrata_core::{KeyScope, KvRank, ObjectKey};
use kvstrata_server::api::{EngineDriven, Key, Reply, Request, Slot, Tokens};
use kvstrata_server::wire::{Operation, read_answer, request_parts};
use kvstrata_testkit::{payload, trace};
use kvstrata_zmtp::Dealer;

use super::WITHIN;

/// Tokens of a chunk, as servers have it by default.
const CHUNK: u32 = 256;

/// Layers of a worker's model.
pub const LAYERS: i64 = 1;

/// Bytes of one of its chunks: two planes of 256 slots, 64 elements wide, of two bytes each.
pub const SLOT_BYTES: usize = 2 * LAYERS as usize * CHUNK as usize * 64 * 2;

/// A prompt of whole chunks, told apart by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prompt {
    /// Its first token; the others are the same for all.
    pub number: u32,
    /// Chunks.
    pub chunks: usize,
}

impl Prompt {
    /// The key of all of its chunks, in a request of this name.
    pub fn key(self, request: &str, worker: Option<i64>) -> Key {
        let rest = 1..self.chunks as u32 * CHUNK;
        let tokens: Vec<u32> =
            if self.chunks > 0 { [self.number].into_iter().chain(rest).collect() } else { vec![] };
        Key {
            model: "org/model".into(),
            world_size: 1,
            worker,
            tokens: Tokens::from(&tokens[..]),
            start: 0,
            end: tokens.len() as i64,
            request: request.into(),
            salt: String::new(),
            configs: None,
            readers: 1,
        }
    }
}

/// What the bytes of a prompt's chunk are made from, whoever stores it.
pub fn content(prompt: u32, chunk: u64) -> ObjectKey {
    let scope = KeyScope::new("content", KvRank::single(), 0, "").expect("a scope");
    trace::key(&scope, u64::from(prompt) << 32 | chunk)
}

/// How a worker registers whose chunks have [`SLOT_BYTES`].
pub fn engine_driven(instance: i64) -> Request {
    Request::RegisterEngineDriven(EngineDriven {
        instance,
        model: "org/model".into(),
        world_size: 1,
        block_size: 16,
        layers: LAYERS,
        hidden: 64,
        dtype: "float16".into(),
        mla: false,
        slots: None,
    })
}

fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(WITHIN, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// An engine: a client of the wire that speaks LMCache's protocol.
#[derive(Debug)]
pub struct Engine {
    dealer: Dealer,
    next: u64,
}

impl Engine {
    /// Connects.
    ///
    /// # Errors
    /// What the system says, `TimedOut` if that takes too long.
    pub async fn connect(endpoint: &str) -> io::Result<Self> {
        Ok(Self { dealer: within(Dealer::connect(endpoint)).await?, next: 0 })
    }

    /// Sends a request and does not wait for its answer; the parts that its answer begins with.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send(&mut self, request: &Request) -> io::Result<[Bytes; 2]> {
        let parts = request_parts(self.next, request);
        self.next += 1;
        within(self.dealer.send(&parts)).await?;
        Ok([parts[0].clone(), parts[1].clone()])
    }

    /// Sends a message as it is.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send_parts<T: AsRef<[u8]>>(&mut self, parts: &[T]) -> io::Result<()> {
        within(self.dealer.send(parts)).await
    }

    /// The next message that comes.
    ///
    /// # Errors
    /// What the system says, `TimedOut` if nothing comes.
    pub async fn receive(&mut self) -> io::Result<Vec<Bytes>> {
        within(self.dealer.receive()).await
    }

    /// Asks.
    ///
    /// # Errors
    /// What the system says, `TimedOut` if no answer comes, `InvalidData` for one that is not the request's.
    pub async fn try_ask(&mut self, request: &Request) -> io::Result<Reply> {
        let [number, op] = self.send(request).await?;
        let answer = self.receive().await?;
        if answer.first() != Some(&number) {
            return Err(invalid("an answer to another request"));
        }
        read_answer(Operation::read(&op).map_err(invalid)?, &answer[1..]).map_err(invalid)
    }

    /// Asks.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn ask(&mut self, request: &Request) -> Reply {
        self.try_ask(request).await.expect("it answers in time")
    }

    /// Looks a prompt up; how many chunks are there.
    ///
    /// # Errors
    /// As [`try_ask`](Self::try_ask); `TimedOut` for a lookup that does not end.
    pub async fn try_look_up(&mut self, key: Key) -> io::Result<u64> {
        let status = Request::QueryPrefetchStatus(key.request.clone());
        self.try_ask(&Request::Lookup(key)).await?;
        for _ in 0..2000 {
            match self.try_ask(&status).await? {
                Reply::Int(chunks) => return Ok(chunks),
                Reply::None => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                other => return Err(invalid(format!("a lookup's answer is {other:?}"))),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Looks a prompt up; how many chunks are there.
    ///
    /// # Panics
    /// If the lookup does not end.
    pub async fn look_up(&mut self, key: Key) -> u64 {
        self.try_look_up(key).await.expect("the lookup ends")
    }
}

/// A worker that moves its own bytes, in the pool.
#[derive(Debug)]
pub struct Worker {
    /// Its connection.
    pub engine: Engine,
    /// Its number.
    pub instance: i64,
    pool: File,
}

impl Worker {
    /// Registers.
    ///
    /// # Errors
    /// As [`Engine::try_ask`]; `InvalidData` if it is refused; what opening the pool says.
    pub async fn register(mut engine: Engine, instance: i64) -> io::Result<Self> {
        let reply = engine.try_ask(&engine_driven(instance)).await?;
        let Reply::Pool { name, .. } = reply else { return Err(invalid(format!("no pool, but {reply:?}"))) };
        let pool = File::options().read(true).write(true).open(format!("/dev/shm/{name}"))?;
        Ok(Self { engine, instance, pool })
    }

    /// Reserves what is not there of a prompt: the slots, with their chunks. `None` if it is refused.
    ///
    /// # Errors
    /// As [`Engine::try_ask`].
    pub async fn prepare(&mut self, key: &Key) -> io::Result<Option<Vec<(Slot, u64)>>> {
        match self.engine.try_ask(&Request::PrepareStore(key.clone(), self.instance)).await? {
            Reply::PrepareStore(granted) => {
                Ok(granted.map(|(slots, indices)| slots.into_iter().zip(indices).collect()))
            }
            other => Err(invalid(format!("no slots, but {other:?}"))),
        }
    }

    /// Fills the first `bytes` bytes of a slot with what its chunk is.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&self, (slot, chunk): &(Slot, u64), prompt: u32, bytes: usize) -> io::Result<()> {
        let mut buf = vec![0; slot.length as usize];
        payload::fill(&content(prompt, *chunk), &mut buf);
        self.pool.write_all_at(&buf[..bytes.min(buf.len())], slot.offset)
    }

    /// Publishes what was prepared; whether it was.
    ///
    /// # Errors
    /// As [`Engine::try_ask`].
    pub async fn commit(&mut self, key: &Key) -> io::Result<bool> {
        let commit = Request::CommitStore { key: key.clone(), instance: self.instance, payload: Vec::new() };
        Ok(self.engine.try_ask(&commit).await? == Reply::Bool(true))
    }

    /// Stores a prompt's chunks that are not there; `false` if that was refused.
    ///
    /// # Errors
    /// As [`Engine::try_ask`], and what writing says.
    pub async fn store(&mut self, prompt: Prompt, request: &str) -> io::Result<bool> {
        let key = prompt.key(request, Some(0));
        let Some(slots) = self.prepare(&key).await? else { return Ok(false) };
        for slot in &slots {
            self.fill(slot, prompt.number, SLOT_BYTES)?;
        }
        if slots.is_empty() {
            return Ok(true);
        }
        self.commit(&key).await
    }

    /// The slots of a prompt to read; `None` if not all of it is there.
    ///
    /// # Errors
    /// As [`Engine::try_ask`].
    pub async fn slots(&mut self, key: &Key) -> io::Result<Option<Vec<Slot>>> {
        match self.engine.try_ask(&Request::PrepareRetrieve(key.clone(), self.instance)).await? {
            Reply::PrepareRetrieve(slots) => Ok(slots),
            other => Err(invalid(format!("no slots, but {other:?}"))),
        }
    }

    /// Whether a slot has what a prompt's chunk is.
    ///
    /// # Errors
    /// `InvalidData` for other bytes; what reading says.
    pub fn check(&self, slot: &Slot, prompt: u32, chunk: u64) -> io::Result<()> {
        let mut buf = vec![0; slot.length as usize];
        self.pool.read_exact_at(&mut buf, slot.offset)?;
        let wrong = |e| invalid(format!("prompt {prompt}, chunk {chunk}: {e}"));
        payload::check(&content(prompt, chunk), &buf).map_err(wrong)
    }

    /// Reads a prompt and checks it, byte for byte; `None` if not all of it is there, else its chunks.
    ///
    /// # Errors
    /// `InvalidData` for other bytes; as [`Engine::try_ask`], and what reading says.
    pub async fn load(&mut self, prompt: Prompt, request: &str) -> io::Result<Option<u64>> {
        let key = prompt.key(request, Some(0));
        let Some(slots) = self.slots(&key).await? else { return Ok(None) };
        if slots.len() != prompt.chunks {
            return Err(invalid(format!("{} slots for {} chunks", slots.len(), prompt.chunks)));
        }
        for (chunk, slot) in slots.iter().enumerate() {
            self.check(slot, prompt.number, chunk as u64)?;
        }
        self.engine.try_ask(&Request::CommitRetrieve(key, self.instance)).await?;
        Ok(Some(slots.len() as u64))
    }

    /// Ends a request.
    ///
    /// # Errors
    /// As [`Engine::try_ask`].
    pub async fn end(&mut self, request: &str) -> io::Result<()> {
        self.engine.try_ask(&Request::EndSession(request.into())).await.map(|_| ())
    }
}
