//! What every decoder must do with every input. The fuzz targets call these, and so does the test of their corpus,
//! `tests/tests/corpus`, which has this file as a module of its own.
//!
//! Each takes bytes from anywhere, panics when a promise is broken, and says whether the input was accepted. What is
//! accepted must survive being written and read again. A decoder behind a checksum would turn almost everything away, so
//! its target also puts the right one in.

use std::path::Path;

use crc_fast::{CrcAlgorithm, checksum};
use kvstrata_config::{AdapterSettings, FileKind, Machine, Registry, Resolved, SettingsFile, Sources};
use kvstrata_core::{Error, ErrorKind, encode};
use kvstrata_disk::{Block, HEADER_BYTES, Header, Manifest, rewrite_index, rewrite_log, rewrite_snapshot};
use kvstrata_lmcache_files as lmcache_files;
use kvstrata_lmcache_files::classic::ClassicName;
use kvstrata_lmcache_files::flat::{self, Models};
use kvstrata_server::wire::{Operation, read_answer, read_request, reply_parts, request_parts};
use kvstrata_testkit::trace;
use kvstrata_zmtp::{Decoder, Event};

/// A decoder, and how much memory it may take for an input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the fuzz target, and of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Runs it on one input; whether that was accepted.
    pub run: fn(&[u8]) -> bool,
    /// Bytes of memory that any input may take at once.
    pub base: usize,
    /// Bytes of memory on top of that per byte of input.
    pub per_byte: usize,
}

/// All of them.
pub const TARGETS: [Target; 13] = [
    Target { name: "key", run: key, base: 16 << 10, per_byte: 16 },
    Target { name: "header", run: header, base: 64 << 10, per_byte: 16 },
    Target { name: "manifest", run: manifest, base: 64 << 10, per_byte: 128 },
    Target { name: "snapshot", run: snapshot, base: 64 << 10, per_byte: 64 },
    Target { name: "slab_log", run: slab_log, base: 64 << 10, per_byte: 64 },
    Target { name: "slab_snapshot", run: slab_snapshot, base: 1 << 20, per_byte: 64 },
    Target { name: "trace", run: trace, base: 64 << 10, per_byte: 256 },
    Target { name: "config_file", run: config_file, base: 1 << 20, per_byte: 1024 },
    Target { name: "config_flags", run: config_flags, base: 1 << 20, per_byte: 1024 },
    Target { name: "adapter", run: adapter, base: 256 << 10, per_byte: 512 },
    Target { name: "lmcache", run: lmcache, base: 64 << 10, per_byte: 128 },
    Target { name: "zmtp", run: zmtp, base: 64 << 10, per_byte: 256 },
    Target { name: "lmcache_wire", run: lmcache_wire, base: 256 << 10, per_byte: 512 },
];

/// The machine that settings are checked for.
const MACHINE: Machine = Machine { memory: 64 << 30 };

/// The binary form of a key: one encoding per key, and one key per encoding.
pub fn key(data: &[u8]) -> bool {
    let key = match encode::decode_key(data) {
        Ok(key) => key,
        Err(e) => return refused(&e, &[ErrorKind::Corrupt, ErrorKind::Mismatch]),
    };
    let mut again = Vec::new();
    encode::encode_key(&key, &mut again);
    assert_eq!(again, data, "a second encoding of {key:?}");
    assert!(data.len() <= encode::MAX_KEY);
    let read = encode::decode_key(&again).expect("what was written");
    assert_eq!((read.fingerprint256(), &read), (key.fingerprint256(), &key));
    true
}

