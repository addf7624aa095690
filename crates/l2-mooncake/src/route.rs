//! The two ways to a cluster behind one trait, and the numbers it answers with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::{Error, ErrorKind, Result, Retry};
use kvstrata_l2::MemoryKinds;
use kvstrata_mem::Region;
use kvstrata_mooncake_sys::{Source, Target};

/// An error code of Mooncake's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Code(pub i32);

#[expect(missing_docs, reason = "the names are the documentation")]
impl Code {
    pub const NO_SPACE: Self = Self(-200);
    pub const INVALID_PARAMS: Self = Self(-600);
    pub const NOT_READY: Self = Self(-703);
    pub const NOT_FOUND: Self = Self(-704);
    pub const EXISTS: Self = Self(-705);
    pub const LEASED: Self = Self(-706);
    pub const LEASE_EXPIRED: Self = Self(-707);
    pub const TRANSFER: Self = Self(-800);
    pub const CHECKSUM: Self = Self(-801);
    pub const RPC: Self = Self(-900);
    pub const RPC_TIMEOUT: Self = Self(-901);

    /// Whether a load that ends so is a miss: the object is not there, not whole, or with an owner that is gone.
    pub fn is_miss(self) -> bool {
        [Self::NOT_READY, Self::NOT_FOUND, Self::LEASE_EXPIRED, Self::TRANSFER].contains(&self)
    }

    /// As an error.
    pub fn error(self, operation: &'static str) -> Error {
        let (kind, why) = match self {
            Self::NO_SPACE => (ErrorKind::NoSpace, "the pool is full"),
            Self::INVALID_PARAMS => (ErrorKind::Invalid, "the store takes neither this key nor this size"),
            Self::NOT_READY | Self::NOT_FOUND | Self::LEASE_EXPIRED => {
                (ErrorKind::NotFound, "the object is not there")
            }
            Self::EXISTS => (ErrorKind::Busy, "another writer has begun this object"),
            Self::LEASED => (ErrorKind::Busy, "the object is being read"),
            Self::TRANSFER => (ErrorKind::Io, "the transfer from or to the owner failed"),
            Self::CHECKSUM => (ErrorKind::Corrupt, "the transfer's checksum is wrong"),
            Self::RPC | Self::RPC_TIMEOUT => (ErrorKind::Unavailable, "the master does not answer"),
            _ => (ErrorKind::Io, "the store reported a failure"),
        };
        let error = Error::new(kind, operation, why).with("code", self.0);
        match self {
            // Eviction is set off by the store that fails, and runs after it.
            Self::NO_SPACE => error.retrying(Retry::After(Duration::from_secs(1))),
            _ => error,
        }
    }
}

/// Per key a value or a code.
pub type PerKey<T> = Vec<Result<T, Code>>;

