//! Which key of which call has which fault.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstrata_core::ObjectKey;
use parking_lot::Mutex;

use crate::gap::{from_tail, key_is_lost};
use crate::{Fault, FaultConfig, Op, Rule};

/// Keys whose calls are counted. Beyond it the count starts anew, and with it the sequence of choices.
const COUNTED: usize = 1 << 20;

/// A fault for one key of one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub(crate) fault: Fault,
    pub(crate) delay: Duration,
    /// What decides which bit, which byte, which other key.
    pub(crate) roll: u64,
}

/// A call that was given its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    op: Op,
    number: u64,
    keys: usize,
}

#[derive(Debug)]
pub(crate) struct Plan {
    config: FaultConfig,
    /// Whether `rate` chooses what LMCache's rule chooses.
    gaps_alone: bool,
    classes: [Vec<Fault>; Op::ALL.len()],
    calls: [AtomicU64; Op::ALL.len()],
    /// Matches and firings of each rule.
    rules: Vec<(AtomicU64, AtomicU64)>,
    seen: Mutex<HashMap<(u64, Op), u64>>,
}

impl Plan {
    pub(crate) fn new(config: &FaultConfig) -> Self {
        let classes = config.faults.classes();
        Self {
            config: config.clone(),
            gaps_alone: classes.is_empty(),
            classes: Op::ALL.map(|op| classes.iter().copied().filter(|f| f.applies(op)).collect()),
            calls: Default::default(),
            rules: config.script.iter().map(|_| Default::default()).collect(),
            seen: Mutex::default(),
        }
    }

    pub(crate) fn call(&self, op: Op, keys: usize) -> Call {
        Call { op, number: self.calls[op as usize].fetch_add(1, Ordering::Relaxed), keys }
    }

    /// The fault of the key at `index`, if it has one.
    pub(crate) fn choose(&self, call: Call, index: usize, key: &ObjectKey) -> Option<Choice> {
        let op = call.op;
        let print = key.fingerprint() as u64;
        let rule = self.config.script.iter().zip(&self.rules).find(|(rule, counts)| {
            rule.op == op && matches(rule, call.number, index, key) && fires(rule, counts)
        });
        if let Some((rule, _)) = rule {
            let delay = rule.delay_ms.unwrap_or(self.config.delay_ms);
            let roll = self.hash(op, print, call.number);
            return Some(Choice { fault: rule.fault, delay: Duration::from_millis(delay), roll });
        }
        let chosen =
            |fault, roll| Some(Choice { fault, delay: Duration::from_millis(self.config.delay_ms), roll });
        let FaultConfig { rate, seed, gap_indices, gap_tail_ratios, .. } = &self.config;
        if op == Op::Get
            && (gap_indices.contains(&(index as u64))
                || gap_tail_ratios.iter().any(|ratio| from_tail(*ratio, call.keys) == index))
        {
            return chosen(Fault::Gap, 0);
        }
        if self.gaps_alone {
            return (op == Op::Get && key_is_lost(key, *rate, *seed)).then(|| chosen(Fault::Gap, 0))?;
        }
        let classes = &self.classes[op as usize];
        if *rate == 0.0 || classes.is_empty() {
            return None;
        }
        let hash = self.hash(op, print, self.count(op, print));
        if ((hash >> 11) as f64) < *rate * (1u64 << 53) as f64 {
            let roll = mix(hash);
            return chosen(classes[(roll % classes.len() as u64) as usize], mix(roll));
        }
        None
    }

    /// How often this key was asked for in this way before.
    fn count(&self, op: Op, print: u64) -> u64 {
        let mut seen = self.seen.lock();
        if seen.len() >= COUNTED {
            seen.clear();
        }
        let n = seen.entry((print, op)).or_default();
        *n += 1;
        *n
    }

    fn hash(&self, op: Op, print: u64, n: u64) -> u64 {
        mix(mix(mix(self.config.seed as u64 ^ 0x9e37_79b9_7f4a_7c15) ^ print) ^ (n << 3 | op as u64))
    }
}

