//! A panic in a policy stays in the policy.

use crate::{Access, Admission, Entry, EvictionPolicy, Offer, Quotas, Removal, Slot, TenantId};
use std::any::Any;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// Somebody's policy, called so that its panics end with it: the first one is kept as its [`fault`](Self::fault), and from
/// then on it is never called again.
///
/// A policy that panicked is in an unknown state, so nothing it says can be believed: a faulty eviction policy proposes no
/// victims and a faulty admission rule admits nothing. Owners look at the fault and take their tier out of service.
///
/// ```
/// use kvstrata_evict::Contained;
/// let mut policy: Contained<dyn Fn(u32) -> u32> = Contained::new(Box::new(|n| 10 / n));
/// assert_eq!(policy.call(|p| p(5)), Some(2));
/// assert_eq!(policy.call(|p| p(0)), None);
/// assert!(policy.fault().unwrap().contains("divide by zero"));
/// assert_eq!(policy.call(|p| p(5)), None, "it is not asked again");
/// ```
///
/// Under `panic = "abort"` nothing can be contained.
#[derive(Debug)]
pub struct Contained<P: ?Sized> {
    policy: Box<P>,
    fault: OnceLock<String>,
}

impl<P: ?Sized> Contained<P> {
    /// Around a policy.
    pub fn new(policy: Box<P>) -> Self {
        Self { policy, fault: OnceLock::new() }
    }

    /// What it panicked with or was condemned for, if it was.
    pub fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// Asks it; `None` if it panicked, now or earlier.
    pub fn call<R>(&self, ask: impl FnOnce(&P) -> R) -> Option<R> {
        if self.fault.get().is_some() {
            return None;
        }
        let policy = &*self.policy;
        catch_unwind(AssertUnwindSafe(|| ask(policy))).map_err(|panic| self.failed(&*panic)).ok()
    }

    /// Asks it with leave to change; `None` if it panicked, now or earlier.
    pub fn call_mut<R>(&mut self, ask: impl FnOnce(&mut P) -> R) -> Option<R> {
        if self.fault.get().is_some() {
            return None;
        }
        let policy = &mut *self.policy;
        catch_unwind(AssertUnwindSafe(|| ask(policy))).map_err(|panic| self.failed(&*panic)).ok()
    }

    /// Ends it without a panic of its own: its owner found that it broke its obligations.
    pub fn condemn(&self, why: &str) {
        drop(self.fault.set(why.into()));
    }

    fn failed(&self, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        // The first one tells the most; a later one can only come from a call that was under way.
        drop(self.fault.set(text.unwrap_or("a panic without a text").into()));
    }
}

impl EvictionPolicy for Contained<dyn EvictionPolicy> {
    fn name(&self) -> &'static str {
        self.call(|p| p.name()).unwrap_or("faulty")
    }
    fn set_capacity(&mut self, weight: u64) {
        self.call_mut(|p| p.set_capacity(weight));
    }
    fn insert(&mut self, entry: Entry, cx: &Access) {
        self.call_mut(|p| p.insert(entry, cx));
    }
    fn touch(&mut self, slot: Slot, cx: &Access) {
        self.call_mut(|p| p.touch(slot, cx));
    }
    fn missed(&mut self, print: u64, cx: &Access) {
        self.call_mut(|p| p.missed(print, cx));
    }
    fn pin(&mut self, slot: Slot) {
        self.call_mut(|p| p.pin(slot));
    }
    fn unpin(&mut self, slot: Slot) {
        self.call_mut(|p| p.unpin(slot));
    }
    fn remove(&mut self, slot: Slot, why: Removal) {
        self.call_mut(|p| p.remove(slot, why));
    }
    /// Nothing that a panicking call had appended is kept.
    fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
        let before = out.len();
        self.call_mut(|p| p.victims(want, out)).unwrap_or_else(|| {
            out.truncate(before);
            0
        })
    }
    fn quotas(&self) -> Option<&dyn Quotas> {
        self.call(|p| p.quotas().is_some())?.then_some(self)
    }
    fn quotas_mut(&mut self) -> Option<&mut dyn Quotas> {
        self.quotas().is_some().then_some(self)
    }
    fn memory(&self) -> usize {
        self.call(|p| p.memory()).unwrap_or(0)
    }
}

