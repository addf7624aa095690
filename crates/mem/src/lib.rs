//! Memory that chunks live in, and buffers that cannot be freed while anybody still uses them.
//!
//! [`Region`]s are stretches of mapped memory: anonymous ([`MmapRegion`], with huge pages, prefaulting, a NUMA node and
//! locking as options), shared with other processes ([`MemfdRegion`], [`ShmRegion`]), from the global allocator for tests
//! ([`HeapRegion`]), later a GPU's. A [`Slab`] hands out pieces of them in 4 KiB units, and [`Pool`]s give parts of a slab
//! hard byte limits. A piece is a [`WriteBuf`] while exactly one owner fills it, and a [`ReadBuf`] once sealed; each clone
//! of a `ReadBuf` is one more pin, and the last one to go frees the piece.
//!
//! ```
//! use kvstrata_mem::{Allocate, MmapRegion, RegionOptions, Slab};
//!
//! let slab = Slab::new(vec![MmapRegion::new(1 << 20, &RegionOptions::default())?])?;
//! let cache = slab.pool("cache", 512 << 10);
//! let mut chunk = cache.reserve(100_000, 4096)?;
//! chunk.write_at(0, b"keys and values")?;
//! let chunk = chunk.seal(100_000);
//! let pin = chunk.clone();
//! drop(chunk);
//! assert_eq!(&pin.as_slice().unwrap()[..4], b"keys");
//! assert_eq!(cache.usage().used, 102_400, "whole 4 KiB units are counted");
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! A `&[u8]` is handed out for private host memory only. Memory that another process may write is copied, hashed and
//! written through raw pointers; device memory has an address here, and nothing else.
//!
//! A buffer holds whatever its memory held before: fresh regions are zero, reused pieces are not cleared, nor are the bytes
//! between a payload's end and its last unit's.
//!
//! Architecture invariant: this crate knows no keys, no I/O and no CUDA.

mod alloc;
mod buf;
mod region;
#[doc(hidden)]
pub mod sync;

pub use alloc::{Allocate, Pool, RegionWatch, Slab, SlabUsage, SpaceWatch, UNIT, Usage};
pub use buf::{Extent, Home, ReadBuf, WriteBuf};
pub use region::{
    Fallback, HeapRegion, HugePages, MemfdRegion, MmapRegion, Region, RegionId, RegionKind, RegionOptions,
    ShmRegion, Stale, machine_memory,
};
