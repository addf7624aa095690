//! Files of a single writer: W4, W10, W11, W12 and W16, on our file adapter and on a model of LMCache's local disk backend.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstrata_core::ObjectKey;
use kvstrata_io::{Disk, Fault, OpKind, Open, OsDisk, Rule, SimDisk, SimOptions};
use kvstrata_testkit::rng::Rng;

use crate::support::{
    ENOSPC, Fs, Got, LEN, Tier, ensure, flip, found, key, key_of, os_disk, payload_of, resize, sim_disk,
    taken,
};

// ---- the double ------------------------------------------------------------------------------------------------

/// How a key becomes a file name.
type Name = fn(&ObjectKey) -> String;

fn with_dashes(key: &ObjectKey) -> String {
    format!("{}@{}.pt", key.scope().model().replace('/', "-"), key.hash())
}

fn with_sep(key: &ObjectKey) -> String {
    format!("{}@{}.data", key.scope().model().replace('/', "-SEP-"), key.hash())
}

/// LMCache's local disk backend: raw bytes under a readable name, written in place; an index in memory; one pool of buffers,
/// which keep what they held; no clean-up where an operation fails.
struct LocalDisk<D: Disk> {
    disk: Arc<D>,
    root: PathBuf,
    name: Name,
    index: HashMap<String, u64>,
    writing: HashSet<String>,
    charged: u64,
    references: u64,
    /// The piece of the pool that loads get, over and over.
    pool: Vec<u8>,
}

impl<D: Disk> LocalDisk<D> {
    fn new(disk: Arc<D>, root: &Path, name: Name) -> Self {
        disk.create_dir_all(root).expect("a directory");
        let (index, writing) = (HashMap::new(), HashSet::new());
        Self { disk, root: root.into(), name, index, writing, charged: 0, references: 0, pool: vec![42; LEN] }
    }
}

impl<D: Disk> Tier for LocalDisk<D> {
    type Disk = D;

    async fn put(&mut self, key: &ObjectKey) -> Result<(), String> {
        let name = (self.name)(key);
        if self.index.contains_key(&name) {
            return Ok(());
        }
        if !self.writing.insert(name.clone()) {
            return Err("refused: the key is being written".into());
        }
        self.charged += LEN as u64;
        self.references += 1;
        let path = self.root.join(&name);
        let write = || {
            let create = Open { write: true, create_new: true, ..Open::default() };
            let file = self
                .disk
                .open(&path, create)
                .or_else(|_| self.disk.open(&path, Open { write: true, ..Open::default() }))?;
            self.disk.write_all_at(&file, 0, &payload_of(key))
        };
        // An error leaves from here, past all that follows.
        write().map_err(|e| e.to_string())?;
        self.references -= 1;
        self.writing.remove(&name);
        self.index.insert(name, LEN as u64);
        Ok(())
    }

    async fn get(&mut self, key: &ObjectKey) -> Got {
        let name = (self.name)(key);
        if !self.index.contains_key(&name) {
            return Got::Miss;
        }
        self.references += 1;
        let path = self.root.join(&name);
        let Ok(file) = self.disk.open(&path, Open::default()) else {
            return Got::Error("KeyError".into());
        };
        // As much as there is; how much that was is not looked at.
        let there = self.disk.file_metadata(&file).map_or(0, |meta| meta.len as usize).min(LEN);
        let _ = self.disk.read_exact_at(&file, 0, &mut self.pool[..there]);
        self.references -= 1;
        Got::judge(key, &self.pool)
    }

    async fn remove(&mut self, key: &ObjectKey) -> bool {
        let name = (self.name)(key);
        let there = self.index.remove(&name).is_some();
        // What it was charged stays charged.
        there && self.disk.unlink(&self.root.join(&name)).is_ok()
    }

    fn disk(&self) -> &D {
        &self.disk
    }

    fn file(&self, key: &ObjectKey) -> PathBuf {
        self.root.join((self.name)(key))
    }

    fn buffers(&self) -> u64 {
        self.references
    }

