//! The snapshot of the index: what a start would otherwise read from every object's header.
//!
//! All numbers are little-endian. A snapshot that is missing, cut, or of another store or version is no error: every
//! header is read then.
//!
//! | part | bytes each | |
//! |---|---|---|
//! | head | 64 | magic `KVSTRIDX`, version `u16`, 6 zero, store id 16, begun (seconds `i64`, nanoseconds `u32`), scopes `u32`, directories `u32`, objects `u64`, 4 zero |
//! | scopes | 4 + n | length, then the encoding of a key of this scope with the chunk hash `00` |
//! | directories | 24 | first byte, second byte, 2 zero, nanoseconds `u32`, seconds `i64` of its last modification, 8 zero |
//! | objects | 128 | scope `u32`, hash length `u8`, digest kind `u8`, path `u16`, generation, payload length, layout 16, digest, place `u64`, hash 64, 8 zero |
//! | tail | 8 | CRC-64/NVMe of everything before |
//!
//! Objects are ordered by their last use, so that eviction goes on where it stopped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crc_fast::{CrcAlgorithm, checksum};
use kvstrata_core::{ChunkHash, Digest, Error, ErrorKind, KeyScope, LayoutId, ObjectKey, Result, encode};
use kvstrata_l2::Found;

use crate::index::{Object, Place};

const MAGIC: &[u8; 8] = b"KVSTRIDX";
const VERSION: u16 = 1;
const HEAD: usize = 64;
const DIR: usize = 24;
const RECORD: usize = 128;
const TAIL: usize = 8;

/// The time of a file system, in its own terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct FileTime {
    seconds: i64,
    nanos: u32,
}

impl From<SystemTime> for FileTime {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Self { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() },
            // Before 1970: order is all that counts.
            Err(e) => Self { seconds: -1 - e.duration().as_secs() as i64, nanos: 0 },
        }
    }
}

impl FileTime {
    /// Whether a change after `begun` would certainly have another time: file systems count as coarsely as two seconds.
    pub(crate) fn settled_before(self, begun: Self) -> bool {
        self.seconds.saturating_add(Duration::from_secs(2).as_secs() as i64) < begun.seconds
    }
}

/// A snapshot in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) store_id: u128,
    /// The file system's time when the snapshot began.
    pub(crate) begun: FileTime,
    /// Second-level directories with their last modification.
    pub(crate) dirs: Vec<([u8; 2], FileTime)>,
    pub(crate) objects: Vec<Object>,
}

/// A snapshot to be held against what the directories say now. Its objects stay where they are and in their order, which is
/// the order they go to the index in: moving them is what a start would spend its time with.
#[derive(Debug, Default)]
pub(crate) struct Known {
    begun: FileTime,
    /// By first byte, then by second; nothing is kept for a first byte that no object has.
    dirs: Vec<Vec<KnownDir>>,
    /// Of all directories: small, because it is asked once for each object in no order.
    unchanged: Vec<bool>,
    objects: Vec<Object>,
}

#[derive(Clone, Copy, Debug, Default)]
struct KnownDir {
    then: Option<FileTime>,
    objects: u32,
}

impl From<Snapshot> for Known {
    fn from(snapshot: Snapshot) -> Self {
        let (dirs, unchanged) = (vec![Vec::new(); 1 << 8], vec![false; 1 << 16]);
        let mut known = Self { begun: snapshot.begun, dirs, unchanged, objects: snapshot.objects };
        for (dir, time) in snapshot.dirs {
            at(&mut known.dirs, dir).then = Some(time);
        }
        for object in &known.objects {
            at(&mut known.dirs, dir_of(object)).objects += 1;
        }
        known
    }
}

fn dir_of(object: &Object) -> [u8; 2] {
    let [top, leaf, ..] = *object.key.fingerprint256();
    [top, leaf]
}

fn at(dirs: &mut [Vec<KnownDir>], [top, leaf]: [u8; 2]) -> &mut KnownDir {
    let top = &mut dirs[usize::from(top)];
    if top.is_empty() {
        top.resize(256, KnownDir::default());
    }
    &mut top[usize::from(leaf)]
}

impl Known {
    /// For listings: the objects are in the order of their names, and no longer in that of their use.
    pub(crate) fn by_name(mut snapshot: Snapshot) -> Self {
        snapshot.objects.sort_unstable_by(|a, b| a.key.fingerprint256().cmp(b.key.fingerprint256()));
        Self::from(snapshot)
    }

