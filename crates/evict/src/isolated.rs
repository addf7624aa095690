use crate::table::Queues;
use crate::tenants::Tenants;
use crate::{Access, Entry, EvictionPolicy, Quotas, Removal, Slot, TenantId};

/// The queue of the tenants that have no quota.
const SHARED: usize = 0;

#[derive(Clone, Copy, Debug, Default)]
struct Extra {
    /// When it was last used, as a count of uses.
    stamp: u64,
    /// The tenant's number in the table of tenants.
    tenant: u32,
}

/// LRU with quotas of tenants.
///
/// Who is above its quota gives first, roughly the furthest above first; the tenant that asks counts as if it had what it
/// asks for. Then those that share what is left because no quota applies to them, as one LRU. Then the tenant that asks.
/// Others that are within their quotas give only if the quotas together exceed the capacity and the one that asks stays
/// within its own: those under the default quota first, and then by how much of their quota they use. So as long as the quotas fit, one tenant's flood
/// never evicts another that is within its quota; the flood is refused instead.
///
/// Memory: 32 bytes per slot, 4.2 per position with at most sixteen positions per resident, and 600 per tenant that
/// holds anything or has a quota; vectors grow by doubling. Setting or deleting a quota goes over all residents once.
#[derive(Debug)]
pub struct IsolatedLru {
    /// The shared queue, and one for each tenant to which a quota applies.
    queues: Queues<Extra>,
    free: Vec<usize>,
    tenants: Tenants,
    clock: u64,
    capacity: u64,
    asker: Option<TenantId>,
    /// Of what it asks for, what it holds already.
    /// What the asker has beside its entries.
    aside: i64,
}

impl Default for IsolatedLru {
    fn default() -> Self {
        Self {
            queues: Queues::new(1),
            free: Vec::new(),
            tenants: Tenants::default(),
            clock: 0,
            capacity: 0,
            asker: None,
            aside: 0,
        }
    }
}

impl IsolatedLru {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn own_queue(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| self.queues.add_queue())
    }

    /// Gives a tenant the queue that its quota asks for.
    fn arrange(&mut self, tenant: u32) {
        let has_own = self.tenants[tenant].queue != SHARED;
        let wants_own = self.tenants.quota(tenant).is_some() && self.tenants[tenant].usage > 0;
        if has_own == wants_own {
            return;
        }
        let from = self.tenants[tenant].queue;
        let to = if wants_own { self.own_queue() } else { SHARED };
        self.tenants[tenant].queue = to;
        // What joins the shared queue takes its place among what is there already.
        let moves =
            |node: &Extra, queue: u32| node.tenant == tenant || (to == SHARED && queue as usize == SHARED);
        let mut moved: Vec<(u64, Slot)> = (self.queues.nodes())
            .filter(|(_, node)| moves(&node.extra, node.queue))
            .map(|(slot, node)| (node.extra.stamp, slot))
            .collect();
        moved.sort_unstable();
        for (_, slot) in moved {
            self.queues.append(slot, to);
        }
        if from != SHARED {
            self.free.push(from);
        }
    }

    /// Gives every tenant the queue that its quota asks for, in one pass over the residents.
    fn arrange_all(&mut self) {
        let mut changed = false;
        for tenant in self.tenants.all() {
            let has_own = self.tenants[tenant].queue != SHARED;
            let wants_own = self.tenants.quota(tenant).is_some() && self.tenants[tenant].usage > 0;
            if has_own == wants_own {
                continue;
            }
            changed = true;
            let to = if wants_own { self.own_queue() } else { SHARED };
            let from = std::mem::replace(&mut self.tenants[tenant].queue, to);
            if from != SHARED {
                self.free.push(from);
            }
        }
        if !changed {
            return;
        }
        let nodes = self.queues.nodes().map(|(slot, node)| (node.extra.stamp, slot, node.extra.tenant));
        let mut all: Vec<(u64, Slot, u32)> = nodes.collect();
        all.sort_unstable();
        for (_, slot, tenant) in all {
            self.queues.append(slot, self.tenants[tenant].queue);
        }
    }

    /// Whether tenants within their quotas give to the one that asks for `want`.
    fn others_give(&self, want: u64) -> bool {
        let Some(id) = self.asker else { return true };
        let (quota, usage, promised) = match self.tenants.find(id) {
            Some(tenant) => (self.tenants.quota(tenant), self.tenants[tenant].usage, 0),
            None => (self.tenants.default_quota(), 0, self.tenants.default_quota().unwrap_or(0)),
        };
        let more = want.saturating_add_signed(self.aside);
        quota.is_some_and(|quota| usage.saturating_add(more) <= quota)
            && self.tenants.promised().saturating_add(promised) > self.capacity
    }

    /// Proposes a tenant's entries until `total` reaches `want` or `most` of them are proposed.
    fn drain(&mut self, queue: usize, most: u64, want: u64, total: &mut u64, out: &mut Vec<Slot>) {
        let goal = want.min(total.saturating_add(most));
        self.queues.drain(queue, goal, total, out);
    }
}

