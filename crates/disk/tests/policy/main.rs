//! What a store does with its eviction policy.

#[path = "../common/mod.rs"]
mod common;
mod rotten;
mod tenants;
