//! Paged KV caches: where a block's bytes lie in an engine's tensors, worked out from their shapes and strides.

use kvstrata_core::{DType, Error, Layout, Result, TensorDesc};

use self::layers::Layers;
use crate::api::{DeviceTensor, EngineGroup, LmcacheDriven, torch_dtype};

mod layers;

const OP: &str = "register KV cache";

/// The keys and values of one layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tensor {
    /// Where each plane begins: which of the registered shared-memory objects, and the byte in it.
    pub(crate) planes: Vec<(usize, u64)>,
    /// A block's planes come one after the other, rather than a plane's blocks.
    pub(crate) blocks_first: bool,
    /// Bytes from one block to the next.
    pub(crate) block_stride: u64,
}

/// Layers that share a block table, all of one shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) dtype: DType,
    pub(crate) blocks: u64,
    /// Keys and values apart, or one plane.
    pub(crate) planes: u64,
    /// Per block.
    pub(crate) tokens: u64,
    pub(crate) heads: u64,
    /// Bytes of one head of one token.
    pub(crate) head_bytes: u64,
    /// Heads come before tokens within a block.
    pub(crate) heads_first: bool,
}

impl Group {
    /// Bytes of one token in one plane of one layer.
    pub(crate) fn row(&self) -> u64 {
        self.heads * self.head_bytes
    }

    /// Bytes of one block in one plane of one layer, which lie together.
    pub(crate) fn piece(&self) -> u64 {
        self.tokens * self.row()
    }

    /// Bytes of one chunk of this group.
    pub(crate) fn chunk_bytes(&self, chunk_tokens: u64) -> u64 {
        self.planes * self.tensors.len() as u64 * chunk_tokens * self.row()
    }
}

/// An engine's KV cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Paged {
    pub(crate) groups: Vec<Group>,
    /// The shared-memory objects, and the bytes that each is said to have.
    pub(crate) objects: Vec<(String, u64)>,
    /// What one chunk is: per group the planes, layers, tokens and what a token has, in this order.
    pub(crate) layout: Layout,
}

fn invalid(what: impl Into<String>, field: &'static str, value: impl std::fmt::Display) -> Error {
    Error::invalid(OP, what).with(field, value)
}

impl Paged {
    /// What a registration describes.
    ///
    /// # Errors
    /// `Unsupported` for device memory and for caches that this version does not know; `Invalid` for shapes that cannot be.
    pub(crate) fn new(r: &LmcacheDriven, chunk_tokens: usize) -> Result<Self> {
        let unsupported = |what| Error::new(kvstrata_core::ErrorKind::Unsupported, OP, what);
        if let Some(t) = r.tensors.iter().find(|t| t.kind != "cpu_shm") {
            let m = "device memory is not mapped in this version: set lmcache.mp.mp_transfer_mode (or \
                     LMCACHE_MP_TRANSFER_MODE) to engine_driven";
            return Err(unsupported(m).with("type", &t.kind));
        }
        if r.tensors.is_empty() {
            return Err(invalid("there is no tensor", "kv_caches", 0));
        }
        let layers = match r.engine.as_str() {
            "vllm" => layers::vllm(r)?,
            "sglang" => layers::sglang(r)?,
            other => {
                let m = "only KV caches of vllm and sglang in host memory are transferred by the server in this version";
                return Err(unsupported(m).with("engine_type", other));
            }
        };
        let one = [EngineGroup {
            id: 0,
            layers: (0..layers.of.len() as i64).collect(),
            block_tokens: 0,
            window: -1,
            tag: 0,
            recurrent: false,
        }];
        let infos: &[EngineGroup] = if r.groups.is_empty() { &one } else { &r.groups };
        let (mut groups, mut objects, mut descs) = (Vec::new(), Vec::new(), Vec::new());
        for info in infos {
            if info.recurrent || info.window >= 0 {
                return Err(unsupported(
                    "layers with a window or a state are not transferred in this version",
                )
                .with("engine_group_id", info.id));
            }
            let group = group(info, &layers, &mut objects)?;
            if info.block_tokens != 0 && info.block_tokens as u64 != group.tokens {
                return Err(invalid(
                    format!("a block of these tensors has {} tokens", group.tokens),
                    "tokens_per_block",
                    info.block_tokens,
                ));
            }
            if !(chunk_tokens as u64).is_multiple_of(group.tokens) {
                return Err(invalid(
                    format!("a chunk of {chunk_tokens} tokens has to be whole blocks"),
                    "tokens_per_block",
                    group.tokens,
                ));
            }
            let mut shape =
                vec![group.tensors.len() as u64, chunk_tokens as u64, group.row() / group.dtype.size()];
            if group.planes == 2 {
                shape.insert(0, 2);
            }
            descs.push(TensorDesc { dtype: group.dtype, shape });
            groups.push(group);
        }
        Ok(Self { groups, objects, layout: Layout::new(descs)? })
    }

