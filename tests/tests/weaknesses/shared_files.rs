//! Files of several writers: W13 and W14, on our file adapter and on a model of LMCache's `fs` adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::{Digest, ErrorKind, Layout, ObjectKey};
use kvstrata_disk::{Begin, Claim, Created, HEADER_BYTES, NewObject, Store, names};
use kvstrata_io::{Disk, Open, SimDisk, SimOptions};

use crate::support::{
    Fs, Got, LEN, Tier, ensure, flip, found, key, os_disk, payload_of, resize, sim_disk, swap,
};

/// LMCache's `fs` adapter: raw bytes, a temporary name that only depends on the key, a store that is skipped where a file
/// is, and a load that succeeds if it could read as many bytes as it wanted.
struct FsAdapter {
    disk: Arc<SimDisk>,
    root: PathBuf,
}

impl FsAdapter {
    fn new() -> Self {
        let disk = sim_disk(SimOptions { record: false, ..SimOptions::default() });
        disk.create_dir_all(Path::new("/fs")).expect("a directory");
        Self { disk, root: "/fs".into() }
    }

    /// Opens for writing as Python's `"wb"` does.
    fn truncate(&self, path: &Path) -> std::io::Result<<SimDisk as Disk>::File> {
        let write = Open { write: true, ..Open::default() };
        let file = match self.disk.open(path, Open { create_new: true, ..write }) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => self.disk.open(path, write),
            file => file,
        }?;
        self.disk.set_len(&file, 0)?;
        Ok(file)
    }
}

// ---- W13 -------------------------------------------------------------------------------------------------------

/// What a writer is after a step.
enum Step {
    More,
    Done(Result<(), String>),
}

/// A store of which several write at once, one file operation after the other.
trait Writers {
    type Writer: Default;
    fn step(&self, writer: &mut Self::Writer, key: &ObjectKey) -> Step;
    /// The payload under the key's published name, if there is a file.
    fn published(&self, key: &ObjectKey) -> Option<Vec<u8>>;
}

/// Runs two writers of one key in every order that ten choices make: no store fails, and whoever looks meanwhile sees the
/// whole object or none.
fn two_writers_publish_whole_objects<W: Writers>(fresh: impl Fn() -> W) -> Result<(), String> {
    let (k, mut failed, mut short) = (key(13), Vec::new(), 0);
    let whole = payload_of(&k);
    for order in 0u32..1 << 10 {
        let store = fresh();
        let mut writers = [W::Writer::default(), W::Writer::default()];
        let mut done = [false; 2];
        for turn in 0..64 {
            if done == [true; 2] {
                break;
            }
            let mut at = if turn < 10 { (order >> turn & 1) as usize } else { turn % 2 };
            if done[at] {
                at = 1 - at;
            }
            if let Step::Done(result) = store.step(&mut writers[at], &k) {
                done[at] = true;
                failed.extend(result.err());
            }
            short += usize::from(store.published(&k).is_some_and(|bytes| bytes != whole));
        }
        ensure(done == [true; 2], format!("order {order:010b}: a writer does not end"))?;
        ensure(store.published(&k).as_ref() == Some(&whole), format!("order {order:010b}: no whole object"))
            .or_else(|e| if failed.is_empty() && short == 0 { Err(e) } else { Ok(()) })?;
    }
    let first = failed.first().cloned().unwrap_or_default();
    ensure(
        failed.is_empty() && short == 0,
        format!("{} stores failed ({first}); {short} looks saw a file while it was short", failed.len()),
    )
}

fn read<D: Disk>(disk: &D, path: &Path, from: u64) -> Option<Vec<u8>> {
    let file = disk.open(path, Open::default()).ok()?;
    let len = disk.file_metadata(&file).ok()?.len.saturating_sub(from);
    let mut bytes = vec![0; len as usize];
    disk.read_exact_at(&file, from, &mut bytes).ok()?;
    Some(bytes)
}

struct Shared(Arc<Store<SimDisk>>);

