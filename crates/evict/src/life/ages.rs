//! Ages in generations, and the buckets they are counted in.

/// Generations that are told apart: what is older is all of one age. It is where the last bucket begins.
pub(super) const OLDEST: u32 = 128;

/// Age buckets: four of one generation each, then two per doubling.
pub(super) const BUCKETS: usize = bucket(OLDEST) + 1;

/// The bucket of an age.
pub(super) const fn bucket(age: u32) -> usize {
    if age < 4 {
        return age as usize;
    }
    let age = if age < OLDEST { age } else { OLDEST };
    let log = age.ilog2();
    (2 * log + (age >> (log - 1) & 1)) as usize
}

/// The age a bucket begins at.
pub(super) const fn first_age(bucket: usize) -> u32 {
    if bucket < 4 {
        return bucket as u32;
    }
    (2 + bucket as u32 % 2) << (bucket / 2 - 1)
}

/// How many times the length of a bucket is halved until it is one generation: every length is a power of two. The last
/// bucket, which has no end, counts as long as what is before it.
pub(super) const fn log_length(bucket: usize) -> u32 {
    if bucket + 1 < BUCKETS { (first_age(bucket + 1) - first_age(bucket)).ilog2() } else { OLDEST.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for age in 0..2 * OLDEST {
            let at = bucket(age);
            assert!(first_age(at) <= age, "{age}");
            assert!(at + 1 == BUCKETS || age < first_age(at + 1), "{age}");
        }
        for at in 0..BUCKETS - 1 {
            assert_eq!(first_age(at) + (1 << log_length(at)), first_age(at + 1));
        }
        assert_eq!(first_age(BUCKETS - 1), OLDEST);
    }
}
