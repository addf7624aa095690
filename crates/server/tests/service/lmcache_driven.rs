//! Transfers by the server, over an engine's paged memory that is a file in /dev/shm.

use super::*;
use kvstrata_server::api::{DeviceTensor, EngineGroup, Hint, LmcacheDriven};
use std::path::PathBuf;

const BLOCKS: usize = 12;
/// Two blocks are a chunk.
const BLOCK: usize = CHUNK / 2;

/// A layout of vLLM's: extents, the axis of blocks, and the hint that goes with it.
struct Shape {
    extent: Vec<i64>,
    blocks: usize,
    hint: &'static str,
}

fn shapes() -> Vec<Shape> {
    let (n, b) = (BLOCKS as i64, BLOCK as i64);
    vec![
        Shape { extent: vec![2, n, b, 4, 8], blocks: 1, hint: "NHD" },
        Shape { extent: vec![2, n, 4, b, 8], blocks: 1, hint: "HND" },
        Shape { extent: vec![n, 2, b, 4, 8], blocks: 0, hint: "NHD" },
        Shape { extent: vec![n, 2, 4, b, 8], blocks: 0, hint: "HND" },
        Shape { extent: vec![n, b, 4, 16], blocks: 0, hint: "BLNHC" },
        Shape { extent: vec![n, 4, b, 16], blocks: 0, hint: "HND" },
        Shape { extent: vec![n, b, 48], blocks: 0, hint: "NHD" },
    ]
}

