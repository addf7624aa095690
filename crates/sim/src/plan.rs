//! What is done in a run, as data that a seed makes and that can be made smaller.

use std::fmt;

use kvstrata_evict::{ADMISSIONS, NAMES};
use kvstrata_policy::{PREFETCH_NAMES, STORE_NAMES};
use kvstrata_testkit::rng::Rng;

/// Chains of chunks that engines ask for.
pub(crate) const CHAINS: u64 = 5;
/// The longest chain.
pub(crate) const LONGEST: u64 = 8;
/// Adapters there are to be added and removed.
pub(crate) const TIERS: usize = 3;

/// What is set up at the start.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) eviction: &'static str,
    pub(crate) admission: &'static str,
    pub(crate) store: &'static str,
    pub(crate) prefetch: &'static str,
    /// Budgets of L1 in units of 4 KiB.
    pub(crate) cache: u64,
    pub(crate) staging: u64,
    /// L1 is a buffer only.
    pub(crate) buffer_only: bool,
    pub(crate) tiers: [TierPlan; TIERS],
    /// Decides which task goes on next.
    pub(crate) order: u64,
}

/// An adapter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TierPlan {
    pub(crate) kind: TierKind,
    /// Disks with a store each, where there are disks.
    pub(crate) paths: u64,
    /// Of each, in units of 4 KiB.
    pub(crate) capacity: u64,
    /// Bytes in flight it is allowed, in units of 4 KiB; 0 for no limit.
    pub(crate) limit: u64,
    /// Failed calls in a row after which it is left alone; 0 for never.
    pub(crate) breaker: u32,
    /// Of all keys of all calls, while its faults are switched on.
    pub(crate) fault_percent: u64,
    pub(crate) seed: u64,
    /// There from the start.
    pub(crate) present: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TierKind {
    /// Memory; gone with the process.
    Mock,
    /// A file for each object, on a simulated disk that survives as far as a crash lets it.
    Files,
    /// Segments on such a disk.
    Slab,
}

/// One step. Times are in virtual milliseconds.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An engine stores chunks of a chain. Every `leave`-th reservation (from 1; 0 for none) is dropped without a commit.
    Store {
        chain: u64,
        from: u64,
        len: u64,
        whole: bool,
        wait: bool,
        within: u64,
        hold: u64,
        leave: u64,
    },
    /// An engine looks a chain up and loads it, holding what it gets for a while; or goes away early.
    Load {
        chain: u64,
        len: u64,
        any: bool,
        within: u64,
        hold: u64,
        early: bool,
    },
    /// What is in L1 only.
    Read {
        chain: u64,
        len: u64,
        hold: u64,
    },
    Touch {
        chain: u64,
        len: u64,
    },
    Delete {
        chain: u64,
        from: u64,
        len: u64,
        within: u64,
    },
    Clear,
    Quota {
        chain: u64,
        units: Option<u64>,
    },
    /// Faults of an adapter go on or off.
    Faults {
        tier: usize,
        on: bool,
    },
    /// An adapter's device stops, or goes on.
    Hang {
        tier: usize,
        on: bool,
    },
    Add {
        tier: usize,
    },
    Remove {
        tier: usize,
        within: u64,
    },
    /// Tasks go on, this many times.
    Run {
        turns: u64,
    },
    /// Time passes.
    Wait {
        ms: u64,
    },
    /// Everything is shut down in order and opened again.
    Restart,
    /// The process is killed, or the power fails; then everything is opened again.
    Kill {
        crash: u64,
        seed: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn one_of(rng: &mut Rng, names: &[&'static str]) -> &'static str {
    names[rng.below(names.len() as u64) as usize]
}

impl Setup {
    /// `paths` is how many each adapter on disks has, if that is not left to chance.
    pub(crate) fn of(rng: &mut Rng, paths: Option<u64>) -> Self {
        let mut setup = Self::drawn(rng);
        if let Some(paths) = paths {
            setup.tiers.iter_mut().for_each(|tier| tier.paths = paths);
        }
        setup
    }

    fn drawn(rng: &mut Rng) -> Self {
        let buffer_only = rng.percent(15);
        let tier = |rng: &mut Rng, present_percent| TierPlan {
            present: rng.percent(present_percent),
            kind: [TierKind::Mock, TierKind::Mock, TierKind::Files, TierKind::Slab][rng.below(4) as usize],
            paths: [1, 1, 2, 3][rng.below(4) as usize],
            capacity: 40 + rng.below(200),
            fault_percent: [0, 2, 10, 40][rng.below(4) as usize],
            seed: rng.bits() >> 1,
            limit: if rng.percent(50) { 0 } else { 2 + rng.below(30) },
            breaker: if rng.percent(30) { 0 } else { 1 + rng.below(6) as u32 },
        };
        Self {
            eviction: if buffer_only { "noop" } else { one_of(rng, &NAMES) },
            admission: if rng.percent(50) { "always" } else { one_of(rng, &ADMISSIONS) },
            store: if buffer_only { "skip_l1" } else { one_of(rng, STORE_NAMES) },
            prefetch: one_of(rng, PREFETCH_NAMES),
            cache: 8 + rng.below(40),
            staging: 4 + rng.below(24),
            buffer_only,
            tiers: [tier(rng, 100), tier(rng, 50), tier(rng, 0)],
            order: rng.bits(),
        }
    }
}

/// The steps of a run.
pub(crate) fn steps(rng: &mut Rng, count: u64) -> Vec<Step> {
    (0..count).map(|_| step(rng)).collect()
}

fn step(rng: &mut Rng) -> Step {
    let chain = rng.below(CHAINS);
    let len = 1 + rng.below(LONGEST);
    let tier = rng.below(TIERS as u64) as usize;
    let within = [1, 20, 200, 2_000, 20_000][rng.below(5) as usize];
    let hold = [0, 0, 5, 300][rng.below(4) as usize];
    match rng.below(100) {
        0..26 => Step::Store {
            chain,
            from: if rng.percent(70) { 0 } else { rng.below(LONGEST) },
            len,
            whole: rng.percent(30),
            wait: rng.percent(40),
            within,
            hold,
            leave: if rng.percent(25) { 1 + rng.below(4) } else { 0 },
        },
        26..50 => Step::Load { chain, len, any: rng.percent(30), within, hold, early: rng.percent(10) },
        50..54 => Step::Read { chain, len, hold },
        54..58 => Step::Touch { chain, len },
        58..62 => Step::Delete { chain, from: rng.below(LONGEST), len, within },
        62..63 => Step::Clear,
        63..65 => Step::Quota { chain, units: rng.percent(70).then(|| rng.below(30)) },
        65..70 => Step::Faults { tier, on: rng.percent(60) },
        70..74 => Step::Hang { tier, on: rng.percent(50) },
        74..76 => Step::Add { tier },
        76..78 => Step::Remove { tier, within },
        78..90 => Step::Run { turns: 1 + rng.below(60) },
        90..97 => Step::Wait { ms: [1, 10, 100, 3_000][rng.below(4) as usize] },
        97..98 => Step::Restart,
        _ => Step::Kill { crash: rng.below(3), seed: rng.bits() },
    }
}
