//! Directories as LMCache leaves them, through the adapters.

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{cx, gds_object, get, header, key, layout, payload, place, pool, probe, runtime, text, write};
use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_io::{Disk, Fault, OpKind, Rule, SimDisk};
use kvstrata_l2::{Adapter, Checked, Put, PutDigest, PutItem, PutSink, Stored, Verify};
use kvstrata_lmcache_files::flat::Models;
use kvstrata_lmcache_files::{FlatConfig, GdsConfig, LmcacheFs, LmcacheGds, Refusal, scan_flat};
use kvstrata_mem::Allocate;

fn put(
    rt: &tokio::runtime::Runtime,
    adapter: &Adapter,
    key: &ObjectKey,
    bytes: &[u8],
    layout: &Layout,
) -> Result<Stored> {
    let mut buf = pool().reserve(bytes.len(), 4096).expect("a buffer");
    buf.write_at(0, bytes).expect("room");
    let item = PutItem {
        key: key.clone(),
        layout: layout.clone(),
        digest: PutDigest::None,
        buf: buf.seal(bytes.len()),
    };
    let answer = Arc::new(Mutex::new(None));
    let to = Arc::clone(&answer);
    let sink = PutSink::new(1, Arc::new(move |_, a: Result<Stored>| *to.lock().expect("no panic") = Some(a)));
    let request = Put { items: vec![item], deadline: Instant::FAR_FUTURE, affinity: Affinity::default() };
    rt.block_on(adapter.store.put(request, sink));
    answer.lock().expect("no panic").take().expect("an answer")
}

#[test]
fn files_of_the_fs_adapters_are_found_read_and_never_written() {
    let (rt, disk, root) = (runtime(), SimDisk::default(), Path::new("/fs"));
    let hash = |n: u64| format!("{n:016x}");
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(1))), &payload(1));
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@{}.data", hash(2))), &payload(2));
    // As a direct write leaves it, in whole blocks.
    let mut padded = payload(3);
    padded.resize(4096, 0xee);
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(3))), &padded);
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(4))), &payload(4)[..63]);
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(5))), &[]);
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data.tmp", hash(6))), &payload(6));
    // The same key by both versions: the newer name counts.
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(7))), &payload(7));
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@{}.data", hash(7))), &payload(8));
    write(&disk, &root.join("readme"), b"x");
    disk.create_dir_all(&root.join("dir")).expect("a directory");

    let fs = LmcacheFs::open(&FlatConfig::new(root), Arc::new(disk.clone()), cx(&rt)).expect("a directory");
    let adapter = fs.adapter();
    let keys: Vec<_> = (1..9).map(key).collect();
    let lens: Vec<Option<u64>> =
        probe(&rt, &adapter, &keys).into_iter().map(|f| f.expect("a probe").map(|f| f.len)).collect();
    assert_eq!(lens, [Some(64), Some(64), Some(4096), Some(63), None, None, Some(64), None]);
    let wanted = [
        text(&payload(1)),
        text(&payload(2)),
        text(&payload(3)),
        "truncated".into(),
        "truncated".into(),
        "absent".into(),
        text(&payload(7)),
        "absent".into(),
    ];
    assert_eq!(get(&rt, &adapter, &keys, &layout()), wanted);

    let (objects, refused) = scan_flat(&disk, root, &Models::default(), Some(&layout())).expect("a scan");
    let found: Vec<_> = objects.iter().map(|o| o.key.clone()).collect();
    assert_eq!(found, [2, 1, 3, 7].map(key));
    assert_eq!(
        [Refusal::Truncated, Refusal::Temporary, Refusal::Foreign, Refusal::Duplicate].map(|r| refused.of(r)),
        [2, 1, 2, 1]
    );
    let (objects, refused) = scan_flat(&disk, root, &Models::default(), None).expect("a scan");
    assert_eq!((objects.len(), refused.of(Refusal::Truncated)), (5, 1), "lengths are taken as they are");

    // What LMCache adds is found; what fails is said; nothing is ever changed.
    write(&disk, &root.join(format!("org-SEP-model@0x01000100@0@{}.data", hash(8))), &payload(8));
    assert_eq!(get(&rt, &adapter, &[key(8)], &layout()), [text(&payload(8))]);
    disk.faults().add(Rule::new(Fault::Errno(5)).on(&[OpKind::Read]).times(1));
    assert_eq!(get(&rt, &adapter, &[key(8)], &layout()), ["io"]);
    assert_eq!(
        put(&rt, &adapter, &key(9), &payload(9), &layout()).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert!(adapter.remove.is_none());
    rt.block_on(adapter.store.shutdown(Instant::FAR_FUTURE)).expect("a shutdown");
    assert_eq!(get(&rt, &adapter, &[key(1)], &layout()), ["closed"]);
}

