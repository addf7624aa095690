//! Stores with several directories, their start, and buffers inside of a region: W5, W6 and W15.
//!
//! GPUDirect Storage and sets of paths are not here yet. What is checked is what they will share with the file adapter:
//! directories that are made on demand, the index at the start, what a file system can do, and where a buffer's bytes are.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::ObjectKey;
use kvstrata_disk::names;
use kvstrata_io::{Disk, Open, SimDisk, SimMode, SimOptions};
use kvstrata_testkit::arena::Memory;

use crate::support::{Fs, Got, LEN, Tier, ensure, found, key, payload_of, sim_disk};

fn write_new(disk: &SimDisk, path: &Path, key: &ObjectKey) -> std::io::Result<()> {
    let file = disk.open(path, Open { write: true, create_new: true, ..Open::default() })?;
    disk.write_all_at(&file, 0, &payload_of(key))
}

fn read(disk: &SimDisk, path: &Path, how: Open, key: &ObjectKey) -> Got {
    let Ok(file) = disk.open(path, how) else { return Got::Miss };
    let mut bytes = vec![0; LEN];
    match disk.read_exact_at(&file, 0, &mut bytes) {
        Ok(()) => Got::judge(key, &bytes),
        Err(e) => Got::Error(e.to_string()),
    }
}

// ---- W5 --------------------------------------------------------------------------------------------------------

/// A store over several paths, one per GPU.
trait Paths {
    async fn put(&mut self, path: usize, key: &ObjectKey) -> Result<(), String>;
    async fn get(&mut self, path: usize, key: &ObjectKey) -> Got;
    /// Removes the directory that the key's file lies in, as an operator may who cleans up.
    fn clean_up(&mut self, path: usize, key: &ObjectKey);
}

/// The same directories come up on every path, and each path has its own.
async fn each_path_has_its_directories(paths: &mut impl Paths) -> Result<(), String> {
    for n in 0..16 {
        for path in [0, 1] {
            let stored = paths.put(path, &key(n)).await;
            ensure(stored.is_ok(), format!("gpu{path}'s store of a new key is lost: {stored:?}"))?;
            ensure(paths.get(path, &key(n)).await == Got::Exact, format!("gpu{path} cannot load its key"))?;
        }
        paths.clean_up(1, &key(n));
        ensure(paths.get(1, &key(n)).await == Got::Miss, "what was cleaned up is found")?;
        let stored = paths.put(1, &key(n)).await;
        ensure(stored.is_ok(), format!("a store after a clean-up is lost: {stored:?}"))?;
        ensure(paths.get(1, &key(n)).await == Got::Exact, "a store after a clean-up is not found")?;
    }
    Ok(())
}

struct TwoStores([Fs<SimDisk>; 2]);

impl Paths for TwoStores {
    async fn put(&mut self, path: usize, key: &ObjectKey) -> Result<(), String> {
        self.0[path].put(key).await
    }

    async fn get(&mut self, path: usize, key: &ObjectKey) -> Got {
        self.0[path].get(key).await
    }

    fn clean_up(&mut self, path: usize, key: &ObjectKey) {
        clean_up(self.0[path].disk(), &self.0[path].file(key));
    }
}

fn clean_up(disk: &SimDisk, file: &Path) {
    disk.unlink(file).expect("a file");
    disk.remove_dir(file.parent().expect("a directory")).expect("an empty directory");
}

/// LMCache's GDS backend over several paths: which directories were made is remembered without the path.
struct GdsPaths {
    disk: Arc<SimDisk>,
    made: HashSet<PathBuf>,
}

impl GdsPaths {
    fn file(path: usize, key: &ObjectKey) -> PathBuf {
        names::object_path(Path::new(&format!("/gpu{path}")), key.fingerprint256())
    }
}

impl Paths for GdsPaths {
    async fn put(&mut self, path: usize, key: &ObjectKey) -> Result<(), String> {
        let file = Self::file(path, key);
        let dir = file.parent().expect("a directory");
        let below: PathBuf = dir.iter().skip(2).collect();
        if self.made.insert(below) {
            self.disk.create_dir_all(dir).map_err(|e| e.to_string())?;
        }
        write_new(&self.disk, &file, key).map_err(|e| e.to_string())
    }

    async fn get(&mut self, path: usize, key: &ObjectKey) -> Got {
        read(&self.disk, &Self::file(path, key), Open::default(), key)
    }

    fn clean_up(&mut self, path: usize, key: &ObjectKey) {
        clean_up(&self.disk, &Self::file(path, key));
    }
}

