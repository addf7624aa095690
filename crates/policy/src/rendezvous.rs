//! Who gets a key, by weighted rendezvous hashing: everybody bids for every key, and the highest bid takes it.
//!
//! The bid is `weight / -log2(u)` with `u` uniform in (0, 1), which gives each tier a share that is exactly proportional
//! to its weight (Efraimidis and Spirakis 2006 for the sampling; Schindelhauer and Schomaker 2005 for the use of it here).
//! `u` is a 64-bit hash over 2^64. Logarithms of floating-point numbers differ between platforms in the last digit, and a
//! key whose two best bids are that close would be stored here and looked for there. So the logarithm is an integer, with
//! 48 bits behind the point, and two bids are compared by cross multiplication, without a division.
//!
//! The definition is frozen, since keys that were placed by another one are stored twice (all words little-endian):
//!
//! - `mix(x)`: the finaliser of SplitMix64, as in `kvstrata_core::Digest`;
//! - `seat`: `mix` of the name's length in bytes; then, for each 8 bytes of the name (the last ones filled up with
//!   zeros), `seat = mix(seat ^ word)`;
//! - `hash = mix(mix(fingerprint[0..8] ^ seat) ^ fingerprint[8..16])`.

use std::cmp::Ordering;

/// What one of several bids for one thing.
#[derive(Clone, Copy)]
pub(crate) struct Bid<'a> {
    pub(crate) weight: u32,
    pub(crate) hash: u64,
    pub(crate) name: &'a str,
}

impl Bid<'_> {
    pub(crate) fn beats(&self, other: &Self) -> bool {
        // Names are unique; by them the order does not depend on that of the tiers.
        let higher = (self.hash, other.name) > (other.hash, self.name);
        // The logarithm is monotone, so it is needed only if the weight says one thing and the hash another.
        match self.weight.cmp(&other.weight) {
            Ordering::Equal => return higher,
            Ordering::Greater if higher => return true,
            Ordering::Less if !higher => return false,
            _ => {}
        }
        let mine = u128::from(self.weight) * u128::from(minus_log2(other.hash));
        let theirs = u128::from(other.weight) * u128::from(minus_log2(self.hash));
        if mine == theirs { higher } else { mine > theirs }
    }
}

pub(crate) fn seat(name: &str) -> u64 {
    name.as_bytes().chunks(8).fold(mix(name.len() as u64), |seat, part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        mix(seat ^ u64::from_le_bytes(word))
    })
}

pub(crate) const fn hash(fingerprint: u128, seat: u64) -> u64 {
    mix(mix(fingerprint as u64 ^ seat) ^ (fingerprint >> 64) as u64)
}

const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const POINT: u32 = 48;

/// `-log2(h / 2^64)` with 48 bits behind the point, at least one unit of the last; 0 counts as 1. Never greater for a
/// greater `h`. Each squaring of the mantissa yields one digit: it passes 2 exactly if the next digit is a one.
const fn minus_log2(h: u64) -> u64 {
    let h = if h == 0 { 1 } else { h };
    let zeros = h.leading_zeros();
    let (mut mantissa, mut log, mut digit) = (h << zeros, 0u64, 0);
    while digit < POINT {
        let square = (mantissa as u128 * mantissa as u128) >> 63;
        let one = (square >> 64) as u64;
        mantissa = (square >> one) as u64;
        log = log << 1 | one;
        digit += 1;
    }
    ((zeros as u64 + 1) << POINT) - log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn logarithms_are_exact_where_they_are_whole_and_near_elsewhere() {
        for power in 0..64 {
            assert_eq!(minus_log2(1 << power), (64 - power) << POINT);
        }
        assert_eq!((minus_log2(0), minus_log2(u64::MAX)), (64 << POINT, 1));
        for h in (1..2000u64).map(mix) {
            let (is, should) = (minus_log2(h) as f64 / (1u64 << POINT) as f64, 64.0 - (h as f64).log2());
            assert!((is - should).abs() < 1e-12, "{h}: {is} {should}");
        }
    }

    /// These values may never change. They were computed apart from this code, by the definition above and with decimal
    /// logarithms of 60 digits.
    #[test]
    fn the_definition_is_frozen() {
        assert_eq!([mix(0), mix(1)], [0xe220_a839_7b1d_cdaf, 0x910a_2dec_8902_5cc1]);
        let seats = ["", "fs", "local_disk", "eightchr", "eightchr\0"].map(seat);
        let expected = [
            0xe220_a839_7b1d_cdaf,
            0x5e4b_e714_89f5_efeb,
            0x5527_6caf_8b4d_b822,
            0xa288_e258_9e23_733b,
            0x4965_ac7d_3e94_a137,
        ];
        assert_eq!(seats, expected);
        assert_eq!(hash(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff, seats[1]), 0x3714_c60b_6e99_44f9);
        assert_eq!(
            [3, 0x1234_5678_9abc_def0].map(minus_log2),
            [17_568_271_226_504_234, 1_073_483_971_977_354]
        );
    }

    proptest! {
        #[test]
        fn logarithms_never_rise(a: u64, b: u64, near in 0u64..100) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(minus_log2(low) >= minus_log2(high));
            prop_assert!(minus_log2(low) >= minus_log2(low.saturating_add(near)));
        }
    }
}
