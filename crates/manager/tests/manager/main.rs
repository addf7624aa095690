//! The manager from outside: L1 alone, and the way to L2 and back.

mod admission;
mod breaker;
mod common;
mod l1;
mod l2;
mod leaving;
mod policies;
mod tenants;
mod tiers;
