//! Who holds how much, and who is above its quota.

use crate::TenantId;
use crate::ghosts::mix;
use hashbrown::HashTable;
use std::ops::{Index, IndexMut};

#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant {
    id: TenantId,
    pub(crate) usage: u64,
    pub(crate) own_quota: Option<u64>,
    /// The policy's queue for it.
    pub(crate) queue: usize,
    /// Its class and its place there, if it is above its quota.
    above: Option<(usize, usize)>,
}

/// Tenants by a small number, as long as they hold anything or have a quota.
#[derive(Debug)]
pub(crate) struct Tenants {
    tenants: Vec<Tenant>,
    free: Vec<u32>,
    index: HashTable<u32>,
    default: Option<u64>,
    /// Who is above its quota, by the number of bits of the excess: so the furthest above is found without a search,
    /// up to a factor of two.
    above: [Vec<u32>; 65],
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            tenants: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            default: None,
            above: [const { Vec::new() }; 65],
        }
    }
}

impl Index<u32> for Tenants {
    type Output = Tenant;
    fn index(&self, tenant: u32) -> &Tenant {
        &self.tenants[tenant as usize]
    }
}

impl IndexMut<u32> for Tenants {
    fn index_mut(&mut self, tenant: u32) -> &mut Tenant {
        &mut self.tenants[tenant as usize]
    }
}

impl Tenants {
    pub(crate) fn find(&self, id: TenantId) -> Option<u32> {
        self.index.find(mix(id.0.into()), |&n| self[n].id == id).copied()
    }

    /// The tenant's number; a new one if it has none.
    pub(crate) fn number(&mut self, id: TenantId) -> u32 {
        if let Some(known) = self.find(id) {
            return known;
        }
        let tenant = Tenant { id, ..Tenant::default() };
        let number = match self.free.pop() {
            Some(number) => {
                self[number] = tenant;
                number
            }
            None => {
                self.tenants.push(tenant);
                self.tenants.len() as u32 - 1
            }
        };
        let tenants = &self.tenants;
        self.index.insert_unique(mix(id.0.into()), number, |&n| mix(tenants[n as usize].id.0.into()));
        number
    }

    /// Gives the number back if the tenant holds nothing and has no quota of its own.
    pub(crate) fn forget(&mut self, tenant: u32) {
        let Tenant { id, usage, own_quota, .. } = self[tenant];
        if usage > 0 || own_quota.is_some() {
            return;
        }
        if let Ok(found) = self.index.find_entry(mix(id.0.into()), |&n| n == tenant) {
            found.remove();
            self.free.push(tenant);
        }
    }

    pub(crate) fn default_quota(&self) -> Option<u64> {
        self.default
    }

    /// All quotas together.
    pub(crate) fn promised(&self) -> u64 {
        self.index.iter().filter_map(|&tenant| self.quota(tenant)).fold(0, u64::saturating_add)
    }

    /// The quota that applies to a tenant.
    pub(crate) fn quota(&self, tenant: u32) -> Option<u64> {
        self[tenant].own_quota.or(self.default)
    }

    /// How far above its quota a tenant is.
    pub(crate) fn excess(&self, tenant: u32) -> u64 {
        self.excess_with(tenant, 0)
    }

    /// How far above its quota a tenant would be with so much more.
    pub(crate) fn excess_with(&self, tenant: u32, more: u64) -> u64 {
        let usage = self[tenant].usage.saturating_add(more);
        self.quota(tenant).map_or(0, |quota| usage.saturating_sub(quota))
    }

    pub(crate) fn add(&mut self, tenant: u32, weight: u32) {
        self[tenant].usage += u64::from(weight);
        self.classify(tenant);
    }

    pub(crate) fn sub(&mut self, tenant: u32, weight: u32) {
        self[tenant].usage -= u64::from(weight);
        self.classify(tenant);
    }

    pub(crate) fn set_quota(&mut self, tenant: u32, quota: Option<u64>) {
        self[tenant].own_quota = quota;
        self.classify(tenant);
    }

    pub(crate) fn set_default(&mut self, quota: Option<u64>) {
        self.default = quota;
        self.all().into_iter().for_each(|tenant| self.classify(tenant));
    }

    fn classify(&mut self, tenant: u32) {
        let class = (64 - self.excess(tenant).leading_zeros()) as usize;
        if self[tenant].above.map_or(0, |(class, _)| class) == class {
            return;
        }
        if let Some((class, place)) = self[tenant].above.take() {
            self.above[class].swap_remove(place);
            if let Some(&moved) = self.above[class].get(place) {
                self[moved].above = Some((class, place));
            }
        }
        if class > 0 {
            self[tenant].above = Some((class, self.above[class].len()));
            self.above[class].push(tenant);
        }
    }

    /// The tenant that is the furthest above its quota, or the next after one.
    pub(crate) fn furthest_above(&self, after: Option<u32>) -> Option<u32> {
        let (class, place) = match after {
            Some(tenant) => self[tenant].above.map(|(class, place)| (class, place + 1))?,
            None => (self.above.len() - 1, 0),
        };
        let rest = self.above[..class].iter().rev();
        self.above[class].get(place).or_else(|| rest.filter_map(|class| class.first()).next()).copied()
    }

    /// All numbers in use, in no particular but a fixed order.
    pub(crate) fn all(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.index.iter().copied().collect();
        all.sort_unstable();
        all
    }

    /// Those with a quota, first those under the default one, and then by how much of it they use, the fullest first.
    pub(crate) fn by_use(&self) -> Vec<u32> {
        let mut all = self.all();
        all.retain(|&tenant| self[tenant].usage > 0 && self.quota(tenant).is_some());
        let full = |tenant: u32| {
            (u128::from(self[tenant].usage) << 32) / u128::from(self.quota(tenant).unwrap_or(1).max(1))
        };
        all.sort_by_key(|&tenant| {
            (self[tenant].own_quota.is_some(), std::cmp::Reverse(full(tenant)), tenant)
        });
        all
    }

    /// What `value` says of each tenant, in the order of their ids.
    pub(crate) fn list(&self, value: impl Fn(&Tenant) -> Option<u64>) -> Vec<(TenantId, u64)> {
        let known = self.index.iter().map(|&number| &self[number]);
        let mut list: Vec<_> = known.filter_map(|tenant| Some((tenant.id, value(tenant)?))).collect();
        list.sort_unstable();
        list
    }

    pub(crate) fn memory(&self) -> usize {
        self.tenants.capacity() * size_of::<Tenant>()
            + (self.free.capacity() + self.above.iter().map(Vec::capacity).sum::<usize>()) * 4
            + self.index.allocation_size()
    }
}
