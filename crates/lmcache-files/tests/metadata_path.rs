//! What reading LMCache's metadata must be like: eight numbered statements on the GDS layout.

mod common;

use std::fs::{self, FileTimes};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{
    cx, gds_object, get, header, key, layout, payload, place, probe, runtime, sidecar, text, write,
};
use kvstrata_core::{DType, Layout, TensorDesc};
use kvstrata_io::{Fault, OpKind, OsDisk, OsOptions, Rule, SimDisk, SimMode, SimOptions};
use kvstrata_lmcache_files::{Format, GdsConfig, HEADER_BYTES, Header, LmcacheGds, NoAtime, Refusal};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EINVAL: i32 = 22;

fn root() -> &'static Path {
    Path::new("/gds")
}

fn head() -> Vec<u8> {
    header().encode().expect("one tensor")
}

/// A directory of the objects 10 000 to 10 000 + n.
fn filled(options: SimOptions, n: u64) -> SimDisk {
    let disk = SimDisk::new(options);
    (0..n).for_each(|i| gds_object(&disk, root(), 10_000 + i, &head()));
    disk
}

fn open(rt: &tokio::runtime::Runtime, disk: &SimDisk, debug: bool) -> LmcacheGds<SimDisk> {
    let config = GdsConfig { debug_checks: debug, ..GdsConfig::new(root()) };
    LmcacheGds::open(&config, Arc::new(disk.clone()), cx(rt), 1).expect("an open directory")
}

/// What is done to paths that end like this, from now on: kind, offset, length.
fn record(disk: &SimDisk, end: &'static str) -> Arc<Mutex<Vec<(OpKind, u64, usize)>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&seen);
    disk.faults().hook(move |op| {
        if op.path.to_string_lossy().ends_with(end) {
            to.lock().expect("no panic").push((op.kind, op.offset, op.len));
        }
        None
    });
    seen
}

fn p1_1_metadata_is_one_open_one_read_one_close() {
    let disk = filled(SimOptions::default(), 3);
    let seen = record(&disk, ".metadata");
    let rt = runtime();
    let gds = open(&rt, &disk, false);
    assert_eq!(gds.objects().len(), 3);
    let one = [(OpKind::Open, 0, 0), (OpKind::Read, 0, HEADER_BYTES)];
    assert_eq!(*seen.lock().unwrap(), one.repeat(3), "at most 4096 bytes, and no other call");
}

fn p1_2_access_times_are_left_alone() -> Result<(), String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("threads");
    gds_object(&disk, dir.path(), 10_000, &head());
    let file = sidecar(&dir.path().join(place(10_000)));
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let accessed = |path: &Path| fs::metadata(path).and_then(|m| m.accessed()).expect("a time");
    let age = || {
        let f = fs::OpenOptions::new().write(true).open(&file).expect("the sidecar");
        f.set_times(FileTimes::new().set_accessed(old)).expect("an old time");
    };
    age();
    fs::read(&file).expect("the sidecar");
    if accessed(&file) == old {
        return Err("this file system keeps no access times".into());
    }
    age();
    let no_atime = NoAtime::new(true);
    assert_eq!(no_atime.header(&disk, &file), Ok(header()));
    if !no_atime.is_on() {
        return Err("this file system refuses O_NOATIME".into());
    }
    assert_eq!(accessed(&file), old);
    let plain = NoAtime::new(false);
    assert_eq!(plain.header(&disk, &file), Ok(header()));
    assert_ne!(accessed(&file), old, "the same read without the flag changes it");
    Ok(())
}

fn p1_3_a_refused_flag_is_not_tried_again() {
    for errno in [EPERM, EINVAL] {
        let disk = filled(SimOptions::default(), 3);
        let fired =
            disk.faults().add(Rule::new(Fault::Errno(errno)).on(&[OpKind::Open]).at(".metadata").times(1));
        let seen = record(&disk, ".metadata");
        let no_atime = NoAtime::new(true);
        for n in 0..3 {
            let path = sidecar(&root().join(place(10_000 + n)));
            assert_eq!(no_atime.header(&disk, &path), Ok(header()), "the call itself succeeds");
            assert!(!no_atime.is_on());
        }
        let opens = seen.lock().unwrap().iter().filter(|(kind, ..)| *kind == OpKind::Open).count();
        assert_eq!((opens, fired.count()), (4, 1), "one more than files");
    }
    // A disk that refuses it for good, through the adapter.
    let rt = runtime();
    let disk = filled(SimOptions { no_atime: false, ..SimOptions::default() }, 3);
    let gds = open(&rt, &disk, false);
    assert_eq!((gds.objects().len(), gds.stats().leaves_access_times), (3, false));
}

