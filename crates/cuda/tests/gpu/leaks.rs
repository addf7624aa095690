//! What is taken is given back. The kernel counts nowhere per process what the driver has pinned, so a registration that
//! outlives its region is not seen here; `regions` asks the driver for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvstrata_cuda::{DeviceRegion, EventUse, HostRegistration, PinnedRegion, Transfer};
use kvstrata_mem::{MmapRegion, Region, RegionOptions};
use libtest_mimic::Failed;

use crate::Gpu;

const CYCLES: usize = 10_000;
const MIB: usize = 1 << 20;

#[derive(Debug)]
struct Held {
    descriptors: usize,
    mappings: usize,
    gpu_bytes: u64,
}

fn held(gpu: &Gpu) -> Result<Held, Failed> {
    let (free, all) = gpu.device.free_memory()?;
    Ok(Held {
        descriptors: std::fs::read_dir("/proc/self/fd")?.count(),
        mappings: std::fs::read_to_string("/proc/self/maps")?.lines().count(),
        gpu_bytes: all - free,
    })
}

fn cycle(gpu: &Gpu, n: usize, called: &Arc<AtomicUsize>) -> Result<(), Failed> {
    let (host, device): (Arc<dyn Region>, Arc<dyn Region>) = if n.is_multiple_of(2) {
        (PinnedRegion::new(&gpu.device, MIB / 16)?, DeviceRegion::new(&gpu.device, MIB / 16)?)
    } else {
        (MmapRegion::new(MIB / 16, &RegionOptions::default())?, DeviceRegion::new(&gpu.device, 4096)?)
    };
    let pin = HostRegistration::new(&gpu.device, &host)?;
    let stream = gpu.device.stream()?;
    let event = gpu.device.event(if n.is_multiple_of(3) { EventUse::Shared } else { EventUse::Here })?;
    // SAFETY: everything lives until the wait.
    unsafe { stream.copy(Transfer { to: device.base(), from: host.base(), bytes: 4096 }) }?;
    let called = Arc::clone(called);
    stream.notify(move |_| {
        called.fetch_add(1, Ordering::Relaxed);
    })?;
    stream.record(&event)?;
    if n.is_multiple_of(5) {
        let again = gpu.cuda.device(gpu.device.ordinal())?;
        drop(again.make_current()?);
    }
    event.synchronize()?;
    drop(pin);
    Ok(())
}

pub(super) fn cycles(gpu: &Gpu) -> Result<(), Failed> {
    let called = Arc::new(AtomicUsize::new(0));
    // What the driver sets up once.
    (0..200).try_for_each(|n| cycle(gpu, n, &called))?;
    let before = held(gpu)?;
    (0..CYCLES).try_for_each(|n| cycle(gpu, n, &called))?;
    let after = held(gpu)?;
    eprintln!("before {before:?}, after {after:?}");
    if called.load(Ordering::Relaxed) != CYCLES + 200 {
        return Err(format!("{} callbacks of {}", called.load(Ordering::Relaxed), CYCLES + 200).into());
    }
    // The C library's arenas come and go by a few; a leak would be thousands.
    if after.descriptors > before.descriptors
        || after.mappings > before.mappings + 50
        || after.gpu_bytes > before.gpu_bytes + (64 << 20)
    {
        return Err(format!("before {before:?}, after {after:?}").into());
    }
    Ok(())
}
