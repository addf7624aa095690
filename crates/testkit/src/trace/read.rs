//! Reading a trace, line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use kvstrata_core::{Error, Result};
use serde_json::{Map, Value};

use super::Request;

const OP: &str = "read trace";

/// The longest line in bytes; a prompt of a million blocks fits.
const MAX_LINE: u64 = 16 << 20;

/// Reads a trace as a stream. Fields that it does not know are left alone, since published traces carry more; empty lines
/// are passed over. After an error there are no more requests.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    line: u64,
    bytes: Vec<u8>,
    ended: bool,
}

impl Reader<BufReader<File>> {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As opening a file; the path is in the context.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io("open trace", e).with("path", path.display()))?;
        Ok(Self::new(BufReader::with_capacity(256 << 10, file)))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads lines from `from`.
    pub fn new(from: R) -> Self {
        Self { from, line: 0, bytes: Vec::new(), ended: false }
    }

    /// The number of the line that was read last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn read(&mut self) -> Result<Option<Request>> {
        loop {
            self.bytes.clear();
            self.line += 1;
            let at = |e: Error| e.with("line", self.line);
            let n = (&mut self.from)
                .take(MAX_LINE + 1)
                .read_until(b'\n', &mut self.bytes)
                .map_err(|e| at(Error::io(OP, e)))?;
            if n == 0 {
                return Ok(None);
            }
            if n as u64 > MAX_LINE {
                return Err(at(Error::invalid(OP, "a line has at most 16 MiB")));
            }
            if !self.bytes.trim_ascii().is_empty() {
                return parse(&self.bytes).map(Some).map_err(at);
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn parse(line: &[u8]) -> Result<Request> {
    let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|e| {
        Error::invalid(OP, format!("a line is one JSON object: {e}")).with("column", e.column())
    })?;
    let take = |field: &'static str| {
        fields.get(field).ok_or_else(|| Error::invalid(OP, "a field is missing").with("field", field))
    };
    let whole = |field: &'static str, v: &Value| {
        v.as_u64().ok_or_else(|| {
            Error::invalid(OP, "the field takes whole numbers from 0").with("field", field).with("value", v)
        })
    };
    let number = |field| take(field).and_then(|v| whole(field, v));
    let Value::Array(ids) = take("hash_ids")? else {
        return Err(Error::invalid(OP, "the field takes a list of whole numbers").with("field", "hash_ids"));
    };
    Ok(Request {
        timestamp: number("timestamp")?,
        input_length: number("input_length")?,
        output_length: number("output_length")?,
        hash_ids: ids.iter().map(|v| whole("hash_ids", v)).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_core::ErrorKind;

    const GOOD: &str = r#"{"timestamp": 3, "input_length": 513, "output_length": 7, "hash_ids": [0, 9]}"#;

    #[test]
    fn lines_come_in_order_and_what_is_not_known_is_left_alone() {
        let text = format!("{GOOD}\n\n  \n{}\r\n{GOOD}", GOOD.replace("{", "{\"session\": \"s\", "));
        let mut r = Reader::new(text.as_bytes());
        let first = r.next().unwrap().unwrap();
        assert_eq!(
            first,
            Request { timestamp: 3, input_length: 513, output_length: 7, hash_ids: vec![0, 9] }
        );
        assert_eq!(r.next().unwrap().unwrap(), first);
        assert_eq!(r.line(), 4);
        assert_eq!(r.by_ref().count(), 1, "the last line needs no line end");
    }

    #[test]
    fn a_bad_line_is_named_with_its_number_and_field() {
        for (bad, field, says) in [
            (GOOD.replace("timestamp", "time"), Some("timestamp"), "missing"),
            (GOOD.replace("513", "-1"), Some("input_length"), "whole numbers"),
            (GOOD.replace(": 7", ": 1.5"), Some("output_length"), "whole numbers"),
            (GOOD.replace("[0, 9]", "\"0\""), Some("hash_ids"), "list"),
            (GOOD.replace("9]", "\"9\"]"), Some("hash_ids"), "whole numbers"),
            (GOOD.replace("}", ""), None, "JSON object"),
            ("[1]".into(), None, "JSON object"),
            ("\u{1}".into(), None, "JSON object"),
        ] {
            let text = format!("{GOOD}\n{bad}\n{GOOD}\n");
            let mut r = Reader::new(text.as_bytes());
            assert!(r.next().unwrap().is_ok());
            let e = r.next().unwrap().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
            let context: Vec<_> = e.context().collect();
            assert!(context.contains(&("line", "2")), "{e}");
            assert!(field.is_none_or(|f| context.contains(&("field", f))), "{e}");
            assert!(e.to_string().contains(says), "{e}");
            assert!(r.next().is_none(), "nothing after an error");
        }
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let e = Reader::new(std::io::BufReader::new(std::io::repeat(b' '))).next().unwrap().unwrap_err();
        assert!(e.to_string().contains("16 MiB"), "{e}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let e = Reader::open("/nonexistent/trace.jsonl").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.to_string().contains("/nonexistent/trace.jsonl"), "{e}");
    }
}
