//! What happens to a store of segments when bits of any of its files rot: objects are lost, none is wrong, and storing them
//! again heals it. The digest check is above, as it always is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use kvstrata_l2_fs::{LayoutChoice, Sync};
use kvstrata_testkit::rng::Rng;
use kvstrata_tests::shelf::{BATCH, Got, How, Shelf, scope};

const OBJECTS: u64 = 200;
const ROUNDS: u64 = 40;

/// Bytes of a file that have been written: behind them it is set aside and empty.
fn written(path: &PathBuf, used: u64) -> u64 {
    let len = fs::metadata(path).expect("a file").len();
    if path.to_string_lossy().contains("segment-") { len.min(used) } else { len }
}

/// Does one of the things that devices do, to one of the files; whether any byte changed.
fn rot(rng: &mut Rng, files: &[PathBuf], used: u64) -> bool {
    let path = &files[rng.below(files.len() as u64) as usize];
    let (file, len) =
        (OpenOptions::new().read(true).write(true).open(path).expect("a file"), written(path, used));
    if len == 0 {
        return false;
    }
    let from = rng.below(len);
    let n = (1 + rng.below(8192)).min(len - from) as usize;
    let mut before = vec![0; n];
    file.read_exact_at(&mut before, from).expect("bytes");
    let after: Vec<u8> = match rng.below(6) {
        0 => vec![0; n],
        1 => before.iter().map(|_| rng.bits() as u8).collect(),
        2 => {
            file.set_len(from).expect("a cut");
            return true;
        }
        // A write that went elsewhere: another part of the file lies here.
        3 => {
            let mut other = vec![0; n];
            file.read_exact_at(&mut other, rng.below(len - n as u64 + 1)).expect("bytes");
            other
        }
        _ => {
            let mut flipped = before.clone();
            flipped[rng.below(n as u64) as usize] ^= 1 << rng.below(8);
            flipped
        }
    };
    file.write_all_at(&after, from).expect("a write");
    before != after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_of_any_file_rot_and_no_byte_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rng, scope) = (Rng::new(11), scope());
    let ids: Vec<u64> = (0..OBJECTS).collect();
    let how = |writer| How {
        dir: dir.path().into(),
        layout: LayoutChoice::Slab,
        capacity: 16 << 20,
        sync: Sync::None,
        writer,
        shared: false,
    };
    let (mut verified, mut lost, mut changed) = (0u64, 0u64, 0u64);
    for round in 0..ROUNDS {
        let shelf = Shelf::open(&how((1 + round) << 32)).expect("it opens, whatever has rotted");
        for batch in ids.chunks(BATCH) {
            for (id, got) in batch.iter().zip(shelf.get(&scope, batch).await) {
                match got {
                    Got::Right => verified += 1,
                    Got::Miss(_) => lost += 1,
                    wrong => panic!("round {round}, key {id}: {wrong:?}"),
                }
            }
            for answer in shelf.put(&scope, batch).await {
                answer.expect("there is room");
            }
            for (id, got) in batch.iter().zip(shelf.get(&scope, batch).await) {
                assert!(matches!(got, Got::Right), "round {round}, key {id} is not healed: {got:?}");
            }
        }
        assert_eq!(shelf.buffers(), 0);
        let used = 2 * shelf.fs.store().usage().used;
        shelf.close().await.expect("it closes");
        let files = fs::read_dir(dir.path().join("slab")).expect("a directory");
        let files: Vec<PathBuf> = files.map(|e| e.expect("an entry").path()).collect();
        for _ in 0..1 + rng.below(4) {
            changed += u64::from(rot(&mut rng, &files, used));
        }
    }
    // It was not for want of anything to find.
    assert!(changed > 40 && lost > 50 && verified > 2000, "{changed} {lost} {verified}");
}
