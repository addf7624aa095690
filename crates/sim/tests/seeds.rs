//! Seeds that hold, the same seed twice, and defects that are found.

use kvstrata_sim::{Kind, Plant, STEPS, run, run_with, shrunk};

/// Panics are part of the runs; what they say is in a failure already.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        if info.location().is_some_and(|at| at.file().ends_with(file!())) {
            eprintln!("{info}");
        }
    }));
}

#[test]
fn two_thousand_seeds_hold() {
    quiet();
    let (mut hits, mut misses) = (0, 0);
    for seed in 0..2_000 {
        let one = run(seed, STEPS);
        if one.failure.is_some() {
            let schedule = shrunk(seed, Kind::default()).map(|s| s.to_string());
            panic!("seed {seed}: {:?}\n{}", one.failure, schedule.unwrap_or_default());
        }
        (hits, misses) = (hits + one.hits, misses + one.misses);
    }
    // The runs are about something: chunks come back, and not all of them.
    assert!(hits > 50_000 && misses > 50_000, "{hits} hits, {misses} misses");
}

#[test]
fn the_same_seed_is_the_same_run() {
    quiet();
    for seed in 0..100 {
        assert_eq!(run(seed, STEPS), run(seed, STEPS), "seed {seed}");
    }
    assert_ne!(run(0, STEPS).trace, run(1, STEPS).trace);
}

/// A defect is found within a few hundred seeds, and the schedule that shows it is short.
fn found(plant: Plant, says: &str) {
    quiet();
    // One path each: several make a schedule longer, and show no more of it.
    let kind = Kind { plant: Some(plant), paths: Some(1), ..Kind::default() };
    let seed = (0..400).find(|seed| run_with(*seed, kind).failure.is_some());
    let seed = seed.expect("a seed that shows the defect");
    let schedule = shrunk(seed, kind).expect("it failed before");
    assert!(schedule.failure.contains(says), "{schedule}");
    assert!(schedule.len() <= 20, "{schedule}");
    let again = shrunk(seed, kind).expect("it failed before");
    assert_eq!(schedule.to_string(), again.to_string());
}

#[test]
fn wrong_bytes_are_found() {
    found(Plant::NoDigests, "wrong bytes");
}

#[test]
fn a_lost_pin_is_found() {
    found(Plant::PinsIgnored, "pin");
}

#[test]
fn a_buffer_that_is_never_freed_is_found() {
    found(Plant::BuffersKept, "buffers");
}
