//! The numbered obligations of `EvictionPolicy`, for every policy by its name.

use kvstrata_evict::{Access, Entry, EvictionPolicy, NAMES, Removal, Slot, TenantId, by_name};
use std::collections::HashSet;
use std::num::NonZeroU32;

const CAPACITY: u64 = 10_000;

fn entry(slot: u32, weight: u32) -> Entry {
    let print = u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let weight = NonZeroU32::new(weight).expect("not zero");
    Entry { slot: Slot(slot), print, weight, parent: None, tenant: TenantId(0) }
}

fn cx(request: u64, position: u32, chain: u32) -> Access {
    Access { request, position, chain }
}

/// Every policy that evicts, told the capacity.
fn policies() -> impl Iterator<Item = Box<dyn EvictionPolicy>> {
    NAMES.iter().filter(|name| **name != "noop").map(|name| {
        let mut policy = by_name(name).expect("a known name");
        policy.set_capacity(CAPACITY);
        policy
    })
}

/// A batch of slots `first..first + len`, inserted from the last chunk (the highest slot) to the first.
fn insert_batch(policy: &mut dyn EvictionPolicy, request: u64, first: u32, len: u32) {
    for at in (0..len).rev() {
        policy.insert(entry(first + at, 1), &cx(request, at, len));
    }
}

fn touch_batch(policy: &mut dyn EvictionPolicy, request: u64, first: u32, len: u32) {
    for at in (0..len).rev() {
        policy.touch(Slot(first + at), &cx(request, at, len));
    }
}

fn victims(policy: &mut dyn EvictionPolicy, want: u64) -> Vec<u32> {
    let mut out = Vec::new();
    let total = policy.victims(want, &mut out);
    assert!(total >= out.len() as u64, "{}: every entry weighs at least 1", policy.name());
    out.into_iter().map(|slot| slot.0).collect()
}

#[test]
fn obligation_1_residents_only_each_once() {
    for mut policy in policies() {
        insert_batch(&mut *policy, 0, 0, 100);
        touch_batch(&mut *policy, 1, 20, 30);
        for slot in (0..100).step_by(3) {
            policy.remove(Slot(slot), if slot % 2 == 0 { Removal::Evicted } else { Removal::Deleted });
        }
        let out = victims(&mut *policy, u64::MAX);
        let set: HashSet<u32> = out.iter().copied().collect();
        let resident: HashSet<u32> = (0..100).filter(|slot| slot % 3 != 0).collect();
        assert_eq!(out.len(), set.len(), "{}: {out:?}", policy.name());
        assert_eq!(set, resident, "{}", policy.name());
    }
}

#[test]
fn obligation_2_pinned_entries_are_never_returned_and_pins_count() {
    for mut policy in policies() {
        insert_batch(&mut *policy, 0, 0, 100);
        for slot in 0..50 {
            policy.pin(Slot(slot));
        }
        policy.pin(Slot(7));
        // What is pinned may be used, and new entries may come meanwhile.
        touch_batch(&mut *policy, 1, 0, 60);
        insert_batch(&mut *policy, 2, 100, 100);
        let out = victims(&mut *policy, u64::MAX);
        assert_eq!(out.iter().copied().collect::<HashSet<_>>(), (50..200).collect(), "{}", policy.name());
        for slot in 0..50 {
            policy.unpin(Slot(slot));
        }
        let out = victims(&mut *policy, u64::MAX);
        assert_eq!(out.len(), 199, "{}", policy.name());
        assert!(!out.contains(&7), "{}: two pins need two unpins", policy.name());
        policy.unpin(Slot(7));
        assert_eq!(victims(&mut *policy, u64::MAX).len(), 200, "{}", policy.name());
    }
}

#[test]
fn obligation_2_a_pin_does_not_change_who_is_next() {
    for name in NAMES {
        let [mut plain, mut pinned] =
            [by_name(name), by_name(name)].map(|policy| policy.expect("a known name"));
        for policy in [&mut plain, &mut pinned] {
            policy.set_capacity(CAPACITY);
            insert_batch(&mut **policy, 0, 0, 300);
            touch_batch(&mut **policy, 1, 100, 50);
        }
        for slot in (0..300).rev().step_by(2).chain((0..300).step_by(3)) {
            pinned.pin(Slot(slot));
        }
        for slot in (0..300).step_by(3).chain((0..300).rev().step_by(2)) {
            pinned.unpin(Slot(slot));
        }
        assert_eq!(victims(&mut *plain, 150), victims(&mut *pinned, 150), "{name}");
    }
}

