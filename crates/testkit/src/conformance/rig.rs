//! What the cases work with.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Context, Fail, Found, Get, GetItem, GetSink, Keys, L2List, L2Remove, L2Usage, Probe,
    Put, PutItem, PutSink, Sink, Stored,
};
use parking_lot::Mutex;

use super::{Damage, Device, Factory, Ignored, Layer, Subject};
use crate::arena::{Arena, Memory};
use crate::{payload, trace};

/// The memory of one case.
const ARENA: usize = 8 << 20;

/// What a case is run on.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) factory: Arc<dyn Factory>,
    pub(super) layer: Layer,
    pub(super) memory: Memory,
    pub(super) patience: Duration,
}

impl Setup {
    pub(super) async fn rig(self) -> Result<Rig, Ignored> {
        self.limited(None).await
    }

    /// A store that is limited to `capacity` bytes, if it can be.
    pub(super) async fn limited(self, capacity: Option<u64>) -> Result<Rig, Ignored> {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let subject = self.factory.open(cx.clone(), capacity).await.expect("a fresh store");
        let adapter = (self.layer)(subject.adapter.clone(), &cx);
        let kinds = adapter.store.desc().kinds;
        if !(if self.memory == Memory::Private { kinds.private } else { kinds.shared }) {
            return Err(Ignored(format!("the adapter does not take {:?} memory", self.memory)));
        }
        Ok(Rig {
            arena: Arena::new(self.memory, ARENA).expect("memory for the case"),
            scope: KeyScope::new("conformance", KvRank::single(), 0, "").expect("a scope"),
            setup: self,
            cx,
            subject,
            adapter,
        })
    }
}

/// An opened store with memory and keys.
pub(super) struct Rig {
    pub(super) cx: Context,
    pub(super) subject: Subject,
    /// The adapter in its layer.
    pub(super) adapter: Adapter,
    pub(super) arena: Arena,
    scope: Arc<KeyScope>,
    setup: Setup,
}

pub(super) fn opaque(len: usize) -> Layout {
    Layout::opaque(len as u64).expect("a layout")
}

impl Rig {
    pub(super) fn key(&self, id: u64) -> ObjectKey {
        trace::key(&self.scope, id)
    }

    pub(super) fn keys(&self, ids: impl IntoIterator<Item = u64>) -> Keys {
        ids.into_iter().map(|id| self.key(id)).collect()
    }

    /// A deadline that only a call that hangs meets.
    pub(super) fn far(&self) -> Instant {
        self.cx.timer.now() + self.setup.patience * 4
    }

    /// A deadline that passes soon.
    pub(super) fn soon(&self) -> Instant {
        self.cx.timer.now() + Duration::from_millis(20)
    }

    /// A deadline that has passed.
    pub(super) async fn past(&self) -> Instant {
        let now = self.cx.timer.now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        now
    }

