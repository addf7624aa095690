//! Valid inputs of every decoder, made by the encoders where there is one.

use kvstrata_core::{
    ChunkHash, DType, Digest, KeyScope, KvRank, Layout, Namespace, ObjectKey, TensorDesc, encode,
};
use kvstrata_disk::{Header, Manifest};
use kvstrata_server::wire::{Operation, read_request};
use kvstrata_testkit::trace::{self, Synthetic};

pub(crate) fn of(target: &str) -> Vec<Vec<u8>> {
    let texts = |all: &[&str]| all.iter().map(|t| t.as_bytes().to_vec()).collect();
    match target {
        "key" => keys().iter().map(encoded).collect(),
        "header" => keys().into_iter().enumerate().map(|(i, key)| block(key, i as u64)).collect(),
        "manifest" => manifests(),
        "snapshot" => indexes(),
        "slab_log" => heads(include_bytes!("../../../crates/disk/tests/golden/slab-log-v1.bin"), 192),
        "slab_snapshot" => {
            heads(include_bytes!("../../../crates/disk/tests/golden/slab-snapshot-v1.bin"), 4096)
        }
        "trace" => traces(),
        "config_file" => texts(&FILES),
        "config_flags" => texts(&FLAGS),
        "adapter" => texts(&ADAPTERS),
        "lmcache" => texts(&LMCACHE),
        "zmtp" => streams(),
        "lmcache_wire" => requests(),
        other => panic!("no target {other}"),
    }
}

/// All of it, half of it, and its head alone, in whole units.
fn heads(golden: &[u8], unit: usize) -> Vec<Vec<u8>> {
    let half = golden.len() / unit / 2 * unit;
    [golden.len(), half, unit].map(|len| golden[..len].to_vec()).to_vec()
}

/// The messages that LMCache encoded, for those operations that are served.
fn requests() -> Vec<Vec<u8>> {
    let text = include_str!("../../../crates/server/tests/data/lmcache-0.5.6-zmq.json");
    let vectors: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let unhex = |t: &serde_json::Value| -> Vec<u8> {
        let t = t.as_str().expect("hex");
        (0..t.len()).step_by(2).map(|i| u8::from_str_radix(&t[i..i + 2], 16).expect("hex")).collect()
    };
    let mut all = Vec::new();
    for (i, op) in Operation::ALL.iter().enumerate() {
        let Some(parts) = vectors["operations"][op.name()]["request"].as_array() else { continue };
        let arguments: Vec<bytes::Bytes> = parts[2..].iter().map(|p| unhex(p).into()).collect();
        if read_request(*op, &arguments).is_ok() {
            let mut data = vec![i as u8];
            for argument in arguments {
                data.extend_from_slice(&(argument.len() as u16).to_be_bytes());
                data.extend_from_slice(&argument);
            }
            all.push(data);
        }
    }
    all
}

/// Connections: greeting, handshake, and messages short, long, of several parts, with a ping between.
fn streams() -> Vec<Vec<u8>> {
    let stream = |messages: &[&[&[u8]]]| {
        let mut out = bytes::BytesMut::from(&kvstrata_zmtp::greeting()[..]);
        kvstrata_zmtp::ready("DEALER", &mut out);
        messages.iter().for_each(|m| kvstrata_zmtp::message_into(m, &mut out));
        out.to_vec()
    };
    let ping = b"\x04\x0d\x04PING\0\x0acontext".as_slice();
    let mut pinged = stream(&[&[b"a"]]);
    pinged.extend_from_slice(&ping[..ping.len() - 1]);
    vec![
        stream(&[&[b"\0", b"\x18"]]),
        stream(&[&[b"\x01", b"\x16", b"\xc0"], &[b""], &[&[7; 300], &[8; 255]]]),
        pinged,
    ]
}

fn keys() -> Vec<ObjectKey> {
    let key = |model: &str, rank, group, salt: &str, hash: &[u8]| {
        let scope = KeyScope::new(model, rank, group, salt).expect("a scope");
        ObjectKey::new(&scope, ChunkHash::new(hash).expect("a hash"))
    };
    vec![
        key("m", KvRank::single(), 0, "", &[0]),
        key("org/model", KvRank::new(8, 5, 4, 1).expect("a rank"), 11, "tenant", &[0xab; 32]),
        key(
            "мо\u{1F600}",
            KvRank::new(255, 254, 255, 254).expect("a rank"),
            u32::MAX,
            "\u{1F600}",
            &[0xff; 64],
        ),
    ]
}

fn encoded(key: &ObjectKey) -> Vec<u8> {
    let mut out = Vec::new();
    encode::encode_key(key, &mut out);
    out
}

/// Up to the checksum a header is mostly zero; the target puts those and the checksum in.
fn block(key: ObjectKey, n: u64) -> Vec<u8> {
    let header = Header {
        key,
        len: 1 + n * 5000,
        layout: Layout::opaque(5).expect("a layout").id(),
        digest: (n > 0).then(|| Digest::from_u64(n)),
        generation: n,
        namespace: n as u32,
    };
    header.encode().bytes().to_vec()
}

fn manifests() -> Vec<Vec<u8>> {
    let namespace = |model: &str, shape: &[u64]| Namespace {
        model: model.into(),
        world_size: 8,
        chunk_tokens: 256,
        hash_schema: 1,
        layout: Layout::new(vec![TensorDesc { dtype: DType::BF16, shape: shape.to_vec() }])
            .expect("a layout"),
    };
    let two = vec![namespace("org/a", &[2, 32, 256, 8, 128]), namespace("b", &[1])];
    let of = |namespaces: &[Namespace]| {
        Manifest { store_id: 0xfeed, namespaces: namespaces.to_vec(), tmp: None, segment: None }.encode()
    };
    vec![of(&[]), of(&two[..1]), of(&two)]
}