    fn charged(&self) -> u64 {
        self.charged
    }
}

fn double() -> LocalDisk<SimDisk> {
    LocalDisk::new(sim_disk(SimOptions::default()), Path::new("/disk"), with_dashes)
}

struct Ours {
    fs: Fs<OsDisk>,
    dir: tempfile::TempDir,
}

fn ours() -> Ours {
    let dir = tempfile::tempdir().expect("a directory");
    Ours { fs: Fs::open(os_disk(), &dir.path().join("kv"), 1).expect("a store"), dir }
}

// ---- W4 --------------------------------------------------------------------------------------------------------

/// Cuts and damages files at random places; what is loaded then is the stored bytes or nothing.
async fn damaged_files_are_misses(tier: &mut impl Tier) -> Result<(), String> {
    let mut rng = Rng::new(4);
    for n in 0..100 {
        let k = key(n);
        tier.put(&k).await?;
        ensure(tier.get(&k).await == Got::Exact, "what was stored is not there")?;
        // Something else passes through the memory that the next load gets.
        tier.put(&key(n + 1000)).await?;
        ensure(tier.get(&key(n + 1000)).await == Got::Exact, "what was stored is not there")?;
        let (path, at) = (tier.file(&k), 1 + rng.below(LEN as u64 - 1));
        let what = if n % 2 == 0 {
            resize(tier.disk(), &path, -(at as i64));
            format!("a file cut by {at} bytes")
        } else {
            flip(tier.disk(), &path, at);
            format!("a bit flipped {at} bytes before the end")
        };
        match tier.get(&k).await {
            Got::Miss => {}
            got => return Err(format!("{what} is loaded as {got:?}")),
        }
    }
    Ok(())
}

/// W4: the result of a read is ignored, so a short file gives stale memory as KV.
#[tokio::test]
async fn w04_short_file_is_given_out_with_stale_memory() {
    assert_eq!(damaged_files_are_misses(&mut ours().fs).await, Ok(()));
    found(damaged_files_are_misses(&mut double()).await, &["a file cut by", "Wrong"]);
}

// ---- W10 -------------------------------------------------------------------------------------------------------

/// A store that fails for want of space leaves nothing behind, and can be done again.
async fn failed_write_restores_all(tier: &mut impl Tier<Disk = SimDisk>) -> Result<(), String> {
    for n in 1..20 {
        let before = tier.charged();
        let kind = if n % 2 == 1 { OpKind::Write } else { OpKind::Open };
        let fired = tier.disk().faults().add(Rule::new(Fault::Errno(ENOSPC)).on(&[kind]).times(1));
        ensure(tier.put(&key(n)).await.is_err(), "a write that failed is said to be a store")?;
        ensure(fired.count() == 1, "the disk was not asked")?;
        ensure(tier.get(&key(n)).await == Got::Miss, "what was not stored is found")?;
        let (charged, buffers) = (tier.charged(), tier.buffers());
        let again = tier.put(&key(n)).await;
        let mut left = Vec::new();
        if charged != before {
            left.push(format!("{} bytes stay charged", charged - before));
        }
        if buffers > 0 {
            left.push(format!("{buffers} references stay"));
        }
        if let Err(e) = again {
            left.push(format!("the next store: {e}"));
        }
        ensure(left.is_empty(), left.join("; "))?;
        ensure(tier.get(&key(n)).await == Got::Exact, "what was stored is not there")?;
        ensure(tier.remove(&key(n)).await, "it cannot be removed")?;
    }
    Ok(())
}

/// W10: a failed disk write leaks the reference, the mark that the key is in flight, and the capacity.
#[tokio::test]
async fn w10_failed_write_leaks_reference_mark_and_capacity() {
    let mut fs = Fs::open(sim_disk(SimOptions::default()), Path::new("/kv"), 1).expect("a store");
    assert_eq!(failed_write_restores_all(&mut fs).await, Ok(()));
    found(
        failed_write_restores_all(&mut double()).await,
        &["16384 bytes stay charged", "1 references stay", "being written"],
    );
}