#[test]
fn a_directory_of_the_gds_backend_is_read_only_unless_asked_for() {
    let (rt, disk, root) = (runtime(), SimDisk::default(), Path::new("/gds"));
    let head = header().encode().expect("one tensor");
    gds_object(&disk, root, 12_345, &head);
    let open = |config: GdsConfig| LmcacheGds::open(&config, Arc::new(disk.clone()), cx(&rt), 3);
    let reader = open(GdsConfig::new(root)).expect("a directory");
    let adapter = reader.adapter();
    let refused = put(&rt, &adapter, &key(1), &payload(1), &layout()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("writable") && adapter.remove.is_none());
    assert_eq!(get(&rt, &adapter, &[key(12_345)], &layout()), [text(&payload(12_345))]);

    // What a writer adds is found by a reader that was there before, under the dtype of the layout.
    let writer = open(GdsConfig { writable: true, ..GdsConfig::new(root) }).expect("a directory");
    assert_eq!(put(&rt, &writer.adapter(), &key(777), &payload(777), &layout()).unwrap(), Stored::Written);
    let data = root.join(place(777));
    assert_eq!(disk.metadata(&data).expect("LMCache's name").len, 4096 + 64);
    let file = disk.open(&data, Default::default()).expect("the file");
    let mut bytes = vec![0; 4096 + 64];
    disk.read_exact_at(&file, 0, &mut bytes).expect("the bytes");
    assert_eq!((&bytes[..4096], &bytes[4096..]), (&head[..], &payload(777)[..]), "byte for byte");
    assert_eq!(
        probe(&rt, &adapter, &[key(777)]).remove(0).unwrap(),
        None,
        "a lookup does not know the dtype"
    );
    assert_eq!(get(&rt, &adapter, &[key(777)], &layout()), [text(&payload(777))]);
    assert!(probe(&rt, &adapter, &[key(777)]).remove(0).unwrap().is_some());
    assert_eq!(reader.stats().found_late, 1);
    let knows = open(GdsConfig { kv_dtype: Some("bfloat16".into()), ..GdsConfig::new(root) }).unwrap();
    assert_eq!(put(&rt, &writer.adapter(), &key(778), &payload(778), &layout()).unwrap(), Stored::Written);
    assert!(probe(&rt, &knows.adapter(), &[key(778)]).remove(0).unwrap().is_some());

    // With digests, what was written here is verified, and a flipped bit is a miss.
    let checked = Checked::new(writer.adapter(), Verify::On, cx(&rt));
    assert_eq!(put(&rt, &checked.adapter, &key(900), &payload(900), &layout()).unwrap(), Stored::Written);
    disk.faults().add(Rule::new(Fault::FlipBit(3)).on(&[OpKind::Read]).at(".safetensors").times(1));
    assert_eq!(get(&rt, &checked.adapter, &[key(900)], &layout()), ["digest"]);
    assert_eq!(get(&rt, &checked.adapter, &[key(12_345)], &layout()), [text(&payload(12_345))]);
    assert_eq!(checked.stats.counts().unverified_no_digest, 1);

    // Keys and layouts that LMCache has no name for.
    let salted = ObjectKey::new(&KeyScope::new("m", KvRank::single(), 0, "s").unwrap(), *key(1).hash());
    let e = put(&rt, &writer.adapter(), &salted, &payload(1), &layout()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
}

#[test]
fn a_write_that_fails_at_any_step_leaves_nothing_behind() {
    let rt = runtime();
    for (kind, after) in [
        (OpKind::CreateDir, 0),
        (OpKind::Open, 0),
        (OpKind::Open, 1),
        (OpKind::Open, 2),
        (OpKind::Write, 0),
        (OpKind::Write, 1),
        (OpKind::Write, 2),
        (OpKind::Rename, 0),
        (OpKind::Rename, 1),
    ] {
        let (disk, root) = (SimDisk::default(), Path::new("/gds"));
        let config = GdsConfig { writable: true, ..GdsConfig::new(root) };
        let gds = LmcacheGds::open(&config, Arc::new(disk.clone()), cx(&rt), 3).expect("a directory");
        let fired = disk.faults().add(Rule::new(Fault::Errno(28)).on(&[kind]).after(after).times(1));
        let answer = put(&rt, &gds.adapter(), &key(12_345), &payload(1), &layout());
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::NoSpace, "{kind:?} {after}");
        assert_eq!(fired.count(), 1, "{kind:?} {after}");
        let leaf = root.join("12/34");
        let left = disk.list(&leaf).unwrap_or_default();
        assert!(left.is_empty(), "{kind:?} {after}: {left:?}");
        assert!(gds.objects().is_empty());
        assert_eq!(put(&rt, &gds.adapter(), &key(12_345), &payload(1), &layout()).unwrap(), Stored::Written);
    }
}

#[test]
fn what_is_no_directory_of_lmcaches_is_refused() {
    let (rt, disk) = (runtime(), SimDisk::default());
    let kind = |path: &str| {
        let e = LmcacheFs::open(&FlatConfig::new(path), Arc::new(disk.clone()), cx(&rt)).unwrap_err();
        assert!(e.to_string().contains("base_path"), "{e}");
        let gds = LmcacheGds::open(&GdsConfig::new(path), Arc::new(disk.clone()), cx(&rt), 1).unwrap_err();
        assert_eq!(gds.kind(), e.kind());
        e.kind()
    };
    assert_eq!(kind("/none"), ErrorKind::NotFound);
    write(&disk, Path::new("/store/kvstrata.json"), b"{}");
    assert_eq!(kind("/store"), ErrorKind::Mismatch);
}