impl EvictionPolicy for IsolatedLru {
    fn name(&self) -> &'static str {
        "IsolatedLRU"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.capacity = weight;
    }

    fn insert(&mut self, entry: Entry, _: &Access) {
        self.remove(entry.slot, Removal::Deleted);
        let tenant = self.tenants.number(entry.tenant);
        if self.tenants[tenant].queue == SHARED && self.tenants.quota(tenant).is_some() {
            // It holds nothing yet: there is nothing to move.
            self.tenants[tenant].queue = self.own_queue();
        }
        let extra = Extra { stamp: self.tick(), tenant };
        self.queues.insert(&entry, self.tenants[tenant].queue, extra);
        self.tenants.add(tenant, entry.weight.get());
    }

    fn touch(&mut self, slot: Slot, _: &Access) {
        let stamp = self.tick();
        if let Some(node) = self.queues.get_mut(slot) {
            node.extra.stamp = stamp;
            let queue = node.queue as usize;
            self.queues.append(slot, queue);
        }
    }

    fn missed(&mut self, _: u64, _: &Access) {}

    fn pin(&mut self, slot: Slot) {
        self.queues.pin(slot);
    }

    fn unpin(&mut self, slot: Slot) {
        self.queues.unpin(slot);
    }

    fn remove(&mut self, slot: Slot, _: Removal) {
        let Some(node) = self.queues.remove(slot) else { return };
        let tenant = node.extra.tenant;
        self.tenants.sub(tenant, node.weight);
        if self.tenants[tenant].usage == 0 {
            let queue = std::mem::replace(&mut self.tenants[tenant].queue, SHARED);
            if queue != SHARED {
                self.free.push(queue);
            }
            self.tenants.forget(tenant);
        }
    }

    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let mut total = 0;
        let asker = self.asker.and_then(|id| self.tenants.find(id));
        let own = asker.filter(|&tenant| self.tenants[tenant].queue != SHARED);
        // What the asker has given already because it is above its quota as it is.
        let mut given = 0;
        self.queues.rewind(SHARED);
        let mut over = self.tenants.furthest_above(None);
        while let Some(tenant) = over.filter(|_| total < want) {
            let (queue, before) = (self.tenants[tenant].queue, total);
            self.queues.rewind(queue);
            self.drain(queue, self.tenants.excess(tenant), want, &mut total, out);
            if own == Some(tenant) {
                given = total - before;
            }
            over = self.tenants.furthest_above(Some(tenant));
        }
        if let Some(tenant) = own {
            let queue = self.tenants[tenant].queue;
            // The walk over what is above its quota goes on where it stopped.
            if self.tenants.excess(tenant) == 0 {
                self.queues.rewind(queue);
            }
            let more = want.saturating_add_signed(self.aside);
            let gives = self.tenants.excess_with(tenant, more).saturating_sub(given);
            self.drain(queue, gives, want, &mut total, out);
        }
        self.drain(SHARED, u64::MAX, want, &mut total, out);
        if total >= want {
            return total;
        }
        let givers = if self.others_give(want) { self.tenants.by_use() } else { own.into_iter().collect() };
        for tenant in givers {
            let queue = self.tenants[tenant].queue;
            if self.tenants.excess(tenant) == 0 && own != Some(tenant) {
                self.queues.rewind(queue);
            }
            self.drain(queue, u64::MAX, want, &mut total, out);
        }
        total
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        Some(self)
    }

    fn quotas_mut(&mut self) -> Option<&mut dyn Quotas> {
        Some(self)
    }

    fn memory(&self) -> usize {
        self.queues.memory() + self.free.capacity() * size_of::<usize>() + self.tenants.memory()
    }
}

impl Quotas for IsolatedLru {
    fn asks(&mut self, tenant: Option<TenantId>, aside: i64) {
        (self.asker, self.aside) = (tenant, aside);
    }

    fn set(&mut self, tenant: TenantId, weight: u64) {
        let tenant = self.tenants.number(tenant);
        self.tenants.set_quota(tenant, Some(weight));
        self.arrange(tenant);
    }

    fn delete(&mut self, tenant: TenantId) -> bool {
        let Some(tenant) = self.tenants.find(tenant).filter(|&t| self.tenants[t].own_quota.is_some()) else {
            return false;
        };
        self.tenants.set_quota(tenant, None);
        self.arrange(tenant);
        self.tenants.forget(tenant);
        true
    }

    fn list(&self) -> Vec<(TenantId, u64)> {
        self.tenants.list(|tenant| tenant.own_quota)
    }

    fn set_default(&mut self, weight: Option<u64>) {
        self.tenants.set_default(weight);
        self.arrange_all();
    }

    fn usage(&self) -> Vec<(TenantId, u64)> {
        self.tenants.list(|tenant| (tenant.usage > 0).then_some(tenant.usage))
    }
}