    /// Blocks per chunk, by group.
    pub(crate) fn blocks_per_chunk(&self, chunk_tokens: usize) -> Vec<usize> {
        self.groups.iter().map(|g| chunk_tokens / g.tokens as usize).collect()
    }

    /// Checks that each group has blocks for so many chunks, all of which exist.
    ///
    /// # Errors
    /// `Invalid` otherwise: nothing may be read or written then.
    pub(crate) fn check_blocks(&self, blocks: &[Vec<i64>], chunks: usize, chunk_tokens: usize) -> Result<()> {
        const OP: &str = "transfer blocks";
        if blocks.len() != self.groups.len() {
            let e = Error::invalid(OP, "there is one list of blocks for each group");
            return Err(e.with("groups", self.groups.len()).with("block_ids", blocks.len()));
        }
        for ((ids, group), per_chunk) in
            blocks.iter().zip(&self.groups).zip(self.blocks_per_chunk(chunk_tokens))
        {
            if ids.len() < chunks * per_chunk {
                let e = Error::invalid(OP, "there are too few blocks for the range");
                return Err(e.with("expected", chunks * per_chunk).with("block_ids", ids.len()));
            }
            let bad = |id: &&i64| u64::try_from(**id).map_or(true, |id| id >= group.blocks);
            if let Some(id) = ids.iter().find(bad) {
                let e = Error::invalid(OP, "no such block was registered");
                return Err(e.with("block_id", id).with("blocks", group.blocks));
            }
        }
        Ok(())
    }
}

fn group(info: &EngineGroup, layers: &Layers, objects: &mut Vec<(String, u64)>) -> Result<Group> {
    let mut whole: Option<Group> = None;
    for layer in &info.layers {
        let planes = usize::try_from(*layer).ok().and_then(|i| layers.of.get(i));
        let planes = planes.ok_or_else(|| invalid("no such layer was registered", "layer_indices", layer))?;
        for (i, tensor) in planes.iter().enumerate() {
            let bytes = u64::try_from(tensor.bytes)
                .map_err(|_| invalid("that is no size", "nbytes", tensor.bytes))?;
            let object = (tensor.shm_name.clone(), bytes);
            let at = objects.iter().position(|o| *o == object).unwrap_or_else(|| {
                objects.push(object);
                objects.len() - 1
            });
            let mut one = shape(tensor, at, bytes, layers.heads_first)?;
            if planes.len() > 1 {
                // Keys and values are tensors of their own.
                if one.planes != 1 {
                    return Err(invalid(
                        "a tensor of keys or of values has one plane",
                        "shape",
                        format_args!("{:?}", tensor.shape),
                    ));
                }
                one.planes = planes.len() as u64;
                one.tensors[0].blocks_first = false;
            }
            let Some(group) = &mut whole else {
                whole = Some(one);
                continue;
            };
            let stride = |g: &Group| g.tensors[0].block_stride;
            let alike = Group { tensors: Vec::new(), ..group.clone() };
            if alike != (Group { tensors: Vec::new(), ..one.clone() })
                || (i > 0 && stride(group) != stride(&one))
            {
                return Err(invalid("the tensors of a group have one shape", "layer_indices", layer));
            }
            match group.tensors.last_mut().filter(|_| i > 0) {
                Some(keys) => keys.planes.append(&mut one.tensors[0].planes),
                None => group.tensors.append(&mut one.tensors),
            }
        }
    }
    whole.ok_or_else(|| invalid("a group has layers", "engine_group_id", info.id))
}

