//! What the tests of the adapter share.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstrata_core::ObjectKey;
use kvstrata_disk::{HEADER_BYTES, Writer, walk};
use kvstrata_io::{Disk, IoEngine, OsDisk};
use kvstrata_testkit::conformance::{BusyThreads, Damage};

/// A writer that no other store of this process has.
pub(crate) fn writer() -> Writer {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Writer { pid: std::process::id(), id: NEXT.fetch_add(1 << 32, Ordering::Relaxed) }
}

/// The file that an object lies in, where its header is, and its payload's length. It is in one of these stores.
pub(crate) fn object<D: Disk>(disk: &D, roots: &[PathBuf], key: &ObjectKey) -> (PathBuf, u64, u64) {
    let mut found = None;
    for root in roots {
        walk(disk, root, |listed| {
            if let Ok((k, f)) = &listed.object
                && k == key
            {
                found = Some((listed.path, listed.at, f.len));
            }
        })
        .expect("a store");
    }
    found.expect("an object")
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("the object's file")
}

pub(crate) fn flip(path: &Path, at: u64) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 4;
    file.write_all_at(&byte, at).expect("a byte");
}

fn bytes(path: &Path, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    open(path).read_exact_at(&mut bytes, at).expect("an object");
    bytes
}

/// Damages the files of stores behind their backs.
pub(crate) fn damage<D: Disk>(disk: &D, roots: &[PathBuf], damage: Damage<'_>) -> bool {
    match damage {
        Damage::Flip(key) => {
            let (path, at, _) = object(disk, roots, key);
            flip(&path, at + HEADER_BYTES + 1234);
        }
        Damage::Truncate(key) => {
            let (path, at, len) = object(disk, roots, key);
            if at == 0 {
                // More than the padding of a direct write.
                let end = open(&path).metadata().expect("its length").len();
                open(&path).set_len(end - 5000).expect("a shorter file");
            } else {
                // Its neighbour's bytes follow: what was not written reads as zeros.
                open(&path).write_all_at(&[0; 5000], at + HEADER_BYTES + len - 5000).expect("a write");
            }
        }
        Damage::Header(key) => {
            let (path, at, _) = object(disk, roots, key);
            flip(&path, at + 17);
        }
        Damage::Swap(a, b) => {
            let ((a, a_at, len), (b, b_at, _)) = (object(disk, roots, a), object(disk, roots, b));
            let (one, other) = (bytes(&a, a_at, HEADER_BYTES + len), bytes(&b, b_at, HEADER_BYTES + len));
            open(&a).write_all_at(&other, a_at).expect("a write");
            open(&b).write_all_at(&one, b_at).expect("a write");
        }
    }
    true
}

/// Hangs a disk by keeping all its threads busy.
pub(crate) fn hang(disk: Arc<OsDisk>) -> Arc<BusyThreads> {
    let threads = disk.engine().threads();
    Arc::new(BusyThreads::new(threads, move |job| {
        disk.engine().spawn(true, job).ok().expect("an open engine");
    }))
}