#[test]
fn obligation_3_enough_and_no_more_than_needed() {
    for mut policy in policies() {
        let weight = |slot: u32| slot % 7 + 1;
        for slot in 0..200 {
            policy.insert(entry(slot, weight(slot)), &cx(u64::from(slot) / 10, 0, 1));
        }
        let all: u64 = (0..200).map(|slot| u64::from(weight(slot))).sum();
        for want in [0, 1, 2, 5, 17, 100, all - 1, all, all + 1, u64::MAX] {
            let mut out = Vec::new();
            let total = policy.victims(want, &mut out);
            let sum: u64 = out.iter().map(|slot| u64::from(weight(slot.0))).sum();
            assert_eq!(total, sum, "{}", policy.name());
            assert!(total >= want.min(all), "{}: {total} of {want}", policy.name());
            if let Some(last) = out.last() {
                assert!(total - u64::from(weight(last.0)) < want, "{}: {total} for {want}", policy.name());
            }
        }
    }
    let mut noop = by_name("noop").expect("a known name");
    insert_batch(&mut *noop, 0, 0, 10);
    assert_eq!(victims(&mut *noop, 1), [0; 0]);
}

#[test]
fn obligation_4_victims_removes_nothing() {
    for mut policy in policies() {
        insert_batch(&mut *policy, 0, 0, 100);
        for want in 1..50 {
            assert_eq!(victims(&mut *policy, want).len() as u64, want, "{}", policy.name());
        }
        let out = victims(&mut *policy, u64::MAX);
        assert_eq!(out.iter().copied().collect::<HashSet<_>>(), (0..100).collect(), "{}", policy.name());
        assert_eq!(
            victims(&mut *policy, 10),
            victims(&mut *policy, 10),
            "{}: looking changes nothing",
            policy.name()
        );
        let mut more = vec![Slot(1_000)];
        policy.victims(1, &mut more);
        assert_eq!(more[0], Slot(1_000), "{}: victims are appended", policy.name());
    }
}

#[test]
fn obligation_5_the_last_chunk_of_a_batch_leaves_first() {
    for mut policy in policies() {
        insert_batch(&mut *policy, 0, 0, 40);
        let order: Vec<u32> = (0..40).rev().collect();
        assert_eq!(victims(&mut *policy, 40), order, "{}: inserted", policy.name());
        touch_batch(&mut *policy, 1, 0, 40);
        assert_eq!(victims(&mut *policy, 40), order, "{}: touched", policy.name());
        // In the middle of others, one by one.
        insert_batch(&mut *policy, 2, 40, 30);
        insert_batch(&mut *policy, 3, 70, 30);
        let mut left = Vec::new();
        while let [next] = victims(&mut *policy, 1)[..] {
            policy.remove(Slot(next), Removal::Evicted);
            left.push(next);
        }
        for batch in [0..40, 40..70, 70..100_u32] {
            let of_batch: Vec<u32> = left.iter().copied().filter(|slot| batch.contains(slot)).collect();
            assert_eq!(of_batch, batch.rev().collect::<Vec<_>>(), "{}: one by one", policy.name());
        }
    }
}

/// What the policies' own pages state: bytes for each resident, as `slot * 2` (vectors double), sixteen positions and what
/// comes on top, and KiB whatever is resident.
const STATED: [(&str, usize, usize); 11] = [
    ("noop", 0, 0),
    ("FIFO", 2 * 16 + 67, 1),
    ("LRU", 2 * 16 + 67, 1),
    ("MRU", 2 * 16 + 69, 1),
    ("LFU", 2 * 16 + 67, 110),
    ("W-TinyLFU", 2 * 24 + 67 + 16, 2),
    ("ARC", 2 * 24 + 67 + 2 * 76, 8),
    ("S3-FIFO", 2 * 32 + 67 + 76, 8),
    ("SIEVE", 2 * 20 + 67 + 8, 1),
    ("IsolatedLRU", 2 * 32 + 67, 4),
    ("life-table", 2 * 64 + 8 * 76 + 16, 150),
];

