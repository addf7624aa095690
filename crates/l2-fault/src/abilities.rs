//! Faults of lookups, removals and listings.

use std::sync::Arc;

use async_trait::async_trait;
use kvstrata_core::{Affinity, ErrorKind, Instant, Result};
use kvstrata_l2::{Found, Keys, L2List, L2Remove, ListPage, Probe};

use crate::injector::{State, on_demand};
use crate::plan::Choice;
use crate::{Fault, Op};

/// The wait that the whole call has, if one of its keys has one.
fn slow(choices: &[Option<Choice>]) -> Option<Choice> {
    choices.iter().flatten().find(|c| matches!(c.fault, Fault::Delay | Fault::Hang)).copied()
}

async fn wait(state: &State, op: &'static str, choices: &[Option<Choice>], deadline: Instant) -> Result<()> {
    let Some(choice) = slow(choices) else { return Ok(()) };
    state.counters.injected(choice.fault);
    let waited = state.driver.call(op, deadline, state.wait(choice)).await;
    if waited.as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut) {
        state.counters.effective(choice.fault);
    }
    waited
}

fn is(choice: &Option<Choice>, fault: Fault) -> bool {
    choice.is_some_and(|c| c.fault == fault)
}

pub(crate) async fn probe(state: &Arc<State>, request: Probe) -> Vec<Result<Option<Found>>> {
    const OP: &str = "look up with faults";
    let keys = Arc::clone(&request.keys);
    let choices = state.choose(Op::Probe, keys.iter());
    if let Err(e) = wait(state, OP, &choices, request.deadline).await {
        return keys.iter().map(|_| Err(e.clone())).collect();
    }
    let mut found = state.inner.probe(request).await;
    for ((key, choice), found) in keys.iter().zip(&choices).zip(&mut found) {
        let shows = match state.ledger.pending(key) {
            Some(Fault::LostWrite) => matches!(found, Ok(None)),
            Some(Fault::Truncation) => matches!(found, Ok(Some(_))),
            _ => false,
        };
        if is(choice, Fault::Error) {
            state.counters.both(Fault::Error);
            *found = Err(on_demand(ErrorKind::Io, OP).with("key", key));
            continue;
        }
        if is(choice, Fault::StaleListing) {
            let lie = match found {
                Ok(Some(_)) => Some(None),
                Ok(None) => state.ledger.ghost(key).map(Some),
                Err(_) => None,
            };
            if let Some(lie) = lie {
                state.counters.both(Fault::StaleListing);
                *found = Ok(lie);
                continue;
            }
        }
        if let Some(fault) = state.ledger.pending(key).filter(|_| shows)
            && state.ledger.settle(key)
        {
            state.counters.effective(fault);
        }
    }
    found
}

pub(crate) struct Remove {
    pub(crate) inner: Arc<dyn L2Remove>,
    pub(crate) state: Arc<State>,
}

#[async_trait]
impl L2Remove for Remove {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        const OP: &str = "remove with faults";
        let state = &self.state;
        let choices = state.choose(Op::Remove, keys.iter());
        if let Err(e) = wait(state, OP, &choices, deadline).await {
            return keys.iter().map(|_| Err(e.clone())).collect();
        }
        let skipped = |c: &Option<Choice>| is(c, Fault::Error) || is(c, Fault::LostWrite);
        let real: Keys =
            keys.iter().zip(&choices).filter(|(_, c)| !skipped(c)).map(|(k, _)| k.clone()).collect();
        let lost: Keys = keys
            .iter()
            .zip(&choices)
            .filter(|(_, c)| is(c, Fault::LostWrite))
            .map(|(k, _)| k.clone())
            .collect();
        let mut removed = self.inner.remove(real, deadline).await.into_iter();
        // What a removal would have said.
        let there = match lost.is_empty() {
            true => Vec::new(),
            false => state.inner.probe(Probe { keys: lost, deadline, affinity: Affinity::default() }).await,
        };
        let mut there = there.into_iter();
        let short = || Err(on_demand(ErrorKind::Internal, OP));
        keys.iter()
            .zip(&choices)
            .map(|(key, choice)| {
                if is(choice, Fault::Error) {
                    state.counters.both(Fault::Error);
                    return Err(on_demand(ErrorKind::Io, OP).with("key", key));
                }
                if is(choice, Fault::LostWrite) {
                    let was_there = there.next().unwrap_or_else(short_probe)?.is_some();
                    state.counters.injected(Fault::LostWrite);
                    if was_there {
                        state.counters.effective(Fault::LostWrite);
                    }
                    return Ok(was_there);
                }
                let removed = removed.next().unwrap_or_else(short);
                if let Ok(true) = removed {
                    state.ledger.removed(key);
                }
                removed
            })
            .collect()
    }
}

fn short_probe() -> Result<Option<Found>> {
    Err(on_demand(ErrorKind::Internal, "remove with faults"))
}

pub(crate) struct List {
    pub(crate) inner: Arc<dyn L2List>,
    pub(crate) state: Arc<State>,
}

#[async_trait]
impl L2List for List {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        let state = &self.state;
        let mut page = self.inner.list(cursor, limit).await?;
        let choices = state.choose(Op::List, page.entries.iter().map(|(key, _)| key));
        if let Some(choice) = slow(&choices) {
            // There is no deadline that it could miss.
            state.counters.injected(choice.fault);
            state.wait(choice).await;
        }
        if choices.iter().any(|c| is(c, Fault::Error)) {
            state.counters.both(Fault::Error);
            return Err(on_demand(ErrorKind::Io, "list with faults"));
        }
        let entries = page.entries.into_iter().zip(choices).filter_map(|(entry, choice)| match choice {
            Some(choice) if choice.fault == Fault::StaleListing => {
                state.counters.both(Fault::StaleListing);
                // In its place stands one that was removed, if there is one.
                state.ledger.gone(choice.roll)
            }
            _ => Some(entry),
        });
        page.entries = entries.collect();
        Ok(page)
    }
}
