//! The bytes of segments and of the log; those of the snapshot stand in [`super::pages`]. All numbers are little-endian; what is not listed is zero.
//!
//! **A segment** begins with a block of its own, and is extents from there on: a [`crate::Header`], then the payload.
//!
//! | offset | bytes | first block of a segment |
//! |---|---|---|
//! | 0 | 8 | magic `KVSTRSEG` |
//! | 8 | 2 | version, 1 |
//! | 16 | 16 | store id |
//! | 32 | 8 | number of the segment |
//! | 40 | 8 | length of a whole segment |
//! | 4088 | 8 | CRC-64/NVMe of the 4088 bytes before |
//!
//! **An object's record**, the same in the log and in the snapshot, has 144 bytes. A place is `segment × its length +
//! offset`; with the path's number there is room for stores over several devices and for devices without a file system,
//! whose segments are parts of them.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | scope: its number in this log, or in this snapshot |
//! | 4 | 4 | layout: its number in this snapshot |
//! | 8 | 2 | path, 0 |
//! | 10 | 1 | length of the chunk hash |
//! | 11 | 1 | kind of the digest: 0 none, 1 CRC-64/NVMe bound to key, layout and length |
//! | 16 | 8 | place of the header |
//! | 24 | 8 | length of the payload |
//! | 32 | 8 | digest |
//! | 40 | 8 | generation |
//! | 48 | 32 | fingerprint of the key |
//! | 80 | 64 | chunk hash |
//!
//! **The log** is slots of 192 bytes. Each says its own number in the sequence, how many records were written before it in the
//! same write, and has its own checksum: so a write that was torn at the end is told from a gap.
//!
//! | offset | bytes | first slot | other slots |
//! |---|---|---|---|
//! | 0 | 8 | magic `KVSTRLOG` | kind (1 scope, 2 insert, 3 remove), slots of this record, length of a scope `u16` |
//! | 4 | 4 | (magic) | records of the same write before this one |
//! | 8 | 8 | version `u16`, 1 | number in the sequence |
//! | 16 | 8 | store id | epoch |
//! | 24 | 8 | (16 bytes) | record of 144 bytes; of a removal, generation and fingerprint only; a scope's number `u32` and text |
//! | 32 | 8 | epoch | |
//! | 40 | 8 | number of the next record | |
//! | 168 | 16 | | layout id |
//! | 184 | 8 | CRC-64/NVMe of what is before | the same; of a scope, at the end of its last slot |

use std::sync::Arc;

use crc_fast::{CrcAlgorithm, checksum};
use kvstrata_core::{
    ChunkHash, Digest, Error, ErrorKind, KeyScope, Layout, LayoutId, ObjectKey, Result, encode,
};
use kvstrata_l2::Found;

use super::geometry::UNIT;
use crate::index::{Object, Place};
use crate::{Block, HEADER_BYTES};

pub(crate) const RECORD: usize = 144;
pub(crate) const SLOT: usize = 192;

const BODY: usize = 24;
const CRC_AT: usize = UNIT as usize - 8;
const SLOT_CRC: usize = SLOT - 8;
const LAYOUT_AT: usize = 168;
pub(super) const VERSION: u16 = 1;
const SEGMENT_MAGIC: &[u8; 8] = b"KVSTRSEG";
const LOG_MAGIC: &[u8; 8] = b"KVSTRLOG";

pub(super) fn crc(bytes: &[u8]) -> [u8; 8] {
    checksum(CrcAlgorithm::Crc64Nvme, bytes).to_le_bytes()
}

pub(crate) fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    *from[at..].first_chunk().expect("inside the record")
}

pub(super) fn set<const N: usize>(to: &mut [u8], at: usize, value: [u8; N]) {
    to[at..at + N].copy_from_slice(&value);
}

pub(super) fn bad(operation: &'static str, what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, operation, what)
}

