//! How many faults there were.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Fault;

const CLASSES: usize = Fault::ALL.len();

#[derive(Debug, Default)]
pub(crate) struct Counters {
    injected: [AtomicU64; CLASSES],
    effective: [AtomicU64; CLASSES],
}

impl Counters {
    pub(crate) fn injected(&self, fault: Fault) {
        self.injected[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn effective(&self, fault: Fault) {
        self.effective[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A fault that is looked at where it happens.
    pub(crate) fn both(&self, fault: Fault) {
        self.injected(fault);
        self.effective(fault);
    }

    pub(crate) fn now(&self) -> FaultCounts {
        FaultCounts(std::array::from_fn(|i| FaultCount {
            injected: self.injected[i].load(Ordering::Relaxed),
            effective: self.effective[i].load(Ordering::Relaxed),
        }))
    }
}

/// The counts of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCount {
    /// Faults put in place.
    pub injected: u64,
    /// Those that changed bytes or an outcome that was then looked at: a damaged object counts when it is loaded, a lost
    /// write when the key is missed, an error when it is answered, a delay or a hang when the deadline passed in it and
    /// that was the answer. Each counts once. What the medium forgets before anybody looks never counts.
    pub effective: u64,
}

/// The counts of every class at one moment. They only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts([FaultCount; CLASSES]);

impl FaultCounts {
    /// Those of one class.
    pub fn of(&self, fault: Fault) -> FaultCount {
        self.0[fault as usize]
    }

    /// Class by class, in the order of [`Fault::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Fault, FaultCount)> {
        Fault::ALL.into_iter().zip(self.0)
    }

    /// Of all classes together.
    pub fn total(&self) -> FaultCount {
        self.0.iter().fold(FaultCount::default(), |a, c| FaultCount {
            injected: a.injected + c.injected,
            effective: a.effective + c.effective,
        })
    }
}