fn p1_4_a_missing_file_is_no_refusal() {
    let disk = filled(SimOptions::default(), 2);
    let no_atime = NoAtime::new(true);
    assert_eq!(no_atime.header(&disk, &root().join("10/00/x.metadata")), Err(Refusal::Half));
    let path = sidecar(&root().join(place(10_000)));
    disk.faults().add(Rule::new(Fault::Errno(ENOENT)).on(&[OpKind::Open]).times(1));
    assert_eq!(no_atime.header(&disk, &path), Err(Refusal::Half));
    disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[OpKind::Open]).times(1));
    assert_eq!(no_atime.header(&disk, &path), Err(Refusal::Unreadable));
    assert!(no_atime.is_on());
    assert_eq!(no_atime.header(&disk, &path), Ok(header()));
}

fn p1_5_descriptors_are_closed_on_every_path() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let disk = OsDisk::new(OsOptions { threads: 1, ..OsOptions::default() }).expect("threads");
    let at = |name: &str| dir.path().join(name);
    write(&disk, &at("good"), &head());
    write(&disk, &at("short"), &head()[..4095]);
    write(&disk, &at("empty"), &[]);
    write(&disk, &at("broken"), &[0; HEADER_BYTES]);
    fs::create_dir(at("dir")).expect("a directory");
    let no_atime = NoAtime::new(true);
    for _ in 0..50 {
        for (name, answer) in [
            ("good", Ok(header())),
            ("short", Err(Refusal::Truncated)),
            ("empty", Err(Refusal::Truncated)),
            ("broken", Err(Refusal::Malformed)),
            ("dir", Err(Refusal::Unreadable)),
            ("none", Err(Refusal::Half)),
        ] {
            assert_eq!(no_atime.header(&disk, &at(name)), answer, "{name}");
        }
    }
    let open: Vec<PathBuf> = fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(!open.is_empty(), "descriptors can be looked at");
    assert!(!open.iter().any(|file| file.starts_with(dir.path())), "{open:?}");
}

fn p1_6_what_is_invalid_is_a_miss_before_a_byte_is_read() {
    let rt = runtime();
    let disk = filled(SimOptions::default(), 3);
    let gds = open(&rt, &disk, false);
    let adapter = gds.adapter();
    // Cut after it was indexed.
    write(&disk, &root().join(place(10_001)), &[&head()[..], &payload(10_001)[1..]].concat());
    let seen = record(&disk, ".safetensors");
    let other = Layout::new(vec![TensorDesc { dtype: DType::F16, shape: vec![2, 2, 8] }]).expect("a layout");
    assert_eq!(get(&rt, &adapter, &[key(10_000)], &other), ["layout"]);
    assert_eq!(get(&rt, &adapter, &[key(10_001), key(10_007)], &layout()), ["truncated", "absent"]);
    let reads =
        |seen: &[(OpKind, u64, usize)]| seen.iter().filter(|(kind, ..)| *kind == OpKind::Read).count();
    assert_eq!(reads(&seen.lock().unwrap()), 0);
    assert_eq!(get(&rt, &adapter, &[key(10_002)], &layout()), [text(&payload(10_002))]);
    assert_eq!(reads(&seen.lock().unwrap()), 1, "a valid one is read at once");
}

fn p1_7_debug_checks_change_no_answer() {
    let rt = runtime();
    let disk = filled(SimOptions::default(), 4);
    // The data file's own header is another one; LMCache never looks at it again.
    let mut wrong = head();
    wrong[HEADER_BYTES - 1] = b'x';
    write(&disk, &root().join(place(10_001)), &[&wrong[..], &payload(10_001)].concat());
    let keys: Vec<_> = (0..6).map(|n| key(10_000 + n)).collect();
    let run = |debug| {
        let gds = open(&rt, &disk, debug);
        // Cut and gone after the index was made.
        let (cut, gone) = (root().join(place(10_002)), root().join(place(10_003)));
        write(&disk, &cut, &head());
        kvstrata_io::Disk::unlink(&disk, &gone).expect("a file");
        let answers = get(&rt, &gds.adapter(), &keys, &layout());
        gds_object(&disk, root(), 10_002, &head());
        gds_object(&disk, root(), 10_003, &head());
        (answers, gds.stats().disagreed)
    };
    let (off, on) = (run(false), run(true));
    assert_eq!(off.0, on.0);
    assert_eq!(
        off.0[1..],
        [text(&payload(10_001)), "truncated".into(), "stale".into(), "absent".into(), "absent".into()]
    );
    assert_eq!((off.1, on.1), (0, 1), "the switch does something");
}

