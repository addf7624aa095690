//! How often an object was asked for lately, within a few bytes per resident.

use crate::ghosts::mix;

/// The highest count.
const MAX: u64 = 15;
/// The lowest bit of each counter in a word.
const ONES: u64 = 0x1111_1111_1111_1111;

/// A count-min sketch of 4-bit counters, halved after ten times as many events as it has words, so that it forgets.
///
/// Memory: 8 bytes per word, and as many words as the most residents, rounded up to a power of two.
///
/// Source: Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    words: Vec<u64>,
    events: usize,
}

impl Default for Sketch {
    fn default() -> Self {
        Self { words: vec![0; 64], events: 0 }
    }
}

impl Sketch {
    /// Makes the sketch large enough for so many residents. What it knows stays.
    pub(crate) fn ensure(&mut self, residents: usize) {
        while self.words.len() < residents {
            self.words.extend_from_within(..);
        }
    }

    /// Four counters, in four words: word number and bit.
    fn places(&self, print: u64) -> [(usize, u32); 4] {
        let hash = mix(print);
        let step = mix(hash) | 1;
        [0, 1, 2, 3].map(|row| {
            let at = hash.wrapping_add(step.wrapping_mul(row));
            (at as usize & (self.words.len() - 1), ((at >> 58) as u32 & 3 | (row as u32) << 2) * 4)
        })
    }

    pub(crate) fn count(&self, print: u64) -> u64 {
        self.places(print).iter().map(|&(word, bit)| self.words[word] >> bit & MAX).min().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, print: u64) {
        for (word, bit) in self.places(print) {
            if self.words[word] >> bit & MAX < MAX {
                self.words[word] += 1 << bit;
            }
        }
        self.events += 1;
        if self.events >= self.words.len() * 10 {
            self.events /= 2;
            for word in &mut self.words {
                *word = *word >> 1 & (ONES * 7);
            }
        }
    }

    pub(crate) fn memory(&self) -> usize {
        self.words.capacity() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_never_too_low_and_rarely_too_high() {
        let mut sketch = Sketch::default();
        sketch.ensure(1024);
        for print in 0..1000 {
            for _ in 0..print % 8 {
                sketch.add(print);
            }
        }
        let too_high = (0..1000).filter(|&print| {
            assert!(sketch.count(print) >= print % 8, "{print}");
            sketch.count(print) > print % 8
        });
        assert!(too_high.count() < 50);
        sketch.ensure(4096);
        assert!((0..1000).all(|print| sketch.count(print) >= print % 8), "growing keeps what is known");
    }

    #[test]
    fn it_forgets() {
        let mut sketch = Sketch::default();
        for _ in 0..15 {
            sketch.add(7);
        }
        for print in 100..5_000 {
            sketch.add(print);
        }
        assert!(sketch.count(7) < 15, "{}", sketch.count(7));
    }

    #[test]
    fn a_counter_stops_at_fifteen() {
        let mut sketch = Sketch::default();
        (0..40).for_each(|_| sketch.add(7));
        assert_eq!(sketch.count(7), 15);
    }
}