#[derive(Default)]
enum OurWriter {
    #[default]
    Start,
    Claimed(Claim<SimDisk>),
    Empty(Claim<SimDisk>, Created<SimDisk>),
    Half(Claim<SimDisk>, Created<SimDisk>),
    Full(Claim<SimDisk>, Created<SimDisk>),
}

impl Writers for Shared {
    type Writer = OurWriter;

    fn step(&self, writer: &mut OurWriter, key: &ObjectKey) -> Step {
        let bytes = payload_of(key);
        let write = |created: &Created<SimDisk>, from: usize, to: usize| {
            let at = created.offset + from as u64;
            self.0.disk().write_all_at(&created.file, at, &bytes[from..to]).expect("a disk with room");
        };
        *writer = match std::mem::take(writer) {
            OurWriter::Start => {
                let layout = Layout::opaque(LEN as u64).expect("a layout").id();
                let digest = Some(Digest::bind(13, key, layout, LEN as u64));
                let object = NewObject { key: key.clone(), layout, len: LEN as u64, digest };
                match self.0.begin(&[object]).pop().expect("one answer") {
                    Begin::Claimed(claim) => OurWriter::Claimed(claim),
                    Begin::Present => return Step::Done(Ok(())),
                    // Somebody works on this key: the adapter waits, and asks again.
                    Begin::Busy => OurWriter::Start,
                    Begin::Refused(e) => return Step::Done(Err(e.to_string())),
                }
            }
            OurWriter::Claimed(mut claim) => {
                let created = claim.reserve().and_then(|()| claim.create());
                match created {
                    Ok(created) => OurWriter::Empty(claim, created),
                    Err(e) => return Step::Done(Err(claim.give_up(e).to_string())),
                }
            }
            OurWriter::Empty(claim, created) => {
                write(&created, 0, LEN / 2);
                OurWriter::Half(claim, created)
            }
            OurWriter::Half(claim, created) => {
                write(&created, LEN / 2, LEN);
                OurWriter::Full(claim, created)
            }
            OurWriter::Full(claim, created) => {
                return Step::Done(claim.publish(created).map(drop).map_err(|e| e.to_string()));
            }
        };
        Step::More
    }

    fn published(&self, key: &ObjectKey) -> Option<Vec<u8>> {
        let path = names::object_path(self.0.root(), key.fingerprint256());
        read(&**self.0.disk(), &path, HEADER_BYTES)
    }
}

#[derive(Default)]
enum TheirWriter {
    #[default]
    Start,
    Empty(<SimDisk as Disk>::File),
    Half(<SimDisk as Disk>::File),
    Full,
}

impl Writers for FsAdapter {
    type Writer = TheirWriter;

    fn step(&self, writer: &mut TheirWriter, key: &ObjectKey) -> Step {
        let (path, bytes) = (self.file(key), payload_of(key));
        let tmp = path.with_extension("tmp");
        let next = match std::mem::take(writer) {
            TheirWriter::Start if self.disk.metadata(&path).is_ok() => return Step::Done(Ok(())),
            TheirWriter::Start => self.truncate(&tmp).map(TheirWriter::Empty),
            TheirWriter::Empty(file) => {
                self.disk.write_all_at(&file, 0, &bytes[..LEN / 2]).map(|()| TheirWriter::Half(file))
            }
            TheirWriter::Half(file) => {
                self.disk.write_all_at(&file, LEN as u64 / 2, &bytes[LEN / 2..]).map(|()| TheirWriter::Full)
            }
            TheirWriter::Full => {
                return Step::Done(self.disk.rename(&tmp, &path).map_err(|e| e.to_string()));
            }
        };
        match next {
            Ok(next) => *writer = next,
            Err(e) => return Step::Done(Err(e.to_string())),
        }
        Step::More
    }

    fn published(&self, key: &ObjectKey) -> Option<Vec<u8>> {
        read(&*self.disk, &self.file(key), 0)
    }
}

