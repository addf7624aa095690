//! How many payload bytes a device is given at once.
//!
//! Too few and the device idles, too many and everything waits in its queue, where no load overtakes a store any more. How
//! many are enough depends on the device, and is learnt from what completes: the throughput while as much was under way as the
//! budget let be. The budget is the smallest one whose throughput is near the best that was seen, and its neighbours are tried
//! now and then.
//!
//! (The throughput is not reckoned from latencies and from what was under way when each transfer began, as Little's law would
//! have it: completions come in bursts, and so do the transfers that follow them, which begin while less is under way than on
//! average. The fewer there are, the more that is, so that more always seemed better.)
//!
//! Loads and stores have a budget each, because writing often only reaches a cache of the device. Loads never wait for
//! stores. Stores fill what loads leave, and are never without any room.

use std::time::Duration;

use kvstrata_core::Instant;

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
/// A round is over when so many times the budget, and so many transfers, have completed, and it took so long: longer than what
/// keeps the processor from the ring's thread.
const ROUND: u64 = 4;
const ROUND_TRANSFERS: u32 = 32;
const ROUND_TIME: Duration = Duration::from_millis(10);

/// What a transfer of this many bytes takes from the budget.
fn charge(len: usize) -> u64 {
    (len as u64).max(LEAST_CHARGE)
}

/// The budgets of one device. Pure: the time is passed in.
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
    /// Whether as much is under way as the budget lets be, and more waits: then the budget is what limits.
    settled: bool,
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
        // What stores reach beside loads, which take their room, says nothing of the device.
        let alone = read || self.reads.under_way == 0;
        let side = self.side(read);
        side.under_way += charge;
        let settled = more && alone && side.settling == 0;
        side.settling = if more { side.settling.saturating_sub(charge) } else { side.limit() };
        Begun { read, charge, settled, changes: side.changes }
    }

    /// It has ended by now.
    pub(crate) fn ended(&mut self, begun: Begun, now: Instant) {
        let side = self.side(begun.read);
        side.under_way -= begun.charge;
        if begun.settled && begun.changes == side.changes {
            side.learn(begun.charge, now);
        } else {
            side.last = None;
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
    /// What is still to begin before the queue is as long as the level lets it be.
    settling: u64,
    under_way: u64,
    /// Bytes a second at each level, as last seen; 0 is unknown.
    rates: [f64; LEVELS],
    /// The level that is best by what is known; `level` differs while a neighbour is tried.
    best: usize,
    rounds: u32,
    /// When the last transfer of a settled queue ended, until one of another queue does.
    last: Option<Instant>,
    /// When the first one of those did.
    began: Instant,
    round: Round,
}

/// What ended of a settled queue, and the time that took: with breaks, if need be.
#[derive(Debug, Default)]
struct Round {
    charge: u64,
    transfers: u32,
    lasted: Duration,
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
            last: None,
            began: Instant::ZERO,
            round: Round::default(),
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

    fn learn(&mut self, charge: u64, now: Instant) {
        let Some(last) = self.last.replace(now) else {
            // What ends together with this one is from before it, too.
            self.began = now;
            return;
        };
        let Round { charge: all, transfers, lasted } = &self.round;
        let enough = *all >= ROUND * self.limit() && *transfers >= ROUND_TRANSFERS && *lasted >= ROUND_TIME;
        // Transfers that end together belong to the same round.
        if enough && now > last {
            let rate = *all as f64 / lasted.as_secs_f64();
            return self.end_round(rate);
        }
        if now > self.began {
            self.round.charge += charge;
            self.round.transfers += 1;
            self.round.lasted += now.since(last);
        }
    }

    /// A round at the present level had this throughput.
    fn end_round(&mut self, rate: f64) {
        (self.round, self.last) = (Round::default(), None);
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

    /// A clock that goes as the transfers do, and how many end at a time.
    struct World {
        now: Instant,
        burst: usize,
    }

    impl World {
        fn new(burst: usize) -> Self {
            Self { now: Instant::ZERO, burst }
        }

        /// Keeps the budget full with transfers of one size for so many seconds; the mean share of the bandwidth in the last
        /// quarter of them.
        fn drive(
            &mut self,
            budget: &mut Budget,
            read: bool,
            device: Device,
            len: usize,
            seconds: f64,
        ) -> f64 {
            let mut under_way = std::collections::VecDeque::new();
            let (mut share, mut counted, mut bytes, mut passed) = (0.0, 0.0, 0, 0.0);
            while passed < seconds {
                while budget.admits(read, len, false) {
                    let begun = budget.began(read, len, true);
                    bytes += begun.charge;
                    under_way.push_back(begun);
                }
                let ending = self.burst.min(under_way.len());
                let charge: u64 = under_way.iter().take(ending).map(|b| b.charge).sum();
                let took = device.latency(bytes).as_secs_f64() * charge as f64 / bytes as f64;
                passed += took;
                self.now += Duration::from_secs_f64(took);
                if passed > seconds * 0.75 {
                    share += device.share(bytes) * took;
                    counted += took;
                }
                for begun in under_way.drain(..ending) {
                    bytes -= begun.charge;
                    budget.ended(begun, self.now);
                }
            }
            for rest in under_way {
                budget.ended(Begun { settled: false, ..rest }, self.now);
            }
            share / counted
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_device_is_kept_busy_with_little_waiting(
            gbps in 0.2..20.0f64,
            micros in 20.0..2000.0f64,
            size in 12..22u32,
            burst in 1..9usize,
            read: bool,
        ) {
            let device = Device { bytes_per_second: gbps * 1e9, least: micros * 1e-6 };
            let needed = device.bytes_per_second * device.least;
            let (mut budget, mut world) = (Budget::default(), World::new(burst));
            let share = world.drive(&mut budget, read, device, 1 << size, 3.0);
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
        let mut world = World::new(4);
        for device in [fast, slow, fast] {
            let share = world.drive(&mut budget, true, device, 1 << 20, 10.0);
            assert!(share > 0.95, "{share} of {device:?}");
        }
        world.drive(&mut budget, true, slow, 1 << 20, 100.0);
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
        let (before, mut now) = (budget.limits(), Instant::ZERO);
        for _ in 0..10_000 {
            let begun = budget.began(true, 1 << 20, false);
            now += Duration::from_secs(1);
            budget.ended(begun, now);
        }
        assert_eq!(budget.limits(), before);
    }
}
