//! Ten thousand cycles, and nothing is left.

use kvstrata_cuda::Cuda;
use kvstrata_l2_gds::GdsWay;
use libtest_mimic::Failed;

use crate::rig::{Gpu, folder};

const LEN: usize = 64 << 10;

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count())
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, |d| d.count())
}

fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|l| l.starts_with("VmLck") || l.starts_with("VmPin"));
    lines.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// 10 000 stores and loads, half of them through stores that are opened and closed.
pub(crate) fn cycles(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let device = Cuda::open()?.device(0)?;
    let run = |opens: usize, each: u64| -> Result<(), Failed> {
        for _ in 0..opens {
            let dir = folder();
            let rig = gpu.store(dir.path(), way, |c| c.gds_buffer_size = 2)?;
            for n in 0..each {
                rig.write(n % 64 + n / 64 * 64, LEN)?;
                rig.check(n, LEN)?;
            }
            rig.close()?;
        }
        Ok(())
    };
    run(2, 50)?;
    let before = (fds(), threads(), pinned_kib(), device.free_memory()?.0);
    run(40, 125)?;
    run(1, 5000)?;
    let after = (fds(), threads(), pinned_kib(), device.free_memory()?.0);
    eprintln!("descriptors, threads, pinned KiB, free GPU bytes: {before:?}, then {after:?}");
    // The last store's threads may be ending still, and the driver keeps pools of its own.
    let grown = before.3.saturating_sub(after.3);
    if after.0 > before.0 + 4 || after.1 > before.1 + 32 || after.2 > before.2 + 1024 || grown > 64 << 20 {
        return Err(format!("{before:?} became {after:?}").into());
    }
    Ok(())
}
