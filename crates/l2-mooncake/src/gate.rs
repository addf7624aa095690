//! Who of this process is at which objects.
//!
//! Taking an object away frees its memory in the pool at once, whoever reads it. Readers elsewhere find that out by the
//! digest; those of this process do not meet writers at all.

use std::collections::HashMap;

use kvstrata_core::ObjectKey;
use parking_lot::{Condvar, Mutex};

/// Lets several read an object, or one write it.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    inside: Mutex<HashMap<u128, Inside>>,
    left: Condvar,
}

#[derive(Debug)]
enum Inside {
    Readers(usize),
    Writer,
}

/// The right to all objects of a batch.
#[derive(Debug)]
pub(crate) struct Within<'a> {
    gate: &'a Gate,
    keys: Vec<u128>,
}

impl Gate {
    pub(crate) fn read<'a, 'k>(&'a self, keys: impl Iterator<Item = &'k ObjectKey>) -> Within<'a> {
        let keys = prints(keys);
        let mut inside = self.inside.lock();
        while keys.iter().any(|k| matches!(inside.get(k), Some(Inside::Writer))) {
            self.left.wait(&mut inside);
        }
        for key in &keys {
            match inside.entry(*key).or_insert(Inside::Readers(0)) {
                Inside::Readers(n) => *n += 1,
                Inside::Writer => {}
            }
        }
        Within { gate: self, keys }
    }

    pub(crate) fn write<'a, 'k>(&'a self, keys: impl Iterator<Item = &'k ObjectKey>) -> Within<'a> {
        let keys = prints(keys);
        let mut inside = self.inside.lock();
        // All at once, so that no two batches wait for each other.
        while keys.iter().any(|k| inside.contains_key(k)) {
            self.left.wait(&mut inside);
        }
        inside.extend(keys.iter().map(|k| (*k, Inside::Writer)));
        Within { gate: self, keys }
    }
}

/// Each once: a batch must not wait for itself.
fn prints<'k>(keys: impl Iterator<Item = &'k ObjectKey>) -> Vec<u128> {
    let mut all: Vec<_> = keys.map(ObjectKey::fingerprint).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Drop for Within<'_> {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock();
        for key in &self.keys {
            match inside.get_mut(key) {
                Some(Inside::Readers(n)) if *n > 1 => *n -= 1,
                _ => drop(inside.remove(key)),
            }
        }
        drop(inside);
        self.gate.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};

    use kvstrata_core::{ChunkHash, KeyScope, KvRank};

    use super::*;

    #[test]
    fn readers_meet_readers_and_a_writer_nobody() {
        let scope = KeyScope::new("m", KvRank::single(), 0, "").unwrap();
        let keys: Vec<_> = (0..6u8).map(|n| ObjectKey::new(&scope, ChunkHash::new(&[n]).unwrap())).collect();
        let gate = Gate::default();
        // Readers count up, a writer takes a thousand away.
        let at: Vec<AtomicI32> = keys.iter().map(|_| AtomicI32::new(0)).collect();
        std::thread::scope(|s| {
            for thread in 0..4usize {
                let (gate, keys, at) = (&gate, &keys, &at);
                s.spawn(move || {
                    for round in 0..500 {
                        let first = (thread * 7 + round) % 5;
                        // A key twice, and a batch in the other order.
                        let batch = [first + 1, first, first];
                        let of = batch.iter().map(|i| &keys[*i]);
                        let write = (thread + round) % 3 == 0;
                        let _within = if write { gate.write(of) } else { gate.read(of) };
                        let by = if write { -1000 } else { 1 };
                        for i in [first, first + 1] {
                            let before = at[i].fetch_add(by, Ordering::SeqCst);
                            assert!(if write { before == 0 } else { before >= 0 }, "{before} are inside");
                        }
                        for i in [first, first + 1] {
                            at[i].fetch_sub(by, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(gate.inside.lock().is_empty());
    }
}
