//! The names of LMCache's GDS backend, and what they are as keys here.
//!
//! A data file lies at `<a>/<b>/<key, percent-encoded><suffix>`, where `a` and `b` are the first and the second two
//! characters of the chunk hash as Python prints it: a number in decimal, bytes as `b'…'`. The key's text is
//! `<model>@<world size>@<worker>@<hash, hex>@<dtype>`, then `@<layer>` for an object of one layer, then tags.
//!
//! | there | here |
//! |---|---|
//! | model | model |
//! | world size, worker | world size, global rank; the local world size is not in the name: it is said beforehand, and the local rank is the worker modulo it |
//! | a number as hash | 8 bytes, big-endian; a negative one has a byte `ff` before them |
//! | bytes as hash | the bytes; 8 of them, or 9 of which the first is `ff`, are refused, because they would be a number's |
//! | dtype | none: it is not part of a key, and the layout says it |
//! | no layer, layer `n` | group 0, group `n + 1` |
//! | tags | refused |

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kvstrata_core::{ChunkHash, DType, KeyScope, KvRank, ObjectKey};

use crate::Refusal;
use crate::hex::parse_hex;

/// What a sidecar's name has behind that of its data file.
pub const SIDECAR: &str = ".metadata";
/// The longest name that file systems take.
const NAME_MAX: usize = 255;

/// The end of a data file's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Suffix {
    /// `.kvcache.safetensors`, on every file system but WEKA's.
    #[default]
    Safetensors,
    /// `.weka1`.
    Weka,
}

impl Suffix {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Safetensors, Self::Weka];

    /// The text, with its dot.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Safetensors => ".kvcache.safetensors",
            Self::Weka => ".weka1",
        }
    }
}

/// The dtypes that a key of LMCache's can have, by the names they have there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyDType(u8);

const DTYPES: [(&str, Option<DType>); 13] = [
    ("half", Some(DType::F16)),
    ("bfloat16", Some(DType::BF16)),
    ("float", Some(DType::F32)),
    ("double", Some(DType::F64)),
    ("int8", Some(DType::I8)),
    ("uint8", Some(DType::U8)),
    ("int16", Some(DType::I16)),
    ("int32", Some(DType::I32)),
    ("int64", Some(DType::I64)),
    ("fp8_e4m3fn", Some(DType::F8E4M3FN)),
    ("fp8_e5m2", Some(DType::F8E5M2)),
    ("fp8_e4m3fnuz", None),
    ("fp8_e5m2fnuz", None),
];

impl KeyDType {
    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DTYPES.iter().map(|(name, _)| *name)
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().position(|(n, _)| *n == name).map(|at| Self(at as u8))
    }

    /// The one that a tensor of this type usually has; none for those that no key has there.
    pub fn of(dtype: DType) -> Option<Self> {
        DTYPES.iter().position(|(_, d)| *d == Some(dtype)).map(|at| Self(at as u8))
    }

    /// LMCache's name.
    pub fn name(self) -> &'static str {
        DTYPES[usize::from(self.0)].0
    }
}

/// A chunk hash as Python has it.
#[derive(Clone, Debug)]
enum Hash {
    Number(i128),
    Bytes(Vec<u8>),
}

impl Hash {
    fn key(&self) -> Option<ChunkHash> {
        let bytes = match self {
            Self::Number(n) => match (u64::try_from(*n), i64::try_from(*n)) {
                (Ok(n), _) => n.to_be_bytes().to_vec(),
                (_, Ok(n)) => std::iter::once(0xff).chain(n.to_be_bytes()).collect(),
                _ => return None,
            },
            Self::Bytes(b) if b.len() == 8 || (b.len() == 9 && b[0] == 0xff) => return None,
            Self::Bytes(b) => b.clone(),
        };
        ChunkHash::new(&bytes).ok()
    }

    fn of(hash: &ChunkHash) -> Option<Self> {
        Some(match *hash.as_bytes() {
            [a, b, c, d, e, f, g, h] => Self::Number(u64::from_be_bytes([a, b, c, d, e, f, g, h]).into()),
            [0xff, a, b, c, d, e, f, g, h] => {
                let n = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
                Self::Number((n < 0).then_some(n.into())?)
            }
            ref bytes => Self::Bytes(bytes.to_vec()),
        })
    }

