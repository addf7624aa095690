//! What L1 gained and lost, as a stream for those who route requests by it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use kvstrata_core::{Error, ObjectKey, Result};
use kvstrata_manager::L1Watch;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::api::{KvEvent, KvEventBatch, Tokens};

/// The most events of one batch.
const BATCH_MAX: i64 = 1024;

/// The last events, and who follows them. Nothing is kept before the first follower comes, whose first batch says so.
#[derive(Debug)]
pub(crate) struct EventLog {
    capacity: usize,
    incarnation: u64,
    state: Mutex<State>,
    /// The number of the last event.
    grown: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody follows, or did.
    on: bool,
    next: u64,
    events: VecDeque<Arc<KvEvent>>,
    /// What chunks that are about to come are made of.
    bound: HashMap<[u8; 32], Bound>,
    /// The followers' ends, by their instances.
    followers: BTreeMap<i64, (u64, watch::Sender<bool>)>,
    next_follower: u64,
}

#[derive(Clone, Debug)]
struct Bound {
    tokens: Tokens,
    parent: Option<[u8; 32]>,
    uses: u32,
    /// The model, if it came and was not told yet.
    came: Option<Arc<str>>,
}

impl State {
    fn tell(&mut self, capacity: usize, event: KvEvent) {
        if self.events.len() == capacity {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(KvEvent { seq: self.next, ..event }));
        self.next += 1;
    }

    /// Tells that a chunk came, if it did.
    fn tell_arrival(&mut self, capacity: usize, hash: [u8; 32]) -> bool {
        let Some(bound) = self.bound.get_mut(&hash) else { return false };
        let Some(model) = bound.came.take() else { return false };
        let (tokens, parent) = (bound.tokens.clone(), bound.parent);
        self.tell(capacity, KvEvent { seq: 0, stored: true, model, hashes: vec![hash], parent, tokens });
        true
    }
}

impl EventLog {
    /// Keeps the last `capacity` events; none at all with 0.
    pub(crate) fn new(capacity: usize, incarnation: u64) -> Arc<Self> {
        let state = State { next: 1, ..State::default() };
        Arc::new(Self { capacity, incarnation, state: Mutex::new(state), grown: watch::Sender::new(0) })
    }

    /// Whether there can be followers.
    pub(crate) fn enabled(&self) -> bool {
        self.capacity > 0
    }

    /// Whether somebody follows, or did: what else is said to the log is for nothing.
    pub(crate) fn on(&self) -> bool {
        self.state.lock().on
    }

    /// Says what chunks are made of that may come until what is returned is dropped. Then they are told, in the order of
    /// `positions`: whoever builds a tree of them has a chunk's parent before the chunk, whichever was there first.
    pub(crate) fn bind(
        self: &Arc<Self>,
        hashes: &[[u8; 32]],
        tokens: &Tokens,
        chunk_tokens: usize,
        positions: impl IntoIterator<Item = usize>,
    ) -> Binding {
        let mut binding = Binding { log: Arc::clone(self), hashes: Vec::new() };
        if !self.enabled() || !self.on() {
            return binding;
        }
        let mut state = self.state.lock();
        for i in positions {
            let bytes = tokens.as_be_bytes().get(i * chunk_tokens * 4..(i + 1) * chunk_tokens * 4);
            let (Some(bytes), Some(hash)) = (bytes, hashes.get(i)) else { continue };
            let parent = i.checked_sub(1).map(|i| hashes[i]);
            let bound = state.bound.entry(*hash).or_insert_with(|| Bound {
                tokens: Tokens::from_be_bytes(bytes.to_vec()),
                parent,
                uses: 0,
                came: None,
            });
            bound.uses += 1;
            binding.hashes.push(*hash);
        }
        binding
    }

    fn changed(&self, key: &ObjectKey, stored: bool) {
        // Each chunk once, whatever the number of shards.
        if key.scope().rank().global_rank() != 0 {
            return;
        }
        let Some(hash) = key.hash().as_bytes().first_chunk::<32>().copied() else { return };
        let mut state = self.state.lock();
        if !state.on {
            return;
        }
        let model: Arc<str> = key.scope().model().into();
        if stored {
            // Tokens of what came in another way are not known.
            if let Some(bound) = state.bound.get_mut(&hash) {
                bound.came = Some(model);
            }
            return;
        }
        state.tell_arrival(self.capacity, hash);
        let (parent, tokens) = (None, Tokens::default());
        state.tell(self.capacity, KvEvent { seq: 0, stored, model, hashes: vec![hash], parent, tokens });
        let last = state.next - 1;
        drop(state);
        self.grown.send_replace(last);
    }