/// An engine's memory: two layers of one shape.
struct Memory {
    path: PathBuf,
    file: File,
    shape: Shape,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Memory {
    fn new(shape: Shape) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/dev/shm/lmcache_kv_{}_{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let this = Self { path, file, shape };
        let bytes: Vec<u8> = (0..this.layer() * 2).map(|i| (i * 31 % 251) as u8).collect();
        this.file.write_all_at(&bytes, 0).unwrap();
        this
    }

    /// Bytes of a layer of 2-byte elements.
    fn layer(&self) -> usize {
        self.shape.extent.iter().product::<i64>() as usize * 2
    }

    fn register(&self, instance: i64) -> LmcacheDriven {
        let mut stride = vec![1; self.shape.extent.len()];
        for i in (1..stride.len()).rev() {
            stride[i - 1] = stride[i] * self.shape.extent[i];
        }
        let tensor = |layer: usize| DeviceTensor {
            kind: "cpu_shm".into(),
            shm_name: format!("/{}", self.path.file_name().unwrap().to_str().unwrap()),
            bytes: self.layer() as i64 * 2,
            dtype: "float16".into(),
            shape: self.shape.extent.clone(),
            stride: stride.clone(),
            offset: (layer * self.layer() / 2) as i64,
            device: "cpu".into(),
        };
        LmcacheDriven {
            instance,
            tensors: vec![tensor(0), tensor(1)],
            model: "m".into(),
            world_size: 1,
            engine: "vllm".into(),
            hints: vec![("kv_layout".into(), self.shape.hint.into())],
            groups: vec![EngineGroup {
                id: 0,
                layers: vec![0, 1],
                block_tokens: BLOCK as i64,
                window: -1,
                tag: 0,
                recurrent: false,
            }],
        }
    }

    /// The pieces of a block, over layers and planes.
    fn block(&self, id: usize) -> Vec<Vec<u8>> {
        let planes = if self.shape.extent.len() == 5 { 2 } else { 1 };
        let piece = self.layer() / BLOCKS / planes;
        let mut pieces = Vec::new();
        for layer in 0..2 {
            for plane in 0..planes {
                let at = if self.shape.blocks == 0 { id * planes + plane } else { plane * BLOCKS + id };
                let mut bytes = vec![0; piece];
                self.file.read_exact_at(&mut bytes, (layer * self.layer() + at * piece) as u64).unwrap();
                pieces.push(bytes);
            }
        }
        pieces
    }
}

impl World {
    async fn moved(&self, request: Request) -> bool {
        let answer = match self.service.call(ME, request) {
            Ok(Answer::Now(reply)) => reply,
            Ok(Answer::Later(later)) => match later.await {
                Ok(reply) => reply,
                Err(_) => return false,
            },
            _ => return false,
        };
        answer == Reply::Transferred(true)
    }
}

fn store(k: &Key, instance: i64, blocks: &[i64]) -> Request {
    Request::Store { key: k.clone(), instance, blocks: vec![blocks.to_vec()], event: b"e".to_vec() }
}

fn retrieve(k: &Key, instance: i64, blocks: &[i64], skip: usize) -> Request {
    let blocks = vec![blocks.to_vec()];
    Request::Retrieve { key: k.clone(), instance, blocks, event: b"e".to_vec(), skip: skip as i64 }
}

#[tokio::test]
async fn blocks_of_every_layout_come_back_where_they_are_wanted_and_nowhere_else() {
    for shape in shapes() {
        let w = world();
        let name = format!("{:?} {}", shape.extent, shape.hint);
        let memory = Memory::new(shape);
        assert_eq!(w.now(Request::RegisterKvCache(Box::new(memory.register(1)))), Reply::None, "{name}");
        let k = key(1, 2, "a", Some(0));
        let stored: Vec<_> = [3, 4, 9, 1].iter().map(|id| memory.block(*id)).collect();
        assert!(w.moved(store(&k, 1, &[3, 4, 9, 1])).await, "{name}");
        assert_eq!(w.hits(&k), 2, "{name}");
        let others: Vec<_> = (0..BLOCKS).map(|id| memory.block(id)).collect();
        assert!(w.moved(retrieve(&k, 1, &[7, 2, 5, 6], 0)).await, "{name}");
        for (id, other) in others.iter().enumerate() {
            let wanted = [7, 2, 5, 6].iter().position(|to| *to == id).map_or(other, |i| &stored[i]);
            assert_eq!(&memory.block(id), wanted, "{name}: block {id}");
        }
        w.end("a");
        // All but the first tokens: a whole block and half of the next one stay as they are.
        let k = Key { request: "b".into(), ..k };
        assert_eq!(w.hits(&k), 2);
        let before = memory.block(10);
        assert!(w.moved(retrieve(&k, 1, &[11, 10, 0, 8], BLOCK + BLOCK / 2)).await, "{name}");
        assert_eq!(memory.block(11), others[11], "{name}");
        assert_eq!((memory.block(0), memory.block(8)), (stored[2].clone(), stored[3].clone()), "{name}");
        let heads_first = memory.shape.hint == "HND";
        for ((now, before), stored) in memory.block(10).iter().zip(&before).zip(&stored[1]) {
            let heads = if heads_first { 4 } else { 1 };
            let of_head = now.len() / heads;
            for head in 0..heads {
                let (half, end) = (head * of_head + of_head / 2, (head + 1) * of_head);
                assert_eq!(now[head * of_head..half], before[head * of_head..half], "{name}");
                assert_eq!(now[half..end], stored[half..end], "{name}");
            }
        }
        w.end("b");
        w.assert_nothing_held();
        let sums = w.service.checksums(1, &[3, 5], 1, false).unwrap();
        assert_eq!(sums[0].len(), 2);
        assert_eq!(w.service.checksums(1, &[9], 1, true).unwrap().len(), 2);
        let same = w.service.checksums(1, &[5], 1, false).unwrap();
        assert_eq!(w.service.checksums(1, &[9], 1, false).unwrap(), same, "the third of both");
        w.now(Request::UnregisterKvCache(1));
        assert_eq!(w.service.checksums(1, &[0], 1, false).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

/// The shape of tensors, how many there are, and the hints that go with them.
type Hinted = (Vec<i64>, usize, Vec<(String, Hint)>);

/// SGLang's tensors, over the same memory.
fn sglang() -> Vec<Hinted> {
    let (n, b) = (BLOCKS as i64, BLOCK as i64);
    let list = |kind: &str| ("kv_list_layout".to_owned(), Hint::from(kind));
    let block = || ("tokens_per_block".to_owned(), Hint::from(b));
    vec![
        (vec![n * b, 4, 8], 6, vec![list("k_v"), block()]),
        // Its only head is no sign of MLA, which the hint says.
        (vec![n * b, 1, 8], 4, vec![list("k_v"), block()]),
        (vec![n * b, 1, 48], 3, vec![block()]),
        (vec![n, b, 48], 3, vec![list("unified")]),
        (vec![n, b, 4, 16], 2, vec![list("unified"), block()]),
    ]
}

#[tokio::test]
async fn sglangs_lists_of_tensors_come_back_where_they_are_wanted() {
    for (shape, count, hints) in sglang() {
        let w = world();
        let name = format!("{shape:?} {hints:?}");
        let elements: i64 = shape.iter().product();
        let of_tensor = elements as usize * 2;
        let whole = Shape { extent: vec![2, BLOCKS as i64, BLOCK as i64, 4, 8], blocks: 1, hint: "NHD" };
        let memory = Memory::new(whole);
        let bytes: Vec<u8> = (0..of_tensor * count).map(|i| (i * 31 % 251) as u8).collect();
        memory.file.set_len(bytes.len() as u64).unwrap();
        memory.file.write_all_at(&bytes, 0).unwrap();
        let mut r = memory.register(1);
        let mut stride = vec![1; shape.len()];
        for i in (1..stride.len()).rev() {
            stride[i - 1] = stride[i] * shape[i];
        }
        r.tensors = (0..count)
            .map(|i| DeviceTensor {
                bytes: bytes.len() as i64,
                shape: shape.clone(),
                stride: stride.clone(),
                offset: i as i64 * elements,
                ..r.tensors[0].clone()
            })
            .collect();
        (r.engine, r.hints, r.groups) = ("sglang".into(), hints, Vec::new());
        assert_eq!(w.now(Request::RegisterKvCache(Box::new(r))), Reply::None, "{name}");
        // A block of a tensor lies together in all of them.
        let block = |tensor: usize, id: usize| {
            let of_block = of_tensor / BLOCKS;
            let mut bytes = vec![0; of_block];
            memory.file.read_exact_at(&mut bytes, (tensor * of_tensor + id * of_block) as u64).unwrap();
            bytes
        };
        let all = || (0..count).flat_map(|t| (0..BLOCKS).map(move |id| (t, id))).map(|(t, id)| block(t, id));
        let before: Vec<_> = all().collect();
        let k = key(1, 2, "a", Some(0));
        assert!(w.moved(store(&k, 1, &[3, 4, 9, 1])).await, "{name}");
        assert_eq!(w.hits(&k), 2, "{name}");
        assert!(w.moved(retrieve(&k, 1, &[7, 2, 5, 6], 0)).await, "{name}");
        for (i, now) in all().enumerate() {
            let (tensor, id) = (i / BLOCKS, i % BLOCKS);
            let from = [7, 2, 5, 6].iter().position(|to| *to == id).map_or(id, |at| [3, 4, 9, 1][at]);
            assert_eq!(now, before[tensor * BLOCKS + from], "{name}: tensor {tensor}, block {id}");
        }
        w.end("a");
        w.assert_nothing_held();
    }
}

#[tokio::test]
async fn a_transfer_that_cannot_be_is_refused_and_changes_nothing() {
    let w = world();
    let memory = Memory::new(shapes().remove(0));
    let good = memory.register(1);
    type Change = fn(&mut LmcacheDriven);
    let bad: [(&str, Change); 18] = [
        ("type", |r| r.tensors[0].kind = "cuda".into()),
        ("engine_type", |r| r.engine = "trtllm".into()),
        ("kv_list_layout", |r| r.engine = "sglang".into()),
        ("kv_list_layout", |r| {
            r.engine = "sglang".into();
            r.hints = vec![("kv_list_layout".into(), "v_k".into()), ("tokens_per_block".into(), 8.into())];
        }),
        ("tokens_per_block", |r| {
            r.engine = "sglang".into();
            r.hints = vec![("tokens_per_block".into(), 0.into())];
        }),
        ("axis of tokens", |r| {
            r.engine = "sglang".into();
            r.hints = vec![("kv_list_layout".into(), "k_v".into()), ("tokens_per_block".into(), 8.into())];
        }),
        ("shm_name", |r| r.tensors[0].shm_name = "/lmcache_l1_pool_x".into()),
        ("shm_name", |r| r.tensors[0].shm_name = "/lmcache_kv_../../etc/passwd".into()),
        ("shm_name", |r| r.tensors[0].shm_name = "/lmcache_kv_nobody_has_this".into()),
        ("shm_name", |r| r.tensors.iter_mut().for_each(|t| t.bytes *= 2)),
        ("nbytes", |r| r.tensors[0].bytes = 100),
        ("shape", |r| r.tensors[0].shape[1] = -1),
        ("shape", |r| r.tensors[0].stride[4] = 2),
        ("nbytes", |r| r.tensors[0].shape[1] = 1 << 40),
        ("dtype", |r| r.tensors[0].dtype = "complex64".into()),
        ("layer_indices", |r| r.groups[0].layers = vec![0, 7]),
        ("engine_group_id", |r| r.groups[0].window = 128),
        ("tokens_per_block", |r| r.groups[0].block_tokens = 7),
    ];
    for (field, change) in bad {
        let mut r = good.clone();
        change(&mut r);
        let e = w.service.call(ME, Request::RegisterKvCache(Box::new(r))).unwrap_err();
        assert!(e.to_string().contains(field), "{field}: {e}");
    }
    let k = key(1, 2, "a", Some(0));
    assert!(!w.moved(store(&k, 1, &[1, 2, 3, 4])).await, "nobody registered");
    w.now(Request::RegisterKvCache(Box::new(good)));
    for blocks in [vec![1, 2, 3], vec![1, 2, 3, BLOCKS as i64], vec![1, 2, -3, 4]] {
        assert!(!w.moved(store(&k, 1, &blocks)).await, "{blocks:?}");
        assert!(!w.moved(retrieve(&k, 1, &blocks, 0)).await, "{blocks:?}");
    }
    assert!(!w.moved(retrieve(&k, 1, &[1, 2, 3, 4], 0)).await, "nothing is there");
    assert!(w.moved(store(&k, 1, &[0, 0, 3, 4])).await, "blocks that stand for none are no chunk");
    assert_eq!(w.hits(&k), 0, "the first chunk was none");
    assert!(!w.moved(retrieve(&k, 1, &[1, 2, 3, 4], 3 * CHUNK)).await, "more is skipped than there is");
    // The memory is cut short under the server.
    memory.file.set_len(64).unwrap();
    let other = key(2, 2, "b", Some(0));
    assert!(!w.moved(store(&other, 1, &[1, 2, 3, 4])).await);
    assert_eq!(w.hits(&other), 0);
    ["a", "b"].iter().for_each(|s| w.end(s));
    w.assert_nothing_held();
}

#[tokio::test]
async fn a_store_whose_client_goes_is_never_published_and_its_memory_is_closed() {
    let w =
        world_with(4, Options { disconnect_grace: Duration::from_millis(20), ..Options::default() }, None);
    let memory = Memory::new(shapes().remove(0));
    w.now(Request::RegisterKvCache(Box::new(memory.register(1))));
    let k = key(1, 2, "a", Some(0));
    let Ok(Answer::Later(later)) = w.service.call(ME, store(&k, 1, &[1, 2, 3, 4])) else { panic!("a copy") };
    drop(later);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(w.hits(&k), 0);
    assert_eq!(w.service.status().counts.stores_aborted, 1);
    w.end("a");
    let open = || {
        let name = memory.path.clone();
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == name)).count()
    };
    assert_eq!(open(), 2, "this test's own, and the server's");
    w.service.disconnected(ME);
    for _ in 0..200 {
        if open() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((open(), w.service.status().workers.len()), (1, 0));
    w.assert_nothing_held();
}
