//! How many payload bytes a device is given at once.
//!
//! Too few and the device idles, too many and everything waits in its queue, where no load overtakes a store any more. How
//! many are enough depends on the device, and is learnt from the latencies of what completes: by Little's law, what was
//! under way over the latency is the throughput. The budget is the smallest one whose throughput is near the best that was
//! seen, and its neighbours are tried now and then.
//!
//! Loads and stores have a budget each, because writing often only reaches a cache of the device. Loads never wait for
//! stores. Stores fill what loads leave, and are never without any room.

use std::time::Duration;

/// The smallest and the largest budget, in bytes.
const SMALLEST: u64 = 512 << 10;
const LEVELS: usize = 8;
/// Where it starts: 4 MiB.
const START: usize = 3;
/// What the smallest transfer is charged: devices limit operations too, not bytes alone.
const LEAST_CHARGE: u64 = 64 << 10;
/// A budget is enough if its throughput is this share of the best one's.
const ENOUGH: f64 = 0.98;
/// After so many rounds a larger budget is tried, each in its turn, which costs latency.
const TRY_MORE: u32 = 16;
/// After so many the next smaller one, which may cost throughput.
const TRY_LESS: u32 = 64;
/// A round is over when so many times the budget, and so many transfers, have completed.
const ROUND: u64 = 4;
const ROUND_TRANSFERS: u32 = 32;

/// What a transfer of this many bytes takes from the budget.
fn charge(len: usize) -> u64 {
    (len as u64).max(LEAST_CHARGE)
}

/// The budgets of one device. Pure: latencies are passed in.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    reads: Side,
    writes: Side,
}

/// A transfer that was begun; to be handed to [`Budget::ended`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    read: bool,
    charge: u64,
    /// What was under way of its kind, itself included; 0 if that says nothing: nothing more waited, or the device was still
    /// being filled up to the budget.
    under_way: u64,
    /// [`Side::changes`] when it began.
    changes: u32,
}

impl Budget {
    /// Whether a transfer may begin. `due` lets a store begin although loads leave no room.
    pub(crate) fn admits(&self, read: bool, len: usize, due: bool) -> bool {
        let charge = charge(len);
        if read {
            return self.reads.admits(charge);
        }
        let all = self.reads.under_way + self.writes.under_way + charge;
        let room = all <= self.reads.limit().max(self.writes.limit());
        self.writes.admits(charge) && (room || due || self.writes.under_way == 0)
    }

    /// It begins. `more` says that others wait, so that the budget is what limits.
    pub(crate) fn began(&mut self, read: bool, len: usize, more: bool) -> Begun {
        let charge = charge(len);
        let side = self.side(read);
        side.under_way += charge;
        let settled = more && side.settling == 0;
        side.settling = if more { side.settling.saturating_sub(charge) } else { side.limit() };
        Begun { read, charge, under_way: if settled { side.under_way } else { 0 }, changes: side.changes }
    }

    /// It ended after this long.
    pub(crate) fn ended(&mut self, begun: Begun, latency: Duration) {
        let side = self.side(begun.read);
        side.under_way -= begun.charge;
        if begun.under_way > 0 && begun.changes == side.changes {
            side.learn(begun, latency);
        }
    }

    /// The budgets of loads and stores now, in bytes.
    #[cfg(test)]
    pub(crate) fn limits(&self) -> [u64; 2] {
        [self.reads.limit(), self.writes.limit()]
    }

    fn side(&mut self, read: bool) -> &mut Side {
        if read { &mut self.reads } else { &mut self.writes }
    }
}

#[derive(Debug)]
struct Side {
    level: usize,
    /// How often the level has changed: what began before tells of a queue that is no more.
    changes: u32,
    /// What is still to begin before the queue is as long as the level lets it be. Until then a transfer's latency comes from
    /// what began after it as well, or what was under way from before the change.
    settling: u64,
    under_way: u64,
    /// Bytes a second at each level, as last seen; 0 is unknown.
    rates: [f64; LEVELS],
    /// The level that is best by what is known; `level` differs while a neighbour is tried.
    best: usize,
    rounds: u32,
    sums: Sums,
}

/// Of one round.
#[derive(Debug, Default)]
struct Sums {
    charge: u64,
    transfers: u32,
    /// Of charge times what was under way, and times the latency in seconds.
    under_way: f64,
    latency: f64,
}

impl Default for Side {
    fn default() -> Self {
        Self {
            level: START,
            changes: 0,
            settling: SMALLEST << START,
            under_way: 0,
            rates: [0.0; LEVELS],
            best: START,
            rounds: 0,
            sums: Sums::default(),
        }
    }
}

impl Side {
    fn limit(&self) -> u64 {
        SMALLEST << self.level
    }

    /// One transfer always goes, however large it is.
    fn admits(&self, charge: u64) -> bool {
        self.under_way == 0 || self.under_way + charge <= self.limit()
    }

    fn learn(&mut self, begun: Begun, latency: Duration) {
        let weight = begun.charge as f64;
        self.sums.charge += begun.charge;
        self.sums.transfers += 1;
        self.sums.under_way += weight * begun.under_way as f64;
        self.sums.latency += weight * latency.as_secs_f64();
        if self.sums.charge >= ROUND * self.limit() && self.sums.transfers >= ROUND_TRANSFERS {
            let sums = std::mem::take(&mut self.sums);
            // The weights cancel out. A latency of nothing at all is a clock too coarse to learn from.
            if sums.latency > 0.0 {
                self.round(sums.under_way / sums.latency);
            }
        }
    }

