//! What callers hold: reservations and pins. Dropping one gives back what it stands for.

use std::fmt;
use std::sync::Arc;

use kvstrata_core::{KeyMask, Layout, ObjectKey};
use kvstrata_mem::{ReadBuf, WriteBuf};

use crate::TierId;
use crate::index::Handle;
use crate::machine::Granted;
use crate::manager::Inner;

/// A buffer to fill for one key. Commit it, or drop it: then nobody ever sees what was written.
pub struct Reservation {
    pub(crate) granted: Option<Box<Granted>>,
    pub(crate) inner: Arc<Inner>,
}

impl Reservation {
    fn granted(&self) -> &Granted {
        self.granted.as_ref().expect("only a commit takes it, and that takes the reservation too")
    }

    /// The key.
    pub fn key(&self) -> &ObjectKey {
        &self.granted().key
    }

    /// What the bytes are to be.
    pub fn layout(&self) -> &Layout {
        &self.granted().layout
    }

    /// The buffer, as long as the layout says.
    pub fn buf(&mut self) -> &mut WriteBuf {
        &mut self.granted.as_mut().expect("as above").buf
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(granted) = self.granted.take() {
            // The buffer goes first, so that whoever is told of room finds it.
            let Granted { key, buf, .. } = *granted;
            drop(buf);
            self.inner.with(|m| m.abort(&key));
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({:?})", self.granted.as_ref().map(|g| &g.key))
    }
}

/// One chunk that stays where it is while this is held.
pub struct Pin {
    /// Taken only when the pin ends or passes on.
    hit: Option<Hit>,
    inner: Arc<Inner>,
}

/// A pinned chunk: `handle` is `None` for a temporary one, whose buffer is its only pin.
pub(crate) struct Hit {
    pub(crate) buf: ReadBuf,
    pub(crate) handle: Option<Handle>,
    pub(crate) source: TierId,
}

impl Pin {
    pub(crate) fn new(hit: Hit, inner: Arc<Inner>) -> Self {
        Self { hit: Some(hit), inner }
    }

    fn hit(&self) -> &Hit {
        self.hit.as_ref().expect("only what ends the pin takes it")
    }

    /// The bytes.
    pub fn buf(&self) -> &ReadBuf {
        &self.hit().buf
    }

    /// Where they came from.
    pub fn source(&self) -> TierId {
        self.hit().source
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let Some(Hit { buf, handle, .. }) = self.hit.take() else { return };
        // The buffer goes first, so that whoever is told of room finds it.
        drop(buf);
        if let Some(handle) = handle {
            self.inner.with(|m| m.unpin(handle));
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({:?} from {:?})", self.buf(), self.source())
    }
}

/// The pinned chunks of a batch; all pins end together, in one step.
pub struct Hits {
    pub(crate) hits: Vec<Option<Hit>>,
    pub(crate) inner: Arc<Inner>,
}

impl Hits {
    /// Which keys are here.
    pub fn mask(&self) -> KeyMask {
        self.hits.iter().map(Option::is_some).collect()
    }

    /// The bytes of the key at `position`, if it is here.
    pub fn buf(&self, position: usize) -> Option<&ReadBuf> {
        Some(&self.hits.get(position)?.as_ref()?.buf)
    }

    /// Where they came from.
    pub fn source(&self, position: usize) -> Option<TierId> {
        Some(self.hits.get(position)?.as_ref()?.source)
    }

    /// The number of keys asked for.
    pub fn len(&self) -> usize {
        self.hits.len()
    }

    /// Whether no keys were asked for.
    pub fn is_empty(&self) -> bool {
        self.hits.is_empty()
    }

    /// Moves the pins of some positions into a guard of their own, which counts positions from the first of them.
    ///
    /// # Panics
    /// If there are no such positions.
    #[must_use]
    pub fn take(&mut self, positions: std::ops::Range<usize>) -> Self {
        Self {
            hits: self.hits[positions].iter_mut().map(Option::take).collect(),
            inner: Arc::clone(&self.inner),
        }
    }

    /// Takes a pin over from a single-chunk guard.
    pub(crate) fn adopt(&mut self, position: usize, mut pin: Pin) {
        self.hits[position] = pin.hit.take();
    }
}

impl Drop for Hits {
    fn drop(&mut self) {
        // As above: the buffers go first.
        let handles: Vec<Handle> = self.hits.drain(..).flatten().filter_map(|h| h.handle).collect();
        if !handles.is_empty() {
            self.inner.with(|m| handles.into_iter().for_each(|h| m.unpin(h)));
        }
    }
}

impl fmt::Debug for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hits({:?})", self.mask())
    }
}
