//! The vocabulary of KVStrata: what a chunk of KV cache is called, what it looks like, and what can go wrong with it.
//!
//! A serving engine cuts the KV cache of a prompt into *chunks* (256 tokens by default) and names each chunk by the hash
//! of the token prefix that it ends. This crate has those names ([`ObjectKey`]), the chain that computes the hashes
//! ([`chunk`]), the shape of a chunk's bytes ([`Layout`], [`Namespace`]), one answer per key of a batch ([`KeyMask`]),
//! the digest that binds bytes to their key ([`Digest`]), and errors that say whether to try again ([`Error`]).
//!
//! ```
//! use kvstrata_core::{chunk::ChunkHasher, KvRank, KeyScope, ObjectKey};
//!
//! let scope = KeyScope::new("meta-llama/Llama-3.1-8B", KvRank::single(), 0, "")?;
//! let tokens: Vec<u32> = (0..1024).collect();
//! let keys: Vec<ObjectKey> =
//!     ChunkHasher::lmcache(256)?.hashes(&tokens).map(|hash| ObjectKey::new(&scope, hash)).collect();
//! assert_eq!(keys.len(), 4);
//! assert!(keys[0].to_string().starts_with("meta-llama/Llama-3.1-8B@01000100@0@084547b6"));
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! Architecture invariant: this crate knows no I/O, no memory management, no async and no clock source but the
//! [`SystemClock`] that callers may pass down. Text forms that exist for other programs' sake are in [`text`], and are
//! never used as an identity here.
#![forbid(unsafe_code)]

pub mod chunk;
mod digest;
pub mod encode;
mod error;
mod key;
mod layout;
mod mask;
mod namespace;
mod panic;
pub mod text;
mod time;

pub use digest::Digest;
pub use error::{Error, ErrorKind, Result, Retry};
pub use key::{Affinity, ChunkHash, KeyScope, KvRank, ObjectKey};
pub use layout::{DType, Layout, LayoutId, TensorDesc};
pub use mask::KeyMask;
pub use namespace::{Namespace, NamespaceField};
pub use panic::panic_text;
pub use time::{Clock, Instant, SystemClock};
