//! The traits.

use std::fmt::Debug;

use async_trait::async_trait;
use kvstrata_core::{Instant, ObjectKey, Result};
use kvstrata_mem::RegionKind;

use crate::{Found, Get, GetSink, Keys, Probe, Put, PutSink};

/// The kinds of memory an adapter moves bytes from and to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryKinds {
    /// Private host memory.
    pub private: bool,
    /// Host memory shared with other processes.
    pub shared: bool,
    /// Device memory.
    pub device: bool,
}

impl MemoryKinds {
    /// Any host memory.
    pub const HOST: Self = Self { private: true, shared: true, device: false };

    /// Whether buffers of this kind are taken.
    pub fn takes(self, kind: RegionKind) -> bool {
        match kind {
            RegionKind::Private => self.private,
            RegionKind::Shared => self.shared,
            RegionKind::Device => self.device,
            _ => false,
        }
    }
}

/// What an adapter says of itself. Constant over its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct L2Desc {
    /// Its name: the adapter's type unless configured; unique within a manager.
    pub name: String,
    /// The address alignment it wants of buffers, in bytes; at most 4096.
    pub alignment: usize,
    /// The memory it takes.
    pub kinds: MemoryKinds,
    /// The most keys of one batch, at least 1; [`crate::Checked`] splits larger ones.
    pub max_batch: usize,
    /// Whether objects survive the process.
    pub durable: bool,
    /// Whether other processes see the same objects.
    pub shared: bool,
}

/// A store of chunks below host memory.
///
/// Obligations; each has a conformance test of the same number:
///
/// - **L2-1 ownership**: once submitted, a buffer belongs to the driver until the device is finished with it, whether or
///   not anybody still waits. A key that timed out is answered at once; its buffer comes back (or is freed) only when the
///   driver is done. Dropping the future never frees memory that a device may still touch, and never loses the answers of
///   keys that were finished.
/// - **L2-2 truth**: `get` answers with exactly the bytes that `put` took for that key, layout and length, or with a miss
///   or an error. Torn, truncated, swapped, bit-flipped, foreign or stale objects are misses with a counted reason, and
///   are healed by the next `put`.
/// - **L2-3 visibility**: an object is found only after its `put` was answered with success, or shortly before; a failed
///   `put` leaves nothing to be found.
/// - **L2-4 per key**: one key's failure never fails another; each answer carries its key's position in the batch.
/// - **L2-5 bounded**: every call ends by its deadline, queueing included; a partial answer is a good answer.
/// - **L2-6 capacity**: bytes are reserved before they are written (in-flight, header and block rounding included); usage
///   never exceeds the limit; no space is a declined store (`NoSpace`), and loads go on.
/// - **L2-7 no silent shedding**: whatever is refused is refused visibly: an answer with an error, buffer dropped or handed
///   back, and a count.
///
/// A second `put` of a key that is stored with the same layout and digest answers [`crate::Stored::Present`]; with another
/// digest or layout the new object takes its place.
///
/// After `shutdown`, calls answer with `Closed`.
#[async_trait]
pub trait L2Store: Send + Sync + Debug + 'static {
    /// What it says of itself.
    fn desc(&self) -> &L2Desc;
    /// Stores a batch. Each key's answer is pushed to `done` as it happens; the future ends when all are answered.
    async fn put(&self, request: Put, done: PutSink);
    /// Loads a batch. Each key's answer is pushed to `done` as it happens; the future ends when all are answered.
    async fn get(&self, request: Get, done: GetSink);
    /// Says which keys are there, in order, without reading payloads.
    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>>;
    /// Refuses new calls, waits for what is in flight, makes what is durable durable, and closes. Ends by `deadline`.
    ///
    /// # Errors
    /// `TimedOut` if something was still in flight at the deadline.
    async fn shutdown(&self, deadline: Instant) -> Result<()>;
}

/// An adapter that can remove objects.
#[async_trait]
pub trait L2Remove: Send + Sync + 'static {
    /// Removes objects; per key whether it was there. A removed object is not found any more, and loads in flight may
    /// still finish.
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>>;
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Keys with what is known of them.
    pub entries: Vec<(ObjectKey, Found)>,
    /// Where the next page starts; `None` after the last.
    pub next: Option<String>,
}

/// An adapter that can list what it has.
#[async_trait]
pub trait L2List: Send + Sync + 'static {
    /// A page of at most `limit` entries from `cursor` (`None` for the first). Entries that stay throughout are listed
    /// exactly once; others may or may not be.
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage>;
}

/// How full a store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreUsage {
    /// Bytes taken, in-flight writes, headers and rounding included.
    pub used: u64,
    /// The hard limit; `None` without one.
    pub capacity: Option<u64>,
    /// Objects that can be found.
    pub objects: u64,
    /// Objects evicted since the start.
    pub evicted: u64,
    /// Stores declined for want of room since the start.
    pub declined: u64,
}

/// An adapter that knows how full it is.
pub trait L2Usage: Send + Sync + 'static {
    /// Now.
    fn usage(&self) -> StoreUsage;
    /// The parts that it is made of, each as it is now: of several paths, the paths. Empty if it is one thing.
    fn parts(&self) -> Vec<PartUsage>;
}

/// A part of a store: one of several paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartUsage {
    /// What it is called.
    pub name: String,
    /// Where it stands, by a name for people and metrics.
    pub state: &'static str,
    /// All states that there are.
    pub states: &'static [&'static str],
    /// Whether it stores and loads now.
    pub in_service: bool,
    /// How full it is.
    pub usage: StoreUsage,
    /// Keys that it failed.
    pub errors: u64,
    /// How often it was taken out of service.
    pub outages: u64,
    /// Why it is not open, if it is not.
    pub why: Option<String>,
}

/// What one tenant (a cache salt) holds in a tier, and may hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TenantUsage {
    /// The salt; empty for those without one.
    pub salt: String,
    /// Bytes held.
    pub used: u64,
    /// The quota of its own, in bytes; `None`: the tier's default applies.
    pub quota: Option<u64>,
}

/// An adapter that keeps tenants apart: a tenant within its quota loses nothing to another one's flood.
///
/// A change drops nothing; what is above its quota goes first when room is needed. Without any quota a tenant shares what
/// is left with the others.
pub trait L2Quotas: Send + Sync + 'static {
    /// Gives a tenant a quota of its own in bytes, or takes it away (`None`): then the default applies.
    ///
    /// # Errors
    /// If the store is out of service.
    fn set_quota(&self, salt: &str, bytes: Option<u64>) -> Result<()>;
    /// What applies to tenants without a quota of their own. `None`, as it starts: they share what is left. `Some(0)`:
    /// they are the first to go.
    ///
    /// # Errors
    /// If the store is out of service.
    fn set_default_quota(&self, bytes: Option<u64>) -> Result<()>;
    /// The tenants that hold anything or have a quota, by salt.
    fn tenants(&self) -> Vec<TenantUsage>;
}