/// W13: writers share a temporary name, so stores fail and files are visible while they are short. Writers of one process
/// take turns at a key here; a second process is refused the directory.
#[tokio::test]
async fn w13_writers_share_a_temporary_name() {
    let fresh = || {
        let disk = sim_disk(SimOptions { record: false, ..SimOptions::default() });
        let fs = Fs::open(disk, Path::new("/kv"), 1).expect("a store");
        Shared(Arc::clone(fs.fs.store()))
    };
    assert_eq!(two_writers_publish_whole_objects(fresh), Ok(()));
    found(two_writers_publish_whole_objects(FsAdapter::new), &["stores failed", "while it was short"]);

    let disk = sim_disk(SimOptions::default());
    let first = Fs::open(Arc::clone(&disk), Path::new("/kv"), 1).expect("a store");
    let second = Fs::open(disk, Path::new("/kv"), 2).map(drop).expect_err("one at a time");
    assert_eq!(second.kind(), ErrorKind::Busy, "{second}");
    drop(first);
}

// ---- W14 -------------------------------------------------------------------------------------------------------

impl Tier for FsAdapter {
    type Disk = SimDisk;

    async fn put(&mut self, key: &ObjectKey) -> Result<(), String> {
        let mut writer = TheirWriter::default();
        loop {
            if let Step::Done(result) = self.step(&mut writer, key) {
                return result;
            }
        }
    }

    async fn get(&mut self, key: &ObjectKey) -> Got {
        let Ok(file) = self.disk.open(&self.file(key), Open::default()) else { return Got::Miss };
        let mut bytes = vec![0; LEN];
        match self.disk.read_exact_at(&file, 0, &mut bytes) {
            Ok(()) => Got::judge(key, &bytes),
            Err(_) => Got::Miss,
        }
    }

    async fn remove(&mut self, key: &ObjectKey) -> bool {
        self.disk.unlink(&self.file(key)).is_ok()
    }

    fn disk(&self) -> &SimDisk {
        &self.disk
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(format!("{}.data", key.hash()))
    }

    fn buffers(&self) -> u64 {
        0
    }

    fn charged(&self) -> u64 {
        0
    }
}

const LONGER: &str = "a file that is too long";

/// Every kind of damage is a miss, and after a miss a store makes the key good again.
async fn rot_is_a_miss_and_heals<T: Tier>(tier: &mut T) -> Result<(), String> {
    type Hurt<T> = (&'static str, fn(&T, &ObjectKey, &ObjectKey));
    let damage: [Hurt<T>; 5] = [
        ("a file cut by a byte", |t, k, _| resize(t.disk(), &t.file(k), -1)),
        ("a file cut by half", |t, k, _| resize(t.disk(), &t.file(k), -(LEN as i64) / 2)),
        ("a flipped bit", |t, k, _| flip(t.disk(), &t.file(k), 1234)),
        (LONGER, |t, k, _| resize(t.disk(), &t.file(k), 8192)),
        ("two files that changed places", |t, k, other| swap(t.disk(), &t.file(k), &t.file(other))),
    ];
    let mut defects = Vec::new();
    for (n, (what, hurt)) in damage.into_iter().enumerate() {
        let (k, other) = (key(2 * n as u64), key(2 * n as u64 + 1));
        tier.put(&k).await?;
        tier.put(&other).await?;
        hurt(tier, &k, &other);
        match tier.get(&k).await {
            Got::Miss => {}
            // The payload is whole, and what follows it in the file was not given out.
            Got::Exact if what == LONGER => {}
            got => defects.push(format!("{what}: given out as {got:?}")),
        }
        tier.put(&k).await?;
        let got = tier.get(&k).await;
        if got != Got::Exact {
            defects.push(format!("{what}: stored again, and then {got:?}"));
        }
    }
    ensure(defects.is_empty(), defects.join("; "))
}

/// W14: rotten files are given out, or never replaced because there is a file.
#[tokio::test]
async fn w14_rotten_file_poisons_its_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut ours = Fs::open(os_disk(), &dir.path().join("kv"), 1).expect("a store");
    assert_eq!(rot_is_a_miss_and_heals(&mut ours).await, Ok(()));
    found(
        rot_is_a_miss_and_heals(&mut FsAdapter::new()).await,
        &[
            "a file cut by a byte: stored again, and then Miss",
            "a flipped bit: given out as Wrong",
            "changed places: given out as Wrong",
        ],
    );
}
