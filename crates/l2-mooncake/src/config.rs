//! The adapter's settings.

use std::path::PathBuf;
use std::time::Duration;

use kvstrata_core::{Error, Result};
use serde::Deserialize;

use crate::objects::Form;

const OP: &str = "read mooncake settings";

/// Settings of a `mooncake_store` adapter: LMCache's names, without their `mooncake_` prefix, and a few of our own. Sizes are
/// bytes, and times seconds.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MooncakeConfig {
    /// The adapter's name; `mooncake_store` unless set.
    #[serde(default = "default_name")]
    pub name: String,
    /// Which way: `auto` unless set.
    #[serde(default)]
    pub mode: Mode,
    /// Where the `mooncake_client` of this machine listens; `127.0.0.1:50052`, its own default, unless set.
    #[serde(default = "default_client")]
    pub client_address: String,
    /// The user's own `libmooncake_store.so`, for the way through a library.
    #[serde(default)]
    pub library: Option<PathBuf>,
    /// Threads that wait for calls, which is how many are under way at once; 4 unless set.
    #[serde(default = "default_workers")]
    pub num_workers: usize,
    /// Threads of their own for some operations.
    #[serde(default)]
    pub per_op_workers: PerOp,
    /// This machine's name in the cluster.
    #[serde(default)]
    pub local_hostname: Option<String>,
    /// Where a transport finds others: `P2PHANDSHAKE`, or an address.
    #[serde(default)]
    pub metadata_server: Option<String>,
    /// The master.
    #[serde(default, alias = "master_server_addr")]
    pub master_server_address: Option<String>,
    /// How bytes travel: `tcp` or `rdma`, or what else the library knows.
    #[serde(default = "default_protocol")]
    pub protocol: String,
    /// Network devices for RDMA.
    #[serde(default, alias = "rdma_devices")]
    pub device_name: String,
    /// What the library's client adds to the pool, in bytes.
    #[serde(default = "default_segment")]
    pub global_segment_size: u64,
    /// The library's own buffer, and the room for objects with LMCache's header here, in bytes.
    #[serde(default = "default_buffer")]
    pub local_buffer_size: u64,
    /// No store and no load takes longer, whatever its own deadline; in seconds. LMCache's is 1; without it here deadlines apply.
    #[serde(default, deserialize_with = "seconds")]
    pub transfer_timeout: Option<Duration>,
    /// Whether new objects are to lie in this machine's own segment, if it has room.
    #[serde(default)]
    pub prefer_local_alloc: bool,
    /// LMCache's directory on disks, which is a matter of the client's: no effect.
    #[serde(default)]
    pub storage_root_dir: Option<String>,
    /// Whether objects are described and digests kept; `true` unless set. Without, they are LMCache's, bit for bit.
    #[serde(default = "yes")]
    pub digests: bool,
    /// Without digests: whether LMCache's header goes before the payload. As in LMCache `true` unless set.
    #[serde(default)]
    pub save_chunk_meta: Option<bool>,
    /// How many tensors LMCache's header describes; 1 unless set.
    #[serde(default = "one")]
    pub chunk_meta_groups: usize,
    /// Goes before every key, so that several deployments share a pool.
    #[serde(default)]
    pub key_prefix: String,
}

/// Which way to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The client of this machine if it answers, or else the library if one is named.
    #[default]
    Auto,
    /// Through the client of this machine.
    Attach,
    /// Through the library.
    Capi,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Attach => "attach",
            Self::Capi => "capi",
        }
    }
}

/// Threads of their own for some operations; the others share `num_workers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub struct PerOp {
    pub lookup: Option<usize>,
    pub retrieve: Option<usize>,
    pub store: Option<usize>,
    pub delete: Option<usize>,
}

fn default_name() -> String {
    "mooncake_store".into()
}

fn default_client() -> String {
    "127.0.0.1:50052".into()
}

fn default_workers() -> usize {
    4
}

fn default_protocol() -> String {
    "tcp".into()
}

fn default_segment() -> u64 {
    3_355_443_200
}

fn default_buffer() -> u64 {
    1 << 30
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(from)?;
    let duration = |s| Duration::try_from_secs_f64(s).ok().filter(|d| !d.is_zero());
    let bad = || serde::de::Error::custom("a time above zero is expected, in seconds");
    seconds.map(|s| duration(s).ok_or_else(bad)).transpose()
}

/// More threads than that are taken for a mistake.
const MOST_WORKERS: usize = 1024;
/// Room for the descriptions of some thousand keys that are under way at once.
const DESCRIPTIONS: usize = 8 << 20;

