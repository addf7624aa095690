//! Naming and checking bytes: the chain of chunk hashes, and the digest of a payload, beside copying the same bytes.
//!
//! `cargo bench -p kvstrata-benches --bench hashing` measures with criterion. With `--figures FILE` the operations take
//! turns, so that the ratios are of the same moment, and the file gets them as a table.
//!
//! The copy reads and writes every byte; both others only read. Up to 1 MiB all of it stays in the processor's caches; 16
//! MiB do not.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use kvstrata_benches::{Bar, Chart, Figures, append, asked_for, in_turn, least, median};
use kvstrata_core::chunk::ChunkHasher;
use kvstrata_core::{ChunkHash, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_l2::digest_of;
use kvstrata_mem::{Allocate, HeapRegion, ReadBuf, Slab};

const SIZES: [(&str, usize); 3] = [("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)];
/// Tokens of a prompt; a chunk has 256 of them.
const TOKENS: usize = 32 << 10;

/// A payload to look at, and where a copy of it goes.
struct Payload {
    key: ObjectKey,
    layout: Layout,
    buf: ReadBuf,
    copy: Vec<u8>,
}

impl Payload {
    fn new(len: usize) -> Self {
        let slab = Slab::new(vec![HeapRegion::new(len).expect("memory")]).expect("a region");
        let mut buf = slab.pool("payload", len as u64).reserve(len, 4096).expect("an empty pool");
        let bytes: Vec<u8> =
            (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        buf.write_at(0, &bytes).expect("in bounds");
        let scope = KeyScope::new("model", KvRank::single(), 0, "").expect("good");
        let key = ObjectKey::new(&scope, ChunkHash::from([7; 32]));
        let layout = Layout::opaque(len as u64).expect("good");
        Self { key, layout, buf: buf.seal(len), copy: vec![0; len] }
    }

    fn copy(&mut self) {
        self.copy.copy_from_slice(black_box(self.buf.as_slice().expect("private memory")));
        black_box(&self.copy);
    }

    fn digest(&self) {
        black_box(digest_of(&self.key, self.layout.id(), &self.buf).expect("host memory"));
    }
}

/// A prompt as tokens and as bytes, and where a copy of it goes.
struct Prompt {
    hasher: ChunkHasher,
    tokens: Vec<u32>,
    copy: Vec<u32>,
}

impl Prompt {
    fn new() -> Self {
        let tokens = (0..TOKENS as u32).map(|i| i.wrapping_mul(0x9E37_79B9) >> 15).collect();
        Self { hasher: ChunkHasher::lmcache(256).expect("good"), tokens, copy: vec![0; TOKENS] }
    }

    fn copy(&mut self) {
        self.copy.copy_from_slice(black_box(&self.tokens));
        black_box(&self.copy);
    }

    fn hash(&self) {
        self.hasher.hashes(black_box(&self.tokens)).for_each(|h| {
            black_box(h);
        });
    }
}

fn measured(c: &mut Criterion) {
    for (size, len) in SIZES {
        let mut payload = Payload::new(len);
        let mut group = c.benchmark_group(format!("digest/{size}"));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function("memcpy", |b| b.iter(|| payload.copy()));
        group.bench_function("digest", |b| b.iter(|| payload.digest()));
        group.finish();
    }
    let mut prompt = Prompt::new();
    let mut group = c.benchmark_group("chunk hashes/32768 tokens");
    group.throughput(Throughput::Bytes(4 * TOKENS as u64));
    group.bench_function("memcpy", |b| b.iter(|| prompt.copy()));
    group.bench_function("blake3 chain", |b| b.iter(|| prompt.hash()));
    group.finish();
}

/// One row: what is done to so many bytes, beside copying them.
fn row(table: &mut Figures, what: &str, bytes: usize, times: &[Vec<f64>]) {
    let gbps = |seconds: f64| bytes as f64 / 1e9 / seconds;
    let ratio = median(times[0].iter().zip(&times[1]).map(|(copy, other)| copy / other).collect());
    let (copy, other) = (gbps(least(&times[0])), gbps(least(&times[1])));
    table.rows.push(vec![what.into(), format!("{other:.1}"), format!("{copy:.1}"), format!("{ratio:.2}")]);
    for (label, value) in [("this", other), ("memcpy", copy)] {
        table.charts[0].bars.push(Bar { group: what.into(), label: label.into(), value });
    }
}

fn figures() -> Figures {
    let mut table = Figures::new("hashing", &["what", "GB/s", "memcpy GB/s", "to memcpy, same round"]);
    table.charts.push(Chart {
        title: "Digest and chunk hashes beside memcpy".into(),
        unit: "GB/s".into(),
        bars: Vec::new(),
    });
    for (size, len) in SIZES {
        let payload = Payload::new(len);
        let mut other = Payload::new(len);
        // A round of each takes some milliseconds.
        let times = (64 << 20) / len;
        let took = in_turn(31, times, &mut [&mut || other.copy(), &mut || payload.digest()]);
        row(&mut table, &format!("digest of {size}"), len, &took);
    }
    let (prompt, mut other) = (Prompt::new(), Prompt::new());
    let took = in_turn(31, 64, &mut [&mut || other.copy(), &mut || prompt.hash()]);
    row(&mut table, "hashes of 128 chunks of 256 tokens", 4 * TOKENS, &took);
    table
}

fn main() -> ExitCode {
    if let Some(path) = asked_for() {
        if let Err(e) = append(&[figures()], Some(&path)) {
            eprintln!("{}: {e}", path.display());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    measured(&mut criterion);
    criterion.final_summary();
    ExitCode::SUCCESS
}