/// One tensor as a group of its own.
fn shape(t: &DeviceTensor, object: usize, object_bytes: u64, heads_first: bool) -> Result<Group> {
    let dtype = torch_dtype(&t.dtype).ok_or_else(|| {
        invalid("that is no element type this server knows by torch's name", "dtype", &t.dtype)
    })?;
    let odd = || {
        invalid("no layout that is known here has this shape", "shape", format_args!("{:?}", t.shape))
            .with("stride", format_args!("{:?}", t.stride))
    };
    let size = dtype.size();
    // What is multiplied below is each at most 2^40.
    let small = |n: &i64| u64::try_from(*n).ok().filter(|n| *n <= 1 << 40);
    let extent: Vec<u64> = t.shape.iter().map(small).collect::<Option<_>>().ok_or_else(odd)?;
    let stride: Vec<u64> = t.stride.iter().map(small).collect::<Option<_>>().ok_or_else(odd)?;
    if extent.len() != stride.len() || extent.contains(&0) {
        return Err(odd());
    }
    // Which axes are planes and blocks; what follows is the inside of a block.
    let (plane, block, inner) = match extent.len() {
        5 if extent[0] == 2 => (Some(0), 1, 2),
        5 if extent[1] == 2 => (Some(1), 0, 2),
        3 | 4 => (None, 0, 1),
        _ => return Err(odd()),
    };
    let inside = &extent[inner..];
    let (tokens, heads, head, token_stride, head_stride) = match *inside {
        [tokens, head] => (tokens, 1, head, stride[inner], head),
        [heads, tokens, head] if heads_first => (tokens, heads, head, stride[inner + 1], stride[inner]),
        [tokens, heads, head] => (tokens, heads, head, stride[inner], stride[inner + 1]),
        _ => return Err(odd()),
    };
    if *stride.last().expect("there are axes") != 1 {
        return Err(odd());
    }
    let times = |a: u64, b: u64| a.checked_mul(b).ok_or_else(odd);
    let row = times(heads, head)?;
    // An axis of one index has no stride that matters.
    let is = |extent: u64, stride: u64, wanted: u64| extent == 1 || stride == wanted;
    let token_major = is(tokens, token_stride, row) && is(heads, head_stride, head);
    let head_major = is(tokens, token_stride, head) && is(heads, head_stride, times(tokens, head)?);
    if !token_major && !head_major {
        return Err(odd());
    }
    let (planes, plane_stride) = plane.map_or((1, 0), |p| (2, stride[p]));
    let (block_stride, blocks) = (stride[block], extent[block]);
    let piece = times(tokens, row)?;
    let last = times(planes - 1, plane_stride)?
        .checked_add(times(blocks - 1, block_stride)?)
        .and_then(|n| n.checked_add(piece))
        .ok_or_else(odd)?;
    let begin = times(small(&t.offset).ok_or_else(odd)?, size)?;
    if begin.checked_add(times(last, size)?).is_none_or(|end| end > object_bytes) {
        return Err(invalid("the tensor is larger than its shared memory", "nbytes", object_bytes)
            .with("shape", format_args!("{:?}", t.shape)));
    }
    let tensor = Tensor {
        planes: (0..planes).map(|p| (object, begin + p * plane_stride * size)).collect(),
        blocks_first: block == 0,
        block_stride: block_stride * size,
    };
    Ok(Group {
        tensors: vec![tensor],
        dtype,
        blocks,
        planes,
        tokens,
        heads,
        head_bytes: times(head, size)?,
        heads_first: !token_major,
    })
}