/// What an object takes in a segment.
pub(crate) fn extent_of(len: u64) -> u64 {
    (HEADER_BYTES + len).next_multiple_of(UNIT)
}

/// The text that stands for a scope.
pub(crate) fn scope_text(scope: &Arc<KeyScope>) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    encode::encode_key(&ObjectKey::new(scope, ChunkHash::new(&[0]).expect("one byte")), &mut text);
    text
}

pub(super) fn scope_of(text: &[u8]) -> Result<Arc<KeyScope>> {
    Ok(Arc::clone(encode::decode_key(text)?.scope()))
}

// --- segments ----------------------------------------------------------------------------------------------------------

/// The first block of a segment.
pub(crate) fn segment_block(store_id: u128, number: u64, len: u64) -> Box<Block> {
    let mut block = Block::zeroed();
    let b = block.bytes_mut();
    set(b, 0, *SEGMENT_MAGIC);
    set(b, 8, VERSION.to_le_bytes());
    set(b, 16, store_id.to_le_bytes());
    set(b, 32, number.to_le_bytes());
    set(b, 40, len.to_le_bytes());
    let sum = crc(&b[..CRC_AT]);
    set(b, CRC_AT, sum);
    block
}

/// Whose segment begins with this block: store, number, length of a whole segment.
pub(crate) fn read_segment_block(block: &Block) -> Option<(u128, u64, u64)> {
    let b = block.bytes();
    let good = get::<8>(b, 0) == *SEGMENT_MAGIC
        && u16::from_le_bytes(get(b, 8)) == VERSION
        && get::<8>(b, CRC_AT) == crc(&b[..CRC_AT]);
    good.then(|| {
        (u128::from_le_bytes(get(b, 16)), u64::from_le_bytes(get(b, 32)), u64::from_le_bytes(get(b, 40)))
    })
}

// --- an object's record ------------------------------------------------------------------------------------------------

pub(crate) fn encode_object(object: &Object, scope: u32, layout: u32, to: &mut [u8]) {
    let hash = object.key.hash().as_bytes();
    set(to, 0, scope.to_le_bytes());
    set(to, 4, layout.to_le_bytes());
    set(to, 8, object.place.path.to_le_bytes());
    set(to, 10, [hash.len() as u8, u8::from(object.found.digest.is_some())]);
    set(to, 16, object.place.at.to_le_bytes());
    set(to, 24, object.found.len.to_le_bytes());
    set(to, 32, object.found.digest.map_or(0, Digest::to_u64).to_le_bytes());
    set(to, 40, object.generation.to_le_bytes());
    set(to, 48, *object.key.fingerprint256());
    to[80..80 + hash.len()].copy_from_slice(hash);
}

/// What numbers stand for. A page or a slot that is lost leaves a hole, and shifts nothing.
#[derive(Debug)]
pub(super) struct Table<T>(Vec<Option<T>>);

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.0.get(number as usize)?.as_ref()
    }

    /// Numbers are given one after the other, so none is above what there was room for: `most`.
    pub(super) fn put(&mut self, number: u32, entry: T, most: usize) -> bool {
        let at = number as usize;
        if at >= most {
            return false;
        }
        if at >= self.0.len() {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some(entry);
        true
    }
}

/// `layout` says what a layout's number stands for. The fingerprint is believed: a checksum vouches for it.
pub(super) fn decode_object(
    from: &[u8],
    scopes: &Table<Arc<KeyScope>>,
    layout: impl Fn(u32) -> Option<LayoutId>,
) -> Option<Object> {
    let scope = scopes.get(u32::from_le_bytes(get(from, 0)))?;
    let layout = layout(u32::from_le_bytes(get(from, 4)))?;
    let [hash_len, digest_kind] = get(from, 10);
    let hash = ChunkHash::new(from[80..RECORD].get(..hash_len.into())?).ok()?;
    let len = u64::from_le_bytes(get(from, 24));
    let digest = match digest_kind {
        0 => None,
        1 => Some(Digest::from_u64(u64::from_le_bytes(get(from, 32)))),
        _ => return None,
    };
    if len == 0 || len > Layout::MAX_BYTES {
        return None;
    }
    Some(Object {
        key: ObjectKey::with_fingerprint(scope, hash, get(from, 48)),
        found: Found { len, layout: Some(layout), digest },
        place: Place { path: u16::from_le_bytes(get(from, 8)), at: u64::from_le_bytes(get(from, 16)) },
        generation: u64::from_le_bytes(get(from, 40)),
        charge: extent_of(len),
        used_at: 0,
    })
}

