//! Which objects are worth keeping at all.

use crate::duel::Duel;
use crate::ghosts::Ghosts;
use crate::names::{find, names};
use crate::sketch::Sketch;
use crate::{Access, UnknownPolicy};
use std::fmt::Debug;
use std::num::NonZeroU32;

/// An object that could be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The fingerprint of its identity, as in [`Entry`](crate::Entry).
    pub print: u64,
    /// Its size in the owner's unit of capacity (bytes).
    pub weight: NonZeroU32,
    /// The print of the entry that would have to go for it; `None` while there is room.
    pub rival: Option<u64>,
    /// It is kept already.
    pub resident: bool,
}

/// Decides who comes in, as an eviction policy decides who goes.
///
/// Most of what is asked for once is never asked for again, and to keep it costs what it drives out and the wear of
/// writing it. Obligations, each held by a test of the same number in this crate's `tests/admission.rs` for every rule:
///
/// 1. **Room.** While there is room, everything is admitted.
/// 2. **Bounded.** Memory is proportional to the capacity, and no operation is worse than amortised O(1).
/// 3. **Deterministic.** The same calls give the same answers.
///
/// An owner of chains of chunks asks through [`admit_chain`], so that no chunk is kept without those before it.
pub trait Admission: Send + Debug + 'static {
    /// The rule's name, one of those [`admission_by_name`] takes.
    fn name(&self) -> &'static str;
    /// The capacity of the owner's tier, in weight: told before anything else and whenever it changes.
    fn set_capacity(&mut self, weight: u64);
    /// An object was asked for, whether it was resident or not: once for each object of a request, before it is offered.
    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access);
    /// Whether an object that is not resident should be kept.
    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool;
    /// The heap memory held, in bytes.
    fn memory(&self) -> usize;
}

/// Asks for a chain of chunks, from its first to its last, which to keep: what is resident, and what is admitted and
/// follows nothing that is not kept. The answers are appended to `out`, one for each chunk.
///
/// A chunk behind a gap could never be used, so what the rule thinks of it does not matter. It is sighted all the same.
pub fn admit_chain(rule: &mut dyn Admission, chain: &[Offer], cx: &Access, out: &mut Vec<bool>) {
    let mut closed = true;
    out.extend(chain.iter().map(|offer| {
        closed &= offer.resident || rule.admits(offer, cx);
        closed || offer.resident
    }));
}

/// Everything is worth keeping.
///
/// Memory: none.
#[derive(Debug, Default)]
pub struct Always;

impl Admission for Always {
    fn name(&self) -> &'static str {
        "always"
    }
    fn set_capacity(&mut self, _: u64) {}
    fn asked(&mut self, _: u64, _: NonZeroU32, _: &Access) {}
    fn admits(&mut self, _: &Offer, _: &Access) -> bool {
        true
    }
    fn memory(&self) -> usize {
        0
    }
}

/// How many capacities of objects are remembered.
const MEMORY: u64 = 2;

/// What was asked for or offered in an earlier request is worth keeping. Requests are told apart by [`Access::request`].
///
/// Memory: at most 76 bytes per remembered object. Remembered are the last objects that together weigh twice the
/// capacity, or so many times as it is made with.
#[derive(Debug)]
pub struct SecondSighting {
    /// A ghost's mark: the last request that sighted it, and whether an earlier one did.
    sighted: Ghosts,
    capacity: u64,
    memory: u64,
}

/// The mark of what was sighted in two requests. The other bits are the last request's number, modulo 2^31.
const TWICE: u32 = 1 << 31;

impl Default for SecondSighting {
    fn default() -> Self {
        Self::with_memory(MEMORY)
    }
}

impl SecondSighting {
    /// A rule that remembers the last objects that together weigh so many times the capacity. More memory admits more of
    /// what comes back late, and more of what comes by chance.
    pub fn with_memory(capacities: u64) -> Self {
        Self { sighted: Ghosts::default(), capacity: 0, memory: capacities }
    }

