//! Blocks of an engine's KV cache to chunks of the pool, and back, through files of shared memory.
//!
//! The engine's memory is read and written as a file and not mapped: an engine that cuts its object short makes a transfer
//! fail, and no signal. Here is where copies from and to a device would stand.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use kvstrata_core::{Error, ErrorKind, Result};
use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::paged::{Group, Paged};

/// The most that is copied at a time; what a core's own cache holds.
const RUN: u64 = 256 << 10;

/// How LMCache's clients name the memory that they share; nothing else is opened.
const PREFIX: &str = "lmcache_kv_";

/// An engine's KV cache with its memory open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) paged: Paged,
    chunk_tokens: u64,
    files: Vec<File>,
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::io("transfer blocks", e).with("step", step)
}

impl Open {
    /// Opens the memory that an engine says it has.
    ///
    /// # Errors
    /// `Invalid` for other names than a client's, for memory of another user, and for too little of it.
    pub(crate) fn new(paged: Paged, chunk_tokens: usize) -> Result<Self> {
        const OP: &str = "open KV cache";
        let me = std::fs::metadata("/proc/self").map_err(|e| Error::io(OP, e))?.uid();
        let open = |(name, bytes): &(String, u64)| {
            let bad = |m: &str| Error::invalid(OP, m).with("shm_name", name);
            let bare = name.strip_prefix('/').unwrap_or(name);
            if !bare.starts_with(PREFIX) || bare.contains(['/', '\0']) || bare.len() > 250 {
                return Err(bad("a client's shared memory is called /lmcache_kv_…"));
            }
            let path = PathBuf::from("/dev/shm").join(bare);
            let link =
                std::fs::symlink_metadata(&path).map_err(|e| Error::io(OP, e).with("shm_name", name))?;
            if !link.is_file() {
                return Err(bad("that is no shared memory"));
            }
            let file = File::options().read(true).write(true).open(&path);
            let file = file.map_err(|e| Error::io(OP, e).with("shm_name", name))?;
            let meta = file.metadata().map_err(|e| Error::io(OP, e))?;
            if (meta.dev(), meta.ino()) != (link.dev(), link.ino()) {
                return Err(bad("that is no shared memory"));
            }
            if meta.uid() != me {
                return Err(bad("this shared memory belongs to another user"));
            }
            if meta.len() < *bytes {
                let e = bad("there is less shared memory than the client says");
                return Err(e.with("nbytes", bytes).with("size", meta.len()));
            }
            Ok(file)
        };
        let files = paged.objects.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { paged, chunk_tokens: chunk_tokens as u64, files })
    }

    /// A group's blocks of one chunk.
    fn blocks<'a>(&self, group: &Group, blocks: &'a [i64], chunk: usize) -> &'a [i64] {
        let n = (self.chunk_tokens / group.tokens) as usize;
        &blocks[chunk * n..(chunk + 1) * n]
    }

    /// Whether a chunk has nothing but the null block, which stands for no block at all.
    pub(crate) fn is_null(&self, blocks: &[Vec<i64>], chunk: usize, null: i64) -> bool {
        let all = |(g, ids): (&Group, &Vec<i64>)| self.blocks(g, ids, chunk).iter().all(|id| *id == null);
        self.paged.groups.iter().zip(blocks).all(all)
    }

    /// Fills a chunk from the engine's blocks, which [`Paged::check_blocks`] has passed.
    pub(crate) fn gather(&self, blocks: &[Vec<i64>], chunk: usize, to: &mut WriteBuf) -> Result<()> {
        let (mut bytes, mut turned) = (Vec::new(), Vec::new());
        self.each(blocks, chunk, |group, file, at, in_chunk, _, n| {
            bytes.resize(n as usize, 0);
            file.read_exact_at(&mut bytes, at).map_err(failed("read the engine's blocks"))?;
            if group.heads_first {
                turn(&bytes, &mut turned, group.heads, group.tokens, group.head_bytes);
                to.write_at(in_chunk as usize, &turned)
            } else {
                to.write_at(in_chunk as usize, &bytes)
            }
        })
    }

    /// Writes a chunk to the engine's blocks, but for its first `skip` tokens.
    pub(crate) fn scatter(&self, blocks: &[Vec<i64>], chunk: usize, from: &ReadBuf, skip: u64) -> Result<()> {
        let (mut bytes, mut turned) = (Vec::new(), Vec::new());
        let failed = failed("write the engine's blocks");
        self.each(blocks, chunk, |group, file, at, in_chunk, first, n| {
            let skip = skip.saturating_sub(first).min(n / group.row());
            if skip * group.row() == n {
                return Ok(());
            }
            bytes.resize(n as usize, 0);
            from.read_at(in_chunk as usize, &mut bytes)?;
            if !group.heads_first {
                let skipped = skip * group.row();
                return file.write_all_at(&bytes[skipped as usize..], at + skipped).map_err(&failed);
            }
            turn(&bytes, &mut turned, group.tokens, group.heads, group.head_bytes);
            if skip == 0 {
                return file.write_all_at(&turned, at).map_err(&failed);
            }
            let of_head = group.tokens * group.head_bytes;
            (0..group.heads).try_for_each(|head| {
                let (from, to) = (head * of_head + skip * group.head_bytes, (head + 1) * of_head);
                file.write_all_at(&turned[from as usize..to as usize], at + from).map_err(&failed)
            })
        })
    }

    /// Calls for each piece of a chunk with the group, the file, where in it the piece is, where in the chunk, its first token
    /// there, and its bytes. What lies together on both sides comes in one.
    fn each(
        &self,
        blocks: &[Vec<i64>],
        chunk: usize,
        mut f: impl FnMut(&Group, &File, u64, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut base = 0;
        for (group, ids) in self.paged.groups.iter().zip(blocks) {
            let (ids, piece) = (self.blocks(group, ids, chunk), group.piece());
            let of_layer = self.chunk_tokens * group.row();
            for (layer, tensor) in group.tensors.iter().enumerate() {
                let joined = tensor.block_stride == piece && !group.heads_first;
                for plane in 0..group.planes {
                    let begin = base + (plane * group.tensors.len() as u64 + layer as u64) * of_layer;
                    let (mut to, mut rest) = (begin, ids);
                    while let [first, ..] = rest {
                        let most = if joined { (RUN / piece).max(1) as usize } else { 1 };
                        let run = rest
                            .iter()
                            .zip(*first..)
                            .take(most)
                            .take_while(|(id, next)| **id == *next)
                            .count();
                        let (object, start) = tensor.planes[plane as usize];
                        let at = start + *first as u64 * tensor.block_stride;
                        let bytes = run as u64 * piece;
                        f(group, &self.files[object], at, to, (to - begin) / group.row(), bytes)?;
                        to += bytes;
                        rest = &rest[run..];
                    }
                }
            }
            base += group.chunk_bytes(self.chunk_tokens);
        }
        Ok(())
    }

    /// MD5 of runs of `per_digest` of these blocks, over all layers or for each, as LMCache makes them: every tensor's blocks
    /// in the order of its axes, bfloat16 widened to float32.
    ///
    /// # Errors
    /// `Invalid` for blocks that do not exist.
    pub(crate) fn checksums(
        &self,
        ids: &[i64],
        per_digest: usize,
        layerwise: bool,
    ) -> Result<Vec<Vec<String>>> {
        use md5::{Digest, Md5};
        const OP: &str = "digest blocks";
        if ids.is_empty() || per_digest == 0 {
            return Err(Error::invalid(OP, "there have to be blocks, and how many go in one digest")
                .with("block_ids", ids.len())
                .with("chunk_size", per_digest));
        }
        for group in &self.paged.groups {
            if let Some(id) = ids.iter().find(|id| u64::try_from(**id).map_or(true, |id| id >= group.blocks))
            {
                return Err(Error::invalid(OP, "no such block was registered")
                    .with("block_id", id)
                    .with("blocks", group.blocks));
            }
        }
        let layers: Vec<_> =
            self.paged.groups.iter().flat_map(|g| g.tensors.iter().map(move |t| (g, t))).collect();
        let mut digests = vec![Vec::new(); if layerwise { layers.len() } else { 1 }];
        let mut bytes = Vec::new();
        for ids in ids.chunks(per_digest) {
            let mut whole = Md5::new();
            for (layer, (group, tensor)) in layers.iter().enumerate() {
                let pieces: Vec<(i64, u64)> = if tensor.blocks_first {
                    ids.iter().flat_map(|id| (0..group.planes).map(move |p| (*id, p))).collect()
                } else {
                    (0..group.planes).flat_map(|p| ids.iter().map(move |id| (*id, p))).collect()
                };
                for (id, plane) in pieces {
                    bytes.resize(group.piece() as usize, 0);
                    let (object, start) = tensor.planes[plane as usize];
                    let (file, at) = (&self.files[object], start + id as u64 * tensor.block_stride);
                    file.read_exact_at(&mut bytes, at).map_err(failed("read the engine's blocks"))?;
                    if group.dtype == kvstrata_core::DType::BF16 {
                        whole.update(
                            bytes.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect::<Vec<_>>(),
                        );
                    } else {
                        whole.update(&bytes);
                    }
                }
                if layerwise {
                    digests[layer].push(hex(&whole.finalize_reset()));
                }
            }
            if !layerwise {
                digests[0].push(hex(&whole.finalize()));
            }
        }
        Ok(digests)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `rows` of `columns` items become `columns` of `rows`.
fn turn(from: &[u8], to: &mut Vec<u8>, rows: u64, columns: u64, item: u64) {
    let (rows, columns, item) = (rows as usize, columns as usize, item as usize);
    to.resize(from.len(), 0);
    for row in 0..rows {
        for column in 0..columns {
            let (a, b) = ((row * columns + column) * item, (column * rows + row) * item);
            to[b..b + item].copy_from_slice(&from[a..a + item]);
        }
    }
}

/// What became of a transfer whose client went, or that took too long.
pub(crate) fn abandoned(why: &'static str) -> Error {
    Error::new(ErrorKind::TimedOut, "transfer blocks", why)
}
