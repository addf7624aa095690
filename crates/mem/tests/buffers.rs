//! Buffers: freed once, by the last handle; read and written only as their memory allows.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use kvstrata_core::ErrorKind;
use kvstrata_mem::{Allocate, Extent, HeapRegion, Home, Region, RegionId, RegionKind, Slab, UNIT, WriteBuf};

/// Counts what comes back.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Home for Counter {
    fn release(&self, _: &Arc<dyn Region>, _: Extent) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn buffer(home: &Arc<Counter>, len: usize) -> WriteBuf {
    let region = HeapRegion::new(len.next_multiple_of(UNIT)).expect("memory");
    let extent = Extent { offset: 0, capacity: region.len() };
    // SAFETY: the region is new, and the extent is all of it.
    unsafe { WriteBuf::from_extent(home.clone(), region, extent, len) }
}

/// Host memory that calls itself something else. For a device it has no memory at all: touching it would crash.
#[derive(Debug)]
struct Pretend {
    id: RegionId,
    base: NonNull<u8>,
    kind: RegionKind,
    _memory: Option<Arc<dyn Region>>,
}

// SAFETY: the value only has an address.
unsafe impl Send for Pretend {}
// SAFETY: as above.
unsafe impl Sync for Pretend {}

// SAFETY: shared: the heap region lives as long as the value; device: no CPU access is legal, and none is made.
unsafe impl Region for Pretend {
    fn id(&self) -> RegionId {
        self.id
    }
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        32 * UNIT
    }
    fn kind(&self) -> RegionKind {
        self.kind
    }
    fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn shared() -> Arc<dyn Region> {
    let memory = HeapRegion::new(32 * UNIT).expect("memory");
    let kind = RegionKind::Shared;
    Arc::new(Pretend { id: RegionId::unique(), base: memory.base(), kind, _memory: Some(memory) })
}

fn device() -> Arc<dyn Region> {
    let base = NonNull::without_provenance((0x7000_0000_0000_usize).try_into().expect("not zero"));
    Arc::new(Pretend { id: RegionId::unique(), base, kind: RegionKind::Device, _memory: None })
}

#[test]
fn a_buffer_is_freed_by_its_drop_sealed_or_not() {
    let home = Arc::new(Counter::default());
    drop(buffer(&home, 10));
    assert_eq!(home.0.load(Ordering::Relaxed), 1);
    let sealed = buffer(&home, 10).seal(10);
    assert_eq!(home.0.load(Ordering::Relaxed), 1, "sealing frees nothing");
    drop(sealed);
    assert_eq!(home.0.load(Ordering::Relaxed), 2);
}

#[test]
fn each_clone_is_a_pin_and_the_last_one_frees_once() {
    let home = Arc::new(Counter::default());
    let first = buffer(&home, 10).seal(10);
    let second = first.clone();
    assert!(first.same(&second) && !first.same(&buffer(&home, 1).seal(1)));
    let before = home.0.load(Ordering::Relaxed);
    assert_eq!((first.pins(), second.pins()), (2, 2));
    drop(first);
    assert_eq!((second.pins(), home.0.load(Ordering::Relaxed)), (1, before));
    drop(second);
    assert_eq!(home.0.load(Ordering::Relaxed), before + 1);
}

#[test]
fn pins_dropped_at_once_on_many_threads_free_once() {
    let home = Arc::new(Counter::default());
    let rounds = if cfg!(miri) { 10 } else { 500 };
    for round in 0..rounds {
        let first = buffer(&home, 64).seal(64);
        let barrier = Barrier::new(3);
        thread::scope(|s| {
            for _ in 0..3 {
                let pin = first.clone();
                let barrier = &barrier;
                s.spawn(move || {
                    barrier.wait();
                    let again = pin.clone();
                    drop(pin);
                    assert_eq!(again.as_slice().map(<[u8]>::len), Some(64));
                });
            }
            drop(first);
        });
        assert_eq!(home.0.load(Ordering::Relaxed), round + 1);
    }
}