// ---- W11 -------------------------------------------------------------------------------------------------------

/// After stores and removals at random, what is charged is what the directory takes, within one block.
async fn accounting_is_what_du_says(tier: &mut impl Tier, root: &Path) -> Result<(), String> {
    let mut rng = Rng::new(11);
    for step in 0..600 {
        let k = key(rng.below(40));
        if rng.percent(50) {
            tier.put(&k).await?;
        } else {
            tier.remove(&k).await;
        }
        if step % 50 == 49 {
            let (charged, real) = (tier.charged(), taken(tier.disk(), root));
            ensure(charged.abs_diff(real) <= 4096, format!("{charged} bytes are charged, {real} are taken"))?;
        }
    }
    Ok(())
}

/// W11: a removal never gives its capacity back.
#[tokio::test]
async fn w11_removal_never_returns_capacity() {
    let mut ours = ours();
    let root = ours.dir.path().join("kv");
    assert_eq!(accounting_is_what_du_says(&mut ours.fs, &root).await, Ok(()));
    found(accounting_is_what_du_says(&mut double(), Path::new("/disk")).await, &["are charged"]);
}

// ---- W12 -------------------------------------------------------------------------------------------------------

/// Keys whose text differs in what a file name cannot hold never share an object.
async fn names_do_not_collide(tier: &mut impl Tier) -> Result<(), String> {
    const ALIKE: [&str; 5] = ["org/name", "org-name", "org-SEP-name", "org%2Fname", "org_name"];
    for (n, one) in ALIKE.iter().enumerate() {
        let mine = key_of(one, n as u64);
        tier.put(&mine).await?;
        for other in ALIKE.iter().filter(|other| *other != one) {
            let got = tier.get(&key_of(other, n as u64)).await;
            ensure(got == Got::Miss, format!("{other:?} reads what {one:?} stored: {got:?}"))?;
        }
        for other in ALIKE {
            tier.put(&key_of(other, n as u64)).await?;
        }
        for other in ALIKE {
            let got = tier.get(&key_of(other, n as u64)).await;
            ensure(got == Got::Exact, format!("{other:?} is {got:?} after the stores of the others"))?;
        }
    }
    Ok(())
}

/// W12: `/` in a key becomes `-`, or `-SEP-`, and two keys have one file.
#[tokio::test]
async fn w12_two_keys_have_one_file_name() {
    assert_eq!(names_do_not_collide(&mut ours().fs).await, Ok(()));
    for (name, alike) in [(with_dashes as Name, "org-name"), (with_sep, "org-SEP-name")] {
        let mut double = LocalDisk::new(sim_disk(SimOptions::default()), Path::new("/disk"), name);
        found(names_do_not_collide(&mut double).await, &[alike, "\"org/name\" stored", "Wrong"]);
    }
}

// ---- W16 -------------------------------------------------------------------------------------------------------

/// A file that somebody deleted is a miss; nothing stays held, and the next store brings it back.
async fn missing_file_is_a_miss(tier: &mut impl Tier) -> Result<(), String> {
    for n in 0..20 {
        let k = key(n);
        tier.put(&k).await?;
        tier.disk().unlink(&tier.file(&k)).map_err(|e| e.to_string())?;
        let (got, buffers) = (tier.get(&k).await, tier.buffers());
        ensure(
            got == Got::Miss && buffers == 0,
            format!("the load of a deleted file gives {got:?} and leaves {buffers} buffers"),
        )?;
        tier.put(&k).await?;
        ensure(tier.get(&k).await == Got::Exact, "the next store did not bring it back")?;
    }
    Ok(())
}

/// W16: a file that is gone is a `KeyError` in the engine and a leaked buffer.
#[tokio::test]
async fn w16_missing_file_is_an_error_and_leaks_a_buffer() {
    assert_eq!(missing_file_is_a_miss(&mut ours().fs).await, Ok(()));
    found(missing_file_is_a_miss(&mut double()).await, &["KeyError", "leaves 1 buffers"]);
}
