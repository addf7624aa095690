//! Traces of requests to a serving engine, in the format that Mooncake published (FAST '25): one JSON object per line with
//! `timestamp` (milliseconds from the trace's start), `input_length` and `output_length` (tokens), and `hash_ids` (one
//! number per block of the prompt; equal numbers are equal prefixes).
//!
//! ```
//! use kvstrata_testkit::trace::{Reader, Synthetic, write};
//!
//! let settings = Synthetic { requests: 50, ..Synthetic::default() };
//! let mut file = Vec::new();
//! write(&mut file, settings.generate()?)?;
//! let requests: Vec<_> = Reader::new(&file[..]).collect::<Result<_, _>>()?;
//! assert_eq!(requests.len(), 50);
//! # Ok::<(), kvstrata_core::Error>(())
//! ```

mod read;
mod synthetic;

use std::io::Write;
use std::sync::Arc;

use kvstrata_core::{ChunkHash, Error, KeyScope, ObjectKey, Result};

pub use read::Reader;
pub use synthetic::Synthetic;

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// When it arrived, in milliseconds from the trace's start.
    pub timestamp: u64,
    /// Tokens of the prompt.
    pub input_length: u64,
    /// Tokens of the answer.
    pub output_length: u64,
    /// The blocks of the prompt, first to last.
    pub hash_ids: Vec<u64>,
}

/// The key of the block with this number: the chunk hash is the number as 8 bytes, big-endian.
pub fn key(scope: &Arc<KeyScope>, hash_id: u64) -> ObjectKey {
    ObjectKey::new(scope, ChunkHash::new(&hash_id.to_be_bytes()).expect("8 bytes"))
}

/// Writes requests as lines that [`Reader`] reads. The same requests are the same bytes.
///
/// # Errors
/// `Io` if `to` fails.
pub fn write(mut to: impl Write, requests: impl IntoIterator<Item = Request>) -> Result<()> {
    let mut line = String::new();
    for r in requests {
        use std::fmt::Write as _;
        line.clear();
        let Request { timestamp, input_length, output_length, hash_ids } = r;
        write!(
            line,
            "{{\"timestamp\": {timestamp}, \"input_length\": {input_length}, \
             \"output_length\": {output_length}, \"hash_ids\": {hash_ids:?}}}"
        )
        .expect("a string takes everything");
        line.push('\n');
        to.write_all(line.as_bytes()).map_err(|e| Error::io("write trace", e))?;
    }
    to.flush().map_err(|e| Error::io("write trace", e))
}