fn matches(rule: &Rule, call: u64, index: usize, key: &ObjectKey) -> bool {
    rule.batch.is_none_or(|n| n == call)
        && rule.index.is_none_or(|i| i == index as u64)
        && rule.key.as_ref().is_none_or(|hex| *hex == key.hash().to_string())
}

fn fires(rule: &Rule, (matched, fired): &(AtomicU64, AtomicU64)) -> bool {
    let n = matched.fetch_add(1, Ordering::Relaxed) + 1;
    n.is_multiple_of(rule.every.unwrap_or(1))
        && rule.times.is_none_or(|times| fired.fetch_add(1, Ordering::Relaxed) < times)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_core::{ChunkHash, KeyScope, KvRank};

    fn keys(n: u8) -> Vec<ObjectKey> {
        let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
        (0..n).map(|i| ObjectKey::new(&scope, ChunkHash::new(&[i]).unwrap())).collect()
    }

    fn faults(plan: &Plan, op: Op, keys: &[ObjectKey]) -> Vec<Option<Fault>> {
        let call = plan.call(op, keys.len());
        keys.iter().enumerate().map(|(i, k)| plan.choose(call, i, k).map(|c| c.fault)).collect()
    }

    #[test]
    fn rules_match_by_batch_index_key_every_and_times() {
        let rule = |op, fault| Rule::new(op, fault);
        let plan = Plan::new(&FaultConfig::scripted(vec![
            Rule { batch: Some(1), index: Some(0), ..rule(Op::Put, Fault::LostWrite) },
            Rule { key: Some("03".into()), times: Some(2), ..rule(Op::Put, Fault::BitFlip) },
            Rule { every: Some(3), ..rule(Op::Put, Fault::Error) },
        ]));
        let keys = keys(4);
        use Fault::{BitFlip, Error, LostWrite};
        // The third rule counts the keys that reach it.
        assert_eq!(faults(&plan, Op::Put, &keys), [None, None, Some(Error), Some(BitFlip)]);
        assert_eq!(faults(&plan, Op::Get, &keys), [None; 4]);
        assert_eq!(faults(&plan, Op::Put, &keys), [Some(LostWrite), None, None, Some(BitFlip)]);
        assert_eq!(faults(&plan, Op::Put, &keys), [Some(Error), None, None, Some(Error)]);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_whatever_the_order_of_the_keys() {
        let config = FaultConfig {
            faults: crate::Faults::These(Fault::ALL.to_vec()),
            ..FaultConfig::new(0.3, 5, &[])
        };
        let (a, b) = (Plan::new(&config), Plan::new(&config));
        let keys = keys(200);
        let reversed: Vec<_> = keys.iter().rev().cloned().collect();
        let mut hits = 0;
        for op in Op::ALL {
            for _ in 0..5 {
                let mut from_b = faults(&b, op, &reversed);
                from_b.reverse();
                let from_a = faults(&a, op, &keys);
                assert_eq!(from_a, from_b);
                assert!(from_a.iter().flatten().all(|f| f.applies(op)));
                hits += from_a.iter().flatten().count();
            }
        }
        assert!((1350..1650).contains(&hits), "{hits} of 5000 at 0.3");
        let other = Plan::new(&FaultConfig { seed: 6, ..config });
        assert_ne!(faults(&other, Op::Get, &keys), faults(&Plan::new(&a.config), Op::Get, &keys));
    }

    #[test]
    fn without_classes_the_losses_are_lmcaches() {
        let config =
            FaultConfig { gap_indices: vec![1], gap_tail_ratios: vec![0.0], ..FaultConfig::new(0.1, 7, &[]) };
        let plan = Plan::new(&config);
        let keys = keys(64);
        let lost: Vec<usize> = faults(&plan, Op::Get, &keys)
            .iter()
            .enumerate()
            .filter(|(_, f)| f.is_some())
            .map(|(i, _)| i)
            .collect();
        assert_eq!(lost, [1, 16, 21, 34, 48, 58, 60, 61, 62, 63]);
        assert_eq!(faults(&plan, Op::Put, &keys), [None; 64]);
        assert_eq!(faults(&plan, Op::Probe, &keys), [None; 64], "lookups still find them");
    }
}
