//! From where a chunk is loaded, and what becomes of it in L1.

use std::fmt::Debug;
use std::time::Duration;

use kvstrata_core::{KeyMask, ObjectKey};

use crate::{L2Id, TierView};

/// What becomes of a loaded chunk in L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admit {
    /// It is there for its readers only and goes with the last of them. Counts against the staging budget.
    Temporary,
    /// It stays like a stored one, until it is evicted. Counts against the cache budget.
    Retained,
}

/// At most one source per key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// One per key of the batch; `None` where the key is resident, or nobody has it.
    pub sources: Vec<Option<L2Id>>,
    /// What becomes of what is loaded.
    pub admit: Admit,
}

/// Decides the source of each missing key.
///
/// Obligations: (1) pure; (2) `sources` is as long as `keys`; (3) a source is a tier of the view that serves loads and
/// said it has the key; (4) a resident key has no source; (5) a key that some serving tier has, has a source, unless
/// `within` is given and too short for each of those tiers by its own load time (a tier whose load time is not known is in
/// time).
pub trait PrefetchPolicy: Send + Sync + Debug + 'static {
    /// The policy's name as configured.
    fn name(&self) -> &'static str;
    /// Plans the loads of a batch. `within` is how long the caller can wait for it, if there is a limit.
    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        within: Option<Duration>,
    ) -> Plan;
    /// What becomes of what a plan of this policy loads; the same as [`Plan::admit`].
    fn admit(&self) -> Admit;
}

/// `default`: the first tier in order that has a key serves it, and what is loaded is temporary.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefetchDefault;

/// `retain`: like `default`, but what is loaded stays in L1.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrefetchRetain;

impl PrefetchPolicy for PrefetchDefault {
    fn name(&self) -> &'static str {
        "default"
    }

    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        _within: Option<Duration>,
    ) -> Plan {
        Plan { sources: first_that_has(keys.len(), resident, tiers), admit: self.admit() }
    }

    fn admit(&self) -> Admit {
        Admit::Temporary
    }
}

impl PrefetchPolicy for PrefetchRetain {
    fn name(&self) -> &'static str {
        "retain"
    }

    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        _within: Option<Duration>,
    ) -> Plan {
        Plan { sources: first_that_has(keys.len(), resident, tiers), admit: self.admit() }
    }

    fn admit(&self) -> Admit {
        Admit::Retained
    }
}

fn first_that_has(keys: usize, resident: &KeyMask, tiers: &[TierView<'_>]) -> Vec<Option<L2Id>> {
    let source = |i| tiers.iter().find(|t| t.loads && t.found.get(i)).map(|t| t.id);
    (0..keys).map(|i| if resident.get(i) { None } else { source(i) }).collect()
}
