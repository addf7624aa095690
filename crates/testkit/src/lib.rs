//! What tests of KV cache tiers need: a conformance suite that every adapter runs, traces of requests, payloads that can be
//! checked without a copy, and a random source that gives the same numbers everywhere.
//!
//! - [`conformance`] has a case for each numbered obligation of an adapter.
//! - [`trace`] reads traces in Mooncake's format, and makes them.
//! - [`hits`] says what a cache of a given size and policy would hit on a trace, and what is possible at all.
//! - [`payload`] makes the bytes of a key and recognises them.
//! - [`gated`] runs the tests of what a machine may lack, or says why they did not run.
//! - [`arena`] is memory that shows who touches it after it was freed.
//!
//! ```
//! use kvstrata_core::{KeyScope, KvRank};
//! use kvstrata_testkit::{payload, trace};
//!
//! let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
//! let key = trace::key(&scope, 7);
//! let mut chunk = vec![0; 4096];
//! payload::fill(&key, &mut chunk);
//! payload::check(&key, &chunk).expect("the bytes are this key's");
//! chunk[100] ^= 1;
//! assert_eq!(payload::check(&key, &chunk).unwrap_err().first, 100);
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! Architecture invariant: this crate knows no backend and no manager; nothing here draws on the machine's own randomness.
#![forbid(unsafe_code)]

pub mod arena;
pub mod conformance;
pub mod gated;
pub mod hits;
pub mod payload;
pub mod rng;
pub mod trace;
