//! A policy that panics, or gives up what is in use, takes out of service what it decides on, and nothing else.
//!
//! - The eviction policy or the admission rule of L1: L1 is emptied and keeps nothing any more. What is stored passes
//!   through to L2, what is loaded is temporary.
//! - The store policy: nothing is stored in L2 any more.
//! - The prefetch policy: nothing is loaded from L2 any more.

use kvstrata_core::{Error, ErrorKind};

use crate::machine::Machine;

/// A policy that panicked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What it decided on, and what is out of service now.
    pub part: Part,
    /// What it panicked with, or what it did.
    pub panic: String,
}

/// What a policy decides on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// Who leaves L1.
    Eviction,
    /// Who comes into L1.
    Admission,
    /// What is stored in L2.
    Store,
    /// What is loaded from L2.
    Prefetch,
}

impl Part {
    /// The part's name in settings, logs and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eviction => "eviction",
            Self::Admission => "admission",
            Self::Store => "store",
            Self::Prefetch => "prefetch",
        }
    }
}

impl Machine {
    /// What panicked so far, the prefetch policy apart: that is not asked under the lock.
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let all = [
            (Part::Eviction, self.policy.fault()),
            (Part::Admission, self.admission.fault()),
            (Part::Store, self.store_policy.fault()),
        ];
        let faults = all.into_iter().filter_map(|(part, panic)| Some((part, panic?.to_owned())));
        faults.map(|(part, panic)| Fault { part, panic }).collect()
    }

    /// Why L1 is out of service, if it is.
    pub(crate) fn l1_fault(&self, operation: &'static str) -> Option<Error> {
        let panic = self.policy.fault().or(self.admission.fault())?;
        let e = Error::new(ErrorKind::Unavailable, operation, "L1 is out of service: a policy panicked");
        Some(e.with("panic", panic))
    }

    /// Looks whether a policy panicked since the last look, and takes its tier out of service.
    pub(crate) fn contain(&mut self) {
        if !self.l1_out && (self.policy.fault().is_some() || self.admission.fault().is_some()) {
            self.l1_out = true;
            let chunks = self.clear();
            tracing::error!(chunks, faults = ?self.faults(), "L1 is out of service: a policy panicked");
        }
        if !self.store_out && self.store_policy.fault().is_some() {
            self.store_out = true;
            tracing::error!(faults = ?self.faults(), "nothing is stored in L2 any more: the store policy panicked");
        }
    }
}