#[test]
fn obligation_6_memory_is_bounded_by_what_the_pages_state() {
    const RESIDENTS: u32 = 20_000;
    for name in NAMES {
        let &(_, each, fixed) = STATED.iter().find(|(stated, ..)| *stated == name).expect("a stated bound");
        let mut policy = by_name(name).expect("a known name");
        policy.set_capacity(RESIDENTS.into());
        let bound = each * RESIDENTS as usize + fixed * 1024;
        let check = |policy: &dyn EvictionPolicy, when: &str| {
            assert!(policy.memory() <= bound, "{name}: {} of {bound} bytes {when}", policy.memory());
        };
        for slot in 0..RESIDENTS {
            policy.insert(entry(slot, 1), &cx(slot.into(), 0, 1));
        }
        check(&*policy, "when full");
        for round in 0..300 {
            // Each round another part is used, so that queues fill and drain.
            for slot in (round % 7..RESIDENTS).step_by(1 + round as usize % 5 * 3) {
                policy.touch(Slot(slot), &cx(u64::from(RESIDENTS + round), 0, 1));
            }
        }
        check(&*policy, "after use");
        // Ten times as many objects come and go: ghosts and counters.
        for fresh in 0..RESIDENTS * 10 {
            let Some(&slot) = victims(&mut *policy, 1).first() else { break };
            policy.remove(Slot(slot), Removal::Evicted);
            let print = entry(RESIDENTS + fresh, 1).print;
            policy.missed(print, &cx(fresh.into(), 0, 1));
            policy.insert(Entry { print, ..entry(slot, 1) }, &cx(fresh.into(), 0, 1));
        }
        check(&*policy, "after churn");
        for slot in 0..RESIDENTS {
            policy.remove(Slot(slot), Removal::Deleted);
        }
        check(&*policy, "when empty");
    }
}

#[test]
fn obligation_7_what_is_not_resident_is_ignored() {
    for mut policy in policies() {
        insert_batch(&mut *policy, 0, 0, 10);
        for slot in [Slot(10), Slot(4_000_000_000)] {
            policy.pin(slot);
            policy.touch(slot, &cx(1, 0, 1));
            policy.unpin(slot);
            policy.remove(slot, Removal::Evicted);
        }
        policy.remove(Slot(3), Removal::Deleted);
        policy.remove(Slot(3), Removal::Evicted);
        policy.touch(Slot(3), &cx(1, 0, 1));
        policy.pin(Slot(3));
        policy.unpin(Slot(5));
        assert_eq!(victims(&mut *policy, u64::MAX).len(), 9, "{}", policy.name());
        // The pin of what was gone is not the new entry's, and a replaced entry starts unpinned.
        policy.insert(entry(3, 1), &cx(2, 0, 1));
        policy.pin(Slot(4));
        policy.insert(entry(4, 1), &cx(2, 0, 1));
        assert_eq!(victims(&mut *policy, u64::MAX).len(), 10, "{}", policy.name());
    }
}

#[test]
fn obligation_8_the_same_calls_give_the_same_answers() {
    for name in NAMES {
        let run = || {
            let mut policy = by_name(name).expect("a known name");
            policy.set_capacity(200);
            let mut answers = Vec::new();
            let mut state = 1_u64;
            for n in 0..5_000_u64 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (slot, cx) = ((state >> 33) as u32 % 300, cx(n / 9, 0, 1));
                match state >> 60 {
                    0..6 => policy.insert(Entry { print: state >> 50, ..entry(slot, 1) }, &cx),
                    6..10 => policy.touch(Slot(slot), &cx),
                    10 => policy.pin(Slot(slot)),
                    11 => policy.unpin(Slot(slot)),
                    12 => policy.missed(state >> 50, &cx),
                    _ => {
                        let out = victims(&mut *policy, 3);
                        out.iter().for_each(|&slot| policy.remove(Slot(slot), Removal::Evicted));
                        answers.extend(out);
                    }
                }
            }
            answers
        };
        assert_eq!(run(), run(), "{name}");
    }
}
