//! A cluster, memory that it can map, and damage to what is in it.
#![expect(dead_code, reason = "each test program uses a part of it")]

mod cluster;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

pub(crate) use cluster::{Cluster, signal, wheel};
use kvstrata_core::{Error, ObjectKey, Result};
use kvstrata_l2::Context;
use kvstrata_l2_mooncake::{Capi, MooncakeContext, Route};
use kvstrata_mem::{Allocate, MemfdRegion, Pool, ReadBuf, Region, RegionOptions, Slab};
use kvstrata_mooncake_sys::{Library, Setup, Source, Target};
use kvstrata_testkit::conformance::Damage;

/// A way through a stand-in for the library, compiled in `dir`, and the file that hangs its calls while it is there. What was
/// called is in the file beside it, whose name ends with `.calls`.
pub(crate) fn stub(dir: &Path) -> Result<(Capi, PathBuf), String> {
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stub/store.c");
    let (path, hung) = (dir.join("libmooncake_store.so"), dir.join("hung"));
    let cc =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&path).arg(from).output();
    let out = cc.map_err(|e| format!("no C compiler (cc): {e}"))?;
    assert!(out.status.success(), "cc: {}", String::from_utf8_lossy(&out.stderr));
    let library = Library::load(&path).map_err(|e| e.to_string())?;
    let setup = Setup {
        local_hostname: "localhost",
        metadata_server: "P2PHANDSHAKE",
        global_segment_size: 1 << 20,
        local_buffer_size: 1 << 20,
        protocol: "tcp",
        device_name: hung.to_str().unwrap_or_default(),
        master_server_address: "localhost:1",
    };
    let route = Capi::connect(&library, &path, &setup, true).map_err(|e| e.to_string())?;
    Ok((route, hung))
}

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

/// Breaks this process's connections to a living peer; how many there were.
pub(crate) fn cut(to: SocketAddr) -> usize {
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes([127, 0, 0, 1]), to.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the table of connections");
    let established = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&remote) && words.next() == Some("01")
    };
    let socket = |line: &str| line.split_whitespace().nth(9).map(|inode| format!("socket:[{inode}]"));
    let sockets: Vec<_> = table.lines().filter(established).filter_map(socket).collect();
    let fds = std::fs::read_dir("/proc/self/fd").expect("the descriptors");
    let ours = fds.filter_map(|fd| {
        let fd = fd.ok()?.path();
        let link = std::fs::read_link(&fd).ok()?;
        sockets.iter().any(|s| link.as_os_str() == s.as_str()).then_some(fd)
    });
    let ours: Vec<_> = ours.filter_map(|fd| fd.file_name()?.to_str()?.parse::<i32>().ok()).collect();
    for fd in &ours {
        // SAFETY: takes numbers only; a connection that was closed meanwhile is one that is broken.
        unsafe { libc::shutdown(*fd, libc::SHUT_RDWR) };
    }
    ours.len()
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