/// The golden snapshot; the same with fewer objects, and with none.
fn indexes() -> Vec<Vec<u8>> {
    let golden = include_bytes!("../../../crates/disk/tests/golden/index-v1.bin");
    (0..=3u64)
        .map(|objects| {
            let mut bytes = golden[..golden.len() - 8 - 128 * (3 - objects as usize)].to_vec();
            bytes[52..60].copy_from_slice(&objects.to_le_bytes());
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            bytes
        })
        .collect()
}

fn traces() -> Vec<Vec<u8>> {
    let made = |seed, requests| {
        let mut out = Vec::new();
        let requests = Synthetic { seed, requests, ..Synthetic::default() }.generate().expect("a trace");
        trace::write(&mut out, requests).expect("memory");
        out
    };
    let by_hand = b"\n {\"hash_ids\":[],\"x\":{},\"timestamp\":0,\"input_length\":0,\"output_length\":18446744073709551615}\r\n";
    vec![made(1, 3), made(2, 8), by_hand.to_vec()]
}

const FILES: [&str; 6] = [
    "toml\nchunk_size = 64\n[l1]\nsize = \"2GiB\"\nprefault = true\n[[l2.adapters]]\ntype = \"mock\"\nmax_size_gb = 1\nmock_bandwidth_gb = 2.5\n",
    "toml\n[eviction]\npolicy = \"IsolatedLRU\"\nquotas = { a = \"1GiB\", b = 2 }\n[deadlines]\nload_timeout = \"250ms\"\n",
    "yaml\nchunk_size: 256\nlocal_cpu: true\nmax_local_cpu_size: 4.0\nremote_url: null\nextra_config: {}\n",
    "yaml\nl1:\n  size: 1GiB\nl2:\n  adapters:\n    - {type: fs, base_path: /tmp/kv, max_capacity_gb: 1}\n    - type: mock\n      max_size_gb: 1\n      mock_bandwidth_gb: 1\n",
    "json\n{\"l1\": {\"size\": 1073741824}, \"store\": {\"policy\": \"skip_l1\", \"retries\": 3}, \"eviction\": {\"policy\": \"noop\"}, \"l2\": {\"adapters\": [{\"type\": \"mock\", \"max_size_gb\": 1, \"mock_bandwidth_gb\": 1}]}}",
    "json\n{\"local_cpu\": false, \"use_only_staging_buffer\": true, \"l2\": {\"adapters\": [{\"type\": \"mock\", \"max_size_gb\": 1, \"mock_bandwidth_gb\": 1}]}}",
];

const FLAGS: [&str; 4] = [
    "l1-size-gb=0.5\nchunk-size=16\nl1-prefault\n",
    "--no-digests\neviction-policy=LRU\nl2-adapter={\"type\":\"mock\",\"max_size_gb\":1,\"mock_bandwidth_gb\":1}\n",
    "eviction-policy=IsolatedLRU\neviction-quotas=a=1GiB\neviction-quotas=b=2GiB\nl1-size-gb=8\n",
    "local_disk=file:///tmp/kv\nmax_local_disk_size=1\nblocking_timeout_secs=2\n",
];

const ADAPTERS: [&str; 4] = [
    "{\"type\":\"mock\",\"max_size_gb\":1.5,\"mock_bandwidth_gb\":20,\"name\":\"m\",\"weight\":2}",
    "{\"type\":\"fs\",\"base_path\":\"/tmp/kv\",\"max_capacity_gb\":10,\"num_workers\":4,\"use_odirect\":true,\"eviction_policy\":\"LRU\"}",
    "{\"type\":\"fault_inject\",\"inner\":{\"type\":\"mock\",\"max_size_gb\":1,\"mock_bandwidth_gb\":1},\"rate\":0.5,\"seed\":7}",
    "{\"type\":\"fs\",\"base_path\":\"/tmp/kv\",\"quotas\":{\"a\":\"512MiB\"},\"default_quota_gb\":\"1GiB\",\"eviction_policy\":\"IsolatedLRU\",\"max_capacity_gb\":4}",
];

/// Names of both versions, places of number and byte hashes, and a header.
const LMCACHE: [&str; 9] = [
    "org-SEP-model@0x08050805@b@abababababababababababababababababababababababababababababababab@tenant.data",
    "m@0x01000100@0@abab.data",
    "m@0x01000100@abababababababab@cdcd.data",
    "12/34/meta-llama%2FLlama-3.1-8B%408%405%40ab54a98ceb1f0ad2%40bfloat16.kvcache.safetensors",
    "-5/m%401%400%40-5%40half.weka1",
    "b'/zq/m%401%400%407a71207265737400ff%40fp8_e5m2%4031.weka1",
    r#"{"kvcache": {"dtype": "BF16", "shape": [2, 32, 256, 1024], "data_offsets": [0, 33554432], "fmt": 1, "__metadata__": {"lmcache_version": "1"}}}"#,
    r#"{"kvcache": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "fmt": 8, "__metadata__": {"lmcache_version": "1", "kvstrata_digest": "00000000000000ff"}}}"#,
    r#"{"kvcache": {"dtype": "F8E5M2", "shape": [1, 2, 3, 4, 5, 6, 7, 8], "data_offsets": [0, 40320], "fmt": 0, "__metadata__": {"lmcache_version": "1", "x": [1]}}}"#,
];
