use std::collections::{HashMap, VecDeque};

use kvstrata_core::ErrorKind;
use kvstrata_evict::{NAMES, admission_by_name, by_name};

use super::*;
use crate::rng::Rng;
use crate::trace::{Request, Synthetic};

const ORDERS: [Order; 3] = [Order::Batch, Order::BlockForward, Order::BlockTailFirst];

fn request(ids: &[u64]) -> Request {
    let input_length = 512 * ids.len() as u64;
    Request { timestamp: 0, input_length, output_length: 1, hash_ids: ids.to_vec() }
}

fn lookups(requests: impl IntoIterator<Item = Request>, front: Option<Cache>) -> Vec<Lookup> {
    let mut lookups = Lookups::new("test", front).unwrap();
    requests.into_iter().map(|r| lookups.next(&r)).collect()
}

fn dialogues() -> Vec<Lookup> {
    lookups(Synthetic { requests: 400, ..Synthetic::default() }.generate().unwrap(), None)
}

fn cache(policy: &str, blocks: u32) -> Cache {
    Cache::new(by_name(policy).unwrap(), blocks, 4096).unwrap()
}

fn run(mut cache: Cache, lookups: &[Lookup], order: Order) -> Tally {
    for lookup in lookups {
        cache.request(lookup, order);
    }
    *cache.tally()
}

fn best(lookups: &[Lookup], blocks: u32) -> Tally {
    let mut next = NextUses::default();
    lookups.iter().for_each(|l| next.push(l).unwrap());
    let mut belady = Belady::new(next.finish(), blocks);
    for lookup in lookups {
        belady.request(lookup);
    }
    *belady.tally()
}

/// The orders of published tables as anybody would write them down.
fn by_hand(lookups: &[Lookup], blocks: usize, uses_count: bool, tail_first: bool) -> u64 {
    let (mut held, mut hits) = (VecDeque::new(), 0);
    for lookup in lookups {
        let mut ids: Vec<u64> = lookup.blocks.iter().map(|b| b.0).collect();
        hits += ids.iter().filter(|id| held.contains(*id)).count() as u64;
        if tail_first {
            ids.reverse();
        }
        for id in ids {
            match held.iter().position(|h| *h == id) {
                Some(_) if !uses_count => {}
                Some(at) => {
                    held.remove(at);
                    held.push_back(id);
                }
                None => {
                    if held.len() == blocks {
                        held.pop_front();
                    }
                    held.push_back(id);
                }
            }
        }
    }
    hits
}

#[test]
fn the_block_orders_are_those_of_a_cache_written_by_hand() {
    let lookups = dialogues();
    for blocks in [1, 30, 200, 1000] {
        for (order, tail_first) in [(Order::BlockForward, false), (Order::BlockTailFirst, true)] {
            for (policy, uses_count) in [("LRU", true), ("FIFO", false)] {
                assert_eq!(
                    run(cache(policy, blocks), &lookups, order).hits,
                    by_hand(&lookups, blocks as usize, uses_count, tail_first),
                    "{policy} {order:?} {blocks}"
                );
            }
        }
    }
}

/// The most hits there can be, by trying everything.
fn most_hits(ids: &[u64], held: u32, blocks: u32, seen: &mut HashMap<(usize, u32), u64>) -> u64 {
    let Some((&id, rest)) = ids.split_first() else { return 0 };
    if let Some(known) = seen.get(&(ids.len(), held)) {
        return *known;
    }
    let bit = 1 << id;
    let most = if held & bit != 0 {
        1 + most_hits(rest, held, blocks, seen)
    } else {
        let passed = most_hits(rest, held, blocks, seen);
        let room = held.count_ones() < blocks;
        let kept = (0..32).filter(|b| room || held & (1 << b) != 0).map(|b| {
            let without = if room { held } else { held & !(1 << b) };
            most_hits(rest, without | bit, blocks, seen)
        });
        kept.fold(passed, u64::max)
    };
    seen.insert((ids.len(), held), most);
    most
}

#[test]
fn belady_is_the_most_there_can_be() {
    let mut rng = Rng::new(7);
    for _ in 0..200 {
        let ids: Vec<u64> = (0..14).map(|_| rng.below(6)).collect();
        for blocks in 1..4 {
            let got = best(&lookups(ids.iter().map(|id| request(&[*id])), None), blocks);
            assert_eq!(got.hits, most_hits(&ids, 0, blocks, &mut HashMap::new()), "{blocks} {ids:?}");
        }
    }
}

#[test]
fn no_policy_order_or_rule_beats_belady() {
    let lookups = dialogues();
    for blocks in [20, 300] {
        let most = best(&lookups, blocks);
        assert_eq!(most.accesses, lookups.iter().map(|l| l.blocks.len() as u64).sum::<u64>());
        for policy in NAMES {
            for order in ORDERS {
                for rule in kvstrata_evict::ADMISSIONS {
                    let cache = cache(policy, blocks).with_admission(admission_by_name(rule).unwrap());
                    let got = run(cache, &lookups, order);
                    assert!(got.hits <= most.hits, "{policy} {rule} {order:?} {blocks}: {got:?} {most:?}");
                    assert_eq!(got.accesses, most.accesses);
                    assert!(got.prefix_hits <= got.hits, "{got:?}");
                }
            }
        }
    }
}

#[test]
fn what_was_measured_once_stays() {
    // Hits and blocks written, computed once by a program that shares no code with this one.
    let lookups = dialogues();
    let got = |t: Tally| (t.accesses, t.hits, t.written);
    for (policy, order, expected) in FROZEN {
        assert_eq!(got(run(cache(policy, 200), &lookups, order)), expected, "{policy} {order:?}");
    }
    assert_eq!(got(best(&lookups, 200)), FROZEN_BEST);
}

