//! Regions, and what is pinned.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext};
use kvstrata_core::ErrorKind;
use kvstrata_cuda::{DeviceRegion, HostRegistration, HostRegistrations, PinnedRegion};
use kvstrata_mem::{
    Allocate, HeapRegion, MemfdRegion, MmapRegion, Region, RegionKind, RegionOptions, ShmRegion, Slab, Stale,
};
use libtest_mimic::Failed;

use crate::Gpu;
use crate::bytes::{copy, download, equal, get, pattern, set, upload};

const MIB: usize = 1 << 20;

pub(super) fn device(gpu: &Gpu) -> Result<(), Failed> {
    for len in [4096, MIB, 2 * MIB, 3 * MIB + 4096] {
        let region = DeviceRegion::new(&gpu.device, len)?;
        if !region.base().addr().get().is_multiple_of(4096)
            || region.len() != len
            || region.kind() != RegionKind::Device
        {
            return Err(format!("{region:?} at {:?}", region.base()).into());
        }
        equal("a fresh region", &vec![0; len], &download(&gpu.device, region.base(), len)?)?;
        upload(&gpu.device, region.base(), &pattern(1, len))?;
    }
    let (free, all) = gpu.device.free_memory()?;
    if free == 0 || free > all || all > gpu.device.memory() {
        return Err(format!("{free} of {all} bytes are free, of {}", gpu.device.memory()).into());
    }
    for len in [1 << 46, all as usize & !4095] {
        match DeviceRegion::new(&gpu.device, len) {
            Err(e) if e.kind() == ErrorKind::NoSpace => {}
            other => return Err(format!("{len} bytes: {other:?}").into()),
        }
    }
    Ok(())
}

