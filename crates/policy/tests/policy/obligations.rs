//! The obligations of the two traits, for every policy there is.

use std::time::Duration;

use kvstrata_core::KeyMask;
use kvstrata_policy::{
    L2Id, LoadTime, PREFETCH_NAMES, STORE_NAMES, TierView, prefetch_by_name, store_by_name,
};
use proptest::prelude::*;

use crate::keys;

const TIERS: [&str; 5] = ["fs", "gds", "redis", "s3", "mooncake"];

fn mask(n: usize, bits: u64) -> KeyMask {
    (0..n).map(|i| bits >> i & 1 == 1).collect()
}

fn millis() -> impl Strategy<Value = Duration> {
    (0u64..20).prop_map(Duration::from_millis)
}

fn load_time() -> impl Strategy<Value = Option<LoadTime>> {
    prop::option::of((millis(), millis()).prop_map(|(first, each)| LoadTime { first, each }))
}

proptest! {
    #[test]
    fn prefetch_1_to_5(
        n in 0usize..40,
        resident: u64,
        tiers in prop::collection::vec((any::<u64>(), any::<bool>(), load_time()), 0..4),
        within in prop::option::of(millis()),
    ) {
        let (keys, resident) = (keys(n), mask(n, resident));
        let found: Vec<KeyMask> = tiers.iter().map(|(bits, ..)| mask(n, *bits)).collect();
        let view: Vec<TierView<'_>> = tiers.iter().zip(&found).enumerate().map(|(i, ((_, loads, load_time), found))| TierView {
            id: L2Id(i as u32), name: TIERS[i], weight: 1, stores: true, loads: *loads, found, load_time: *load_time,
        }).collect();
        for name in PREFETCH_NAMES {
            let policy = prefetch_by_name(name).unwrap();
            let plan = policy.plan(&keys, &resident, &view, within);
            prop_assert_eq!(&plan, &policy.plan(&keys, &resident, &view, within), "obligation 1");
            prop_assert_eq!(plan.admit, policy.admit());
            prop_assert_eq!(plan.sources.len(), n, "obligation 2");
            for (i, source) in plan.sources.iter().enumerate() {
                let serving = |t: &TierView<'_>| t.loads && t.found.get(i);
                // How many of the batch a tier has to load before this key.
                let before = |t: &TierView<'_>| plan.sources[..i].iter().filter(|s| **s == Some(t.id)).count();
                let late = |t: &TierView<'_>| within.zip(t.load_time).is_some_and(|(w, l)| l.behind(before(t)) > w);
                match source {
                    Some(id) => {
                        prop_assert!(view.iter().any(|t| t.id == *id && serving(t)), "obligation 3");
                        prop_assert!(!resident.get(i), "obligation 4");
                    }
                    None => prop_assert!(
                        resident.get(i) || view.iter().filter(|t| serving(t)).all(late),
                        "obligation 5"
                    ),
                }
            }
        }
    }

    #[test]
    fn store_1_to_3(n in 0usize..40, takes in prop::collection::vec((any::<bool>(), 0u32..4), 0..5), stored: u64) {
        let (keys, stored, none) = (keys(n), mask(n, stored), KeyMask::none(n));
        let view: Vec<TierView<'_>> = takes.iter().enumerate().map(|(i, (stores, weight))| TierView {
            id: L2Id(i as u32), name: TIERS[i], weight: *weight, stores: *stores, loads: true, found: &none, load_time: None,
        }).collect();
        for name in STORE_NAMES {
            let policy = store_by_name(name).unwrap();
            let (mut out, mut again) = (Vec::new(), Vec::new());
            policy.targets(&keys, &view, &mut out);
            policy.targets(&keys, &view, &mut again);
            prop_assert_eq!(&out, &again, "obligation 1");
            prop_assert_eq!(policy.release(&keys, &stored), policy.release(&keys, &stored), "obligation 1");
            for (at, (id, mask)) in out.iter().enumerate() {
                prop_assert!(view.iter().any(|t| t.id == *id && t.stores), "obligation 2");
                prop_assert!(out[..at].iter().all(|(other, _)| other != id), "obligation 2: each tier at most once");
                prop_assert_eq!(mask.len(), n, "obligation 2");
            }
            let mut left = policy.release(&keys, &stored);
            left.subtract(&stored);
            prop_assert!(left.is_clear(), "obligation 3");
        }
    }
}
