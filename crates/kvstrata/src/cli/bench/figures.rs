//! What a bench measures, and how it is told.

use std::time::Duration;

use serde::Serialize;

use crate::cli::report::{self, Latency, Percentiles};

/// One kind of call on one side: the time of each batch, and of each round.
pub(super) struct Phase {
    batches: Latency,
    rounds: Vec<(Duration, u64)>,
    cpu: f64,
}

impl Phase {
    pub(super) fn new() -> Self {
        Self { batches: Latency::new(), rounds: Vec::new(), cpu: 0.0 }
    }

    pub(super) fn begin_round(&mut self) {
        self.rounds.push((Duration::ZERO, 0));
    }

    /// A batch took so long, moved so many bytes (or asked for so many keys), and cost so many seconds of all cores.
    pub(super) fn record(&mut self, took: Duration, amount: u64, cpu: f64) {
        self.batches.record(took);
        if let Some((time, sum)) = self.rounds.last_mut() {
            *time += took;
            *sum += amount;
        }
        self.cpu += cpu;
    }

    fn per_round(&self) -> impl Iterator<Item = f64> + '_ {
        self.rounds.iter().map(|(took, bytes)| report::gbps(*bytes, *took))
    }

    pub(super) fn gbps(&self) -> f64 {
        median(self.per_round().collect())
    }

    /// The median of the rounds' ratios of this throughput to the other's.
    pub(super) fn ratio_to(&self, other: &Self) -> f64 {
        median(self.per_round().zip(other.per_round()).map(|(a, b)| a / b.max(1e-12)).collect())
    }

    /// Microseconds per unit of the amounts that were recorded.
    pub(super) fn us_each(&self) -> f64 {
        median(self.rounds.iter().map(|(t, n)| t.as_secs_f64() * 1e6 / (*n).max(1) as f64).collect())
    }

    pub(super) fn cpu_per_gb(&self) -> f64 {
        let bytes: u64 = self.rounds.iter().map(|(_, bytes)| bytes).sum();
        self.cpu / (bytes.max(1) as f64 / 1e9)
    }

    pub(super) fn batches(&self) -> Percentiles {
        self.batches.percentiles()
    }
}

/// The middle value; of an even number of them, the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Seconds of processor time that all threads of this process have had, to the nanosecond where the kernel says.
pub(super) fn cpu_seconds() -> f64 {
    threads_nanos().map_or_else(|| ticks() as f64 / 100.0, |ns| ns as f64 / 1e9)
}

fn threads_nanos() -> Option<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        // Threads that end meanwhile are none of those that are measured.
        let Ok(text) = std::fs::read_to_string(thread.ok()?.path().join("schedstat")) else { continue };
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (sum > 0).then_some(sum)
}

/// User and system time in hundredths of a second, which is what Linux counts for user space in `/proc`.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th fields after it.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
}

/// The same calls beside the adapter's.
#[derive(Serialize, Debug)]
pub(super) struct PlainFigures {
    pub(super) threads: usize,
    pub(super) direct_read: bool,
    pub(super) direct_write: bool,
    pub(super) store_gbps: f64,
    pub(super) load_gbps: f64,
    pub(super) store_us: Percentiles,
    pub(super) load_us: Percentiles,
    pub(super) store_cpu_s_per_gb: f64,
    pub(super) load_cpu_s_per_gb: f64,
}

/// One file that is there already, all requests of a batch at once.
#[derive(Serialize, Debug)]
pub(super) struct DeviceFigures {
    pub(super) direct: bool,
    pub(super) store_gbps: f64,
    pub(super) load_gbps: f64,
    /// What the adapter reaches of that in the same round.
    pub(super) store_percent: f64,
    pub(super) load_percent: f64,
    /// None where it is not installed.
    pub(super) fio_store_gbps: Option<f64>,
    pub(super) fio_load_gbps: Option<f64>,
}

/// The figures. `schema_version` changes when the meaning of a field does. Throughputs are 10^9 bytes a second, and like
/// ratios and times per key the median of the rounds; percentiles are of the batches.
#[derive(Serialize, Debug)]
pub(super) struct Figures {
    pub(super) schema_version: u32,
    pub(super) adapter: String,
    pub(super) keys: u64,
    pub(super) size: u64,
    pub(super) batch: u64,
    pub(super) rounds: u64,
    pub(super) digests: bool,
    pub(super) store_gbps: f64,
    pub(super) load_gbps: f64,
    pub(super) lookup_us_per_key: f64,
    pub(super) delete_us_per_key: f64,
    /// To the plain calls of the same round; none for an adapter without files.
    pub(super) store_ratio: Option<f64>,
    pub(super) load_ratio: Option<f64>,
    pub(super) store_us: Percentiles,
    pub(super) lookup_us: Percentiles,
    pub(super) load_us: Percentiles,
    pub(super) delete_us: Percentiles,
    pub(super) store_cpu_s_per_gb: f64,
    pub(super) load_cpu_s_per_gb: f64,
    pub(super) plain: Option<PlainFigures>,
    /// None for an adapter without files.
    pub(super) device: Option<DeviceFigures>,
    /// The ceiling that the adapter was given, if any.
    pub(super) bandwidth_limit_gbps: Option<f64>,
    pub(super) failed_stores: u64,
    pub(super) failed_lookups: u64,
    pub(super) failed_loads: u64,
    pub(super) failed_deletes: u64,
    pub(super) unverified_loads: u64,
    pub(super) wrong_bytes: u64,
}

