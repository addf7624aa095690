//! How a service treats its clients.

use std::time::Duration;

use kvstrata_core::{Error, Result};

/// The shared memory that clients map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its POSIX name, without the slash.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
}

impl Pool {
    /// LMCache's name for the pool of this `--shm-name`.
    pub fn name_for(shm_name: &str) -> String {
        const PREFIX: &str = "lmcache_l1_pool_";
        let bare = shm_name.trim_start_matches('/');
        if bare.starts_with(PREFIX) { bare.to_owned() } else { format!("{PREFIX}{bare}") }
    }
}

/// How a service treats its clients. A time of zero turns a limit off where it says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Tokens per chunk.
    pub chunk_tokens: usize,
    /// The shared memory that L1 lies in; without it no client can transfer by itself.
    pub pool: Option<Pool>,
    /// When a lookup, its loads included, has to be over.
    pub lookup_timeout: Duration,
    /// The longest that a client may ask to wait for a lookup.
    pub wait_max: Duration,
    /// How long a worker may fill what it reserved. Later commits are refused.
    pub write_lease: Duration,
    /// How long a worker may read what it was shown, and how long a finished lookup keeps its chunks.
    pub read_lease: Duration,
    /// How long a session lives without a request. Zero: for ever.
    pub session_ttl: Duration,
    /// The block that stands for none in an engine's block tables.
    pub null_block: i64,
    /// How many changes of L1 are kept for those who follow them. Zero: nobody can.
    pub event_log: usize,
    /// What tells this run of the server from others, for those who follow its events.
    pub incarnation: u64,
    /// The most sessions at a time.
    pub max_sessions: usize,
    /// After how long without a word a worker that has pinged before is forgotten. Zero: never.
    pub reap_timeout: Duration,
    /// The same for one that never pinged.
    pub registration_grace: Duration,
    /// How long after its last connection has ended a worker is taken to be gone, and what it held is given back.
    pub disconnect_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            chunk_tokens: 256,
            pool: None,
            lookup_timeout: Duration::from_secs(10),
            wait_max: Duration::from_secs(60),
            write_lease: Duration::from_secs(600),
            read_lease: Duration::from_secs(300),
            session_ttl: Duration::from_secs(600),
            null_block: 0,
            event_log: 32768,
            incarnation: 0,
            max_sessions: 8192,
            reap_timeout: Duration::from_secs(120),
            registration_grace: Duration::from_secs(3600),
            disconnect_grace: Duration::from_secs(2),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what, field: &'static str, value: Duration| {
            Err(Error::invalid("make service", what).with(field, format_args!("{value:?}")))
        };
        if self.lookup_timeout.is_zero() {
            return bad("a lookup has to have time", "lookup_timeout", self.lookup_timeout);
        }
        if self.write_lease.is_zero() {
            return bad("a worker has to have time to write", "write_lease", self.write_lease);
        }
        if self.read_lease.is_zero() {
            return bad("a worker has to have time to read", "read_lease", self.read_lease);
        }
        Ok(())
    }
}
