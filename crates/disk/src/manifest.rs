//! What a store says of itself, in `kvstrata.json` at its root.

use std::path::{Path, PathBuf};

use kvstrata_core::{DType, Error, ErrorKind, Layout, Namespace, ObjectKey, Result, TensorDesc};
use kvstrata_io::{Disk, Open};
use serde::{Deserialize, Serialize};

use crate::names::{MANIFEST, is_below};
use crate::slab::geometry::UNIT;
use crate::{FORMAT_VERSION, StoreLayout};

const FORMAT: &str = "kvstrata";
const KEY_HASH: &str = "blake3-256";
const DIGEST: &str = "crc64nvme-bound";
/// A manifest holds descriptions of models, not data.
const MAX_BYTES: u64 = 4 << 20;

/// The manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Tells stores apart: a snapshot or a path of another store is not taken for this one's.
    pub store_id: u128,
    /// The namespaces; number `n` in a header is the one at `n - 1`.
    pub namespaces: Vec<Namespace>,
    /// Where files are written before they are published, relative to the root, if that is not `tmp`: whoever opens the
    /// store with another directory knows where to look for what was left unfinished.
    pub tmp: Option<PathBuf>,
    /// Of a store of segments, the length of one in bytes: places are reckoned with it.
    pub segment: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Version {
    format: String,
    version: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    format: String,
    version: u16,
    store_id: String,
    layout: String,
    key_hash: String,
    digest: String,
    namespaces: Vec<NamespaceOnDisk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tmp: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment_bytes: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceOnDisk {
    model: String,
    world_size: u8,
    chunk_tokens: u32,
    hash_schema: u16,
    layout: Vec<TensorOnDisk>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorOnDisk {
    dtype: String,
    shape: Vec<u64>,
}

const OP: &str = "read manifest";

pub(crate) fn differs(field: &'static str, stored: &str, wanted: &str) -> Error {
    Error::new(ErrorKind::Mismatch, "open store", "the store was written with other settings")
        .with("field", field)
        .with("stored", stored)
        .with("wanted", wanted)
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, OP, what)
}

impl Manifest {
    /// How the store's objects lie in files.
    pub fn layout(&self) -> StoreLayout {
        if self.segment.is_some() { StoreLayout::Slab } else { StoreLayout::Files }
    }

    /// The manifest's bytes: JSON, indented, so that a person can read it.
    pub fn encode(&self) -> Vec<u8> {
        let on_disk = OnDisk {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            store_id: format!("{:032x}", self.store_id),
            layout: self.layout().name().into(),
            key_hash: KEY_HASH.into(),
            digest: DIGEST.into(),
            namespaces: self.namespaces.iter().map(NamespaceOnDisk::from).collect(),
            tmp: self.tmp.clone(),
            segment_bytes: self.segment,
        };
        let mut bytes = serde_json::to_vec_pretty(&on_disk).expect("strings and numbers");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// `Mismatch` naming the field for a store of another format, version, layout or hash; `Corrupt` for what is no
    /// manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let json = |e: serde_json::Error| corrupt("the manifest does not parse").caused_by(e);
        let version: Version = serde_json::from_slice(bytes).map_err(json)?;
        let same = |field, stored: &str, wanted: &str| {
            if stored == wanted { Ok(()) } else { Err(differs(field, stored, wanted)) }
        };
        same("format", &version.format, FORMAT)?;
        same("version", &version.version.to_string(), &FORMAT_VERSION.to_string())?;
        let m: OnDisk = serde_json::from_slice(bytes).map_err(json)?;
        match m.segment_bytes {
            None => same("layout", &m.layout, StoreLayout::Files.name())?,
            Some(bytes) => {
                same("layout", &m.layout, StoreLayout::Slab.name())?;
                if !bytes.is_multiple_of(UNIT) || !(1 << 20..=1 << 40).contains(&bytes) {
                    return Err(
                        corrupt("segment_bytes is not a length of segments").with("segment_bytes", bytes)
                    );
                }
            }
        }
        same("key_hash", &m.key_hash, KEY_HASH)?;
        same("digest", &m.digest, DIGEST)?;
        let store_id = u128::from_str_radix(&m.store_id, 16)
            .map_err(|e| corrupt("store_id is no hexadecimal number").caused_by(e))?;
        let namespaces: Vec<Namespace> =
            m.namespaces.iter().map(Namespace::try_from).collect::<Result<_>>()?;
        for (i, namespace) in namespaces.iter().enumerate() {
            if namespaces[..i].iter().any(|n| n.model == namespace.model) {
                return Err(corrupt("a model is described twice").with("model", &namespace.model));
            }
        }
        if let Some(tmp) = m.tmp.as_ref().filter(|tmp| !is_below(tmp)) {
            return Err(corrupt("tmp is no directory below the store's").with("tmp", tmp.display()));
        }
        Ok(Self { store_id, namespaces, tmp: m.tmp, segment: m.segment_bytes })
    }

    /// Adds a description; whether it is new.
    ///
    /// # Errors
    /// `Mismatch` naming the field if the same model is described differently.
    pub fn add(&mut self, wanted: &Namespace) -> Result<bool> {
        let Some(stored) = self.namespaces.iter().find(|n| n.model == wanted.model) else {
            self.namespaces.push(wanted.clone());
            return Ok(true);
        };
        match stored.differs(wanted) {
            None => Ok(false),
            Some(d) => Err(differs(d.field, &d.stored, &d.wanted).with("model", &wanted.model)),
        }
    }

    /// The number of a key's namespace, 0 if its model is not described.
    ///
    /// # Errors
    /// `Mismatch` if the model is described with another parallelism than the key has.
    pub fn namespace_of(&self, key: &ObjectKey) -> Result<u32> {
        let scope = key.scope();
        let Some(at) = self.namespaces.iter().position(|n| n.model == scope.model()) else { return Ok(0) };
        let (stored, wanted) = (self.namespaces[at].world_size, scope.rank().world_size());
        if stored != wanted {
            return Err(Error::new(
                ErrorKind::Mismatch,
                "store object",
                "the store describes this model differently",
            )
            .with("field", "world_size")
            .with("stored", stored)
            .with("wanted", wanted)
            .with("model", scope.model()));
        }
        Ok(at as u32 + 1)
    }

    /// Reads the manifest of the store at `root`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::decode`], and what the disk says.
    pub fn read<D: Disk>(disk: &D, root: &Path) -> Result<Option<Self>> {
        let path = root.join(MANIFEST);
        let io = |e| Error::io(OP, e).with("path", path.display());
        let file = match disk.open(&path, Open::default()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io)?,
        };
        let len = disk.file_metadata(&file).map_err(io)?.len;
        if len > MAX_BYTES {
            return Err(corrupt("the manifest is too long").with("bytes", len));
        }
        let mut bytes = vec![0; len as usize];
        disk.read_exact_at(&file, 0, &mut bytes).map_err(io)?;
        Self::decode(&bytes).map(Some).map_err(|e| e.with("path", path.display()))
    }

    /// Writes the manifest through `temp`, which must not exist, so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// What the disk says; `temp` is gone then.
    pub fn write<D: Disk>(&self, disk: &D, root: &Path, temp: &Path) -> Result<()> {
        let path = root.join(MANIFEST);
        let write = || {
            let file = disk.open(temp, Open { write: true, create_new: true, ..Open::default() })?;
            disk.write_all_at(&file, 0, &self.encode())?;
            disk.sync_file(&file)?;
            drop(file);
            disk.rename(temp, &path)?;
            disk.sync_dir(root)
        };
        write().map_err(|e| {
            drop(disk.unlink(temp));
            Error::io("write manifest", e).with("path", path.display())
        })
    }
}

