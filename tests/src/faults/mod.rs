//! Faults by the million: the whole stack over memory in virtual time and over files in real time.
//!
//! Each class has worlds of its own, so that what came of it can be told, and then there are worlds with all classes at
//! once. A world is a manager over digest check, meter, breaker, limit of bytes in flight, fault injector and a store, with
//! engines that store, load, list and delete at the same time. Over several paths the injector is around all of them, or
//! around one. A fault counts only when it took effect
//! ([`kvstrata_l2_fault::FaultCount::effective`]).

mod outcome;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvstrata_l2_fault::Fault;
use parking_lot::Mutex;
use serde::Serialize;

use crate::kill::LayoutName;
use crate::report::{Progress, number, table};
pub use outcome::{Became, Outcome};

/// How the text of an injected panic begins.
const INJECTED: &str = "fault injection";
/// The most faults of one world, so that threads share the work and no world's memory grows with the count.
const PIECE: u64 = 25_000;
/// That of a world of one path that hangs, where each takes as long as a hang.
const HANGS: u64 = 20;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Faults that take effect, in all.
    pub count: u64,
    /// What every choice is made from.
    pub seed: u64,
    /// Worlds at the same time.
    pub threads: usize,
    /// How long after its deadline a call over files may end; over memory time is virtual and the margin is none.
    pub margin: Duration,
    /// How objects lie in files; `None` for both.
    pub layout: Option<LayoutName>,
    /// Paths with a store each, where objects are in files; `None` for one and three.
    pub paths: Option<usize>,
}

/// Where objects are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Medium {
    Memory,
    Files,
}

/// One world.
#[derive(Clone, Debug)]
struct Unit {
    medium: Medium,
    /// `None` for all.
    class: Option<Fault>,
    goal: u64,
    seed: u64,
    buffer_only: bool,
    layout: LayoutName,
    paths: usize,
    /// The faults are of one of several paths, and the others go on; else of all of them together.
    one_path: bool,
}

impl Unit {
    /// The part of all keys of all calls that has a fault.
    fn rate(&self) -> f64 {
        match self.class {
            // One panic takes its whole batch along.
            Some(Fault::Panic) => 0.05,
            Some(Fault::Delay | Fault::Hang) => 0.25,
            Some(_) => 0.4,
            None => 0.25,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class.map_or("all", Fault::name);
        write!(f, "{class} over {:?}", self.medium)?;
        if self.medium == Medium::Files {
            let of = if self.one_path { ", faults on one" } else { "" };
            write!(f, " ({:?} on {} paths{of})", self.layout, self.paths)?;
        }
        write!(f, ", seed {:#x}", self.seed)
    }
}

fn plan(options: &Options) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut add = |medium, class: Option<Fault>, share: f64| {
        let mut left = ((options.count as f64 * share).ceil() as u64).max(1);
        while left > 0 {
            let n = units.len() as u64;
            let seed = kvstrata_testkit::rng::mix(options.seed ^ n << 32) | 1;
            // Alone, a class is seen best where L1 answers nothing; together both are tried.
            let buffer_only = class.is_some() || n.is_multiple_of(2);
            let layout = if seed % 4 < 2 { LayoutName::Slab } else { LayoutName::Files };
            let layout = options.layout.unwrap_or(layout);
            let paths = options.paths.unwrap_or(if seed >> 2 & 1 == 0 { 1 } else { 3 });
            let one_path = medium == Medium::Files && paths > 1 && seed >> 3 & 1 == 0;
            // A path that hangs is asked for one key at a time until it does not.
            let hangs = one_path && class == Some(Fault::Hang);
            let goal = left.min(if hangs { HANGS } else { PIECE });
            left -= goal;
            units.push(Unit { medium, class, goal, seed, buffer_only, layout, paths, one_path });
        }
    };
    // What takes the longest comes first.
    add(Medium::Files, None, 0.02);
    Fault::ALL.into_iter().for_each(|class| add(Medium::Files, Some(class), 0.002));
    Fault::ALL.into_iter().for_each(|class| add(Medium::Memory, Some(class), 0.03));
    add(Medium::Memory, None, 0.62);
    units
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// By class: what worlds of that class alone made of it.
    pub alone: Vec<(Fault, Outcome)>,
    /// Worlds of all classes.
    pub together: Outcome,
    /// Everything.
    pub all: Outcome,
    /// Panics that were not injected.
    pub panics: u64,
    /// How long it took.
    pub took: Duration,
    options: Options,
}

/// Silences injected panics and counts the others; they are shown as before.
pub fn watch_panics() -> Arc<AtomicU64> {
    let count = Arc::<AtomicU64>::default();
    let (counted, before) = (Arc::clone(&count), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(world::is_injected) {
            counted.fetch_add(1, Ordering::Relaxed);
            before(panic);
        }
    }));
    count
}