impl Quotas for Contained<dyn EvictionPolicy> {
    fn asks(&mut self, tenant: Option<TenantId>, aside: i64) {
        self.call_mut(|p| p.quotas_mut().map(|q| q.asks(tenant, aside)));
    }
    fn set(&mut self, tenant: TenantId, weight: u64) {
        self.call_mut(|p| p.quotas_mut().map(|q| q.set(tenant, weight)));
    }
    fn delete(&mut self, tenant: TenantId) -> bool {
        self.call_mut(|p| p.quotas_mut().is_some_and(|q| q.delete(tenant))).unwrap_or(false)
    }
    fn list(&self) -> Vec<(TenantId, u64)> {
        self.call(|p| p.quotas().map(Quotas::list)).flatten().unwrap_or_default()
    }
    fn set_default(&mut self, weight: Option<u64>) {
        self.call_mut(|p| p.quotas_mut().map(|q| q.set_default(weight)));
    }
    fn usage(&self) -> Vec<(TenantId, u64)> {
        self.call(|p| p.quotas().map(Quotas::usage)).flatten().unwrap_or_default()
    }
}

impl Admission for Contained<dyn Admission> {
    fn name(&self) -> &'static str {
        self.call(|p| p.name()).unwrap_or("faulty")
    }
    fn set_capacity(&mut self, weight: u64) {
        self.call_mut(|p| p.set_capacity(weight));
    }
    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access) {
        self.call_mut(|p| p.asked(print, weight, cx));
    }
    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool {
        self.call_mut(|p| p.admits(offer, cx)).unwrap_or(false)
    }
    fn memory(&self) -> usize {
        self.call(|p| p.memory()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IsolatedLru, Lru};

    /// LRU until it is asked for victims.
    #[derive(Debug, Default)]
    struct Rotten(Lru);

    impl EvictionPolicy for Rotten {
        fn name(&self) -> &'static str {
            "rotten"
        }
        fn set_capacity(&mut self, weight: u64) {
            self.0.set_capacity(weight);
        }
        fn insert(&mut self, entry: Entry, cx: &Access) {
            self.0.insert(entry, cx);
        }
        fn touch(&mut self, slot: Slot, cx: &Access) {
            self.0.touch(slot, cx);
        }
        fn missed(&mut self, print: u64, cx: &Access) {
            self.0.missed(print, cx);
        }
        fn pin(&mut self, slot: Slot) {
            self.0.pin(slot);
        }
        fn unpin(&mut self, slot: Slot) {
            self.0.unpin(slot);
        }
        fn remove(&mut self, slot: Slot, why: Removal) {
            self.0.remove(slot, why);
        }
        fn victims(&mut self, want: u64, out: &mut Vec<Slot>) -> u64 {
            self.0.victims(want, out);
            panic!("rotten to the core");
        }
        fn memory(&self) -> usize {
            self.0.memory()
        }
    }

    fn entry(slot: u32) -> Entry {
        let weight = NonZeroU32::MIN;
        Entry { slot: Slot(slot), print: slot.into(), weight, parent: None, tenant: TenantId(slot) }
    }

    #[test]
    fn a_panic_ends_the_policy_and_nothing_else() {
        let mut policy: Contained<dyn EvictionPolicy> = Contained::new(Box::<Rotten>::default());
        policy.insert(entry(0), &Access::default());
        assert_eq!((policy.name(), policy.fault()), ("rotten", None));
        let mut out = vec![Slot(7)];
        assert_eq!(policy.victims(1, &mut out), 0);
        assert_eq!(out, [Slot(7)], "what it had appended is taken back");
        assert_eq!(policy.fault(), Some("rotten to the core"));
        policy.insert(entry(1), &Access::default());
        assert_eq!((policy.name(), policy.memory()), ("faulty", 0));
    }

    #[test]
    fn quotas_are_those_of_the_policy_inside() {
        let mut plain: Contained<dyn EvictionPolicy> = Contained::new(Box::<Lru>::default());
        assert!(plain.quotas().is_none() && plain.quotas_mut().is_none());
        let mut policy: Contained<dyn EvictionPolicy> = Contained::new(Box::<IsolatedLru>::default());
        let quotas = policy.quotas_mut().expect("it keeps tenants apart");
        quotas.set(TenantId(3), 8);
        assert_eq!(quotas.list(), [(TenantId(3), 8)]);
        policy.insert(entry(3), &Access::default());
        assert_eq!(policy.quotas().expect("as before").usage(), [(TenantId(3), 1)]);
        assert!(policy.quotas_mut().expect("as before").delete(TenantId(3)));
    }
}
