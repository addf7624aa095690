//! The trait and what it speaks of.

use std::fmt::Debug;
use std::num::NonZeroU32;

/// The number of a resident entry: small, dense, and reused after [`EvictionPolicy::remove`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A tenant (a cache salt, as the owner numbers them). 0 is the tenant without a salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TenantId(pub u32);

/// What a policy learns of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The entry's number.
    pub slot: Slot,
    /// A 64-bit fingerprint of its identity, uniform; the same object has the same print when it comes back.
    pub print: u64,
    /// Its size in the owner's unit of capacity (bytes).
    pub weight: NonZeroU32,
    /// The entry that ends the prefix before this one, if it is resident.
    pub parent: Option<Slot>,
    /// Whose it is.
    pub tenant: TenantId,
}

/// The circumstances of an event: which request it belongs to, and where in the request's chain of chunks the entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Counts the owner's requests; never goes backwards. All events of one request have the same number.
    pub request: u64,
    /// The position of the entry in the request's chain, from 0.
    pub position: u32,
    /// The length of that chain in chunks.
    pub chain: u32,
}

/// Why an entry leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// The owner took a victim's place. Policies with ghosts remember it.
    Evicted,
    /// Deleted, cleared, or moved away for another reason. It is forgotten.
    Deleted,
}

/// Decides who goes first.
///
/// Obligations, each held by a test of the same number in this crate's `tests/obligations.rs` for every policy:
///
/// 1. **Residents only.** `victims` returns entries that were inserted and not removed, each at most once per call.
/// 2. **Pins.** A pinned entry is never returned; pins count (two pins need two unpins). `victims` costs O(victims),
///    however many entries are pinned.
/// 3. **Enough.** `victims` returns at least `want` in weight if the unpinned entries have it, else all of them
///    (`noop` returns none); its result is the total weight returned. It takes no more than needed: without its last
///    victim the total would be below `want`.
/// 4. **Proposals.** `victims` removes nothing. The owner calls `remove` for each victim it takes; those that it does not
///    take stay resident and may be proposed again.
/// 5. **Tail first.** The owner inserts and touches a batch from its last chunk to its first. Entries of one batch that
///    were treated alike leave in that order, the last chunk first.
/// 6. **Bounded.** Memory is proportional to residents plus a stated bound of ghosts. No operation is worse than
///    amortised O(1) except `victims`.
/// 7. **Tolerant.** `touch`, `pin`, `unpin` and `remove` of a slot that is not resident do nothing.
/// 8. **Deterministic.** The same calls give the same answers.
pub trait EvictionPolicy: Send + Debug + 'static {
    /// The policy's name, one of those `by_name` takes.
    fn name(&self) -> &'static str;
    /// The capacity of the owner's tier, in weight: told before the first insert and whenever it changes. A policy that
    /// divides its space, and was never told, takes the most weight it has held.
    fn set_capacity(&mut self, weight: u64);
    /// An entry became resident, unpinned. Inserting a resident slot again replaces it.
    fn insert(&mut self, entry: Entry, cx: &Access);
    /// A resident entry was used.
    fn touch(&mut self, slot: Slot, cx: &Access);
    /// An object that is not resident was asked for.
    fn missed(&mut self, print: u64, cx: &Access);
    /// The entry is in use and must not be proposed.
    fn pin(&mut self, slot: Slot);
    /// One use ended.
    fn unpin(&mut self, slot: Slot);
    /// The entry is gone.
    fn remove(&mut self, slot: Slot, why: Removal);
    /// Appends entries worth at least `want` in weight to `out`, first to go first; returns their total weight.
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64;
    /// The quotas of tenants, if this policy keeps tenants apart.
    fn quotas(&self) -> Option<&dyn Quotas> {
        None
    }
    /// The same, to change them.
    fn quotas_mut(&mut self) -> Option<&mut dyn Quotas> {
        None
    }
    /// The heap memory held, in bytes.
    fn memory(&self) -> usize;
}

/// Quotas of tenants, in weight. They may change at any time; entries are not dropped by a change, but go first when
/// victims are next asked for.
///
/// As long as the quotas together fit into the capacity, victims that are asked for a tenant are never another's that is
/// within its quota, even if that leaves fewer than are wanted: a quota is also a promise. It is kept to within one entry:
/// who is above its quota by a part of an entry gives that entry.
pub trait Quotas {
    /// For whom the victims are that are asked for from now on. `None`, as it starts: for nobody in particular, and then
    /// everybody gives in the end. `aside` is what the tenant has beside its entries: weight that is set aside for it and
    /// not inserted yet, or, below 0, weight that is asked for and was inserted already.
    fn asks(&mut self, tenant: Option<TenantId>, aside: i64);
    /// Gives a tenant a quota of its own.
    fn set(&mut self, tenant: TenantId, weight: u64);
    /// Takes a tenant's own quota away: the default applies. Says whether it had one.
    fn delete(&mut self, tenant: TenantId) -> bool;
    /// The tenants with a quota of their own, in order.
    fn list(&self) -> Vec<(TenantId, u64)>;
    /// What applies to tenants without a quota of their own. `None`, as it starts: they share what is left, as one LRU.
    /// `Some(0)`: they are the first to go.
    fn set_default(&mut self, weight: Option<u64>);
    /// The tenants that hold anything, in order, and how much.
    fn usage(&self) -> Vec<(TenantId, u64)>;
}