const FROZEN: [(&str, Order, (u64, u64, u64)); 5] = [
    ("FIFO", Order::BlockForward, (3227, 1260, 1975)),
    ("LRU", Order::BlockTailFirst, (3227, 1397, 1845)),
    ("SIEVE", Order::BlockForward, (3227, 1420, 1807)),
    ("FIFO", Order::Batch, (3227, 1259, 1968)),
    ("LRU", Order::Batch, (3227, 1397, 1830)),
];
const FROZEN_BEST: (u64, u64, u64) = (3227, 1836, 387);

#[test]
fn a_batch_does_not_drive_out_what_it_uses() {
    let all = lookups([request(&[1, 2, 3]), request(&[4, 1, 2, 3]), request(&[1, 2, 3, 4])], None);
    let mut fifo = cache("FIFO", 3);
    assert_eq!(fifo.request(&all[0], Order::Batch), [false; 3]);
    assert_eq!(fifo.request(&all[1], Order::Batch), [false, true, true, true], "4 finds everything pinned");
    assert_eq!(fifo.request(&all[2], Order::Batch), [true, true, true, false]);
    let tally = fifo.tally();
    assert_eq!((tally.hits, tally.prefix_hits, tally.written, tally.declined), (6, 3, 3, 2));
    let mut forward = cache("FIFO", 3);
    forward.request(&all[0], Order::BlockForward);
    forward.request(&all[1], Order::BlockForward);
    assert_eq!(forward.tally().written, 7, "one by one, each drives out the next");
}

#[test]
fn a_request_larger_than_the_cache_keeps_its_front() {
    let long: Vec<u64> = (0..10).collect();
    let all = lookups([request(&long), request(&long)], None);
    for policy in NAMES {
        let mut cache = cache(policy, 4);
        cache.request(&all[0], Order::Batch);
        let there = cache.request(&all[1], Order::Batch).to_vec();
        assert_eq!(there, (0..10).map(|i| i < 4).collect::<Vec<_>>(), "{policy}");
        assert_eq!(cache.tally().declined, 12, "{policy}");
    }
}

#[test]
fn a_block_twice_in_a_request_is_stored_once() {
    let all = lookups([request(&[1, 2, 1]), request(&[1, 2, 1])], None);
    for policy in NAMES {
        let mut cache = cache(policy, 8);
        assert_eq!(cache.request(&all[0], Order::Batch), [false; 3], "{policy}");
        assert_eq!(cache.request(&all[1], Order::Batch), [true; 3], "{policy}");
        assert_eq!((cache.tally().written, cache.tally().declined), (2, 0), "{policy}");
    }
}

#[test]
fn what_is_not_admitted_leaves_no_gap_behind_it() {
    let lookups = dialogues();
    for rule in ["second_sighting", "tinylfu", "duel"] {
        let mut cache = cache("LRU", 100).with_admission(admission_by_name(rule).unwrap());
        for lookup in &lookups {
            cache.request(lookup, Order::Batch);
            let there: Vec<bool> = lookup.blocks.iter().map(|b| cache.holds(*b)).collect();
            let gap = there.iter().position(|t| !t).unwrap_or(there.len());
            assert!(there[gap..].iter().all(|t| !t), "{rule}: {there:?}");
        }
        assert!(cache.tally().declined > 0, "{rule} lets everything in");
    }
}

#[test]
fn the_front_answers_the_prefix_it_holds_and_nothing_else() {
    let requests = [request(&[1, 2, 3]), request(&[1, 2, 4]), request(&[9]), request(&[5, 4]), request(&[4])];
    let all = lookups(requests, Some(cache("LRU", 4)));
    let reached: Vec<(u32, Vec<u64>)> =
        all.iter().map(|l| (l.first, l.blocks.iter().map(|b| b.0).collect())).collect();
    // After the second request 3 is the oldest, then 4, 2, 1. So 9 drives out 3, and 5 drives out 2, since it uses 4.
    assert_eq!(
        reached,
        [(0, vec![1, 2, 3]), (2, vec![4]), (0, vec![9]), (0, vec![5, 4]), (1, vec![])],
        "4 behind 5 is in the front, but no prefix"
    );
    assert_eq!(all.iter().map(|l| l.at).collect::<Vec<_>>(), [0, 3, 4, 5, 7]);
    let tally = run(cache("LRU", 10), &all, Order::Batch);
    assert_eq!((tally.accesses, tally.hits, tally.prefix_hits), (7, 1, 0), "4, behind a 5 that is missing");
    assert_eq!((tally.tokens_front, tally.tokens_saved), (3 * 512, 0));
    assert_eq!(tally.written_per_token_saved(), None);
}

#[test]
fn tokens_are_those_of_the_prompt() {
    let short = Request { input_length: 700, ..request(&[1, 2]) };
    let all = lookups([short.clone(), short], None);
    let tally = run(cache("LRU", 10), &all, Order::Batch);
    assert_eq!(tally.tokens_not_recomputed(), 700, "the second block is not full");
    assert_eq!(tally.written_per_token_saved(), Some(2.0 / 700.0));
}

#[test]
fn a_cache_without_room_is_refused() {
    for (blocks, bytes, field) in [(0, 1, "blocks"), (u32::MAX, 1, "blocks"), (1, 0, "block_bytes")] {
        let e = Cache::new(by_name("LRU").unwrap(), blocks, bytes).unwrap_err();
        assert_eq!((e.kind(), e.context().next().unwrap().0), (ErrorKind::Invalid, field), "{e}");
    }
}