impl Default for MooncakeConfig {
    fn default() -> Self {
        Self {
            name: default_name(),
            mode: Mode::Auto,
            client_address: default_client(),
            library: None,
            num_workers: default_workers(),
            per_op_workers: PerOp::default(),
            local_hostname: None,
            metadata_server: None,
            master_server_address: None,
            protocol: default_protocol(),
            device_name: String::new(),
            global_segment_size: default_segment(),
            local_buffer_size: default_buffer(),
            transfer_timeout: None,
            prefer_local_alloc: false,
            storage_root_dir: None,
            digests: true,
            save_chunk_meta: None,
            chunk_meta_groups: 1,
            key_prefix: String::new(),
        }
    }
}

impl MooncakeConfig {
    /// Checks what can be checked without looking for a cluster.
    ///
    /// # Errors
    /// `Invalid` names the key and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &'static str, value: &dyn std::fmt::Display, what: &str| {
            Err(Error::invalid(OP, what.to_owned()).with(key, value))
        };
        if self.name.is_empty() {
            return bad("name", &"\"\"", "an adapter's name is not empty");
        }
        let own = self.per_op_workers;
        let counts = [
            ("num_workers", Some(self.num_workers)),
            ("per_op_workers.lookup", own.lookup),
            ("per_op_workers.retrieve", own.retrieve),
            ("per_op_workers.store", own.store),
            ("per_op_workers.delete", own.delete),
        ];
        for (key, count) in counts {
            if count.is_some_and(|n| n == 0 || n > MOST_WORKERS) {
                return bad(key, &count.unwrap_or_default(), "there are 1 to 1024 workers");
            }
        }
        if self.digests && self.save_chunk_meta == Some(true) {
            let what = "objects with LMCache's header have no digest: set digests to false, or save_chunk_meta to false";
            return bad("save_chunk_meta", &true, what);
        }
        if self.chunk_meta_groups == 0 || self.chunk_meta_groups > kvstrata_core::Layout::MAX_TENSORS {
            return bad(
                "chunk_meta_groups",
                &self.chunk_meta_groups,
                "there are 1 to 64 tensors in an object",
            );
        }
        if self.key_prefix.len() > 256 || self.key_prefix.contains(['@', '\0']) {
            return bad("key_prefix", &self.key_prefix, "at most 256 bytes without '@' and NUL are expected");
        }
        if self.local_buffer_size < 1 << 20 {
            return bad("local_buffer_size", &self.local_buffer_size, "at least 1 MiB is expected");
        }
        if self.mode == Mode::Capi && self.library.is_none() {
            return bad("library", &"none", "the way through a library needs its path");
        }
        let local = self.prefer_local_alloc && self.mode == Mode::Attach && self.local_hostname.is_none();
        if local {
            return bad(
                "local_hostname",
                &"none",
                "prefer_local_alloc needs the name of the client's segment",
            );
        }
        Ok(())
    }

    /// Keys that are set and do nothing, with the reason.
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        let mut say = |set: bool, key, why| {
            if set {
                all.push((key, why));
            }
        };
        let other = Self::default();
        say(
            self.storage_root_dir.is_some(),
            "storage_root_dir",
            "the disks of the pool are the client's own business",
        );
        say(
            self.digests && self.save_chunk_meta == Some(false),
            "save_chunk_meta",
            "with digests the description is an object of its own, and the payload's is the same as without header",
        );
        if self.mode == Mode::Attach {
            let why = "the client that is attached to was started with its own";
            say(self.metadata_server.is_some(), "metadata_server", why);
            say(self.protocol != other.protocol, "protocol", why);
            say(!self.device_name.is_empty(), "device_name", why);
            say(self.global_segment_size != other.global_segment_size, "global_segment_size", why);
            say(self.library.is_some(), "library", "the mode is attach");
        }
        all
    }

    /// Whether the memory that buffers come from must be shared: only a library takes private memory.
    pub fn needs_shared_memory(&self) -> bool {
        self.mode != Mode::Capi
    }

    pub(crate) fn form(&self) -> Form {
        match (self.digests, self.save_chunk_meta.unwrap_or(true)) {
            (true, _) => Form::Described,
            (false, true) => Form::Headed { tensors: self.chunk_meta_groups },
            (false, false) => Form::Plain,
        }
    }

    pub(crate) fn scratch_bytes(&self) -> usize {
        match self.form() {
            Form::Headed { .. } => {
                usize::try_from(self.local_buffer_size).unwrap_or(usize::MAX).next_multiple_of(4096)
            }
            _ => DESCRIPTIONS,
        }
    }
}
