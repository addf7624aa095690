//! When a breaker opens and closes: no I/O, no clock.

use std::time::Duration;

use kvstrata_core::{Error, Instant, Result};

/// When a breaker opens, and for how long.
#[derive(Clone, PartialEq, Debug)]
pub struct BreakerOptions {
    /// It opens after this many calls in a row in which keys failed and none succeeded; at least 1. A pause of `window`
    /// between a failure and the begin of the next call that fails begins a new row.
    pub consecutive: u32,
    /// It opens when this part of the keys within the window failed; above 0, and 1 or more for never.
    pub ratio: f64,
    /// How far back the ratio looks.
    pub window: Duration,
    /// The ratio counts from this many keys on.
    pub at_least: u64,
    /// A time-out counts only of a call that had at least this long. Longer than a healthy adapter takes and shorter than the
    /// deadlines of those whose hangs are to open it.
    pub patience: Duration,
    /// How long it stays open before one call is let through.
    pub cool_down: Duration,
    /// Each trial that fails doubles the cool-down, up to this.
    pub cool_down_max: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            consecutive: 5,
            ratio: 0.5,
            window: Duration::from_secs(10),
            at_least: 50,
            patience: Duration::from_millis(20),
            cool_down: Duration::from_secs(1),
            cool_down_max: Duration::from_secs(60),
        }
    }
}

