//! Eviction policies on dense slot numbers, and rules of admission.
//!
//! A policy decides which of the entries it was told about should go first. It never sees a key, a byte of payload, a
//! lock or a clock: the owner gives every resident entry a small number (its [`Slot`]), tells the policy what happens to
//! it, and asks for victims. So one policy serves host memory and disks alike, and other projects can take this crate
//! for the policies alone.
//!
//! ```
//! use std::num::NonZeroU32;
//! use kvstrata_evict::{by_name, Access, Entry, Removal, Slot, TenantId};
//!
//! let mut lru = by_name("LRU")?;
//! let now = Access::default();
//! for n in 0..3 {
//!     let weight = NonZeroU32::new(4096).unwrap();
//!     lru.insert(Entry { slot: Slot(n), print: n.into(), weight, parent: None, tenant: TenantId(0) }, &now);
//! }
//! lru.touch(Slot(0), &now);
//! lru.pin(Slot(1));
//! let mut out = Vec::new();
//! assert_eq!(lru.victims(1, &mut out), 4096);
//! assert_eq!(out, [Slot(2)], "0 was touched and 1 is pinned");
//! lru.remove(Slot(2), Removal::Evicted);
//! # Ok::<(), kvstrata_evict::UnknownPolicy>(())
//! ```
//!
//! What should come in at all is asked of an [`Admission`] rule: [`admission_by_name`] makes one, and [`admit_chain`] asks
//! it for a chain of chunks, so that no chunk is kept without those before it.
//!
//! Every policy is O(1) per operation, whatever is pinned: members stand in rings of positions with a bitmap of those that
//! may go, so a pinned entry keeps its place and is never walked over. Each policy's page states its memory.
//!
//! Architecture invariant: no keys, no memory, no clocks, no locks, no async, no I/O; no `unsafe`.
#![forbid(unsafe_code)]

mod admission;
mod arc;
mod bits;
mod contained;
mod duel;
mod entry;
mod fifo;
mod ghosts;
mod isolated;
mod lfu;
mod life;
mod lru;
#[cfg(test)]
mod models;
mod mru;
mod names;
mod noop;
mod order;
mod s3fifo;
mod sieve;
mod sketch;
mod space;
mod table;
mod tenants;
mod tinylfu;

pub use admission::{
    ADMISSIONS, Admission, Always, Offer, SecondSighting, TinyLfu, admission_by_name, admit_chain,
};
pub use arc::AdaptiveReplacement;
pub use contained::Contained;
pub use duel::Duel;
pub use entry::{Access, Entry, EvictionPolicy, Quotas, Removal, Slot, TenantId};
pub use fifo::Fifo;
pub use isolated::IsolatedLru;
pub use lfu::Lfu;
pub use life::LifeTable;
pub use lru::Lru;
pub use mru::Mru;
pub use names::{NAMES, UnknownPolicy, by_name};
pub use noop::Noop;
pub use s3fifo::S3Fifo;
pub use sieve::Sieve;
pub use tinylfu::WTinyLfu;
