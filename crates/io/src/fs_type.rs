//! Which kind of file system a path lies on.

use std::fmt;

/// A file system's kind, by the magic number that `statfs(2)` reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FsType(u32);

/// Magic number, name, and whether several machines can have it mounted at once. From `linux/magic.h` and, for file
/// systems outside the kernel, their own headers.
const KNOWN: &[(u32, &str, bool)] = &[
    (0x0000_EF53, "ext4", false),
    (0x5846_5342, "xfs", false),
    (0x9123_683E, "btrfs", false),
    (0xF2F5_2010, "f2fs", false),
    (0x2FC1_2FC1, "zfs", false),
    (0xCA45_1A4E, "bcachefs", false),
    (0x0102_1994, "tmpfs", false),
    (0x8584_58F6, "ramfs", false),
    (0x9584_58F6, "hugetlbfs", false),
    (0x794C_7630, "overlay", false),
    (0x7371_7368, "squashfs", false),
    (0x0000_4D44, "vfat", false),
    (0x2011_BAB0, "exfat", false),
    (0x6573_5546, "fuse", true),
    (0x0102_1997, "9p", true),
    (0x0000_6969, "nfs", true),
    (0x0BD0_0BD0, "lustre", true),
    (0x00C3_6400, "ceph", true),
    (0x4750_4653, "gpfs", true),
    (0x1983_0326, "beegfs", true),
    (0x0000_517B, "smb", true),
    (0xFF53_4D42, "cifs", true),
    (0xFE53_4D42, "smb2", true),
    (0x7461_636F, "ocfs2", true),
    (0x0116_1970, "gfs2", true),
    (0x5346_414F, "afs", true),
];

impl FsType {
    /// The kind with this magic number.
    pub const fn from_magic(magic: u32) -> Self {
        Self(magic)
    }

    /// The kind with this name, if it is a known one.
    pub fn by_name(name: &str) -> Option<Self> {
        KNOWN.iter().find(|k| k.1 == name).map(|k| Self(k.0))
    }

    /// The magic number.
    pub const fn magic(self) -> u32 {
        self.0
    }

    /// The usual name; ext2 and ext3 share ext4's number. `None` if the number is not a known one.
    pub fn name(self) -> Option<&'static str> {
        KNOWN.iter().find(|k| k.0 == self.0).map(|k| k.1)
    }

    /// Whether other machines may have it mounted too, and write to it. Unknown kinds are taken for local ones.
    pub fn is_shared(self) -> bool {
        KNOWN.iter().any(|k| k.0 == self.0 && k.2)
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{:#010x}", self.0),
        }
    }
}

impl fmt::Debug for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FsType({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique() {
        for (i, a) in KNOWN.iter().enumerate() {
            assert_eq!(FsType::by_name(a.1), Some(FsType::from_magic(a.0)));
            assert!(KNOWN[i + 1..].iter().all(|b| a.0 != b.0 && a.1 != b.1), "{} appears twice", a.1);
        }
    }

    #[test]
    fn an_unknown_kind_shows_its_number() {
        assert_eq!(FsType::from_magic(0xEF53).to_string(), "ext4");
        assert_eq!(FsType::from_magic(0x1234).to_string(), "0x00001234");
        assert!(FsType::by_name("nfs").unwrap().is_shared());
        assert!(!FsType::from_magic(0x1234).is_shared());
    }
}
