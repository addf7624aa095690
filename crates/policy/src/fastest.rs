//! Loads from where they are soonest.

use std::time::Duration;

use kvstrata_core::{KeyMask, ObjectKey};

use crate::{Admit, LoadTime, Plan, PrefetchPolicy, TierView};

/// `fastest` and `fastest_retain`: every key is loaded from the tier that is expected to have it in L1 first, counting
/// what this batch already asks of each tier. So a batch is spread over tiers that are about as fast, the front of the
/// prefix comes first, and a slow tier helps only as far as it is done before the fast ones are. `default` and `retain`
/// leave every key to the first tier that has it.
///
/// A tier whose time is not known is taken to be as fast as the best that is known, so that it is tried. Tiers that are
/// not expected to answer within the caller's time are passed over: what can arrive in time is not slowed down by what
/// cannot.
///
/// ```
/// use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, ObjectKey};
/// use kvstrata_policy::{prefetch_by_name, L2Id, LoadTime, TierView};
/// use std::time::Duration;
///
/// let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
/// let keys: Vec<_> = (0..6).map(|n| ObjectKey::new(&scope, ChunkHash::from([n; 32]))).collect();
/// let (none, all) = (KeyMask::none(6), KeyMask::all(6));
/// let tier = |id, name, first, each| TierView {
///     id: L2Id(id), name, weight: 1, stores: true, loads: true, found: &all,
///     load_time: Some(LoadTime { first: Duration::from_millis(first), each: Duration::from_millis(each) }),
/// };
/// let tiers = [tier(0, "s3", 30, 1), tier(1, "fs", 10, 10)];
/// let fastest = prefetch_by_name("fastest")?;
/// let (s3, fs) = (Some(L2Id(0)), Some(L2Id(1)));
/// assert_eq!(fastest.plan(&keys, &none, &tiers, None).sources, [fs, fs, s3, fs, s3, s3]);
/// let soon = Some(Duration::from_millis(20));
/// assert_eq!(fastest.plan(&keys, &none, &tiers, soon).sources, [fs, fs, None, None, None, None]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Fastest {
    /// What becomes of what is loaded: this is all in which the two names differ.
    pub admit: Admit,
}

impl PrefetchPolicy for Fastest {
    fn name(&self) -> &'static str {
        match self.admit {
            Admit::Temporary => "fastest",
            Admit::Retained => "fastest_retain",
        }
    }

    fn plan(
        &self,
        keys: &[ObjectKey],
        resident: &KeyMask,
        tiers: &[TierView<'_>],
        within: Option<Duration>,
    ) -> Plan {
        let known = tiers.iter().filter(|t| t.loads).filter_map(|t| t.load_time);
        let best = known
            .reduce(|a, b| LoadTime { first: a.first.min(b.first), each: a.each.min(b.each) })
            .unwrap_or_default();
        let mut given = vec![0; tiers.len()];
        let mut source = |i| {
            let having = tiers.iter().enumerate().filter(|(_, t)| t.loads && t.found.get(i));
            let timed = having.map(|(at, t)| (at, t, t.load_time.unwrap_or(best).behind(given[at])));
            let (at, tier, _) = timed
                .filter(|(_, t, time)| t.load_time.is_none() || within.is_none_or(|within| *time <= within))
                .min_by_key(|(at, _, time)| (*time, given[*at]))?;
            given[at] += 1;
            Some(tier.id)
        };
        let sources = (0..keys.len()).map(|i| if resident.get(i) { None } else { source(i) }).collect();
        Plan { sources, admit: self.admit }
    }

    fn admit(&self) -> Admit {
        self.admit
    }
}
