//! Settings of a tiered KV cache: where they come from, what they mean, and what is built from them.
//!
//! [`Settings`] are plain data with names of our own. They come in layers: built-in defaults, then a TOML, YAML or JSON
//! file, then `KVSTRATA_*` variables, then flags ([`Sources`]). [`Resolved::load`] lays them over each other, refuses what
//! is wrong before anything is changed, and remembers where every value came from. LMCache's names are accepted where they
//! mean the same; the table is in [`names`].
//!
//! ```
//! use kvstrata_config::{Resolved, FileKind, Machine, Registry, SettingsFile, Sources};
//!
//! let sources = Sources {
//!     file: Some(SettingsFile::from_text("kv.toml", FileKind::Toml, "[l1]\nsize = \"2GiB\"\nprefault = true\n")),
//!     env: vec![("KVSTRATA_CACHE_POLICY".into(), "FIFO".into())],
//!     flags: vec![("l1-size-gb".into(), Some("0.5".into()))],
//!     ..Sources::default()
//! };
//! let machine = Machine { memory: 16 << 30 };
//! let effective = Resolved::load(&sources, &machine, &Registry::new())?;
//! assert_eq!(effective.settings.l1.size.to_string(), "512MiB");
//! assert_eq!(effective.origin("l1.size"), "flag --l1-size-gb");
//! assert_eq!(effective.origin("l1.prefault"), "file kv.toml:3");
//! assert_eq!(effective.origin("eviction.policy"), "env KVSTRATA_CACHE_POLICY");
//!
//! let typo = Sources { flags: vec![("l1-sise-gb".into(), Some("1".into()))], ..Sources::default() };
//! let e = Resolved::load(&typo, &machine, &Registry::new()).unwrap_err();
//! assert!(e.to_string().contains("the nearest is --l1-size-gb"), "{e}");
//! # Ok::<(), kvstrata_core::Error>(())
//! ```
//!
//! [`Resolved::build`] makes [`Components`] of them, and those become a manager. Which adapters there are is a [`Registry`]
//! from their `type` to a factory; others may add theirs.
//!
//! No key is accepted and then silently ignored: an unknown one is refused with the nearest known, and one that has no
//! effect in this combination becomes a [`Warning`].
//!
//! Architecture invariant: this is the only crate that reads the process's environment, in two functions
//! ([`process_environment`], [`user_cache_directory`]); nothing else here looks at it, and there is no global registry.
#![forbid(unsafe_code)]

mod adapters;
mod build;
mod builtin;
mod check;
mod directories;
mod file;
mod fs;
mod gds;
mod layers;
mod lmcache;
mod mooncake;
pub mod names;
mod paths;
mod registry;
mod resolved;
mod settings;
mod several;
mod size;
mod value;
mod warning;

pub use adapters::{AdapterSettings, redacted};
pub use build::Components;
pub use check::Machine;
pub use file::{FileKind, SettingsFile};
pub use fs::{FsPaths, fs_paths};
pub use gds::{PROBE_COMMAND, gds_settings};
pub use layers::{Sources, process_environment, user_cache_directory};
pub use names::{FlagSpec, flag_specs};
pub use registry::{AdapterFactory, BuildContext, DecoratorFactory, MemoryNeed, Registry};
pub use resolved::{Resolved, Row, load};
pub use settings::{
    DeadlineSettings, EvictionSettings, HugePages, L1Settings, L2Settings, LocalDiskSettings,
    PrefetchSettings, QuotaSettings, Settings, StoreSettings,
};
pub use size::{BadSize, ByteSize};
pub use warning::Warning;
