//! Which file system a path is on, by name, and how it is mounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What is mounted, by the names of `proc_pid_mountinfo(5)`. Unlike [`FsType`](crate::FsType), it knows kinds without a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The kind of file system.
    pub fs: String,
    /// The options of the mount, then those of the file system that are not among them.
    pub options: Vec<String>,
}

impl Mount {
    /// What the directory is on, or will be. `None` if the kernel does not say.
    pub fn of(dir: &Path) -> Option<Self> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let there = dir.ancestors().find_map(|at| std::fs::canonicalize(at).ok());
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        Self::find(&mountinfo, &there.unwrap_or(dir))
    }

    /// Whether it is mounted with this option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|there| there == option)
    }

    /// That with the most whole components in common. The last one counts where several lie on each other.
    fn find(mountinfo: &str, path: &Path) -> Option<Self> {
        let mut best: Option<(usize, Self)> = None;
        for (at, mount) in mountinfo.lines().filter_map(read) {
            let components = at.components().count();
            if path.starts_with(&at) && best.as_ref().is_none_or(|(most, _)| components >= *most) {
                best = Some((components, mount));
            }
        }
        best.map(|(_, mount)| mount)
    }
}

/// Where a line's mount is, and what it is.
fn read(line: &str) -> Option<(PathBuf, Mount)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(4);
    let (at, own) = (unescape(before.next()?), before.next()?);
    let mut after = after.split(' ');
    let (fs, of_fs) = (after.next()?, after.nth(1).unwrap_or(""));
    let mut options: Vec<String> = Vec::new();
    for option in own.split(',').chain(of_fs.split(',')).filter(|option| !option.is_empty()) {
        if options.iter().all(|there| there != option) {
            options.push(option.into());
        }
    }
    Some((at, Mount { fs: fs.into(), options }))
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let (bytes, mut out, mut i) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while i < bytes.len() {
        let code = (bytes[i] == b'\\').then(|| text.get(i + 1..i + 4)).flatten();
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
23 22 0:5 / /mnt/kv rw - tmpfs tmpfs rw
24 22 0:6 / /mnt/kv/weka rw master:1 - wekafs host/fs rw
25 22 0:7 / /mnt/with\\040blank rw - xfs /dev/sdb rw
26 22 0:8 / /mnt/over rw - ext4 /dev/sdc rw
27 22 0:9 / /mnt/over rw - overlay none rw
a line that is none
";

    #[test]
    fn whole_components_decide() {
        let fs = |path: &str| Mount::find(MOUNTS, Path::new(path)).unwrap().fs;
        assert_eq!(fs("/mnt/kv"), "tmpfs");
        assert_eq!(fs("/mnt/kv/a/b"), "tmpfs");
        assert_eq!(fs("/mnt/kv2/a"), "ext4", "a name that begins alike is another one");
        assert_eq!(fs("/mnt/kv/weka/x"), "wekafs");
        assert_eq!(fs("/mnt/kv/wekas"), "tmpfs");
        assert_eq!(fs("/mnt/with blank/x"), "xfs");
        assert_eq!(fs("/mnt/over/x"), "overlay", "what lies on top");
        assert_eq!(Mount::find("", Path::new("/x")), None);
    }

    #[test]
    fn options_are_the_mounts_and_the_file_systems() {
        let of = |path: &str| Mount::find(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(of("/x").options, ["rw", "relatime", "discard"]);
        assert!(of("/x").has("discard") && !of("/x").has("disc"));
        assert!(!of("/mnt/with blank/x").has("discard"));
    }
}
