//! What the index does for a store of segments: places, and what goes to make room for one.

use kvstrata_evict::Removal;

use super::extents::Extents;
use super::{Asker, Index, Object, State};
use crate::slab::format::Record;
use crate::slab::geometry::UNIT;

/// An object that is not found any more; its place is free once that is in the log.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) fingerprint: [u8; 32],
    pub(crate) generation: u64,
    pub(crate) at: u64,
    pub(crate) vouched: bool,
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

impl<W> Index<W> {
    /// From now on objects have places in segments of so many bytes; there may be so many objects at most.
    pub(crate) fn with_segments(&mut self, segment: u64, most: u64) {
        self.extents = Some(Extents::new(segment / UNIT));
        self.most = most;
    }

    pub(crate) fn extents(&mut self) -> &mut Extents {
        self.extents.as_mut().expect("a store of segments")
    }

    /// A place for the object that is being written in this slot, if there is one: its bytes count from now on.
    pub(crate) fn place(&mut self, charge: u64, slot: u32, generation: u64) -> Option<u64> {
        if self.is_crowded() {
            return None;
        }
        let at = self.extents().take(units(charge), slot)? * UNIT;
        let object = &mut self.at_mut(slot).object;
        (object.place.at, object.generation) = (at, generation);
        self.used += charge;
        self.placed += 1;
        Some(at)
    }

    fn is_crowded(&self) -> bool {
        self.placed >= self.most
    }

    /// Gives a place back that no record was ever written for.
    pub(crate) fn unplace(&mut self, at: u64, charge: u64) {
        self.used -= charge;
        self.placed -= 1;
        self.extents().give(at / UNIT);
    }

    /// The object in this slot is not found any more.
    pub(crate) fn vacate(&mut self, slot: u32, why: Removal) -> Leaving {
        let object = self.detach(slot, why);
        self.leaves(&object)
    }

    fn leaves(&mut self, object: &Object) -> Leaving {
        self.leave(object.place.at, object.charge);
        Leaving {
            fingerprint: *object.key.fingerprint256(),
            generation: object.generation,
            at: object.place.at,
            vouched: object.found.digest.is_some(),
        }
    }

    /// A place whose object went, or never came, and that is free once its record is written.
    pub(crate) fn leave(&mut self, at: u64, charge: u64) {
        self.used -= charge;
        self.placed -= 1;
        self.extents().leave(at / UNIT);
    }

    /// The record is written.
    pub(crate) fn free_place(&mut self, at: u64) {
        self.extents().give(at / UNIT);
    }

    /// Evicts so that `charge` bytes, or one object more, may find a place: what the policy says if bytes are missing, and
    /// what lies in the way if they are only scattered; if that has to stay, what the policy says again. `None` if nothing more
    /// can go.
    pub(crate) fn make_place(&mut self, charge: u64, asker: Asker) -> Option<Vec<Leaving>> {
        let short = charge.saturating_sub(self.extents().free_units() * UNIT);
        let short = if self.is_crowded() { short.max(1) } else { short };
        if short == 0 {
            let may = |slot: u32| self.may_go(slot, asker);
            if let Some(slots) = self.extents.as_ref()?.in_the_way(units(charge), may) {
                self.evicted += slots.len() as u64;
                return Some(slots.into_iter().map(|slot| self.vacate(slot, Removal::Evicted)).collect());
            }
        }
        let bytes = if short > 0 { short } else { charge };
        self.evict_places(bytes, asker).map(|(leaving, _)| leaving)
    }

    /// Evicts so that there is room for each of these objects, of so many bytes and being written in that slot, in this order
    /// and as far as the policy gives up enough. It may be scattered.
    pub(crate) fn make_places(&mut self, objects: impl Iterator<Item = (u64, u32)>) -> Vec<Leaving> {
        let mut leaving = Vec::new();
        let mut free = self.extents().free_units() * UNIT;
        let mut more = self.most.saturating_sub(self.placed);
        for (charge, slot) in objects {
            let short = charge.saturating_sub(free).max(u64::from(more == 0));
            if short > 0 {
                let Some((gone, freed)) = self.evict_places(short, Asker::Writes(slot)) else { break };
                (free, more) = (free + freed, more + gone.len() as u64);
                leaving.extend(gone);
            }
            (free, more) = (free - charge, more - 1);
        }
        leaving
    }

    /// Evicts at least so many bytes by what the policy says, if there are enough; and how many there were.
    fn evict_places(&mut self, bytes: u64, asker: Asker) -> Option<(Vec<Leaving>, u64)> {
        let (victims, freed) = self.evict(bytes, asker)?;
        let leaving = victims.iter().map(|victim| {
            // Nobody waits for what the lock was not given up for.
            self.pass_on(victim.object.key.fingerprint());
            self.leaves(&victim.object)
        });
        Some((leaving.collect(), freed))
    }

