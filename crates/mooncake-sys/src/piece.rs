//! Stretches of buffers that a foreign call reads or writes.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use kvstrata_mem::{ReadBuf, Region, WriteBuf};

/// Bytes that a call reads.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    at: NonNull<u8>,
    len: usize,
    region: &'a Arc<dyn Region>,
}

impl<'a> Source<'a> {
    /// The whole payload.
    pub fn of(buf: &'a ReadBuf) -> Self {
        Self { at: buf.as_ptr(), len: buf.len(), region: buf.region() }
    }

    /// `len` bytes from `at` on.
    ///
    /// # Panics
    /// If they are not all in the payload.
    pub fn part(buf: &'a ReadBuf, at: usize, len: usize) -> Self {
        assert!(at.checked_add(len).is_some_and(|end| end <= buf.len()), "a part is inside its buffer");
        Self { at: buf.as_ptr().map_addr(|base| base.saturating_add(at)), len, region: buf.region() }
    }

    /// The region that they lie in.
    pub fn region(&self) -> &'a Arc<dyn Region> {
        self.region
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.at.addr().get() as u64
    }

    /// The bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.at.as_ptr().cast()
    }
}

/// Room that a call writes.
#[derive(Debug)]
pub struct Target<'a> {
    at: NonNull<u8>,
    len: usize,
    region: &'a Arc<dyn Region>,
    of: PhantomData<&'a mut WriteBuf>,
}

impl<'a> Target<'a> {
    /// The whole buffer.
    pub fn of(buf: &'a mut WriteBuf) -> Self {
        Self { at: buf.as_ptr(), len: buf.len(), region: buf.region(), of: PhantomData }
    }

    /// The buffer in pieces of these lengths, one after the other, each at a multiple of `align`.
    ///
    /// # Panics
    /// If the buffer is too short for all of them.
    pub fn parts(buf: &'a mut WriteBuf, lens: impl IntoIterator<Item = usize>, align: usize) -> Vec<Self> {
        // The borrow stays unique: only targets, which do not overlap, come out of it.
        let buf: &'a WriteBuf = buf;
        let (base, room, region) = (buf.as_ptr(), buf.len(), buf.region());
        let mut next = 0usize;
        let part = |len: usize| {
            let at = next;
            assert!(at.checked_add(len).is_some_and(|end| end <= room), "the parts fit their buffer");
            next = (at + len).next_multiple_of(align);
            Self { at: base.map_addr(|base| base.saturating_add(at)), len, region, of: PhantomData }
        };
        lens.into_iter().map(part).collect()
    }

    /// The region that it lies in.
    pub fn region(&self) -> &'a Arc<dyn Region> {
        self.region
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.at.addr().get() as u64
    }

    /// The bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_ptr(&self) -> *mut std::ffi::c_void {
        self.at.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use kvstrata_mem::{Allocate, HeapRegion, Slab};

    use super::*;

    #[test]
    fn parts_do_not_overlap_and_stay_inside() {
        let pool = Slab::new(vec![HeapRegion::new(8192).unwrap()]).unwrap().pool("p", 8192);
        let mut buf = pool.reserve(200, 64).unwrap();
        let base = buf.as_ptr().addr().get() as u64;
        let at: Vec<_> =
            Target::parts(&mut buf, [64, 60, 8], 64).iter().map(|t| (t.addr() - base, t.len())).collect();
        assert_eq!(at, [(0, 64), (64, 60), (128, 8)]);
        let short = std::panic::AssertUnwindSafe(move || Target::parts(&mut buf, [64; 4], 64).len());
        assert!(std::panic::catch_unwind(short).is_err(), "256 bytes are not in 200");
    }

    #[test]
    fn a_part_outside_its_payload_is_a_panic() {
        let pool = Slab::new(vec![HeapRegion::new(4096).unwrap()]).unwrap().pool("p", 4096);
        let buf = pool.reserve(128, 64).unwrap().seal(100);
        assert_eq!(Source::part(&buf, 36, 64).addr(), Source::of(&buf).addr() + 36);
        let outside = std::panic::AssertUnwindSafe(|| Source::part(&buf, 37, 64).len());
        assert!(std::panic::catch_unwind(outside).is_err());
    }
}
