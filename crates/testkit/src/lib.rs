//! What tests of KV cache tiers need: traces of requests, payloads that can be checked without a copy, and a random source
//! that gives the same numbers everywhere.
//!
//! - [`trace`] reads traces in Mooncake's format, and makes them.
//! - [`payload`] makes the bytes of a key and recognises them.
//!
//! Architecture invariant: this crate knows no backend and no manager; nothing here draws on the machine's own randomness.
#![forbid(unsafe_code)]

pub mod payload;
pub mod rng;
pub mod trace;
