//! What the benchmarks of this workspace and the comparisons beside it have in common: operations measured in turn, and
//! figures as tables that `cargo xtask bench` puts into a page and draws.
//!
//! ```
//! use kvstrata_benches::{in_turn, median};
//!
//! let (mut a, mut b) = (0_u64, 0_u64);
//! let times = in_turn(5, 100, &mut [&mut || a += 1, &mut || b += 2]);
//! assert_eq!((times.len(), times[0].len(), a, b), (2, 5, 500, 1000));
//! let ratio = median(times[0].iter().zip(&times[1]).map(|(a, b)| a / b).collect());
//! assert!(ratio >= 0.0);
//! ```
//!
//! Architecture invariant: no crate that is measured is known here.
#![forbid(unsafe_code)]

mod figures;
mod flags;
mod turns;

pub use figures::{Bar, Chart, Figures, append, asked_for};
pub use flags::Flags;
pub use turns::{in_turn, least, median, scratch};
