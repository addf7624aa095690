//! A set of small numbers with successor and predecessor search.

/// A bitmap with summaries: a bit of one level says whether the word below it has any bit. Every operation looks at one
/// word a level, and 64-way levels make that three words for a quarter of a million numbers and four for sixteen million.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    /// Where each level starts in `words`; the first level holds the numbers themselves.
    starts: Vec<u32>,
}

impl Bits {
    /// An empty set of numbers below `len`.
    pub(crate) fn new(len: usize) -> Self {
        let mut starts = Vec::new();
        let (mut total, mut level) = (0, len);
        while level > 0 {
            starts.push(total as u32);
            let words = level.div_ceil(64);
            total += words;
            level = if words > 1 { words } else { 0 };
        }
        Self { words: vec![0; total], starts }
    }

    #[inline]
    pub(crate) fn contains(&self, at: usize) -> bool {
        self.words[at >> 6] >> (at & 63) & 1 != 0
    }

    /// Mostly the first level is all there is to do.
    #[inline]
    pub(crate) fn insert(&mut self, at: usize) {
        let word = &mut self.words[at >> 6];
        let before = *word;
        *word |= 1 << (at & 63);
        if before == 0 {
            self.insert_above(at >> 6);
        }
    }

    fn insert_above(&mut self, mut at: usize) {
        for &start in &self.starts[1..] {
            let word = &mut self.words[start as usize + (at >> 6)];
            let before = *word;
            *word |= 1 << (at & 63);
            if before != 0 {
                return;
            }
            at >>= 6;
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, at: usize) {
        let word = &mut self.words[at >> 6];
        *word &= !(1 << (at & 63));
        if *word == 0 {
            self.remove_above(at >> 6);
        }
    }

    fn remove_above(&mut self, mut at: usize) {
        for &start in &self.starts[1..] {
            let word = &mut self.words[start as usize + (at >> 6)];
            *word &= !(1 << (at & 63));
            if *word != 0 {
                return;
            }
            at >>= 6;
        }
    }

    /// Removes a number, and says whether it was a member.
    pub(crate) fn take(&mut self, at: usize) -> bool {
        let was = self.contains(at);
        if was {
            self.remove(at);
        }
        was
    }

    /// The smallest member that is at least `from`, which is below the length.
    #[inline]
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let word = self.words[from >> 6] >> (from & 63);
        if word != 0 {
            return Some(from + word.trailing_zeros() as usize);
        }
        self.next_above((from >> 6) + 1)
    }

    /// The smallest member of the words from this one on.
    fn next_above(&self, mut at: usize) -> Option<usize> {
        for level in 1..self.starts.len() {
            let end = self.starts.get(level + 1).map_or(self.words.len(), |&s| s as usize);
            let index = self.starts[level] as usize + (at >> 6);
            if index >= end {
                return None;
            }
            let word = self.words[index] >> (at & 63);
            if word != 0 {
                at += word.trailing_zeros() as usize;
                for &below in self.starts[..level].iter().rev() {
                    at = at << 6 | self.words[below as usize + at].trailing_zeros() as usize;
                }
                return Some(at);
            }
            at = (at >> 6) + 1;
        }
        None
    }

    /// The largest member that is at most `from`.
    pub(crate) fn prev(&self, from: usize) -> Option<usize> {
        let mut at = from;
        for (level, &start) in self.starts.iter().enumerate() {
            let word = self.words[start as usize + (at >> 6)] << (63 - (at & 63));
            if word != 0 {
                at -= word.leading_zeros() as usize;
                for &below in self.starts[..level].iter().rev() {
                    at = at << 6 | (63 - self.words[below as usize + at].leading_zeros() as usize);
                }
                return Some(at);
            }
            at = (at >> 6).checked_sub(1)?;
        }
        None
    }

    pub(crate) fn memory(&self) -> usize {
        self.words.capacity() * 8 + self.starts.capacity() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_a_tree(len in prop_oneof![Just(64_usize), Just(4096), Just(8192), Just(300_000)],
                              steps in prop::collection::vec((any::<bool>(), any::<usize>(), any::<usize>()), 1..200)) {
            let (mut bits, mut tree) = (Bits::new(len), BTreeSet::new());
            for (add, at, probe) in steps {
                let (at, probe) = (at % len, probe % len);
                if add {
                    bits.insert(at);
                    tree.insert(at);
                } else if let Some(&gone) = tree.range(at..).next() {
                    bits.remove(gone);
                    tree.remove(&gone);
                }
                prop_assert_eq!(bits.next(probe), tree.range(probe..).next().copied());
                prop_assert_eq!(bits.prev(probe), tree.range(..=probe).next_back().copied());
                prop_assert_eq!(bits.contains(at), tree.contains(&at));
            }
        }
    }
}
