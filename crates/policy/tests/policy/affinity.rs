use kvstrata_core::Affinity;
use kvstrata_policy::{Device, Place, Places, SHARDING_NAMES, Sharding, path_list};
use proptest::prelude::*;

use super::keys;

fn place(name: &str, weight: u32) -> Place {
    Place { name: name.into(), weight, devices: vec![] }
}

fn places(sharding: Sharding, n: usize) -> Places {
    Places::new(sharding, (0..n).map(|i| place(&format!("/mnt/nvme{i}/kv"), 1)).collect())
}

fn gpu(ordinal: u32) -> Affinity {
    Affinity { ordinal: Some(ordinal), uuid: None }
}

fn uuid(n: u8) -> [u8; 16] {
    std::array::from_fn(|i| n.wrapping_mul(37) ^ (i as u8).wrapping_mul(91))
}

#[test]
fn lists_are_read_as_lmcache_reads_them() {
    assert_eq!(path_list("a, b ,"), ["a", "b"]);
    assert_eq!(path_list(" file:///x/ ,, file://y"), ["/x/", "y"]);
    assert!(path_list(" , ,").is_empty() && path_list("").is_empty());
}

#[test]
fn strategies_have_names_and_an_unknown_one_lists_them() {
    for name in SHARDING_NAMES {
        assert_eq!(Sharding::by_name(&name.to_uppercase().replace('_', "-")).unwrap().name(), *name);
    }
    let e = Sharding::by_name("by_rank").unwrap_err().to_string();
    assert!(SHARDING_NAMES.iter().all(|name| e.contains(name)) && e.contains("by_rank"), "{e}");
}

#[test]
fn by_gpu_is_the_index_modulo_the_paths_and_the_first_without_one() {
    for n in 1..=4 {
        let places = places(Sharding::ByGpu, n);
        for id in 0..8 {
            assert_eq!(
                places.choose(u128::from(id), &gpu(id), |_| true),
                Some(id as usize % n),
                "{id} of {n}"
            );
        }
        let none = Affinity { ordinal: None, uuid: Some(uuid(7)) };
        assert_eq!(places.choose(9, &none, |_| true), Some(0));
    }
    assert_eq!(places(Sharding::ByGpu, 0).choose(0, &gpu(0), |_| true), None);
}

#[test]
fn by_uuid_is_the_same_under_every_permutation_of_the_visible_devices() {
    let places = places(Sharding::ByUuid, 3);
    let home: Vec<_> = (0..5)
        .map(|d| places.choose(0, &Affinity { ordinal: None, uuid: Some(uuid(d)) }, |_| true))
        .collect();
    let mut order = [0u8, 1, 2, 3, 4];
    let mut permutations = 0;
    // Heap's algorithm.
    let mut counters = [0; 5];
    let mut check = |order: &[u8; 5]| {
        permutations += 1;
        for (ordinal, device) in order.iter().enumerate() {
            let from = Affinity { ordinal: Some(ordinal as u32), uuid: Some(uuid(*device)) };
            for key in keys(3) {
                let is = places.choose(key.fingerprint(), &from, |_| true);
                assert_eq!(is, home[usize::from(*device)], "{order:?}");
            }
        }
    };
    check(&order);
    let mut i = 1;
    while i < 5 {
        if counters[i] < i {
            order.swap(if i % 2 == 0 { 0 } else { counters[i] }, i);
            check(&order);
            counters[i] += 1;
            i = 1;
        } else {
            counters[i] = 0;
            i += 1;
        }
    }
    assert_eq!(permutations, 120);
    assert!(home.iter().any(|h| *h != home[0]), "devices are spread: {home:?}");
}

