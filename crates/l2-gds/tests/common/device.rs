//! A GPU's memory, and a way to it.

use std::sync::Arc;

use kvstrata_core::Result;
use kvstrata_l2_gds::{Direction, Gpus};
use kvstrata_mem::{Allocate, Pool, Slab, UNIT, WriteBuf};
use parking_lot::Mutex;

/// Device memory, and a way to it.
pub(crate) struct Device {
    pub(crate) gpus: Arc<dyn Gpus>,
    pub(crate) pool: Arc<Pool>,
    /// Pinned memory that everything passes, one at a time.
    pinned: Mutex<WriteBuf>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

impl Device {
    pub(crate) fn new(gpus: Arc<dyn Gpus>, bytes: usize, largest: usize) -> Result<Arc<Self>> {
        let pool = Slab::new(vec![gpus.memory(0, bytes)?])?.pool("device", bytes as u64);
        let largest = largest.next_multiple_of(UNIT);
        let pinned =
            Slab::new(vec![gpus.pinned(largest)?])?.pool("pinned", largest as u64).reserve(largest, UNIT)?;
        Ok(Arc::new(Self { gpus, pool, pinned: Mutex::new(pinned) }))
    }

    /// A chunk of device memory with these bytes.
    pub(crate) fn filled(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<WriteBuf> {
        let buf = self.pool.reserve(len, UNIT)?;
        self.set(&buf, fill)?;
        Ok(buf)
    }

    /// Writes a chunk's bytes.
    pub(crate) fn set(&self, buf: &WriteBuf, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut pinned = self.pinned.lock();
        let len = buf.len();
        fill(&mut pinned.as_mut_slice().expect("host memory")[..len])?;
        let mut copies = self.gpus.copies(0)?;
        // SAFETY: both are so long, ours alone, and the queue is drained before either is used.
        unsafe { copies.copy(Direction::ToDevice, buf.as_ptr(), pinned.as_ptr(), len) }?;
        copies.drain();
        Ok(())
    }

    /// A chunk's bytes, as the host sees them.
    pub(crate) fn bytes(&self, buf: &WriteBuf) -> Result<Vec<u8>> {
        let mut pinned = self.pinned.lock();
        let mut copies = self.gpus.copies(0)?;
        // SAFETY: as above.
        unsafe { copies.copy(Direction::ToHost, pinned.as_ptr(), buf.as_ptr(), buf.len()) }?;
        copies.drain();
        Ok(pinned.as_mut_slice().expect("host memory")[..buf.len()].to_vec())
    }
}