    /// Whether an object that lies in the way may go, and if so when it was used. Of a policy that keeps tenants apart, only
    /// the asker's own may: what the others are promised is the policy's to know.
    fn may_go(&self, slot: u32, asker: Asker) -> Option<u64> {
        let s = self.slots[slot as usize].as_ref()?;
        let theirs = match asker {
            Asker::Writes(writes) if self.keeps_quotas() => self.at(writes).tenant == s.tenant,
            Asker::Store => !self.keeps_quotas(),
            Asker::Writes(_) | Asker::Limit => true,
        };
        let free =
            s.state == State::Resident && s.pins == 0 && !self.held.contains_key(&s.object.key.fingerprint());
        (theirs && free).then_some(s.object.used_at)
    }

    /// The object that is being written in a slot.
    pub(crate) fn written(&self, slot: u32) -> &Object {
        &self.at(slot).object
    }

    /// The record of the object that is being written in a slot is in the log.
    pub(crate) fn recorded(&mut self, slot: u32) {
        let s = self.at_mut(slot);
        debug_assert_eq!(s.state, State::Writing);
        s.state = State::Recorded;
    }

    /// The object in a slot, if the log has it: it can be found, or is about to be.
    pub(crate) fn in_log(&self, slot: u32) -> Option<&Object> {
        let s = self.slots.get(slot as usize)?.as_ref()?;
        matches!(s.state, State::Resident | State::Recorded).then_some(&s.object)
    }

    /// Shows what the log has from slot `from` on, of at most `most` slots, and says where to go on.
    pub(crate) fn each_in_log(
        &self,
        from: usize,
        most: usize,
        mut each: impl FnMut(u32, &Object),
    ) -> Option<usize> {
        let to = (from + most).min(self.slots.len());
        for slot in from..to {
            if let Some(object) = self.in_log(slot as u32) {
                each(slot as u32, object);
            }
        }
        (to < self.slots.len()).then_some(to)
    }

    /// Takes over what a record of the log or the snapshot says. Places are looked at when all records are read.
    pub(crate) fn replay(&mut self, record: Record) {
        match record {
            Record::Insert(object) => {
                // A snapshot has both while one takes the other's place, in any order.
                let there = self.slot_of(&object.key);
                if there.is_none_or(|slot| self.at(slot).object.generation <= object.generation) {
                    self.recovered_over(there, object);
                }
            }
            Record::Remove { fingerprint, generation } => {
                let print = u128::from_le_bytes(*fingerprint.first_chunk().expect("32 bytes"));
                let there = self.slot_by_print(print);
                let same = |slot: &u32| {
                    let object = &self.at(*slot).object;
                    object.generation == generation && *object.key.fingerprint256() == fingerprint
                };
                if let Some(slot) = there.filter(same) {
                    self.used -= self.detach(slot, Removal::Deleted).charge;
                }
            }
        }
    }

    /// Forgets what a start cannot believe: objects outside of what there is, two in one place (the newer one stays), and
    /// those that `believes` refuses. Then the places are taken. Returns how many were forgotten.
    pub(crate) fn settle_places(
        &mut self,
        holds: impl Fn(u64, u64) -> bool,
        believes: impl Fn(&Object) -> bool,
    ) -> u64 {
        let mut places: Vec<(u64, u32, u32)> = Vec::with_capacity(self.len());
        let mut forgotten = Vec::new();
        self.each_in_log(0, usize::MAX / 2, |slot, object| {
            if object.place.path == 0 && holds(object.place.at, object.charge) && believes(object) {
                places.push((object.place.at / UNIT, units(object.charge), slot));
            } else {
                forgotten.push(slot);
            }
        });
        places.sort_unstable();
        // Those that stay move to the front.
        let mut kept = 0;
        for next in 0..places.len() {
            let place = places[next];
            let generation = |slot: u32| self.at(slot).object.generation;
            let mut loses = false;
            while kept > 0 {
                let last = places[kept - 1];
                if last.0 + u64::from(last.1) <= place.0 {
                    break;
                }
                if generation(last.2) > generation(place.2) {
                    loses = true;
                    break;
                }
                forgotten.push(last.2);
                kept -= 1;
            }
            if loses {
                forgotten.push(place.2);
            } else {
                places[kept] = place;
                kept += 1;
            }
        }
        places.truncate(kept);
        let n = forgotten.len() as u64;
        for slot in forgotten {
            self.used -= self.detach(slot, Removal::Deleted).charge;
        }
        self.placed = places.len() as u64;
        self.extents().fill(places);
        n
    }
}
