//! The classes of faults, and what each can be done to.

use serde::Deserialize;

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Storing.
    Put,
    /// Loading.
    Get,
    /// Looking up.
    Probe,
    /// Removing.
    Remove,
    /// Listing.
    List,
}

impl Op {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Probe, Self::Remove, Self::List];

    /// Its name in a script.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Probe => "probe",
            Self::Remove => "remove",
            Self::List => "list",
        }
    }
}

/// A class of faults.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The key fails with an I/O error, and the store is not asked.
    Error,
    /// The call waits before the store is asked.
    Delay,
    /// The call waits for [`crate::Injector::release`], or as long as `hang_ms` says; the caller is answered by its deadline,
    /// and the buffers stay.
    Hang,
    /// The end of the payload is zeros on the medium, and the description is that of the whole.
    TornWrite,
    /// The object is shorter than what was stored. A load says so, and what follows in the buffer is not the payload.
    Truncation,
    /// One bit is another, on the medium or on the way from it.
    BitFlip,
    /// A key gets the whole object of another key, description and all.
    Swap,
    /// A store or a removal is said to be done, and nothing was done.
    LostWrite,
    /// The store is declined for want of room.
    NoSpace,
    /// A lookup or a listing says that a key is there that is not, or the reverse.
    StaleListing,
    /// A load misses what is there. What LMCache's `fault_inject` does.
    Gap,
    /// The call panics. Only where it is asked for by name.
    Panic,
}

impl Fault {
    /// Every class.
    pub const ALL: [Self; 12] = [
        Self::Error,
        Self::Delay,
        Self::Hang,
        Self::TornWrite,
        Self::Truncation,
        Self::BitFlip,
        Self::Swap,
        Self::LostWrite,
        Self::NoSpace,
        Self::StaleListing,
        Self::Gap,
        Self::Panic,
    ];

    /// Its name in settings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Delay => "delay",
            Self::Hang => "hang",
            Self::TornWrite => "torn_write",
            Self::Truncation => "truncation",
            Self::BitFlip => "bit_flip",
            Self::Swap => "swap",
            Self::LostWrite => "lost_write",
            Self::NoSpace => "no_space",
            Self::StaleListing => "stale_listing",
            Self::Gap => "gap",
            Self::Panic => "panic",
        }
    }

    /// Whether calls of this kind can have it. A listing has no deadline, so it is never hung.
    pub const fn applies(self, op: Op) -> bool {
        match self {
            Self::Error | Self::Delay | Self::Panic => true,
            Self::Hang => !matches!(op, Op::List),
            Self::TornWrite | Self::NoSpace => matches!(op, Op::Put),
            Self::Truncation | Self::BitFlip | Self::Swap => matches!(op, Op::Put | Op::Get),
            Self::LostWrite => matches!(op, Op::Put | Op::Remove),
            Self::StaleListing => matches!(op, Op::Probe | Op::List),
            Self::Gap => matches!(op, Op::Get),
        }
    }
}
