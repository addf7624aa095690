//! What comes back is what went.

use kvstrata_l2_gds::{GdsWay, Way};
use kvstrata_mem::{Allocate, UNIT};
use libtest_mimic::Failed;

use crate::WAYS;
use crate::rig::{Gpu, folder};

/// Every size of the plan; the last is no multiple of a block.
const SIZES: [usize; 9] = [
    4096,
    64 << 10,
    1 << 20,
    (5 << 20) / 2,
    4 << 20,
    16 << 20,
    (16 << 20) + 4096,
    64 << 20,
    (1 << 20) + 1234,
];

pub(crate) fn sizes(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    let dir = folder();
    let rig = gpu.store(dir.path(), way, |_| ())?;
    // What lies before moves the chunks away from the region's start.
    let _before = gpu.device.pool.reserve(12 << 10, UNIT)?;
    for (n, len) in SIZES.into_iter().enumerate() {
        rig.write(n as u64, len)?;
        rig.check(n as u64, len)?;
        rig.check_host(n as u64, len)?;
    }
    rig.close()?;
    let rig = gpu.store(dir.path(), way, |_| ())?;
    for (n, len) in SIZES.into_iter().enumerate() {
        rig.check(n as u64, len)?;
    }
    rig.close()
}

pub(crate) fn batches(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    const LEN: usize = 64 << 10;
    let dir = folder();
    let rig = gpu.store(dir.path(), way, |_| ())?;
    let mut first = 0;
    for keys in [1u64, 127, 128, 129, 300] {
        let all = first..first + keys;
        let bufs = all.clone().map(|n| Ok((n, gpu.chunk(n, LEN)?.seal(LEN))));
        for answer in rig.put(bufs.collect::<kvstrata_core::Result<_>>()?) {
            answer?;
        }
        let bufs = all.clone().map(|n| Ok((n, gpu.poisoned(LEN)?)));
        let answers = rig.get(bufs.collect::<kvstrata_core::Result<_>>()?);
        for (n, answer) in all.zip(answers) {
            rig.compare(n, LEN, answer)?;
        }
        first += keys;
    }
    rig.close()
}

pub(crate) fn host_and_device(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    const LEN: usize = 3 << 20;
    let dir = folder();
    let rig = gpu.store(dir.path(), way, |_| ())?;
    let mut buf = gpu.host_reserve(LEN)?;
    buf.write_at(0, &crate::rig::bytes_of(1, LEN))?;
    rig.put(vec![(1, buf.seal(LEN))]).remove(0)?;
    rig.check(1, LEN)?;
    rig.check_host(1, LEN)?;
    rig.write(2, LEN)?;
    rig.check_host(2, LEN)?;
    rig.close()
}

/// Files say nothing of the way they were written.
pub(crate) fn ways(gpu: &Gpu) -> Result<(), Failed> {
    let there: Vec<_> = WAYS.into_iter().filter(|(_, way)| gpu.has(*way).is_ok()).collect();
    if there.len() < 2 {
        // Host memory is a way of its own, and always there.
        eprintln!("only {:?} and host memory are here", there);
    }
    for (name, by) in &there {
        let dir = folder();
        let rig = gpu.store(dir.path(), *by, |_| ())?;
        for (n, len) in [(1, 4096), (2, 1 << 20), (3, (16 << 20) + 4096), (4, 777_777)] {
            rig.write(n, len)?;
        }
        rig.close()?;
        for (other, way) in &there {
            let rig = gpu.store(dir.path(), *way, |_| ())?;
            for (n, len) in [(1, 4096), (2, 1 << 20), (3, (16 << 20) + 4096), (4, 777_777)] {
                let checked = rig.check(n, len).and_then(|()| rig.check_host(n, len));
                checked.map_err(|e| format!("written by {name}, read by {other}: {:?}", e.message()))?;
            }
            rig.close()?;
        }
    }
    Ok(())
}

/// Whatever was chosen, it is said with the reason.
pub(crate) fn choice(gpu: &Gpu) -> Result<(), Failed> {
    let dir = folder();
    let rig = gpu.store(dir.path(), GdsWay::Auto, |_| ())?;
    for (ordinal, choice) in rig.gds.ways() {
        eprintln!("GPU {ordinal}: {choice}");
        if choice.why.is_empty() || choice.way == Way::Compat {
            return Err(format!("{choice:?}").into());
        }
    }
    rig.write(1, 1 << 20)?;
    rig.check(1, 1 << 20)?;
    rig.close()
}
