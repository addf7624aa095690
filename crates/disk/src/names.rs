//! Where things lie under a store's root.
//!
//! | name | what |
//! |---|---|
//! | `kvstrata.json` | the manifest |
//! | `kvstrata.lock` | locked by the process that has the store open |
//! | `kvstrata.describe` | locked by who writes the manifest of a shared directory, for as long |
//! | `kvstrata.index` | the snapshot of the index |
//! | `ab/cd/<64 hex digits>.kv` | an object, named by its key's 256-bit fingerprint |
//! | `tmp/` | files being written (the place is configurable), and a locked one for each writer of a shared directory |
//! | `quarantine/` | objects that turned out to be bad |
//! | `slab/` | instead of the last four, in a store of segments: segments, log, snapshot |

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// The manifest's name.
pub const MANIFEST: &str = "kvstrata.json";
/// The lock file's name.
pub const LOCK: &str = "kvstrata.lock";
/// The name of the lock file of a shared directory's manifest.
pub const DESCRIBE: &str = "kvstrata.describe";
/// The index snapshot's name.
pub const SNAPSHOT: &str = "kvstrata.index";
/// The directory of bad objects.
pub const QUARANTINE: &str = "quarantine";
/// The directory of a store of segments, its log and its snapshots.
pub const SLAB: &str = "slab";
/// The directory of files being written, unless configured.
pub const TMP: &str = "tmp";

const OBJECT_SUFFIX: &str = ".kv";
const TEMP_SUFFIX: &str = ".kvtmp";
const LIVE_SUFFIX: &str = ".kvlive";
const HEX: &[u8; 16] = b"0123456789abcdef";

fn push_hex(to: &mut String, bytes: &[u8]) {
    for b in bytes {
        to.push(HEX[usize::from(b >> 4)] as char);
        to.push(HEX[usize::from(b & 15)] as char);
    }
}

/// The two digits of a fan-out directory.
pub(crate) fn fan(byte: u8) -> String {
    let mut s = String::with_capacity(2);
    push_hex(&mut s, &[byte]);
    s
}

/// The file name of the object with this fingerprint.
pub fn object_name(fingerprint: &[u8; 32]) -> String {
    let mut s = String::with_capacity(64 + OBJECT_SUFFIX.len());
    push_hex(&mut s, fingerprint);
    s.push_str(OBJECT_SUFFIX);
    s
}

/// The path of the object with this fingerprint.
pub fn object_path(root: &Path, fingerprint: &[u8; 32]) -> PathBuf {
    let mut tail = String::with_capacity(6 + 64 + OBJECT_SUFFIX.len());
    push_hex(&mut tail, &fingerprint[..1]);
    tail.push('/');
    push_hex(&mut tail, &fingerprint[1..2]);
    tail.push('/');
    push_hex(&mut tail, fingerprint);
    tail.push_str(OBJECT_SUFFIX);
    // Sized at once: this is on the way of every load.
    let mut path = std::ffi::OsString::with_capacity(root.as_os_str().len() + 1 + tail.len());
    path.push(root);
    path.push("/");
    path.push(tail);
    path.into()
}

/// The directory that object lies in.
pub(crate) fn leaf_path(root: &Path, top: u8, leaf: u8) -> PathBuf {
    root.join(fan(top)).join(fan(leaf))
}

fn digit(b: u8) -> Option<u8> {
    HEX.iter().position(|h| *h == b).map(|p| p as u8)
}

