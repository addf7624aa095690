//! What goes where: store and prefetch policies as pure functions of keys, answers and a view of the tiers.
//!
//! Architecture invariant: no I/O, no time, no state, no tokio; no `unsafe`.
#![forbid(unsafe_code)]

mod prefetch;
mod store;
mod tier;

pub use prefetch::{Admit, Plan, PrefetchPolicy};
pub use store::StorePolicy;
pub use tier::{L2Id, TierView};
