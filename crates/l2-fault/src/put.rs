//! Faults of stores.

use std::sync::Arc;

use kvstrata_core::{ErrorKind, Layout, ObjectKey, Result};
use kvstrata_l2::{Call, Found, Put, PutItem, PutSink, Receive, Stored, all};
use kvstrata_mem::ReadBuf;

use crate::bytes::{changed, cut, flip, shortened, tear};
use crate::injector::{State, on_demand};
use crate::plan::Choice;
use crate::{Fault, Op};

const OP: &str = "store with faults";

/// What the receiver of an answer knows of its key.
struct Slot {
    position: usize,
    key: ObjectKey,
    found: Found,
    /// The damage, if what was handed on is not what was asked for.
    damage: Option<Fault>,
    /// The damage there was before.
    before: Option<Fault>,
}

impl Slot {
    fn of(position: usize, item: &mut PutItem) -> Self {
        // Before the bytes are damaged. Where it cannot be made there is none.
        let digest = item.digest().unwrap_or_default();
        let found = Found { len: item.layout.bytes(), layout: Some(item.layout.id()), digest };
        Self { position, key: item.key.clone(), found, damage: None, before: None }
    }
}

pub(crate) async fn put(state: &Arc<State>, request: Put, done: PutSink) {
    let Put { items, deadline, affinity } = request;
    let mut choices = state.choose(Op::Put, items.iter().map(|item| &item.key));
    let mut items: Vec<(Slot, PutItem)> =
        items.into_iter().enumerate().map(|(i, mut item)| (Slot::of(i, &mut item), item)).collect();
    swap(state, &mut items, &mut choices);

    let answered = done.answered();
    let mut at_once = Vec::with_capacity(items.len());
    let mut calls: Vec<Call<'_, ()>> = Vec::new();
    for ((mut slot, mut item), choice) in items.into_iter().zip(choices) {
        let Some(choice) = choice else {
            at_once.push((slot, item));
            continue;
        };
        match choice.fault {
            Fault::Error | Fault::NoSpace => {
                drop(item);
                let kind = if choice.fault == Fault::Error { ErrorKind::Io } else { ErrorKind::NoSpace };
                state.counters.both(choice.fault);
                done.answer(slot.position, Err(on_demand(kind, OP)));
            }
            Fault::LostWrite => {
                drop(item);
                state.counters.injected(Fault::LostWrite);
                // What is damaged there already stays, and is what will be seen.
                if state.ledger.pending(&slot.key).is_none() {
                    state.ledger.damaged(&slot.key, Fault::LostWrite);
                }
                state.ledger.stored(&slot.key, slot.found);
                done.answer(slot.position, Ok(Stored::Written));
            }
            Fault::Delay | Fault::Hang => {
                let (inner, to) = (Arc::clone(state), (slot.position, done.clone()));
                let (shared, sink) = (Arc::clone(state), done.clone());
                let go = move || async move {
                    hand_on(&inner, vec![(slot, item)], &sink, deadline, affinity).await;
                };
                calls.push(Box::pin(async move {
                    shared.after_wait(OP, choice, deadline, to, go).await;
                }));
            }
            fault => {
                if let Some((buf, layout)) = damaged(&item, choice) {
                    (item.buf, item.layout) = (buf, layout);
                    slot.damage = Some(fault);
                    state.counters.injected(fault);
                }
                at_once.push((slot, item));
            }
        }
    }
    if !at_once.is_empty() {
        calls.push(Box::pin(hand_on(state, at_once, &done, deadline, affinity)));
    }
    all(calls).await;
    drop(done);
    answered.await;
}

/// Gives objects to the store inside.
async fn hand_on(
    state: &Arc<State>,
    items: Vec<(Slot, PutItem)>,
    done: &PutSink,
    deadline: kvstrata_core::Instant,
    affinity: kvstrata_core::Affinity,
) {
    let (mut slots, items): (Vec<_>, Vec<_>) = items.into_iter().unzip();
    for slot in &mut slots {
        // Before the object can be found, so that whoever finds it is seen.
        if let Some(fault) = slot.damage {
            slot.before = state.ledger.damaged(&slot.key, fault);
        }
    }
    let to = Forward { slots, done: done.clone(), state: Arc::clone(state) };
    let sink = PutSink::new(items.len(), Arc::new(to));
    state.inner.put(Put { items, deadline, affinity }, sink).await;
}

/// Exchanges what is stored under keys that are to be swapped with what is stored under the next one of the same layout
/// that has no fault. A key without such a neighbour has no fault either.
fn swap(state: &State, items: &mut [(Slot, PutItem)], choices: &mut [Option<Choice>]) {
    for i in 0..items.len() {
        if choices[i].is_none_or(|c| c.fault != Fault::Swap) {
            continue;
        }
        choices[i] = None;
        let fits = |j: &usize| {
            *j != i
                && choices[*j].is_none()
                && items[*j].0.damage.is_none()
                && items[*j].1.layout.id() == items[i].1.layout.id()
                && !items[*j].1.buf.same(&items[i].1.buf)
        };
        if items[i].0.damage.is_some() {
            continue;
        }
        let Some(j) = (i + 1..items.len()).chain(0..i).find(fits) else { continue };
        let [(a_slot, a), (b_slot, b)] = items.get_disjoint_mut([i, j]).expect("two different positions");
        std::mem::swap(&mut a.buf, &mut b.buf);
        std::mem::swap(&mut a.digest, &mut b.digest);
        for slot in [a_slot, b_slot] {
            slot.damage = Some(Fault::Swap);
            state.counters.injected(Fault::Swap);
        }
    }
}

/// What is stored instead; `None` where this cannot be done to these bytes.
fn damaged(item: &PutItem, choice: Choice) -> Option<(ReadBuf, Layout)> {
    let (len, roll) = (item.buf.len(), choice.roll);
    let changed = match choice.fault {
        Fault::BitFlip => changed(&item.buf, |bytes| flip(bytes, roll)),
        Fault::TornWrite => changed(&item.buf, |bytes| bytes[tear(len, roll)..].fill(0)),
        Fault::Truncation => {
            // An object has at least one byte.
            let cut = cut(len.saturating_sub(1), roll) + 1;
            let layout = (cut < len).then(|| Layout::opaque(cut as u64).ok()).flatten()?;
            return shortened(&item.buf, cut).ok().map(|buf| (buf, layout));
        }
        _ => return None,
    };
    changed.ok().flatten().map(|buf| (buf, item.layout.clone()))
}

/// Receives the answers of the store inside.
struct Forward {
    slots: Vec<Slot>,
    done: PutSink,
    state: Arc<State>,
}

impl Receive<Result<Stored>> for Forward {
    fn answer(&self, i: usize, answer: Result<Stored>) {
        let Slot { position, key, found, damage, before } = &self.slots[i];
        let ledger = &self.state.ledger;
        match (&answer, damage) {
            (Ok(Stored::Written), None) => {
                ledger.settle(key);
                ledger.stored(key, *found);
            }
            (Ok(Stored::Written), Some(_)) => ledger.stored(key, *found),
            (_, Some(_)) => ledger.undo(key, *before),
            (_, None) => {}
        }
        self.done.answer(*position, answer);
    }
}
