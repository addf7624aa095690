//! What goes wrong around a transfer.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{ErrorKind, Layout};
use kvstrata_l2::{Answer, Get, GetItem, GetSink, Put, PutItem, PutSink};
use kvstrata_l2_gds::{GdsWay, Way};
use kvstrata_mem::Allocate;
use libtest_mimic::Failed;

use crate::rig::{Gpu, folder, gpu0, key};

const LEN: usize = 2 << 20;

pub(crate) fn no_space(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let dir = folder();
    // Room for a few chunks, not for one of 64 MiB.
    let rig = gpu.store(dir.path(), way, |c| c.max_capacity_gb = 32.0 / 1024.0)?;
    rig.write(1, LEN)?;
    let big = 64 << 20;
    let e = match rig.put(vec![(2, gpu.chunk(2, big)?.seal(big))]).remove(0) {
        Err(e) => e,
        Ok(stored) => return Err(format!("{stored:?} beyond the limit").into()),
    };
    if e.kind() != ErrorKind::NoSpace {
        return Err(format!("declined by {e}").into());
    }
    rig.check(1, LEN)?;
    for n in 3..40 {
        rig.write(n, LEN)?;
    }
    rig.check(39, LEN)?;
    rig.close()
}

/// Files that are gone or cut are misses; what is stored anew is there.
pub(crate) fn deleted(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let dir = folder();
    let rig = gpu.store(dir.path(), way, |_| ())?;
    rig.write(1, LEN)?;
    for file in files(dir.path()) {
        if std::fs::metadata(&file)?.len() >= LEN as u64 {
            std::fs::OpenOptions::new().write(true).open(&file)?.set_len(8192)?;
        }
    }
    let miss = rig.miss(1, LEN)?;
    eprintln!("cut: {miss:?}");
    rig.close()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
        if entry.is_dir() { all.extend(files(&entry)) } else { all.push(entry) }
    }
    all
}

