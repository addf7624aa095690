//! The bytes: what is taken, and what goes when more are wanted.

use std::ffi::OsString;
use std::num::NonZeroU32;

use kvstrata_evict::{EvictionPolicy, Removal, TenantId};

use super::{Index, Object};

/// The policy counts in 4 KiB units, so that objects above 4 GiB have a weight.
pub(super) const UNIT: u64 = 4096;

/// No salt has this number: whoever asks as it gets nothing that is promised to a tenant.
const NOBODY: TenantId = TenantId(u32::MAX);

pub(super) fn weight(charge: u64) -> NonZeroU32 {
    NonZeroU32::new(u32::try_from(charge.div_ceil(UNIT)).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

/// For whom room is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// The object being written in this slot: it may not push out what other tenants are promised.
    Writes(u32),
    /// The store itself, which can do without.
    Store,
    /// The limit, which holds whatever was promised.
    Limit,
}

/// An object that has to leave the device.
#[derive(Debug)]
pub(crate) struct Victim {
    pub(crate) object: Object,
}

/// The answer to a reservation.
#[derive(Debug)]
pub(crate) enum Room {
    /// The bytes are set aside.
    Ready,
    /// These bad objects in quarantine go first; then ask again.
    Purge(Vec<(OsString, u64)>),
    /// These are no longer found; their keys are held until they are off the device, and then [`Index::settle`] is told.
    Evict { victims: Vec<Victim>, added: u64 },
    /// Everything is in use or promised to others, or it can never fit.
    Full,
}

impl<W> Index<W> {
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// The bytes above the limit.
    pub(crate) fn excess(&self) -> u64 {
        self.capacity.map_or(0, |capacity| (self.used + self.overhead).saturating_sub(capacity))
    }

    /// Directories were made or removed, or another file of the store's own.
    pub(crate) fn overhead_grown(&mut self, by: i64) {
        self.overhead = self.overhead.saturating_add_signed(by);
    }

    pub(crate) fn capacity(&self) -> Option<u64> {
        self.capacity
    }

    /// Sets `need` bytes aside, or says what has to go first.
    pub(crate) fn reserve(&mut self, need: u64, asker: Asker) -> Room {
        // What exceeds the capacity already (found at the start) goes too.
        let short = match self.capacity {
            Some(capacity) => (self.used + self.overhead + need).saturating_sub(capacity),
            None => 0,
        };
        if short == 0 {
            self.used += need;
            return Room::Ready;
        }
        if let Some(bad) = self.purge(short) {
            return Room::Purge(bad);
        }
        match self.evict(short, asker) {
            None => Room::Full,
            Some((victims, freed)) => {
                let added = need.saturating_sub(freed);
                self.used += added;
                Room::Evict { victims, added }
            }
        }
    }

    /// Says what has to go so that the limit holds.
    pub(crate) fn shed(&mut self) -> Room {
        let over = self.excess();
        if over == 0 {
            return Room::Ready;
        }
        if let Some(bad) = self.purge(over) {
            return Room::Purge(bad);
        }
        self.evict(over, Asker::Limit).map_or(Room::Full, |(victims, _)| Room::Evict { victims, added: 0 })
    }

    /// Bad objects worth `bytes`, or all that there are: they go before any good one.
    fn purge(&mut self, bytes: u64) -> Option<Vec<(OsString, u64)>> {
        let mut purge = Vec::new();
        let mut freed = 0;
        while let Some(bad) = self.quarantined.pop_front_if(|_| freed < bytes) {
            freed += bad.1;
            purge.push(bad);
        }
        (!purge.is_empty()).then_some(purge)
    }

    /// Detaches and holds victims worth at least `bytes`, if there are enough.
    pub(super) fn evict(&mut self, bytes: u64, asker: Asker) -> Option<(Vec<Victim>, u64)> {
        let want = bytes.div_ceil(UNIT);
        let asks = match asker {
            Asker::Writes(slot) => Some(TenantId(self.at(slot).tenant)),
            Asker::Store => Some(NOBODY),
            Asker::Limit => None,
        };
        if let Some(quotas) = self.policy.quotas_mut() {
            // The policy has heard of the object that is being written.
            let inserted = if matches!(asker, Asker::Writes(_)) { want } else { 0 };
            quotas.asks(asks, -i64::try_from(inserted).unwrap_or(i64::MAX));
        }
        let mut slots = Vec::new();
        self.policy.victims(want, &mut slots);
        let freed: u64 = slots.iter().map(|s| self.at(s.0).object.charge).sum();
        if freed < bytes {
            return None;
        }
        self.evicted += slots.len() as u64;
        let victims = slots.into_iter().map(|s| {
            let object = self.detach(s.0, Removal::Evicted);
            let held = self.hold(object.key.fingerprint());
            debug_assert!(held, "the objects of held keys are pinned");
            Victim { object }
        });
        Some((victims.collect(), freed))
    }

    /// After [`Room::Evict`]: `freed` bytes are off the device. Whether the reservation of `need` stands; it does unless
    /// victims could not be removed.
    pub(crate) fn settle(&mut self, need: u64, added: u64, freed: u64) -> bool {
        self.used = self.used + (need - added) - freed;
        let stands = self.excess() == 0;
        if !stands {
            self.used -= need;
        }
        stands
    }

    /// Bytes that are off the device, or were set aside in vain.
    pub(crate) fn free(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "more bytes freed than used");
        self.used = self.used.saturating_sub(bytes);
    }

    /// Bytes that are on the device whether or not they were asked for.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// A bad object lies in quarantine and takes bytes that are counted already.
    pub(crate) fn quarantine(&mut self, name: OsString, bytes: u64) {
        self.quarantined.push_back((name, bytes));
    }
}
