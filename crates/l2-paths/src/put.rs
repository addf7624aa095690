//! Stores: to the path that is chosen, and to another if that one fails or is full.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvstrata_core::{Affinity, Error, ErrorKind, Instant, ObjectKey, Result};
use kvstrata_l2::{Call, Found, Keys, Put, PutItem, PutSink, Receive, Stored, all};
use parking_lot::Mutex;

use crate::path::PathState;
use crate::paths::{Inner, Ways, none_open};

const OP: &str = "store on paths";

/// An item, its position in the batch, and the paths that failed it.
struct Going {
    position: usize,
    item: PutItem,
    tried: Vec<usize>,
}

impl Going {
    /// Nothing more becomes of it: its buffer is let go before anybody hears of that.
    fn end(self, batch: &Batch, answer: Result<Stored>) {
        let Self { position, item, .. } = self;
        drop(item);
        batch.done.answer(position, answer);
    }
}

/// What the parts of one request share.
#[derive(Clone)]
struct Batch {
    ways: Arc<Ways>,
    /// Paths that were not live when the request began.
    away: Arc<[usize]>,
    deadline: Instant,
    affinity: Affinity,
    done: PutSink,
}

fn copy(item: &PutItem) -> PutItem {
    PutItem { key: item.key.clone(), layout: item.layout.clone(), digest: item.digest, buf: item.buf.clone() }
}

/// Whether another path may still take it. A time-out is the request's own end.
fn goes_elsewhere(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Unavailable | ErrorKind::Closed | ErrorKind::Busy
    )
}

impl Inner {
    pub(crate) async fn put_all(self: Arc<Self>, request: Put, done: PutSink) {
        let Put { items, deadline, affinity } = request;
        let ways = Arc::new(self.look());
        self.try_out(&ways, &items, deadline, affinity);
        let away = (0..self.paths.len()).filter(|at| !ways.is_live(*at)).collect();
        let batch = Batch { ways, away, deadline, affinity, done };
        let mut home = Vec::with_capacity(items.len());
        let mut going = Vec::with_capacity(items.len());
        for (position, item) in items.into_iter().enumerate() {
            match self.home(&batch, &item.key, &[]) {
                Some(at) => {
                    home.push(at);
                    going.push(Going { position, item, tried: Vec::new() });
                }
                None => Going { position, item, tried: Vec::new() }.end(&batch, Err(none_open(OP))),
            }
        }
        let keys: Vec<ObjectKey> = going.iter().map(|g| g.item.key.clone()).collect();
        let held = self.elsewhere(&batch, &keys, &home).await;
        let mut parts: Vec<Vec<Going>> = (0..self.paths.len()).map(|_| Vec::new()).collect();
        for ((mut going, home), held) in going.into_iter().zip(home).zip(held) {
            match self.settle(&batch, &mut going.item, home, held).await {
                Ok(at) => parts[at].push(going),
                Err(e) => going.end(&batch, Err(e)),
            }
        }
        self.send(&batch, parts).await;
    }

    /// Where a key goes first, of the paths that have not failed it. Those that are full are the last.
    fn home(&self, batch: &Batch, key: &ObjectKey, tried: &[usize]) -> Option<usize> {
        let now = self.cx.timer.now();
        let may = |at: usize| batch.ways.is_live(at) && !tried.contains(&at);
        let choose =
            |open: &dyn Fn(usize) -> bool| self.places.choose(key.fingerprint(), &batch.affinity, open);
        choose(&|at| may(at) && !self.paths[at].is_full(now)).or_else(|| choose(&may))
    }

    /// Which paths have the keys beside the one that each would go to.
    async fn elsewhere(&self, batch: &Batch, keys: &[ObjectKey], home: &[usize]) -> Vec<Vec<(usize, Found)>> {
        let asked = |at: usize| (0..keys.len()).filter(|i| home[*i] != at).collect::<Vec<_>>();
        let live = (0..self.paths.len()).filter(|at| batch.ways.is_live(*at));
        let wanted = live.map(|at| (at, asked(at))).filter(|(_, keys)| !keys.is_empty()).collect();
        // Answered from memory; a path that does not is taken not to have it.
        let soon = batch.deadline.min(self.cx.timer.now() + self.options.lookup);
        self.held(keys, wanted, soon).await
    }

    /// The path for an item that some other paths have already. There is one version of a key on the paths that are live.
    async fn settle(
        &self,
        batch: &Batch,
        item: &mut PutItem,
        home: usize,
        held: Vec<(usize, Found)>,
    ) -> Result<usize> {
        if held.is_empty() {
            return Ok(home);
        }
        let digest = item.digest()?;
        let same = |found: &Found| {
            found.layout.is_none_or(|id| id == item.layout.id())
                && found.len == item.layout.bytes()
                && found.digest == digest
        };
        if let Some((at, _)) = held.iter().find(|(_, found)| same(found)) {
            return Ok(*at);
        }
        for (at, _) in held {
            let Some(door) = batch.ways.live(at) else { continue };
            let key = Keys::from([item.key.clone()]);
            door.remove().remove(key, batch.deadline).await.into_iter().collect::<Result<Vec<_>>>()?;
        }
        Ok(home)
    }

