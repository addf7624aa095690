//! What goes wrong around a transfer.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{ErrorKind, Layout};
use kvstrata_l2::{Answer, Get, GetItem, GetSink, Put, PutDigest, PutItem, PutSink};
use kvstrata_l2_gds::{GdsWay, Way};
use kvstrata_mem::Allocate;
use libtest_mimic::{Completion, Failed};

use crate::rig::{Gpu, Rig, folder, gpu0, key};

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
pub(crate) fn dropped(gpu: &Gpu, way: GdsWay, rounds: u64) -> Result<(), Failed> {
    let dir = folder();
    for round in 0..rounds {
        let rig = gpu.store(dir.path(), way, |_| ())?;
        let deadline = rig.cx.timer.now() + Duration::from_secs(60);
        let layout = Layout::opaque(LEN as u64)?;
        let puts = (0..8).map(|n| {
            let buf = gpu.chunk(round * 8 + n, LEN)?.seal(LEN);
            Ok(PutItem { key: key(round * 8 + n), layout: layout.clone(), digest: PutDigest::None, buf })
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
    for n in 0..rounds * 8 {
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
            let prober = crate::prober(Some(dir.path().join("libcufile.so.0")));
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
const WHERE: &str = "KVSTRATA_GDS_MOUNTED_AT";
/// The child's answer if there is nothing here that could be mounted and that the way takes.
const NOT_HERE: u8 = 77;
const ROOM_MIB: u64 = 24;

/// Whether this process may have mounts of its own.
pub(crate) fn can_mount() -> Result<(), String> {
    let dir = folder();
    let out = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none"]).arg(dir.path()).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("mounts are not permitted: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("unshare cannot be run: {e}")),
    }
}

/// A device without room and one that may not be written, in a private mount namespace.
pub(crate) fn mounted(way: GdsWay) -> Result<Completion, Failed> {
    let way = if way == GdsWay::Compat { "compat" } else { "bounce" };
    let dir = folder();
    let out = Command::new("unshare")
        .args(["-m", "--"])
        .arg(std::env::current_exe()?)
        .env(CHILD, way)
        .env(WHERE, dir.path())
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    match out.status.code() {
        Some(0) => Ok(Completion::Completed),
        Some(code) if code == i32::from(NOT_HERE) => Ok(Completion::ignored_with(said)),
        _ => Err(said.into()),
    }
}

/// The other process of [`mounted`].
pub(crate) fn child() -> Option<ExitCode> {
    let way = std::env::var_os(CHILD)?;
    let way = if way == "compat" { GdsWay::Compat } else { GdsWay::Bounce };
    let base = PathBuf::from(std::env::var_os(WHERE)?);
    Some(match on_mounts(way, &base) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(why)) => {
            eprintln!("{why}");
            ExitCode::from(NOT_HERE)
        }
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("it failed"));
            ExitCode::FAILURE
        }
    })
}

fn command(program: &str, args: &[&str], at: &Path) -> Result<(), Failed> {
    let done = Command::new(program).args(args).arg(at).output()?;
    if done.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim()).into())
    }
}

/// A file system in memory.
fn in_memory(at: &Path) -> Result<(), Failed> {
    command("mount", &["-t", "tmpfs", "-o", &format!("size={ROOM_MIB}m"), "none"], at)
}

/// A file system on a device of its own, with the record of it that cuFile asks udev for. The namespace is private: nobody
/// else sees either.
fn on_a_device(at: &Path) -> Result<(), Failed> {
    let image = at.with_extension("image");
    std::fs::File::create(&image)?.set_len(ROOM_MIB << 20)?;
    command("mkfs.ext4", &["-q", "-F"], &image)?;
    command("mount", &["-o", "loop", image.to_str().ok_or("a name that is no UTF-8")?], at)?;
    command("mount", &["-t", "tmpfs", "none"], Path::new("/run"))?;
    let device = std::fs::metadata(at)?.dev();
    // As Linux puts the numbers of small devices together.
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let data = Path::new("/run/udev/data");
    std::fs::create_dir_all(data)?;
    Ok(std::fs::write(
        data.join(format!("b{major}:{minor}")),
        "E:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE=ext4\n",
    )?)
}

type Mount = fn(&Path) -> Result<(), Failed>;

/// Why not, if there is nothing here to do it with.
fn on_mounts(way: GdsWay, base: &Path) -> Result<Option<String>, Failed> {
    let gpu = Gpu::open()?;
    let (mut refused, mut taken) = (Vec::new(), 0);
    // What cuFile takes differs by its version: some take no file in memory.
    for (name, mount) in [("memory", in_memory as Mount), ("device", on_a_device)] {
        let at = base.join(name);
        std::fs::create_dir(&at)?;
        if let Err(e) = mount(&at) {
            refused.push(e.message().unwrap_or("no mount").to_owned());
            continue;
        }
        match gpu.store(&at, way, |c| c.use_gds = Some(true)) {
            Ok(rig) => {
                let done = full_and_read_only(&gpu, rig, &at, way);
                done.map_err(|e| format!("in {name}: {}", e.message().unwrap_or("it failed")))?;
                taken += 1;
            }
            Err(e) if e.kind() == ErrorKind::Unavailable => refused.push(e.to_string()),
            Err(e) => return Err(e.into()),
        }
    }
    let why = || format!("no file system that can be mounted here is taken: {}", refused.join("; "));
    Ok((taken == 0).then(why))
}

fn full_and_read_only(gpu: &Gpu, rig: Rig<'_>, at: &Path, way: GdsWay) -> Result<(), Failed> {
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
    stored.iter().try_for_each(|n| rig.check(*n, LEN))?;
    // Room for the trial of the next start.
    let gone = stored.pop().map(key).into_iter().collect::<Vec<_>>();
    let remove = rig.gds.adapter().remove.ok_or("it removes")?;
    let deadline = rig.cx.timer.now() + Duration::from_secs(60);
    for removed in gpu.runtime.block_on(remove.remove(gone.into(), deadline)) {
        removed?;
    }
    drop(remove);
    rig.close()?;
    // Threads that end hold their files a moment longer, and a device with files open for writing stays writable.
    let read_only = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        command("mount", &["-o", "remount,ro"], at).ok()
    });
    read_only.ok_or("the device stays busy")?;
    match gpu.store(at, way, |c| c.use_gds = Some(true)) {
        Err(e) if e.to_string().contains(&at.display().to_string()) => {}
        Err(e) => return Err(format!("which device may not be written is not said: {e}").into()),
        Ok(_) => return Err("a store on a read-only device opened".into()),
    }
    command("mount", &["-o", "remount,rw"], at)?;
    let rig = gpu.store(at, way, |c| c.use_gds = Some(true))?;
    stored.iter().try_for_each(|n| rig.check(*n, LEN))?;
    rig.close()
}
