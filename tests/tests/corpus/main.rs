//! The corpus of the fuzz targets, and some thousand mutations of it, through every decoder: what `cargo fuzz` looks for
//! with a fuzzer's means, every test run looks for a little.

#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library for the fuzz targets, and a module here")]
mod decoders;
mod seeds;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::decoders::{TARGETS, Target};
use kvstrata_testkit::rng::Rng;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process, so one decoder runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// The inputs of one target with their names, in order of name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).unwrap_or_else(|e| panic!("the corpus of {target}: {e}"));
    let mut all: Vec<_> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a corpus file"))
        })
        .collect();
    all.sort();
    all
}

/// Runs one input; a decoder that takes more memory than its input is worth fails like one that panics.
fn run(target: &Target, name: &str, data: &[u8]) -> bool {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let accepted = std::panic::catch_unwind(|| (target.run)(data)).unwrap_or_else(|_| {
        panic!("{} fails on {name}, {} bytes:\n{}", target.name, data.len(), data.escape_ascii())
    });
    let took = MEMORY.peak_usage().saturating_sub(before);
    let may = target.base + target.per_byte * data.len();
    assert!(took <= may, "{} takes {took} bytes for the {} of {name}, of {may}", target.name, data.len());
    accepted
}

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|t| t.name == name).expect("a target")
}

fn check(name: &str, mutations: usize) {
    let _alone = alone();
    let target = target(name);
    let corpus = corpus(name);
    let mut accepted = 0;
    for (file, data) in &corpus {
        let good = run(&target, file, data);
        assert!(good || !file.starts_with("valid"), "{name} refuses {file}");
        assert!(!good || !file.starts_with("bad"), "{name} accepts {file}");
        accepted += usize::from(good);
    }
    assert!(
        accepted >= 3 && accepted < corpus.len(),
        "{accepted} of {} accepted: a poor corpus",
        corpus.len()
    );
    let mut rng = Rng::new(1);
    for n in 0..mutations {
        let pick = |rng: &mut Rng| &corpus[rng.below(corpus.len() as u64) as usize];
        let (file, data) = pick(&mut rng);
        let mut data = data.clone();
        for _ in 0..1 + rng.below(4) {
            let other = &pick(&mut rng).1;
            mutate(&mut data, other, &mut rng);
        }
        run(&target, &format!("mutation {n}, from {file}"), &data);
    }
}

/// One change: of a byte, a bit, a length, or a piece of the same or of another input.
fn mutate(data: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    const WORDS: [&[u8]; 16] = [
        b"[",
        b"{",
        b"\"",
        b"]",
        b"}",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"null",
        b"\\u0000",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xf0\x9f\x98\x80",
        b"nan",
        b"\n",
    ];
    let at = |len: usize, rng: &mut Rng| rng.below(len as u64 + 1) as usize;
    let cut = |bytes: &[u8], rng: &mut Rng| {
        let from = at(bytes.len(), rng);
        bytes[from..(from + at(40, rng)).min(bytes.len())].to_vec()
    };
    let i = at(data.len(), rng);
    match rng.below(7) {
        0 if i < data.len() => data[i] ^= 1 << rng.below(8),
        1 if i < data.len() => data[i] = rng.bits() as u8,
        2 => data.truncate(i),
        3 => drop(data.splice(i..i, WORDS[rng.below(16) as usize].iter().copied())),
        4 => {
            let word = WORDS[rng.below(16) as usize];
            let end = (i + word.len()).min(data.len());
            drop(data.splice(i..end, word.iter().copied()));
        }
        5 => drop(data.splice(i..i, cut(other, rng))),
        _ => {
            let piece = cut(data, rng);
            drop(data.splice(i..(i + piece.len()).min(data.len()), piece));
        }
    }
}

/// A test per decoder, so that each is named.
macro_rules! decoders {
    ($($name:ident: $mutations:expr,)*) => {
        $(#[test] fn $name() { check(stringify!($name), $mutations); })*

        #[test]
        fn every_target_is_tested_here_and_built_there() {
            let here = [$(stringify!($name)),*];
            assert_eq!(here, TARGETS.map(|t| t.name));
            let manifest = folder("../..").join("fuzz/Cargo.toml");
            let manifest = fs::read_to_string(manifest).expect("the manifest of the fuzz targets");
            for name in here {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no {name}");
            }
            let bytes: usize = here.iter().flat_map(|n| corpus(n)).map(|(_, data)| data.len()).sum();
            assert!(bytes < 200 << 10, "{bytes} bytes of corpus: a checkout is no place for more");
        }
    };
}

decoders! {
    key: 20_000,
    header: 20_000,
    manifest: 10_000,
    snapshot: 10_000,
    slab_log: 10_000,
    slab_snapshot: 2_000,
    trace: 10_000,
    config_file: 10_000,
    config_flags: 10_000,
    adapter: 10_000,
    lmcache: 20_000,
    zmtp: 10_000,
    lmcache_wire: 20_000,
}

/// How the corpus came about: what the encoders write, a few settings by hand, and a few mutations of each. It adds what
/// is missing, and leaves what a fuzzer found.
#[test]
#[ignore = "writes to fuzz/corpus: run it by name when a format has changed"]
fn write_the_seeds() {
    let mut rng = Rng::new(2);
    for target in TARGETS {
        let seeds = seeds::of(target.name);
        fs::create_dir_all(folder(target.name)).expect("a folder");
        for (i, data) in seeds.iter().enumerate() {
            fs::write(folder(target.name).join(format!("valid-{i}")), data).expect("a seed");
            for n in 0..3 {
                let mut data = data.clone();
                mutate(&mut data, &seeds[0], &mut rng);
                fs::write(folder(target.name).join(format!("near-{i}-{n}")), data).expect("a seed");
            }
        }
    }
}
