//! What goes where: store and prefetch policies as pure functions of keys, answers and a view of the tiers.
//!
//! A [`StorePolicy`] says which tiers a committed chunk is written to and when it may leave L1; a [`PrefetchPolicy`] says
//! from which tier a missing chunk is loaded and whether it stays. `default`, `skip_l1` and `retain` are LMCache's names,
//! and so is what they do; [`Striped`] and [`Fastest`] are for several tiers that share the keys or the loads. [`Places`] says
//! which of a tier's several paths an object is written to. [`fold`] and [`unfold`] say how much of a prefix is usable with sliding attention windows and several ranks.
//!
//! ```
//! use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, ObjectKey};
//! use kvstrata_policy::{prefetch_by_name, L2Id, TierView};
//!
//! let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
//! let keys: Vec<_> = (0..3).map(|n| ObjectKey::new(&scope, ChunkHash::from([n; 32]))).collect();
//! let found = KeyMask::all(3);
//! let disk = TierView {
//!     id: L2Id(0), name: "fs", weight: 1, stores: true, loads: true, found: &found, load_time: None,
//! };
//! let plan = prefetch_by_name("default")?.plan(&keys, &KeyMask::first(1, 3), &[disk], None);
//! assert_eq!(plan.sources, [None, Some(L2Id(0)), Some(L2Id(0))], "the first chunk is in L1 already");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Architecture invariant: no I/O, no time, no state, no tokio; no `unsafe`.
#![forbid(unsafe_code)]

mod affinity;
mod fastest;
mod names;
mod prefetch;
mod rendezvous;
mod store;
mod stripe;
mod tier;
mod window;

pub use affinity::{Device, NotADevice, Place, Places, SHARDING_NAMES, Sharding, path_list};
pub use fastest::Fastest;
pub use names::{PREFETCH_NAMES, STORE_NAMES, UnknownPolicy, prefetch_by_name, store_by_name};
pub use prefetch::{Admit, FirstTier, Plan, PrefetchPolicy};
pub use store::{SkipL1, StoreDefault, StorePolicy};
pub use stripe::Striped;
pub use tier::{L2Id, LoadTime, TierView};
pub use window::{Row, fold, unfold, whole_columns};
