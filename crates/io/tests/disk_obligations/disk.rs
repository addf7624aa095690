//! The obligations of `Disk`.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kvstrata_io::*;
use kvstrata_mem::Allocate;

use crate::rig::*;

pub(crate) fn disk_1_rename_new_never_replaces<D: Disk>(rig: &Rig<D>) {
    rig.put("a", b"first");
    rig.put("b", b"second");
    let e = rig.disk.rename_new(&rig.at("a"), &rig.at("b")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EEXIST));
    assert_eq!((rig.get("a"), rig.get("b")), (b"first".to_vec(), b"second".to_vec()));
    rig.disk.rename_new(&rig.at("a"), &rig.at("c")).unwrap();
    assert_eq!(rig.get("c"), b"first");
    assert_eq!(rig.names(), ["b", "c"].map(String::from).into());
    rig.disk.rename(&rig.at("c"), &rig.at("b")).unwrap();
    assert_eq!(rig.get("b"), b"first");

    // Of many that publish under one name at once, exactly one does.
    for i in 0..8 {
        rig.put(&format!("w{i}"), &[i]);
    }
    let won: Vec<u8> = thread::scope(|s| {
        let publish = |i: u8| rig.disk.rename_new(&rig.at(&format!("w{i}")), &rig.at("published"));
        let all: Vec<_> = (0..8u8).map(|i| (i, s.spawn(move || publish(i)))).collect();
        all.into_iter().filter_map(|(i, t)| t.join().unwrap().is_ok().then_some(i)).collect()
    });
    assert_eq!(won.len(), 1);
    assert_eq!(rig.get("published"), won);
    assert_eq!(rig.names().len(), 9, "the others kept their names");
}

pub(crate) fn disk_2_all_bytes_or_an_error<D: Disk>(rig: &Rig<D>) {
    let bytes = pattern(1, 300_001);
    let file = rig.put("f", &bytes);
    assert!(rig.get("f") == bytes);
    let mut tail = [0; 10];
    rig.disk.read_exact_at(&file, 299_991, &mut tail).unwrap();
    assert_eq!(tail, bytes[299_991..]);
    let e = rig.disk.read_exact_at(&file, 299_992, &mut tail).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::UnexpectedEof);

    let mut buf = rig.pool.reserve(300_001, 4096).unwrap();
    let capacity = buf.capacity();
    assert_eq!(rig.disk.read_buf_at(&file, 0, &mut buf, capacity).unwrap(), 300_001, "more room than bytes");
    assert!(buf.as_mut_slice().unwrap() == bytes);
    assert_eq!(rig.disk.read_buf_at(&file, 400_000, &mut buf, 10).unwrap(), 0, "behind the end");
    let e = rig.disk.read_buf_at(&file, 0, &mut buf, capacity + 1).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    let e = rig.disk.read_buf_at(&file, u64::MAX - 5, &mut buf, 10).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EINVAL));

    let buf = rig.sealed(&pattern(2, 5_000));
    rig.disk.write_buf_at(&file, 400_000, &buf, 5_000).unwrap();
    let e = rig.disk.write_buf_at(&file, 0, &buf, 8_193).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    let now = rig.get("f");
    assert!(now[..300_001] == bytes && now[400_000..] == pattern(2, 5_000));
    assert!(now[300_001..400_000].iter().all(|b| *b == 0), "the hole between is zero");

    let closed = rig.disk.open(&rig.at("f"), READ).unwrap();
    let e = rig.disk.write_all_at(&closed, 0, b"x").unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EBADF), "opened for reading");
}

/// That the bytes are there after a crash only a simulated disk can show, and `crash.rs` does.
pub(crate) fn disk_3_syncing_works<D: Disk>(rig: &Rig<D>) {
    let file = rig.put("f", b"durable");
    rig.disk.sync_file(&file).unwrap();
    rig.disk.sync_dir(&rig.root).unwrap();
    assert_eq!(rig.get("f"), b"durable");
    let e = rig.disk.sync_dir(&rig.at("f")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::ENOTDIR));
    let e = rig.disk.sync_dir(&rig.at("none")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
}