/// W5: a directory that was made on one path is taken for made on all. Remains for sets of paths within one adapter.
#[tokio::test]
async fn w05_directory_of_one_path_is_taken_for_made_on_all() {
    let disk = sim_disk(SimOptions::default());
    let open = |n| Fs::open(Arc::clone(&disk), Path::new(&format!("/gpu{n}")), 1u64 + n).expect("a store");
    assert_eq!(each_path_has_its_directories(&mut TwoStores([open(0), open(1)])).await, Ok(()));
    let mut double = GdsPaths { disk: sim_disk(SimOptions::default()), made: HashSet::new() };
    found(each_path_has_its_directories(&mut double).await, &["gpu1's store of a new key is lost"]);
}

// ---- W6 --------------------------------------------------------------------------------------------------------

const OBJECTS: u64 = 8;

/// A store that was just opened over a directory with [`OBJECTS`] objects.
trait Started {
    /// How many objects the index has.
    fn indexed(&self) -> u64;
    async fn look(&mut self, key: &ObjectKey) -> Got;
    /// Deletes an object's file behind the store's back.
    fn lose(&self, key: &ObjectKey);
    /// Whether loads leave access times alone.
    fn no_atime(&self) -> bool;
}

/// The index is whole when the store is there, and a missing file says nothing about the file system.
async fn start_is_whole_and_abilities_stay(store: &mut impl Started) -> Result<(), String> {
    let mut defects = Vec::new();
    let indexed = store.indexed();
    if indexed != OBJECTS {
        defects.push(format!("the index has {indexed} of {OBJECTS} objects"));
    }
    if !store.no_atime() {
        defects.push("access times are updated from the start".into());
    }
    store.lose(&key(3));
    let got = store.look(&key(3)).await;
    if got != Got::Miss {
        defects.push(format!("a missing file is {got:?}"));
    }
    if !store.no_atime() {
        defects.push("a missing file ended the leaving alone of access times".into());
    }
    let got = store.look(&key(4)).await;
    if got != Got::Exact {
        defects.push(format!("a load after it gives {got:?}"));
    }
    ensure(defects.is_empty(), defects.join("; "))
}

impl Started for Fs<SimDisk> {
    fn indexed(&self) -> u64 {
        self.fs.store().usage().objects
    }

    async fn look(&mut self, key: &ObjectKey) -> Got {
        self.get(key).await
    }

    fn lose(&self, key: &ObjectKey) {
        self.disk().unlink(&self.file(key)).expect("a file");
    }

    fn no_atime(&self) -> bool {
        self.fs.store().no_atime()
    }
}

/// LMCache's GDS backend at its start: the scan is given to an executor before the fields that it reads are there, and
/// nobody looks at how it ended.
struct GdsStart {
    disk: Arc<SimDisk>,
    index: HashMap<String, PathBuf>,
    use_noatime: Option<bool>,
}

impl GdsStart {
    /// `scan_first`: the executor has a free thread, and starts at once.
    fn open(disk: Arc<SimDisk>, scan_first: bool) -> Self {
        let mut gds = Self { disk, index: HashMap::new(), use_noatime: None };
        let early = scan_first.then(|| gds.scan());
        gds.use_noatime = Some(true);
        // How the scan ended is not looked at.
        let _ended = early.unwrap_or_else(|| gds.scan());
        gds
    }

    fn scan(&mut self) -> Result<(), &'static str> {
        for entry in self.disk.list(Path::new("/gds")).expect("a directory") {
            let path = Path::new("/gds").join(&entry.name);
            let no_atime = self.use_noatime.ok_or("AttributeError: _use_noatime")?;
            let _ = self.disk.open(&path, Open { no_atime, ..Open::default() });
            self.index.insert(entry.name.to_string_lossy().into_owned(), path);
        }
        Ok(())
    }
}

impl Started for GdsStart {
    fn indexed(&self) -> u64 {
        self.index.len() as u64
    }

    async fn look(&mut self, key: &ObjectKey) -> Got {
        let path = Path::new("/gds").join(key.hash().to_string());
        let how = Open { no_atime: self.use_noatime == Some(true), ..Open::default() };
        if self.disk.open(&path, how).is_err() {
            // Any failure is taken for one of the flag.
            self.use_noatime = Some(false);
        }
        read(&self.disk, &path, Open::default(), key)
    }

    fn lose(&self, key: &ObjectKey) {
        self.disk.unlink(&Path::new("/gds").join(key.hash().to_string())).expect("a file");
    }

    fn no_atime(&self) -> bool {
        self.use_noatime == Some(true)
    }
}

