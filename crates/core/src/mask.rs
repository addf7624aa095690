//! One bit per key of a batch.

use std::fmt;

/// The answers of a batch: bit `i` is about the key at position `i`.
///
/// ```
/// use kvstrata_core::KeyMask;
/// let mut hit = KeyMask::none(5);
/// hit.set(0); hit.set(1); hit.set(3);
/// assert_eq!((hit.count(), hit.prefix()), (3, 2));
/// assert_eq!(hit.iter().collect::<Vec<_>>(), [0, 1, 3]);
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct KeyMask {
    words: Vec<u64>,
    len: usize,
}

impl KeyMask {
    /// `len` keys, none set.
    pub fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// `len` keys, all set.
    pub fn all(len: usize) -> Self {
        let mut m = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        m.trim();
        m
    }

    /// `len` keys of which the first `prefix` are set.
    ///
    /// # Panics
    /// If `prefix > len`.
    pub fn first(prefix: usize, len: usize) -> Self {
        assert!(prefix <= len, "a prefix of {prefix} in a batch of {len}");
        let mut m = Self::all(prefix);
        m.words.resize(len.div_ceil(64), 0);
        m.len = len;
        m
    }

    /// Clears the unused bits of the last word, which every other operation relies on.
    fn trim(&mut self) {
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no keys at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether key `i` is set.
    ///
    /// # Panics
    /// If there is no key `i`.
    pub fn get(&self, i: usize) -> bool {
        assert!(i < self.len, "key {i} of {}", self.len);
        self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// Sets key `i`.
    ///
    /// # Panics
    /// If there is no key `i`.
    pub fn set(&mut self, i: usize) {
        assert!(i < self.len, "key {i} of {}", self.len);
        self.words[i / 64] |= 1 << (i % 64);
    }

    /// Clears key `i`.
    ///
    /// # Panics
    /// If there is no key `i`.
    pub fn clear(&mut self, i: usize) {
        assert!(i < self.len, "key {i} of {}", self.len);
        self.words[i / 64] &= !(1 << (i % 64));
    }

    /// How many keys are set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// How many keys are set before the first that is not: the usable prefix.
    pub fn prefix(&self) -> usize {
        let full = self.words.iter().take_while(|w| **w == u64::MAX).count();
        let rest = self.words.get(full).map_or(0, |w| w.trailing_ones() as usize);
        full * 64 + rest
    }

    /// Whether every key is set (true for no keys).
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// Whether no key is set.
    pub fn is_clear(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The positions that are set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &w)| {
            std::iter::successors((w != 0).then_some(w), |w| Some(w & (w - 1)).filter(|w| *w != 0))
                .map(move |w| i * 64 + w.trailing_zeros() as usize)
        })
    }

    fn zip(&mut self, other: &Self, f: impl Fn(u64, u64) -> u64) {
        assert_eq!(self.len, other.len, "masks of two batches");
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a = f(*a, *b));
    }

    /// Keeps the keys that are set in both.
    ///
    /// # Panics
    /// If the masks have different lengths, as do the two below.
    pub fn intersect(&mut self, other: &Self) {
        self.zip(other, |a, b| a & b);
    }

    /// Adds the keys of `other`.
    pub fn union(&mut self, other: &Self) {
        self.zip(other, |a, b| a | b);
    }

    /// Takes the keys of `other` away.
    pub fn subtract(&mut self, other: &Self) {
        self.zip(other, |a, b| a & !b);
    }

    /// The keys that are not set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut m = Self { words: self.words.iter().map(|w| !w).collect(), len: self.len };
        m.trim();
        m
    }
}

impl FromIterator<bool> for KeyMask {
    fn from_iter<I: IntoIterator<Item = bool>>(bits: I) -> Self {
        let mut m = Self::default();
        for bit in bits {
            if m.len.is_multiple_of(64) {
                m.words.push(0);
            }
            m.len += 1;
            if bit {
                m.set(m.len - 1);
            }
        }
        m
    }
}

impl fmt::Debug for KeyMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {:?}", self.count(), self.len, self.iter().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_vector_of_bools(bits in prop::collection::vec(any::<bool>(), 0..300), other: u64) {
            let m: KeyMask = bits.iter().copied().collect();
            prop_assert_eq!(m.len(), bits.len());
            prop_assert_eq!(m.count(), bits.iter().filter(|b| **b).count());
            prop_assert_eq!(m.prefix(), bits.iter().take_while(|b| **b).count());
            prop_assert_eq!(m.iter().collect::<Vec<_>>(),
                bits.iter().enumerate().filter(|(_, b)| **b).map(|(i, _)| i).collect::<Vec<_>>());
            prop_assert_eq!(m.complement().complement(), m.clone());
            prop_assert_eq!(m.complement().count(), bits.len() - m.count());
            let o: KeyMask = (0..bits.len()).map(|i| other >> (i % 64) & 1 == 1).collect();
            let mut u = m.clone(); u.union(&o);
            let mut x = m.clone(); x.intersect(&o);
            let mut s = m.clone(); s.subtract(&o);
            for i in 0..bits.len() {
                prop_assert_eq!(u.get(i), m.get(i) || o.get(i));
                prop_assert_eq!(x.get(i), m.get(i) && o.get(i));
                prop_assert_eq!(s.get(i), m.get(i) && !o.get(i));
            }
        }

        #[test]
        fn first_is_a_prefix(len in 0usize..300, cut in 0usize..300) {
            let m = KeyMask::first(cut.min(len), len);
            prop_assert_eq!((m.prefix(), m.count(), m.len()), (cut.min(len), cut.min(len), len));
        }
    }
}