/// Requests that nobody waits for any more, and a store that goes while they run.
pub(crate) fn dropped(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let dir = folder();
    for round in 0..20 {
        let rig = gpu.store(dir.path(), way, |_| ())?;
        let deadline = rig.cx.timer.now() + Duration::from_secs(60);
        let layout = Layout::opaque(LEN as u64)?;
        let puts = (0..8).map(|n| {
            let buf = gpu.chunk(round * 8 + n, LEN)?.seal(LEN);
            Ok(PutItem { key: key(round * 8 + n), layout: layout.clone(), digest: None, buf })
        });
        let items = puts.collect::<kvstrata_core::Result<Vec<_>>>()?;
        let gets = (0..8).map(|n| {
            Ok(GetItem {
                key: key((round.max(1) - 1) * 8 + n),
                layout: layout.clone(),
                buf: gpu.poisoned(LEN)?,
            })
        });
        let wanted = gets.collect::<kvstrata_core::Result<Vec<_>>>()?;
        let put = rig
            .checked
            .put(Put { items, deadline, affinity: gpu0() }, PutSink::new(8, Arc::new(|_: usize, _| ())));
        let get = rig.checked.get(
            Get { items: wanted, deadline, affinity: gpu0() },
            GetSink::new(8, Arc::new(|_: usize, _: Answer| ())),
        );
        gpu.runtime.block_on(async {
            let both = async { tokio::join!(put, get) };
            // Begun, and given up.
            let _ = tokio::time::timeout(Duration::from_micros(300), both).await;
        });
        // The store's last handle may go on a thread of its own, after the last transfer.
        rig.close()?;
    }
    for _ in 0..2000 {
        if gpu.device.pool.usage().buffers == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    if gpu.device.pool.usage().buffers != 0 {
        return Err(format!("{} chunks are still out", gpu.device.pool.usage().buffers).into());
    }
    // Each is there whole, or not at all.
    let rig = gpu.store(dir.path(), way, |_| ())?;
    for n in 0..160 {
        match rig.get(vec![(n, gpu.poisoned(LEN)?)]).remove(0) {
            Answer::Miss(..) => {}
            answer => rig.compare(n, LEN, answer)?,
        }
    }
    rig.close()
}

pub(crate) fn library(gpu: &Gpu) -> Result<(), Failed> {
    let dir = folder();
    let with =
        |way| gpu.store(dir.path(), way, |c| c.use_gds = Some(true)).map(|rig| rig.gds.ways()[&0].clone());
    let missing = |way| {
        let open = || {
            let config = crate::common::config(dir.path());
            let config = kvstrata_l2_gds::GdsConfig { gds_way: way, use_gds: Some(true), ..config };
            let cx = kvstrata_l2::Context::tokio(gpu.runtime.handle().clone());
            let context =
                crate::common::context(kvstrata_l2_gds::os_disk(&config)?, cx, Ok(Arc::clone(&gpu.gpus)));
            let prober = crate::common::prober(Some(dir.path().join("libcufile.so.0")));
            let gds =
                kvstrata_l2_gds::GdsStore::open(&config, kvstrata_l2_gds::GdsContext { prober, ..context })?;
            Ok::<_, kvstrata_core::Error>(gds.ways()[&0].clone())
        };
        open()
    };
    let choice = missing(GdsWay::Auto)?;
    if choice.way != Way::Bounce || !choice.why.contains("libcufile") {
        return Err(format!("{choice}").into());
    }
    match missing(GdsWay::Compat) {
        Err(e) if e.kind() == ErrorKind::Unavailable && e.to_string().contains("libcufile") => {}
        other => return Err(format!("{other:?}").into()),
    }
    eprintln!("with the library: {:?}", with(GdsWay::Auto)?);
    Ok(())
}

const CHILD: &str = "KVSTRATA_GDS_MOUNTED";

/// Whether this process may have mounts of its own.
pub(crate) fn can_mount() -> Result<(), String> {
    let out = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("mounts are not permitted: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("unshare cannot be run: {e}")),
    }
}

/// A device without room and one that may not be written, in a private mount namespace.
pub(crate) fn mounted(way: GdsWay) -> Result<(), Failed> {
    let way = if way == GdsWay::Compat { "compat" } else { "bounce" };
    let out =
        Command::new("unshare").args(["-m", "--"]).arg(std::env::current_exe()?).env(CHILD, way).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned().into())
}

/// The other process of [`mounted`].
pub(crate) fn child() -> Option<ExitCode> {
    let way = std::env::var_os(CHILD)?;
    let way = if way == "compat" { GdsWay::Compat } else { GdsWay::Bounce };
    Some(match on_mounts(way) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("it failed"));
            ExitCode::FAILURE
        }
    })
}

fn mount(args: &[&str]) -> Result<(), Failed> {
    let done = Command::new("mount").args(args).output()?;
    if done.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned().into())
    }
}

fn on_mounts(way: GdsWay) -> Result<(), Failed> {
    mount(&["-t", "tmpfs", "-o", "size=24m", "none", "/mnt"])?;
    let gpu = Gpu::open()?;
    let rig = gpu.store(Path::new("/mnt"), way, |c| c.use_gds = Some(true))?;
    let (mut stored, mut declined) = (Vec::new(), 0);
    for n in 0..20 {
        match rig.put(vec![(n, gpu.chunk(n, LEN)?.seal(LEN))]).remove(0) {
            Ok(_) => stored.push(n),
            Err(e) if e.kind() == ErrorKind::NoSpace => declined += 1,
            Err(e) => return Err(format!("key {n} on a full device: {e}").into()),
        }
    }
    if stored.is_empty() || declined == 0 {
        return Err(format!("{} stored, {declined} declined", stored.len()).into());
    }
    for n in &stored {
        rig.check(*n, LEN)?;
    }
    mount(&["-o", "remount,ro", "/mnt"])?;
    match rig.put(vec![(100, gpu.chunk(100, LEN)?.seal(LEN))]).remove(0) {
        Err(_) => {}
        Ok(stored) => return Err(format!("{stored:?} on a read-only device").into()),
    }
    for n in &stored {
        rig.check(*n, LEN)?;
    }
    Ok(())
}
