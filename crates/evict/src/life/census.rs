//! Who lives, by generation of the last use and by class, and how often who returned.

use super::ages::{BUCKETS, OLDEST, bucket, first_age};
use super::class::CLASSES;
use std::collections::VecDeque;

/// 2^(-1/160): counts halve in 160 generations, which are 20 capacities.
const FADE: f64 = 0.995_677_200_433_284;

/// Counts by class and age.
pub(super) type Table = [[f64; BUCKETS]; CLASSES];

/// The life table: how long entries of each class and age were there to return, in generations, and how many did.
///
/// Memory: 344 bytes for each of the last 128 generations, and 25 KiB.
#[derive(Debug)]
pub(super) struct Census {
    /// Residents and ghosts by the generation of their last use, oldest first; the last is the current one. The first
    /// also has what is older.
    born: VecDeque<[u32; CLASSES]>,
    /// The same by age bucket. Kept, so that the end of a generation moves only what crosses from bucket to bucket.
    aged: [[u32; CLASSES]; BUCKETS],
    now: u32,
    pub(super) risk: Table,
    pub(super) returns: Table,
    /// Returns, and requests with any.
    pub(super) chunks: f64,
    pub(super) requests: f64,
}

impl Default for Census {
    fn default() -> Self {
        let mut born = VecDeque::with_capacity(OLDEST as usize + 2);
        born.push_back([0; CLASSES]);
        Self {
            born,
            aged: [[0; CLASSES]; BUCKETS],
            now: 0,
            risk: [[0.0; BUCKETS]; CLASSES],
            returns: [[0.0; BUCKETS]; CLASSES],
            chunks: 0.0,
            requests: 0.0,
        }
    }
}

impl Census {
    /// The number of the current generation. Numbers wrap.
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// How old the entries of a generation are, as far as ages are told apart.
    pub(super) fn age(&self, generation: u32) -> u32 {
        self.now.wrapping_sub(generation).min(OLDEST)
    }

    /// An entry was used, and is of this class from now on.
    pub(super) fn enter(&mut self, class: usize) {
        let newest = self.born.len() - 1;
        self.born[newest][class] += 1;
        self.aged[0][class] += 1;
    }

    /// An entry of this class, used last in that generation, is used again or forgotten.
    pub(super) fn leave(&mut self, class: usize, generation: u32) {
        let age = self.age(generation);
        let row = (self.born.len() - 1).saturating_sub(age as usize);
        // A ghost of 2^25 generations ago is taken for a younger one: then one is missing here.
        for count in [&mut self.born[row][class], &mut self.aged[bucket(age)][class]] {
            *count = count.saturating_sub(1);
        }
    }

    /// An entry of this class, used last in that generation, is used again; the first such entry of its request or not.
    pub(super) fn returned(&mut self, class: usize, generation: u32, first: bool) {
        self.returns[class][bucket(self.age(generation))] += 1.0;
        self.chunks += 1.0;
        self.requests += f64::from(u8::from(first));
    }

    /// A generation ends: everybody was there for all of it, and those used in it for half of it on average.
    pub(super) fn end_generation(&mut self) {
        for class in 0..CLASSES {
            for (at, aged) in self.aged.iter().enumerate() {
                let there = if at == 0 { 0.5 } else { 1.0 };
                self.risk[class][at] += f64::from(aged[class]) * there;
            }
        }
        self.fade();
        self.grow_older();
        self.now = self.now.wrapping_add(1);
    }

    /// What was counted counts a little less.
    pub(super) fn fade(&mut self) {
        let counts = self.risk.iter_mut().chain(&mut self.returns).flatten();
        counts.chain([&mut self.chunks, &mut self.requests]).for_each(|count| *count *= FADE);
    }

    fn grow_older(&mut self) {
        // Those who are one generation short of a bucket come into it.
        for at in (1..BUCKETS).rev() {
            let Some(row) = self.born.len().checked_sub(first_age(at) as usize) else { continue };
            let crossing = self.born[row];
            for (class, count) in crossing.into_iter().enumerate() {
                self.aged[at - 1][class] = self.aged[at - 1][class].saturating_sub(count);
                self.aged[at][class] += count;
            }
        }
        self.born.push_back([0; CLASSES]);
        if self.born.len() > OLDEST as usize + 1
            && let (Some(oldest), Some(next)) = (self.born.pop_front(), self.born.front_mut())
        {
            next.iter_mut().zip(oldest).for_each(|(count, older)| *count += older);
        }
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.born.capacity() * size_of::<[u32; CLASSES]>()
    }
}