impl Figures {
    pub(super) fn failures(&self) -> u64 {
        self.failed_stores + self.failed_lookups + self.failed_loads + self.failed_deletes
    }

    pub(super) fn print(&self) {
        let shape = format!(
            "{} keys of {} in batches of {}, {} rounds",
            self.keys,
            report::bytes(self.size),
            self.batch,
            self.rounds
        );
        let side = |gbps: f64, times: &Percentiles, cpu: f64| {
            format!("{gbps:.3} GB/s, {cpu:.2} cpu s/GB, batches of {times}")
        };
        let mut rows = vec![
            ("adapter", self.adapter.clone()),
            ("work", shape),
            ("digests", if self.digests { "made and checked".into() } else { "off".to_owned() }),
            ("store", side(self.store_gbps, &self.store_us, self.store_cpu_s_per_gb)),
            ("load", side(self.load_gbps, &self.load_us, self.load_cpu_s_per_gb)),
        ];
        if let Some(p) = &self.plain {
            let how = |direct| if direct { "direct" } else { "through the page cache" };
            rows.push(("plain pwrite", side(p.store_gbps, &p.store_us, p.store_cpu_s_per_gb)));
            rows.push(("plain pread", side(p.load_gbps, &p.load_us, p.load_cpu_s_per_gb)));
            let how = format!("{} threads, {} / {}", p.threads, how(p.direct_write), how(p.direct_read));
            rows.push(("  with", how));
        }
        if let (Some(store), Some(load)) = (self.store_ratio, self.load_ratio) {
            rows.push(("store to plain", format!("{store:.3}")));
            rows.push(("load to plain", format!("{load:.3}")));
        }
        if let Some(d) = &self.device {
            let how = if d.direct { "past the page cache" } else { "through the page cache" };
            let gives = format!("write {:.3} GB/s, read {:.3} GB/s, {how}", d.store_gbps, d.load_gbps);
            rows.push(("device", gives));
            rows.push((
                "of the device",
                format!("store {:.1} %, load {:.1} %", d.store_percent, d.load_percent),
            ));
            if let (Some(write), Some(read)) = (d.fio_store_gbps, d.fio_load_gbps) {
                rows.push(("fio", format!("write {write:.3} GB/s, read {read:.3} GB/s")));
            }
        }
        if let Some(limit) = self.bandwidth_limit_gbps {
            let of = |gbps: f64| format!("{gbps:.3} GB/s ({:.1} %)", 100.0 * gbps / limit);
            let reached = format!("store {}, load {}", of(self.store_gbps), of(self.load_gbps));
            rows.push(("ceiling", format!("{limit:.3} GB/s; reached: {reached}")));
        }
        rows.push((
            "lookup",
            format!("{:.3} µs a key, batches of {}", self.lookup_us_per_key, self.lookup_us),
        ));
        rows.push((
            "delete",
            format!("{:.3} µs a key, batches of {}", self.delete_us_per_key, self.delete_us),
        ));
        if self.failures() > 0 {
            let failed = [
                ("stores", self.failed_stores),
                ("lookups", self.failed_lookups),
                ("loads", self.failed_loads),
                ("deletes", self.failed_deletes),
            ];
            let failed: Vec<String> = failed.iter().map(|(what, n)| format!("{n} {what}")).collect();
            rows.push(("failed", failed.join(", ")));
        }
        rows.push(("unverified loads", self.unverified_loads.to_string()));
        rows.push(("wrong bytes", self.wrong_bytes.to_string()));
        report::table(&rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_medians_of_the_rounds() {
        let (mut a, mut b) = (Phase::new(), Phase::new());
        // One round in which everything stood still must not count.
        for (ours, theirs) in [(2, 1), (2, 1), (90, 1)] {
            a.begin_round();
            b.begin_round();
            a.record(Duration::from_millis(ours), 1_000_000, 0.5);
            b.record(Duration::from_millis(theirs), 1_000_000, 0.0);
        }
        assert!((a.gbps() - 0.5).abs() < 1e-9 && (a.ratio_to(&b) - 0.5).abs() < 1e-9);
        assert!((a.cpu_per_gb() - 500.0).abs() < 1e-6);
        assert_eq!(median(vec![3.0, 1.0]), 2.0);
    }

    #[test]
    fn work_costs_processor_time() {
        let (precise, coarse) = (cpu_seconds(), ticks());
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::hint::black_box((0..1000).sum::<u64>());
        }
        assert!(cpu_seconds() > precise && ticks() > coarse);
    }
}
