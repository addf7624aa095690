//! A worker whose bytes the server moves.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use kvstrata_server::api::{DeviceTensor, EngineGroup, Key, LmcacheDriven, Reply, Request};
use kvstrata_testkit::payload;

use super::engine::{Engine, Prompt, content};

/// Tokens of a block.
const BLOCK: usize = 16;
/// Blocks of a chunk.
const PER_CHUNK: usize = 256 / BLOCK;
/// Bytes of a block on one plane: four heads, eight elements wide, of two bytes each.
const BYTES: usize = BLOCK * 4 * 8 * 2;
/// The longest prompt, in chunks.
const CHUNKS: usize = 4;
/// The first stands for none; then those that are stored, and those that are loaded.
const BLOCKS: usize = 1 + 2 * CHUNKS * PER_CHUNK;

/// A worker that has the server move its bytes: paged memory of one layer, in shared memory of its own.
#[derive(Debug)]
pub struct Paged {
    /// Its connection.
    pub engine: Engine,
    instance: i64,
    path: PathBuf,
    file: File,
}

impl Drop for Paged {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Paged {
    /// How the names of such memory begin, of a process.
    pub fn prefix(process: u32) -> String {
        format!("lmcache_kv_{process}_")
    }

    /// Makes the memory and registers.
    ///
    /// # Errors
    /// As [`Engine::try_ask`]; what making it says; `InvalidData` if it is refused.
    pub async fn register(mut engine: Engine, instance: i64) -> io::Result<Self> {
        let name = format!("{}{instance}", Self::prefix(std::process::id()));
        let path = PathBuf::from(format!("/dev/shm/{name}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len((2 * BLOCKS * BYTES) as u64)?;
        let shape = vec![2, BLOCKS as i64, BLOCK as i64, 4, 8];
        let mut stride = vec![1; shape.len()];
        for i in (1..stride.len()).rev() {
            stride[i - 1] = stride[i] * shape[i];
        }
        let tensor = DeviceTensor {
            kind: "cpu_shm".into(),
            shm_name: format!("/{name}"),
            bytes: (2 * BLOCKS * BYTES) as i64,
            dtype: "float16".into(),
            shape,
            stride,
            offset: 0,
            device: "cpu".into(),
        };
        let request = Request::RegisterKvCache(Box::new(LmcacheDriven {
            instance,
            tensors: vec![tensor],
            model: "org/paged".into(),
            world_size: 1,
            engine: "vllm".into(),
            hints: vec![("kv_layout".into(), "NHD".into())],
            groups: vec![EngineGroup {
                id: 0,
                layers: vec![0],
                block_tokens: BLOCK as i64,
                window: -1,
                tag: 0,
                recurrent: false,
            }],
        }));
        let reply = engine.try_ask(&request).await;
        let this = Self { engine, instance, path, file };
        match reply? {
            Reply::None => Ok(this),
            other => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("not registered, but {other:?}")))
            }
        }
    }

    /// A prompt's key, of the model that these workers have.
    pub fn key(prompt: Prompt, request: &str, worker: Option<i64>) -> Key {
        Key { model: "org/paged".into(), ..prompt.key(request, worker) }
    }

    /// Where a block of a chunk lies on a plane, among those that are stored or those that are loaded.
    fn at(chunk: usize, block: usize, plane: usize, loaded: bool) -> (i64, u64) {
        let id = 1 + (usize::from(loaded) * CHUNKS + chunk) * PER_CHUNK + block;
        (id as i64, ((plane * BLOCKS + id) * BYTES) as u64)
    }

    fn ids(prompt: Prompt, loaded: bool) -> Vec<Vec<i64>> {
        assert!(prompt.chunks <= CHUNKS, "a prompt fits the memory");
        let blocks =
            (0..prompt.chunks * PER_CHUNK).map(|b| Self::at(b / PER_CHUNK, b % PER_CHUNK, 0, loaded).0);
        vec![blocks.collect()]
    }

    /// The pieces of a prompt: where each is, and what is to be there.
    fn pieces(prompt: Prompt, loaded: bool) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        for chunk in 0..prompt.chunks {
            let mut whole = vec![0; 2 * PER_CHUNK * BYTES];
            payload::fill(&content(prompt.number, chunk as u64), &mut whole);
            for (i, bytes) in whole.chunks_exact(BYTES).enumerate() {
                pieces.push((Self::at(chunk, i % PER_CHUNK, i / PER_CHUNK, loaded).1, bytes.to_vec()));
            }
        }
        pieces
    }

    /// Fills its blocks.
    ///
    /// # Errors
    /// What the system says.
    pub fn fill(&self, prompt: Prompt) -> io::Result<()> {
        Self::pieces(prompt, false).iter().try_for_each(|(at, bytes)| self.file.write_all_at(bytes, *at))
    }

    /// The request that stores a prompt from its blocks.
    pub fn store_request(&self, prompt: Prompt, request: &str) -> Request {
        let (key, blocks) = (Self::key(prompt, request, Some(0)), Self::ids(prompt, false));
        Request::Store { key, instance: self.instance, blocks, event: b"event".to_vec() }
    }

    /// Has a prompt stored; whether it was.
    ///
    /// # Errors
    /// As [`Engine::try_ask`], and what writing says.
    pub async fn store(&mut self, prompt: Prompt, request: &str) -> io::Result<bool> {
        self.fill(prompt)?;
        let store = self.store_request(prompt, request);
        Ok(self.engine.try_ask(&store).await? == Reply::Transferred(true))
    }

    /// Has a prompt loaded into other blocks and checks it, byte for byte; whether it was there.
    ///
    /// # Errors
    /// `InvalidData` for other bytes; as [`Engine::try_ask`], and what reading says.
    pub async fn load(&mut self, prompt: Prompt, request: &str) -> io::Result<bool> {
        let pieces = Self::pieces(prompt, true);
        pieces.iter().try_for_each(|(at, bytes)| self.file.write_all_at(&vec![0; bytes.len()], *at))?;
        let retrieve = Request::Retrieve {
            key: Self::key(prompt, request, Some(0)),
            instance: self.instance,
            blocks: Self::ids(prompt, true),
            event: b"event".to_vec(),
            skip: 0,
        };
        if self.engine.try_ask(&retrieve).await? != Reply::Transferred(true) {
            return Ok(false);
        }
        for (at, bytes) in pieces {
            let mut got = vec![0; bytes.len()];
            self.file.read_exact_at(&mut got, at)?;
            if got != bytes {
                let e = format!("prompt {}: other bytes in the block at {at}", prompt.number);
                return Err(io::Error::new(io::ErrorKind::InvalidData, e));
            }
        }
        Ok(true)
    }
}
