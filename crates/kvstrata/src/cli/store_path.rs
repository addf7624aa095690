//! What lies at a path that is said to be a store.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Result;
use kvstrata_core::{Error, ErrorKind};
use kvstrata_disk::names::{
    LOCK, MANIFEST, SNAPSHOT, is_lmcache_fs_name, is_lmcache_gds_fan, parse_object_name,
};
use kvstrata_io::{Disk, Open};

/// Refuses what is no store, and says what it is instead. A directory that holds objects and lost its manifest counts as
/// a store if `broken` ones are wanted.
pub(crate) fn check(path: &Path, broken: bool) -> Result<()> {
    const OP: &str = "open store";
    let is = |what: &str| Err(Error::invalid(OP, what).with("path", path.display()).into());
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return is("there is nothing at this path"),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return is("this is a file, and a store is a directory");
        }
        Err(e) => return Err(Error::io(OP, e).with("path", path.display()).into()),
    };
    let has = |name: &str| entries.iter().any(|e| e.file_name() == name);
    if has(MANIFEST) {
        return Ok(());
    }
    if entries.is_empty() {
        return is("this directory is empty, and no store");
    }
    if let Some(what) = foreign(path)? {
        return is(what);
    }
    if has(LOCK) || has(SNAPSHOT) || count_objects(path)? > 0 {
        if broken {
            return Ok(());
        }
        let m = format!(
            "this store has lost its manifest; `kvstrata fsck --repair {}` makes a new one",
            path.display()
        );
        return Err(Error::new(ErrorKind::Corrupt, OP, m).into());
    }
    is("this directory is no store: it has no manifest and no objects")
}

/// Whether a directory is another program's cache, and whose.
pub(crate) fn foreign(path: &Path) -> Result<Option<&'static str>> {
    let has = |theirs: fn(&std::ffi::OsStr) -> bool| -> io::Result<bool> {
        Ok(fs::read_dir(path)?.flatten().any(|e| theirs(&e.file_name())))
    };
    Ok(if has(is_lmcache_fs_name)? {
        Some("this is a directory of LMCache's fs adapter, and no store")
    } else if has(is_lmcache_gds_fan)? {
        Some("this is a directory of LMCache's GDS backend, and no store")
    } else {
        None
    })
}

/// Files with an object's name. Reads directories only.
pub(crate) fn count_objects(root: &Path) -> Result<u64> {
    let is_fan = |name: &std::ffi::OsStr| {
        name.len() == 2 && name.as_encoded_bytes().iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut n = 0;
    for top in fs::read_dir(root)?.flatten().filter(|e| is_fan(&e.file_name())) {
        for leaf in
            fs::read_dir(top.path()).into_iter().flatten().flatten().filter(|e| is_fan(&e.file_name()))
        {
            let names = fs::read_dir(leaf.path()).into_iter().flatten().flatten().map(|e| e.file_name());
            n += names.filter(|name| parse_object_name(name).is_some()).count() as u64;
        }
    }
    Ok(n)
}

/// Holds the store's lock, so that nobody changes it meanwhile; nothing where the file system is read-only.
pub(crate) fn lock<D: Disk>(disk: &D, path: &Path) -> Result<Option<D::File>> {
    let Ok(file) = disk.open(&path.join(LOCK), Open { write: true, ..Open::default() }) else {
        return Ok(None);
    };
    match disk.try_lock(&file) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let m = "the store is open in another process; close that first";
            Err(Error::new(ErrorKind::Busy, "lock store", m).with("path", path.display()).into())
        }
        // A file system without locks has no locked stores.
        _ => Ok(Some(file)),
    }
}

#[cfg(test)]
mod tests {
    use kvstrata_disk::names::object_name;

    use super::*;

    #[test]
    fn what_is_no_store_is_named() {
        let dir = std::env::temp_dir().join(format!("kvstrata-store-path-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let says = |path: &Path| check(path, true).unwrap_err().to_string();
        assert!(says(&dir.join("x")).contains("nothing at this path"));
        assert!(says(&dir).contains("empty"));
        fs::write(dir.join("x"), "").unwrap();
        assert!(says(&dir.join("x")).contains("a file"));
        assert!(says(&dir).contains("no manifest and no objects"));
        fs::write(dir.join("m@0x01000100@0@ab.data"), "").unwrap();
        assert!(says(&dir).contains("LMCache"));
        let leaf = dir.join("00/00");
        fs::create_dir_all(&leaf).unwrap();
        fs::remove_file(dir.join("m@0x01000100@0@ab.data")).unwrap();
        assert!(says(&dir).contains("no objects"));
        fs::write(leaf.join(object_name(&[0; 32])), "").unwrap();
        assert!(check(&dir, true).is_ok());
        assert!(check(&dir, false).unwrap_err().to_string().contains("lost its manifest"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