    /// Notes a sighting, and says whether it is not the first.
    pub(crate) fn sight(&mut self, print: u64, weight: NonZeroU32, cx: &Access) -> bool {
        let now = cx.request as u32 & !TWICE;
        let mark = match self.sighted.get_mut(print).map(|ghost| ghost.mark) {
            Some(mark) if mark & !TWICE == now => return mark & TWICE != 0,
            Some(_) => now | TWICE,
            None => now,
        };
        self.sighted.push(print, weight.get(), 0);
        if let Some(ghost) = self.sighted.get_mut(print) {
            ghost.mark = mark;
        }
        self.trim();
        mark & TWICE != 0
    }
}

impl SecondSighting {
    fn trim(&mut self) {
        self.sighted.trim(usize::MAX, self.capacity.saturating_mul(self.memory));
    }
}

impl Admission for SecondSighting {
    fn name(&self) -> &'static str {
        "second_sighting"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.capacity = weight;
        self.trim();
    }

    fn asked(&mut self, print: u64, weight: NonZeroU32, cx: &Access) {
        self.sight(print, weight, cx);
    }

    fn admits(&mut self, offer: &Offer, cx: &Access) -> bool {
        self.sight(offer.print, offer.weight, cx) || offer.rival.is_none()
    }

    fn memory(&self) -> usize {
        self.sighted.memory()
    }
}

/// What is asked for more often than what would have to go for it is worth keeping. How often is counted by a sketch
/// that forgets.
///
/// Memory: at most 16 bytes for each object of average size that fits into the capacity.
///
/// Source: Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017.
#[derive(Debug, Default)]
pub struct TinyLfu {
    sketch: Sketch,
    capacity: u64,
    weight: u64,
    objects: u64,
}

/// The average size is taken over so many objects.
const AVERAGED: u64 = 1024;

impl Admission for TinyLfu {
    fn name(&self) -> &'static str {
        "tinylfu"
    }

    fn set_capacity(&mut self, weight: u64) {
        self.capacity = weight;
        (self.weight, self.objects) = (0, 0);
    }

    fn asked(&mut self, print: u64, weight: NonZeroU32, _: &Access) {
        if self.objects < AVERAGED {
            self.weight += u64::from(weight.get());
            self.objects += 1;
            if self.objects == AVERAGED {
                let fit = u128::from(self.capacity) * u128::from(AVERAGED) / u128::from(self.weight);
                self.sketch.ensure(usize::try_from(fit).unwrap_or(usize::MAX));
            }
        }
        self.sketch.add(print);
    }

    fn admits(&mut self, offer: &Offer, _: &Access) -> bool {
        // On a tie the one that is there stays: to exchange them is work for nothing.
        offer.rival.is_none_or(|rival| self.sketch.count(offer.print) > self.sketch.count(rival))
    }

    fn memory(&self) -> usize {
        self.sketch.memory()
    }
}

/// Makes a rule that knows nothing yet.
type Make = fn() -> Box<dyn Admission>;

const RULES: &[(&str, Make)] = &[
    ("always", || Box::new(Always)),
    ("second_sighting", || Box::<SecondSighting>::default()),
    ("tinylfu", || Box::<TinyLfu>::default()),
    ("duel", || Box::<Duel>::default()),
];

/// The names [`admission_by_name`] takes, as they are usually written.
pub const ADMISSIONS: [&str; RULES.len()] = names(RULES);

/// An admission rule by its name, in any case and with or without `-` and `_`.
///
/// # Errors
/// When the name is not one of [`ADMISSIONS`].
pub fn admission_by_name(name: &str) -> Result<Box<dyn Admission>, UnknownPolicy> {
    find(name, RULES)
        .map(|make| make())
        .ok_or_else(|| UnknownPolicy::new("admission rule", name, &ADMISSIONS))
}
