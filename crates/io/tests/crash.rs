//! What a crash of the simulated disk leaves, and that it tells right protocols from wrong ones.

use std::path::Path;

use kvstrata_io::*;

const NEW: Open = Open { write: true, create_new: true, direct: false, no_atime: false };

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn write(disk: &SimDisk, path: &str, bytes: &[u8]) -> SimFile {
    let file = disk.open(p(path), NEW).unwrap();
    disk.write_all_at(&file, 0, bytes).unwrap();
    file
}

fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(p(path), Open::default()).ok()?;
    let mut bytes = vec![0; disk.file_metadata(&file).unwrap().len as usize];
    disk.read_exact_at(&file, 0, &mut bytes).unwrap();
    Some(bytes)
}

fn payload(seed: u8) -> Vec<u8> {
    (0..20_000u32).map(|i| (i % 251) as u8 ^ seed | 1).collect()
}

/// Publishes `/store/<name>`, leaving out a step or none. Returns the moment from which it must be there.
fn publish(disk: &SimDisk, name: &str, bytes: &[u8], without: &str) -> usize {
    let (tmp, name) = (format!("/store/{name}.tmp"), format!("/store/{name}"));
    let file = write(disk, &tmp, bytes);
    if without != "sync_file" {
        disk.sync_file(&file).unwrap();
    }
    disk.rename_new(p(&tmp), p(&name)).unwrap();
    if without != "sync_dir" {
        disk.sync_dir(p("/store")).unwrap();
    }
    disk.recorded()
}

