//! The numbered obligations of `Admission`, for every rule by its name, and what each rule is for.

use kvstrata_evict::{
    ADMISSIONS, Access, Admission, Entry, Offer, Removal, Slot, TenantId, admission_by_name, admit_chain,
    by_name,
};
use std::collections::HashMap;
use std::num::NonZeroU32;

const ONE: NonZeroU32 = NonZeroU32::MIN;

fn print(object: u64) -> u64 {
    object
        .wrapping_add(1)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(29)
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

fn request(number: u64) -> Access {
    Access { request: number, position: 0, chain: 1 }
}

fn full(object: u64) -> Offer {
    Offer { print: print(object), weight: ONE, rival: Some(print(u64::MAX)), resident: false }
}

fn rules(capacity: u64) -> impl Iterator<Item = Box<dyn Admission>> {
    ADMISSIONS.iter().map(move |name| {
        let mut rule = admission_by_name(name).expect("a known name");
        assert_eq!(rule.name(), *name);
        rule.set_capacity(capacity);
        rule
    })
}

/// An LRU cache behind a rule; returns its hits.
fn hits(rule: &mut dyn Admission, capacity: u32, requests: impl Iterator<Item = u64>) -> u64 {
    let mut lru = by_name("LRU").expect("a known name");
    let (mut index, mut held, mut hits) = (HashMap::new(), Vec::new(), 0);
    rule.set_capacity(capacity.into());
    for (n, object) in requests.enumerate() {
        let cx = request(n as u64);
        rule.asked(print(object), ONE, &cx);
        if let Some(&slot) = index.get(&object) {
            lru.touch(slot, &cx);
            hits += 1;
            continue;
        }
        let mut out = Vec::new();
        if held.len() == capacity as usize {
            lru.victims(1, &mut out);
        }
        let rival = out.first().map(|slot: &Slot| print(held[slot.index()]));
        if !rule.admits(&Offer { print: print(object), weight: ONE, rival, resident: false }, &cx) {
            continue;
        }
        let slot = match out.first() {
            Some(&slot) => {
                lru.remove(slot, Removal::Evicted);
                index.remove(&std::mem::replace(&mut held[slot.index()], object));
                slot
            }
            None => {
                held.push(object);
                Slot(held.len() as u32 - 1)
            }
        };
        index.insert(object, slot);
        lru.insert(Entry { slot, print: print(object), weight: ONE, parent: None, tenant: TenantId(0) }, &cx);
    }
    hits
}

#[test]
fn obligation_1_while_there_is_room_everything_is_admitted() {
    for mut rule in rules(1_000) {
        for object in 0..500 {
            let cx = request(object);
            rule.asked(print(object), ONE, &cx);
            assert!(rule.admits(&Offer { rival: None, ..full(object) }, &cx), "{}", rule.name());
        }
    }
}

#[test]
fn obligation_2_memory_is_bounded() {
    const CAPACITY: u64 = 10_000;
    for mut rule in rules(CAPACITY) {
        for object in 0..CAPACITY * 20 {
            let cx = request(object);
            rule.asked(print(object), ONE, &cx);
            rule.admits(&full(object), &cx);
        }
        // What the pages state: 76 bytes for twice the capacity, a sixteenth of that and two shadows on top; 16 for a
        // sketch.
        let each = match rule.name() {
            "always" => 0,
            "second_sighting" => 2 * 76,
            "tinylfu" => 16,
            _ => 2 * 76 * 17 / 16 + 2 * 140 / 16,
        };
        let bound = CAPACITY as usize * each + 8 * 1024;
        assert!(rule.memory() <= bound, "{}: {} of {bound} bytes", rule.name(), rule.memory());
        rule.set_capacity(CAPACITY / 10);
        assert!(rule.memory() <= bound, "{}", rule.name());
    }
}

#[test]
fn obligation_3_the_same_calls_give_the_same_answers() {
    for name in ADMISSIONS {
        let run = || {
            let mut rule = admission_by_name(name).expect("a known name");
            rule.set_capacity(300);
            let answers = (0..20_000_u64).map(|n| {
                let object = print(n) % 1_000;
                rule.asked(print(object), ONE, &request(n));
                rule.admits(&full(object), &request(n))
            });
            answers.collect::<Vec<_>>()
        };
        assert_eq!(run(), run(), "{name}");
    }
}

#[test]
fn a_second_sighting_is_one_of_another_request() {
    let mut rule = admission_by_name("second-sighting").expect("a known name");
    rule.set_capacity(100);
    rule.asked(print(1), ONE, &request(1));
    assert!(!rule.admits(&full(1), &request(1)), "asked for and offered in one request is one sighting");
    assert!(!rule.admits(&full(1), &request(1)));
    rule.asked(print(1), ONE, &request(2));
    assert!(rule.admits(&full(1), &request(2)));
    assert!(rule.admits(&full(1), &request(2)));
    assert!(!rule.admits(&full(2), &request(2)));
    assert!(rule.admits(&full(2), &request(3)), "an offer is a sighting too");
    for object in 100..300 {
        rule.asked(print(object), ONE, &request(4));
    }
    assert!(!rule.admits(&full(1), &request(5)), "what is remembered is bounded by twice the capacity");
}

#[test]
fn tinylfu_prefers_what_is_asked_for_more_often() {
    let mut rule = admission_by_name("TinyLFU").expect("a known name");
    rule.set_capacity(100);
    for n in 0..5 {
        rule.asked(print(1), ONE, &request(n));
    }
    rule.asked(print(2), ONE, &request(5));
    let offer = |object, rival| Offer { rival: Some(print(rival)), ..full(object) };
    assert!(rule.admits(&offer(1, 2), &request(6)));
    assert!(!rule.admits(&offer(2, 1), &request(6)));
    assert!(!rule.admits(&offer(2, 2), &request(6)), "a tie changes nothing");
}

#[test]
fn a_chain_is_kept_without_gaps() {
    for mut rule in rules(1_000) {
        // The chunks of the second half are known, those of the first are not.
        for object in 5..10 {
            rule.asked(print(object), ONE, &request(0));
            rule.asked(print(object), ONE, &request(1));
        }
        let mut chain: Vec<Offer> = (0..10).map(full).collect();
        chain[0].resident = true;
        chain[7].resident = true;
        let mut kept = vec![true];
        admit_chain(&mut *rule, &chain, &request(2), &mut kept);
        assert_eq!(kept.len(), 11, "{}: one answer each, appended", rule.name());
        let admitted = kept[1..].iter().zip(&chain).filter(|(kept, offer)| **kept && !offer.resident).count();
        match rule.name() {
            "always" | "duel" => assert_eq!(admitted, 8, "{}", rule.name()),
            _ => assert_eq!(admitted, 0, "{}: chunk 1 is new, so nothing after it", rule.name()),
        }
        assert!(kept[1] && kept[8], "what is resident stays");
    }
}

#[test]
fn a_chain_known_to_its_middle_is_kept_to_its_middle() {
    for name in ["second_sighting", "tinylfu"] {
        let mut rule = admission_by_name(name).expect("a known name");
        rule.set_capacity(1_000);
        for object in 0..6 {
            rule.asked(print(object), ONE, &request(0));
        }
        let chain: Vec<Offer> = (0..10).map(full).collect();
        let mut kept = Vec::new();
        admit_chain(&mut *rule, &chain, &request(1), &mut kept);
        assert_eq!(kept, (0..10).map(|at| at < 6).collect::<Vec<_>>(), "{name}");
        // The second time around, all of it: what was behind the gap was sighted too.
        (0..10).for_each(|object| rule.asked(print(object), ONE, &request(2)));
        kept.clear();
        admit_chain(&mut *rule, &chain, &request(2), &mut kept);
        assert_eq!(kept, [true; 10], "{name}");
    }
}

#[test]
fn the_duel_follows_the_better_rule() {
    const CAPACITY: u32 = 1_600;
    // Most of what comes never comes again; a working set that would fit is drowned in it.
    let scan = |n: u64| if n.is_multiple_of(4) { n / 4 * 7 % 1_500 } else { 1_000_000 + n };
    // Everything comes twice, at once, and then never again: to wait for the second sighting is to miss it.
    let twice = |n: u64| n / 800 * 400 + n % 400;
    for (name, trace) in [("scan", &scan as &dyn Fn(u64) -> u64), ("twice", &twice)] {
        let score = |rule: &str| {
            let mut rule = admission_by_name(rule).expect("a known name");
            hits(&mut *rule, CAPACITY, (0..60_000).map(trace))
        };
        let (always, second, duel) = (score("always"), score("second_sighting"), score("duel"));
        let (worse, better) = (always.min(second), always.max(second));
        assert!(worse * 2 < better, "{name}: {always} and {second}: the traces tell the rules apart");
        assert!(duel * 10 > better * 9, "{name}: {duel} of {better}");
        assert_eq!(name == "scan", second > always);
    }
}

#[test]
fn an_unknown_rule_is_answered_with_the_known_ones() {
    let error = admission_by_name("second_sight").expect_err("no such rule");
    assert_eq!(error.nearest(), Some("second_sighting"));
    assert!(
        error.to_string().starts_with("unknown admission rule \"second_sight\"; known: always"),
        "{error}"
    );
}
