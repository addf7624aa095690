//! The storage manager in a world that a seed decides: engines that store, load, delete and go away, adapters that are
//! slow, hang, lie, are full, panic and come and go, crashes and restarts at any step, under a clock that is not real.
//!
//! It runs the code that ships: the manager with its policies, the digest check, the file adapter over a simulated disk
//! or over several paths with a disk each, the mock, and the fault injector around each. Only time, the order of tasks and the disk are simulated, through the
//! traits that the code takes them by. One thread runs everything, so a seed is a run: the same seed gives the same
//! decisions, one by one.
//!
//! ```
//! let run = kvstrata_sim::run(7, 60);
//! assert_eq!(run.failure, None);
//! assert_eq!(run.trace, kvstrata_sim::run(7, 60).trace, "the same seed, the same run");
//! ```
//!
//! What is watched, at every step: no wrong byte; what is found was stored; no call ends after its deadline; every hook at
//! most once, never for a duplicate, never before an adapter has said that it has the key, and, unless the key was deleted,
//! never left out; memory and disks within their limits; no task panics that was not made to. At
//! rest: no pin, reservation, store or byte is left, tenants add up, what is deleted is gone, a shutdown ends, and no task
//! outlives it.
//!
//! A run that fails is made smaller ([`shrunk`]) and printed step by step. `cargo xtask sim --seed N` plays one seed,
//! `cargo xtask sim --seconds N` searches.
//!
//! Architecture invariant: nothing depends on this crate.
#![forbid(unsafe_code)]

mod exec;
mod note;
mod oracle;
mod plan;
mod plant;
mod tier;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvstrata_testkit::rng::Rng;

use plan::{Setup, Step, steps};
pub use plant::Plant;
use world::World;

/// The text of panics that are injected.
const INJECTED: &str = "fault injection";

/// The steps of a run, unless something else is asked for.
pub const STEPS: u64 = 120;

/// What became of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What did not hold, if anything.
    pub failure: Option<String>,
    /// A digest of every decision.
    pub trace: u64,
    /// Chunks delivered, each verified.
    pub hits: u64,
    /// Chunks asked for and not delivered.
    pub misses: u64,
}

/// A failing run with as few steps as could be had.
#[derive(Clone, Debug)]
pub struct Schedule {
    setup: Setup,
    steps: Vec<Step>,
    /// What does not hold.
    pub failure: String,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:#?}", self.setup)?;
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "{n:>4}  {step}")?;
        }
        write!(f, "      {}", self.failure)
    }
}

impl Schedule {
    /// How many steps it has.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether setting up is enough to fail.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// What a run is made of, beside its seed.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Steps.
    pub steps: u64,
    /// How many paths each adapter on disks has; by chance 1 to 3 if it is not said.
    pub paths: Option<u64>,
    /// A defect that is planted.
    pub plant: Option<Plant>,
}

impl Default for Kind {
    fn default() -> Self {
        Self { steps: STEPS, paths: None, plant: None }
    }
}

fn plan_of(seed: u64, kind: Kind) -> (Setup, Vec<Step>) {
    let mut rng = Rng::new(seed);
    let setup = Setup::of(&mut rng, kind.paths);
    let steps = steps(&mut rng, kind.steps);
    (setup, steps)
}

fn play(setup: &Setup, steps: &[Step], plant: Option<Plant>) -> Run {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setup, plant);
        for step in steps {
            if world.verdict().is_some() {
                break;
            }
            world.step(step);
        }
        world.end();
        let (hits, misses) = world.counts();
        Run { failure: world.verdict(), trace: world.trace(), hits, misses }
    }));
    played.unwrap_or_else(|panic| {
        let failure = Some(format!("a panic: {}", exec::text_of(&*panic)));
        Run { failure, trace: 0, hits: 0, misses: 0 }
    })
}

/// Plays the run of a seed, with so many steps.
pub fn run(seed: u64, steps: u64) -> Run {
    run_with(seed, Kind { steps, ..Kind::default() })
}

/// Plays a run of this kind.
pub fn run_with(seed: u64, kind: Kind) -> Run {
    let (setup, steps) = plan_of(seed, kind);
    play(&setup, &steps, kind.plant)
}

/// The run of a seed that fails, without the steps that it can do without; `None` if it does not fail.
pub fn shrunk(seed: u64, kind: Kind) -> Option<Schedule> {
    let (setup, mut steps) = plan_of(seed, kind);
    let plant = kind.plant;
    let mut failure = play(&setup, &steps, plant).failure?;
    let mut piece = steps.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + piece).min(steps.len()));
            match play(&setup, &fewer, plant).failure {
                Some(why) => (steps, failure) = (fewer, why),
                None => at += piece,
            }
        }
        piece /= 2;
    }
    Some(Schedule { setup, steps, failure })
}
