//! The checked handle over the mock.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Found, Get, GetItem, GetSink, Keys, L2Desc, L2Remove, L2Store, Loaded,
    MemoryKinds, Miss, Probe, Put, PutDigest, PutItem, PutSink, Stored, Verify, digest_of,
};
use kvstrata_l2_mock::{Damage, Mock, MockConfig};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

const LEN: usize = 10_000;

/// Narrows what the mock says of itself, and notes what reaches it.
#[derive(Debug)]
struct Narrow {
    inner: Arc<dyn L2Store>,
    desc: L2Desc,
    seen: Mutex<Vec<(&'static str, usize)>>,
    digests: Mutex<Vec<bool>>,
    /// Loads say that the object has no digest, as foreign formats do.
    foreign: bool,
}

#[async_trait]
impl L2Store for Narrow {
    fn desc(&self) -> &L2Desc {
        &self.desc
    }
    async fn put(&self, mut request: Put, done: PutSink) {
        self.seen.lock().push(("put", request.items.len()));
        let due = request.items.iter_mut().map(|i| i.digest().expect("host memory").is_some());
        self.digests.lock().extend(due);
        self.inner.put(request, done).await;
    }
    async fn get(&self, request: Get, done: GetSink) {
        self.seen.lock().push(("get", request.items.len()));
        let foreign = self.foreign;
        let forward = move |i: usize, answer: Answer| {
            let answer = match answer {
                Answer::Loaded(l) if foreign => {
                    Answer::Loaded(Loaded { found: Found { digest: None, layout: None, ..l.found }, ..l })
                }
                other => other,
            };
            done.answer(i, answer);
        };
        let sink = GetSink::new(request.items.len(), Arc::new(forward));
        self.inner.get(request, sink).await;
    }
    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        self.seen.lock().push(("probe", request.keys.len()));
        self.inner.probe(request).await
    }
    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }
}

struct Rig {
    mock: Mock,
    narrow: Arc<Narrow>,
    checked: Checked,
    arena: Arena,
    cx: Context,
    layout: Layout,
    scope: Arc<KeyScope>,
}

#[derive(Clone, Copy)]
struct Make {
    verify: Verify,
    kinds: MemoryKinds,
    max_batch: usize,
    remove: bool,
    foreign: bool,
}

const USUAL: Make =
    Make { verify: Verify::On, kinds: MemoryKinds::HOST, max_batch: 3, remove: true, foreign: false };

impl Rig {
    fn new(make: Make) -> Self {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let mock = Mock::open(&MockConfig::new(1.0, 100.0), cx.clone()).unwrap();
        let inner = mock.adapter();
        let desc = L2Desc { max_batch: make.max_batch, kinds: make.kinds, ..inner.store.desc().clone() };
        let narrow = Arc::new(Narrow {
            inner: Arc::clone(&inner.store),
            desc,
            seen: Mutex::default(),
            digests: Mutex::default(),
            foreign: make.foreign,
        });
        let remove = inner.remove.clone().filter(|_| make.remove);
        let adapter = Adapter { store: Arc::clone(&narrow) as _, remove, ..inner };
        Self {
            checked: Checked::new(adapter, make.verify, cx.clone()),
            mock,
            narrow,
            arena: Arena::new(Memory::Private, 1 << 20).unwrap(),
            cx,
            layout: Layout::opaque(LEN as u64).unwrap(),
            scope: KeyScope::new("m", KvRank::single(), 0, "").unwrap(),
        }
    }

    fn key(&self, id: u64) -> ObjectKey {
        trace::key(&self.scope, id)
    }

    fn deadline(&self) -> Instant {
        self.cx.timer.now() + Duration::from_secs(60)
    }

    fn to_store(&self, id: u64) -> PutItem {
        let key = self.key(id);
        let buf = self.arena.filled(&key, LEN).unwrap();
        PutItem { key, layout: self.layout.clone(), digest: PutDigest::None, buf }
    }

    fn to_load(&self, id: u64) -> GetItem {
        GetItem { key: self.key(id), layout: self.layout.clone(), buf: self.arena.empty(LEN).unwrap() }
    }

