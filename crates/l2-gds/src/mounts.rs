//! Which file system a path is on, by name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system that a path is on, from the text of `/proc/self/mountinfo`: that of the mount with the most whole
/// components in common. The last one counts where several lie on each other.
pub fn fs_of<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for (at, fs) in mountinfo.lines().filter_map(mount) {
        let components = at.components().count();
        if path.starts_with(&at) && best.is_none_or(|(most, _)| components >= most) {
            best = Some((components, fs));
        }
    }
    best.map(|(_, fs)| fs)
}

/// Where a line's mount is, and what it is.
fn mount(line: &str) -> Option<(PathBuf, &str)> {
    let (before, after) = line.split_once(" - ")?;
    Some((unescape(before.split(' ').nth(4)?), after.split(' ').next()?))
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
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:5 / /mnt/kv rw - tmpfs tmpfs rw
24 22 0:6 / /mnt/kv/weka rw master:1 - wekafs host/fs rw
25 22 0:7 / /mnt/with\\040blank rw - xfs /dev/sdb rw
26 22 0:8 / /mnt/over rw - ext4 /dev/sdc rw
27 22 0:9 / /mnt/over rw - overlay none rw
a line that is none
";

    #[test]
    fn whole_components_decide() {
        let fs = |path: &str| fs_of(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(fs("/mnt/kv"), "tmpfs");
        assert_eq!(fs("/mnt/kv/a/b"), "tmpfs");
        assert_eq!(fs("/mnt/kv2/a"), "ext4", "a name that begins alike is another one");
        assert_eq!(fs("/mnt/kv/weka/x"), "wekafs");
        assert_eq!(fs("/mnt/kv/wekas"), "tmpfs");
        assert_eq!(fs("/mnt/with blank/x"), "xfs");
        assert_eq!(fs("/mnt/over/x"), "overlay", "what lies on top");
        assert_eq!(fs_of("", Path::new("/x")), None);
    }
}
