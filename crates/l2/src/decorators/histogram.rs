//! Latencies in fixed buckets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first bucket ends here: 1.024 µs.
const FIRST: u32 = 10;
/// Doublings after it: up to 68.7 s.
const OCTAVES: usize = 26;
/// Buckets of each doubling, equally wide.
const STEPS: usize = 4;
/// One below, the steps, and one above.
const BUCKETS: usize = OCTAVES * STEPS + 2;

/// Durations on a logarithmic scale with four steps to each doubling, from a microsecond to a minute. Recording is one
/// addition of each of two atomics.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], nanos: AtomicU64::new(0) }
    }
}

fn bucket(nanos: u64) -> usize {
    let Some(octave) = nanos.checked_ilog2().and_then(|log| log.checked_sub(FIRST)) else { return 0 };
    let step = (nanos >> (octave + FIRST - STEPS.ilog2())) as usize % STEPS;
    (1 + octave as usize * STEPS + step).min(BUCKETS - 1)
}

/// Where a bucket ends, itself excluded; the last one does not.
fn end(bucket: usize) -> Option<Duration> {
    let nanos = match bucket.checked_sub(1) {
        None => 1 << FIRST,
        Some(i) => ((STEPS + i % STEPS + 1) as u64) << (i / STEPS + FIRST as usize - STEPS.ilog2() as usize),
    };
    (bucket + 1 < BUCKETS).then(|| Duration::from_nanos(nanos))
}

impl Histogram {
    /// Adds one.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Now.
    pub fn counts(&self) -> HistogramCounts {
        HistogramCounts {
            buckets: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

/// A histogram at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistogramCounts {
    buckets: [u64; BUCKETS],
    /// All durations together.
    pub sum: Duration,
}

impl Default for HistogramCounts {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: Duration::ZERO }
    }
}

impl HistogramCounts {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The buckets in order: where each ends (`None`: it does not), and how many are in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.buckets.iter().enumerate().map(|(i, n)| (end(i), *n))
    }

    /// A duration that this part of all is below, at most a quarter too long. `None` without durations, or if it is beyond
    /// the last bucket.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let wanted = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.buckets().find_map(|(end, n)| {
            seen += n;
            (seen >= wanted).then_some(end)
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_bucket_whose_bounds_hold_it() {
        let mut nanos = 1u64;
        while nanos < 1 << 40 {
            for n in [nanos - 1, nanos, nanos + 1] {
                let at = bucket(n);
                assert!(end(at).is_none_or(|e| Duration::from_nanos(n) < e), "{n} in {at}");
                let start = at.checked_sub(1).and_then(end).unwrap_or(Duration::ZERO);
                assert!(Duration::from_nanos(n) >= start, "{n} in {at}");
            }
            nanos += nanos / 7 + 1;
        }
        let ends: Vec<_> = (0..BUCKETS).map(end).collect();
        assert!(ends[..BUCKETS - 1].is_sorted() && ends[BUCKETS - 1].is_none());
        assert_eq!(ends[BUCKETS - 2], Some(Duration::from_nanos(1 << 36)));
    }

    #[test]
    fn quantiles_are_at_most_a_quarter_too_long() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counts().quantile(0.5), None);
        (1..=1000).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let counts = histogram.counts();
        assert_eq!((counts.count(), counts.sum), (1000, Duration::from_millis(500_500)));
        for (part, ms) in [(0.5, 500), (0.99, 990), (1.0, 1000), (0.0, 1)] {
            let got = counts.quantile(part).unwrap();
            let exact = Duration::from_millis(ms);
            assert!(got > exact && got <= exact * 5 / 4, "{part}: {got:?}");
        }
        histogram.record(Duration::from_secs(100));
        assert_eq!(histogram.counts().quantile(1.0), None);
    }
}
