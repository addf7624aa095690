//! Decorators: each takes an adapter with all its abilities and gives one back.
//!
//! They go around the backend in this order, from the outside in: [`crate::Checked`], [`Metered`], [`Breaker`], [`Limited`].
//! The meter sees what the breaker refuses; the breaker answers at once where a hung device holds all bytes of the limit.

mod breaker;
mod budget;
mod circuit;
mod histogram;
mod limited;
mod metered;

pub use breaker::{Breaker, BreakerState};
pub use circuit::{BreakerOptions, BreakerView, Phase};
pub use histogram::{Histogram, HistogramCounts};
pub use limited::{LimitCounts, LimitOptions, LimitState, Limited};
pub use metered::{Meter, MeterCounts, Metered, OpCounts};