fn p1_8_every_header_comes_back_and_another_version_is_passed_over() {
    let rt = runtime();
    let disk = filled(SimOptions::default(), 1);
    let mut n = 20_000;
    let mut wanted = vec![];
    for dtype in DType::ALL {
        for fmt in Format::ALL {
            let layout =
                Layout::new(vec![TensorDesc { dtype, shape: vec![64 / dtype.size()] }]).expect("a layout");
            let header = Header { layout, fmt, digest: None };
            gds_object(&disk, root(), n, &header.encode().expect("one tensor"));
            wanted.push((key(n), header));
            n += 1;
        }
    }
    let mut newer = head();
    let version = newer.windows(4).position(|w| w == b"\"1\"}").expect("the version");
    newer[version + 1] = b'2';
    gds_object(&disk, root(), 30_000, &newer);
    gds_object(&disk, root(), 30_001, &[b' '; HEADER_BYTES]);
    gds_object(&disk, root(), 30_002, &head()[..100]);
    write(&disk, &root().join(place(30_003)), &head());
    write(&disk, &sidecar(&root().join(place(30_004))), &head());
    write(&disk, &root().join("10/00/readme"), b"x");
    write(&disk, &root().join(place(30_005)).with_extension("safetensors.tmp0123abcd"), b"x");
    let gds = open(&rt, &disk, false);
    let refused = gds.stats().refused;
    for (why, count) in [
        (Refusal::Version, 1),
        (Refusal::Malformed, 1),
        (Refusal::Truncated, 1),
        (Refusal::Half, 2),
        (Refusal::Foreign, 1),
        (Refusal::Temporary, 1),
    ] {
        assert_eq!(refused.of(why), count, "{why} of {refused:?}");
    }
    let objects = gds.objects();
    assert_eq!((objects.len(), refused.total()), (1 + wanted.len(), 7));
    for (key, header) in wanted {
        assert!(objects.iter().any(|o| o.key == key && o.header == header), "{key} {header:?}");
    }
}

/// The index is whole when the directory is open, whoever built it, and the same by all of them.
fn p1_start_the_index_is_whole_before_the_first_lookup() {
    let rt = runtime();
    let modes = [SimMode::Inline, SimMode::Stepped { seed: 1 }, SimMode::Threads(1), SimMode::Threads(4)];
    let indexes = modes.map(|mode| {
        let disk = SimDisk::new(SimOptions { mode, ..SimOptions::default() });
        (0..300).for_each(|n| gds_object(&disk, root(), n * 977, &head()));
        let gds = open(&rt, &disk, false);
        let objects = gds.objects();
        // With `Stepped` nobody carries out a job, so nothing may wait for one.
        if !matches!(mode, SimMode::Stepped { .. }) {
            let keys: Vec<_> = (0..300).map(|n| key(n * 977)).collect();
            assert!(probe(&rt, &gds.adapter(), &keys).iter().all(|f| f.as_ref().is_ok_and(Option::is_some)));
        }
        (objects, gds.stats().refused)
    });
    assert_eq!(indexes[0].0.len(), 300);
    indexes.iter().for_each(|index| assert_eq!(index, &indexes[0]));
}

/// Every directory and sidecar in turn cannot be read: the rest is found.
fn p1_start_one_bad_file_never_ends_the_scan() {
    let rt = runtime();
    for (kind, part) in
        [(OpKind::List, "/gds/10"), (OpKind::Open, ".metadata"), (OpKind::Metadata, ".safetensors")]
    {
        let disk = filled(SimOptions::default(), 5);
        gds_object(&disk, root(), 77_000, &head());
        let fired = disk.faults().add(Rule::new(Fault::Errno(EIO)).on(&[kind]).at(part).times(1));
        let gds = open(&rt, &disk, false);
        assert_eq!((fired.count(), gds.stats().refused.of(Refusal::Unreadable)), (1, 1), "{kind:?}");
        let found = gds.objects().len();
        assert_eq!(found, if kind == OpKind::List { 1 } else { 5 }, "{kind:?}");
    }
}

fn main() -> ExitCode {
    macro_rules! trials {
        ($($name:ident)*) => { vec![$(Trial::test(stringify!($name), || { $name(); Ok(()) })),*] };
    }
    let mut trials = trials! {
        p1_1_metadata_is_one_open_one_read_one_close
        p1_3_a_refused_flag_is_not_tried_again
        p1_4_a_missing_file_is_no_refusal
        p1_5_descriptors_are_closed_on_every_path
        p1_6_what_is_invalid_is_a_miss_before_a_byte_is_read
        p1_7_debug_checks_change_no_answer
        p1_8_every_header_comes_back_and_another_version_is_passed_over
        p1_start_the_index_is_whole_before_the_first_lookup
        p1_start_one_bad_file_never_ends_the_scan
    };
    trials.push(Trial::ignorable_test("p1_2_access_times_are_left_alone", || {
        Ok::<_, Failed>(match p1_2_access_times_are_left_alone() {
            Ok(()) => Completion::Completed,
            Err(why) => Completion::ignored_with(why),
        })
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
