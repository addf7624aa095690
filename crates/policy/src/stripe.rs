//! Each key to one tier, by weighted rendezvous hashing.
//!
//! Every tier bids for every key, and the highest bid takes it. A bid depends on the key, the tier's name and its weight,
//! and on nothing else. So a tier that comes takes its share from the others and nothing moves between them; when it
//! leaves, its share goes back. Whoever has the same names and weights places the same way, on any machine.

use std::fmt::Debug;

use kvstrata_core::{KeyMask, ObjectKey};

use crate::rendezvous::{Bid, hash, seat};
use crate::{L2Id, StorePolicy, TierView};

/// `striped`: every key goes to exactly one of the tiers that take stores, and stays in L1. A tier's share is
/// proportional to its weight; tiers of weight 0 get keys only if all are of weight 0. While a tier takes no stores, its
/// share is spread over the others.
///
/// ```
/// use kvstrata_core::{ChunkHash, KeyMask, KeyScope, KvRank, ObjectKey};
/// use kvstrata_policy::{store_by_name, L2Id, TierView};
///
/// let scope = KeyScope::new("model", KvRank::single(), 0, "")?;
/// let keys: Vec<_> = (0..100).map(|n| ObjectKey::new(&scope, ChunkHash::from([n; 32]))).collect();
/// let none = KeyMask::none(keys.len());
/// let tier = |id, name, weight| TierView {
///     id: L2Id(id), name, weight, stores: true, loads: true, found: &none, load_time: None,
/// };
/// let mut targets = Vec::new();
/// store_by_name("striped")?.targets(&keys, &[tier(0, "small", 1), tier(1, "large", 3)], &mut targets);
/// let shares: Vec<_> = targets.iter().map(|(_, keys)| keys.count()).collect();
/// assert_eq!(shares, [28, 72], "about one to three");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Striped;

impl StorePolicy for Striped {
    fn name(&self) -> &'static str {
        "striped"
    }

    fn targets(&self, keys: &[ObjectKey], tiers: &[TierView<'_>], out: &mut Vec<(L2Id, KeyMask)>) {
        let taking: Vec<_> = tiers.iter().filter(|t| t.stores).map(|t| (t, seat(t.name))).collect();
        let mut shares: Vec<_> = taking.iter().map(|(t, _)| (t.id, KeyMask::none(keys.len()))).collect();
        for (i, key) in keys.iter().enumerate() {
            let bids = taking.iter().enumerate().map(|(at, (t, seat))| {
                (at, Bid { weight: t.weight, hash: hash(key.fingerprint(), *seat), name: t.name })
            });
            if let Some((at, _)) = bids.reduce(|a, b| if b.1.beats(&a.1) { b } else { a }) {
                shares[at].1.set(i);
            }
        }
        out.extend(shares.into_iter().filter(|(_, share)| !share.is_clear()));
    }

    fn release(&self, _keys: &[ObjectKey], stored: &KeyMask) -> KeyMask {
        KeyMask::none(stored.len())
    }

    fn release_failed(&self) -> bool {
        false
    }
}