// --- the log -----------------------------------------------------------------------------------------------------------

const SCOPE: u8 = 1;
const INSERT: u8 = 2;
const REMOVE: u8 = 3;

/// Where in a log a record is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotAt {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    /// Records of the same write before it.
    pub(crate) back: u32,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// It is there from now on, instead of what was there under its key.
    Insert(Object),
    /// The object of this generation is gone.
    Remove { fingerprint: [u8; 32], generation: u64 },
}

/// The first slot of a log.
pub(crate) fn log_head(store_id: u128, epoch: u64, next: u64) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    set(&mut slot, 0, *LOG_MAGIC);
    set(&mut slot, 8, VERSION.to_le_bytes());
    set(&mut slot, 16, store_id.to_le_bytes());
    set(&mut slot, 32, epoch.to_le_bytes());
    set(&mut slot, 40, next.to_le_bytes());
    let sum = crc(&slot[..SLOT_CRC]);
    set(&mut slot, SLOT_CRC, sum);
    slot
}

/// The slots that a scope with a text of so many bytes takes.
pub(crate) fn scope_slots(text: usize) -> usize {
    (BODY + 4 + text + 8).div_ceil(SLOT)
}

fn slot_head(out: &mut [u8], kind: u8, slots: usize, at: SlotAt) {
    let SlotAt { seq, epoch, back } = at;
    set(out, 4, back.to_le_bytes());
    set(out, 0, [kind, slots as u8]);
    set(out, 8, seq.to_le_bytes());
    set(out, 16, epoch.to_le_bytes());
}

fn finish_slots(out: &mut [u8]) {
    let end = out.len() - 8;
    let sum = crc(&out[..end]);
    set(out, end, sum);
}

/// Appends a scope's definition.
pub(crate) fn push_scope(number: u32, text: &[u8], at: SlotAt, out: &mut Vec<u8>) {
    let (from, slots) = (out.len(), scope_slots(text.len()));
    out.resize(from + slots * SLOT, 0);
    let out = &mut out[from..];
    slot_head(out, SCOPE, slots, at);
    set(out, 2, (text.len() as u16).to_le_bytes());
    set(out, BODY, number.to_le_bytes());
    out[BODY + 4..BODY + 4 + text.len()].copy_from_slice(text);
    finish_slots(out);
}

/// Appends what happened; `scope` is the number of an inserted object's scope.
pub(crate) fn push_record(record: &Record, scope: u32, at: SlotAt, out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + SLOT, 0);
    let out = &mut out[from..];
    match record {
        Record::Insert(object) => {
            slot_head(out, INSERT, 1, at);
            encode_object(object, scope, 0, &mut out[BODY..BODY + RECORD]);
            if let Some(layout) = object.found.layout {
                set(out, LAYOUT_AT, *layout.as_bytes());
            }
        }
        Record::Remove { fingerprint, generation } => {
            slot_head(out, REMOVE, 1, at);
            set(out, BODY + 40, generation.to_le_bytes());
            set(out, BODY + 48, *fingerprint);
        }
    }
    finish_slots(out);
}