#[test]
fn the_payload_is_what_was_sealed() {
    let home = Arc::new(Counter::default());
    let mut buffer = buffer(&home, 5000);
    buffer.write_at(10, b"chunk").expect("inside");
    buffer.as_mut_slice().expect("private")[0] = 7;
    let sealed = buffer.seal(12);
    assert_eq!((sealed.len(), sealed.capacity()), (12, 2 * UNIT));
    assert_eq!(sealed.as_slice(), Some(&b"\x07\0\0\0\0\0\0\0\0\0ch"[..]));
    let mut two = [0; 2];
    sealed.read_at(10, &mut two).expect("inside");
    assert_eq!(&two, b"ch");
    for at in [11, 12, usize::MAX] {
        let e = sealed.read_at(at, &mut two).expect_err("outside the payload");
        assert_eq!(e.kind(), ErrorKind::Invalid, "{at}");
    }
    sealed.read_at(12, &mut []).expect("nothing, at the end");
}

#[test]
fn what_direct_io_writes_behind_the_payload_is_cleared() {
    let home = Arc::new(Counter::default());
    let mut buffer = buffer(&home, 2 * UNIT);
    buffer.as_mut_slice().expect("private").fill(9);
    let at = buffer.as_ptr();
    let sealed = buffer.seal(100);
    // SAFETY: the extent has two units, and nobody writes them any more.
    let whole = unsafe { std::slice::from_raw_parts(at.as_ptr(), 2 * UNIT) };
    assert!(whole[..100].iter().all(|b| *b == 9) && whole[100..UNIT].iter().all(|b| *b == 0));
    assert!(whole[UNIT..].iter().all(|b| *b == 9), "no more than the last block");
    drop(sealed);
}

#[test]
fn writing_outside_is_refused_and_sealing_too_much_panics_without_a_leak() {
    let home = Arc::new(Counter::default());
    let mut small = buffer(&home, 10);
    for at in [8, 11, usize::MAX] {
        assert_eq!(small.write_at(at, b"abc").expect_err("outside").kind(), ErrorKind::Invalid, "{at}");
    }
    assert!(catch_unwind(AssertUnwindSafe(|| small.seal(11))).is_err());
    assert_eq!(home.0.load(Ordering::Relaxed), 1);
}

#[test]
fn shared_memory_is_copied_and_never_borrowed() {
    let slab = Slab::new(vec![shared()]).expect("slab");
    let pool = slab.pool("cache", 32 * UNIT as u64);
    let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
    let mut buffer = pool.reserve(bytes.len(), UNIT).expect("room");
    assert!(buffer.as_mut_slice().is_none());
    buffer.write_at(0, &bytes).expect("inside");
    let mut filled = Vec::new();
    buffer.visit(|part| filled.extend_from_slice(part)).expect("host memory");
    assert_eq!(filled, bytes, "before the seal");
    let sealed = buffer.seal(33_000);
    assert!(sealed.as_slice().is_none());
    let (mut seen, mut parts) = (Vec::new(), 0);
    sealed
        .visit(|part| {
            parts += 1;
            seen.extend_from_slice(part);
        })
        .expect("host memory");
    assert_eq!((parts, seen.len()), (3, 33_000), "16 KiB at a time");
    assert_eq!(seen, bytes[..33_000]);
}

#[test]
fn device_memory_has_an_address_and_nothing_else() {
    let region = device();
    let base = region.base();
    let slab = Slab::new(vec![region]).expect("slab");
    let pool = slab.pool("gpu", 32 * UNIT as u64);
    let first = pool.reserve(3 * UNIT, UNIT).expect("room");
    let mut second = pool.reserve(100, 2 * UNIT).expect("room");
    assert_eq!((first.as_ptr(), second.as_ptr().addr().get()), (base, base.addr().get() + 4 * UNIT));
    assert!(second.as_mut_slice().is_none());
    assert_eq!(second.write_at(0, b"x").expect_err("device").kind(), ErrorKind::Unsupported);
    assert_eq!(second.read_at(0, &mut [0]).expect_err("device").kind(), ErrorKind::Unsupported);
    for len in [0, 100] {
        let sealed = pool.reserve(100, 1).expect("room").seal(len);
        assert!(sealed.as_slice().is_none());
        assert_eq!(sealed.visit(|_| ()).expect_err("device").kind(), ErrorKind::Unsupported);
    }
}
