//! The tests of the policies, in one binary.

mod affinity;
mod fastest;
mod obligations;
mod striped;
mod window;

use kvstrata_core::{ChunkHash, KeyScope, KvRank, ObjectKey};

fn keys(n: usize) -> Vec<ObjectKey> {
    let scope = KeyScope::new("org/model", KvRank::single(), 0, "").unwrap();
    (0..n).map(|i| ObjectKey::new(&scope, ChunkHash::new(&(i as u32).to_le_bytes()).unwrap())).collect()
}