    /// A round at the present level had this throughput.
    fn round(&mut self, rate: f64) {
        let known = &mut self.rates[self.level];
        *known = if *known > 0.0 { f64::midpoint(*known, rate) } else { rate };
        let top = self.rates.iter().copied().fold(0.0, f64::max);
        self.best = self.rates.iter().position(|r| *r >= ENOUGH * top).expect("one of them is the top");
        self.rounds += 1;
        let (next, less) = (self.best + 1, self.best.wrapping_sub(1));
        let unknown = |level: usize| self.rates.get(level) == Some(&0.0);
        let turn = |every: u32| self.rounds.is_multiple_of(every);
        let level = if unknown(next) {
            next
        } else if unknown(less) || (less < LEVELS && turn(TRY_LESS + 1)) {
            less
        } else if next < LEVELS && turn(TRY_MORE) {
            // Not the next one only: one more large transfer may need more than one level.
            next + (self.rounds / TRY_MORE) as usize % (LEVELS - next)
        } else {
            self.best
        };
        if level != self.level {
            self.level = level;
            self.changes = self.changes.wrapping_add(1);
            self.settling = self.limit();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A device with a bandwidth, and a latency that no transfer goes below.
    #[derive(Clone, Copy, Debug)]
    struct Device {
        bytes_per_second: f64,
        least: f64,
    }

    impl Device {
        /// What a transfer takes when so much is under way.
        fn latency(self, under_way: u64) -> Duration {
            Duration::from_secs_f64(self.least.max(under_way as f64 / self.bytes_per_second))
        }

        /// The share of its bandwidth that this much under way has.
        fn share(self, under_way: u64) -> f64 {
            (under_way as f64 / self.least / self.bytes_per_second).min(1.0)
        }
    }

    /// Keeps the budget full with `n` transfers of one size; the mean share of the bandwidth in the last quarter of them.
    fn drive(budget: &mut Budget, read: bool, device: Device, len: usize, n: usize) -> f64 {
        let mut under_way = std::collections::VecDeque::new();
        let mut share = 0.0;
        for i in 0..n {
            while budget.admits(read, len, false) {
                under_way.push_back(budget.began(read, len, true));
            }
            let bytes = under_way.iter().map(|b: &Begun| b.charge).sum();
            if i >= n - n / 4 {
                share += device.share(bytes);
            }
            let first = under_way.pop_front().expect("one transfer always goes");
            budget.ended(first, device.latency(bytes));
        }
        for rest in under_way {
            budget.ended(Begun { under_way: 0, ..rest }, Duration::ZERO);
        }
        share / (n / 4) as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_device_is_kept_busy_with_little_waiting(
            gbps in 0.2..20.0f64,
            micros in 20.0..2000.0f64,
            size in 12..22u32,
            read: bool,
        ) {
            let device = Device { bytes_per_second: gbps * 1e9, least: micros * 1e-6 };
            let needed = device.bytes_per_second * device.least;
            let mut budget = Budget::default();
            let share = drive(&mut budget, read, device, 1 << size, 80_000);
            let most = device.share(SMALLEST << (LEVELS - 1));
            // What counts as enough, less a round in 65 with half of that and the transfers until the queue is as long again.
            prop_assert!(share >= 0.96 * most, "{share} of the bandwidth, {most} at most");
            let limit = SMALLEST << budget.side(read).best;
            // The next power of two, and whole transfers only.
            let bound = (4.0 * needed).max(2.0 * SMALLEST as f64).max(4.0 * f64::from(1 << size));
            prop_assert!((limit as f64) <= bound, "{limit} bytes where {needed} are enough");
        }
    }

    #[test]
    fn a_device_that_changes_is_learnt_again() {
        let mut budget = Budget::default();
        let slow = Device { bytes_per_second: 0.5e9, least: 1e-4 };
        let fast = Device { bytes_per_second: 10e9, least: 1e-3 };
        for device in [fast, slow, fast] {
            let share = drive(&mut budget, true, device, 1 << 20, 110_000);
            assert!(share > 0.95, "{share} of {device:?}");
        }
        drive(&mut budget, true, slow, 1 << 20, 100_000);
        let limit = SMALLEST << budget.reads.best;
        assert!(limit <= 2 << 20, "{limit} bytes where 51200 are enough");
    }

    #[test]
    fn small_transfers_go_by_tens_and_large_ones_by_few() {
        let count = |len| {
            let mut budget = Budget::default();
            (0..1000)
                .take_while(|_| {
                    budget.admits(true, len, false).then(|| budget.began(true, len, true)).is_some()
                })
                .count()
        };
        assert_eq!([1 << 10, 64 << 10, 1 << 20, 64 << 20].map(count), [64, 64, 4, 1]);
    }

    #[test]
    fn loads_never_wait_for_stores_and_stores_never_for_ever() {
        let mut budget = Budget::default();
        while budget.admits(false, 1 << 20, true) {
            budget.began(false, 1 << 20, true);
        }
        assert!(budget.admits(true, 1 << 20, false), "stores that are stuck leave the loads' budget alone");
        let mut budget = Budget::default();
        while budget.admits(true, 1 << 20, false) {
            budget.began(true, 1 << 20, true);
        }
        assert!(budget.admits(false, 1 << 20, false), "one store goes");
        budget.began(false, 1 << 20, true);
        assert!(!budget.admits(false, 1 << 20, false), "loads have the rest");
        assert!(budget.admits(false, 1 << 20, true), "and give way to what they have overtaken often");
    }

    #[test]
    fn what_nothing_waits_behind_teaches_nothing() {
        let mut budget = Budget::default();
        let before = budget.limits();
        for _ in 0..10_000 {
            let begun = budget.began(true, 1 << 20, false);
            budget.ended(begun, Duration::from_secs(1));
        }
        assert_eq!(budget.limits(), before);
    }
}
