//! A store in a test: payloads made from the key, moved by hand.

use std::path::Path;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, checksum};
use kvstrata_core::{ChunkHash, Digest, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_disk::{Begin, Durability, LoadFault, NewObject, Quotas, Settings, Store, Wanted, Writer};
use kvstrata_io::Disk;
use kvstrata_l2::{Miss, Stored};

/// The settings of a store with LRU and without a limit.
pub(crate) fn settings(root: &Path, id: u64) -> Settings {
    Settings {
        root: root.into(),
        layout: None,
        tmp: None,
        capacity: None,
        policy: kvstrata_evict::by_name("LRU").expect("a known policy"),
        quotas: Quotas::default(),
        durability: Durability::None,
        direct: Wanted::Off,
        no_atime: Wanted::Try,
        writer: Writer { pid: 7, id: id << 32 },
        namespaces: vec![],
        shared: false,
    }
}

pub(crate) fn key(n: u64) -> ObjectKey {
    let scope = KeyScope::new("org/model", KvRank::single(), 0, "").expect("a scope");
    ObjectKey::new(&scope, ChunkHash::new(&n.to_le_bytes()).expect("8 bytes"))
}

/// The payload of version `v` of a key.
pub(crate) fn payload(n: u64, v: u64, len: usize) -> Vec<u8> {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ v;
    std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 33) as u8
    })
    .take(len)
    .collect()
}

pub(crate) fn object(n: u64, bytes: &[u8]) -> NewObject {
    let (key, layout) = (key(n), Layout::opaque(bytes.len() as u64).expect("a layout").id());
    let crc = checksum(CrcAlgorithm::Crc64Nvme, bytes);
    let digest = Some(Digest::bind(crc, &key, layout, bytes.len() as u64));
    NewObject { key, layout, len: bytes.len() as u64, digest }
}

pub(crate) fn put<D: Disk>(store: &Arc<Store<D>>, object: NewObject, bytes: &[u8]) -> Result<Stored> {
    put_if(store, object, bytes, true).map(|stored| stored.expect("it is wanted"))
}

/// As [`put`], unless it is not wanted any more when it is written.
pub(crate) fn put_if<D: Disk>(
    store: &Arc<Store<D>>,
    object: NewObject,
    bytes: &[u8],
    wanted: bool,
) -> Result<Option<Stored>> {
    match store.begin(&[object]).pop().expect("one answer") {
        Begin::Present => Ok(Some(Stored::Present)),
        Begin::Refused(e) => Err(e),
        Begin::Busy => panic!("nobody else works on this key"),
        Begin::Claimed(mut claim) => {
            if let Err(e) = claim.reserve() {
                return Err(claim.give_up(e));
            }
            let created = match claim.create() {
                Ok(created) => created,
                Err(e) => return Err(claim.give_up(e)),
            };
            match store.disk().write_all_at(&created.file, created.offset, bytes) {
                Ok(()) => claim.publish_if(created, || wanted),
                Err(e) => Err(claim.failed(e)),
            }
        }
    }
}

pub(crate) fn store_payload<D: Disk>(store: &Arc<Store<D>>, n: u64, v: u64, len: usize) -> Result<Stored> {
    let bytes = payload(n, v, len);
    put(store, object(n, &bytes), &bytes)
}

/// What a load gives, the digest checked as the layer above does.
pub(crate) fn load<D: Disk>(store: &Arc<Store<D>>, n: u64, len: usize) -> Result<Vec<u8>, Miss> {
    let layout = Layout::opaque(len as u64).expect("a layout").id();
    let mut pin = store.pin(&[(key(n), layout)]).expect("a store in service").pop().expect("one answer")?;
    let miss = |fault| match fault {
        LoadFault::Miss(miss) => miss,
        LoadFault::Failed(e) => panic!("the device failed: {e}"),
    };
    let opened = pin.open().map_err(miss)?;
    let mut bytes = vec![0; len];
    let got = match store.disk().read_exact_at(&opened.file, opened.offset, &mut bytes) {
        Ok(()) => len as u64,
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => 0,
        Err(e) => panic!("the device failed: {e}"),
    };
    let found = pin.finish(got).map_err(miss)?;
    let crc = checksum(CrcAlgorithm::Crc64Nvme, &bytes);
    if found.digest.is_some_and(|d| d != Digest::bind(crc, &key(n), layout, len as u64)) {
        return Err(Miss::Digest);
    }
    Ok(bytes)
}