    /// The objects of a directory, of what was ordered [by name](Self::by_name).
    pub(crate) fn in_dir(&self, dir: [u8; 2]) -> &[Object] {
        let from = self.objects.partition_point(|o| dir_of(o) < dir);
        let rest = &self.objects[from..];
        &rest[..rest.partition_point(|o| dir_of(o) == dir)]
    }

    /// How many objects a directory has, if nothing came or went in it since the snapshot. They are recovered by that.
    pub(crate) fn take(&mut self, dir: [u8; 2], modified: FileTime) -> Option<u32> {
        let [top, leaf] = dir.map(usize::from);
        let known = self.dirs.get(top)?.get(leaf)?;
        let then = known.then?;
        let unchanged = then == modified && then.settled_before(self.begun);
        self.unchanged[usize::from(u16::from_be_bytes(dir))] = unchanged;
        unchanged.then_some(known.objects)
    }

    fn is_unchanged(&self, object: &Object) -> bool {
        self.unchanged[usize::from(u16::from_be_bytes(dir_of(object)))]
    }

    /// When the objects of all other directories were used, as far as they are those that the snapshot knew: that needs no
    /// trust in times, an object's generation says it.
    pub(crate) fn uses(&self) -> HashMap<(u128, u64), u64> {
        let others = self.objects.iter().filter(|o| !self.is_unchanged(o));
        others.map(|o| ((o.key.fingerprint(), o.generation), o.used_at)).collect()
    }

    /// The objects of the directories that were taken, in the order of their use.
    pub(crate) fn unchanged(mut self) -> impl Iterator<Item = Object> {
        let objects = std::mem::take(&mut self.objects);
        objects.into_iter().filter(move |o| self.is_unchanged(o))
    }
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "read index snapshot", what)
}

impl Snapshot {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut scopes: HashMap<*const KeyScope, u32> = HashMap::new();
        let mut scope_texts: Vec<Vec<u8>> = Vec::new();
        let mut numbers = Vec::with_capacity(self.objects.len());
        for object in &self.objects {
            // The index interned the scopes, so that one pointer is one scope.
            let scope = object.key.scope();
            numbers.push(*scopes.entry(Arc::as_ptr(scope)).or_insert_with(|| {
                let mut text = Vec::new();
                encode::encode_key(
                    &ObjectKey::new(scope, ChunkHash::new(&[0]).expect("one byte")),
                    &mut text,
                );
                scope_texts.push(text);
                scope_texts.len() as u32 - 1
            }));
        }
        let mut out = Vec::with_capacity(
            HEAD + self.dirs.len() * DIR + self.objects.len() * RECORD + scope_texts.len() * 128 + TAIL,
        );
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&self.store_id.to_le_bytes());
        out.extend_from_slice(&self.begun.seconds.to_le_bytes());
        out.extend_from_slice(&self.begun.nanos.to_le_bytes());
        out.extend_from_slice(&(scope_texts.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.dirs.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.objects.len() as u64).to_le_bytes());
        out.resize(HEAD, 0);
        for text in &scope_texts {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text);
        }
        for (dir, time) in &self.dirs {
            out.extend_from_slice(dir);
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&time.nanos.to_le_bytes());
            out.extend_from_slice(&time.seconds.to_le_bytes());
            out.extend_from_slice(&[0; 8]);
        }
        for (object, scope) in self.objects.iter().zip(numbers) {
            record(object, scope, &mut out);
        }
        let crc = checksum(CrcAlgorithm::Crc64Nvme, &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a snapshot of the store with this id. `charge` says what an object of some length takes on the device.
    pub(crate) fn decode(bytes: &[u8], store_id: u128, charge: impl Fn(u64) -> u64) -> Result<Self> {
        let (body, tail) = bytes.split_last_chunk::<TAIL>().ok_or_else(|| bad("cut"))?;
        let mut r = Reader(body);
        if r.array::<8>()? != *MAGIC {
            return Err(bad("another magic"));
        }
        if checksum(CrcAlgorithm::Crc64Nvme, body) != u64::from_le_bytes(*tail) {
            return Err(bad("the checksum does not fit"));
        }
        if u16::from_le_bytes(r.array()?) != VERSION {
            return Err(bad("another version"));
        }
        r.take(6)?;
        if u128::from_le_bytes(r.array()?) != store_id {
            return Err(bad("of another store"));
        }
        let begun =
            FileTime { seconds: i64::from_le_bytes(r.array()?), nanos: u32::from_le_bytes(r.array()?) };
        let scopes = u32::from_le_bytes(r.array()?);
        let dirs = u32::from_le_bytes(r.array()?) as usize;
        let objects = usize::try_from(u64::from_le_bytes(r.array()?)).map_err(|_| bad("too many objects"))?;
        r.take(4)?;
        let mut known = Vec::new();
        for _ in 0..scopes {
            let n = u32::from_le_bytes(r.array()?) as usize;
            let key =
                encode::decode_key(r.take(n)?).map_err(|e| bad("a scope does not decode").caused_by(e))?;
            known.push(Arc::clone(key.scope()));
        }
        let mut out = Self { store_id, begun, ..Self::default() };
        let dirs = r.take(dirs.checked_mul(DIR).ok_or_else(|| bad("too many directories"))?)?;
        for dir in dirs.chunks_exact(DIR) {
            let mut r = Reader(dir);
            let name = r.array()?;
            r.take(2)?;
            let nanos = u32::from_le_bytes(r.array()?);
            out.dirs.push((name, FileTime { seconds: i64::from_le_bytes(r.array()?), nanos }));
        }
        let records = r.take(objects.checked_mul(RECORD).ok_or_else(|| bad("too many objects"))?)?;
        if !r.0.is_empty() {
            return Err(bad("bytes are left over"));
        }
        out.objects.reserve_exact(objects);
        for (at, bytes) in records.chunks_exact(RECORD).enumerate() {
            out.objects.push(object(bytes, &known, &charge, at as u64)?);
        }
        Ok(out)
    }
}

