//! Families of samples on a page.

use std::fmt;
use std::time::Duration;

use kvstrata_l2::HistogramCounts;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Names and values, in the order in which they are shown.
pub(crate) type Labels<'a> = Vec<(&'a str, &'a str)>;

/// The page under construction. Each family is written once, with all its samples.
pub(crate) struct Page<'a>(pub(crate) DescriptorEncoder<'a>);

/// Adjacent steps of the adapters' histograms that make one bucket here: two doublings. 15 buckets from a microsecond to a
/// minute are enough to see a tail, and cheap to keep.
const STEPS: usize = 8;

impl Page<'_> {
    /// Counts that only grow. The format adds `_total` to the name.
    pub(crate) fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// What is so now.
    pub(crate) fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Durations.
    pub(crate) fn seconds<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, HistogramCounts)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, counts) in samples {
            let buckets = buckets(&counts);
            // The buckets' own sum: a reader finds the same number in both places, whatever was recorded meanwhile.
            let count = buckets.iter().map(|(_, n)| n).sum();
            let mut sample = family.encode_family(&labels)?;
            sample.encode_histogram::<NoLabelSet>(counts.sum.as_secs_f64(), count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Where each bucket ends in seconds, and how many are in it alone.
fn buckets(counts: &HistogramCounts) -> Vec<(f64, u64)> {
    let mut out = Vec::new();
    let mut inside = 0;
    for (at, (end, n)) in counts.buckets().enumerate() {
        inside += n;
        if at % STEPS == 0 || end.is_none() {
            out.push((end.map_or(f64::INFINITY, |end: Duration| end.as_secs_f64()), inside));
            inside = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstrata_l2::Histogram;

    #[test]
    fn every_duration_is_in_one_bucket_and_below_its_end() {
        let histogram = Histogram::default();
        let took = [1, 2_000, 900_000, 5_000_000, 3_000_000_000, 500_000_000_000].map(Duration::from_nanos);
        took.iter().for_each(|t| histogram.record(*t));
        let buckets = buckets(&histogram.counts());
        assert_eq!(buckets.len(), 15);
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(buckets.iter().map(|(_, n)| n).sum::<u64>(), took.len() as u64);
        for t in took {
            let at = buckets.iter().position(|(end, _)| t.as_secs_f64() < *end).expect("the last has no end");
            assert!(buckets[at].1 > 0, "{t:?} is not in the bucket that ends at {}", buckets[at].0);
        }
    }
}
