//! A cluster, memory that it can map, and damage to what is in it.
#![expect(dead_code, reason = "each test program uses a part of it")]

mod cluster;

use std::sync::Arc;

pub(crate) use cluster::{Cluster, signal, wheel};
use kvstrata_core::{Error, ObjectKey, Result};
use kvstrata_l2::Context;
use kvstrata_l2_mooncake::{MooncakeContext, Route};
use kvstrata_mem::{Allocate, MemfdRegion, Pool, ReadBuf, Region, RegionOptions, Slab};
use kvstrata_mooncake_sys::{Source, Target};
use kvstrata_testkit::conformance::Damage;

pub(crate) fn context(l2: Context) -> MooncakeContext {
    MooncakeContext { l2, run: run(), memory: None }
}

/// A number that no other call in this process gives.
pub(crate) fn run() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Memory that a client can map.
pub(crate) fn shared_pool(bytes: usize) -> Arc<Pool> {
    let region: Arc<dyn Region> =
        MemfdRegion::new("mooncake-test", bytes, &RegionOptions::default()).expect("a memfd");
    Slab::new(vec![region]).expect("a slab").pool("test", bytes as u64)
}

pub(crate) fn filled(pool: &Arc<Pool>, bytes: &[u8]) -> ReadBuf {
    let mut buf = pool.reserve(bytes.len(), 4096).expect("room");
    buf.write_at(0, bytes).expect("inside");
    buf.seal(bytes.len())
}

/// The bytes of an object, as the cluster has them.
pub(crate) fn raw(route: &dyn Route, pool: &Arc<Pool>, name: &str) -> Option<Vec<u8>> {
    let size = *route.sizes(&[name.to_owned()]).ok()?.first()?.as_ref().ok()?;
    let mut buf = pool.reserve(size as usize, 4096).ok()?;
    let got = route.get_into(&[name.to_owned()], &mut [Target::of(&mut buf)]).ok()?;
    assert_eq!(got, [Ok(size)]);
    let mut bytes = vec![0; size as usize];
    buf.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}

pub(crate) fn replace(route: &dyn Route, pool: &Arc<Pool>, name: &str, bytes: &[u8]) -> Result<()> {
    route.remove(&[name.to_owned()])?;
    let buf = filled(pool, bytes);
    let put = route.put_from(&[name.to_owned()], &[Source::of(&buf)])?;
    put[0].map_err(|code| code.error("replace object"))
}

/// Does the damage to objects with this prefix.
pub(crate) fn damage(route: &dyn Route, prefix: &str, damage: Damage<'_>) -> bool {
    let pool = shared_pool(8 << 20);
    let name = |key: &ObjectKey| format!("{prefix}{key}");
    let change = |name: &str, f: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = raw(route, &pool, name).expect("the object");
        f(&mut bytes);
        replace(route, &pool, name, &bytes)
    };
    let done: Result<()> = match damage {
        Damage::Flip(key) => change(&name(key), &|bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }),
        Damage::Truncate(key) => change(&name(key), &|bytes| bytes.truncate(bytes.len() - 7)),
        Damage::Header(key) => change(&format!("{}@@kvs1", name(key)), &|bytes| bytes[10] ^= 1),
        Damage::Swap(a, b) => {
            let (a, b) = (name(a), name(b));
            let (of_a, of_b) = (raw(route, &pool, &a).expect("a"), raw(route, &pool, &b).expect("b"));
            replace(route, &pool, &a, &of_b).and_then(|()| replace(route, &pool, &b, &of_a))
        }
    };
    done.map_err(|e: Error| panic!("damage: {e}")).is_ok()
}