/// Reads the name of a fan-out directory.
pub(crate) fn parse_fan(name: &OsStr) -> Option<u8> {
    match name.as_encoded_bytes() {
        [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
        _ => None,
    }
}

/// Whether a relative path stays below where it starts.
pub(crate) fn is_below(path: &Path) -> bool {
    !path.as_os_str().is_empty() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// Reads an object's file name: lower-case digits only, so that each object has one name.
pub fn parse_object_name(name: &OsStr) -> Option<[u8; 32]> {
    let hex = name.as_encoded_bytes().strip_suffix(OBJECT_SUFFIX.as_bytes())?;
    let mut fingerprint = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (to, pair) in fingerprint.iter_mut().zip(hex.chunks_exact(2)) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(fingerprint)
}

/// A name for a file being written, unique by process, by writer and by count.
pub fn temp_name(pid: u32, writer: u64, count: u64) -> String {
    format!("{pid}-{writer:016x}-{count}{TEMP_SUFFIX}")
}

/// Whether a file's name is one that [`temp_name`] makes; only such files are ever removed as orphans.
pub fn is_temp_name(name: &OsStr) -> bool {
    let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(TEMP_SUFFIX)) else { return false };
    stem.rsplit_once('-').is_some_and(|(writer, count)| is_writer(writer) && is_number(count))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Whether this is how a writer is called in its files' names: process and number.
fn is_writer(text: &str) -> bool {
    text.split_once('-')
        .is_some_and(|(pid, id)| is_number(pid) && id.len() == 16 && id.bytes().all(|b| digit(b).is_some()))
}

/// The name of the file that a writer of a shared directory keeps locked as long as it lives.
pub(crate) fn live_name(pid: u32, writer: u64) -> String {
    format!("{pid}-{writer:016x}{LIVE_SUFFIX}")
}

/// The writer whose file this is, by the name of its live file: of a file being written, or of that file itself.
pub(crate) fn live_name_of(name: &OsStr) -> Option<String> {
    let text = name.to_str()?;
    if let Some(writer) = text.strip_suffix(LIVE_SUFFIX) {
        return is_writer(writer).then(|| text.to_owned());
    }
    let (writer, _) = text.strip_suffix(TEMP_SUFFIX)?.rsplit_once('-')?;
    is_temp_name(name).then(|| format!("{writer}{LIVE_SUFFIX}"))
}

/// Whether a file's name is one of LMCache's `fs` adapters: flat, `…@0x….data`.
pub fn is_lmcache_fs_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|n| n.ends_with(".data") && n.contains("@0x"))
}

/// Whether a directory's name is one of LMCache's GDS backend that no store has: the first two characters of a chunk hash as
/// Python prints it, bytes (`b'`) or a negative number (`-5`). Those of other numbers are a store's too.
pub fn is_lmcache_gds_fan(name: &OsStr) -> bool {
    matches!(name.as_encoded_bytes(), [b'b', b'\'' | b'"'] | [b'-', b'1'..=b'9'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let mut fp = [0xab; 32];
        fp[1] = 0x0c;
        let path = object_path(Path::new("/s"), &fp);
        assert_eq!(path, leaf_path(Path::new("/s"), 0xab, 0x0c).join(object_name(&fp)));
        assert_eq!(path.to_str().unwrap(), format!("/s/ab/0c/ab0c{}.kv", "ab".repeat(30)));
        assert_eq!(parse_object_name(path.file_name().unwrap()), Some(fp));
        assert_eq!(parse_fan(OsStr::new("0c")), Some(0x0c));
    }

    #[test]
    fn other_names_are_not_ours() {
        for name in
            ["", ".kv", "ab.kv", &format!("{}.kv", "AB".repeat(32)), &format!("{}.k", "ab".repeat(32))]
        {
            assert_eq!(parse_object_name(OsStr::new(name)), None, "{name}");
        }
        for name in ["", "a", "abc", "0C", "g0", "tm"] {
            assert_eq!(parse_fan(OsStr::new(name)), None, "{name}");
        }
        assert!(is_temp_name(OsStr::new(&temp_name(17, 0xfeed, 3))));
        let live = live_name(17, 0xfeed);
        assert!(!is_temp_name(OsStr::new(&live)));
        for name in [&temp_name(17, 0xfeed, 3), &live] {
            assert_eq!(live_name_of(OsStr::new(name)).as_ref(), Some(&live));
        }
        for name in ["17-feed.kvlive", ".kvlive", "x-000000000000feed.kvlive", "17-000000000000feed.kvtmp"] {
            assert_eq!(live_name_of(OsStr::new(name)), None, "{name}");
        }
        for name in ["", "x.kvtmp", "1-2-3.kvtmp", "17-000000000000feed-3.tmp", "-000000000000feed-3.kvtmp"] {
            assert!(!is_temp_name(OsStr::new(name)), "{name}");
        }
        assert!(is_lmcache_fs_name(OsStr::new("m@0x08050805@b@ab.data")));
        assert!(!is_lmcache_fs_name(OsStr::new("m.data")));
        assert!(["b'", "b\"", "-5"].into_iter().all(|name| is_lmcache_gds_fan(OsStr::new(name))));
        assert!(!["12", "bb", "-", "b'x", "-x"].into_iter().any(|name| is_lmcache_gds_fan(OsStr::new(name))));
    }
}
