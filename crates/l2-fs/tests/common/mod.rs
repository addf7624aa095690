//! What the tests of the adapter share.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use kvstrata_core::ObjectKey;
use kvstrata_disk::{HEADER_BYTES, Writer, names};
use kvstrata_io::{Disk, IoEngine, OsDisk};
use kvstrata_testkit::conformance::{Damage, Device};
use parking_lot::Mutex;

/// A writer that no other store of this process has.
pub(crate) fn writer() -> Writer {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Writer { pid: std::process::id(), id: NEXT.fetch_add(1 << 32, Ordering::Relaxed) }
}

/// The file of an object.
pub(crate) fn object(root: &Path, key: &ObjectKey) -> PathBuf {
    names::object_path(root, key.fingerprint256())
}

pub(crate) fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the object's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 4;
    file.write_all_at(&byte, at).expect("a byte");
}

pub(crate) fn cut(path: &Path, by: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("the object's file");
    let len = file.metadata().expect("its length").len();
    file.set_len(len - by).expect("a shorter file");
}

/// Damages the files of a store behind its back.
pub(crate) fn damage(root: &Path, damage: Damage<'_>) -> bool {
    match damage {
        Damage::Flip(key) => flip(&object(root, key), HEADER_BYTES + 1234),
        // More than the padding of a direct write.
        Damage::Truncate(key) => cut(&object(root, key), 5000),
        Damage::Header(key) => flip(&object(root, key), 17),
        Damage::Swap(a, b) => {
            let (a, b, aside) = (object(root, a), object(root, b), root.join("aside"));
            std::fs::rename(&a, &aside).expect("a rename");
            std::fs::rename(&b, &a).expect("a rename");
            std::fs::rename(&aside, &b).expect("a rename");
        }
    }
    true
}

/// Hangs a disk by keeping all its threads busy.
pub(crate) struct Hang {
    disk: Arc<OsDisk>,
    held: Mutex<Vec<mpsc::Sender<()>>>,
}

impl Hang {
    pub(crate) fn new(disk: Arc<OsDisk>) -> Arc<Self> {
        Arc::new(Self { disk, held: Mutex::default() })
    }
}

impl Device for Hang {
    fn hang(&self) {
        let mut held = self.held.lock();
        for _ in 0..self.disk.engine().threads() {
            let (release, gate) = mpsc::channel::<()>();
            let (up, started) = mpsc::channel();
            let job = move || {
                up.send(()).expect("the test waits");
                gate.recv().ok();
            };
            self.disk.engine().spawn(true, Box::new(job)).ok().expect("an open engine");
            // This thread of the engine has ended what it did before.
            started.recv().expect("a free thread");
            held.push(release);
        }
    }

    fn resume(&self) {
        self.held.lock().clear();
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.resume();
    }
}