    /// Waits for what is to end at once.
    pub(super) async fn ends<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        match tokio::time::timeout(self.setup.patience, work).await {
            Ok(out) => out,
            Err(_) => panic!("{what} did not end"),
        }
    }

    /// Waits until no more than `buffers` buffers are out.
    pub(super) async fn settle(&self, buffers: u64) {
        let back = async {
            while self.arena.in_use() > buffers {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.ends("giving the buffers back", back).await;
    }

    pub(super) fn item(&self, id: u64, len: usize) -> PutItem {
        self.arena.item(&self.key(id), &self.key(id), &opaque(len)).expect("an item")
    }

    pub(super) fn to_load(&self, id: u64, layout: &Layout) -> GetItem {
        let buf = self.arena.empty(layout.bytes() as usize).expect("a buffer");
        GetItem { key: self.key(id), layout: layout.clone(), buf }
    }

    pub(super) fn put_call(
        &self,
        items: Vec<PutItem>,
        deadline: Instant,
    ) -> (Call<'_>, Answers<Result<Stored>>) {
        let (answers, sink): (_, PutSink) = Answers::new(items.len());
        (self.adapter.store.put(Put { items, deadline, affinity: Affinity::default() }, sink), answers)
    }

    pub(super) fn get_call(&self, items: Vec<GetItem>, deadline: Instant) -> (Call<'_>, Answers<Answer>) {
        let (answers, sink): (_, GetSink) = Answers::new(items.len());
        (self.adapter.store.get(Get { items, deadline, affinity: Affinity::default() }, sink), answers)
    }

    pub(super) async fn put_items(&self, items: Vec<PutItem>, deadline: Instant) -> Vec<Result<Stored>> {
        let (call, answers) = self.put_call(items, deadline);
        self.ends("put", call).await;
        answers.take()
    }

    pub(super) async fn get_items(&self, items: Vec<GetItem>, deadline: Instant) -> Vec<Answer> {
        let (call, answers) = self.get_call(items, deadline);
        self.ends("get", call).await;
        answers.take()
    }

    pub(super) async fn put(&self, ids: impl IntoIterator<Item = u64>, len: usize) -> Vec<Result<Stored>> {
        let items = ids.into_iter().map(|id| self.item(id, len)).collect();
        self.put_items(items, self.far()).await
    }

    /// Stores objects of which each must be written.
    pub(super) async fn write(&self, ids: impl IntoIterator<Item = u64>, len: usize) {
        for (position, answer) in self.put(ids, len).await.into_iter().enumerate() {
            assert_eq!(answer.expect("room for a put"), Stored::Written, "key at position {position}");
        }
    }

    pub(super) async fn get(&self, ids: impl IntoIterator<Item = u64>, len: usize) -> Vec<Answer> {
        let layout = opaque(len);
        let items = ids.into_iter().map(|id| self.to_load(id, &layout)).collect();
        self.get_items(items, self.far()).await
    }

    /// Loads objects each of which must be there.
    pub(super) async fn read(&self, ids: impl IntoIterator<Item = u64> + Clone, len: usize) {
        for (id, answer) in ids.clone().into_iter().zip(self.get(ids, len).await) {
            assert!(self.is_right(id, id, len, answer), "key {id} is a miss");
        }
    }

    /// Whether `id` was loaded, with the payload of `content`, and not a miss. Anything else is a failure.
    pub(super) fn is_right(&self, id: u64, content: u64, len: usize, answer: Answer) -> bool {
        let loaded = match answer {
            Answer::Loaded(loaded) => loaded,
            Answer::Miss(..) => return false,
            Answer::Failed(e, _) => panic!("loading key {id}: {e}"),
        };
        assert_eq!((loaded.buf.len(), loaded.found.len), (len, len as u64), "length of key {id}");
        if let Some(found) = loaded.found.layout {
            assert_eq!(found, opaque(len).id(), "layout of key {id}");
        }
        let bytes = loaded.buf.seal(len);
        if let Err(wrong) = payload::verify(&self.key(content), &bytes).expect("host memory") {
            panic!("key {id} has {wrong}");
        }
        true
    }

    pub(super) async fn probe(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Result<Option<Found>>> {
        let keys = self.keys(ids);
        let n = keys.len();
        let request = Probe { keys, deadline: self.far(), affinity: Affinity::default() };
        let found = self.ends("probe", self.adapter.store.probe(request)).await;
        assert_eq!(found.len(), n, "one answer per key");
        found
    }

    pub(super) async fn is_found(&self, id: u64) -> bool {
        self.probe([id]).await.remove(0).expect("a probe").is_some()
    }

    pub(super) fn device(&self) -> Result<Arc<dyn Device>, Ignored> {
        self.subject.device.clone().ok_or_else(|| Ignored("no hook that hangs the device".into()))
    }

    pub(super) fn damage(&self, damage: Damage<'_>) -> Result<(), Ignored> {
        let hook = self.subject.damage.as_ref();
        let hook = hook.ok_or_else(|| Ignored("no hook that damages the medium".into()))?;
        if hook(damage) {
            Ok(())
        } else {
            Err(Ignored(format!("this medium has no such damage: {damage:?}")))
        }
    }

    pub(super) fn usage(&self) -> Result<Arc<dyn L2Usage>, Ignored> {
        self.adapter.usage.clone().ok_or_else(|| Ignored("the adapter does not know its usage".into()))
    }

    pub(super) fn remove(&self) -> Result<Arc<dyn L2Remove>, Ignored> {
        self.adapter.remove.clone().ok_or_else(|| Ignored("the adapter cannot remove".into()))
    }

    pub(super) fn list(&self) -> Result<Arc<dyn L2List>, Ignored> {
        self.adapter.list.clone().ok_or_else(|| Ignored("the adapter cannot list".into()))
    }

    /// Goes on with `adapter`, in the layer of the case.
    pub(super) fn adopt(&mut self, adapter: Adapter) {
        self.adapter = (self.setup.layer)(adapter.clone(), &self.cx);
        self.subject.adapter = adapter;
    }

    /// The end of every case: all buffers come back, and the store shuts down.
    pub(super) async fn finish(self) -> Result<(), Ignored> {
        self.settle(0).await;
        let deadline = self.far();
        self.ends("shutdown", self.adapter.store.shutdown(deadline)).await.expect("a shutdown");
        Ok(())
    }
}

pub(super) type Call<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Polls `call` `k` times, with some time between, or until it ends.
pub(super) async fn poll_times(call: &mut Call<'_>, k: usize) {
    for _ in 0..k {
        let ended = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
        if ended {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The answers of one request as they come.
pub(super) struct Answers<T>(Arc<Mutex<Vec<Option<T>>>>);

impl<T: Fail> Answers<T> {
    fn new(keys: usize) -> (Self, Sink<T>) {
        let answers = Arc::new(Mutex::new((0..keys).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&answers);
        let sink = Sink::new(keys, Arc::new(move |i: usize, a: T| to.lock()[i] = Some(a)));
        (Self(answers), sink)
    }

    /// The answers of a call that has ended.
    fn take(&self) -> Vec<T> {
        let answers = std::mem::take(&mut *self.0.lock());
        answers.into_iter().map(|a| a.expect("the call has ended, so every key is answered")).collect()
    }

    /// The answers of a call that was dropped: each comes sooner or later.
    pub(super) async fn arrive(&self, rig: &Rig) -> Vec<T> {
        let all = async {
            while self.0.lock().iter().any(Option::is_none) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        rig.ends("answering every key", all).await;
        self.take()
    }
}

/// The kind of error of each failed load; `None` for others.
pub(super) fn failure(answer: &Answer) -> Option<ErrorKind> {
    match answer {
        Answer::Failed(e, _) => Some(e.kind()),
        _ => None,
    }
}
