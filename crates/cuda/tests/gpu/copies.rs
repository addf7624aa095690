//! Copies, and their order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kvstrata_cuda::{DeviceRegion, EventUse, PinnedRegion, Transfer};
use kvstrata_mem::{HeapRegion, Region};
use libtest_mimic::Failed;

use crate::Gpu;
use crate::bytes::{at, copy, download, equal, get, pattern, set, upload};

const MIB: usize = 1 << 20;

fn round_trips(gpu: &Gpu, host: &dyn Region, sizes: &[(usize, usize)]) -> Result<(), Failed> {
    let device = DeviceRegion::new(&gpu.device, host.len())?;
    let stream = gpu.device.stream()?;
    for (n, &(offset, len)) in sizes.iter().enumerate() {
        let expected = pattern(n as u64, len);
        // Poison first: what is not copied shows.
        set(host, 0, &vec![0xa5; host.len()]);
        copy(&stream, device.base(), host.base(), host.len())?;
        set(host, offset, &expected);
        copy(&stream, at(device.base(), offset), at(host.base(), offset), len)?;
        set(host, 0, &vec![0x5a; host.len()]);
        copy(&stream, host.base(), device.base(), host.len())?;
        let all = get(host, 0, host.len());
        equal(&format!("{len} bytes at {offset}"), &expected, &all[offset..offset + len])?;
        if all[..offset].iter().chain(&all[offset + len..]).any(|b| *b != 0xa5) {
            return Err(format!("{len} bytes at {offset} changed what is around them").into());
        }
    }
    Ok(())
}

const SIZES: &[(usize, usize)] = &[
    (0, 4096),
    (4096, 64 << 10),
    (0, MIB),
    (8192, 5 * MIB / 2),
    (0, 16 * MIB),
    (4096, 16 * MIB + 4096),
    (37, 1000),
    (4095, 1),
    (3, 3 * MIB + 5),
];

pub(super) fn pinned(gpu: &Gpu) -> Result<(), Failed> {
    let host = PinnedRegion::new(&gpu.device, 20 * MIB)?;
    if get(&*host, 0, host.len()).iter().any(|b| *b != 0) {
        return Err("a fresh pinned region is not zero".into());
    }
    round_trips(gpu, &*host, SIZES)?;
    let large = PinnedRegion::new(&gpu.device, 64 * MIB)?;
    round_trips(gpu, &*large, &[(0, 64 * MIB)])
}

pub(super) fn pageable(gpu: &Gpu) -> Result<(), Failed> {
    let host = HeapRegion::new(20 * MIB)?;
    round_trips(gpu, &*host, SIZES)
}

pub(super) fn batches(gpu: &Gpu) -> Result<(), Failed> {
    const BLOCK: usize = 16 << 10;
    const BLOCKS: usize = 4096;
    let host = PinnedRegion::new(&gpu.device, BLOCK * BLOCKS)?;
    let [source, by_batch, by_loop] =
        [(); 3].map(|()| DeviceRegion::new(&gpu.device, BLOCK * BLOCKS).expect("GPU memory"));
    let stream = gpu.device.stream()?;
    upload(&gpu.device, source.base(), &pattern(7, BLOCK * BLOCKS))?;
    for count in [0, 1, 2, 127, 128, 129, 300, BLOCKS] {
        // Every block goes elsewhere, some of them only in part.
        let list = |from: &dyn Region, to: &dyn Region| -> Vec<Transfer> {
            (0..count)
                .map(|i| Transfer {
                    from: at(from.base(), i * BLOCK),
                    to: at(to.base(), (i * 1021 + 5) % BLOCKS * BLOCK),
                    bytes: BLOCK - i % 3 * 1000,
                })
                .collect()
        };
        for target in [&by_batch, &by_loop] {
            // SAFETY: the region lives, and the stream is waited for below.
            unsafe { stream.fill(target.base(), 0xee, BLOCK * BLOCKS) }?;
        }
        // SAFETY: all regions live until the wait below.
        unsafe { stream.copy_all(&list(&*source, &*by_batch)) }?;
        // SAFETY: as above.
        unsafe { stream.copy_each(&list(&*source, &*by_loop)) }?;
        stream.synchronize()?;
        let expected = download(&gpu.device, by_loop.base(), BLOCK * BLOCKS)?;
        equal(
            &format!("{count} within the device"),
            &expected,
            &download(&gpu.device, by_batch.base(), BLOCK * BLOCKS)?,
        )?;
        set(&*host, 0, &vec![0xee; host.len()]);
        // SAFETY: as above.
        unsafe { stream.copy_all(&list(&*source, &*host)) }?;
        stream.synchronize()?;
        equal(&format!("{count} to the host"), &expected, &get(&*host, 0, host.len()))?;
    }
    Ok(())
}

