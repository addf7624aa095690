//! The obligations of the two traits, for every policy there is.

use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, ObjectKey};
use kvstrata_policy::{L2Id, PREFETCH_NAMES, STORE_NAMES, TierView, prefetch_by_name, store_by_name};
use proptest::prelude::*;

fn keys(n: usize) -> Vec<ObjectKey> {
    let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
    (0..n).map(|i| ObjectKey::new(&scope, ChunkHash::new(&(i as u32).to_le_bytes()).unwrap())).collect()
}

fn mask(n: usize, bits: u64) -> KeyMask {
    (0..n).map(|i| bits >> i & 1 == 1).collect()
}

proptest! {
    #[test]
    fn prefetch_2_to_5(n in 0usize..40, resident: u64, tiers in prop::collection::vec((any::<u64>(), any::<bool>()), 0..4)) {
        let (keys, resident) = (keys(n), mask(n, resident));
        let found: Vec<KeyMask> = tiers.iter().map(|(bits, _)| mask(n, *bits)).collect();
        let view: Vec<TierView<'_>> = tiers.iter().zip(&found).enumerate().map(|(i, ((_, loads), found))| TierView {
            id: L2Id(i as u32), name: "t", weight: 1, stores: true, loads: *loads, found, load_time: None,
        }).collect();
        for name in PREFETCH_NAMES {
            let policy = prefetch_by_name(name).unwrap();
            let plan = policy.plan(&keys, &resident, &view);
            prop_assert_eq!(plan.admit, policy.admit());
            prop_assert_eq!(plan.sources.len(), n, "obligation 2");
            for (i, source) in plan.sources.iter().enumerate() {
                let serving = |t: &TierView<'_>| t.loads && t.found.get(i);
                match source {
                    Some(id) => {
                        prop_assert!(view.iter().any(|t| t.id == *id && serving(t)), "obligation 3");
                        prop_assert!(!resident.get(i), "obligation 4");
                    }
                    None => prop_assert!(resident.get(i) || !view.iter().any(serving), "obligation 5"),
                }
            }
        }
    }

    #[test]
    fn store_2_and_3(n in 0usize..40, takes in prop::collection::vec(any::<bool>(), 0..5), stored: u64) {
        let (keys, stored, none) = (keys(n), mask(n, stored), KeyMask::none(n));
        let view: Vec<TierView<'_>> = takes.iter().enumerate().map(|(i, stores)| TierView {
            id: L2Id(i as u32), name: "t", weight: 1, stores: *stores, loads: true, found: &none, load_time: None,
        }).collect();
        for name in STORE_NAMES {
            let policy = store_by_name(name).unwrap();
            let mut out = Vec::new();
            policy.targets(&keys, &view, &mut out);
            for (at, (id, mask)) in out.iter().enumerate() {
                prop_assert!(view.iter().any(|t| t.id == *id && t.stores));
                prop_assert!(out[..at].iter().all(|(other, _)| other != id), "each tier at most once");
                prop_assert_eq!(mask.len(), n);
            }
            let mut left = policy.release(&keys, &stored);
            left.subtract(&stored);
            prop_assert!(left.is_clear(), "obligation 3");
        }
    }
}
