//! Each class of faults below the checked handle: never a wrong byte, everything counted, every wait bounded.

use std::sync::Arc;
use std::time::Duration;

use kvstrata_core::{Affinity, ErrorKind, Instant, KeyScope, KvRank, Layout, ObjectKey, Result};
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Get, GetItem, GetSink, Miss, Probe, Put, PutDigest, PutItem, PutSink,
    Stored, Verify,
};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};
use kvstrata_l2_mock::{Mock, MockConfig};
use kvstrata_testkit::arena::{Arena, Memory};
use kvstrata_testkit::rng::Rng;
use kvstrata_testkit::{payload, trace};
use parking_lot::Mutex;

const LEN: usize = 3000;
const MS: Duration = Duration::from_millis(1);

struct Rig {
    injector: Injector,
    checked: Checked,
    arena: Arena,
    cx: Context,
    scope: Arc<KeyScope>,
}

impl Rig {
    fn new(config: &FaultConfig) -> Self {
        let cx = Context::tokio(tokio::runtime::Handle::current());
        let mock = Mock::open(&MockConfig::new(1.0, 100.0), cx.clone()).unwrap();
        let injector = Injector::new(mock.adapter(), config, cx.clone()).unwrap();
        Self {
            checked: Checked::new(injector.adapter(), Verify::On, cx.clone()),
            injector,
            arena: Arena::new(Memory::Private, 4 << 20).unwrap(),
            cx,
            scope: KeyScope::new("m", KvRank::single(), 0, "").unwrap(),
        }
    }

    fn adapter(&self) -> &Adapter {
        &self.checked.adapter
    }

    fn key(&self, id: u64) -> ObjectKey {
        trace::key(&self.scope, id)
    }

    fn by(&self, wait: Duration) -> Instant {
        self.cx.timer.now() + wait
    }

