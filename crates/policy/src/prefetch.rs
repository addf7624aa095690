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
    /// It stays like a stored one, until it is evicted. Counts against the cache budget. Chunks stay as they arrive, each for
    /// itself: where an earlier one of the chain failed to load, what stays has a gap before it, and L2 still has the rest.
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

/// `default` and `retain`: the first tier in order that has a key serves it. Under `default` what is loaded is temporary,
/// under `retain` it stays in L1.
#[derive(Clone, Copy, Debug)]
pub struct FirstTier {
    /// What becomes of what is loaded.
    pub admit: Admit,
}

impl PrefetchPolicy for FirstTier {
    fn name(&self) -> &'static str {
        match self.admit {
            Admit::Temporary => "default",
            Admit::Retained => "retain",
        }
    }

    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        _within: Option<Duration>,
    ) -> Plan {
        let source = |i| tiers.iter().find(|t| t.loads && t.found.get(i)).map(|t| t.id);
        let sources = (0..keys.len()).map(|i| if resident.get(i) { None } else { source(i) }).collect();
        Plan { sources, admit: self.admit }
    }

    fn admit(&self) -> Admit {
        self.admit
    }
}
