//! Settings files: what they are called, where a key stands in them, and what is not even tried.

use std::path::{Path, PathBuf};

use config::{FileFormat, Format, Map, Value};
use kvstrata_core::{Error, Result};

const OP: &str = "read settings file";

/// More than any hand-written file has; the parsers recurse, and one of them copies aliases.
const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 64;

/// How a settings file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// `.toml`
    Toml,
    /// `.yaml`, `.yml`
    Yaml,
    /// `.json`
    Json,
}

/// The text of a settings file.
#[derive(Clone, Debug)]
pub struct SettingsFile {
    path: PathBuf,
    kind: FileKind,
    text: String,
}

impl SettingsFile {
    /// A file's text, from wherever it came; `path` is for messages only.
    pub fn from_text(path: impl Into<PathBuf>, kind: FileKind, text: impl Into<String>) -> Self {
        Self { path: path.into(), kind, text: text.into() }
    }

    /// Reads a file; its extension says how it is written.
    ///
    /// # Errors
    /// `Invalid` for another extension, for what is no file, for more than 1 MiB, and for what is not UTF-8; else the
    /// operating system's error.
    pub fn read(path: &Path) -> Result<Self> {
        let invalid = |message: &str| Error::invalid(OP, message).with("file", path.display());
        let kind = match path.extension().and_then(|e| e.to_str()).map(str::to_lowercase).as_deref() {
            Some("toml") => FileKind::Toml,
            Some("yaml" | "yml") => FileKind::Yaml,
            Some("json") => FileKind::Json,
            _ => return Err(invalid("a settings file ends in .toml, .yaml, .yml or .json")),
        };
        let io = |e| Error::io(OP, e).with("file", path.display());
        let meta = std::fs::metadata(path).map_err(io)?;
        if !meta.is_file() {
            return Err(invalid("that is not a file"));
        }
        if meta.len() > MAX_BYTES {
            return Err(invalid("a settings file has at most 1 MiB").with("bytes", meta.len()));
        }
        let text = String::from_utf8(std::fs::read(path).map_err(io)?).map_err(|e| {
            let line =
                1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
            invalid("a settings file is UTF-8").with("line", line)
        })?;
        Ok(Self { path: path.to_owned(), kind, text })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's keys and values.
    pub(crate) fn parse(&self) -> Result<Map<String, Value>> {
        if self.text.len() as u64 > MAX_BYTES {
            return Err(self.invalid("a settings file has at most 1 MiB"));
        }
        self.check_depth()?;
        let format = match self.kind {
            FileKind::Toml => FileFormat::Toml,
            FileKind::Yaml => FileFormat::Yaml,
            FileKind::Json => FileFormat::Json,
        };
        // The parsers say the line and the column themselves.
        Format::parse(&format, None, &self.text).map_err(|e| self.invalid(e.to_string().trim()))
    }

    /// Where the key of this path stands, as text for an origin: `conf.toml:3`.
    pub(crate) fn place(&self, path: &[String]) -> String {
        match self.line_of(path) {
            Some(line) => format!("{}:{line}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    fn invalid(&self, message: &str) -> Error {
        Error::invalid(OP, message).with("file", self.path.display())
    }

    /// The line of the key, counted from 1: each segment is looked for behind the one before it. The parsers keep no
    /// places of what they accepted.
    fn line_of(&self, path: &[String]) -> Option<usize> {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut at = 0;
        for segment in path {
            let found = lines.iter().skip(at).position(|line| mentions_key(line, segment));
            // A segment that stands on no line of its own is part of a dotted one that was found already.
            at = match found {
                Some(n) => at + n,
                None if lines.get(at).is_some_and(|line| line.contains(segment.as_str())) => at,
                None => return None,
            };
        }
        Some(at + 1).filter(|_| !path.is_empty())
    }

    /// Refuses nesting on which a recursive parser would run out of stack, and YAML aliases, which can make a page of
    /// text into more than memory holds. The parsers of JSON and TOML stop by themselves at brackets that nest too deeply.
    fn check_depth(&self) -> Result<()> {
        let deep = |line: usize| self.invalid("the file is nested too deeply").with("line", line);
        match self.kind {
            FileKind::Json => return Ok(()),
            FileKind::Toml => {
                let dotted = self.text.lines().position(|line| line.matches('.').count() > 1000);
                return dotted.map_or(Ok(()), |n| Err(deep(n + 1)));
            }
            FileKind::Yaml => {}
        }
        use yaml_rust2::parser::{Event, Parser};
        let mut parser = Parser::new_from_str(&self.text);
        let mut depth = 0usize;
        loop {
            let (event, mark) = parser.next_token().map_err(|e| self.invalid(&e.to_string()))?;
            match event {
                Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
                Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
                Event::Alias(_) => {
                    return Err(self.invalid("YAML aliases are not accepted").with("line", mark.line()));
                }
                Event::StreamEnd => return Ok(()),
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(deep(mark.line()));
            }
        }
    }
}

/// Whether a line of TOML, YAML or JSON has `key` as (part of) a key.
fn mentions_key(line: &str, key: &str) -> bool {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '{' | ',' | '['));
    if line.starts_with('#') {
        return false;
    }
    let head = line.split(['=', ':', ']']).next().unwrap_or_default();
    let part = |p: &str| p.trim().trim_matches(['"', '\'']) == key;
    part(head) || head.split('.').any(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn a_key_is_found_where_it_stands() {
        let toml = "# l1 here\nchunk_size = 1\n[l2]\nsize = 3\n[l1]\nsize = 2\n";
        let file = SettingsFile::from_text("a.toml", FileKind::Toml, toml);
        assert_eq!(file.place(&path(&["l1", "size"])), "a.toml:6");
        assert_eq!(file.place(&path(&["chunk_size"])), "a.toml:2");
        assert_eq!(file.place(&path(&["nothing"])), "a.toml");
        let dotted = SettingsFile::from_text("a.toml", FileKind::Toml, "\nl1.size = 2\n");
        assert_eq!(dotted.place(&path(&["l1", "size"])), "a.toml:2");
        let yaml = "l2:\n  adapters:\n    - type: mock\nl1:\n  \"size\": 3\n";
        let file = SettingsFile::from_text("a.yaml", FileKind::Yaml, yaml);
        assert_eq!(file.place(&path(&["l1", "size"])), "a.yaml:5");
        let json = "{\n \"l1\": {\n  \"size\": 3}}";
        assert_eq!(
            SettingsFile::from_text("a.json", FileKind::Json, json).place(&path(&["l1", "size"])),
            "a.json:3"
        );
    }

    #[test]
    fn what_would_exhaust_the_stack_or_memory_is_refused() {
        for (kind, text) in [
            (FileKind::Yaml, "[".repeat(100_000)),
            (FileKind::Yaml, "- ".repeat(100_000)),
            (FileKind::Yaml, "? ".repeat(100_000)),
            (FileKind::Json, format!("{{\"a\":{}", "[".repeat(100_000))),
            (FileKind::Toml, format!("a = {}", "[".repeat(100_000))),
            (FileKind::Toml, format!("a{} = 1", ".a".repeat(100_000))),
            (FileKind::Yaml, "a: &a [x]\nb: *a\n".to_owned()),
        ] {
            let e = SettingsFile::from_text("f", kind, text).parse().unwrap_err();
            assert_eq!(e.kind(), kvstrata_core::ErrorKind::Invalid, "{e}");
        }
    }
}
