//! Which loads LMCache's `fault_inject` loses.

use kvstrata_core::ObjectKey;

use crate::blake2b::blake2b_64;

const PARTS: u64 = 1_000_000;

/// Whether the key is lost at this rate: the hash of everything that names it falls below the rate's part of a million.
pub(crate) fn key_is_lost(key: &ObjectKey, rate: f64, seed: i64) -> bool {
    rate > 0.0 && bucket(key, seed) < (rate * PARTS as f64) as u64
}

fn bucket(key: &ObjectKey, seed: i64) -> u64 {
    let scope = key.scope();
    let name = format!(
        "{seed}:{}:{}:{}:{}:{}",
        key.hash(),
        scope.model(),
        scope.rank().packed(),
        scope.group(),
        scope.salt()
    );
    u64::from_be_bytes(blake2b_64(name.as_bytes())) % PARTS
}

/// The position that lies this part of the way from the last of `n` keys to the first; halves go to the even number.
pub(crate) fn from_tail(ratio: f64, n: usize) -> usize {
    ((1.0 - ratio) * n.saturating_sub(1) as f64).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_core::{ChunkHash, KeyScope, KvRank};

    fn key(hash: &[u8], model: &str, rank: u32, group: u32, salt: &str) -> ObjectKey {
        let scope = KeyScope::new(model, KvRank::from_packed(rank).unwrap(), group, salt).unwrap();
        ObjectKey::new(&scope, ChunkHash::new(hash).unwrap())
    }

    const ONE: u32 = 0x0100_0100;

    /// Made with Python's hashlib by the rule: `int.from_bytes(blake2b("{seed}:{hash}:{model}:{rank}:{group}:{salt}",
    /// digest_size=8), "big") % 1000000`.
    #[test]
    fn keys_fall_where_the_rule_says() {
        assert_eq!(bucket(&key(&[1], "m", ONE, 0, ""), 0), 787_633);
        let llama = key(&[0, 0xff], "meta-llama/Llama-3.1-8B", 134_547_461, 3, "tenant");
        assert_eq!(bucket(&llama, 7), 668_152);
        assert_eq!(bucket(&key(&[0xab; 32], "m", ONE, 0, ""), -1), 770_561);
        // Longer than one block of the hash, and not ASCII.
        assert_eq!(bucket(&key(&[0xcd; 64], "ünï/코드", ONE, u32::MAX, "s"), 123_456_789), 102_840);
        let lost = |seed, rate| -> Vec<u8> {
            (0..64).filter(|i| key_is_lost(&key(&[*i], "m", ONE, 0, ""), rate, seed)).collect()
        };
        assert_eq!(lost(7, 0.1), [16, 21, 34, 48, 58, 60, 61, 62]);
        assert_eq!(lost(42, 0.25), [4, 5, 11, 17, 47, 49, 52, 55, 60, 61, 62]);
        assert!(lost(7, 0.0).is_empty() && lost(7, 1.0).len() == 64);
    }

    #[test]
    fn ratios_are_counted_from_the_tail_and_rounded_as_python_does() {
        for (ratio, n, at) in [
            (0.0, 8, 7),
            (0.5, 8, 4),
            (1.0, 8, 0),
            (0.5, 4, 2),
            (0.5, 2, 0),
            (0.25, 11, 8),
            (0.75, 3, 0),
            (0.5, 1, 0),
            (0.1, 6, 4),
            (0.3, 6, 4),
        ] {
            assert_eq!(from_tail(ratio, n), at, "{ratio} of {n}");
        }
    }
}