pub(super) fn refused(gpu: &Gpu) -> Result<(), Failed> {
    for len in [0, 1, 4095, 4097] {
        let device = DeviceRegion::new(&gpu.device, len).map(drop);
        let pinned = PinnedRegion::new(&gpu.device, len).map(drop);
        for e in [device.expect_err("refused"), pinned.expect_err("refused")] {
            if e.kind() != ErrorKind::Invalid || !e.to_string().contains("4096") {
                return Err(e.to_string().into());
            }
        }
    }
    let device: Arc<dyn Region> = DeviceRegion::new(&gpu.device, MIB)?;
    match HostRegistration::new(&gpu.device, &device) {
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Whether the driver knows the region as pinned memory.
fn is_pinned(gpu: &Gpu, region: &Arc<dyn Region>) -> Result<bool, Failed> {
    let _current = gpu.device.make_current()?;
    let mut flags = 0;
    // SAFETY: the place outlives the call, which only looks the address up.
    let code = unsafe { sys::cuMemHostGetFlags(&raw mut flags, region.base().as_ptr().cast()) };
    Ok(code == sys::CUresult::CUDA_SUCCESS)
}

pub(super) fn registered(gpu: &Gpu) -> Result<(), Failed> {
    let options = RegionOptions::default();
    let name = format!("kvstrata-gpu-test-{}", std::process::id());
    let regions: Vec<(&str, Arc<dyn Region>)> = vec![
        ("anonymous", MmapRegion::new(8 * MIB, &options)?),
        ("memfd", MemfdRegion::new("gpu-test", 8 * MIB, &options)?),
        ("shared", ShmRegion::create(&name, 8 * MIB, &options, Stale::Refuse)?),
    ];
    let device = DeviceRegion::new(&gpu.device, 8 * MIB)?;
    let stream = gpu.device.stream()?;
    for (what, region) in &regions {
        for round in 0..2 {
            let expected = pattern(round, 8 * MIB);
            set(&**region, 0, &expected);
            let pin = HostRegistration::new(&gpu.device, region)?;
            if !is_pinned(gpu, region)? {
                return Err(format!("{what}: the driver does not know it").into());
            }
            // A second one leaves the first as it is.
            drop(HostRegistration::new(&gpu.device, region)?);
            if !is_pinned(gpu, region)? {
                return Err(format!("{what}: the second registration took the first along").into());
            }
            copy(&stream, device.base(), region.base(), 8 * MIB)?;
            set(&**region, 0, &vec![0; 8 * MIB]);
            copy(&stream, region.base(), device.base(), 8 * MIB)?;
            equal(what, &expected, &get(&**region, 0, 8 * MIB))?;
            drop(pin);
            if is_pinned(gpu, region)? {
                return Err(format!("{what}: still pinned").into());
            }
            equal(what, &expected, &get(&**region, 0, 8 * MIB))?;
        }
    }
    // The pin holds the region.
    let region: Arc<dyn Region> = MmapRegion::new(MIB, &options)?;
    let weak = Arc::downgrade(&region);
    let pin = HostRegistration::new(&gpu.device, &region)?;
    drop(region);
    if weak.upgrade().is_none() {
        return Err("the region went before its pin".into());
    }
    drop(pin);
    if weak.upgrade().is_some() {
        return Err("the region stays after its pin".into());
    }
    Ok(())
}

pub(super) fn watched(gpu: &Gpu) -> Result<(), Failed> {
    let options = RegionOptions::default();
    let pinned: Arc<dyn Region> = PinnedRegion::new(&gpu.device, MIB)?;
    let on_device: Arc<dyn Region> = DeviceRegion::new(&gpu.device, MIB)?;
    let first: Arc<dyn Region> = MmapRegion::new(4 * MIB, &options)?;
    let slab = Slab::new(vec![Arc::clone(&first), pinned, on_device])?;
    let pins = HostRegistrations::new(&gpu.device);
    slab.pool("cache", 64 << 20).watch_regions(pins.clone());
    let expect = |what: &str, bytes: usize| {
        let seen = (pins.bytes() as usize, pins.failures());
        if seen.0 == bytes && seen.1.is_empty() {
            Ok(())
        } else {
            Err(Failed::from(format!("{what}: {seen:?}")))
        }
    };
    expect("what there is", 5 * MIB)?;
    let more: Arc<dyn Region> = MemfdRegion::new("gpu-test", 2 * MIB, &options)?;
    slab.add_region(Arc::clone(&more))?;
    expect("what came", 7 * MIB)?;
    if !(pins.holds(more.id()) && is_pinned(gpu, &more)?) {
        return Err("the new region is not pinned".into());
    }
    slab.remove_region(more.id())?;
    expect("what went", 5 * MIB)?;
    if is_pinned(gpu, &more)? {
        return Err("the removed region is still pinned".into());
    }
    drop(slab);
    expect("the end", 0)?;
    if is_pinned(gpu, &first)? { Err("a region of the slab is still pinned".into()) } else { Ok(()) }
}

pub(super) fn slab(gpu: &Gpu) -> Result<(), Failed> {
    let slab = Slab::new(vec![DeviceRegion::new(&gpu.device, 16 * MIB)?])?;
    let pool = slab.pool("gpu", 16 << 20);
    let mut buffers = Vec::new();
    for seed in 0..5u64 {
        let mut buffer = pool.reserve(3 * MIB - 100, 4096)?;
        if buffer.as_mut_slice().is_some() || buffer.write_at(0, &[1]).is_ok() {
            return Err("the CPU was let into device memory".into());
        }
        upload(&gpu.device, buffer.as_ptr(), &pattern(seed, buffer.len()))?;
        let len = buffer.len();
        buffers.push(buffer.seal(len));
    }
    for (seed, buffer) in buffers.iter().enumerate() {
        let seen = download(&gpu.device, buffer.as_ptr(), buffer.len())?;
        equal("a sealed buffer", &pattern(seed as u64, buffer.len()), &seen)?;
    }
    drop(buffers);
    if pool.usage().used == 0 { Ok(()) } else { Err(format!("{:?}", pool.usage()).into()) }
}

fn current() -> Result<CUcontext, Failed> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the place outlives the call.
    let code = unsafe { sys::cuCtxGetCurrent(&raw mut context) };
    if code == sys::CUresult::CUDA_SUCCESS { Ok(context) } else { Err(format!("{code:?}").into()) }
}

/// A thread that never heard of CUDA, and one in whose context everything would fail.
pub(super) fn contexts(gpu: &Gpu) -> Result<(), Failed> {
    let work = || -> Result<(), Failed> {
        let before = current()?;
        let device = DeviceRegion::new(&gpu.device, MIB)?;
        let heap = HeapRegion::new(MIB)?;
        let pin = HostRegistration::new(&gpu.device, &heap)?;
        set(&*heap, 0, &pattern(3, MIB));
        copy(&gpu.device.stream()?, device.base(), heap.base(), MIB)?;
        equal("from this thread", &pattern(3, MIB), &download(&gpu.device, device.base(), MIB)?)?;
        drop((pin, device));
        let now = current()?;
        if before == now { Ok(()) } else { Err(format!("the context was {before:?} and is {now:?}").into()) }
    };
    std::thread::scope(|scope| scope.spawn(work).join().expect("no panic"))?;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut context: CUcontext = std::ptr::null_mut();
            // SAFETY: the place outlives the call; destroyed below.
            let code =
                unsafe { sys::cuCtxCreate_v2(&raw mut context, 0, gpu.device.ordinal().cast_signed()) };
            if code != sys::CUresult::CUDA_SUCCESS {
                return Err(Failed::from(format!("a second context: {code:?}")));
            }
            let done = work();
            // SAFETY: made above, and current on this thread only.
            let _ = unsafe { sys::cuCtxDestroy_v2(context) };
            done
        });
        other.join().expect("no panic")
    })
}
