//! What another process holds.
//!
//! A guard in this process ends when its holder drops it. A process that maps our memory cannot drop anything here, and
//! may die, stall or come back late. So what it holds is a *lease*: a guard kept on its behalf, with an owner and a time
//! limit. A lease that ran out is not given back to the allocator, since its owner may still be writing: it is
//! quarantined until the owner is known to be gone, and whatever the owner says about it meanwhile is refused.

use std::collections::BTreeMap;
use std::fmt;

use kvstrata_core::{Error, ErrorKind, Instant, Result};

/// Who holds leases: one process or session, as the caller numbers them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OwnerId(pub u64);

/// One lease; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(pub u64);

struct Lease<T> {
    owner: OwnerId,
    expires: Instant,
    lapsed: bool,
    held: T,
}

/// The leases on guards of type `T`.
pub struct Leases<T> {
    leases: BTreeMap<LeaseId, Lease<T>>,
    next: u64,
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        Self { leases: BTreeMap::new(), next: 1 }
    }
}

impl<T> Leases<T> {
    /// Keeps `held` for `owner` until `expires`.
    pub fn grant(&mut self, owner: OwnerId, expires: Instant, held: T) -> LeaseId {
        let id = LeaseId(self.next);
        self.next += 1;
        self.leases.insert(id, Lease { owner, expires, lapsed: false, held });
        id
    }

    /// The owner is finished with a lease: its guard, for the caller to commit or drop.
    ///
    /// # Errors
    /// `NotFound` if there is no such lease of this owner; `TimedOut` if it ran out: what was written under it is not to
    /// be trusted, and the memory stays in quarantine.
    pub fn settle(&mut self, owner: OwnerId, id: LeaseId, now: Instant) -> Result<T> {
        const OP: &str = "settle lease";
        let lease = self.leases.get_mut(&id).filter(|l| l.owner == owner);
        let lease =
            lease.ok_or_else(|| Error::new(ErrorKind::NotFound, OP, "no such lease").with("lease", id.0))?;
        lease.lapsed |= lease.expires <= now;
        if lease.lapsed {
            return Err(Error::new(ErrorKind::TimedOut, OP, "the lease ran out").with("lease", id.0));
        }
        Ok(self.leases.remove(&id).expect("it was there").held)
    }

    /// Marks what ran out by `now`; how many leases newly did. Frees nothing.
    pub fn lapse(&mut self, now: Instant) -> usize {
        let expired = self.leases.values_mut().filter(|l| !l.lapsed && l.expires <= now);
        expired.map(|l| l.lapsed = true).count()
    }

    /// Marks all that an owner holds, as if it had run out now; how many leases newly did. Frees nothing.
    pub fn revoke(&mut self, owner: OwnerId) -> usize {
        let good = self.leases.values_mut().filter(|l| !l.lapsed && l.owner == owner);
        good.map(|l| l.lapsed = true).count()
    }

    /// The owner is provably gone: all its guards, lapsed ones included, for the caller to drop.
    pub fn owner_gone(&mut self, owner: OwnerId) -> Vec<T> {
        let ids: Vec<LeaseId> =
            self.leases.iter().filter(|(_, l)| l.owner == owner).map(|(id, _)| *id).collect();
        ids.iter().map(|id| self.leases.remove(id).expect("it was there").held).collect()
    }

    /// When each lease ends or ended, and its guard.
    pub fn iter(&self) -> impl Iterator<Item = (Instant, &T)> {
        self.leases.values().map(|l| (l.expires, &l.held))
    }

    /// Leases that are good.
    pub fn live(&self) -> usize {
        self.leases.len() - self.quarantined()
    }

    /// Leases that ran out and whose owner is not known to be gone.
    pub fn quarantined(&self) -> usize {
        self.leases.values().filter(|l| l.lapsed).count()
    }
}

impl<T> fmt::Debug for Leases<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leases({} live, {} quarantined)", self.live(), self.quarantined())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    const A: OwnerId = OwnerId(1);
    const B: OwnerId = OwnerId(2);

    fn at(n: u64) -> Instant {
        Instant::from_nanos(n)
    }

    #[test]
    fn a_lease_in_time_gives_its_guard_back_once() {
        let mut l = Leases::default();
        let id = l.grant(A, at(10), "guard");
        assert_eq!(l.settle(B, id, at(1)).unwrap_err().kind(), ErrorKind::NotFound, "not the owner");
        assert_eq!(l.settle(A, id, at(9)).unwrap(), "guard");
        assert_eq!(l.settle(A, id, at(9)).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_lapsed_lease_is_quarantined_until_its_owner_is_gone_and_never_comes_back() {
        let guard = Rc::new(());
        let mut l = Leases::default();
        let late = l.grant(A, at(10), Rc::clone(&guard));
        l.grant(B, at(10), Rc::clone(&guard));
        l.grant(A, at(99), Rc::clone(&guard));
        assert_eq!(l.lapse(at(10)), 2);
        assert_eq!(l.lapse(at(11)), 0, "told once");
        assert_eq!(l.settle(A, late, at(11)).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(
            (l.live(), l.quarantined(), Rc::strong_count(&guard)),
            (1, 2, 4),
            "nothing is freed by time"
        );
        assert_eq!(l.owner_gone(A).len(), 2);
        assert_eq!(
            (l.live(), l.quarantined(), Rc::strong_count(&guard)),
            (0, 1, 2),
            "the other owner's stays"
        );
    }

    #[test]
    fn what_is_revoked_is_void_and_not_freed() {
        let guard = Rc::new(());
        let mut l = Leases::default();
        let (mine, other) = (l.grant(A, at(9), Rc::clone(&guard)), l.grant(B, at(9), Rc::clone(&guard)));
        assert_eq!((l.revoke(A), l.revoke(A)), (1, 0));
        assert_eq!((Rc::strong_count(&guard), l.quarantined()), (3, 1));
        assert_eq!(l.settle(A, mine, at(1)).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(l.settle(B, other, at(1)).is_ok());
    }

    #[test]
    fn settling_late_is_refused_even_if_nobody_looked_at_the_clock() {
        let mut l = Leases::default();
        let id = l.grant(A, at(10), ());
        assert_eq!(l.settle(A, id, at(10)).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(l.quarantined(), 1);
    }
}