/// W6: a race at the start aborts the scan, and a missing file ends the use of O_NOATIME for the process.
#[tokio::test]
async fn w06_start_races_its_scan_and_missing_file_disables_noatime() {
    for (mode, snapshot) in [(SimMode::Inline, true), (SimMode::Inline, false), (SimMode::Threads(2), false)]
    {
        let disk = sim_disk(SimOptions { mode, ..SimOptions::default() });
        let mut fs = Fs::open(Arc::clone(&disk), Path::new("/kv"), 1).expect("a store");
        for n in 0..OBJECTS {
            fs.put(&key(n)).await.expect("a store with room");
        }
        fs.close().await;
        if !snapshot {
            disk.unlink(&Path::new("/kv").join(names::SNAPSHOT)).expect("the snapshot");
        }
        for again in 0..10 {
            let mut fs = Fs::open(Arc::clone(&disk), Path::new("/kv"), again + 2).expect("a store");
            assert_eq!(start_is_whole_and_abilities_stay(&mut fs).await, Ok(()), "{mode:?}, start {again}");
            fs.put(&key(3)).await.expect("a store with room");
            fs.close().await;
        }
    }
    for (scan_first, says) in [
        (true, &["0 of 8 objects", "a missing file ended"][..]),
        (false, &["a missing file ended the leaving alone"]),
    ] {
        let disk = sim_disk(SimOptions::default());
        disk.create_dir_all(Path::new("/gds")).expect("a directory");
        for n in 0..OBJECTS {
            let path = Path::new("/gds").join(key(n).hash().to_string());
            write_new(&disk, &path, &key(n)).expect("a file");
        }
        found(start_is_whole_and_abilities_stay(&mut GdsStart::open(disk, scan_first)).await, says);
    }
}

// ---- W15 -------------------------------------------------------------------------------------------------------

/// Saves and loads from the `n`-th piece of a region.
trait Pieces {
    async fn save(&mut self, n: usize, key: &ObjectKey) -> Result<(), String>;
    async fn load(&mut self, n: usize, key: &ObjectKey) -> Got;
}

/// What is saved is the buffer's bytes, wherever in its region it lies.
async fn bytes_come_from_the_buffer(pieces: &mut impl Pieces) -> Result<(), String> {
    for n in 0..8 {
        pieces.save(n, &key(n as u64)).await?;
        let got = pieces.load(7 - n, &key(n as u64)).await;
        ensure(got == Got::Exact, format!("saved from piece {n} of the region, read back: {got:?}"))?;
    }
    Ok(())
}

impl Pieces for Fs<SimDisk> {
    async fn save(&mut self, n: usize, key: &ObjectKey) -> Result<(), String> {
        let before = self.before(n)?;
        let saved = self.put(key).await;
        drop(before);
        saved
    }

    async fn load(&mut self, n: usize, key: &ObjectKey) -> Got {
        let before = self.before(n);
        let got = self.get(key).await;
        drop(before);
        got
    }
}

impl Fs<SimDisk> {
    /// Takes the pieces before the `n`-th, so that the next buffer lies behind them.
    fn before(&self, n: usize) -> Result<Vec<kvstrata_mem::WriteBuf>, String> {
        let taken: Result<Vec<_>, _> = (0..n).map(|_| self.arena.empty(LEN)).collect();
        let taken = taken.map_err(|e| e.to_string())?;
        let mut places: Vec<usize> = taken.iter().map(|buf| buf.extent().offset / LEN).collect();
        places.sort_unstable();
        ensure(places == (0..n).collect::<Vec<_>>(), format!("the pieces lie elsewhere: {places:?}"))?;
        Ok(taken)
    }
}

/// LMCache's GDS backend without GPUDirect: a buffer's address has its offset in it, and without a base pointer the offset
/// is added to that.
struct PosixGds {
    region: Vec<u8>,
    base: Option<usize>,
    files: HashMap<ObjectKey, Vec<u8>>,
}

impl Pieces for PosixGds {
    async fn save(&mut self, n: usize, key: &ObjectKey) -> Result<(), String> {
        let offset = n * LEN;
        self.region[offset..offset + LEN].copy_from_slice(&payload_of(key));
        let data_ptr = offset;
        let from = self.base.unwrap_or(data_ptr) + offset;
        self.files.insert(key.clone(), self.region[from..from + LEN].to_vec());
        Ok(())
    }

    async fn load(&mut self, _: usize, key: &ObjectKey) -> Got {
        self.files.get(key).map_or(Got::Miss, |bytes| Got::judge(key, bytes))
    }
}

/// W15: without a base pointer, a save takes its bytes from twice the offset. Remains for GPUDirect Storage, whose buffers
/// are named by base and offset.
#[tokio::test]
async fn w15_offset_in_the_region_is_added_twice() {
    for memory in [Memory::Private, Memory::Shared] {
        let disk = sim_disk(SimOptions::default());
        let mut fs = Fs::on(memory, disk, Path::new("/kv"), 1).expect("a store");
        assert_eq!(bytes_come_from_the_buffer(&mut fs).await, Ok(()), "{memory:?}");
    }
    let double = |base| PosixGds { region: vec![0; 16 * LEN], base, files: HashMap::new() };
    found(bytes_come_from_the_buffer(&mut double(None)).await, &["piece 1 of the region", "Wrong"]);
    assert_eq!(
        bytes_come_from_the_buffer(&mut double(Some(0))).await,
        Ok(()),
        "latent: with a base it is right"
    );
}