    fn hex(&self) -> String {
        match self {
            Self::Number(n) if *n < 0 => format!("-{:x}", n.unsigned_abs()),
            Self::Number(n) => format!("{n:x}"),
            Self::Bytes(b) => b.iter().fold(String::new(), |mut s, b| {
                write!(s, "{b:02x}").expect("to a string");
                s
            }),
        }
    }

    /// The two directories; the second may be empty, and then the file lies in the first. `None` where Python's text would
    /// lead out of the directory.
    fn fan(&self) -> Option<(String, String)> {
        let text = match self {
            Self::Number(n) => n.to_string(),
            Self::Bytes(b) => repr_head(b),
        };
        let split = text.len().min(2);
        let (top, leaf) = (&text[..split], &text[split..text.len().min(4)]);
        let safe = |dir: &str| !dir.contains('/') && dir != "." && dir != "..";
        (safe(top) && safe(leaf)).then(|| (top.to_owned(), leaf.to_owned()))
    }
}

/// The first characters, four at least where there are so many, of what Python prints for these bytes.
fn repr_head(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut text = format!("b{quote}");
    for &b in bytes.iter().take(2) {
        match b {
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\\' => text.push_str("\\\\"),
            b if char::from(b) == quote => write!(text, "\\{quote}").expect("to a string"),
            b' '..=b'~' => text.push(b.into()),
            b => write!(text, "\\x{b:02x}").expect("to a string"),
        }
    }
    if bytes.len() < 2 {
        text.push(quote);
    }
    text
}

/// An object's name in a directory of the GDS backend.
#[derive(Clone, Debug)]
pub struct ClassicName {
    model: String,
    world_size: u32,
    worker: u32,
    hash: Hash,
    dtype: KeyDType,
    layer: Option<u32>,
}

impl ClassicName {
    /// The name of the object with this key, whose tensors have this dtype; `None` if the backend has no name for it: it has
    /// a salt, or its hash has no directory.
    pub fn of(key: &ObjectKey, dtype: KeyDType) -> Option<Self> {
        let scope = key.scope();
        let name = Self {
            model: scope.model().to_owned(),
            world_size: scope.rank().world_size().into(),
            worker: scope.rank().global_rank().into(),
            hash: Hash::of(key.hash())?,
            dtype,
            layer: scope.group().checked_sub(1),
        };
        let local = scope.rank().local_world_size().into();
        let longest = Suffix::Safetensors.text().len() + SIDECAR.len() + ".tmp01234567".len();
        let fits = name.quoted().len() + longest <= NAME_MAX && name.hash.fan().is_some();
        (fits && name.key(Some(local)).as_ref() == Some(key)).then_some(name)
    }

    /// Reads the place of a data file, relative to the directory of the backend.
    ///
    /// # Errors
    /// `Foreign` for a name of another form or in the wrong directory, `Malformed` if it breaks a rule, `Unmapped` if it has
    /// tags.
    pub fn parse(path: &Path) -> Result<(Self, Suffix), Refusal> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(Refusal::Foreign)?;
        let suffix = Suffix::ALL.into_iter().find(|s| name.ends_with(s.text())).ok_or(Refusal::Foreign)?;
        let quoted = &name[..name.len() - suffix.text().len()];
        let text = unquote(quoted).ok_or(Refusal::Malformed)?;
        let fields: Vec<&str> = text.split('@').collect();
        let [model, world_size, worker, hash, dtype, rest @ ..] = fields.as_slice() else {
            return Err(Refusal::Foreign);
        };
        let layer = match *rest {
            [] => None,
            [layer] if layer.bytes().all(|b| b.is_ascii_digit()) => {
                Some(layer.parse().map_err(|_| Refusal::Malformed)?)
            }
            _ => return Err(Refusal::Unmapped),
        };
        let dtype = KeyDType::from_name(dtype).ok_or(Refusal::Unmapped)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| Refusal::Malformed);
        let mut read = Self {
            model: (*model).to_owned(),
            world_size: number(world_size)?,
            worker: number(worker)?,
            hash: Hash::Number(0),
            dtype,
            layer,
        };
        // A hash's hex is a number or bytes; the directories say which.
        let n = i128::from_str_radix(hash, 16).ok().map(Hash::Number);
        let bytes = parse_hex(hash).filter(|b| !b.is_empty()).map(Hash::Bytes);
        let mut malformed = true;
        for hash in [n, bytes].into_iter().flatten() {
            if hash.fan().is_some() {
                malformed = false;
                read.hash = hash;
                if read.data(suffix).parent() == path.parent() {
                    return if read.quoted() == quoted {
                        Ok((read, suffix))
                    } else {
                        Err(Refusal::Malformed)
                    };
                }
            }
        }
        Err(if malformed { Refusal::Malformed } else { Refusal::Foreign })
    }

    /// The key. Without a local world size, all workers are taken for those of one machine.
    pub fn key(&self, local_world_size: Option<u32>) -> Option<ObjectKey> {
        let local = local_world_size.unwrap_or(self.world_size);
        let rank = KvRank::new(self.world_size, self.worker, local, self.worker.checked_rem(local)?).ok()?;
        let group = match self.layer {
            None => 0,
            Some(layer) => layer.checked_add(1)?,
        };
        Some(ObjectKey::new(&KeyScope::new(&self.model, rank, group, "").ok()?, self.hash.key()?))
    }

    /// The dtype in the name.
    pub fn dtype(&self) -> KeyDType {
        self.dtype
    }

    /// Where the data file lies, relative to the directory of the backend.
    ///
    /// # Panics
    /// Never for a name that was read, or made from a key.
    pub fn data(&self, suffix: Suffix) -> PathBuf {
        let (top, leaf) = self.hash.fan().expect("checked when it was made");
        let mut path = PathBuf::from(top);
        if !leaf.is_empty() {
            path.push(leaf);
        }
        path.join(self.quoted() + suffix.text())
    }

    fn quoted(&self) -> String {
        let Self { model, world_size, worker, hash, dtype, layer } = self;
        let layer = layer.map(|n| format!("@{n}")).unwrap_or_default();
        quote(&format!("{model}@{world_size}@{worker}@{}@{}{layer}", hash.hex(), dtype.name()))
    }
}

