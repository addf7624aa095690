//! Faults of loads.

use std::collections::HashSet;
use std::sync::Arc;

use kvstrata_core::{Affinity, ErrorKind, Instant, LayoutId, ObjectKey};
use kvstrata_l2::{Answer, Call, Get, GetItem, GetSink, Loaded, Miss, Receive, all, digest_of_filled};

use crate::bytes::{cut, cut_loaded, flip_loaded};
use crate::injector::{State, on_demand};
use crate::plan::Choice;
use crate::{Fault, Op};

const OP: &str = "load with faults";

/// What the receiver of an answer knows of its key.
struct Slot {
    position: usize,
    key: ObjectKey,
    layout: LayoutId,
    choice: Option<Choice>,
}

pub(crate) async fn get(state: &Arc<State>, request: Get, done: GetSink) {
    let Get { items, deadline, affinity } = request;
    let choices = state.choose(Op::Get, items.iter().map(|item| &item.key));
    let mut items: Vec<(Slot, GetItem)> = items
        .into_iter()
        .zip(choices)
        .enumerate()
        .map(|(position, (item, choice))| {
            (Slot { position, key: item.key.clone(), layout: item.layout.id(), choice }, item)
        })
        .collect();
    swap(state, &mut items);

    let answered = done.answered();
    let mut at_once = Vec::with_capacity(items.len());
    let mut calls: Vec<Call<'_, ()>> = Vec::new();
    for (mut slot, item) in items {
        match slot.choice.map(|c| c.fault) {
            Some(Fault::Error) => {
                state.counters.both(Fault::Error);
                let error = on_demand(ErrorKind::Io, OP).with("key", &slot.key);
                done.answer(slot.position, Answer::Failed(error, Some(item.buf)));
            }
            Some(Fault::Delay | Fault::Hang) => {
                let Some(choice) = slot.choice.take() else { continue };
                let (inner, to) = (Arc::clone(state), (slot.position, done.clone()));
                let (shared, sink) = (Arc::clone(state), done.clone());
                let go = move || async move {
                    hand_on(&inner, vec![(slot, item)], &sink, deadline, affinity).await;
                };
                calls.push(Box::pin(async move {
                    shared.after_wait(OP, choice, deadline, to, go).await;
                }));
            }
            _ => at_once.push((slot, item)),
        }
    }
    if !at_once.is_empty() {
        calls.push(Box::pin(hand_on(state, at_once, &done, deadline, affinity)));
    }
    all(calls).await;
    drop(done);
    answered.await;
}

async fn hand_on(
    state: &Arc<State>,
    items: Vec<(Slot, GetItem)>,
    done: &GetSink,
    deadline: Instant,
    affinity: Affinity,
) {
    let (slots, items): (Vec<_>, Vec<_>) = items.into_iter().unzip();
    let to = Forward { slots, done: done.clone(), state: Arc::clone(state) };
    let sink = GetSink::new(items.len(), Arc::new(to));
    state.inner.get(Get { items, deadline, affinity }, sink).await;
}

/// Asks for another key of the same layout where one is to be swapped: for each other's where the batch has two, or for
/// one that was stored lately. A key without such another has no fault.
fn swap(state: &State, items: &mut [(Slot, GetItem)]) {
    if !items.iter().any(|(slot, _)| slot.choice.is_some_and(|c| c.fault == Fault::Swap)) {
        return;
    }
    let batch: HashSet<ObjectKey> = items.iter().map(|(slot, _)| slot.key.clone()).collect();
    let mut taken = HashSet::new();
    for i in 0..items.len() {
        let Some(choice) = items[i].0.choice.filter(|c| c.fault == Fault::Swap) else { continue };
        if items[i].1.key != items[i].0.key {
            // It was exchanged with one before.
            continue;
        }
        let layout = items[i].0.layout;
        let fits = |j: &usize| {
            let (slot, item) = &items[*j];
            *j != i
                && slot.layout == layout
                && item.key == slot.key
                && slot.choice.is_none_or(|c| c.fault == Fault::Swap)
        };
        if let Some(j) = (i + 1..items.len()).chain(0..i).find(fits) {
            let [a, b] = items.get_disjoint_mut([i, j]).expect("two different positions");
            std::mem::swap(&mut a.1.key, &mut b.1.key);
            for (slot, _) in [a, b] {
                slot.choice = Some(choice);
                state.counters.injected(Fault::Swap);
            }
        } else if let Some(other) =
            state.ledger.other(layout, choice.roll, |key| batch.contains(key) || taken.contains(key))
        {
            taken.insert(other.clone());
            items[i].1.key = other;
            state.counters.injected(Fault::Swap);
        } else {
            items[i].0.choice = None;
        }
    }
}

/// Receives the answers of the store inside.
struct Forward {
    slots: Vec<Slot>,
    done: GetSink,
    state: Arc<State>,
}

/// Whether what was loaded is not the payload of this key.
fn is_wrong(key: &ObjectKey, layout: LayoutId, loaded: &Loaded) -> bool {
    match loaded.found.digest {
        Some(kept) => digest_of_filled(key, layout, &loaded.buf).is_ok_and(|digest| digest != kept),
        // Without a digest nobody can tell; the bytes were changed all the same.
        None => true,
    }
}

impl Forward {
    /// Whoever asked looks at the damage that was done before.
    fn looked_at(&self, slot: &Slot, answer: &Answer) {
        let State { ledger, counters, .. } = &*self.state;
        let Some(fault) = ledger.pending(&slot.key) else { return };
        let shows = match (fault, answer) {
            // Nothing was learned of the object.
            (_, Answer::Failed(..)) => return,
            (Fault::LostWrite, answer) => matches!(answer, Answer::Miss(..)),
            (_, Answer::Loaded(loaded)) => is_wrong(&slot.key, slot.layout, loaded),
            (_, Answer::Miss(miss, _)) => *miss != Miss::Absent,
        };
        if ledger.settle(&slot.key) && shows {
            counters.effective(fault);
        }
    }

    fn with_fault(&self, slot: &Slot, choice: Choice, mut loaded: Loaded) -> Answer {
        let counters = &self.state.counters;
        match choice.fault {
            Fault::Gap => {
                counters.both(Fault::Gap);
                return Answer::Miss(Miss::Absent, Some(loaded.buf));
            }
            Fault::BitFlip if flip_loaded(&mut loaded.buf, choice.roll).is_ok() => {
                counters.both(Fault::BitFlip);
            }
            Fault::Truncation => {
                let from = cut(loaded.buf.len(), choice.roll);
                if cut_loaded(&mut loaded.buf, from).is_ok() {
                    loaded.found.len = from as u64;
                    counters.both(Fault::Truncation);
                }
            }
            Fault::Swap if is_wrong(&slot.key, slot.layout, &loaded) => counters.effective(Fault::Swap),
            _ => {}
        }
        Answer::Loaded(loaded)
    }
}

impl Receive<Answer> for Forward {
    fn answer(&self, i: usize, answer: Answer) {
        let slot = &self.slots[i];
        if slot.choice.is_none_or(|c| c.fault != Fault::Swap) {
            self.looked_at(slot, &answer);
        }
        let answer = match (answer, slot.choice) {
            (Answer::Loaded(loaded), Some(choice)) => self.with_fault(slot, choice, loaded),
            (answer, _) => answer,
        };
        self.done.answer(slot.position, answer);
    }
}