    async fn put(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Result<Stored>> {
        let layout = Layout::opaque(LEN as u64).unwrap();
        let item = |id| {
            let key = self.key(id);
            let buf = self.arena.filled(&key, LEN).unwrap();
            PutItem { key, layout: layout.clone(), digest: PutDigest::None, buf }
        };
        let items: Vec<_> = ids.into_iter().map(item).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = PutSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Put { items, deadline: self.by(50 * MS), affinity: Affinity::default() };
        self.adapter().store.put(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(Option::unwrap).collect()
    }

    async fn get(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Answer> {
        let layout = Layout::opaque(LEN as u64).unwrap();
        let item =
            |id| GetItem { key: self.key(id), layout: layout.clone(), buf: self.arena.empty(LEN).unwrap() };
        let items: Vec<_> = ids.into_iter().map(item).collect();
        let got = Arc::new(Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>()));
        let to = Arc::clone(&got);
        let sink = GetSink::new(items.len(), Arc::new(move |i: usize, a| to.lock()[i] = Some(a)));
        let request = Get { items, deadline: self.by(50 * MS), affinity: Affinity::default() };
        self.adapter().store.get(request, sink).await;
        std::mem::take(&mut *got.lock()).into_iter().map(Option::unwrap).collect()
    }

    async fn found(&self, ids: impl IntoIterator<Item = u64>) -> Vec<Result<bool>> {
        let keys = ids.into_iter().map(|id| self.key(id)).collect();
        let request = Probe { keys, deadline: self.by(50 * MS), affinity: Affinity::default() };
        self.adapter().store.probe(request).await.into_iter().map(|f| f.map(|f| f.is_some())).collect()
    }

    /// Whether the key was loaded; its bytes are right then.
    fn right(&self, id: u64, answer: Answer) -> bool {
        let Answer::Loaded(loaded) = answer else { return false };
        assert!(loaded.verified, "key {id}");
        assert_eq!(payload::verify(&self.key(id), &loaded.buf.seal(LEN)).unwrap(), Ok(()), "key {id}");
        true
    }

    fn effective(&self, fault: Fault) -> u64 {
        self.injector.counts().of(fault).effective
    }

    /// Calls of all kinds, chosen by `seed`; what was answered, in words.
    async fn work(&self, seed: u64, rounds: usize) -> Vec<String> {
        let mut rng = Rng::new(seed);
        let mut said = Vec::new();
        for _ in 0..rounds {
            let first = rng.below(30);
            let ids = first..first + 1 + rng.below(6);
            match rng.below(10) {
                0..4 => {
                    for answer in self.put(ids).await {
                        said.push(answer.map_or_else(|e| e.kind().name().into(), |s| format!("{s:?}")));
                    }
                }
                4..8 => {
                    for (id, answer) in ids.clone().zip(self.get(ids).await) {
                        said.push(match &answer {
                            Answer::Loaded(_) => "loaded".into(),
                            Answer::Miss(miss, _) => format!("{miss:?}"),
                            Answer::Failed(e, _) => e.kind().name().into(),
                        });
                        self.right(id, answer);
                    }
                }
                8 => said.push(format!(
                    "{:?}",
                    self.found(ids).await.into_iter().map(|f| f.ok()).collect::<Vec<_>>()
                )),
                _ => {
                    let keys = ids.map(|id| self.key(id)).collect();
                    let remove = self.adapter().remove.as_ref().unwrap();
                    let gone = remove.remove(keys, self.by(50 * MS)).await;
                    said.push(format!("{:?}", gone.into_iter().map(|g| g.ok()).collect::<Vec<_>>()));
                    let page = self.adapter().list.as_ref().unwrap().list(None, 20).await;
                    said.push(format!("{:?}", page.map(|p| p.entries.len()).ok()));
                }
            }
        }
        // What hangs for ever would keep its buffers for ever.
        self.injector.arm(false);
        self.injector.release();
        self.adapter().store.shutdown(self.by(1000 * MS)).await.unwrap();
        assert_eq!(self.arena.in_use(), 0, "every buffer came back");
        said
    }
}

fn all_but_panics() -> Vec<Fault> {
    Fault::ALL.into_iter().filter(|f| *f != Fault::Panic).collect()
}

#[tokio::test(start_paused = true)]
async fn no_class_yields_a_wrong_byte_and_each_is_counted() {
    for fault in all_but_panics() {
        let rig =
            Rig::new(&FaultConfig { delay_ms: 60, hang_ms: Some(80), ..FaultConfig::new(0.2, 11, &[fault]) });
        rig.work(fault as u64, 200).await;
        let counts = rig.injector.counts();
        let of = counts.of(fault);
        assert!(of.effective >= 5, "{}: {of:?}", fault.name());
        assert!(of.effective <= of.injected, "{}: {of:?}", fault.name());
        assert_eq!(counts.total(), of, "no other class");
        let found = rig.checked.stats.counts();
        let by_digest = found.missed(Miss::Digest);
        match fault {
            Fault::TornWrite => assert_eq!(by_digest, of.effective),
            // What was damaged on the medium may be damaged on the way too: two faults, found at once.
            Fault::BitFlip | Fault::Swap => {
                assert!(
                    (of.effective / 2..=of.effective).contains(&by_digest),
                    "{}: {by_digest}, {of:?}",
                    fault.name()
                );
            }
            _ => assert_eq!(by_digest, 0, "{}", fault.name()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_classes_at_once_and_the_same_again_from_the_same_seed() {
    let config = |seed| {
        let all = FaultConfig::new(0.15, seed, &all_but_panics());
        FaultConfig { delay_ms: 60, hang_ms: Some(80), ..all }
    };
    let run = async |seed| {
        let rig = Rig::new(&config(seed));
        let said = rig.work(99, 400).await;
        (said, rig.injector.counts())
    };
    let (a, b, c) = (run(1).await, run(1).await, run(2).await);
    assert_eq!(a, b);
    assert_ne!(a.0, c.0);
    assert!(a.1.iter().all(|(f, n)| n.effective > 0 || f == Fault::Panic), "{:?}", a.1);
}

#[tokio::test(start_paused = true)]
async fn lmcaches_gaps_are_misses_that_lookups_do_not_show() {
    let config = FaultConfig { gap_indices: vec![1], gap_tail_ratios: vec![0.0], ..FaultConfig::default() };
    let rig = Rig::new(&config);
    assert!(rig.put(0..6).await.iter().all(Result::is_ok));
    assert!(rig.found(0..6).await.into_iter().all(|f| f.unwrap()));
    let answers = rig.get(0..6).await;
    let loaded: Vec<bool> = (0..6).zip(answers).map(|(id, a)| rig.right(id, a)).collect();
    assert_eq!(loaded, [true, false, true, true, true, false]);
    assert_eq!(rig.effective(Fault::Gap), 2);
    assert!(matches!(rig.get([7, 8]).await[1], Answer::Miss(Miss::Absent, Some(_))));
    assert_eq!(rig.effective(Fault::Gap), 2, "what was not there was not lost");
}

#[tokio::test(start_paused = true)]
async fn damage_counts_when_it_is_looked_at_and_once() {
    let script = vec![
        Rule { batch: Some(0), index: Some(0), ..Rule::new(Op::Put, Fault::TornWrite) },
        Rule { batch: Some(0), index: Some(1), ..Rule::new(Op::Put, Fault::LostWrite) },
        Rule { batch: Some(0), index: Some(2), ..Rule::new(Op::Put, Fault::Truncation) },
        Rule { batch: Some(1), ..Rule::new(Op::Put, Fault::BitFlip) },
    ];
    let rig = Rig::new(&FaultConfig::scripted(script));
    assert!(rig.put(0..4).await.iter().all(Result::is_ok), "a liar says that all is well");
    assert_eq!((rig.injector.counts().total().injected, rig.injector.counts().total().effective), (3, 0));
    for _ in 0..2 {
        let answers = rig.get(0..4).await;
        let loaded: Vec<bool> = (0..4).zip(answers).map(|(id, a)| rig.right(id, a)).collect();
        assert_eq!(loaded, [false, false, false, true]);
        for fault in [Fault::TornWrite, Fault::LostWrite, Fault::Truncation] {
            assert_eq!(rig.effective(fault), 1, "{}", fault.name());
        }
    }
    // What was replaced or was there already before anybody looked took no effect.
    assert!(matches!(rig.put([3]).await[0], Ok(Stored::Present)));
    assert!(rig.put(0..3).await.into_iter().all(|a| a.unwrap() == Stored::Written), "healed");
    for (id, answer) in (0..4).zip(rig.get(0..4).await) {
        assert!(rig.right(id, answer), "key {id}");
    }
    assert_eq!(rig.effective(Fault::BitFlip), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hang_is_answered_by_the_deadline_and_keeps_its_buffers_until_it_ends() {
    let hang = |op| Rule { times: Some(1), ..Rule::new(op, Fault::Hang) };
    let rig = Rig::new(&FaultConfig::scripted(vec![
        hang(Op::Put),
        hang(Op::Get),
        hang(Op::Probe),
        hang(Op::Remove),
    ]));
    let start = rig.cx.timer.now();
    let answers = rig.put([0, 1]).await;
    assert_eq!(answers[0].as_ref().unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(answers[1].is_ok(), "one key's hang is no other's");
    let answers = rig.get([1, 0]).await;
    assert!(matches!(&answers[0], Answer::Failed(e, None) if e.kind() == ErrorKind::TimedOut), "{answers:?}");
    drop(answers);
    assert!(rig.found([0]).await[0].as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut));
    let remove = rig.adapter().remove.clone().unwrap();
    let removed = remove.remove([rig.key(0)].into(), rig.by(50 * MS)).await;
    assert!(removed[0].as_ref().is_err_and(|e| e.kind() == ErrorKind::TimedOut));
    assert!(rig.cx.timer.now() - start <= 4 * 52 * MS);
    assert_eq!(rig.arena.in_use(), 2, "the device may still touch them");
    assert_eq!(rig.effective(Fault::Hang), 4);
    let store = &rig.adapter().store;
    assert_eq!(store.shutdown(rig.by(MS)).await.unwrap_err().kind(), ErrorKind::TimedOut);
    rig.injector.release();
    store.shutdown(rig.by(MS)).await.unwrap();
    assert_eq!(rig.arena.in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hang_that_ends_in_time_goes_on() {
    let rig =
        Rig::new(&FaultConfig::scripted(vec![Rule { times: Some(1), ..Rule::new(Op::Put, Fault::Hang) }]));
    let release = async {
        rig.cx.timer.sleep_until(rig.by(20 * MS)).await;
        rig.injector.release();
    };
    let (answers, ()) = tokio::join!(rig.put([0]), release);
    assert_eq!(answers[0].as_ref().unwrap(), &Stored::Written);
    assert!(rig.right(0, rig.get([0]).await.remove(0)));
    assert_eq!((rig.injector.counts().of(Fault::Hang).injected, rig.effective(Fault::Hang)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_may_be_gone_and_what_is_there_may_not_be_listed() {
    let stale = |op| Rule { key: None, ..Rule::new(op, Fault::StaleListing) };
    let rig = Rig::new(&FaultConfig::scripted(vec![stale(Op::Probe), stale(Op::List)]));
    assert!(rig.put(0..3).await.iter().all(Result::is_ok));
    let remove = rig.adapter().remove.clone().unwrap();
    assert!(remove.remove([rig.key(2)].into(), rig.by(50 * MS)).await.remove(0).unwrap());
    let found: Vec<bool> = rig.found(0..4).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [false, false, true, true]);
    let page = rig.adapter().list.as_ref().unwrap().list(None, 10).await.unwrap();
    assert!(page.entries.iter().all(|(key, _)| *key == rig.key(2)) && page.entries.len() == 2);
    assert_eq!(rig.effective(Fault::StaleListing), 6);
    assert!(matches!(rig.get([2]).await[0], Answer::Miss(Miss::Absent, Some(_))));
}

#[tokio::test(start_paused = true)]
async fn a_panic_answers_every_key() {
    let rig =
        Rig::new(&FaultConfig::scripted(vec![Rule { times: Some(1), ..Rule::new(Op::Get, Fault::Panic) }]));
    let rig = Arc::new(rig);
    let call = Arc::clone(&rig);
    let panicked = tokio::spawn(async move { call.get([0, 1]).await.len() }).await;
    assert!(panicked.unwrap_err().is_panic());
    assert_eq!((rig.effective(Fault::Panic), rig.arena.in_use()), (1, 0));
    assert!(matches!(rig.get([0]).await[0], Answer::Miss(Miss::Absent, _)));
}
