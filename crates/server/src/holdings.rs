//! What workers hold of L1: buffers they fill, and buffers they read.

use std::collections::HashMap;

use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_manager::{LeaseId, Leases, OwnerId, Reservation};
use kvstrata_mem::ReadBuf;

use crate::api::Key;

/// What a transfer that was prepared and not committed holds.
#[derive(Debug)]
pub(crate) enum Held {
    /// Buffers that a worker fills.
    Write(Vec<Reservation>),
    /// Buffers that it reads.
    Read(Vec<ReadBuf>),
}

/// What tells one prepared transfer from another: the worker, the direction, and the key without what is not part of its
/// meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TransferId {
    instance: i64,
    write: bool,
    key: [u8; 32],
}

impl TransferId {
    pub(crate) fn new(instance: i64, write: bool, key: &Key) -> Self {
        let mut h = blake3::Hasher::new();
        let numbers = [key.world_size, key.worker.unwrap_or(-1), key.start, key.end, key.tokens.len() as i64];
        numbers.iter().for_each(|n| {
            h.update(&n.to_le_bytes());
        });
        for text in [&key.model, &key.salt] {
            h.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        h.update(key.tokens.as_be_bytes());
        Self { instance, write, key: *h.finalize().as_bytes() }
    }

    fn owner(self) -> OwnerId {
        OwnerId(self.instance as u64)
    }
}

/// All prepared transfers.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    leases: Leases<Held>,
    transfers: HashMap<TransferId, LeaseId>,
}

impl Holdings {
    /// A worker holds this until it settles, or is gone. A transfer of the same name that it holds already stays until the
    /// worker is gone: it may be writing there.
    pub(crate) fn grant(&mut self, id: TransferId, expires: Instant, held: Held) {
        let lease = self.leases.grant(id.owner(), expires, held);
        self.transfers.insert(id, lease);
    }

    /// The worker is done with a transfer.
    ///
    /// # Errors
    /// As [`Leases::settle`].
    pub(crate) fn settle(&mut self, id: TransferId, now: Instant) -> Result<Held> {
        let unknown =
            || Error::new(ErrorKind::NotFound, "settle transfer", "nothing was prepared for this key");
        let lease = *self.transfers.get(&id).ok_or_else(unknown)?;
        let settled = self.leases.settle(id.owner(), lease, now);
        // What ran out stays in quarantine, and is void.
        self.transfers.remove(&id);
        settled
    }

    /// Marks what ran out; how many.
    pub(crate) fn lapse(&mut self, now: Instant) -> usize {
        self.leases.lapse(now)
    }

    /// Voids all that a worker holds; how much. Frees nothing.
    pub(crate) fn revoke(&mut self, instance: i64) -> usize {
        self.transfers.retain(|id, _| id.instance != instance);
        self.leases.revoke(OwnerId(instance as u64))
    }

    /// The worker is gone, and so is whatever could write to its buffers or read them.
    pub(crate) fn gone(&mut self, instance: i64) -> Vec<Held> {
        self.transfers.retain(|id, _| id.instance != instance);
        self.leases.owner_gone(OwnerId(instance as u64))
    }

    /// When the first of what is being filled ends, and the first of what is being read; what ran out included.
    pub(crate) fn oldest(&self) -> (Option<Instant>, Option<Instant>) {
        let first = |write: bool| {
            let of = |(_, held): &(Instant, &Held)| matches!(held, Held::Write(_)) == write;
            self.leases.iter().filter(of).map(|(expires, _)| expires).min()
        };
        (first(true), first(false))
    }

    pub(crate) fn live(&self) -> usize {
        self.leases.live()
    }

    pub(crate) fn quarantined(&self) -> usize {
        self.leases.quarantined()
    }
}
