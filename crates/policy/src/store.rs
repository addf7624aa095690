//! Where a committed chunk is stored, and when it may leave L1.

use std::fmt::Debug;

use kvstrata_core::{KeyMask, ObjectKey};

use crate::{L2Id, TierView};

/// Decides the L2 targets of freshly committed keys.
///
/// Obligations: (1) pure: equal arguments, equal answers; (2) `targets` names only tiers of the view that take stores,
/// each at most once, with masks as long as `keys`; (3) `release` is a subset of `stored`.
pub trait StorePolicy: Send + Sync + Debug + 'static {
    /// The policy's name as configured.
    fn name(&self) -> &'static str;
    /// Appends which tier gets which of `keys`.
    fn targets(&self, keys: &[ObjectKey], tiers: &[TierView<'_>], out: &mut Vec<(L2Id, KeyMask)>);
    /// Of the keys that are in every target now (`stored`), those that leave L1 at once.
    fn release(&self, keys: &[ObjectKey], stored: &KeyMask) -> KeyMask;
    /// Whether a key that *no* target took leaves L1 too, once its retries are spent. True for policies under which L1
    /// is only a buffer: there, nothing else would ever free it.
    fn release_failed(&self) -> bool;
}

/// `default`: every key goes to every tier that takes stores, and stays in L1.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreDefault;

impl StorePolicy for StoreDefault {
    fn name(&self) -> &'static str {
        "default"
    }

    fn targets(&self, keys: &[ObjectKey], tiers: &[TierView<'_>], out: &mut Vec<(L2Id, KeyMask)>) {
        out.extend(tiers.iter().filter(|t| t.stores).map(|t| (t.id, KeyMask::all(keys.len()))));
    }

    fn release(&self, _keys: &[ObjectKey], stored: &KeyMask) -> KeyMask {
        KeyMask::none(stored.len())
    }

    fn release_failed(&self) -> bool {
        false
    }
}

/// `skip_l1`: every key goes to every tier that takes stores, and leaves L1 as soon as all of them have it. L1 is only a
/// buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SkipL1;

impl StorePolicy for SkipL1 {
    fn name(&self) -> &'static str {
        "skip_l1"
    }

    fn targets(&self, keys: &[ObjectKey], tiers: &[TierView<'_>], out: &mut Vec<(L2Id, KeyMask)>) {
        StoreDefault.targets(keys, tiers, out);
    }

    fn release(&self, _keys: &[ObjectKey], stored: &KeyMask) -> KeyMask {
        stored.clone()
    }

    fn release_failed(&self) -> bool {
        true
    }
}