/// An object's header block: as it is, and with the checksum that fits.
pub fn header(data: &[u8]) -> bool {
    const CRC_AT: usize = HEADER_BYTES as usize - 8;
    let mut block = Block::zeroed();
    let n = data.len().min(block.bytes().len());
    block.bytes_mut()[..n].copy_from_slice(&data[..n]);
    let as_it_is = Header::decode(&block).is_ok();
    let crc = checksum(CrcAlgorithm::Crc64Nvme, &block.bytes()[..CRC_AT]);
    block.bytes_mut()[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    match Header::decode(&block) {
        Err(fault) => assert!(!as_it_is && !fault.to_string().is_empty(), "{fault}"),
        Ok(header) => {
            assert_eq!(Header::decode(&header.encode()), Ok(header.clone()));
            assert!(header.fits(HEADER_BYTES + header.len) && !header.fits(HEADER_BYTES + header.len - 1));
            // Whatever bit rots, the block is no header any more.
            let at = crc as usize % (8 * CRC_AT);
            block.bytes_mut()[at / 8] ^= 1 << (at % 8);
            assert!(Header::decode(&block).is_err(), "a flipped bit {at} goes unnoticed in {header:?}");
        }
    }
    as_it_is
}

/// Names and headers of LMCache's: a file of its `fs` adapters, the place of a file of its GDS backend, and the text of a
/// header. One input is tried as each.
pub fn lmcache(data: &[u8]) -> bool {
    let mut accepted = false;
    if let Ok(text) = std::str::from_utf8(data) {
        let models = Models::default();
        if let Ok(key) = flat::parse(text, &models) {
            let names = flat::names(&key, &models);
            assert!(
                text.len() > 255 || names.iter().any(|name| name == text),
                "{text} is {key}, which is {names:?}"
            );
            accepted = true;
        }
        if let Ok((name, suffix)) = ClassicName::parse(Path::new(text)) {
            assert_eq!(name.data(suffix), Path::new(text));
            let key = name.key(None);
            if let Some(again) = key.as_ref().and_then(|key| ClassicName::of(key, name.dtype())) {
                assert_eq!((again.data(suffix), again.key(None)), (name.data(suffix), key));
            }
            accepted = true;
        }
    }
    let mut block = vec![b' '; lmcache_files::HEADER_BYTES];
    block[..8].copy_from_slice(&(lmcache_files::HEADER_BYTES as u64 - 8).to_le_bytes());
    let n = data.len().min(block.len() - 8);
    block[8..8 + n].copy_from_slice(&data[..n]);
    if let Ok(header) = lmcache_files::Header::decode(&block) {
        let again = header.encode().expect("a header has one tensor");
        assert_eq!(lmcache_files::Header::decode(&again), Ok(header));
        accepted = true;
    }
    accepted
}

/// A store's manifest.
pub fn manifest(data: &[u8]) -> bool {
    let manifest = match Manifest::decode(data) {
        Ok(manifest) => manifest,
        Err(e) => return refused(&e, &[ErrorKind::Corrupt, ErrorKind::Mismatch]),
    };
    let bytes = manifest.encode();
    assert!(bytes.len() <= 1024 + 32 * data.len(), "{} bytes of {}", bytes.len(), data.len());
    let mut again = Manifest::decode(&bytes).expect("what was written");
    assert_eq!(again, manifest);
    for namespace in &manifest.namespaces {
        let added = again.add(namespace).map_err(|e| e.to_string());
        assert_eq!(added, Ok(false), "a store that does not agree with itself: {}", namespace.model);
    }
    true
}

/// A snapshot of a store's index: of the store that it names, as it is and with the checksum that fits.
pub fn snapshot(data: &[u8]) -> bool {
    let Some(id) = data.get(16..32).and_then(|id| id.try_into().ok()) else {
        assert!(rewrite_index(data, 0).is_err(), "{} bytes are no snapshot", data.len());
        return false;
    };
    let id = u128::from_le_bytes(id);
    let as_it_is = rewrite_index(data, id).is_ok();
    let body = data.split_last_chunk::<8>().map_or(data, |(body, _)| body);
    let mut mended = body.to_vec();
    mended.extend_from_slice(&checksum(CrcAlgorithm::Crc64Nvme, body).to_le_bytes());
    match rewrite_index(&mended, id) {
        Err(e) => assert!(!as_it_is && !refused(&e, &[ErrorKind::Corrupt])),
        Ok(first) => {
            assert!(first.len() <= mended.len(), "{} bytes of {}", first.len(), mended.len());
            let second = rewrite_index(&first, id).expect("what was written");
            assert!(second == first, "written again it is not the same");
            assert!(rewrite_index(&mended, !id).is_err(), "of another store");
        }
    }
    as_it_is
}

/// The log of a store of segments: its good records, written again, are the same ones.
pub fn slab_log(data: &[u8]) -> bool {
    let Some(id) = data.get(16..32).and_then(|id| id.try_into().ok()) else {
        assert!(rewrite_log(data, 0).is_err(), "{} bytes are no log", data.len());
        return false;
    };
    let id = u128::from_le_bytes(id);
    twice(rewrite_log(data, id), |first| rewrite_log(first, id))
}

/// The snapshot of a store of segments: the objects of its good pages, written again, are the same ones.
pub fn slab_snapshot(data: &[u8]) -> bool {
    let Some(id) = data.get(40..56).and_then(|id| id.try_into().ok()) else {
        assert!(rewrite_snapshot(data, 0).is_err(), "{} bytes are no snapshot", data.len());
        return false;
    };
    let id = u128::from_le_bytes(id);
    twice(rewrite_snapshot(data, id), |first| rewrite_snapshot(first, id))
}

fn twice(first: Result<Vec<u8>, Error>, again: impl Fn(&[u8]) -> Result<Vec<u8>, Error>) -> bool {
    match first {
        Err(e) => refused(&e, &[ErrorKind::Corrupt, ErrorKind::Mismatch]),
        Ok(first) => {
            assert!(again(&first).expect("what was written") == first, "written again it is not the same");
            true
        }
    }
}

/// A trace of requests.
pub fn trace(data: &[u8]) -> bool {
    let mut reader = trace::Reader::new(data);
    let (mut requests, mut whole) = (Vec::new(), true);
    for next in reader.by_ref() {
        assert!(whole, "nothing comes after an error");
        match next {
            Ok(request) => requests.push(request),
            Err(e) => {
                let line = e.context().find(|(name, _)| *name == "line").expect("the line is named").1;
                assert!(line.parse().is_ok_and(|n: u64| n > 0 && n <= data.len() as u64));
                whole = refused(&e, &[ErrorKind::Invalid]);
            }
        }
    }
    let blocks: usize = requests.iter().map(|r| r.hash_ids.len()).sum();
    assert!(blocks <= data.len() && requests.len() <= data.len());
    let mut text = Vec::new();
    trace::write(&mut text, requests.iter().cloned()).expect("memory takes everything");
    let again: Vec<_> = trace::Reader::new(&text[..]).map(|r| r.expect("what was written")).collect();
    assert_eq!(again, requests);
    whole
}

/// A settings file: the first line is `toml`, `yaml` or `json`, and the file is the rest.
pub fn config_file(data: &[u8]) -> bool {
    let Some((kind, text)) = std::str::from_utf8(data).ok().and_then(|t| t.split_once('\n')) else {
        return false;
    };
    let kind = match kind {
        "toml" => FileKind::Toml,
        "yaml" => FileKind::Yaml,
        "json" => FileKind::Json,
        _ => return false,
    };
    let file = Some(SettingsFile::from_text("kv.conf", kind, text));
    settings(&Sources { file, ..Sources::default() })
}

/// A command line: a flag per line, with its value behind `=` or without one.
pub fn config_flags(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    // A hand types few; each costs a look at every name there is.
    let flags =
        text.lines().filter(|line| !line.is_empty()).take(64).map(|line| match line.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (line.to_owned(), None),
        });
    settings(&Sources { flags: flags.collect(), ..Sources::default() })
}

