//! The GDS adapter against its obligations.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kvstrata_core::{Error, ObjectKey, Result};
use kvstrata_io::{Disk, IoEngine, OsDisk, OsOptions};
use kvstrata_l2::Context;
use kvstrata_lmcache_files::classic::{ClassicName, KeyDType, Suffix, sidecar};
use kvstrata_lmcache_files::{GdsConfig, HEADER_BYTES, LmcacheGds};
use kvstrata_testkit::conformance::{BusyThreads, Damage, Factory, Subject, Suite};

/// Writable directories, each of its own.
struct Gds;

#[async_trait::async_trait]
impl Factory for Gds {
    async fn open(&self, cx: Context, _: Option<u64>) -> Result<Subject> {
        let dir =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|e| Error::io("make directory", e))?;
        let disk = Arc::new(OsDisk::new(OsOptions::default()).map_err(|e| Error::io("start threads", e))?);
        let root = dir.path().join("gds");
        let config = GdsConfig {
            writable: true,
            kv_dtype: Some("uint8".into()),
            debug_checks: true,
            ..GdsConfig::new(&root)
        };
        let gds = LmcacheGds::open(&config, Arc::clone(&disk), cx, 7)?;
        let reopen = {
            let disk = Arc::clone(&disk);
            move |cx| {
                let (config, disk) = (config.clone(), Arc::clone(&disk));
                Box::pin(async move { Ok(LmcacheGds::open(&config, disk, cx, 8)?.adapter()) }) as _
            }
        };
        Ok(Subject {
            reopen: Some(Box::new(reopen)),
            damage: Some(Box::new(move |d| damage(&root, d))),
            device: Some(hang(disk)),
            keep: Box::new(dir),
            ..Subject::new(gds.adapter())
        })
    }
}

fn data(root: &Path, key: &ObjectKey) -> PathBuf {
    let dtype = KeyDType::from_name("uint8").expect("a dtype");
    root.join(ClassicName::of(key, dtype).expect("a name").data(Suffix::Safetensors))
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the object's file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 4;
    file.write_all_at(&byte, at).expect("a byte");
}

fn damage(root: &Path, damage: Damage<'_>) -> bool {
    match damage {
        Damage::Flip(key) => flip(&data(root, key), HEADER_BYTES as u64 + 1234),
        Damage::Header(key) => flip(&sidecar(&data(root, key)), 9),
        Damage::Truncate(key) => {
            let file = OpenOptions::new().write(true).open(data(root, key)).expect("the object's file");
            let len = file.metadata().expect("its length").len();
            file.set_len(len - 1).expect("a shorter file");
        }
        Damage::Swap(a, b) => {
            let (a, b, aside) = (data(root, a), data(root, b), root.join("aside"));
            for (a, b) in [(a.clone(), b.clone()), (sidecar(&a), sidecar(&b))] {
                fs::rename(&a, &aside).expect("a rename");
                fs::rename(&b, &a).expect("a rename");
                fs::rename(&aside, &b).expect("a rename");
            }
        }
    }
    true
}

/// Hangs a disk by keeping all its threads busy.
fn hang(disk: Arc<OsDisk>) -> Arc<BusyThreads> {
    let threads = disk.engine().threads();
    Arc::new(BusyThreads::new(threads, move |job| {
        disk.engine().spawn(true, job).ok().expect("an open engine");
    }))
}

fn main() -> ExitCode {
    // The layout has no owner that could keep a limit.
    Suite::new(Gds).may_ignore(["l2_6_"]).main()
}
