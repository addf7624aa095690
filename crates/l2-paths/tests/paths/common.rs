//! Paths in a test: verified payloads through them, with every deadline checked.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Affinity, Error, ErrorKind, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, BreakerOptions, Checked, Context, Get, GetItem, GetSink, Keys, Probe, Put, PutSink,
    Stored, Verify,
};
use kvstrata_l2_paths::{Member, PathState, Paths, PathsOptions};
use kvstrata_policy::{Place, Sharding};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

/// An answer, with the kind of its error.
pub(crate) type Told<T> = std::result::Result<T, ErrorKind>;

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const LEN: usize = 8 * KIB;

pub(crate) struct Rig {
    pub(crate) paths: Paths,
    pub(crate) adapter: Adapter,
    pub(crate) cx: Context,
    pub(crate) arena: Arena,
    pub(crate) scope: Arc<KeyScope>,
}

pub(crate) fn context() -> Context {
    Context::tokio(tokio::runtime::Handle::current())
}

pub(crate) fn member(i: usize, adapter: Result<Adapter>) -> Member {
    Member { place: Place { name: format!("/mnt/{i}"), weight: 1, devices: vec![] }, adapter, open: None }
}

pub(crate) fn options() -> PathsOptions {
    let breaker = BreakerOptions { cool_down_max: Duration::from_secs(4), ..PathsOptions::default().breaker };
    PathsOptions { breaker, ..PathsOptions::default() }
}

impl Rig {
    pub(crate) fn new(sharding: Sharding, members: Vec<Member>, options: PathsOptions, cx: Context) -> Self {
        let paths = Paths::new("paths", sharding, members, options, cx.clone()).unwrap();
        Self {
            adapter: Checked::new(paths.adapter(), Verify::On, cx.clone()).adapter,
            paths,
            cx,
            arena: Arena::new(Memory::Private, 64 << 20).unwrap(),
            scope: KeyScope::new("m", KvRank::single(), 0, "").unwrap(),
        }
    }

    pub(crate) fn key(&self, id: u64) -> ObjectKey {
        trace::key(&self.scope, id)
    }

    /// Stores keys with the payloads of other keys.
    pub(crate) async fn put_from(
        &self,
        ids: &[u64],
        content: impl Fn(u64) -> u64,
        len: usize,
        affinity: Affinity,
        wait: Duration,
    ) -> Vec<Told<Stored>> {
        let layout = Layout::opaque(len as u64).unwrap();
        let items = ids.iter().map(|id| self.arena.item(&self.key(*id), &self.key(content(*id)), &layout));
        let items = items.collect::<Result<Vec<_>>>().unwrap();
        let got = Arc::new(Mutex::new(vec![None; items.len()]));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let deadline = self.cx.timer.now() + wait;
        self.adapter.store.put(Put { items, deadline, affinity }, sink).await;
        assert!(self.cx.timer.now() <= deadline, "a wait past the deadline");
        std::mem::take(&mut *got.lock())
            .into_iter()
            .map(|a| a.expect("an answer").map_err(|e: Error| e.kind()))
            .collect()
    }

    pub(crate) async fn put(&self, ids: &[u64]) -> Vec<Told<Stored>> {
        self.put_from(ids, |id| id, LEN, Affinity::default(), Duration::from_secs(1)).await
    }

    /// Loads keys: whether each is there. What is there has the payload of `content`.
    pub(crate) async fn get_of(
        &self,
        ids: &[u64],
        content: impl Fn(u64) -> u64,
        wait: Duration,
    ) -> Vec<Told<bool>> {
        let layout = Layout::opaque(LEN as u64).unwrap();
        let item = |id: &u64| GetItem {
            key: self.key(*id),
            layout: layout.clone(),
            buf: self.arena.empty(LEN).unwrap(),
        };
        let items: Vec<_> = ids.iter().map(item).collect();
        let got: Arc<Mutex<Vec<Option<Answer>>>> = Arc::new(Mutex::new(ids.iter().map(|_| None).collect()));
        let to = Arc::clone(&got);
        let sink = GetSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let deadline = self.cx.timer.now() + wait;
        self.adapter.store.get(Get { items, deadline, affinity: Affinity::default() }, sink).await;
        assert!(self.cx.timer.now() <= deadline, "a wait past the deadline");
        let answers = std::mem::take(&mut *got.lock());
        let read = |(id, answer): (&u64, Option<Answer>)| match answer.expect("an answer") {
            Answer::Loaded(loaded) => {
                let bytes = loaded.buf.seal(LEN);
                payload::verify(&self.key(content(*id)), &bytes)
                    .unwrap()
                    .unwrap_or_else(|e| panic!("key {id}: {e}"));
                Ok(true)
            }
            Answer::Miss(..) => Ok(false),
            Answer::Failed(e, _) => Err(e.kind()),
        };
        ids.iter().zip(answers).map(read).collect()
    }

    pub(crate) async fn get(&self, ids: &[u64]) -> Vec<Told<bool>> {
        self.get_of(ids, |id| id, Duration::from_secs(1)).await
    }

    pub(crate) async fn found(&self, id: u64) -> bool {
        let deadline = self.cx.timer.now() + Duration::from_secs(1);
        let request = Probe { keys: Keys::from([self.key(id)]), deadline, affinity: Affinity::default() };
        self.adapter.store.probe(request).await.remove(0).unwrap().is_some()
    }

    pub(crate) async fn remove(&self, id: u64) -> Told<bool> {
        let deadline = self.cx.timer.now() + Duration::from_secs(1);
        let keys = Keys::from([self.key(id)]);
        self.adapter.remove.as_ref().unwrap().remove(keys, deadline).await.remove(0).map_err(|e| e.kind())
    }

    pub(crate) async fn listed(&self) -> Vec<ObjectKey> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.adapter.list.as_ref().unwrap().list(cursor.as_deref(), 7).await.unwrap();
            assert!(page.entries.len() <= 7);
            all.extend(page.entries.into_iter().map(|(key, _)| key));
            match page.next {
                Some(next) => cursor = Some(next),
                None => return all,
            }
        }
    }

    pub(crate) fn states(&self) -> Vec<PathState> {
        self.paths.views().iter().map(|view| view.state).collect()
    }

    /// Some load, so that a path that works again is noticed, until all are in service.
    pub(crate) async fn until_all_live(&self, from: u64) {
        for id in from..from + 100 {
            self.put(&[id]).await;
            if self.states().iter().all(|state| *state == PathState::Live) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("not all came back: {:?}", self.paths.views());
    }
}
