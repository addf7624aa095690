//! What the bytes of an object are.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// An element type. The codes are the safetensors names that LMCache uses; the numbers are ours and frozen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum DType {
    U8 = 1,
    I8 = 2,
    U16 = 3,
    I16 = 4,
    U32 = 5,
    I32 = 6,
    U64 = 7,
    I64 = 8,
    F16 = 9,
    BF16 = 10,
    F32 = 11,
    F64 = 12,
    F8E4M3FN = 13,
    F8E5M2 = 14,
}

impl DType {
    /// Every type.
    pub const ALL: [Self; 14] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
        Self::F8E4M3FN,
        Self::F8E5M2,
    ];

    /// Bytes per element.
    pub const fn size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::F8E4M3FN | Self::F8E5M2 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The safetensors name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::F8E4M3FN => "F8E4M3FN",
            Self::F8E5M2 => "F8E5M2",
        }
    }

    /// The type with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == code)
    }

    /// The type with this safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }
}

/// One tensor of an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorDesc {
    /// The element type.
    pub dtype: DType,
    /// The extent of each dimension, outermost first.
    pub shape: Vec<u64>,
}

/// 128 bits that stand for a whole [`Layout`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayoutId([u8; 16]);

impl LayoutId {
    /// An id read back from where its bytes were kept.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes to keep.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for LayoutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The tensors that an object's bytes are, one after the other without gaps. Cheap to clone.
///
/// ```
/// use kvstrata_core::{DType, Layout, TensorDesc};
/// // K and V of 32 layers, 256 tokens, 8 heads of 128 in bf16: 32 MiB
/// let l = Layout::new(vec![TensorDesc { dtype: DType::BF16, shape: vec![2, 32, 256, 8, 128] }])?;
/// assert_eq!(l.bytes(), 32 << 20);
/// # Ok::<(), kvstrata_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Layout(Arc<Inner>);

struct Inner {
    tensors: Vec<TensorDesc>,
    bytes: u64,
    id: LayoutId,
}

impl Layout {
    /// The most bytes an object may have: 16 GiB, far above the 64 MiB of the largest chunk in use.
    pub const MAX_BYTES: u64 = 16 << 30;
    /// The most tensors in one object, and dimensions in one tensor.
    pub const MAX_TENSORS: usize = 64;
    /// See [`Self::MAX_TENSORS`].
    pub const MAX_DIMS: usize = 8;

    /// A layout of these tensors.
    ///
    /// # Errors
    /// `Invalid` if there are no tensors or too many, a tensor has no or too many dimensions or one of extent 0, or the
    /// whole exceeds [`Self::MAX_BYTES`].
    pub fn new(tensors: Vec<TensorDesc>) -> Result<Self> {
        let bad = |what: &str| Err(Error::invalid("make layout", what));
        if tensors.is_empty() || tensors.len() > Self::MAX_TENSORS {
            return bad("a layout has 1 to 64 tensors");
        }
        let mut bytes = 0u64;
        let mut text = Vec::new();
        for t in &tensors {
            if t.shape.is_empty() || t.shape.len() > Self::MAX_DIMS || t.shape.contains(&0) {
                return bad("a tensor has 1 to 8 dimensions, none of extent 0");
            }
            let size = t.shape.iter().try_fold(t.dtype.size(), |n, d| n.checked_mul(*d));
            match size.and_then(|n| bytes.checked_add(n)).filter(|n| *n <= Self::MAX_BYTES) {
                Some(total) => bytes = total,
                None => return bad("an object has at most 16 GiB"),
            }
            text.extend_from_slice(&[t.dtype as u8, t.shape.len() as u8]);
            t.shape.iter().for_each(|d| text.extend_from_slice(&d.to_le_bytes()));
        }
        let id = LayoutId(*blake3::hash(&text).as_bytes().first_chunk().expect("32 bytes"));
        Ok(Self(Arc::new(Inner { tensors, bytes, id })))
    }

    /// A layout of `bytes` bytes that nobody here looks into: one `U8` vector.
    ///
    /// # Errors
    /// `Invalid` if `bytes` is 0 or over [`Self::MAX_BYTES`].
    pub fn opaque(bytes: u64) -> Result<Self> {
        Self::new(vec![TensorDesc { dtype: DType::U8, shape: vec![bytes] }])
    }

    /// The tensors.
    pub fn tensors(&self) -> &[TensorDesc] {
        &self.0.tensors
    }

    /// The size of an object in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// What stands for this layout in an object's header: the first 128 bits of `blake3` over, per tensor, the dtype's
    /// number, the number of dimensions, and each dimension as a little-endian `u64`.
    pub fn id(&self) -> LayoutId {
        self.0.id
    }
}

impl PartialEq for Layout {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id && self.0.tensors == other.0.tensors
    }
}

impl Eq for Layout {}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.0.tensors.iter().enumerate() {
            write!(f, "{}{}{:?}", if i > 0 { " + " } else { "" }, t.dtype.name(), t.shape)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: DType, shape: &[u64]) -> Result<Layout> {
        Layout::new(vec![TensorDesc { dtype, shape: shape.to_vec() }])
    }

    #[test]
    fn codes_and_names_come_back() {
        for t in DType::ALL {
            assert_eq!((DType::from_code(t as u8), DType::from_name(t.name())), (Some(t), Some(t)));
        }
        assert_eq!((DType::from_code(0), DType::from_name("f16")), (None, None));
    }

    #[test]
    fn equal_layouts_have_equal_ids_and_each_difference_shows() {
        let a = one(DType::F16, &[2, 3]).unwrap();
        assert_eq!((a.bytes(), a.id()), (12, one(DType::F16, &[2, 3]).unwrap().id()));
        for b in [
            one(DType::BF16, &[2, 3]),
            one(DType::F16, &[3, 2]),
            one(DType::F16, &[6]),
            one(DType::F16, &[2, 3, 1]),
        ] {
            assert_ne!(a.id(), b.unwrap().id());
        }
    }

    #[test]
    fn impossible_layouts_are_refused() {
        assert!(Layout::new(vec![]).is_err());
        assert!(one(DType::U8, &[]).is_err());
        assert!(one(DType::U8, &[4, 0]).is_err());
        assert!(one(DType::U8, &[1; 9]).is_err());
        assert!(one(DType::F64, &[u64::MAX, 2]).is_err(), "no overflow");
        assert!(Layout::opaque(0).is_err() && Layout::opaque(Layout::MAX_BYTES + 1).is_err());
    }
}