    async fn put(&self, items: Vec<PutItem>) -> Vec<Result<Stored>> {
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Put { items, deadline: self.deadline(), affinity: Affinity::default() };
        self.checked.adapter.store.put(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(Option::unwrap).collect()
    }

    async fn get(&self, items: Vec<GetItem>) -> Vec<Answer> {
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = GetSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Get { items, deadline: self.deadline(), affinity: Affinity::default() };
        self.checked.adapter.store.get(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(Option::unwrap).collect()
    }

    async fn store(&self, ids: std::ops::Range<u64>) {
        for answer in self.put(ids.map(|id| self.to_store(id)).collect()).await {
            assert_eq!(answer.unwrap(), Stored::Written);
        }
    }

    fn loaded(&self, id: u64, answer: Answer) -> bool {
        let Answer::Loaded(loaded) = answer else { panic!("key {id}: {answer:?}") };
        assert_eq!(payload::verify(&self.key(id), &loaded.buf.seal(LEN)).unwrap(), Ok(()));
        loaded.verified
    }
}

#[tokio::test]
async fn large_batches_are_split_and_come_back_in_order() {
    let rig = Rig::new(USUAL);
    assert_eq!(rig.checked.adapter.store.desc().max_batch, usize::MAX);
    rig.store(0..7).await;
    for (id, answer) in (0..7).rev().zip(rig.get((0..7).rev().map(|id| rig.to_load(id)).collect()).await) {
        assert!(rig.loaded(id, answer));
    }
    let keys: Keys = (0..9).map(|id| rig.key(id)).collect();
    let probe = Probe { keys: Arc::clone(&keys), deadline: rig.deadline(), affinity: Affinity::default() };
    let found = rig.checked.adapter.store.probe(probe).await;
    assert_eq!(found.iter().filter(|f| f.as_ref().unwrap().is_some()).count(), 7);
    assert!(found[7].as_ref().unwrap().is_none() && found[6].as_ref().unwrap().is_some());
    let expected = [("put", 3), ("put", 3), ("put", 1), ("get", 3), ("get", 3), ("get", 1), ("probe", 3)];
    assert_eq!(rig.narrow.seen.lock()[..7], expected);
    let removed = rig.checked.adapter.remove.as_ref().unwrap().remove(keys, rig.deadline()).await;
    assert_eq!(removed.into_iter().filter(|r| *r.as_ref().unwrap()).count(), 7);
    let counts = rig.checked.stats.counts();
    assert_eq!((counts.written, counts.written_bytes), (7, 7 * LEN as u64));
    assert_eq!((counts.loaded, counts.verified, counts.loaded_bytes), (7, 7, 7 * LEN as u64));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_alone_and_loads_hand_the_buffer_back() {
    let rig = Rig::new(USUAL);
    let short = PutItem { layout: Layout::opaque(LEN as u64 + 1).unwrap(), ..rig.to_store(1) };
    let answers = rig.put(vec![rig.to_store(0), short, rig.to_store(0), rig.to_store(2)]).await;
    assert_eq!(
        (answers[0].as_ref().unwrap(), answers[3].as_ref().unwrap()),
        (&Stored::Written, &Stored::Written)
    );
    for (i, says) in [(1, "as long as"), (2, "in the batch already")] {
        let e = answers[i].as_ref().unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(says), "{e}");
    }
    let long = GetItem { buf: rig.arena.empty(LEN + 1).unwrap(), ..rig.to_load(2) };
    let answers = rig.get(vec![rig.to_load(0), rig.to_load(0), long]).await;
    assert!(matches!(&answers[0], Answer::Loaded(_)));
    for answer in &answers[1..] {
        assert!(matches!(answer, Answer::Failed(e, Some(_)) if e.kind() == ErrorKind::Invalid), "{answer:?}");
    }
    let counts = rig.checked.stats.counts();
    assert_eq!((counts.refused, counts.put_failed, counts.get_failed), (4, 2, 2));

    let rig = Rig::new(Make { kinds: MemoryKinds { private: false, ..MemoryKinds::HOST }, ..USUAL });
    let answers = rig.put(vec![rig.to_store(0)]).await;
    assert_eq!(answers[0].as_ref().unwrap_err().kind(), ErrorKind::Unsupported);
    let answers = rig.get(vec![rig.to_load(0)]).await;
    assert!(matches!(&answers[0], Answer::Failed(e, Some(_)) if e.kind() == ErrorKind::Unsupported));
    assert!(rig.narrow.seen.lock().is_empty(), "the adapter is not asked");
}

#[tokio::test]
async fn digests_are_made_where_there_is_none_and_a_given_one_is_kept() {
    let rig = Rig::new(USUAL);
    let given = rig.to_store(1);
    let other = digest_of(&rig.key(9), rig.layout.id(), &given.buf).unwrap();
    rig.put(vec![rig.to_store(0), PutItem { digest: PutDigest::Is(other), ..given }]).await;
    assert_eq!(*rig.narrow.digests.lock(), [true, true]);
    let answers = rig.get(vec![rig.to_load(0), rig.to_load(1)]).await;
    let mut answers = answers.into_iter();
    assert!(rig.loaded(0, answers.next().unwrap()));
    assert!(matches!(answers.next(), Some(Answer::Miss(Miss::Digest, Some(_)))), "bound to another key");
}

#[tokio::test]
async fn a_bad_object_is_gone_before_its_miss_is_answered() {
    let rig = Rig::new(USUAL);
    rig.store(0..3).await;
    assert!(rig.mock.damage(&rig.key(0), Damage::Flip(77)));
    assert!(rig.mock.damage(&rig.key(1), Damage::Truncate(77)));
    let answers = rig.get((0..3).map(|id| rig.to_load(id)).collect()).await;
    assert!(matches!(&answers[0], Answer::Miss(Miss::Digest, Some(_))));
    assert!(matches!(&answers[1], Answer::Miss(Miss::Truncated, Some(_))), "the adapter's own finding");
    let counts = rig.checked.stats.counts();
    assert_eq!((counts.missed(Miss::Digest), counts.missed(Miss::Truncated)), (1, 1));
    assert_eq!((counts.healed, counts.unhealed, counts.verified), (1, 0, 1));
    let answers = rig.put((0..3).map(|id| rig.to_store(id)).collect()).await;
    let answers: Vec<Stored> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [Stored::Written, Stored::Written, Stored::Present]);
    for (id, answer) in (0..3).zip(rig.get((0..3).map(|id| rig.to_load(id)).collect()).await) {
        assert!(rig.loaded(id, answer));
    }
}

#[tokio::test]
async fn a_bad_object_that_cannot_be_removed_is_still_a_miss_and_counted() {
    let rig = Rig::new(Make { remove: false, ..USUAL });
    assert!(rig.checked.adapter.remove.is_none(), "no ability appears from nowhere");
    rig.store(0..1).await;
    rig.mock.damage(&rig.key(0), Damage::Flip(0));
    for n in 1..3 {
        let answers = rig.get(vec![rig.to_load(0)]).await;
        assert!(matches!(&answers[0], Answer::Miss(Miss::Digest, Some(_))));
        assert_eq!(rig.checked.stats.counts().unhealed, n);
    }
}

#[tokio::test]
async fn a_removal_that_hangs_does_not_hold_the_answer() {
    struct Stuck;
    #[async_trait]
    impl L2Remove for Stuck {
        async fn remove(&self, _: Keys, _: Instant) -> Vec<Result<bool>> {
            std::future::pending().await
        }
    }
    let mut rig = Rig::new(USUAL);
    rig.store(0..1).await;
    rig.mock.damage(&rig.key(0), Damage::Flip(0));
    let inner = Adapter {
        store: Arc::clone(&rig.narrow) as _,
        remove: Some(Arc::new(Stuck)),
        list: None,
        usage: None,
        quotas: None,
    };
    rig.checked = Checked::new(inner, Verify::On, rig.cx.clone());
    tokio::time::pause();
    let answers = rig.get(vec![rig.to_load(0)]).await;
    assert!(matches!(&answers[0], Answer::Miss(Miss::Digest, Some(_))), "{answers:?}");
    assert_eq!(rig.checked.stats.counts().unhealed, 1);
}

#[tokio::test]
async fn loads_without_a_check_say_so() {
    let rig = Rig::new(Make { foreign: true, ..USUAL });
    rig.store(0..1).await;
    let answer = rig.get(vec![rig.to_load(0)]).await.remove(0);
    assert!(!rig.loaded(0, answer));
    assert_eq!(rig.checked.stats.counts().unverified_no_digest, 1);

    let rig = Rig::new(Make { verify: Verify::Off, ..USUAL });
    rig.store(0..1).await;
    assert_eq!(*rig.narrow.digests.lock(), [false], "off means that none is made");
    let answer = rig.get(vec![rig.to_load(0)]).await.remove(0);
    assert!(!rig.loaded(0, answer));
    let counts = rig.checked.stats.counts();
    assert_eq!((counts.unverified_off, counts.unverified(), counts.verified), (1, 1, 0));
}

#[tokio::test]
async fn a_digest_that_is_due_is_made_when_it_is_asked_for_and_then_it_is_there() {
    let rig = Rig::new(USUAL);
    let mut item = PutItem { digest: PutDigest::Due, ..rig.to_store(3) };
    assert_eq!(item.digest.known(), None);
    let made = digest_of(&rig.key(3), rig.layout.id(), &item.buf).unwrap();
    assert_eq!(item.digest().unwrap(), Some(made));
    assert_eq!(item.digest, PutDigest::Is(made));
    let mut none = rig.to_store(4);
    assert_eq!((none.digest().unwrap(), none.digest), (None, PutDigest::None));
}
