//! A decorator that makes any adapter fail, lie and hang, by seed and by script.
//!
//! It goes below [`kvstrata_l2::Checked`], which makes and checks the digests: whatever is done to the bytes here has to be
//! found there. Each class of fault ([`Fault`]) is counted twice: how often it was injected, and how often it took effect,
//! that is, changed bytes or an outcome that somebody then looked at.
//!
//! ```
//! use kvstrata_l2::{Checked, Context, Verify};
//! use kvstrata_l2_fault::{Fault, FaultConfig, Injector};
//! use kvstrata_l2_mock::{Mock, MockConfig};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! let cx = Context::tokio(runtime.handle().clone());
//! let mock = Mock::open(&MockConfig::new(1.0, 20.0), cx.clone())?;
//! let config: FaultConfig = serde_json::from_str(r#"{
//!     "rate": 0.01, "seed": 7, "faults": ["bit_flip", "torn_write", "error"],
//!     "script": [
//!         {"op": "put", "batch": 2, "index": 0, "fault": "lost_write"},
//!         {"op": "get", "every": 100, "fault": "delay", "delay_ms": 5},
//!         {"op": "probe", "fault": "hang", "times": 1}
//!     ]
//! }"#).unwrap();
//! let injector = Injector::new(mock.adapter(), &config, cx.clone())?;
//! let adapter = Checked::new(injector.adapter(), Verify::On, cx).adapter;
//! assert_eq!(adapter.store.desc().name, "mock");
//! assert_eq!(injector.counts().of(Fault::BitFlip).effective, 0);
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! Without `faults` and `script` it does what LMCache's `fault_inject` does: loads of the keys that `rate` and `seed`
//! select, and of the positions that `gap_indices` and `gap_tail_ratios` name, are misses, and lookups still find them.
//!
//! **Script.** A list of rules; the first that matches a key of a call decides. `op` (`put`, `get`, `probe`, `remove`,
//! `list`) and `fault` are required. The rest narrows the rule, and all of it has to match: `batch` (the number of the
//! call among those of its kind, from 0), `index` (the position in the batch), `key` (the chunk hash in hex), `every` (each
//! n-th key of those that match otherwise), `times` (at most so often). `delay_ms` replaces the configured delay.
//!
//! **The same again.** The same seed and the same sequence of calls give the same faults. What `rate` chooses depends on
//! the seed, the kind of call, the key, and how often the key was asked for, and not on the order in which concurrent
//! calls arrive. (Which object stands in for another one does.)
//!
//! A store whose writes are lost keeps what it had. Keys are hashes of content, so what is found under a key later is what
//! was stored; a test that stores two contents under one key sees the older one, with its own digest.
//!
//! Architecture invariant: nothing here knows the adapter inside, and nothing repairs what it breaks.
#![forbid(unsafe_code)]

mod abilities;
mod blake2b;
mod bytes;
mod config;
mod counts;
mod fault;
mod gap;
mod get;
mod injector;
mod ledger;
mod plan;
mod put;
mod wait;

pub use config::{FaultConfig, Faults, Rule};
pub use counts::{FaultCount, FaultCounts};
pub use fault::{Fault, Op};
pub use injector::Injector;