/// The sidecar of a data file.
pub fn sidecar(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(SIDECAR);
    name.into()
}

/// Whether a file's name is one that a writer of LMCache's, or this one, gives a file before it is published.
pub fn is_temporary(name: &str) -> bool {
    let Some((stem, tail)) = name.rsplit_once(".tmp") else { return false };
    let published = stem.strip_suffix(SIDECAR).unwrap_or(stem);
    tail.len() == 8
        && tail.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && Suffix::ALL.iter().any(|s| published.ends_with(s.text()))
}

/// Percent-encoding as Python's `urllib.parse.quote(text, safe="")` does it.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(b.into()),
            b => write!(out, "%{b:02X}").expect("to a string"),
        }
    }
    out
}

fn unquote(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let pair = [bytes.next()?, bytes.next()?];
                *parse_hex(std::str::from_utf8(&pair).ok()?)?.first()?
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LLAMA: &str = "meta-llama%2FLlama-3.1-8B%408%405%40ab54a98ceb1f0ad2%40bfloat16.kvcache.safetensors";

    fn key(model: &str, group: u32, hash: &[u8]) -> ObjectKey {
        let rank = KvRank::new(8, 5, 8, 5).unwrap();
        ObjectKey::new(&KeyScope::new(model, rank, group, "").unwrap(), ChunkHash::new(hash).unwrap())
    }

    /// Golden: 0xab54a98ceb1f0ad2 is 12345678901234567890 in decimal.
    #[test]
    fn a_name_of_lmcaches_is_a_key_here_and_the_other_way_round() {
        let path = Path::new("12/34").join(LLAMA);
        let (name, suffix) = ClassicName::parse(&path).unwrap();
        let wanted = key("meta-llama/Llama-3.1-8B", 0, &0xab54_a98c_eb1f_0ad2_u64.to_be_bytes());
        assert_eq!(
            (name.key(None), suffix, name.dtype().name()),
            (Some(wanted.clone()), Suffix::Safetensors, "bfloat16")
        );
        let again = ClassicName::of(&wanted, KeyDType::of(DType::BF16).unwrap()).unwrap();
        assert_eq!(again.data(suffix), path);
        let rank = name.key(Some(4)).unwrap().scope().rank();
        assert_eq!((rank.local_world_size(), rank.local_rank()), (4, 1));
        assert!(name.key(Some(0)).is_none());
    }

    #[test]
    fn each_kind_of_hash_has_its_directories() {
        let dtype = KeyDType::from_name("half").unwrap();
        for (hash, dirs) in [
            (&7u64.to_be_bytes()[..], "7"),
            (&123u64.to_be_bytes(), "12/3"),
            (&u64::MAX.to_be_bytes(), "18/44"),
            // -5 and its directory `-5`; -1234 and `-1/23`.
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xfb", "-5"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfb\x2e", "-1/23"),
            (&[0xab; 32], "b'/\\x"),
            (b"zq rest", "b'/zq"),
            (b"\n'\"", "b'/\\n"),
            (b"a'", "b\"/a'"),
            (b"'\"", "b'/\\'"),
            (b"a", "b'/a'"),
        ] {
            let key = key("m", 0, hash);
            let name = ClassicName::of(&key, dtype).unwrap_or_else(|| panic!("{hash:?}"));
            let path = name.data(Suffix::Weka);
            assert_eq!(path.parent().unwrap(), Path::new(dirs), "{hash:?}");
            assert_eq!(ClassicName::parse(&path).unwrap().0.key(None), Some(key), "{hash:?}");
        }
        // Python's text would lead out of the directory.
        for hash in [&b"/etc"[..], b"a/b", b"..x"] {
            assert!(ClassicName::of(&key("m", 0, hash), dtype).is_none(), "{hash:?}");
        }
        assert!(ClassicName::of(&key("m", 0, b"\xff\0\0\0\0\0\0\0\x01"), dtype).is_none());
    }

    #[test]
    fn each_refusal_has_its_reason() {
        use Refusal::{Foreign, Malformed, Unmapped};
        let at =
            |dirs: &str, name: &str| ClassicName::parse(&Path::new(dirs).join(name)).map(|_| ()).unwrap_err();
        assert_eq!(at("12/35", LLAMA), Foreign, "the wrong directory");
        assert_eq!(at("12", LLAMA), Foreign);
        let bytes = ClassicName::parse(&Path::new("b'/\\x").join(LLAMA)).unwrap().0;
        assert!(bytes.key(None).is_none(), "bytes that would be a number's");
        assert_eq!(at("12/34", "x"), Foreign);
        assert_eq!(at("7", "m%401%400%407.weka1"), Foreign, "no dtype");
        assert_eq!(at("7", "m%401%400%407%40half%40k%25v.weka1"), Unmapped, "tags");
        assert_eq!(at("7", "m%401%400%407%40bool.weka1"), Unmapped);
        for name in [
            "m%401%400%4007%40half.weka1",
            "m@1%400%407%40half.weka1",
            "m%401%400%407%40hal%66.weka1",
            "m%4001%400%407%40half.weka1",
            "m%401%400%407%40half%4007.weka1",
            "m%40x%400%407%40half.weka1",
            "m%401%400%40zz%40half.weka1",
            "m%4.weka1",
        ] {
            assert_eq!(at("7", name), Malformed, "{name}");
        }
        // A worker that is none of the world's, and bytes that would be a number's, are no key.
        let name = |path: &str| ClassicName::parse(Path::new(path)).unwrap().0;
        assert!(name("7/m%401%401%407%40half.weka1").key(None).is_none());
        assert!(name("b'/zq/m%401%400%407a71000000000000%40half.weka1").key(None).is_none());
    }

    #[test]
    fn a_layer_is_a_group() {
        let (name, _) = ClassicName::parse(Path::new("7/m%401%400%407%40half%4031.weka1")).unwrap();
        assert_eq!(name.key(None).unwrap().scope().group(), 32);
    }

    #[test]
    fn temporary_names_are_told() {
        assert!(is_temporary("k.weka1.tmp0123abcd") && is_temporary("k.weka1.metadata.tmp0123abcd"));
        for name in ["k.weka1", "k.tmp0123abcd", "k.weka1.tmp0123abc", "k.weka1.tmp0123ABCD"] {
            assert!(!is_temporary(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_key_with_a_name_comes_back_and_shares_it_with_none(
            model in "[a-z/%é -]{1,12}", group in 0u32..3, a in prop::collection::vec(any::<u8>(), 1..=12),
            b in prop::collection::vec(any::<u8>(), 1..=12),
        ) {
            let dtype = KeyDType::from_name("fp8_e5m2").unwrap();
            let (a, b) = (key(&model, group, &a), key(&model, group, &b));
            let path = |key| ClassicName::of(key, dtype).map(|n| n.data(Suffix::Safetensors));
            if let Some(path) = path(&a) {
                let (name, _) = ClassicName::parse(&path).unwrap();
                prop_assert_eq!(name.key(None), Some(a.clone()));
            }
            prop_assert!(a == b || path(&a).is_none() || path(&a) != path(&b));
        }
    }
}
