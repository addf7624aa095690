//! Whether two paths are one, also before they exist.

use std::path::{Component, Path, PathBuf};

use kvstrata_core::{Error, Result};

/// The one spelling of a directory: symbolic links, `.`, `..` and doubled slashes resolved as far as there is something,
/// and the rest as it will be once it is made.
///
/// # Errors
/// `Invalid` if the path, or what it would lie in, is a file; the operating system's error if it cannot be looked at.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    const OP: &str = "look at path";
    if path.as_os_str().is_empty() {
        return Err(Error::invalid(OP, "a directory is expected, and this is empty").with("path", "\"\""));
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io(OP, e).with("path", path.display()))?;
    let mut there = PathBuf::new();
    let mut missing = false;
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                there.pop();
                // What lies above may be there again.
                missing = missing && std::fs::symlink_metadata(&there).is_err();
            }
            Component::CurDir => {}
            part if missing => there.push(part),
            part => {
                there.push(part);
                match std::fs::canonicalize(&there) {
                    Ok(real) if real.is_dir() => there = real,
                    Ok(real) => {
                        return Err(Error::invalid(OP, "a directory is expected, and this is a file")
                            .with("path", path.display())
                            .with("file", real.display()));
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        if std::fs::symlink_metadata(&there).is_ok() {
                            return Err(Error::invalid(OP, "a symbolic link on the way leads nowhere")
                                .with("path", path.display())
                                .with("link", there.display()));
                        }
                        missing = true;
                    }
                    Err(e) => return Err(Error::io(OP, e).with("path", path.display())),
                }
            }
        }
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_directory_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        for (spelling, real) in [
            ("a/b", "a/b"),
            ("a/b/", "a/b"),
            ("a//b/.", "a/b"),
            ("link/b", "a/b"),
            ("link/../a/b", "a/b"),
            ("a/new/deep", "a/new/deep"),
            ("link/new/../new/deep/", "a/new/deep"),
            ("a/new/../b", "a/b"),
            ("new/../link/b", "a/b"),
        ] {
            assert_eq!(resolve(&root.join(spelling)).unwrap(), root.join(real), "{spelling}");
        }
    }

    #[test]
    fn files_and_dead_links_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::write(root.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(root.join("nowhere"), root.join("dead")).unwrap();
        for (bad, says) in [("file", "is a file"), ("file/below", "is a file"), ("dead", "leads nowhere")] {
            let e = resolve(&root.join(bad)).unwrap_err();
            assert_eq!(e.kind(), kvstrata_core::ErrorKind::Invalid);
            assert!(e.to_string().contains(says), "{e}");
        }
        assert!(resolve(Path::new("")).unwrap_err().to_string().contains("empty"));
    }
}