/// What a log's slots came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Replayed {
    /// Bytes up to the end of the last good record: what is behind is a torn tail.
    pub(crate) end: u64,
    /// The number of the next record.
    pub(crate) next: u64,
    /// Good records.
    pub(crate) records: u64,
    /// Whether records are missing before the last good one.
    pub(crate) gap: bool,
}

/// Reads the log of an epoch, whose first record has the number `first` if that is known.
///
/// # Errors
/// `Corrupt` if it does not begin as the log of this store and epoch does; `Mismatch` if it is of a later version.
pub(crate) fn replay(
    bytes: &[u8],
    store_id: u128,
    epoch: u64,
    first: Option<u64>,
    mut each: impl FnMut(Record),
) -> Result<Replayed> {
    const OP: &str = "read index log";
    let (head, body) = bytes.split_at_checked(SLOT).ok_or_else(|| bad(OP, "cut"))?;
    if get::<8>(head, 0) != *LOG_MAGIC || get::<8>(head, SLOT_CRC) != crc(&head[..SLOT_CRC]) {
        return Err(bad(OP, "not the head of a log"));
    }
    let version = u16::from_le_bytes(get(head, 8));
    if version != VERSION {
        return Err(Error::new(ErrorKind::Mismatch, OP, "another version").with("version", version));
    }
    if u128::from_le_bytes(get(head, 16)) != store_id || u64::from_le_bytes(get(head, 32)) != epoch {
        return Err(bad(OP, "of another store or epoch"));
    }
    let begins = u64::from_le_bytes(get(head, 40));
    let mut out = Replayed {
        end: SLOT as u64,
        next: begins,
        records: 0,
        gap: first.is_some_and(|first| first != begins),
    };
    let mut scopes = Table::new();
    let mut at = 0;
    // Set by a slot that is no good: a gap, if good ones follow.
    let mut torn = false;
    while let Some(slot) = body.get(at..at + SLOT) {
        let slots = usize::from(slot[1]).max(1);
        let whole = body.get(at..at + slots * SLOT);
        let good = whole.filter(|w| {
            let (sum, seq) = (get::<8>(w, w.len() - 8), u64::from_le_bytes(get(w, 8)));
            u64::from_le_bytes(get(w, 16)) == epoch && seq >= out.next && sum == crc(&w[..w.len() - 8])
        });
        let Some(record) = good else {
            torn = true;
            at += SLOT;
            continue;
        };
        let seq = u64::from_le_bytes(get(record, 8));
        let first_of_write = seq.saturating_sub(u32::from_le_bytes(get(record, 4)).into());
        if seq != out.next && first_of_write <= out.next {
            // What is missing is of the same write as this: nobody was told that any of it is done, unless more follows.
            at += slots * SLOT;
            torn = true;
            continue;
        }
        out.gap |= torn || seq != out.next;
        torn = false;
        let understood = match record[0] {
            SCOPE => {
                let len = usize::from(u16::from_le_bytes(get(record, 2)));
                let number = u32::from_le_bytes(get(record, BODY));
                let text = record.get(BODY + 4..BODY + 4 + len);
                let scope = text.and_then(|text| scope_of(text).ok());
                scope.is_some_and(|scope| scopes.put(number, scope, body.len() / SLOT))
            }
            INSERT => {
                let layout = LayoutId::from_bytes(get(record, LAYOUT_AT));
                let object = decode_object(&record[BODY..BODY + RECORD], &scopes, |_| Some(layout));
                object.map(|object| each(Record::Insert(object))).is_some()
            }
            REMOVE => {
                let generation = u64::from_le_bytes(get(record, BODY + 40));
                each(Record::Remove { fingerprint: get(record, BODY + 48), generation });
                true
            }
            _ => false,
        };
        // The checksum fits and it cannot be: its scope's definition is missing, or a program had a defect.
        out.gap |= !understood;
        out.records += 1;
        at += slots * SLOT;
        (out.next, out.end) = (seq.saturating_add(1), (SLOT + at) as u64);
    }
    Ok(out)
}
