//! Faults of the simulated disk: each does what it says, when it was told to.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kvstrata_io::*;
use kvstrata_mem::{Allocate, HeapRegion, Pool, Slab};

const NEW: Open = Open { write: true, create_new: true, direct: false, no_atime: false };

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn code<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().expect("an errno")
}

#[test]
fn rules_strike_where_and_when_they_were_told_to() {
    let disk = SimDisk::default();
    let file = disk.open(p("/payload"), NEW).unwrap();
    let other = disk.open(p("/other"), NEW).unwrap();
    let rule = Rule::new(Fault::Errno(libc::EIO)).on(&[OpKind::Write]).at("load").after(1).times(2);
    let fired = disk.faults().add(rule);
    let outcomes: Vec<bool> = (0..5).map(|_| disk.write_all_at(&file, 0, b"x").is_ok()).collect();
    assert_eq!(outcomes, [true, false, false, true, true]);
    disk.write_all_at(&other, 0, b"x").unwrap();
    assert_eq!(fired.count(), 2);

    disk.faults().add(Rule::new(Fault::Errno(libc::EROFS)).on(&OpKind::CHANGES));
    assert_eq!(code(disk.write_all_at(&file, 0, b"x")), libc::EROFS);
    assert_eq!(code(disk.unlink(p("/other"))), libc::EROFS);
    disk.list(p("/")).unwrap();
    disk.faults().clear();
    disk.unlink(p("/other")).unwrap();
}

#[test]
fn a_rename_is_found_by_either_name() {
    let disk = SimDisk::default();
    disk.open(p("/from"), NEW).unwrap();
    disk.faults().add(Rule::new(Fault::Errno(libc::EIO)).at("/to"));
    assert_eq!(code(disk.rename(p("/from"), p("/to"))), libc::EIO);
    disk.rename(p("/from"), p("/elsewhere")).unwrap();
}

#[test]
fn a_rate_strikes_the_same_ones_by_the_same_seed() {
    let outcomes = |seed| -> Vec<bool> {
        let disk = SimDisk::default();
        disk.faults().add(Rule::new(Fault::Errno(libc::EIO)).rate(0.25, seed));
        (0..1000).map(|_| disk.list(p("/")).is_err()).collect()
    };
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
    let n = outcomes(1).into_iter().filter(|e| *e).count();
    assert!((200..300).contains(&n), "{n} of 1000 at a rate of a quarter");
}

#[test]
fn a_flipped_bit_is_one_bit_of_what_was_read() {
    let disk = SimDisk::default();
    let file = disk.open(p("/f"), NEW).unwrap();
    disk.write_all_at(&file, 0, &[0; 10_000]).unwrap();
    for bit in [0, 7, 4096 * 8, 9_999 * 8 + 3, 10_000 * 8 + 1] {
        disk.faults().add(Rule::new(Fault::FlipBit(bit)).on(&[OpKind::Read]).times(1));
        let mut bytes = vec![0; 10_000];
        disk.read_exact_at(&file, 0, &mut bytes).unwrap();
        let at = (bit % 80_000) as usize;
        assert_eq!(bytes[at / 8], 1 << (at % 8));
        assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        disk.read_exact_at(&file, 0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 0), "the disk itself is sound");
    }
}

#[test]
fn a_sync_that_lies_is_found_out_by_a_crash() {
    let disk = SimDisk::default();
    let file = disk.open(p("/f"), NEW).unwrap();
    disk.sync_dir(p("/")).unwrap();
    disk.write_all_at(&file, 0, b"x").unwrap();
    disk.faults().add(Rule::new(Fault::Skip).on(&[OpKind::SyncFile]).times(1));
    disk.sync_file(&file).unwrap();
    assert_eq!(disk.crash(Crash::Lose).metadata(p("/f")).unwrap().len, 0);
    disk.sync_file(&file).unwrap();
    assert_eq!(disk.crash(Crash::Lose).metadata(p("/f")).unwrap().len, 1);
}

#[test]
fn a_full_disk_takes_what_fits_and_keeps_what_was_set_aside() {
    let disk = SimDisk::new(SimOptions { capacity: 10 * 4096, ..SimOptions::default() });
    let set_aside = disk.open(p("/set-aside"), NEW).unwrap();
    disk.allocate(&set_aside, 3 * 4096).unwrap();
    let file = disk.open(p("/f"), NEW).unwrap();
    assert_eq!(code(disk.write_all_at(&file, 0, &[1; 8 * 4096])), libc::ENOSPC);
    assert_eq!(disk.file_metadata(&file).unwrap().len, 7 * 4096, "written as far as it went");
    assert_eq!(disk.space(p("/")).unwrap().available, 0);
    assert_eq!(code(disk.allocate(&set_aside, 4 * 4096)), libc::ENOSPC);
    disk.write_all_at(&set_aside, 0, &[2; 3 * 4096]).unwrap();
    disk.write_all_at(&file, 100, &[3; 4096]).unwrap();
    disk.unlink(p("/f")).unwrap();
    drop(file);
    assert_eq!(disk.space(p("/")).unwrap().available, 7 * 4096);
}

#[test]
fn what_is_refused_is_refused_as_linux_does_it() {
    let disk = SimDisk::new(SimOptions { direct: false, no_atime: false, ..SimOptions::default() });
    assert_eq!(code(disk.open(p("/f"), Open { direct: true, ..NEW })), libc::EINVAL);
    disk.metadata(p("/f")).expect("the file was made before the refusal");
    assert_eq!(code(disk.open(p("/f"), Open { no_atime: true, ..Open::default() })), libc::EPERM);
    let missing = Open { no_atime: true, direct: true, ..Open::default() };
    assert_eq!(code(disk.open(p("/g"), missing)), libc::ENOENT, "which says nothing about the flags");
}