impl From<&Namespace> for NamespaceOnDisk {
    fn from(n: &Namespace) -> Self {
        let tensor = |t: &TensorDesc| TensorOnDisk { dtype: t.dtype.name().into(), shape: t.shape.clone() };
        Self {
            model: n.model.clone(),
            world_size: n.world_size,
            chunk_tokens: n.chunk_tokens,
            hash_schema: n.hash_schema,
            layout: n.layout.tensors().iter().map(tensor).collect(),
        }
    }
}

impl TryFrom<&NamespaceOnDisk> for Namespace {
    type Error = Error;

    fn try_from(n: &NamespaceOnDisk) -> Result<Self> {
        let tensor = |t: &TensorOnDisk| {
            let dtype =
                DType::from_name(&t.dtype).ok_or_else(|| corrupt("unknown dtype").with("dtype", &t.dtype))?;
            Ok(TensorDesc { dtype, shape: t.shape.clone() })
        };
        let tensors = n.layout.iter().map(tensor).collect::<Result<_>>()?;
        Ok(Self {
            model: n.model.clone(),
            world_size: n.world_size,
            chunk_tokens: n.chunk_tokens,
            hash_schema: n.hash_schema,
            layout: Layout::new(tensors).map_err(|e| corrupt("a layout breaks its rule").caused_by(e))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Namespace {
        let tensors = vec![TensorDesc { dtype: DType::BF16, shape: vec![2, 32, 256, 8, 128] }];
        Namespace {
            model: "org/model".into(),
            world_size: 8,
            chunk_tokens: 256,
            hash_schema: 1,
            layout: Layout::new(tensors).unwrap(),
        }
    }

    #[test]
    fn the_format_is_frozen() {
        let m = Manifest { store_id: 0xfeed, namespaces: vec![namespace()], tmp: None, segment: None };
        let golden = include_bytes!("../tests/golden/manifest-v1.json");
        assert_eq!(String::from_utf8(m.encode()).unwrap(), String::from_utf8(golden.to_vec()).unwrap());
        assert_eq!(Manifest::decode(golden).unwrap(), m);
        let m = Manifest { segment: Some(1 << 30), ..m };
        let golden = include_bytes!("../tests/golden/manifest-slab-v1.json");
        assert_eq!(String::from_utf8(m.encode()).unwrap(), String::from_utf8(golden.to_vec()).unwrap());
        assert_eq!(Manifest::decode(golden).unwrap(), m);
    }

    #[test]
    fn what_differs_is_named() {
        let golden = include_str!("../tests/golden/manifest-v1.json");
        let field = |from: &str, to: &str| {
            let e = Manifest::decode(golden.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
            e.context().next().unwrap().1.to_owned()
        };
        assert_eq!(field("\"version\": 1", "\"version\": 2"), "version");
        assert_eq!(field("file-per-object", "slab"), "layout", "which says how long its segments are");
        assert_eq!(field("\"namespaces\"", "\"segment_bytes\": 1073741824, \"namespaces\""), "layout");
        assert_eq!(field("blake3-256", "sha256"), "key_hash");
        assert_eq!(field("\"kvstrata\"", "\"other\""), "format");
        let elsewhere = golden.replacen("\"namespaces\"", "\"tmp\": \"../t\", \"namespaces\"", 1);
        assert_eq!(Manifest::decode(elsewhere.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt);
        for broken in
            ["", "{", "[]", "{\"format\":\"kvstrata\",\"version\":1}", &golden.replace("BF16", "BF17")]
        {
            assert_eq!(
                Manifest::decode(broken.as_bytes()).unwrap_err().kind(),
                ErrorKind::Corrupt,
                "{broken}"
            );
        }
    }

    #[test]
    fn a_model_has_one_description() {
        let mut m = Manifest { store_id: 1, namespaces: vec![], tmp: None, segment: None };
        assert!(m.add(&namespace()).unwrap());
        assert!(!m.add(&namespace()).unwrap());
        let e = m.add(&Namespace { chunk_tokens: 16, ..namespace() }).unwrap_err();
        assert!(e.to_string().contains("field: chunk_tokens, stored: 256, wanted: 16"), "{e}");
        assert!(m.add(&Namespace { model: "other".into(), ..namespace() }).unwrap());
    }
}
