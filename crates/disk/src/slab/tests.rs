use std::path::Path;
use std::sync::Arc;

use kvstrata_core::{ChunkHash, Digest, KeyScope, KvRank, Layout, ObjectKey};
use kvstrata_io::{Disk, Open, SimDisk};
use kvstrata_l2::Found;
use proptest::prelude::*;

use super::format::{Record, Replayed, SLOT, SlotAt, log_head, push_record, push_scope, replay, scope_text};
use super::pages::{PAGE, PER_PAGE, Pages, SnapshotHead};
use super::snapshot::{SnapshotWriter, Tables};
use super::*;
use crate::index::{Object, Place};

const STORE: u128 = 0xfeed;

fn scopes() -> [Arc<KeyScope>; 2] {
    let salt = "s".repeat(100);
    ["org/model", &"long".repeat(60)]
        .map(|m| KeyScope::new(m, KvRank::new(8, 5, 8, 5).unwrap(), 3, &salt).unwrap())
}

fn object(scopes: &[Arc<KeyScope>], n: u64) -> Object {
    let hash = ChunkHash::new(&vec![n as u8; 1 + n as usize % 64]).unwrap();
    let len = 1 + n * 1000;
    Object {
        key: ObjectKey::new(&scopes[n as usize % 2], hash),
        found: Found {
            len,
            layout: Some(Layout::opaque(1 + n % 3).unwrap().id()),
            digest: (!n.is_multiple_of(3)).then(|| Digest::from_u64(n << 40 | 7)),
        },
        place: Place { path: 0, at: 4096 * (1 + n) },
        generation: 100 + n,
        charge: format::extent_of(len),
        used_at: 0,
    }
}

fn at(seq: u64) -> SlotAt {
    SlotAt { seq, epoch: 6, back: 0 }
}

fn log(records: u64) -> (Vec<u8>, Vec<Record>) {
    let (scopes, mut seq, mut all) = (scopes(), 40, Vec::new());
    let mut out = log_head(STORE, 6, seq).to_vec();
    for n in 0..records {
        if n < 2 {
            push_scope(n as u32, &scope_text(&scopes[n as usize]), at(seq), &mut out);
            seq += 1;
        }
        let record = match n % 5 {
            4 => Record::Remove { fingerprint: [n as u8; 32], generation: n },
            _ => Record::Insert(object(&scopes, n)),
        };
        push_record(&record, n as u32 % 2, at(seq), &mut out);
        seq += 1;
        all.push(record);
    }
    (out, all)
}

fn snapshot(objects: u64) -> (Vec<u8>, Vec<Object>) {
    let (scopes, mut tables) = (scopes(), Tables::default());
    let all: Vec<Object> = (0..objects).map(|n| object(&scopes, n)).collect();
    all.iter().for_each(|object| tables.collect(object));
    let disk = SimDisk::default();
    let file = disk.open(Path::new("/s"), Open { write: true, create_new: true, ..Open::default() }).unwrap();
    let mut out = SnapshotWriter::begin(&disk, &file, 6, tables, 1).unwrap();
    all.iter().for_each(|object| out.add(object));
    out.end(STORE, 40, 9000).unwrap();
    let mut bytes = vec![0; disk.file_metadata(&file).unwrap().len as usize];
    disk.read_exact_at(&file, 0, &mut bytes).unwrap();
    (bytes, all)
}

fn read_log(bytes: &[u8]) -> (Replayed, Vec<Record>) {
    let mut all = Vec::new();
    (replay(bytes, STORE, 6, Some(40), |record| all.push(record)).expect("a log"), all)
}

fn read_snapshot(bytes: &[u8]) -> (SnapshotHead, u64, Vec<Object>) {
    let (head, mut all) = (SnapshotHead::decode(bytes, STORE).expect("a snapshot"), Vec::new());
    let mut pages = Pages::new(head.epoch);
    pages.read(&bytes[PAGE..], |object| all.push(object));
    (head, pages.rotten, all)
}

fn said<T: std::fmt::Debug>(all: &[T]) -> Vec<String> {
    all.iter().map(|one| format!("{one:?}")).collect()
}

/// The bytes of version 1. A change here is a new version.
#[test]
fn the_formats_are_frozen() {
    let block = format::segment_block(STORE, 3, 1 << 30);
    let golden: [(&str, &[u8], &[u8]); 3] = [
        ("slab-log-v1.bin", &log(7).0, include_bytes!("../../tests/golden/slab-log-v1.bin")),
        ("slab-snapshot-v1.bin", &snapshot(3).0, include_bytes!("../../tests/golden/slab-snapshot-v1.bin")),
        ("slab-segment-v1.bin", block.bytes(), include_bytes!("../../tests/golden/slab-segment-v1.bin")),
    ];
    golden.iter().for_each(|(name, ours, stored)| assert!(ours == stored, "{name}"));
    assert_eq!(format::read_segment_block(&block), Some((STORE, 3, 1 << 30)));
}