#[test]
fn direct_transfers_must_be_aligned() {
    let disk = SimDisk::new(SimOptions { align: 4096, ..SimOptions::default() });
    let file = disk.open(p("/f"), Open { direct: true, ..NEW }).unwrap();
    let mut buf = pool().reserve(8192, 4096).unwrap();
    for (offset, len) in [(512, 4096), (0, 512), (4096, 100)] {
        assert_eq!(code(disk.read_buf_at(&file, offset, &mut buf, len)), libc::EINVAL, "{len} at {offset}");
    }
    disk.write_buf_at(&file, 4096, &buf.seal(8192), 8192).unwrap();
    assert_eq!(disk.file_metadata(&file).unwrap().len, 12_288);
}

#[test]
fn a_hook_sees_every_operation() {
    let disk = SimDisk::default();
    let (seen, all) = mpsc::channel();
    disk.faults().hook(move |op| {
        seen.send((op.kind, op.path.to_owned(), op.offset, op.len)).unwrap();
        (op.kind == OpKind::List).then_some(Fault::Errno(libc::EIO))
    });
    let file = disk.open(p("/f"), NEW).unwrap();
    disk.write_all_at(&file, 5, b"abc").unwrap();
    assert_eq!(code(disk.list(p("/"))), libc::EIO);
    let all: Vec<_> = all.try_iter().collect();
    assert_eq!(
        all,
        [
            (OpKind::Open, "/f".into(), 0, 0),
            (OpKind::Write, "/f".into(), 5, 3),
            (OpKind::List, "/".into(), 0, 0)
        ]
    );
}

// Hanging ------------------------------------------------------------------------------------------------------------

fn pool() -> Arc<Pool> {
    Slab::new(vec![HeapRegion::new(1 << 20).unwrap()]).unwrap().pool("test", 1 << 20)
}

struct Sent(mpsc::Sender<u64>);

impl<F> CompletionSink<F> for Sent {
    fn complete(&self, done: Completion<F>) {
        assert_eq!(done.result.unwrap(), 3);
        self.0.send(done.op.tag).unwrap();
    }
}

fn reads(disk: &SimDisk, path: &str, tags: std::ops::Range<u64>, sink: &Arc<Sent>) {
    let pool = pool();
    let file = Arc::new(disk.open(p(path), Open::default()).unwrap());
    let op = |tag| {
        let buf = IoBuf::Read(pool.reserve(3, 4096).unwrap());
        IoOp { tag, file: Arc::clone(&file), offset: 0, len: 3, buf }
    };
    let sink: Arc<dyn CompletionSink<SimFile>> = Arc::<Sent>::clone(sink);
    disk.engine().submit(tags.map(op).collect(), sink).expect("the engine is open");
}

fn hanging(mode: SimMode) -> (SimDisk, Arc<Sent>, mpsc::Receiver<u64>) {
    let disk = SimDisk::new(SimOptions { mode, ..SimOptions::default() });
    for path in ["/stuck", "/fine"] {
        let file = disk.open(p(path), NEW).unwrap();
        disk.write_all_at(&file, 0, b"abc").unwrap();
    }
    disk.faults().add(Rule::new(Fault::Hang).at("stuck").on(&[OpKind::Read]));
    let (send, done) = mpsc::channel();
    (disk, Arc::new(Sent(send)), done)
}

#[test]
fn a_transfer_that_hangs_is_set_aside_until_released() {
    for mode in [SimMode::Inline, SimMode::Stepped { seed: 1 }] {
        let (disk, sink, done) = hanging(mode);
        reads(&disk, "/stuck", 0..2, &sink);
        reads(&disk, "/fine", 2..4, &sink);
        disk.engine().run();
        let mut ended: Vec<u64> = done.try_iter().collect();
        ended.sort_unstable();
        assert_eq!(ended, [2, 3]);
        let stats = disk.engine().stats();
        assert_eq!((disk.hanging(), stats.running, stats.bytes_in_flight), (2, 2, 6));
        disk.release();
        disk.engine().run();
        assert_eq!(done.try_iter().count(), 2);
        assert_eq!(disk.engine().stats(), EngineStats { finished: 4, ..EngineStats::default() });
    }
}

#[test]
fn a_thread_that_hangs_goes_on_when_released() {
    let (disk, sink, done) = hanging(SimMode::Threads(2));
    reads(&disk, "/stuck", 0..1, &sink);
    reads(&disk, "/fine", 1..20, &sink);
    for _ in 1..20 {
        assert_ne!(done.recv_timeout(Duration::from_secs(60)).unwrap(), 0);
    }
    // The other thread has served them all; the one with the first may still be on its way.
    for _ in 0..60_000 {
        if disk.hanging() == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(disk.hanging(), 1);
    disk.release();
    assert_eq!(done.recv_timeout(Duration::from_secs(60)).unwrap(), 0);
}

#[test]
fn dropping_the_disk_ends_all_hanging() {
    for mode in [SimMode::Inline, SimMode::Stepped { seed: 1 }, SimMode::Threads(2)] {
        let (disk, sink, done) = hanging(mode);
        reads(&disk, "/stuck", 0..5, &sink);
        drop((disk, sink));
        assert_eq!(done.iter().count(), 5, "{mode:?}");
    }
}

#[test]
fn a_seed_decides_the_order() {
    let order = |seed| -> Vec<u64> {
        let (disk, sink, done) = hanging(SimMode::Stepped { seed });
        reads(&disk, "/fine", 0..20, &sink);
        assert_eq!(disk.engine().stats().queued_first, 20);
        assert_eq!(disk.engine().run(), 20);
        assert!(!disk.engine().step());
        done.try_iter().collect()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}
