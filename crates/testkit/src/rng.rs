//! A small random source that gives the same numbers everywhere.

/// xoshiro256** (Blackman and Vigna 2018), seeded through SplitMix64. Integers only, so that a seed means the same on
/// every machine.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

/// The finaliser of SplitMix64, a bijection of `u64`.
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        Self(std::array::from_fn(|i| mix(seed.wrapping_add(GOLDEN.wrapping_mul(i as u64 + 1)))))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number below `n`, each equally likely (to within `n / 2^64`).
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no number is below 0");
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// True `percent` times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A wait with this mean from the exponential distribution, so that events after such waits are a Poisson process.
    /// By von Neumann's comparisons (1951), which need no logarithm.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        let mut whole = 0u64;
        loop {
            let first = self.bits();
            let (mut last, mut falling) = (first, 1u32);
            loop {
                let next = self.bits();
                if next >= last {
                    break;
                }
                last = next;
                falling += 1;
            }
            if falling % 2 == 1 {
                let part = ((u128::from(first) * u128::from(mean)) >> 64) as u64;
                return whole.saturating_mul(mean).saturating_add(part);
            }
            whole += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        assert_eq!(Rng::new(0).bits(), 0x99ec_5f36_cb75_f2b4, "as reference implementations seeded with 0");
        assert_ne!(Rng::new(1).bits(), Rng::new(2).bits());
    }

    #[test]
    fn waits_have_the_mean_and_the_spread_of_an_exponential() {
        let mut r = Rng::new(1);
        let n = 100_000u64;
        let waits: Vec<u64> = (0..n).map(|_| r.exponential(1000)).collect();
        let mean = waits.iter().sum::<u64>() / n;
        assert!((970..1030).contains(&mean), "{mean}");
        // P(wait > mean) = 1/e = 0.368
        let above = waits.iter().filter(|w| **w > 1000).count() as u64 * 1000 / n;
        assert!((358..378).contains(&above), "{above}");
    }

    #[test]
    fn below_reaches_all_and_only_what_is_below() {
        let mut r = Rng::new(3);
        let mut seen = [0u32; 5];
        (0..1000).for_each(|_| seen[r.below(5) as usize] += 1);
        assert!(seen.iter().all(|n| *n > 150), "{seen:?}");
    }
}