pub(crate) fn disk_4_list_misses_nothing_that_stays<D: Disk>(rig: &Rig<D>) {
    let stay: BTreeSet<String> = (0..300).map(|i| format!("stay{i}")).collect();
    for name in &stay {
        rig.put(name, b"");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            for i in (0..50).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                rig.put(&format!("go{i}"), b"");
                rig.disk.unlink(&rig.at(&format!("go{i}"))).unwrap();
            }
        });
        for _ in 0..30 {
            let names = rig.names();
            assert!(names.is_superset(&stay), "{:?}", stay.difference(&names).collect::<Vec<_>>());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

pub(crate) fn files_and_directories_answer_as_documented<D: Disk>(rig: &Rig<D>) {
    let disk = &rig.disk;
    let code = |r: std::io::Result<D::File>| r.unwrap_err().raw_os_error().unwrap();
    disk.create_dir_all(&rig.at("x/y/z")).unwrap();
    disk.create_dir_all(&rig.at("x/y")).unwrap();
    let file = rig.put("x/y/f", b"12345");
    assert_eq!(code(disk.open(&rig.at("x/y/f"), NEW)), libc::EEXIST);
    assert_eq!(code(disk.open(&rig.at("x/f"), READ)), libc::ENOENT);
    assert_eq!(code(disk.open(&rig.at("g"), Open { create_new: true, ..READ })), libc::EINVAL);
    assert_eq!(disk.metadata(&rig.at("x/y")).unwrap().kind, FileKind::Dir);
    let meta = disk.metadata(&rig.at("x/y/f")).unwrap();
    assert_eq!((meta.len, meta.kind), (5, FileKind::File));
    assert_eq!(disk.file_metadata(&file).unwrap(), meta);
    let e = disk.remove_dir(&rig.at("x/y")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::DirectoryNotEmpty);
    disk.remove_dir(&rig.at("x/y/z")).unwrap();

    disk.allocate(&file, 1 << 20).unwrap();
    let meta = disk.file_metadata(&file).unwrap();
    assert!(meta.len == 5 && meta.allocated >= 1 << 20, "{meta:?}");
    disk.set_len(&file, 3).unwrap();
    assert_eq!(rig.get("x/y/f"), b"123");
    disk.unlink(&rig.at("x/y/f")).unwrap();
    disk.write_all_at(&file, 3, b"4").unwrap();
    assert_eq!(disk.file_metadata(&file).unwrap().len, 4, "it lives as long as its handle");

    let space = disk.space(&rig.root).unwrap();
    assert!(space.available <= space.total && space.block.is_power_of_two(), "{space:?}");
    assert!(space.fs.name().is_some(), "{space:?}");
}

pub(crate) fn a_lock_is_held_until_the_file_is_dropped<D: Disk>(rig: &Rig<D>) {
    let first = rig.put("lock", b"");
    let second = rig.disk.open(&rig.at("lock"), Open { write: true, ..READ }).unwrap();
    rig.disk.try_lock(&first).unwrap();
    rig.disk.try_lock(&first).unwrap();
    assert_eq!(rig.disk.try_lock(&second).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    rig.disk.try_lock(&second).unwrap();
}

pub(crate) fn a_shared_lock_keeps_out_exclusive_ones_only<D: Disk>(rig: &Rig<D>) {
    let first = rig.put("lock", b"");
    let open = || rig.disk.open(&rig.at("lock"), Open { write: true, ..READ }).unwrap();
    let (second, third) = (open(), open());
    rig.disk.try_lock_shared(&first).unwrap();
    rig.disk.try_lock_shared(&second).unwrap();
    assert_eq!(rig.disk.try_lock(&third).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    assert_eq!(rig.disk.try_lock(&third).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(second);
    rig.disk.try_lock(&third).unwrap();
    assert_eq!(rig.disk.try_lock_shared(&open()).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(third);
    rig.disk.try_lock_shared(&open()).unwrap();
}

pub(crate) fn direct_transfers_read_and_write_the_same_bytes<D: Disk>(rig: &Rig<D>) {
    let direct = Open { direct: true, ..NEW };
    let file = rig.disk.open(&rig.at("f"), direct).unwrap();
    let bytes = pattern(3, 300_000);
    // The tail of the last block goes along; the length is set right afterwards.
    let buf = rig.sealed(&bytes);
    rig.disk.write_buf_at(&file, 4096, &buf, buf.capacity()).unwrap();
    rig.disk.set_len(&file, 4096 + 300_000).unwrap();
    assert!(rig.get("f")[4096..] == bytes);
    let mut back = rig.pool.reserve(300_000, 4096).unwrap();
    let capacity = back.capacity();
    assert_eq!(rig.disk.read_buf_at(&file, 4096, &mut back, capacity).unwrap(), 300_000, "up to the end");
    assert!(back.as_mut_slice().unwrap() == bytes);
    assert_eq!(
        rig.disk.read_buf_at(&file, 1, &mut back, 4096).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
}

pub(crate) fn the_probe_leaves_nothing_behind<D: Disk>(rig: &Rig<D>) {
    let found = probe(&rig.disk, &rig.root).unwrap();
    assert_eq!(found.rename_new, Support::Yes);
    assert_eq!(found.lock, Support::Yes);
    assert_eq!(rig.names(), BTreeSet::new());
    let e = probe(&rig.disk, &rig.at("none")).unwrap_err();
    assert_eq!(e.kind(), kvstrata_core::ErrorKind::NotFound);
}
