//! The adapter's copies and an engine's work, ordered on the GPU alone.

use std::sync::Arc;

use kvstrata_cuda::{Cuda, EventUse};
use kvstrata_l2_gds::{GdsWay, Order};
use libtest_mimic::Failed;

use crate::rig::{Gpu, folder};

/// A fill that takes the GPU a while stands for a kernel: its end is an event, and the host waits for nothing.
pub(crate) fn events(gpu: &Gpu, way: GdsWay) -> Result<(), Failed> {
    const LEN: usize = 16 << 20;
    let dir = folder();
    let rig = gpu.store(dir.path(), way, |_| ())?;
    let device = Cuda::open()?.device(0)?;
    let stream = device.stream()?;
    for round in 0..20u8 {
        let (written, read) =
            (Arc::new(device.event(EventUse::Here)?), Arc::new(device.event(EventUse::Here)?));
        let buf = gpu.poisoned(LEN)?.seal(LEN);
        // The last of many fills is the one that counts.
        for byte in [200, 201, 202, round] {
            for _ in 0..16 {
                // SAFETY: the chunk is held until the answer, and nobody else writes it.
                unsafe { stream.fill(buf.as_ptr(), byte, LEN) }?;
            }
        }
        stream.record(&written)?;
        let order = Order { after: Some(written), signal: Some(Arc::clone(&read) as _) };
        rig.gds.orders().set(&buf, order);
        let again = buf.clone();
        rig.put(vec![(u64::from(round), buf)]).remove(0)?;
        // What follows the adapter's copies on the engine's stream does not change what was stored.
        stream.wait(&read)?;
        // SAFETY: as above; the chunk is held until the stream has passed.
        unsafe { stream.fill(again.as_ptr(), 255, LEN) }?;

        let to = gpu.poisoned(LEN)?;
        let (free, there) =
            (Arc::new(device.event(EventUse::Here)?), Arc::new(device.event(EventUse::Here)?));
        for _ in 0..64 {
            // SAFETY: the chunk is held by the load, which waits for the event.
            unsafe { stream.fill(to.as_ptr(), 77, LEN) }?;
        }
        stream.record(&free)?;
        let order = Order { after: Some(free), signal: Some(Arc::clone(&there) as _) };
        rig.gds.orders().set(&to, order);
        let loaded = match rig.get(vec![(u64::from(round), to)]).remove(0) {
            kvstrata_l2::Answer::Loaded(loaded) => loaded,
            other => return Err(format!("round {round}: {other:?}").into()),
        };
        stream.wait(&there)?;
        stream.synchronize()?;
        let bytes = gpu.device.bytes(&loaded.buf)?;
        if let Some(at) = bytes.iter().position(|b| *b != round) {
            return Err(format!("round {round}: byte {at} is {} and not {round}", bytes[at]).into());
        }
        drop(again);
    }
    rig.close()
}
