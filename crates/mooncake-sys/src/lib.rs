//! What an adapter for Mooncake Store needs and safe Rust does not have: the C interface of a user's own
//! `libmooncake_store.so`, opened at run time, and a file descriptor sent over a unix socket.
//!
//! Nothing of Mooncake's is needed to build this crate, and nothing of it comes along. A library that is not there, or that
//! lacks a function, is a typed error that says what was tried:
//!
//! ```
//! use kvstrata_core::ErrorKind;
//! use kvstrata_mooncake_sys::Library;
//!
//! let absent = Library::load("no/such/libmooncake_store.so".as_ref()).unwrap_err();
//! assert_eq!(absent.kind(), ErrorKind::Unavailable);
//! ```
//!
//! Memory crosses the border as [`Source`] and [`Target`], which borrow the buffer that they point into: a call that was
//! given one cannot outlive the buffer, and two targets never overlap.
//!
//! What it deliberately does not do: it decides nothing, retries nothing, and speaks no network protocol.

mod fd;
mod library;
mod piece;

pub use fd::send_with_fd;
pub use library::{Library, Setup, Store};
pub use piece::{Source, Target};
