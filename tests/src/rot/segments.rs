//! Bits of any file of a store of segments rot: objects are lost, none is wrong, and storing them again heals it. The digest
//! check is above, as it always is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvstrata_disk::names::SLAB;
use kvstrata_l2_fs::{LayoutChoice, Sync};
use kvstrata_testkit::rng::Rng;
use serde::Serialize;

use super::Options;
use crate::report::{Progress, number, table};
use crate::shelf::{BATCH, Got, How, Shelf, scope};

const OBJECTS: u64 = 200;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Faults put in place that changed a byte.
    pub faults: u64,
    /// Stores opened.
    pub opened: u64,
    /// Objects that were lost, and healed by the next store.
    pub lost: u64,
    /// Loads that delivered, each compared byte by byte.
    pub verified: u64,
    /// Deliveries of other bytes.
    pub wrong: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Everything that did not hold.
    pub failures: Vec<String>,
}

/// Bytes of a file that have been written: behind them it is set aside and empty.
fn written(path: &Path, used: u64) -> std::io::Result<u64> {
    let len = fs::metadata(path)?.len();
    Ok(if path.to_string_lossy().contains("segment-") { len.min(used) } else { len })
}

/// Does one of the things that devices do, to one of the files; whether any byte changed.
fn rot(rng: &mut Rng, files: &[PathBuf], used: u64) -> std::io::Result<bool> {
    let path = &files[rng.below(files.len() as u64) as usize];
    let (file, len) = (OpenOptions::new().read(true).write(true).open(path)?, written(path, used)?);
    if len == 0 {
        return Ok(false);
    }
    let from = rng.below(len);
    let n = (1 + rng.below(8192)).min(len - from) as usize;
    let mut before = vec![0; n];
    file.read_exact_at(&mut before, from)?;
    let after: Vec<u8> = match rng.below(6) {
        0 => vec![0; n],
        1 => before.iter().map(|_| rng.bits() as u8).collect(),
        2 => {
            file.set_len(from)?;
            return Ok(true);
        }
        // A write that went elsewhere: another part of the file lies here.
        3 => {
            let mut other = vec![0; n];
            file.read_exact_at(&mut other, rng.below(len - n as u64 + 1))?;
            other
        }
        _ => {
            let mut flipped = before.clone();
            flipped[rng.below(n as u64) as usize] ^= 1 << rng.below(8);
            flipped
        }
    };
    file.write_all_at(&after, from)?;
    Ok(before != after)
}

/// Lets stores of segments rot while they are closed.
pub fn run(options: &Options, progress: &mut Progress) -> Report {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let mut report = Report { seed: options.seed, ..Report::default() };
    let ended = runtime.expect("a runtime").block_on(rounds(options, &mut report, progress));
    report.failures.extend(ended.err());
    report.seconds = start.elapsed().as_secs_f64();
    report
}

async fn rounds(options: &Options, report: &mut Report, progress: &mut Progress) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (mut rng, scope) = (Rng::new(options.seed), scope());
    let ids: Vec<u64> = (0..OBJECTS).collect();
    while report.faults < options.faults && report.failures.len() < 20 {
        let how = How {
            dir: dir.path().into(),
            paths: options.paths,
            layout: LayoutChoice::Slab,
            capacity: options.paths as u64 * (16 << 20),
            sync: Sync::None,
            writer: (1 + report.opened) << 32,
            shared: false,
        };
        let round = report.opened;
        // Whatever has rotted, it opens.
        let shelf = Shelf::open(&how).map_err(|e| format!("round {round}: the store does not open: {e}"))?;
        report.opened += 1;
        for batch in ids.chunks(BATCH) {
            for (id, got) in batch.iter().zip(shelf.get(&scope, batch).await) {
                match got {
                    Got::Right => report.verified += 1,
                    Got::Miss(_) => report.lost += 1,
                    wrong => {
                        report.wrong += u64::from(matches!(wrong, Got::Wrong(_)));
                        report.failures.push(format!("round {round}, key {id}: {wrong:?}"));
                    }
                }
            }
            for (id, answer) in batch.iter().zip(shelf.put(&scope, batch).await) {
                if let Err(e) = answer {
                    report.failures.push(format!("round {round}, key {id} cannot be stored again: {e}"));
                }
            }
            for (id, got) in batch.iter().zip(shelf.get(&scope, batch).await) {
                if !matches!(got, Got::Right) {
                    report.failures.push(format!("round {round}, key {id} is not healed: {got:?}"));
                }
            }
        }
        if shelf.buffers() > 0 {
            report.failures.push(format!("round {round}: {} buffers are out", shelf.buffers()));
        }
        let used = 2 * shelf.stores.iter().map(|one| one.store().usage().used).max().unwrap_or(0);
        shelf.close().await.map_err(|e| format!("round {round}: the store does not close: {e}"))?;
        let mut files: Vec<PathBuf> = Vec::new();
        for dir in how.dirs() {
            let entries = fs::read_dir(dir.join(SLAB)).map_err(|e| e.to_string())?;
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for _ in 0..1 + rng.below(4 * options.paths as u64) {
            report.faults +=
                u64::from(rot(&mut rng, &files, used).map_err(|e| format!("damaging files: {e}"))?);
        }
        progress.reached(report.faults, &format!("{} chunks compared", number(report.verified)));
    }
    Ok(())
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let rows = [
            ("faults", self.faults),
            ("stores opened", self.opened),
            ("objects lost and healed", self.lost),
            ("chunks compared", self.verified),
            ("wrong bytes", self.wrong),
            ("failures", self.failures.len() as u64),
        ];
        let mut rows: Vec<_> = rows.map(|(what, n)| vec![what.to_owned(), number(n)]).into();
        rows.push(vec!["took, in seconds".to_owned(), format!("{:.1}", self.seconds)]);
        table(&["files of segments that rotted", "count"], &rows)
    }
}
