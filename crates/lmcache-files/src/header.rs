//! The header of the GDS backend's files: 4096 bytes that stand at the start of the data file and, again, alone in the
//! `.metadata` file beside it.
//!
//! A little-endian `u64`, always 4088, then so many bytes of JSON padded with spaces. The payload follows in the data file
//! at offset 4096. The JSON is what Python's `json.dumps` makes, byte for byte:
//!
//! ```text
//! {"kvcache": {"dtype": "BF16", "shape": [2, 32, 256, 1024], "data_offsets": [0, 33554432], "fmt": 1,
//!  "__metadata__": {"lmcache_version": "1"}}}
//! ```
//!
//! LMCache keeps no digest. What is written here has one more entry in `__metadata__`, `kvstrata_digest`, which LMCache
//! passes over and which lets a load be verified.

use std::fmt::Write as _;

use kvstrata_core::{DType, Digest, Layout, TensorDesc};
use serde::Deserialize;

use crate::Refusal;

/// The header's length, and where the payload begins.
pub const HEADER_BYTES: usize = 4096;
const TEXT_BYTES: usize = HEADER_BYTES - 8;
/// The version that is written and read.
const VERSION: &str = "1";

macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $code:literal $text:literal,)*) => {
        /// How the numbers of an object are arranged. The codes are LMCache's.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Format {
            $($(#[$doc])* $name = $code,)*
        }

        impl Format {
            /// Every format.
            pub const ALL: [Self; 9] = [$(Self::$name),*];

            /// LMCache's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

formats! {
    /// None that has a name.
    Undefined = 0 "UNDEFINED",
    /// K and V, layers, tokens, hidden.
    Kv2ltd = 1 "KV_2LTD",
    /// Tokens, K and V, hidden.
    KvT2d = 2 "KV_T2D",
    /// K and V, tokens, hidden.
    Kv2td = 3 "KV_2TD",
    /// Compressed bytes.
    Binary = 4 "BINARY",
    /// Bytes.
    BinaryBuffer = 5 "BINARY_BUFFER",
    /// One, layers, tokens, head: latent attention.
    KvMla = 6 "KV_MLA_FMT",
    /// An encoder's cache: tokens, hidden.
    EcTd = 7 "EC_TD",
    /// Hidden states: tokens, hidden.
    HsTd = 8 "HS_TD",
}

impl Format {
    /// The format with this code.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|f| *f as u64 == code)
    }

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

/// What a header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The one tensor that the payload is.
    pub layout: Layout,
    /// How its numbers are arranged.
    pub fmt: Format,
    /// The digest, if this project wrote the object.
    pub digest: Option<Digest>,
}

#[derive(Deserialize)]
struct OnDisk {
    kvcache: Tensor,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
    fmt: u64,
    #[serde(rename = "__metadata__")]
    metadata: Extra,
}

#[derive(Deserialize)]
struct Extra {
    lmcache_version: String,
    #[serde(default)]
    kvstrata_digest: Option<String>,
}

impl Header {
    /// The header's bytes; `None` if the layout is not one tensor.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let [tensor] = self.layout.tensors() else { return None };
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let mut text = format!(
            "{{\"kvcache\": {{\"dtype\": \"{}\", \"shape\": [{}], \"data_offsets\": [0, {}], \"fmt\": {}, \
             \"__metadata__\": {{\"lmcache_version\": \"{VERSION}\"",
            tensor.dtype.name(),
            shape.join(", "),
            self.layout.bytes(),
            self.fmt as u8,
        );
        if let Some(digest) = self.digest {
            write!(text, ", \"kvstrata_digest\": \"{:016x}\"", digest.to_u64()).expect("to a string");
        }
        text.push_str("}}}");
        let mut block = vec![b' '; HEADER_BYTES];
        block[..8].copy_from_slice(&(TEXT_BYTES as u64).to_le_bytes());
        // At most 8 numbers of 20 digits: it always fits.
        block[8..8 + text.len()].copy_from_slice(text.as_bytes());
        Some(block)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Version` for another version; `Malformed` for what is no header or contradicts itself.
    pub fn decode(block: &[u8]) -> Result<Self, Refusal> {
        let text = block.get(8..HEADER_BYTES).ok_or(Refusal::Truncated)?;
        let len = u64::from_le_bytes(*block.first_chunk().ok_or(Refusal::Truncated)?);
        if len != TEXT_BYTES as u64 {
            return Err(Refusal::Malformed);
        }
        let OnDisk { kvcache: t } = serde_json::from_slice(text).map_err(|_| Refusal::Malformed)?;
        if t.metadata.lmcache_version != VERSION {
            return Err(Refusal::Version);
        }
        let fmt = Format::from_code(t.fmt).ok_or(Refusal::Malformed)?;
        let dtype = DType::from_name(&t.dtype).ok_or(Refusal::Malformed)?;
        let layout =
            Layout::new(vec![TensorDesc { dtype, shape: t.shape }]).map_err(|_| Refusal::Malformed)?;
        if t.data_offsets != [0, layout.bytes()] {
            return Err(Refusal::Malformed);
        }
        let digest = t.metadata.kvstrata_digest.map(|text| {
            let number = u64::from_str_radix(&text, 16).ok().filter(|n| format!("{n:016x}") == text);
            number.map(Digest::from_u64).ok_or(Refusal::Malformed)
        });
        Ok(Self { layout, fmt, digest: digest.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(dtype: DType, fmt: Format) -> Header {
        let layout = Layout::new(vec![TensorDesc { dtype, shape: vec![2, 32, 256, 1024] }]).unwrap();
        Header { layout, fmt, digest: None }
    }

    fn golden(text: &str) -> Vec<u8> {
        let mut block = vec![0xf8, 0x0f, 0, 0, 0, 0, 0, 0];
        block.extend_from_slice(text.as_bytes());
        block.resize(HEADER_BYTES, b' ');
        block
    }

    const TEXT: &str = r#"{"kvcache": {"dtype": "BF16", "shape": [2, 32, 256, 1024], "data_offsets": [0, 33554432], "fmt": 1, "__metadata__": {"lmcache_version": "1"}}}"#;

    /// P1-8, one half: the other is that a scan goes on.
    #[test]
    fn every_dtype_and_format_comes_back() {
        for dtype in DType::ALL {
            for fmt in Format::ALL {
                let h = header(dtype, fmt);
                assert_eq!(Header::decode(&h.encode().unwrap()), Ok(h.clone()));
                let digest = Some(Digest::from_u64(0xfeed));
                let h = Header { digest, ..h };
                assert_eq!(Header::decode(&h.encode().unwrap()), Ok(h.clone()));
            }
        }
        for fmt in Format::ALL {
            assert_eq!(
                (Format::from_code(fmt as u64), Format::from_name(fmt.name())),
                (Some(fmt), Some(fmt))
            );
        }
    }

    #[test]
    fn the_bytes_are_lmcaches() {
        let h = header(DType::BF16, Format::Kv2ltd);
        assert_eq!(h.encode().unwrap(), golden(TEXT));
        assert_eq!(Header::decode(&golden(TEXT)), Ok(h));
    }

    #[test]
    fn each_fault_is_told() {
        let decoded = |from: &str, to: &str| Header::decode(&golden(&TEXT.replace(from, to)));
        assert_eq!(decoded("\"1\"", "\"2\""), Err(Refusal::Version));
        for (from, to) in [
            ("BF16", "BF17"),
            ("33554432", "33554431"),
            ("[0, 33", "[1, 33"),
            ("\"fmt\": 1", "\"fmt\": 9"),
            ("\"fmt\": 1", "\"fmt\": -1"),
            ("[2, 32", "[0, 32"),
            ("[2, 32", "[-2, 32"),
            ("\"1\"", "\"1\", \"kvstrata_digest\": \"FEED\""),
            ("\"1\"", "1"),
            ("kvcache", "kv"),
            ("}}}", "}}"),
            ("}}}", "}}} x"),
        ] {
            assert_eq!(decoded(from, to), Err(Refusal::Malformed), "{from} as {to}");
        }
        assert_eq!(Header::decode(&golden(TEXT)[..4095]), Err(Refusal::Truncated));
        assert_eq!(Header::decode(&[]), Err(Refusal::Truncated));
        let mut long = golden(TEXT);
        long[0] = 0xf7;
        assert_eq!(Header::decode(&long), Err(Refusal::Malformed));
        assert!(decoded("\"1\"", "\"1\", \"another\": [1]").is_ok(), "more metadata is passed over");
    }

    #[test]
    fn two_tensors_have_no_header() {
        let one = TensorDesc { dtype: DType::U8, shape: vec![1] };
        let layout = Layout::new(vec![one.clone(), one]).unwrap();
        assert_eq!(Header { layout, fmt: Format::Binary, digest: None }.encode(), None);
    }
}