#[test]
fn map_follows_the_uuid_before_the_index_and_spreads_the_others() {
    let with = |name, devices| Place { devices, ..place(name, 1) };
    let places = Places::new(
        Sharding::Map,
        vec![
            with("a", vec![Device::Ordinal(0), Device::Ordinal(1)]),
            with("b", vec![Device::Uuid(uuid(1)), Device::Ordinal(2)]),
        ],
    );
    let choose = |from: Affinity| places.choose(5, &from, |_| true);
    assert_eq!([0, 1, 2].map(|n| choose(gpu(n))), [Some(0), Some(0), Some(1)]);
    assert_eq!(choose(Affinity { ordinal: Some(0), uuid: Some(uuid(1)) }), Some(1));
    assert_eq!(places.choose(5, &gpu(0), |at| at != 0), Some(1), "while its own is out");
    let spread: Vec<_> = keys(64).iter().map(|k| places.choose(k.fingerprint(), &gpu(9), |_| true)).collect();
    assert!(spread.contains(&Some(0)) && spread.contains(&Some(1)));
}

#[test]
fn devices_are_read_and_shown() {
    let text = "GPU-8c3c1e2a-0011-2233-4455-66778899aabb";
    let device: Device = text.parse().unwrap();
    assert_eq!(device.to_string(), text);
    assert_eq!(text[4..].parse(), Ok(device));
    assert_eq!(("3".parse(), " cuda:3 ".parse()), (Ok(Device::Ordinal(3)), Ok(Device::Ordinal(3))));
    assert_eq!(Device::Ordinal(3).to_string(), "cuda:3");
    for bad in [
        "",
        "cuda:",
        "cuda:x",
        "-1",
        "+1",
        "cpu",
        "GPU-8c3c",
        "GPU-8c3c1e2a-0011-2233-4455-66778899aabg",
        "gpüüüüüüüüüüüüüüüüüüüüüüüüüüüüüü",
    ] {
        let e = bad.parse::<Device>().unwrap_err();
        assert!(e.to_string().contains("UUID"), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// 20 000 keys over n paths: a share of 4 000 or more has a standard deviation below 1.5 %.
    #[test]
    fn by_key_balances_within_ten_per_cent(weights in prop::collection::vec(1u32..4, 2..5), from in 0u32..8) {
        let named = weights.iter().enumerate().map(|(i, w)| place(&format!("/mnt/{i}-{w}"), *w)).collect();
        let places = Places::new(Sharding::ByKey, named);
        let mut counts = vec![0f64; weights.len()];
        let keys = keys(20_000);
        for key in &keys {
            counts[places.choose(key.fingerprint(), &gpu(from), |_| true).unwrap()] += 1.0;
        }
        let all: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let share = keys.len() as f64 * f64::from(*weight) / f64::from(all);
            prop_assert!((count / share - 1.0).abs() < 0.1, "{counts:?} for {weights:?}");
        }
    }

    /// A path that is lost, or comes back, moves its share alone, whatever it is lost for: left out, or not open.
    #[test]
    fn a_path_added_or_lost_moves_its_own_share_only(n in 2usize..6, lost in 0usize..6) {
        let lost = lost % n;
        let all = places(Sharding::ByKey, n);
        let rest: Vec<Place> = all.iter().enumerate().filter(|(i, _)| *i != lost).map(|(_, p)| p.clone()).collect();
        let names: Vec<String> = rest.iter().map(|p| p.name.clone()).collect();
        let rest = Places::new(Sharding::ByKey, rest);
        let name = |places: &Places, at: usize| places.iter().nth(at).unwrap().name.clone();
        for key in keys(500) {
            let before = all.choose(key.fingerprint(), &gpu(1), |_| true).unwrap();
            let after = rest.choose(key.fingerprint(), &gpu(1), |_| true).map(|at| names[at].clone()).unwrap();
            let out = all.choose(key.fingerprint(), &gpu(1), |at| at != lost).unwrap();
            prop_assert_eq!(name(&all, out), after.clone());
            if before != lost {
                prop_assert_eq!(name(&all, before), after);
            }
        }
    }
}

#[test]
fn what_is_not_open_is_never_chosen() {
    for name in SHARDING_NAMES {
        let places = places(Sharding::by_name(name).unwrap(), 4);
        for key in keys(200) {
            let at = places.choose(key.fingerprint(), &gpu(3), |at| at % 2 == 0).unwrap();
            assert_eq!(at % 2, 0, "{name}");
        }
        assert_eq!(places.choose(1, &gpu(3), |_| false), None);
    }
}
