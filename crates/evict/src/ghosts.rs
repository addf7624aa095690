//! What was evicted lately, by fingerprint.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::VecDeque;

/// A remembered object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ghost {
    pub(crate) print: u64,
    /// 0: forgotten, and only still in the ring because others are before it.
    weight: u32,
    /// The policy's own.
    pub(crate) mark: u32,
}

/// Fingerprints in the order they came, oldest forgotten first, bounded in number and in weight.
///
/// Memory: at most twice the live ghosts (and 64) of 16 bytes each, and an index of 5 bytes at up to 16/7 of the live
/// ones; vectors grow by doubling.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    ring: VecDeque<Ghost>,
    /// The number of the ring's first ghost. Numbers wrap.
    first: u32,
    index: HashTable<u32>,
    weight: u64,
}

/// Prints are uniform by contract; a multiplication makes up for owners whose prints are small numbers.
pub(crate) fn mix(print: u64) -> u64 {
    let wide = u128::from(print ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
    wide as u64 ^ (wide >> 64) as u64
}

impl Ghost {
    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }
}

impl Ghosts {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    fn find(&self, print: u64) -> Option<u32> {
        let (ring, first) = (&self.ring, self.first);
        self.index.find(mix(print), |&n| ring[n.wrapping_sub(first) as usize].print == print).copied()
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, print: u64) -> bool {
        self.find(print).is_some()
    }

    pub(crate) fn get_mut(&mut self, print: u64) -> Option<&mut Ghost> {
        let number = self.find(print)?;
        self.ring.get_mut(number.wrapping_sub(self.first) as usize)
    }

    /// Remembers an object as the newest.
    pub(crate) fn push(&mut self, print: u64, weight: u32, mark: u32) {
        let number = self.first.wrapping_add(self.ring.len() as u32);
        let (ring, first) = (&self.ring, self.first);
        let at = |n: u32| n.wrapping_sub(first) as usize;
        let found =
            self.index.entry(mix(print), |&n| ring[at(n)].print == print, |&n| mix(ring[at(n)].print));
        let known = match found {
            Entry::Occupied(mut known) => Some(at(std::mem::replace(known.get_mut(), number))),
            Entry::Vacant(vacant) => {
                vacant.insert(number);
                None
            }
        };
        self.ring.push_back(Ghost { print, weight, mark });
        self.weight += u64::from(weight);
        if let Some(at) = known {
            self.weight -= u64::from(std::mem::take(&mut self.ring[at].weight));
            self.tidy();
        }
    }

    /// Forgets an object, and says whether it was remembered and with which mark.
    pub(crate) fn remove(&mut self, print: u64) -> Option<u32> {
        let (ring, first) = (&self.ring, self.first);
        let found = self
            .index
            .find_entry(mix(print), |&n| ring[n.wrapping_sub(first) as usize].print == print)
            .ok()?;
        let (number, _) = found.remove();
        let ghost = &mut self.ring[number.wrapping_sub(self.first) as usize];
        self.weight -= u64::from(std::mem::take(&mut ghost.weight));
        let mark = ghost.mark;
        self.tidy();
        Some(mark)
    }

    /// Forgets the oldest until at most `count` of at most `weight` together are left.
    pub(crate) fn trim(&mut self, count: usize, weight: u64) {
        while self.drop_oldest(count, weight).is_some() {}
    }

    /// Forgets the oldest if there are more than `count` or they weigh more than `weight` together; its mark.
    pub(crate) fn drop_oldest(&mut self, count: usize, weight: u64) -> Option<u32> {
        if self.index.len() <= count && self.weight <= weight {
            return None;
        }
        let (&Ghost { print, weight, mark }, first) = (self.ring.front()?, self.first);
        if let Ok(found) = self.index.find_entry(mix(print), |&n| n == first) {
            found.remove();
        }
        self.weight -= u64::from(weight);
        self.ring[0].weight = 0;
        self.tidy();
        Some(mark)
    }

    /// Drops forgotten ghosts from the ring: those at its front at once, the others when they are the most of it.
    fn tidy(&mut self) {
        while self.ring.front().is_some_and(|ghost| ghost.weight == 0) {
            self.ring.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        if self.ring.len() > 2 * self.index.len() + 64 {
            self.ring.retain(|ghost| ghost.weight != 0);
            self.index.clear();
            let (ring, first) = (&self.ring, self.first);
            for (n, ghost) in ring.iter().enumerate() {
                let number = first.wrapping_add(n as u32);
                self.index.insert_unique(mix(ghost.print), number, |&n| {
                    mix(ring[n.wrapping_sub(first) as usize].print)
                });
            }
        }
    }

    pub(crate) fn memory(&self) -> usize {
        self.ring.capacity() * size_of::<Ghost>() + self.index.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_a_vector(steps in prop::collection::vec((0..4_u8, 0..60_u64, 1..9_u32), 1..600)) {
            let (mut ghosts, mut model) = (Ghosts::default(), Vec::<(u64, u32)>::new());
            for (step, print, weight) in steps {
                match step {
                    0 | 1 => {
                        ghosts.push(print, weight, 0);
                        model.retain(|&(p, _)| p != print);
                        model.push((print, weight));
                    }
                    2 => {
                        prop_assert_eq!(ghosts.remove(print).is_some(), model.iter().any(|&(p, _)| p == print));
                        model.retain(|&(p, _)| p != print);
                    }
                    _ => {
                        ghosts.trim(40, 150);
                        while model.len() > 40 || model.iter().map(|&(_, w)| u64::from(w)).sum::<u64>() > 150 {
                            model.remove(0);
                        }
                    }
                }
                prop_assert_eq!(ghosts.len(), model.len());
                prop_assert_eq!(ghosts.weight(), model.iter().map(|&(_, w)| u64::from(w)).sum::<u64>());
                prop_assert!(ghosts.ring.len() <= 2 * model.len() + 64);
                for p in 0..60 {
                    prop_assert_eq!(ghosts.contains(p), model.iter().any(|&(m, _)| m == p));
                }
            }
        }
    }
}