/// A way to a cluster. Calls block; a buffer belongs to the call until it returns, and then to nobody else: an
/// implementation returns only when the transport is done with it, however the call ends.
///
/// The two here are [`crate::Attach`] and [`crate::Capi`]; one that speaks to the master and the owners of segments itself
/// would be a third.
///
/// Obligations:
///
/// 1. Each call is one request for the whole batch, whatever its size, and moves payloads without a copy in this process.
/// 2. The answer has one entry per key, in order.
/// 3. What the whole call failed of is an error; what one key failed of is its code.
/// 4. Regions are made known before their first use, once, and again by itself if the other side has forgotten them.
/// 5. After a call returned, nothing touches its buffers.
pub trait Route: Send + Sync + fmt::Debug + 'static {
    /// What it is, for logs.
    fn describe(&self) -> String;
    /// The memory that it takes.
    fn kinds(&self) -> MemoryKinds;
    /// The most keys of one request.
    fn max_keys(&self) -> usize;
    /// Makes a region known beforehand.
    ///
    /// # Errors
    /// Whatever the other side says; it is made known again at its first use.
    fn register(&self, region: &Arc<dyn Region>) -> Result<()>;
    /// Forgets a region.
    fn unregister(&self, region: &Arc<dyn Region>);
    /// Stores. A key that is there already, or that another writer has begun, may be answered with success.
    ///
    /// # Errors
    /// If the whole call failed; which keys were stored is not known then.
    fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>>;
    /// Loads; per key the object's size.
    ///
    /// # Errors
    /// If the whole call failed; the targets hold anything then.
    fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>>;
    /// Whether there are whole objects.
    ///
    /// # Errors
    /// If the whole call failed.
    fn exists(&self, keys: &[String]) -> Result<PerKey<bool>>;
    /// Sizes.
    ///
    /// # Errors
    /// If the whole call failed.
    fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>>;
    /// Removes, leased or not.
    ///
    /// # Errors
    /// If the whole call failed.
    fn remove(&self, keys: &[String]) -> Result<PerKey<()>>;
    /// Forgets all regions and stops what runs by itself. Called once, when no other call is in flight.
    fn close(&self);
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was asked of a [`Route`].
        #[derive(Debug, Default)]
        pub struct RouteStats { $($name: AtomicU64,)* }

        /// The counts at one moment. They only grow.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct RouteCounts { $($(#[$doc])* pub $name: u64,)* }

        impl RouteStats {
            /// Now.
            pub fn counts(&self) -> RouteCounts {
                RouteCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Put requests.
    puts,
    /// Keys of put requests, descriptions included.
    put_keys,
    /// Get requests.
    gets,
    /// Keys of get requests, descriptions included.
    get_keys,
    /// Requests whether objects are there.
    lookups,
    /// Requests to remove, and keys that were taken back because their store failed or came too late.
    removes,
    /// Bytes of payloads that were copied in this process: only where LMCache's chunk header goes before them.
    copied,
}

impl RouteStats {
    pub(crate) fn copied(&self, bytes: usize) {
        self.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Counts the calls of another one.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) inner: Arc<dyn Route>,
    pub(crate) stats: Arc<RouteStats>,
}

impl Counted {
    pub(crate) fn put_from(&self, keys: &[String], from: &[Source<'_>]) -> Result<PerKey<()>> {
        self.stats.puts.fetch_add(1, Ordering::Relaxed);
        self.stats.put_keys.fetch_add(keys.len() as u64, Ordering::Relaxed);
        complete(keys, self.inner.put_from(keys, from))
    }

    pub(crate) fn get_into(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        self.stats.gets.fetch_add(1, Ordering::Relaxed);
        self.stats.get_keys.fetch_add(keys.len() as u64, Ordering::Relaxed);
        complete(keys, self.inner.get_into(keys, to))
    }

    /// A load that is to tell what is there, into room that payloads do not fit in.
    pub(crate) fn look(&self, keys: &[String], to: &mut [Target<'_>]) -> Result<PerKey<u64>> {
        self.stats.lookups.fetch_add(1, Ordering::Relaxed);
        complete(keys, self.inner.get_into(keys, to))
    }

    pub(crate) fn exists(&self, keys: &[String]) -> Result<PerKey<bool>> {
        self.stats.lookups.fetch_add(1, Ordering::Relaxed);
        complete(keys, self.inner.exists(keys))
    }

    pub(crate) fn sizes(&self, keys: &[String]) -> Result<PerKey<u64>> {
        self.stats.lookups.fetch_add(1, Ordering::Relaxed);
        complete(keys, self.inner.sizes(keys))
    }

    pub(crate) fn remove(&self, keys: &[String]) -> Result<PerKey<()>> {
        self.stats.removes.fetch_add(1, Ordering::Relaxed);
        complete(keys, self.inner.remove(keys))
    }
}

/// An answer that is short would be another key's.
fn complete<T>(keys: &[String], answer: Result<PerKey<T>>) -> Result<PerKey<T>> {
    answer.and_then(|list| {
        if list.len() == keys.len() {
            return Ok(list);
        }
        let why = "the store answered for another number of keys";
        Err(Error::new(ErrorKind::Internal, "ask store", why)
            .with("keys", keys.len())
            .with("answers", list.len()))
    })
}