/// Settings that are accepted are the same when they are written down and read again.
fn settings(sources: &Sources) -> bool {
    let read = match Resolved::load(sources, &MACHINE, &Registry::builtin()) {
        Ok(read) => read,
        Err(e) => return refused(&e, &[ErrorKind::Invalid, ErrorKind::Unsupported]),
    };
    assert!(read.rows().iter().all(|row| !row.value.is_empty() && !row.origin.is_empty()));
    let text = serde_json::to_string(&read.settings).expect("plain data");
    let file = Some(SettingsFile::from_text("again.json", FileKind::Json, text.as_str()));
    let again = Resolved::load(&Sources { file, ..Sources::default() }, &MACHINE, &Registry::builtin());
    let again = again.unwrap_or_else(|e| panic!("what was accepted is refused when read again: {e}\n{text}"));
    assert_eq!(again.settings, read.settings);
    true
}

/// One adapter's settings, as JSON.
pub fn adapter(data: &[u8]) -> bool {
    let Ok(settings) = serde_json::from_slice::<AdapterSettings>(data) else { return false };
    let text = serde_json::to_vec(&settings).expect("plain data");
    assert_eq!(serde_json::from_slice::<AdapterSettings>(&text).expect("what was written"), settings);
    for (name, value) in settings.keys() {
        let hidden = name == "password" && value.as_str().is_some_and(|v| v.len() > 20);
        assert!(!hidden || !settings.to_string().contains(value.as_str().unwrap_or_default()), "a secret");
    }
    let registry = Registry::builtin();
    match registry.check("one", &settings) {
        Err(e) => refused(&e, &[ErrorKind::Invalid, ErrorKind::Unsupported]),
        Ok(warnings) => {
            assert!(warnings.len() <= settings.keys().len() + data.len());
            true
        }
    }
}

