//! Where `striped` puts keys, and what moves when the tiers change.

use kvstrata_core::{KeyMask, ObjectKey};
use kvstrata_policy::{L2Id, StorePolicy, Striped, TierView};
use proptest::prelude::*;

use crate::keys;

/// The name of the tier of each key. Every key has exactly one.
fn places<'a>(keys: &[ObjectKey], tiers: &[(&'a str, u32)]) -> Vec<&'a str> {
    let none = KeyMask::none(keys.len());
    let view = |(i, (name, weight)): (usize, &(&'a str, u32))| TierView {
        id: L2Id(i as u32),
        name,
        weight: *weight,
        stores: true,
        loads: true,
        found: &none,
        load_time: None,
    };
    let views: Vec<TierView<'_>> = tiers.iter().enumerate().map(view).collect();
    let mut out = Vec::new();
    Striped.targets(keys, &views, &mut out);
    let place = |i| {
        let mut takers = out.iter().filter(|(_, share)| share.get(i));
        let (id, _) = takers.next().expect("every key has a tier");
        assert!(takers.next().is_none(), "and only one");
        tiers[id.0 as usize].0
    };
    (0..keys.len()).map(place).collect()
}

/// Tiers of distinct names, in the order in which they were added.
fn tiers() -> impl Strategy<Value = Vec<(String, u32)>> {
    let weight = prop_oneof![1u32..5, 1u32..=u32::MAX];
    prop::collection::hash_map("[a-z0-9_]{1,20}", weight, 2..7).prop_map(|t| t.into_iter().collect())
}

fn borrowed(tiers: &[(String, u32)]) -> Vec<(&str, u32)> {
    tiers.iter().map(|(name, weight)| (&**name, *weight)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tier_that_comes_or_goes_moves_only_its_share(tiers in tiers()) {
        let (keys, with) = (keys(300), borrowed(&tiers));
        let (last, without) = with.split_last().unwrap();
        for (now, before) in places(&keys, &with).iter().zip(places(&keys, without)) {
            prop_assert!(*now == last.0 || *now == before, "{before} to {now}, and {} came", last.0);
        }
    }

    #[test]
    fn a_greater_weight_takes_keys_and_gives_none(tiers in tiers(), more in 1u32..100) {
        let (keys, light) = (keys(300), borrowed(&tiers));
        let mut heavy = light.clone();
        heavy[0].1 = heavy[0].1.saturating_add(more);
        for (now, before) in places(&keys, &heavy).iter().zip(places(&keys, &light)) {
            prop_assert!(*now == heavy[0].0 || *now == before);
        }
    }

    #[test]
    fn neither_order_nor_scale_nor_the_rest_of_the_batch_matters(mut tiers in tiers(), by in 2u32..9) {
        tiers.iter_mut().for_each(|(_, weight)| *weight /= 10);
        let (keys, base) = (keys(200), borrowed(&tiers));
        let before = places(&keys, &base);
        let reversed: Vec<_> = base.iter().rev().copied().collect();
        prop_assert_eq!(&places(&keys, &reversed), &before);
        let scaled: Vec<_> = base.iter().map(|(name, weight)| (*name, weight * by)).collect();
        prop_assert_eq!(&places(&keys, &scaled), &before);
        prop_assert_eq!(places(&keys[50..60], &base), &before[50..60]);
    }
}

/// Each share is that of its weight, within five standard deviations of a fair draw. The keys are fixed, and so is the
/// result.
#[test]
fn shares_are_as_the_weights() {
    const KEYS: usize = 20_000;
    let keys = keys(KEYS);
    for tiers in [
        &[("a", 1), ("b", 1)][..],
        &[("disk0", 1), ("disk1", 1), ("disk2", 1), ("disk3", 1), ("disk4", 1), ("disk5", 1), ("disk6", 1)],
        &[("fs", 1), ("gds", 2), ("redis", 3), ("mooncake_store", 10)],
        &[("small", 1), ("large", 500)],
        &[("none", 0), ("some", 7)],
    ] {
        let all: u32 = tiers.iter().map(|(_, weight)| weight).sum();
        let places = places(&keys, tiers);
        for (name, weight) in tiers {
            let share = f64::from(*weight) / f64::from(all);
            let expected = share * KEYS as f64;
            let deviation = (expected * (1.0 - share)).sqrt();
            let is = places.iter().filter(|p| *p == name).count() as f64;
            assert!(
                (is - expected).abs() <= 5.0 * deviation,
                "{name} of {tiers:?}: {is}, expected {expected}"
            );
        }
    }
}

/// What leaves one tier is spread over the others by their weights, not given to one neighbour.
#[test]
fn the_share_of_a_tier_that_left_is_spread_by_weight() {
    let keys = keys(20_000);
    let (with, without) = ([("a", 2), ("b", 1), ("c", 3)], [("a", 2), ("b", 1)]);
    let (before, after) = (places(&keys, &with), places(&keys, &without));
    let moved: Vec<_> = after.iter().zip(before).filter(|(_, b)| *b == "c").map(|(a, _)| *a).collect();
    let to_a = moved.iter().filter(|p| **p == "a").count() as f64 / moved.len() as f64;
    assert!((to_a - 2.0 / 3.0).abs() < 0.03, "{to_a}");
}

/// These assignments may never change: keys that another release places elsewhere are stored twice. They were computed apart
/// from this code, from the fingerprints and with decimal logarithms of 60 digits.
#[test]
fn the_assignments_are_frozen() {
    let golden = |tiers: &[(&str, u32)]| -> String {
        let places = places(&keys(64), tiers);
        places.iter().map(|p| tiers.iter().position(|t| t.0 == *p).unwrap().to_string()).collect()
    };
    assert_eq!(
        golden(&[("fs", 1), ("gds", 1), ("redis", 1)]),
        "0212110210120121111210220211001012002122100222101210211020211212"
    );
    assert_eq!(
        golden(&[("local_disk", 3), ("mooncake_store", 1), ("s3", 2)]),
        "1010201000010020222002012001002000100222120220122222022001100110"
    );
}

#[test]
fn no_tier_no_target() {
    let keys = keys(3);
    let mut out = Vec::new();
    Striped.targets(&keys, &[], &mut out);
    assert!(out.is_empty());
}
