//! What came of faults.

use std::time::Duration;

use kvstrata_l2::Miss;
use kvstrata_l2_fault::{Fault, FaultCount, FaultCounts};
use kvstrata_manager::{AdapterUsage, Stats};
use serde::Serialize;

use crate::report::number;

/// What a world, or several together, made of its faults.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// By class, in the order of [`Fault::ALL`].
    pub faults: [FaultCount; Fault::ALL.len()],
    /// Chunks that were delivered and compared byte by byte.
    pub verified: u64,
    /// Bytes among them that were not those stored.
    pub wrong_bytes: u64,
    /// Things that were still held when everything was at rest.
    pub leaks: u64,
    /// Calls that ended after their deadline, the margin included.
    pub late: u64,
    /// How much after its deadline the latest call ended.
    pub latest: Duration,
    /// Keys that were gone when the faults ended, and could be stored again.
    pub restored: u64,
    /// What the parts counted meanwhile, by name.
    pub became: Became,
    /// Everything that did not hold.
    pub failures: Vec<String>,
}

macro_rules! became {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What the manager, the digest check and the breaker counted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
        pub struct Became { $($(#[$doc])* pub $name: u64,)* }

        impl Became {
            fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$(($label, self.$name),)*]
            }
        }
    };
}

became! {
    /// Loads whose digest did not fit.
    digest = "digest",
    /// Loads that were too short or too long.
    truncated = "truncated",
    /// Loads that found another layout.
    layout = "layout",
    /// Loads that found nothing where a lookup had found something.
    absent = "absent",
    /// Loads that met a replacement.
    stale = "stale",
    /// Loads that met a header that is none, or another key's.
    other = "header or foreign",
    /// Bad objects that were removed at once.
    healed = "removed",
    /// Bad objects that could not be removed just then.
    unhealed = "not removed",
    /// Loads that failed.
    load_failed = "load failed",
    /// Loads answered at their deadline.
    load_late = "load timed out",
    /// Store attempts that failed.
    store_failed = "store failed",
    /// Stores that were tried again.
    retried = "store retried",
    /// Stores given up.
    gave_up = "store given up",
    /// Calls that an open breaker refused.
    refused = "refused by the breaker",
    /// How often the breaker opened.
    trips = "breaker opened",
}

impl Became {
    /// In words, what is zero left out.
    pub fn words(&self) -> String {
        let said = self.named().into_iter().filter(|(_, n)| *n > 0);
        said.map(|(name, n)| format!("{name} {}", number(n))).collect::<Vec<_>>().join(", ")
    }
}

impl Outcome {
    /// Takes down what the parts counted.
    pub(super) fn count(&mut self, faults: &FaultCounts, stats: &Stats, adapter: &AdapterUsage) {
        for (into, (_, count)) in self.faults.iter_mut().zip(faults.iter()) {
            *into = count;
        }
        let checks = &adapter.checks;
        let missed = |miss| checks.missed(miss);
        self.became = Became {
            digest: missed(Miss::Digest),
            truncated: missed(Miss::Truncated),
            layout: missed(Miss::Layout),
            absent: missed(Miss::Absent),
            stale: missed(Miss::Stale),
            other: missed(Miss::Header) + missed(Miss::Foreign),
            healed: checks.healed,
            unhealed: checks.unhealed,
            load_failed: stats.load_failures,
            load_late: stats.load_timeouts,
            store_failed: stats.store_failures,
            retried: stats.store_retries,
            gave_up: stats.store_gave_up,
            refused: adapter.breaker.map_or(0, |b| b.refused),
            trips: adapter.breaker.map_or(0, |b| b.trips),
        };
    }

    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        for (into, from) in self.faults.iter_mut().zip(&other.faults) {
            into.injected += from.injected;
            into.effective += from.effective;
        }
        self.verified += other.verified;
        self.wrong_bytes += other.wrong_bytes;
        self.leaks += other.leaks;
        self.late += other.late;
        self.latest = self.latest.max(other.latest);
        self.restored += other.restored;
        self.became.add(&other.became);
        self.failures.extend(other.failures.iter().cloned());
    }

    /// Faults of all classes.
    pub fn total(&self) -> FaultCount {
        self.faults.iter().fold(FaultCount::default(), |a, c| FaultCount {
            injected: a.injected + c.injected,
            effective: a.effective + c.effective,
        })
    }
}