/// A refusal says something, and is of a kind that the caller can tell from a defect.
fn refused(e: &Error, kinds: &[ErrorKind]) -> bool {
    assert!(kinds.contains(&e.kind()), "{:?} is not how this is refused: {e}", e.kind());
    assert!(!e.to_string().is_empty());
    false
}

/// A connection's bytes: the events do not depend on the pieces they come in. Accepted if they have a message.
pub fn zmtp(data: &[u8]) -> bool {
    let read = |piece: usize| {
        let mut decoder = Decoder::new(1 << 16, 8);
        let (mut input, mut events) = (bytes::BytesMut::new(), Vec::new());
        for piece in data.chunks(piece) {
            input.extend_from_slice(piece);
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(e) => return (events, Some(e)),
                }
            }
        }
        (events, None)
    };
    let whole = read(data.len().max(1));
    assert_eq!(whole, read(7), "it depends on the pieces");
    let (events, error) = whole;
    for event in &events {
        if let Event::Message(parts) = event {
            assert!(parts.len() <= 8 && parts.iter().map(|p| p.len()).sum::<usize>() <= 1 << 16);
        }
    }
    error.is_none() && events.iter().any(|e| matches!(e, Event::Message(_)))
}

/// The arguments of a request of LMCache's clients: an operation's place in the list, then each argument behind its length
/// in two bytes. What is read is written and read again as the same. The first argument is read as an answer, too.
pub fn lmcache_wire(data: &[u8]) -> bool {
    let Some((&op, mut rest)) = data.split_first() else { return false };
    let op = Operation::ALL[usize::from(op) % Operation::ALL.len()];
    let mut arguments = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(after.len());
        arguments.push(bytes::Bytes::copy_from_slice(&after[..len]));
        rest = &after[len..];
    }
    if let Some(result) = arguments.first()
        && let Ok(reply) = read_answer(op, &[op.part(), result.clone()])
    {
        let parts = reply_parts(bytes::Bytes::new(), op, &reply);
        assert_eq!(read_answer(op, &parts[1..]), Ok(reply), "read again");
    }
    let request = match read_request(op, &arguments) {
        Ok(request) => request,
        Err(e) => {
            assert!(!e.field.is_empty() && !e.expected.is_empty());
            return false;
        }
    };
    let parts = request_parts(1, &request);
    assert_eq!(Operation::read(&parts[1]), Ok(op));
    assert_eq!(read_request(op, &parts[2..]).as_ref(), Ok(&request), "read again");
    true
}