pub(super) fn ordered(gpu: &Gpu) -> Result<(), Failed> {
    const LEN: usize = 64 * MIB;
    let host = [PinnedRegion::new(&gpu.device, LEN)?, PinnedRegion::new(&gpu.device, LEN)?];
    let device = DeviceRegion::new(&gpu.device, LEN)?;
    let (first, second) = (gpu.device.stream()?, gpu.device.stream()?);
    let up = Transfer { to: device.base(), from: host[0].base(), bytes: LEN };
    let down = Transfer { to: host[1].base(), from: device.base(), bytes: LEN };
    for round in 0..10u8 {
        let expected = pattern(u64::from(round), LEN);
        set(&*host[0], 0, &expected);
        set(&*host[1], 0, &vec![0; LEN]);
        let (filled, read) = (gpu.device.event(EventUse::Here)?, gpu.device.event(EventUse::Here)?);
        // SAFETY: everything lives until both streams are waited for.
        unsafe { first.fill(device.base(), round, LEN) }?;
        // SAFETY: as above.
        unsafe { first.copy(up) }?;
        first.record(&filled)?;
        second.wait(&filled)?;
        // SAFETY: as above.
        unsafe { second.copy(down) }?;
        second.record(&read)?;
        first.wait(&read)?;
        // Overwrites what the second stream reads, unless the first waits for it.
        // SAFETY: as above.
        unsafe { first.fill(device.base(), 0xff, LEN) }?;
        read.synchronize()?;
        equal("what the second stream read", &expected, &get(&*host[1], 0, LEN))?;
        first.synchronize()?;
        if !(filled.is_reached()? && first.is_idle()? && second.is_idle()?) {
            return Err("all is done, and something says that it is not".into());
        }
    }
    let after = download(&gpu.device, device.base(), LEN)?;
    equal("what was filled last", &vec![0xff; LEN], &after)
}

pub(super) fn callbacks(gpu: &Gpu) -> Result<(), Failed> {
    const LEN: usize = 64 * MIB;
    let host = PinnedRegion::new(&gpu.device, LEN)?;
    let device = DeviceRegion::new(&gpu.device, LEN)?;
    let stream = gpu.device.stream()?;
    let (told, hear) = mpsc::channel();
    let event = gpu.device.event(EventUse::Here)?;
    if !event.is_reached()? {
        return Err("an event that was never recorded counts as reached".into());
    }
    let calls = Arc::new(AtomicUsize::new(0));
    for i in 0..100 {
        let (told, calls) = (told.clone(), Arc::clone(&calls));
        // SAFETY: both regions live until the stream is waited for.
        unsafe { stream.copy(Transfer { to: device.base(), from: host.base(), bytes: LEN / 16 }) }?;
        stream.notify(move |result| {
            calls.fetch_add(1, Ordering::SeqCst);
            told.send((i, result)).expect("somebody hears");
            if i == 50 {
                std::panic::resume_unwind(Box::new("a caller's mistake"));
            }
        })?;
    }
    stream.record(&event)?;
    for i in 0..100 {
        let (told, result) = hear.recv_timeout(Duration::from_secs(20)).map_err(|e| format!("{i}: {e}"))?;
        if told != i || result.is_err() {
            return Err(format!("{told} instead of {i}: {result:?}").into());
        }
    }
    event.synchronize()?;
    stream.synchronize()?;
    if calls.load(Ordering::SeqCst) != 100 {
        return Err("a callback was called twice".into());
    }
    Ok(())
}

pub(super) fn foreign(gpu: &Gpu) -> Result<(), Failed> {
    let host = PinnedRegion::new(&gpu.device, MIB)?;
    let device = DeviceRegion::new(&gpu.device, MIB)?;
    let engine = gpu.device.stream()?;
    for (seed, raw) in [(1, engine.raw()), (2, std::ptr::null_mut())] {
        // SAFETY: the engine's stream outlives it, and null is the default stream.
        let ours = unsafe { gpu.device.foreign_stream(raw) };
        let expected = pattern(seed, MIB);
        set(&*host, 0, &expected);
        let halves = [0, MIB / 2].map(|offset| Transfer {
            to: at(device.base(), offset),
            from: at(host.base(), offset),
            bytes: MIB / 2,
        });
        // SAFETY: both regions live until the wait.
        unsafe { ours.copy_all(&halves) }?;
        ours.synchronize()?;
        drop(ours);
        equal("through a foreign stream", &expected, &download(&gpu.device, device.base(), MIB)?)?;
    }
    engine.synchronize()?;
    Ok(())
}