/// Injects faults until so many took effect. `panics` is of [`watch_panics`].
pub fn run(options: &Options, panics: &AtomicU64, progress: &mut Progress) -> Report {
    let start = Instant::now();
    let units = plan(options);
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let outcomes: Mutex<Vec<(usize, Outcome)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let margin = if unit.medium == Medium::Files { options.margin } else { Duration::ZERO };
                    // A world that panics is one that failed; the others go on, and its name is told.
                    let played = catch_unwind(AssertUnwindSafe(|| world::play(unit, margin, &done)));
                    let outcome = played.unwrap_or_else(|_| Outcome {
                        failures: vec![format!("{unit}: the world itself panicked")],
                        ..Outcome::default()
                    });
                    let at = units.iter().position(|u| std::ptr::eq(u, unit)).expect("one of them");
                    outcomes.lock().push((at, outcome));
                }
            });
        }
        while outcomes.lock().len() < units.len() {
            std::thread::sleep(Duration::from_millis(100));
            let said = units.get(next.load(Ordering::Relaxed)).map(Unit::to_string).unwrap_or_default();
            progress.reached(done.load(Ordering::Relaxed), &said);
        }
    });
    let mut outcomes = outcomes.into_inner();
    outcomes.sort_by_key(|(at, _)| *at);
    let mut report = Report {
        alone: Fault::ALL.map(|class| (class, Outcome::default())).to_vec(),
        together: Outcome::default(),
        all: Outcome::default(),
        panics: panics.load(Ordering::Relaxed),
        took: start.elapsed(),
        options: *options,
    };
    for (at, outcome) in &outcomes {
        report.all.add(outcome);
        match units[*at].class {
            Some(class) => report.alone[class as usize].1.add(outcome),
            None => report.together.add(outcome),
        }
    }
    report
}

impl Report {
    /// Everything that did not hold.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.all.failures.clone();
        let least = (self.options.count / 1000).min(1000);
        for (class, count) in Fault::ALL.into_iter().zip(self.all.faults) {
            if count.effective < least {
                failures.push(format!(
                    "{} faults of class {} took effect, and {least} are asked for",
                    count.effective,
                    class.name()
                ));
            }
        }
        let all = self.all.total().effective;
        if all < self.options.count {
            failures.push(format!("{all} faults took effect, and {} were asked for", self.options.count));
        }
        if self.panics > 0 {
            failures.push(format!("{} panics that were not injected", self.panics));
        }
        failures
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut rows = Vec::new();
        for ((class, alone), all) in self.alone.iter().zip(self.all.faults) {
            rows.push(vec![
                class.name().to_owned(),
                number(all.injected),
                number(all.effective),
                number(alone.verified),
                alone.became.words(),
            ]);
        }
        let total = self.all.total();
        rows.push(vec![
            "all at once".into(),
            number(self.together.total().injected),
            number(self.together.total().effective),
            number(self.together.verified),
            self.together.became.words(),
        ]);
        let heading = ["class", "injected", "effective", "verified", "what came of it where it was alone"];
        let line = |what: &str, n: u64| format!("{what:<28}{:>12}\n", number(n));
        table(&heading, &rows)
            + "\n"
            + &line("faults injected", total.injected)
            + &line("  that took effect", total.effective)
            + &line("chunks compared", self.all.verified)
            + &line("wrong bytes", self.all.wrong_bytes)
            + &line("leaks", self.all.leaks)
            + &line("late waits", self.all.late)
            + &format!(
                "{:<28}{:>12}  (margin: none in virtual time, {:?} over files)\n",
                "latest call past deadline",
                format!("{:.1?}", self.all.latest),
                self.options.margin
            )
            + &line("keys stored again at the end", self.all.restored)
            + &line("panics not injected", self.panics)
            + &format!("{:<28}{:>12}\n", "took", format!("{:.1?}", self.took))
    }

    /// For programs.
    pub fn json(&self) -> impl Serialize + use<> {
        let class = |name: &str, count: kvstrata_l2_fault::FaultCount, alone: &Outcome| {
            serde_json::json!({
                "class": name,
                "injected": count.injected,
                "effective": count.effective,
                "verified": alone.verified,
                "became": alone.became,
            })
        };
        let classes = self.alone.iter().zip(self.all.faults).map(|((c, o), n)| class(c.name(), n, o));
        serde_json::json!({
            "seed": self.options.seed,
            "asked_for": self.options.count,
            "classes": classes.collect::<Vec<_>>(),
            "all_at_once": class("all", self.together.total(), &self.together),
            "injected": self.all.total().injected,
            "effective": self.all.total().effective,
            "verified": self.all.verified,
            "wrong_bytes": self.all.wrong_bytes,
            "leaks": self.all.leaks,
            "late_waits": self.all.late,
            "latest_ms": self.all.latest.as_secs_f64() * 1e3,
            "margin_ms": self.options.margin.as_millis() as u64,
            "restored": self.all.restored,
            "panics_not_injected": self.panics,
            "seconds": self.took.as_secs_f64(),
            "failures": self.failures(),
        })
    }
}
