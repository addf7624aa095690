//! What can happen to files while nobody looks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kvstrata_disk::HEADER_BYTES;
use kvstrata_testkit::rng::Rng;
use serde::Serialize;

/// A way for an object's file to go bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rot {
    /// The payload is cut off somewhere.
    CutPayload,
    /// Even the header is cut off; sometimes nothing is left.
    CutHeader,
    /// Bytes follow that were not written.
    Extended,
    /// One bit of the payload is another.
    PayloadBit,
    /// One bit of the header is another.
    HeaderBit,
    /// Up to 4096 bytes in a row are zeros.
    Zeros,
    /// Two objects' files have exchanged their names.
    SwappedNames,
    /// Two objects' files have exchanged what is in them.
    SwappedBytes,
    /// Another object's file lies here, too.
    Copied,
    /// Random bytes of the same length.
    Foreign,
    /// It is gone.
    Missing,
    /// It may not be read.
    Unreadable,
}

impl Rot {
    /// Every way.
    pub const ALL: [Self; 12] = [
        Self::CutPayload,
        Self::CutHeader,
        Self::Extended,
        Self::PayloadBit,
        Self::HeaderBit,
        Self::Zeros,
        Self::SwappedNames,
        Self::SwappedBytes,
        Self::Copied,
        Self::Foreign,
        Self::Missing,
        Self::Unreadable,
    ];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CutPayload => "payload cut off",
            Self::CutHeader => "header cut off",
            Self::Extended => "extended",
            Self::PayloadBit => "bit of the payload",
            Self::HeaderBit => "bit of the header",
            Self::Zeros => "zeros",
            Self::SwappedNames => "names exchanged",
            Self::SwappedBytes => "bytes exchanged",
            Self::Copied => "another's copy",
            Self::Foreign => "foreign bytes",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether it takes two objects.
    pub const fn takes_two(self) -> bool {
        matches!(self, Self::SwappedNames | Self::SwappedBytes | Self::Copied)
    }

    /// Whether the payload that a load reads may still be the object's: nothing of it was changed.
    pub const fn spares_payload(self) -> bool {
        matches!(self, Self::Extended | Self::HeaderBit)
    }

    /// Does it to `at`, with the help of `other`. Whether anything changed.
    pub(super) fn happen(self, rng: &mut Rng, at: &Path, other: &Path) -> io::Result<bool> {
        let len = fs::metadata(at)?.len();
        let payload = len.saturating_sub(HEADER_BYTES);
        let open = || OpenOptions::new().read(true).write(true).open(at);
        match self {
            Self::CutPayload => open()?.set_len(HEADER_BYTES + rng.below(payload))?,
            Self::CutHeader if rng.percent(20) => open()?.set_len(0)?,
            Self::CutHeader => open()?.set_len(rng.below(HEADER_BYTES))?,
            Self::Extended => {
                let mut file = open()?;
                file.seek(SeekFrom::End(0))?;
                file.write_all(&random(rng, 1 + rng.clone().below(8192)))?;
            }
            Self::PayloadBit => flip(&open()?, HEADER_BYTES + rng.below(payload), rng)?,
            Self::HeaderBit => flip(&open()?, rng.below(HEADER_BYTES), rng)?,
            Self::Zeros => {
                let from = rng.below(len);
                let n = (1 + rng.below(4096)).min(len - from);
                return write(&open()?, from, &vec![0; n as usize]);
            }
            Self::SwappedNames => {
                let aside = at.with_extension("aside");
                fs::rename(at, &aside)?;
                fs::rename(other, at)?;
                fs::rename(&aside, other)?;
            }
            Self::SwappedBytes => {
                let (mine, theirs) = (fs::read(at)?, fs::read(other)?);
                // In place: neither file nor directory is a new one.
                overwrite(at, &theirs)?;
                overwrite(other, &mine)?;
            }
            Self::Copied => overwrite(at, &fs::read(other)?)?,
            Self::Foreign => overwrite(at, &random(rng, len))?,
            Self::Missing => fs::remove_file(at)?,
            Self::Unreadable => {
                let closed = fs::Permissions::from_mode(0o000);
                fs::set_permissions(at, closed)?;
                // Root reads what it likes.
                if File::open(at).is_ok() {
                    fs::set_permissions(at, fs::Permissions::from_mode(0o644))?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn random(rng: &mut Rng, len: u64) -> Vec<u8> {
    (0..len.div_ceil(8)).flat_map(|_| rng.bits().to_le_bytes()).take(len as usize).collect()
}

fn flip(file: &File, at: u64, rng: &mut Rng) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << rng.below(8);
    file.write_all_at(&byte, at)
}

/// Whether other bytes were there before.
fn write(file: &File, at: u64, bytes: &[u8]) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut before = vec![0; bytes.len()];
    file.read_exact_at(&mut before, at)?;
    file.write_all_at(bytes, at)?;
    Ok(before != bytes)
}

fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(bytes)
}

/// A file that nobody asked for: in the root, in a directory of objects, with the name of an object that was never stored,
/// or of a file being written.
pub(super) fn stranger(rng: &mut Rng, root: &Path, beside: &Path, never: &Path) -> io::Result<PathBuf> {
    let name = format!("stranger-{:016x}", rng.bits());
    let path = match rng.below(4) {
        0 => root.join(name),
        1 => beside.with_file_name(name),
        2 => root.join("tmp").join(format!("1-{:016x}-{}.kvtmp", rng.bits(), rng.below(100))),
        _ => never.to_owned(),
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let len = rng.below(9000);
    fs::write(&path, random(rng, len))?;
    Ok(path)
}

/// The snapshot of a closed store is cut, or one of its bits is another; `false` if there is none.
pub(super) fn snapshot(rng: &mut Rng, path: &Path) -> io::Result<bool> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let len = file.metadata()?.len();
    if rng.percent(30) {
        file.set_len(rng.below(len))?;
        return Ok(true);
    }
    let mut first = [0];
    file.read_exact(&mut first)?;
    flip(&file, rng.below(len), rng)?;
    Ok(true)
}
