//! What an L2 adapter is: the traits, their obligations, the handle that checks every digest, and decorators.
//!
//! An adapter stores and loads batches of chunks somewhere below host memory. It implements [`L2Store`] and, where its
//! backend can, the optional traits beside it; an [`Adapter`] holds what it offers. The conformance suite in
//! `kvstrata-testkit` has one test per numbered obligation, and every adapter and every decorator runs it.
//!
//! An answer goes to the request's sink when it is there, each key exactly once:
//!
//! ```
//! use std::sync::Arc;
//! use kvstrata_core::Error;
//! use kvstrata_l2::{PutSink, Stored};
//!
//! let done = PutSink::new(2, Arc::new(|position, answer: Result<Stored, Error>| match answer {
//!     Ok(stored) => println!("key {position}: {stored:?}"),
//!     Err(why) => println!("key {position} was not stored: {why}"),
//! }));
//! assert!(done.answer(1, Ok(Stored::Written)));
//! assert!(!done.answer(1, Ok(Stored::Present)), "the first answer counts");
//! assert_eq!(done.left(), 1);
//! drop(done); // An adapter that loses a request is found out: key 0 is answered with an error.
//! ```
//!
//! [`Checked`] goes on top of every adapter, and is the one place where digests are made and checked. [`Driver`] is how an
//! adapter keeps its promises about buffers and deadlines when its device is a future; what it needs from outside, a clock
//! and a place to run tasks, is its [`Context`].
//!
//! [`Metered`], [`Breaker`] and [`Limited`] go between the two, in this order from the outside: counts and latencies, a
//! circuit breaker, and a limit on the bytes in flight.
//!
//! Architecture invariant: this crate knows no backend. Nothing here retries: deadlines and retries belong to the manager.
#![forbid(unsafe_code)]

mod adapter;
mod checked;
mod decorators;
mod digest;
mod driver;
mod join;
mod latch;
mod request;
mod sink;
mod stats;
mod store;
mod tenants;
mod timer;

pub use adapter::Adapter;
pub use checked::{Checked, Verify};
pub use decorators::{
    Breaker, BreakerOptions, BreakerState, BreakerView, Histogram, HistogramCounts, LimitCounts,
    LimitOptions, LimitState, Limited, Meter, MeterCounts, Metered, OpCounts, Phase,
};
pub use digest::{PayloadCrc, digest_of, digest_of_filled};
pub use driver::{Context, Driver, Pass, Spawn, Task, closed, timed_out, until};
pub use join::{Call, all};
pub use latch::{Idle, Job, latch};
pub use request::{Answer, Found, Get, GetItem, Keys, Loaded, Miss, Probe, Put, PutDigest, PutItem, Stored};
pub use sink::{Answered, Claim, Fail, GetSink, PutSink, Receive, Sink};
pub use stats::{CheckCounts, CheckStats};
pub use store::{
    L2Desc, L2List, L2Quotas, L2Remove, L2Store, L2Usage, ListPage, MemoryKinds, PartUsage, StoreUsage,
    TenantUsage,
};
pub use tenants::Tenants;
pub use timer::{Timer, TokioTimer};