#[test]
fn a_log_comes_back_and_only_to_its_store_and_epoch() {
    let (bytes, all) = log(20);
    let (replayed, back) = read_log(&bytes);
    assert_eq!(said(&back), said(&all));
    assert_eq!(replayed, Replayed { end: bytes.len() as u64, next: 40 + 22, records: 22, gap: false });
    assert!(
        replay(&bytes, STORE + 1, 6, None, |_| ()).is_err()
            && replay(&bytes, STORE, 7, None, |_| ()).is_err()
    );
    assert!(replay(&bytes, STORE, 6, Some(39), |_| ()).unwrap().gap, "a record before it is missing");
}

/// A write that was torn at the end did not happen; if more follows it, something is missing.
#[test]
fn a_torn_write_at_the_end_is_no_gap() {
    let (mut bytes, _) = log(4);
    let (whole, end) = (bytes.len(), 40 + 6);
    let gone = |n: u64| Record::Remove { fingerprint: [9; 32], generation: n };
    for back in 0..3 {
        push_record(&gone(back), 0, SlotAt { seq: end + back, epoch: 6, back: back as u32 }, &mut bytes);
    }
    bytes[whole + SLOT + 30] ^= 1;
    let (replayed, back) = read_log(&bytes);
    assert_eq!((replayed.gap, replayed.end, back.len()), (false, (whole + SLOT) as u64, 5));
    push_record(&gone(7), 0, at(end + 3), &mut bytes);
    let (replayed, back) = read_log(&bytes);
    assert_eq!((replayed.gap, replayed.end, back.len()), (true, bytes.len() as u64, 6));
}

#[test]
fn a_snapshot_comes_back_in_order() {
    let (bytes, all) = snapshot(2 * PER_PAGE as u64 + 1);
    let (head, rotten, back) = read_snapshot(&bytes);
    assert_eq!((head.objects, head.first, head.generation, rotten), (all.len() as u64, 40, 9000, 0));
    assert_eq!(head.pages as usize * PAGE, bytes.len());
    assert_eq!(said(&back), said(&all));
    assert!(SnapshotHead::decode(&bytes, STORE + 1).is_err());
}

#[test]
fn names_come_back() {
    for file in [File::Segment(7), File::Segment(123_456), File::Log(1), File::Snapshot(99)] {
        let name = match file {
            File::Segment(n) => segment_name(n),
            File::Log(n) => log_name(n),
            File::Snapshot(n) => snapshot_name(n),
        };
        assert_eq!(parse_name(OsStr::new(&name)), Some(file));
    }
    for name in ["", "log-", "log-01", "log-+1", "segment-7", "segment-00007 ", "snap-1", "log--1"] {
        assert_eq!(parse_name(OsStr::new(name)), None, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A cut log is a torn tail, and what is before it is there.
    #[test]
    fn a_cut_log_gives_what_is_before_the_cut(at: prop::sample::Index) {
        let (bytes, all) = log(20);
        let at = SLOT + at.index(bytes.len() - SLOT);
        let (replayed, back) = read_log(&bytes[..at]);
        prop_assert!(!replayed.gap && replayed.end <= at as u64 && at as u64 - replayed.end < 4 * SLOT as u64);
        prop_assert_eq!(said(&back), &said(&all)[..back.len()]);
    }

    /// A flipped bit costs the records that it is in, and those of a scope that is lost; nothing else is read differently.
    #[test]
    fn a_flipped_bit_in_a_log_is_a_gap_or_a_torn_tail(at: prop::sample::Index, bit in 0u8..8) {
        let (mut bytes, all) = log(20);
        let at = SLOT + at.index(bytes.len() - SLOT);
        bytes[at] ^= 1 << bit;
        let (replayed, back) = read_log(&bytes);
        prop_assert!(replayed.gap || replayed.end < bytes.len() as u64);
        let all = said(&all);
        prop_assert!(back.len() < all.len() && said(&back).iter().all(|record| all.contains(record)));
    }

    #[test]
    fn a_flipped_bit_in_a_snapshot_costs_a_page(at: prop::sample::Index, bit in 0u8..8) {
        let (mut bytes, all) = snapshot(100);
        let at = PAGE + at.index(bytes.len() - PAGE);
        bytes[at] ^= 1 << bit;
        let (_, rotten, back) = read_snapshot(&bytes);
        let all = said(&all);
        prop_assert!(rotten >= 1 && back.len() < all.len());
        prop_assert!(said(&back).iter().all(|object| all.contains(object)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), head: bool) {
        let mut log = if head { log_head(STORE, 6, 40).to_vec() } else { Vec::new() };
        log.extend_from_slice(&bytes);
        let _ = replay(&log, STORE, 6, None, |_| ());
        let _ = SnapshotHead::decode(&bytes, STORE);
        Pages::new(6).read(&bytes, |_| ());
    }
}
