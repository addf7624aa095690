//! `kvstrata serve` in a process of its own, and clients that speak its wire.
//!
//! What goes wrong is a panic: these are for tests and for programs that prove something, where nothing else is worth
//! doing then. A client that lives among failures, as those of a soak do, uses the calls that return errors.

mod engine;
mod paged;
mod server;

use std::time::Duration;

pub use engine::{Engine, LAYERS, Prompt, SLOT_BYTES, Worker, content, engine_driven};
pub use paged::Paged;
pub use server::Server;

/// Nothing that a healthy server does takes as long.
pub const WITHIN: Duration = Duration::from_secs(20);
