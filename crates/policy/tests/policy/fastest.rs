//! What `fastest` makes of load times.

use std::time::Duration;

use kvstrata_core::KeyMask;
use kvstrata_policy::{L2Id, LoadTime, Plan, TierView, prefetch_by_name};
use proptest::prelude::*;

use crate::keys;

fn time(first: u64, each: u64) -> LoadTime {
    LoadTime { first: Duration::from_micros(first), each: Duration::from_micros(each) }
}

/// A plan for `n` keys that every tier has.
fn plan(n: usize, times: &[Option<LoadTime>], within: Option<Duration>) -> Plan {
    let found = KeyMask::all(n);
    let view = |(i, load_time): (usize, &Option<LoadTime>)| TierView {
        id: L2Id(i as u32),
        name: ["a", "b", "c", "d"][i],
        weight: 1,
        stores: true,
        loads: true,
        found: &found,
        load_time: *load_time,
    };
    let views: Vec<TierView<'_>> = times.iter().enumerate().map(view).collect();
    prefetch_by_name("fastest").unwrap().plan(&keys(n), &KeyMask::none(n), &views, within)
}

fn given(plan: &Plan, tier: usize) -> usize {
    plan.sources.iter().filter(|s| **s == Some(L2Id(tier as u32))).count()
}

/// When the last key of the batch is expected.
fn end(plan: &Plan, times: &[LoadTime]) -> Duration {
    let ends = times.iter().enumerate().map(|(i, t)| given(plan, i).checked_sub(1).map(|b| t.behind(b)));
    ends.flatten().max().unwrap_or_default()
}

proptest! {
    #[test]
    fn no_other_split_ends_sooner(n in 1usize..25, times in prop::collection::vec((1u64..300, 0u64..100), 1..4)) {
        let times: Vec<_> = times.iter().map(|(first, each)| time(*first, *each)).collect();
        let plan = plan(n, &times.iter().copied().map(Some).collect::<Vec<_>>(), None);
        // How many keys can be there by then, each tier doing as many as it can.
        let by = |at: Duration| times.iter().map(|t| (0..n).take_while(|b| t.behind(*b) <= at).count()).sum::<usize>();
        let end = end(&plan, &times);
        prop_assert!(by(end) >= n);
        prop_assert!(by(end - Duration::from_nanos(1)) < n, "{end:?} is not the least");
    }

    #[test]
    fn what_has_a_source_is_in_time_and_nothing_in_time_is_left(
        n in 1usize..25, times in prop::collection::vec((1u64..300, 1u64..100), 1..4), within in 0u64..600,
    ) {
        let times: Vec<_> = times.iter().map(|(first, each)| time(*first, *each)).collect();
        let within = Duration::from_micros(within);
        let plan = plan(n, &times.iter().copied().map(Some).collect::<Vec<_>>(), Some(within));
        let fit: usize = times.iter().map(|t| (0..n).take_while(|b| t.behind(*b) <= within).count()).sum();
        let sourced = plan.sources.iter().flatten().count();
        prop_assert_eq!(sourced, fit.min(n));
        prop_assert!(sourced == 0 || end(&plan, &times) <= within);
        prop_assert!(plan.sources[..sourced].iter().all(Option::is_some), "the front of the prefix");
    }
}

#[test]
fn a_tier_nobody_knows_is_tried_like_the_best() {
    let plan = plan(90, &[Some(time(100, 10)), None, Some(time(500, 1000))], None);
    assert_eq!([given(&plan, 0), given(&plan, 1), given(&plan, 2)], [45, 44, 1]);
}

#[test]
fn where_nothing_is_known_all_share_and_no_time_is_too_short() {
    let plan = plan(30, &[None, None, None], Some(Duration::ZERO));
    assert_eq!([given(&plan, 0), given(&plan, 1), given(&plan, 2)], [10, 10, 10]);
}

#[test]
fn a_tier_nobody_knows_is_tried_where_the_known_are_late() {
    let plan = plan(5, &[Some(time(1000, 10)), None], Some(Duration::from_micros(10)));
    assert_eq!([given(&plan, 0), given(&plan, 1)], [0, 5]);
}
