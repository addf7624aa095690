//! Loads: from the path that is chosen, and from any other that has the object.

use std::sync::Arc;

use kvstrata_core::{Affinity, Error, ErrorKind, Instant, ObjectKey};
use kvstrata_l2::{Answer, Call, Get, GetItem, GetSink, Miss, Receive, all};
use parking_lot::Mutex;

use crate::path::Door;
use crate::paths::{Inner, Ways, none_open};

/// An item, its position in the batch, and what came of it so far.
struct Coming {
    position: usize,
    item: GetItem,
    miss: Option<Miss>,
    failed: Option<Error>,
    tried: Vec<usize>,
}

impl Coming {
    fn answer(self, done: &GetSink) {
        let answer = match (self.miss, self.failed) {
            // One path's failure is not the tier's: the object is on none that works.
            (Some(miss), _) => Answer::Miss(miss, Some(self.item.buf)),
            (None, Some(e)) => Answer::Failed(e, Some(self.item.buf)),
            (None, None) => Answer::Failed(none_open("load from paths"), Some(self.item.buf)),
        };
        done.answer(self.position, answer);
    }

    /// What is known of a miss that says more than that nothing is there.
    fn missed(&mut self, miss: Miss) {
        if self.miss.is_none_or(|known| known == Miss::Absent) {
            self.miss = Some(miss);
        }
    }
}

/// What the parts of one request share.
#[derive(Clone)]
struct Batch {
    deadline: Instant,
    affinity: Affinity,
    done: GetSink,
}

impl Inner {
    pub(crate) async fn get_all(self: Arc<Self>, request: Get, done: GetSink) {
        let Get { items, deadline, affinity } = request;
        let ways = self.look();
        let batch = Batch { deadline, affinity, done };
        let mut parts: Vec<Vec<Coming>> = (0..self.paths.len()).map(|_| Vec::new()).collect();
        let mut rest = Vec::new();
        for (position, item) in items.into_iter().enumerate() {
            let home = self.places.choose(item.key.fingerprint(), &affinity, |at| ways.is_live(at));
            let coming = Coming { position, item, miss: None, failed: None, tried: Vec::new() };
            match home {
                Some(at) => parts[at].push(coming),
                None => rest.push(coming),
            }
        }
        let calls = parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty());
        let calls: Vec<Call<'_, ()>> = calls
            .map(|(at, part)| Box::pin(self.load_part(at, &ways, &batch, part)) as Call<'_, ()>)
            .collect();
        all(calls).await;
        self.last(&ways, &batch, rest).await;
    }

    /// Loads a part from its path, and what is not there from where it is.
    async fn load_part(self: &Arc<Self>, at: usize, ways: &Ways, batch: &Batch, part: Vec<Coming>) {
        let Some(door) = ways.live(at) else { return };
        let mut left = self.load(at, door, batch, part).await;
        let live: Vec<usize> =
            (0..self.paths.len()).filter(|other| *other != at && ways.is_live(*other)).collect();
        if !left.is_empty() && !live.is_empty() {
            let mut parts: Vec<Vec<Coming>> = (0..self.paths.len()).map(|_| Vec::new()).collect();
            let mut nowhere = Vec::new();
            if let [other] = live[..] {
                parts[other] = left;
            } else {
                let keys: Vec<ObjectKey> = left.iter().map(|coming| coming.item.key.clone()).collect();
                let held = self.holders(&keys, &live, batch.deadline).await;
                for (mut coming, held) in left.into_iter().zip(held) {
                    match held.first() {
                        Some((at, _)) => parts[*at].push(coming),
                        None => {
                            coming.missed(Miss::Absent);
                            nowhere.push(coming);
                        }
                    }
                }
            }
            let calls = parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty());
            let calls = calls.filter_map(|(at, part)| {
                let door = ways.live(at)?;
                Some(Box::pin(self.load(at, door, batch, part)) as Call<'_, _>)
            });
            left = all(calls.collect()).await.into_iter().flatten().chain(nowhere).collect();
        }
        self.last(ways, batch, left).await;
    }

    /// What no live path has may be on one that may be tried.
    async fn last(self: &Arc<Self>, ways: &Ways, batch: &Batch, mut left: Vec<Coming>) {
        for (at, door) in ways.trials() {
            if left.is_empty() {
                return;
            }
            let path = &self.paths[at];
            let (part, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|coming| !path.is_gone(&coming.item.key));
            left = rest;
            if !part.is_empty() {
                left.extend(self.load(at, door, batch, part).await);
                self.look();
            }
        }
        left.into_iter().for_each(|coming| coming.answer(&batch.done));
    }

    /// Asks one path; gives back what it does not have.
    async fn load(self: &Arc<Self>, at: usize, door: &Door, batch: &Batch, part: Vec<Coming>) -> Vec<Coming> {
        let n = part.len();
        let mut items = Vec::with_capacity(n);
        let mut kept = Vec::with_capacity(n);
        for Coming { position, item, miss, failed, mut tried } in part {
            tried.push(at);
            kept.push(Some(Kept {
                position,
                key: item.key.clone(),
                layout: item.layout.clone(),
                miss,
                failed,
                tried,
            }));
            items.push(item);
        }
        let back = Arc::new(Mutex::new(Vec::new()));
        let to = Forward {
            inner: Arc::clone(self),
            at,
            done: batch.done.clone(),
            kept: Mutex::new(kept),
            back: Arc::clone(&back),
        };
        let get = Get { items, deadline: batch.deadline, affinity: batch.affinity };
        door.adapter.store.get(get, GetSink::new(n, Arc::new(to))).await;
        std::mem::take(&mut *back.lock())
    }
}

/// An item whose buffer is with a path.
struct Kept {
    position: usize,
    key: ObjectKey,
    layout: kvstrata_core::Layout,
    miss: Option<Miss>,
    failed: Option<Error>,
    tried: Vec<usize>,
}

/// Receives a path's answers to its part.
struct Forward {
    inner: Arc<Inner>,
    at: usize,
    done: GetSink,
    kept: Mutex<Vec<Option<Kept>>>,
    back: Arc<Mutex<Vec<Coming>>>,
}

impl Receive<Answer> for Forward {
    fn answer(&self, i: usize, answer: Answer) {
        let Some(kept) = self.kept.lock()[i].take() else { return };
        let Kept { position, key, layout, miss, failed, tried } = kept;
        let coming = |buf| Coming { position, item: GetItem { key, layout, buf }, miss, failed, tried };
        match answer {
            Answer::Miss(miss, Some(buf)) => {
                let mut coming = coming(buf);
                coming.missed(miss);
                self.back.lock().push(coming);
            }
            Answer::Failed(e, Some(buf))
                if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Closed) =>
            {
                let mut coming = coming(buf);
                coming.failed = Some(e);
                self.back.lock().push(coming);
            }
            answer => {
                if matches!(answer, Answer::Failed(..)) {
                    self.inner.paths[self.at].failed();
                }
                self.done.answer(position, answer);
            }
        }
    }
}