/// An index snapshot, decoded and encoded again: what fuzzers and tools hold against the bytes they gave.
///
/// # Errors
/// `Corrupt` for what is no snapshot of the store with this id.
pub fn rewrite_index(bytes: &[u8], store_id: u128) -> Result<Vec<u8>> {
    Snapshot::decode(bytes, store_id, |len| len).map(|s| s.encode())
}

fn record(object: &Object, scope: u32, out: &mut Vec<u8>) {
    let start = out.len();
    let hash = object.key.hash().as_bytes();
    out.extend_from_slice(&scope.to_le_bytes());
    out.push(hash.len() as u8);
    out.push(u8::from(object.found.digest.is_some()));
    out.extend_from_slice(&object.place.path.to_le_bytes());
    out.extend_from_slice(&object.generation.to_le_bytes());
    out.extend_from_slice(&object.found.len.to_le_bytes());
    out.extend_from_slice(object.found.layout.map_or([0; 16], |l| *l.as_bytes()).as_slice());
    out.extend_from_slice(&object.found.digest.map_or(0, Digest::to_u64).to_le_bytes());
    out.extend_from_slice(&object.place.at.to_le_bytes());
    out.extend_from_slice(hash);
    out.resize(start + RECORD, 0);
}

fn object(
    bytes: &[u8],
    scopes: &[Arc<KeyScope>],
    charge: &impl Fn(u64) -> u64,
    used_at: u64,
) -> Result<Object> {
    let mut r = Reader(bytes);
    let scope = u32::from_le_bytes(r.array()?);
    let [hash_len, digest] = r.array()?;
    let path = u16::from_le_bytes(r.array()?);
    let generation = u64::from_le_bytes(r.array()?);
    let len = u64::from_le_bytes(r.array()?);
    let layout = LayoutId::from_bytes(r.array()?);
    let value = u64::from_le_bytes(r.array()?);
    let at = u64::from_le_bytes(r.array()?);
    let scope = scopes.get(scope as usize).ok_or_else(|| bad("an unknown scope"))?;
    let hash =
        ChunkHash::new(r.take(hash_len.into())?).map_err(|e| bad("a hash breaks its rule").caused_by(e))?;
    let digest = match digest {
        0 => None,
        1 => Some(Digest::from_u64(value)),
        _ => return Err(bad("an unknown digest")),
    };
    if len == 0 || len > kvstrata_core::Layout::MAX_BYTES {
        return Err(bad("a length breaks its rule"));
    }
    Ok(Object {
        key: ObjectKey::new(scope, hash),
        found: Found { len, layout: Some(layout), digest },
        place: Place { path, at },
        generation,
        charge: charge(len),
        used_at,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| bad("cut"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.take(N)?.first_chunk().expect("took N"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_core::{KvRank, Layout};
    use proptest::prelude::*;

    fn snapshot(n: u8) -> Snapshot {
        let scopes = ["a", "b"].map(|m| KeyScope::new(m, KvRank::single(), 0, "salt").unwrap());
        let object = |i: u8| Object {
            key: ObjectKey::new(
                &scopes[usize::from(i % 2)],
                ChunkHash::new(&vec![i; 1 + usize::from(i % 64)]).unwrap(),
            ),
            found: Found {
                len: 4096 * (1 + u64::from(i)),
                layout: Some(Layout::opaque(5).unwrap().id()),
                digest: (!i.is_multiple_of(3)).then(|| Digest::from_u64(i.into())),
            },
            place: Place { path: i.into(), at: 7 },
            generation: i.into(),
            charge: 1,
            used_at: i.into(),
        };
        Snapshot {
            store_id: 9,
            begun: FileTime { seconds: 1000, nanos: 1 },
            dirs: vec![([1, 2], FileTime { seconds: 3, nanos: 4 })],
            objects: (0..n).map(object).collect(),
        }
    }

    #[test]
    fn a_snapshot_comes_back_in_order_and_only_to_its_store() {
        let s = snapshot(200);
        let bytes = s.encode();
        let back = Snapshot::decode(&bytes, 9, |_| 1).unwrap();
        assert_eq!((back.dirs, back.begun), (s.dirs, s.begun));
        assert_eq!(format!("{:?}", back.objects), format!("{:?}", s.objects));
        assert!(Snapshot::decode(&bytes, 8, |_| 1).is_err());
        assert_eq!(Snapshot::decode(&snapshot(0).encode(), 9, |_| 1).unwrap().objects.len(), 0);
    }

    #[test]
    fn the_format_is_frozen() {
        let golden = include_bytes!("../tests/golden/index-v1.bin");
        assert!(snapshot(3).encode() == golden, "the encoding differs from the golden file");
    }

    #[test]
    fn times_settle_after_the_coarsest_clock() {
        let at = |seconds| FileTime { seconds, nanos: 0 };
        assert!(at(10).settled_before(at(13)));
        assert!(!at(10).settled_before(at(12)));
        assert!(!at(i64::MAX).settled_before(at(0)));
    }

    #[test]
    fn directories_are_taken_as_they_were_and_objects_stay_in_order() {
        let time = |seconds| FileTime { seconds, nanos: 0 };
        let mut s = snapshot(50);
        s.dirs = s.objects.iter().map(|o| (dir_of(o), time(3))).collect();
        let (still, changed) = (dir_of(&s.objects[7]), dir_of(&s.objects[8]));
        let mut known = Known::from(s.clone());
        assert_eq!(known.take(changed, time(4)), None, "another time");
        for dir in s.dirs.iter().map(|(dir, _)| *dir).filter(|dir| *dir != changed) {
            let objects = s.objects.iter().filter(|o| dir_of(o) == dir).count();
            assert_eq!(known.take(dir, time(3)), Some(objects as u32));
        }
        let print = |o: &Object| (o.key.fingerprint(), o.generation);
        let (left, rest): (Vec<_>, Vec<_>) = s.objects.iter().partition(|o| dir_of(o) == changed);
        assert_eq!(known.uses(), left.iter().map(|o| (print(o), o.used_at)).collect());
        let order: Vec<_> = known.unchanged().map(|o| print(&o)).collect();
        assert_eq!(order, rest.iter().map(|o| print(o)).collect::<Vec<_>>());
        assert!(Known::by_name(s.clone()).in_dir(still).iter().map(print).eq([print(&s.objects[7])]));
        assert_eq!(Known::default().take(still, time(3)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damage_is_noticed(at: prop::sample::Index, x in 1u8.., cut: prop::sample::Index) {
            let mut bytes = snapshot(3).encode();
            prop_assert!(Snapshot::decode(&bytes[..cut.index(bytes.len())], 9, |_| 1).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= x;
            prop_assert!(Snapshot::decode(&bytes, 9, |_| 1).is_err());
        }

        #[test]
        fn arbitrary_contents_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..400)) {
            let whole = snapshot(0).encode();
            bytes[..40].copy_from_slice(&whole[..40]);
            let crc = checksum(CrcAlgorithm::Crc64Nvme, &bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            let _ = Snapshot::decode(&bytes, 9, |_| 1);
        }
    }
}
