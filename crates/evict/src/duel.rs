//! Two shadow caches that decide which rule the real one follows.

use crate::admission::{Admission, Offer, SecondSighting};
use crate::ghosts::mix;
use crate::table::Queues;
use crate::{Access, Entry, Slot, TenantId};
use hashbrown::HashTable;
use std::num::NonZeroU32;

/// One object in so many is sampled.
const SAMPLE: u64 = 16;
/// Hits are halved when one shadow has so many: enough that chance does not decide, few enough that a change shows.
const LATELY: u64 = 1024;

/// An LRU cache without contents.
#[derive(Debug)]
struct Shadow {
    queue: Queues<u64>,
    index: HashTable<u32>,
    free: Vec<Slot>,
    slots: u32,
    capacity: u64,
    hits: u64,
}

impl Shadow {
    fn new() -> Self {
        Self {
            queue: Queues::new(1),
            index: HashTable::new(),
            free: Vec::new(),
            slots: 0,
            capacity: 0,
            hits: 0,
        }
    }

    /// Uses an object if it is there; else stores it if `admits`, or if there is room.
    fn access(&mut self, print: u64, weight: NonZeroU32, admits: bool) {
        let queue = &mut self.queue;
        let same = |&n: &u32| queue.get(Slot(n)).is_some_and(|node| node.extra == print);
        if let Some(&slot) = self.index.find(mix(print), same) {
            queue.append(Slot(slot), 0);
            self.hits += 1;
            return;
        }
        let most = self.capacity.saturating_sub(weight.get().into());
        if (!admits && queue.total() > most) || u64::from(weight.get()) > self.capacity {
            return;
        }
        self.make_room(most);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            Slot(self.slots - 1)
        });
        let entry = Entry { slot, print, weight, parent: None, tenant: TenantId(0) };
        self.queue.insert(&entry, 0, print);
        let queue = &self.queue;
        self.index
            .insert_unique(mix(print), slot.0, |&n| mix(queue.get(Slot(n)).map_or(0, |node| node.extra)));
    }

    fn make_room(&mut self, most: u64) {
        self.queue.rewind(0);
        while self.queue.total() > most {
            let Some((slot, _)) = self.queue.advance(0) else { return };
            let Some(node) = self.queue.remove(slot) else { return };
            if let Ok(found) = self.index.find_entry(mix(node.extra), |&n| n == slot.0) {
                found.remove();
            }
            self.free.push(slot);
        }
    }

    fn memory(&self) -> usize {
        self.queue.memory() + self.index.allocation_size() + self.free.capacity() * size_of::<Slot>()
    }
}

/// Whichever of [`Always`](crate::Always) and [`SecondSighting`] does better on a sample.
///
/// One object in sixteen, chosen by its print, also goes through two shadow LRUs of a sixteenth of the capacity, one
/// that keeps everything and one that keeps what is sighted again. The one with more hits lately rules; on a tie
/// everything is admitted.
///
/// Memory: that of [`SecondSighting`], and in shadows and their own memory of sightings about a sixth of it on top (at
/// most 140 bytes per shadow entry, one for each sixteen residents of each).
#[derive(Debug)]
pub struct Duel {
    filter: SecondSighting,
    shadow_filter: SecondSighting,
    every: Shadow,
    again: Shadow,
}

impl Default for Duel {
    fn default() -> Self {
        Self::with(SecondSighting::default(), SecondSighting::default())
    }
}

impl Duel {
    /// A duel that remembers the sightings of the last objects that together weigh so many times the capacity.
    pub fn with_memory(capacities: u64) -> Self {
        Self::with(SecondSighting::with_memory(capacities), SecondSighting::with_memory(capacities))
    }

    fn with(filter: SecondSighting, shadow_filter: SecondSighting) -> Self {
        Self { filter, shadow_filter, every: Shadow::new(), again: Shadow::new() }
    }
}

impl Admission for Duel {
    fn name(&self) -> &'static str {
        "duel"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.filter.set_capacity(weight);
        let share = weight.div_ceil(SAMPLE);
        self.shadow_filter.set_capacity(share);
        for shadow in [&mut self.every, &mut self.again] {
            shadow.capacity = share;
            shadow.make_room(share);
        }
    }

    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access) {
        self.filter.asked(print, weight, cx);
        if !mix(print).is_multiple_of(SAMPLE) {
            return;
        }
        self.every.access(print, weight, true);
        let known = self.shadow_filter.sight(print, weight, cx);
        self.again.access(print, weight, known);
        if self.every.hits.max(self.again.hits) >= LATELY {
            self.every.hits /= 2;
            self.again.hits /= 2;
        }
    }

    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool {
        let known = self.filter.admits(offer, cx);
        known || self.again.hits <= self.every.hits
    }

    fn memory(&self) -> usize {
        self.filter.memory() + self.shadow_filter.memory() + self.every.memory() + self.again.memory()
    }
}