fn store() -> SimDisk {
    let disk = SimDisk::default();
    disk.create_dir_all(p("/store")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    disk.checkpoint();
    disk
}

/// Images with an object that is torn, and images that lack one that was acknowledged.
fn damage(without: &str) -> (usize, usize, usize) {
    let disk = store();
    let acked: Vec<usize> = (0..3).map(|i| publish(&disk, &format!("{i}"), &payload(i), without)).collect();
    let (mut images, mut torn, mut missing) = (0, 0, 0);
    for image in disk.crash_images(CrashOptions::default()) {
        images += 1;
        for (i, acked) in acked.iter().enumerate() {
            match read(&image.disk, &format!("/store/{i}")) {
                Some(bytes) if bytes != payload(i as u8) => torn += 1,
                None if image.after >= *acked => missing += 1,
                _ => {}
            }
        }
    }
    (images, torn, missing)
}

#[test]
fn write_sync_rename_sync_survives_every_crash() {
    let (images, torn, missing) = damage("nothing");
    assert!(images > 50, "{images} images are a search");
    assert_eq!((torn, missing), (0, 0));
}

#[test]
fn a_missing_sync_is_found() {
    let (_, torn, _) = damage("sync_file");
    assert!(torn > 0, "names without bytes");
    let (_, torn, missing) = damage("sync_dir");
    assert!(torn == 0 && missing > 0, "bytes without names: {torn} torn, {missing} missing");
}

#[test]
fn the_images_are_the_same_each_time_and_differ_by_seed() {
    let disk = store();
    publish(&disk, "a", &payload(1), "sync_file");
    let stories = |seed| -> Vec<String> {
        disk.crash_images(CrashOptions { seed, ..CrashOptions::default() }).map(|i| i.story).collect()
    };
    assert_eq!(stories(1), stories(1));
    assert_ne!(stories(1), stories(2));
}

#[test]
fn all_subsets_of_the_window_and_every_moment_are_there() {
    let disk = store();
    for name in ["/a", "/b", "/c"] {
        drop(disk.open(p(name), NEW).unwrap());
    }
    let options = CrashOptions { window: 3, samples: 0, ..CrashOptions::default() };
    let seen: Vec<(usize, String)> = disk
        .crash_images(options)
        .map(|i| {
            let names = i.disk.list(p("/")).unwrap().into_iter().map(|e| e.name.into_string().unwrap());
            (i.after, names.filter(|n| n != "store").collect())
        })
        .collect();
    let at = |after| {
        let mut names: Vec<&str> = seen.iter().filter(|s| s.0 == after).map(|s| s.1.as_str()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(at(0), [""]);
    assert_eq!(at(1), ["", "a"]);
    assert_eq!(at(2), ["", "a", "ab", "b"]);
    assert_eq!(at(3), ["", "a", "ab", "abc", "ac", "b", "bc", "c"]);
}

#[test]
fn writes_are_torn_at_units() {
    let disk = store();
    let file = write(&disk, "/store/f", &[]);
    disk.sync_dir(p("/store")).unwrap();
    disk.write_all_at(&file, 0, &[7; 2_000]).unwrap();
    let options = CrashOptions { unit: 512, window: 1, samples: 20, seed: 3 };
    let mut kept = std::collections::BTreeSet::new();
    for image in disk.crash_images(options) {
        if let Some(bytes) = read(&image.disk, "/store/f") {
            let unit = |u: &[u8]| {
                assert!(u.iter().all(|b| *b == u[0]), "{} in part", image.story);
                u[0] == 7
            };
            kept.insert(bytes.chunks(512).map(unit).collect::<Vec<_>>());
        }
    }
    for expected in [
        vec![],
        vec![false; 4],
        vec![true; 4],
        vec![true],
        vec![true, true],
        vec![true, true, true],
        vec![false, true, true, true],
        vec![false, false, false, true],
    ] {
        assert!(kept.contains(&expected), "{expected:?} is not in {kept:?}");
    }
}

#[test]
fn names_keep_their_order() {
    let disk = store();
    let old = write(&disk, "/store/f", b"old");
    disk.sync_file(&old).unwrap();
    disk.sync_dir(p("/store")).unwrap();
    disk.checkpoint();
    // Set aside, then replaced: the old bytes are somewhere in every image, and never in two places.
    disk.rename(p("/store/f"), p("/store/old")).unwrap();
    let new = write(&disk, "/store/new", b"new");
    disk.sync_file(&new).unwrap();
    disk.rename_new(p("/store/new"), p("/store/f")).unwrap();
    disk.unlink(p("/store/f")).unwrap();
    let mut images = 0;
    for image in disk.crash_images(CrashOptions { window: 6, samples: 16, ..CrashOptions::default() }) {
        images += 1;
        let places = ["/store/f", "/store/old", "/store/new"].map(|n| read(&image.disk, n));
        let olds = places.iter().flatten().filter(|b| *b == b"old").count();
        assert_eq!(olds, 1, "{}", image.story);
        assert!(places.iter().flatten().filter(|b| *b == b"new").count() <= 1, "{}", image.story);
    }
    assert!(images > 20, "{images}");
}

#[test]
fn times_go_on_after_a_checkpoint() {
    let disk = store();
    disk.checkpoint();
    let before = disk.metadata(p("/store")).unwrap().modified;
    write(&disk, "/store/f", b"new");
    let now = disk.metadata(p("/store")).unwrap().modified;
    assert!(now > before);
    assert_eq!(disk.crash(Crash::Keep).metadata(p("/store")).unwrap().modified, now);
    assert_eq!(disk.crash(Crash::Lose).metadata(p("/store")).unwrap().modified, before);
}

#[test]
fn a_replacing_rename_leaves_the_old_or_the_new() {
    let disk = store();
    let old = write(&disk, "/store/f", b"old");
    disk.sync_file(&old).unwrap();
    disk.sync_dir(p("/store")).unwrap();
    disk.checkpoint();
    let new = write(&disk, "/store/f.tmp", b"new");
    disk.sync_file(&new).unwrap();
    disk.rename(p("/store/f.tmp"), p("/store/f")).unwrap();
    let mut found = std::collections::BTreeSet::new();
    for image in disk.crash_images(CrashOptions::default()) {
        found.insert(read(&image.disk, "/store/f").expect("never neither"));
    }
    assert_eq!(found, [b"new".to_vec(), b"old".to_vec()].into());
}

#[test]
fn a_directory_that_was_not_synced_into_its_parent_may_be_gone() {
    let disk = store();
    disk.create_dir_all(p("/store/ab/cd")).unwrap();
    let file = write(&disk, "/store/ab/cd/f", b"x");
    disk.sync_file(&file).unwrap();
    disk.sync_dir(p("/store/ab/cd")).unwrap();
    assert_eq!(read(&disk.crash(Crash::Lose), "/store/ab/cd/f"), None);
    disk.sync_dir(p("/store/ab")).unwrap();
    disk.sync_dir(p("/store")).unwrap();
    assert_eq!(read(&disk.crash(Crash::Lose), "/store/ab/cd/f").as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_crash_frees_what_nobody_can_find_and_all_locks() {
    let disk = SimDisk::new(SimOptions { capacity: 1 << 20, ..SimOptions::default() });
    let file = write(&disk, "/f", &[1; 100_000]);
    disk.try_lock(&file).unwrap();
    disk.sync_dir(p("/")).unwrap();
    disk.sync_file(&file).unwrap();
    disk.unlink(p("/f")).unwrap();
    assert!(disk.space(p("/")).unwrap().available < 1 << 20, "an open file keeps its bytes");
    assert_eq!(disk.crash(Crash::Keep).space(p("/")).unwrap().available, 1 << 20);
    let back = disk.crash(Crash::Lose);
    let file = back.open(p("/f"), Open::default()).unwrap();
    back.try_lock(&file).unwrap();
    assert_eq!(back.crash(Crash::Lose).metadata(p("/f")).unwrap().len, 100_000, "what was found is durable");
}