impl BreakerOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid` with the field and what it takes.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, value: &dyn std::fmt::Display, message: &str| {
            Err(Error::invalid("make circuit breaker", message).with(field, value))
        };
        if self.consecutive == 0 {
            return bad("consecutive", &0, "a breaker opens after at least 1 failure");
        }
        if self.ratio.is_nan() || self.ratio <= 0.0 {
            return bad("ratio", &self.ratio, "a ratio is a number above 0");
        }
        for (field, time) in [("window", self.window), ("cool_down", self.cool_down)] {
            if time.is_zero() {
                return bad(field, &"0", "a time above 0 is expected");
            }
        }
        if self.patience > self.window {
            let patience = format!("{:?}", self.patience);
            return bad(
                "patience",
                &patience,
                "no more than the window is expected, or hangs may never count",
            );
        }
        if self.cool_down_max < self.cool_down {
            let max = format!("{:?}", self.cool_down_max);
            return bad("cool_down_max", &max, "the longest cool-down is at least the first one");
        }
        Ok(())
    }
}

/// Where a breaker stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// One store or load at a time goes through, to see.
    HalfOpen,
}

impl Phase {
    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A breaker at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerView {
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: Instant,
    /// How often it has opened, failed trials included.
    pub trips: u64,
    /// Calls refused.
    pub refused: u64,
}

/// What a call can do for a breaker that is half open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admit {
    /// It may close it, so it is tried alone.
    Trial,
    /// It may only open it again, so it keeps nothing that may close it from being tried.
    Aside,
}

/// The right to make a call, and what it is counted towards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pass {
    number: u64,
    began: Instant,
}

/// What became of a call's keys. Those that prove nothing either way are in neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    pub(super) good: u64,
    pub(super) bad: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// The trial under way and when it is given up as lost.
    HalfOpen {
        trial: Option<(Pass, Instant)>,
    },
}

#[derive(Debug)]
pub(super) struct Circuit {
    options: BreakerOptions,
    state: State,
    since: Instant,
    /// Passes below it were given out in an earlier state, and their results say nothing of this one.
    first: u64,
    next: u64,
    streak: u32,
    /// When the last of the streak failed.
    failed: Instant,
    window: Window,
    /// Trips since it was closed.
    reopened: u32,
    trips: u64,
    refused: u64,
}

impl Circuit {
    pub(super) fn new(options: BreakerOptions, now: Instant) -> Self {
        let window = Window::new(options.window);
        Self {
            options,
            state: State::Closed,
            since: now,
            first: 0,
            next: 0,
            streak: 0,
            failed: now,
            window,
            reopened: 0,
            trips: 0,
            refused: 0,
        }
    }

    pub(super) fn options(&self) -> &BreakerOptions {
        &self.options
    }

    /// Lets a call through, or says when to come again.
    pub(super) fn admit(&mut self, now: Instant, kind: Admit, deadline: Instant) -> Result<Pass, Duration> {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.state = State::HalfOpen { trial: None };
            self.since = until;
            self.first = self.next;
        }
        let pass = Pass { number: self.next, began: now };
        let again = match &mut self.state {
            State::Closed => None,
            State::Open { until } => Some(*until),
            State::HalfOpen { .. } if kind == Admit::Aside => None,
            State::HalfOpen { trial: Some((_, lost)) } if now < *lost => Some(*lost),
            State::HalfOpen { trial } => {
                // A call without a near deadline does not hold up the next trial for ever.
                *trial = Some((pass, deadline.min(now + self.options.cool_down_max)));
                None
            }
        };
        match again {
            Some(at) => {
                self.refused += 1;
                Err(at.since(now).clamp(Duration::from_millis(1), self.options.cool_down_max))
            }
            None => {
                self.next += 1;
                Ok(pass)
            }
        }
    }

    /// A call is over, or its deadline has passed.
    pub(super) fn settle(&mut self, now: Instant, pass: Pass, tally: Tally) {
        if pass.number < self.first {
            return;
        }
        match &mut self.state {
            State::Closed => {
                self.window.add(now, tally);
                if tally.good > 0 {
                    self.streak = 0;
                } else if tally.bad > 0 {
                    if pass.began.since(self.failed) > self.options.window {
                        self.streak = 0;
                    }
                    self.streak += 1;
                    self.failed = now;
                }
                let seen = self.window.sum(now);
                let all = seen.good + seen.bad;
                let too_many = all >= self.options.at_least.max(1)
                    && seen.bad as f64 >= self.options.ratio * all as f64
                    && self.options.ratio < 1.0;
                if self.streak >= self.options.consecutive || too_many {
                    self.trip(now);
                }
            }
            State::HalfOpen { trial } => {
                if tally.good > 0 {
                    self.state = State::Closed;
                    self.restart(now);
                    self.reopened = 0;
                } else if tally.bad > 0 {
                    self.trip(now);
                } else if trial.is_some_and(|(is, _)| is == pass) {
                    *trial = None;
                }
            }
            State::Open { .. } => {}
        }
    }

    fn trip(&mut self, now: Instant) {
        let doubled =
            self.options.cool_down.saturating_mul(1u32.checked_shl(self.reopened).unwrap_or(u32::MAX));
        self.state = State::Open { until: now + doubled.min(self.options.cool_down_max) };
        self.reopened = (self.reopened + 1).min(31);
        self.trips += 1;
        self.restart(now);
    }

    fn restart(&mut self, now: Instant) {
        self.since = now;
        self.first = self.next;
        self.streak = 0;
        self.window = Window::new(self.options.window);
    }

    pub(super) fn view(&self, now: Instant) -> BreakerView {
        let (phase, since) = match self.state {
            State::Closed => (Phase::Closed, self.since),
            State::Open { until } if now >= until => (Phase::HalfOpen, until),
            State::Open { .. } => (Phase::Open, self.since),
            State::HalfOpen { .. } => (Phase::HalfOpen, self.since),
        };
        BreakerView { phase, since, trips: self.trips, refused: self.refused }
    }
}

/// What happened lately: the half window that runs, and the one before.
#[derive(Debug)]
struct Window {
    half: u64,
    number: u64,
    running: Tally,
    before: Tally,
}

impl Window {
    fn new(whole: Duration) -> Self {
        let half = u64::try_from(whole.as_nanos() / 2).unwrap_or(u64::MAX).max(1);
        Self { half, number: 0, running: Tally::default(), before: Tally::default() }
    }

    fn turn(&mut self, now: Instant) {
        let number = now.as_nanos() / self.half;
        if number > self.number {
            self.before = if number == self.number + 1 { self.running } else { Tally::default() };
            self.running = Tally::default();
            self.number = number;
        }
    }

    fn add(&mut self, now: Instant, tally: Tally) {
        self.turn(now);
        self.running.good += tally.good;
        self.running.bad += tally.bad;
    }

    fn sum(&mut self, now: Instant) -> Tally {
        self.turn(now);
        Tally { good: self.running.good + self.before.good, bad: self.running.bad + self.before.bad }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tally = Tally { good: 1, bad: 0 };
    const BAD: Tally = Tally { good: 0, bad: 1 };
    const NEITHER: Tally = Tally { good: 0, bad: 0 };

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn circuit(consecutive: u32, at_least: u64) -> Circuit {
        let options = BreakerOptions {
            consecutive,
            at_least,
            window: Duration::from_millis(1000),
            cool_down: Duration::from_millis(100),
            cool_down_max: Duration::from_millis(350),
            ..BreakerOptions::default()
        };
        options.validate().unwrap();
        Circuit::new(options, at(0))
    }

    fn call(circuit: &mut Circuit, ms: u64, tally: Tally) -> bool {
        let admitted = circuit.admit(at(ms), Admit::Trial, at(ms + 50));
        if let Ok(pass) = admitted {
            circuit.settle(at(ms), pass, tally);
        }
        admitted.is_ok()
    }

    fn phase(circuit: &Circuit, ms: u64) -> Phase {
        circuit.view(at(ms)).phase
    }

    #[test]
    fn it_opens_after_failures_in_a_row_which_what_proves_nothing_does_not_end() {
        let mut c = circuit(3, 1000);
        for (tally, expected) in
            [(BAD, 0), (BAD, 0), (GOOD, 0), (BAD, 0), (NEITHER, 0), (BAD, 0), (NEITHER, 0), (BAD, 1)]
        {
            assert!(call(&mut c, 1, tally));
            assert_eq!(c.view(at(1)).trips, expected);
        }
        assert_eq!(
            (phase(&c, 1), phase(&c, 100), phase(&c, 101)),
            (Phase::Open, Phase::Open, Phase::HalfOpen)
        );
        assert_eq!(c.admit(at(41), Admit::Trial, at(90)), Err(Duration::from_millis(60)));
        assert_eq!(c.view(at(41)).refused, 1);
    }

    #[test]
    fn it_opens_when_too_many_keys_of_the_window_failed() {
        let mut c = circuit(1000, 10);
        let mixed = Tally { good: 2, bad: 3 };
        assert!(call(&mut c, 0, mixed));
        assert!(call(&mut c, 1100, mixed) && call(&mut c, 1150, NEITHER));
        assert_eq!(phase(&c, 1150), Phase::Closed, "the first was longer ago than the window");
        assert!(call(&mut c, 1200, mixed));
        assert_eq!(phase(&c, 1200), Phase::Open);
        let mut c = circuit(1000, 10);
        assert!((0..50).all(|i| call(&mut c, i, Tally { good: 3, bad: 2 })));
    }

    #[test]
    fn one_trial_at_a_time_and_each_failure_doubles_the_cool_down() {
        let mut c = circuit(1, 1000);
        let before = c.admit(at(0), Admit::Trial, at(50)).unwrap();
        assert!(call(&mut c, 0, BAD));
        let mut opened = 0;
        for cool_down in [100, 200, 350, 350] {
            assert!(!call(&mut c, opened + cool_down - 1, BAD));
            let now = opened + cool_down;
            let trial = c.admit(at(now), Admit::Trial, at(now + 50)).unwrap();
            assert!(c.admit(at(now + 49), Admit::Trial, at(now + 60)).is_err(), "one at a time");
            c.settle(at(now), before, GOOD);
            assert_eq!(phase(&c, now), Phase::HalfOpen, "a call from before says nothing");
            c.settle(at(now + 1), trial, BAD);
            opened = now + 1;
        }
        assert_eq!(c.view(at(opened)).trips, 5);
        // What proves nothing lets the next one try; what works closes it, and the cool-down is the first again.
        assert!(call(&mut c, opened + 350, NEITHER) && call(&mut c, opened + 351, GOOD));
        let closed = c.view(at(opened + 352));
        assert_eq!((closed.phase, closed.since), (Phase::Closed, at(opened + 351)));
        assert!(call(&mut c, opened + 400, BAD) && call(&mut c, opened + 500, GOOD));
        assert_eq!(phase(&c, opened + 500), Phase::Closed);
    }

    #[test]
    fn a_trial_that_is_never_heard_of_again_does_not_keep_it_half_open() {
        let mut c = circuit(1, 1000);
        assert!(call(&mut c, 0, BAD));
        c.admit(at(100), Admit::Trial, at(150)).unwrap();
        assert!(c.admit(at(149), Admit::Trial, at(200)).is_err());
        c.admit(at(150), Admit::Trial, Instant::FAR_FUTURE).unwrap();
        assert!(c.admit(at(499), Admit::Trial, at(600)).is_err());
        assert!(call(&mut c, 500, GOOD), "after the longest cool-down");
        assert_eq!(phase(&c, 500), Phase::Closed);
    }

    #[test]
    fn what_cannot_close_it_does_not_hold_up_what_can() {
        let mut c = circuit(1, 1000);
        assert!(call(&mut c, 0, BAD));
        let aside = c.admit(at(100), Admit::Aside, at(150)).unwrap();
        let trial = c.admit(at(100), Admit::Trial, at(150)).unwrap();
        let other = c.admit(at(101), Admit::Aside, at(150)).unwrap();
        assert!(c.admit(at(101), Admit::Trial, at(150)).is_err(), "one trial at a time");
        c.settle(at(102), aside, NEITHER);
        assert!(c.admit(at(102), Admit::Trial, at(150)).is_err(), "the trial goes on");
        c.settle(at(103), other, BAD);
        assert_eq!((phase(&c, 103), c.view(at(103)).trips), (Phase::Open, 2));
        assert!(c.admit(at(104), Admit::Aside, at(150)).is_err(), "open to none");
        c.settle(at(104), trial, GOOD);
        assert_eq!(phase(&c, 104), Phase::Open);
    }

    #[test]
    fn failures_with_long_pauses_between_them_are_not_in_a_row() {
        let mut c = circuit(3, 1000);
        for i in 0..20 {
            assert!(call(&mut c, i * 1001, BAD));
        }
        assert_eq!(phase(&c, 19 * 1001), Phase::Closed);
        // Calls that hang for longer than the window, one after another, leave no pause.
        let mut c = circuit(3, 1000);
        for i in 0..3 {
            assert_eq!(phase(&c, i * 5000), Phase::Closed);
            let pass = c.admit(at(i * 5000), Admit::Trial, at((i + 1) * 5000)).unwrap();
            c.settle(at((i + 1) * 5000), pass, BAD);
        }
        assert_eq!(phase(&c, 15_000), Phase::Open);
    }

    #[test]
    fn bad_options_are_named() {
        let ok = BreakerOptions::default();
        assert!(ok.validate().is_ok());
        for (options, field) in [
            (BreakerOptions { consecutive: 0, ..ok.clone() }, "consecutive"),
            (BreakerOptions { ratio: 0.0, ..ok.clone() }, "ratio"),
            (BreakerOptions { ratio: f64::NAN, ..ok.clone() }, "ratio"),
            (BreakerOptions { window: Duration::ZERO, ..ok.clone() }, "window"),
            (BreakerOptions { patience: Duration::from_secs(11), ..ok.clone() }, "patience"),
            (BreakerOptions { cool_down: Duration::ZERO, ..ok.clone() }, "cool_down"),
            (BreakerOptions { cool_down_max: Duration::from_millis(999), ..ok }, "cool_down_max"),
        ] {
            let e = options.validate().unwrap_err();
            assert_eq!(e.context().next().unwrap().0, field, "{e}");
        }
    }
}
