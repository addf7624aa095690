//! Operations in turn.

use std::path::{Path, PathBuf};
use std::time::Instant;

/// Runs every operation `times` times, one after the other, and all of that `rounds` times: what else happens on the
/// machine hits all of them. The answer is seconds per run, by operation and round. Who goes first changes with each round.
pub fn in_turn(rounds: usize, times: usize, operations: &mut [&mut dyn FnMut()]) -> Vec<Vec<f64>> {
    let n = operations.len();
    let mut seconds = vec![Vec::with_capacity(rounds); n];
    for round in 0..rounds {
        for at in (0..n).map(|i| (i + round) % n) {
            let begun = Instant::now();
            for _ in 0..times {
                operations[at]();
            }
            seconds[at].push(begun.elapsed().as_secs_f64() / times as f64);
        }
    }
    seconds
}

/// The least, which is the nearest to what the code itself takes. Infinite if there is none.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The middle value, the upper of two. 0 if there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A new name under `dir` for the files of this process.
pub fn scratch(dir: &Path, what: &str) -> PathBuf {
    dir.join(format!("kvstrata-{what}-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_least_are_of_the_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(least(&[3.0, 1.0, 2.0]), 1.0);
    }

    #[test]
    fn everyone_goes_first_in_some_round() {
        let order = std::cell::RefCell::new(String::new());
        let say = |who: char| order.borrow_mut().push(who);
        let seconds = in_turn(3, 1, &mut [&mut || say('a'), &mut || say('b')]);
        assert_eq!(*order.borrow(), "abbaab");
        assert!(seconds.iter().flatten().all(|s| *s >= 0.0) && seconds.len() == 2);
    }
}
