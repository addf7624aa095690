//! How the file system under a path is mounted.

use std::path::Path;

/// Whether the file system under an absolute path is mounted with an option, by what the kernel says of this process's mounts.
pub(super) fn mounted_with(path: &Path, option: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    options_of(&mounts, &path).is_some_and(|options| options.split(',').any(|o| o == option))
}

/// The options of the mount that a path lies on: of the deepest, and of several in one place the last, which hides the others.
/// A line has the device, the place, the kind and the options (`proc_pid_mounts(5)`).
fn options_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        // A blank is the one octal escape that people's directories have.
        Some((words.next()?.replace("\\040", " "), words.nth(1)?))
    });
    let under = mounts.filter(|(place, _)| path.starts_with(place));
    under.max_by_key(|(place, _)| place.len()).map(|(_, options)| options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts_and_of_one_place_the_last() {
        let mounts = "/dev/a / ext4 rw,discard 0 0\n\
                      /dev/b /var/my\\040cache xfs rw,noatime 0 0\n\
                      tmpfs /run tmpfs rw 0 0\n\
                      /dev/c /run ext4 ro,discard 0 0\n";
        let of = |path: &str| options_of(mounts, Path::new(path));
        assert_eq!(of("/var/my cache/kv"), Some("rw,noatime"));
        assert_eq!(of("/var/my cached"), Some("rw,discard"), "a name that only begins alike");
        assert_eq!(of("/run/x"), Some("ro,discard"));
        assert_eq!(options_of("", Path::new("/")), None);
    }
}
