//! The disks, and what a test does on them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kvstrata_io::*;
use kvstrata_mem::{Allocate, HeapRegion, Pool, ReadBuf, Slab};

/// A disk under test, and a directory on it.
pub(crate) struct Rig<D: Disk> {
    pub(crate) disk: D,
    pub(crate) root: PathBuf,
    /// Carries out what the engine has queued, where it does not do so by itself.
    pub(crate) run: fn(&D),
    pub(crate) pool: Arc<Pool>,
    pub(crate) _dir: Option<tempfile::TempDir>,
}

pub(crate) fn memory() -> Arc<Pool> {
    Slab::new(vec![HeapRegion::new(16 << 20).unwrap()]).unwrap().pool("test", 16 << 20)
}

pub(crate) fn os(options: OsOptions) -> Rig<OsDisk> {
    let dir = tempfile::tempdir().unwrap();
    let pool = memory();
    let memory = Some(Arc::clone(&pool) as Arc<dyn Allocate>);
    // One thread, so that there is an order to speak of.
    let disk = OsDisk::new(OsOptions { threads: 1, memory, ..options }).unwrap();
    Rig { disk, root: dir.path().to_owned(), run: |_| (), pool, _dir: Some(dir) }
}

pub(crate) fn threads() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::Threads, ..OsOptions::default() })
}

pub(crate) fn links() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::Threads, rename_noreplace: false, ..OsOptions::default() })
}

pub(crate) fn ring() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::IoUring, ..OsOptions::default() })
}

/// A ring that carries out one transfer after the other.
pub(crate) fn narrow_ring() -> Rig<OsDisk> {
    os(OsOptions { engine: EngineKind::IoUring, depth: 1, ..OsOptions::default() })
}

pub(crate) fn sim(mode: SimMode) -> Rig<SimDisk> {
    let disk = SimDisk::new(SimOptions { mode, ..SimOptions::default() });
    // Every transfer comes in small pieces, and is interrupted now and then.
    disk.faults().add(Rule::new(Fault::Errno(libc::EINTR)).on(&[OpKind::Read, OpKind::Write]).rate(0.2, 1));
    disk.faults().add(Rule::new(Fault::Short(65_000)).on(&[OpKind::Read, OpKind::Write]).rate(0.5, 2));
    let run = |disk: &SimDisk| {
        disk.engine().run();
    };
    Rig { disk, root: "/".into(), run, pool: memory(), _dir: None }
}

pub(crate) const NEW: Open = Open { write: true, create_new: true, direct: false, no_atime: false };
pub(crate) const READ: Open = Open { write: false, create_new: false, direct: false, no_atime: false };

pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed) as u8).collect()
}

impl<D: Disk> Rig<D> {
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new file with these bytes.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> D::File {
        let file = self.disk.open(&self.at(name), NEW).unwrap();
        self.disk.write_all_at(&file, 0, bytes).unwrap();
        file
    }

    /// All bytes of a file.
    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        let file = self.disk.open(&self.at(name), READ).unwrap();
        let mut bytes = vec![0; self.disk.file_metadata(&file).unwrap().len as usize];
        self.disk.read_exact_at(&file, 0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        let entries = self.disk.list(&self.root).unwrap();
        entries.into_iter().map(|e| e.name.into_string().unwrap()).collect()
    }

    pub(crate) fn sealed(&self, bytes: &[u8]) -> ReadBuf {
        let mut buf = self.pool.reserve(bytes.len(), 4096).unwrap();
        buf.write_at(0, bytes).unwrap();
        buf.seal(bytes.len())
    }

    pub(crate) fn read_op(&self, tag: u64, file: &Arc<D::File>, offset: u64, len: usize) -> IoOp<D::File> {
        let buf = IoBuf::Read(self.pool.reserve(len.max(1), 4096).unwrap());
        IoOp { tag, file: Arc::clone(file), offset, len, buf }
    }

    pub(crate) fn write_op(&self, tag: u64, file: &Arc<D::File>, offset: u64, bytes: &[u8]) -> IoOp<D::File> {
        let buf = IoBuf::Write(self.sealed(bytes));
        IoOp { tag, file: Arc::clone(file), offset, len: bytes.len(), buf }
    }

    pub(crate) fn submit(&self, ops: Vec<IoOp<D::File>>, sink: &Sent<D::File>) {
        self.disk.engine().submit(ops, Arc::new(Sent(sink.0.clone()))).expect("the engine is open");
    }
}

/// Sends completions to the test.
pub(crate) struct Sent<F>(pub(crate) mpsc::Sender<Completion<F>>);

impl<F: Send + Sync + 'static> CompletionSink<F> for Sent<F> {
    fn complete(&self, completion: Completion<F>) {
        self.0.send(completion).expect("the test listens");
    }
}

pub(crate) fn channel<F>() -> (Sent<F>, mpsc::Receiver<Completion<F>>) {
    let (send, receive) = mpsc::channel();
    (Sent(send), receive)
}

pub(crate) fn soon<T>(from: &mpsc::Receiver<T>) -> T {
    from.recv_timeout(Duration::from_secs(60)).expect("an answer")
}