    /// Follows the events of a model from a cursor on. Who followed under the same instance before does not any more.
    ///
    /// # Errors
    /// `Invalid` for a cursor or a size of batches that cannot be.
    pub(crate) fn follow(
        self: &Arc<Self>,
        instance: i64,
        model: &str,
        cursor: i64,
        max_events: i64,
    ) -> Result<Subscription> {
        const OP: &str = "subscribe";
        let bad = |m, field: &'static str, n: i64| Error::invalid(OP, m).with(field, n);
        let cursor = u64::try_from(cursor).map_err(|_| bad("a cursor is not negative", "cursor", cursor))?;
        let most = usize::try_from(max_events)
            .ok()
            .filter(|_| (1..=BATCH_MAX).contains(&max_events))
            .ok_or_else(|| bad("a batch has 1 to 1024 events", "max_events", max_events))?;
        let mut state = self.state.lock();
        state.on |= self.enabled();
        let number = state.next_follower;
        state.next_follower += 1;
        let ended = watch::Sender::new(false);
        let end = ended.subscribe();
        if let Some((_, previous)) = state.followers.insert(instance, (number, ended)) {
            previous.send_replace(true);
        }
        drop(state);
        Ok(Subscription {
            log: Arc::clone(self),
            grown: self.grown.subscribe(),
            end,
            instance,
            number,
            model: model.into(),
            cursor,
            most,
            first: true,
        })
    }

    /// Whoever follows under this instance does not any more.
    pub(crate) fn end(&self, instance: i64) {
        if let Some((_, end)) = self.state.lock().followers.remove(&instance) {
            end.send_replace(true);
        }
    }

    pub(crate) fn followers(&self) -> usize {
        self.state.lock().followers.len()
    }

    fn read(&self, model: &str, cursor: u64, most: usize) -> KvEventBatch {
        let state = self.state.lock();
        let last = state.next - 1;
        let first = state.events.front().map_or(last + 1, |e| e.seq);
        let (mut next_cursor, mut events) = (cursor.min(last), Vec::new());
        for event in state.events.iter().skip((cursor + 1).saturating_sub(first) as usize) {
            next_cursor = event.seq;
            if *event.model == *model {
                events.push(Arc::clone(event));
                if events.len() == most {
                    break;
                }
            }
        }
        KvEventBatch {
            enabled: self.enabled(),
            incarnation: self.incarnation,
            next_cursor,
            lost: self.enabled() && (cursor + 1 < first || cursor > last),
            events,
        }
    }
}

impl L1Watch for EventLog {
    fn came(&self, key: &ObjectKey) {
        self.changed(key, true);
    }

    fn left(&self, key: &ObjectKey) {
        self.changed(key, false);
    }
}

/// While it lives, the log knows what these chunks are made of.
#[derive(Debug)]
pub(crate) struct Binding {
    log: Arc<EventLog>,
    hashes: Vec<[u8; 32]>,
}

impl Drop for Binding {
    fn drop(&mut self) {
        if self.hashes.is_empty() {
            return;
        }
        let mut state = self.log.state.lock();
        let mut told = false;
        for hash in &self.hashes {
            told |= state.tell_arrival(self.log.capacity, *hash);
            if let Some(bound) = state.bound.get_mut(hash) {
                bound.uses -= 1;
                if bound.uses == 0 {
                    state.bound.remove(hash);
                }
            }
        }
        let last = state.next - 1;
        drop(state);
        if told {
            self.log.grown.send_replace(last);
        }
    }
}

/// A client that follows the events.
#[derive(Debug)]
pub struct Subscription {
    log: Arc<EventLog>,
    grown: watch::Receiver<u64>,
    end: watch::Receiver<bool>,
    instance: i64,
    number: u64,
    model: Arc<str>,
    cursor: u64,
    most: usize,
    first: bool,
}

impl Subscription {
    /// The next batch: the first comes at once and says where the log stands, each later one when there are events or some
    /// were lost. `None` at the end: the client's worker is gone, subscribed again, or there are no events at all.
    pub async fn next(&mut self) -> Option<KvEventBatch> {
        loop {
            if *self.end.borrow() {
                return None;
            }
            self.grown.borrow_and_update();
            let batch = self.log.read(&self.model, self.cursor, self.most);
            self.cursor = batch.next_cursor;
            let first = std::mem::replace(&mut self.first, false);
            if !first && !batch.enabled {
                return None;
            }
            if first || batch.lost || !batch.events.is_empty() {
                return Some(batch);
            }
            tokio::select! {
                biased;
                _ = self.end.changed() => {}
                grown = self.grown.changed() => grown.ok()?,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.log.state.lock();
        if state.followers.get(&self.instance).is_some_and(|(number, _)| *number == self.number) {
            state.followers.remove(&self.instance);
        }
    }
}