    /// Sends each part to its path, and what that fails to the next.
    fn send<'a>(self: &'a Arc<Self>, batch: &'a Batch, parts: Vec<Vec<Going>>) -> Call<'a, ()> {
        let calls = parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty());
        let calls: Vec<Call<'a, ()>> =
            calls.map(|(at, part)| Box::pin(self.send_to(at, batch, part)) as Call<'a, ()>).collect();
        Box::pin(async move {
            all(calls).await;
        })
    }

    async fn send_to(self: &Arc<Self>, at: usize, batch: &Batch, part: Vec<Going>) {
        let Some(door) = batch.ways.live(at) else { return };
        let items = part.iter().map(|going| copy(&going.item)).collect();
        let back = Arc::new(Mutex::new(part.into_iter().map(Some).collect::<Vec<_>>()));
        let refused = Arc::new(Mutex::new(Vec::new()));
        let n = back.lock().len();
        let to = Forward {
            inner: Arc::clone(self),
            at,
            batch: batch.clone(),
            going: Arc::clone(&back),
            refused: Arc::clone(&refused),
        };
        let put = Put { items, deadline: batch.deadline, affinity: batch.affinity };
        door.adapter.store.put(put, PutSink::new(n, Arc::new(to))).await;
        let refused = std::mem::take(&mut *refused.lock());
        let mut parts: Vec<Vec<Going>> = (0..self.paths.len()).map(|_| Vec::new()).collect();
        let mut any = false;
        for (mut going, e) in refused {
            going.tried.push(at);
            match self.home(batch, &going.item.key, &going.tried) {
                Some(next) => {
                    any = true;
                    parts[next].push(going);
                }
                None => {
                    if e.kind() == ErrorKind::NoSpace {
                        self.declined.fetch_add(1, Ordering::Relaxed);
                    }
                    going.end(batch, Err(e));
                }
            }
        }
        if any {
            self.send(batch, parts).await;
        }
    }

    /// A key was stored on a path: what another one has of it that was not live is old.
    fn stored(self: &Arc<Self>, at: usize, batch: &Batch, key: &ObjectKey) {
        for &other in batch.away.iter().filter(|other| **other != at) {
            let path = &self.paths[other];
            // What is out or closed is compared with the others when it returns.
            if path.standing() == PathState::Returning && path.note_gone(key, self.options.remembered) {
                continue;
            }
            if path.standing() == PathState::Live
                && let Some(door) = path.door()
            {
                let (key, deadline) = (Keys::from([key.clone()]), batch.deadline);
                self.cx.spawn.spawn(Box::pin(async move {
                    drop(door.remove().remove(key, deadline).await);
                }));
            }
        }
    }

    /// Gives paths that may be tried one object each, beside the request: it is stored where it is stored anyway, so a trial
    /// costs nobody anything but the buffer that the path holds.
    fn try_out(self: &Arc<Self>, ways: &Ways, items: &[PutItem], deadline: Instant, affinity: Affinity) {
        for (at, door) in ways.trials() {
            let open = |other: usize| other == at || ways.is_live(other);
            let theirs =
                |item: &&PutItem| self.places.choose(item.key.fingerprint(), &affinity, open) == Some(at);
            let Some(item) = items.iter().find(theirs).or_else(|| items.first()).map(copy) else { return };
            let Ok(pass) = self.driver.enter(OP, deadline) else { return };
            let (door, inner) = (Arc::clone(door), Arc::clone(self));
            self.cx.spawn.spawn(Box::pin(async move {
                let _pass = pass;
                let sink = PutSink::new(1, Arc::new(|_, _: Result<Stored>| {}));
                door.adapter.store.put(Put { items: vec![item], deadline, affinity }, sink).await;
                // If it worked, the path returns now.
                inner.look();
            }));
        }
    }
}

/// Receives a path's answers to its part.
struct Forward {
    inner: Arc<Inner>,
    at: usize,
    batch: Batch,
    going: Arc<Mutex<Vec<Option<Going>>>>,
    refused: Arc<Mutex<Vec<(Going, Error)>>>,
}

impl Receive<Result<Stored>> for Forward {
    fn answer(&self, i: usize, answer: Result<Stored>) {
        let Some(going) = self.going.lock()[i].take() else { return };
        let path = &self.inner.paths[self.at];
        match answer {
            Ok(stored) => {
                if !self.batch.away.is_empty() {
                    self.inner.stored(self.at, &self.batch, &going.item.key);
                }
                going.end(&self.batch, Ok(stored));
            }
            Err(e) => {
                if e.kind() != ErrorKind::NoSpace && e.kind() != ErrorKind::Unavailable {
                    path.failed();
                }
                if e.kind() == ErrorKind::NoSpace {
                    path.full(self.inner.cx.timer.now() + self.inner.options.full_for);
                }
                if goes_elsewhere(&e) {
                    self.refused.lock().push((going, e));
                } else {
                    going.end(&self.batch, Err(e));
                }
            }
        }
    }
}
