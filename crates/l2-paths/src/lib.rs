//! Several stores, one on each path, as one adapter.
//!
//! A path is a directory, a file system or a device, with a store that is complete in itself: its own manifest, index,
//! capacity, eviction and engine. [`Paths`] puts any such adapters side by side. Where the next object goes is chosen by
//! [`kvstrata_policy::Places`]; an object is found on whichever path it is, because each store's index is in memory.
//!
//! ```
//! use kvstrata_l2::Context;
//! use kvstrata_l2_mock::{Mock, MockConfig};
//! use kvstrata_l2_paths::{Member, Paths, PathsOptions};
//! use kvstrata_policy::{Place, Sharding};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let cx = Context::tokio(tokio::runtime::Handle::current());
//! let member = |name: &str| Member {
//!     place: Place { name: name.into(), weight: 1, devices: vec![] },
//!     adapter: Mock::open(&MockConfig::new(1.0, 10.0), cx.clone()).map(|mock| mock.adapter()),
//!     open: None,
//! };
//! let both = vec![member("/nvme0"), member("/nvme1")];
//! let paths = Paths::new("disks", Sharding::ByKey, both, PathsOptions::default(), cx.clone())?;
//! assert_eq!(paths.adapter().usage.unwrap().usage().capacity, Some(2 << 30));
//! # Ok::<(), kvstrata_core::Error>(()) }).unwrap();
//! ```
//!
//! Each path has a breaker of its own. One that fails or hangs is taken out: its objects are misses, stores go elsewhere,
//! and one of the requests at a time is tried on it. A store that a path fails with an error or has no room for goes to the
//! next one within the same request. When a path works again it is compared with the others before it serves: what was
//! removed meanwhile, and what is stored elsewhere by now, is taken off it. A path that cannot be opened, at the start or
//! after it was out for long, is opened in the background.
//!
//! What it does not do:
//!
//! - Nothing is copied to a second path: what was on a path that is lost is lost.
//! - One object lies on one path. Striping is left for later; the stores' indexes know places by offset, so there is room.
//! - Removals are remembered for a path that is out as long as the process lives. After a restart meanwhile, what it brings
//!   back may have been removed. An object that was stored anew elsewhere and evicted there may come back as it was before:
//!   with the bytes that were once stored for its key.
//! - Two requests that store different bytes for one key at one time, from devices with different paths, may leave both;
//!   either is what was stored, and the next store of the key leaves one.
#![forbid(unsafe_code)]

mod abilities;
mod back;
mod get;
mod options;
mod path;
mod paths;
mod put;

pub use options::PathsOptions;
pub use path::{Member, OpenPath, PathState, PathView};
pub use paths::Paths;
