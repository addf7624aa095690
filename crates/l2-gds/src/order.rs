//! When a device buffer's bytes may be touched, and when they no longer are.

use std::collections::HashMap;
use std::sync::Arc;

use kvstrata_mem::{ReadBuf, RegionId, WriteBuf};
use parking_lot::Mutex;

use crate::Event;

/// What an engine and the adapter tell each other about single buffers, so that neither waits for a device.
///
/// An engine that hands a buffer over while its kernels still write it says which event they end with: the adapter's copies
/// run behind that event, on the GPU. An engine that wants to go on by itself gives an event that is reached when the
/// adapter's copies of the buffer are done:
///
/// - for a store it is recorded when all copies are queued, long before the bytes are on disk: a stream that waits for it
///   may overwrite the block;
/// - for a load it is recorded before the key is answered.
///
/// Both are keyed by the buffer, not by the request: so they pass the manager and every decorator, which know no streams.
/// They are used up by the first request with the buffer, and gone with [`Self::forget`] if there is none. An event that
/// nobody recorded counts as reached, as in CUDA.
///
/// The order holds for copies of the bounce way. Ways of cuFile have no streams here: the adapter waits for `after` on a
/// thread of its own before it begins, and signals when it is done.
#[derive(Debug, Default)]
pub struct Orders(Mutex<HashMap<Place, Order>>);

/// One buffer's events.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The bytes may be touched when this is reached.
    pub after: Option<Arc<dyn Event>>,
    /// To be reached when the adapter has touched them for the last time.
    pub signal: Option<Arc<dyn Event>>,
}

type Place = (RegionId, usize);

/// A buffer whose place can be told.
pub trait Placed {
    /// The region and the offset in it: nobody else's while the buffer lives.
    fn place(&self) -> (RegionId, usize);
}

impl Placed for ReadBuf {
    fn place(&self) -> (RegionId, usize) {
        (self.region().id(), self.extent().offset)
    }
}

impl Placed for WriteBuf {
    fn place(&self) -> (RegionId, usize) {
        (self.region().id(), self.extent().offset)
    }
}

impl Orders {
    /// Orders the next request with this buffer. An earlier order that was not used gives way.
    pub fn set(&self, buf: &impl Placed, order: Order) {
        self.0.lock().insert(buf.place(), order);
    }

    /// No order after all.
    pub fn forget(&self, buf: &impl Placed) {
        self.0.lock().remove(&buf.place());
    }

    pub(crate) fn take(&self, buf: &impl Placed) -> Order {
        self.0.lock().remove(&buf.place()).unwrap_or_default()
    }
}
