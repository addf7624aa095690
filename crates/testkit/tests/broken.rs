//! The suite finds defects: each double here breaks one promise, and the case for that promise fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{
    Adapter, Answer, Context, Found, Get, GetSink, Keys, L2Desc, L2List, L2Remove, L2Store, L2Usage,
    ListPage, Loaded, PartUsage, Probe, Put, PutSink, StoreUsage, Stored, timed_out, until,
};
use kvstrata_l2_mock::{Damage as Rot, Mock, MockConfig};
use kvstrata_testkit::conformance::{Damage, Device, Factory, Subject, Suite};
use parking_lot::Mutex;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    /// Two answers of a load come at each other's position.
    SwapsPositions,
    /// The answers of a store come only while somebody polls the future.
    AnswersWithTheFuture,
    /// The answer comes in time, but the work goes on and publishes.
    PublishesLate,
    /// The deadline is not looked at.
    IgnoresDeadlines,
    /// A byte is wrong.
    LoadsAWrongByte,
    /// Says that it wrote what was there.
    ForgetsPresent,
    /// Says that anything is there, whatever it holds.
    AlwaysPresent,
    /// One miss fails the whole batch.
    FailsTogether,
    /// Leaves a pin behind.
    LeaksPins,
    /// Goes on after its shutdown.
    StaysOpen,
    /// Cannot remove a bad object, and does not replace it either.
    CannotHeal,
    /// Does not count what it uses.
    ReportsNoUsage,
    /// Does not count what it declines.
    ReportsNoDeclines,
    /// Says that it removed what was not there.
    RemovesNothingGladly,
    /// Lists an entry on two pages.
    ListsTwice,
    /// Looks one key too far.
    ProbesShifted,
    /// Loads an object as whatever layout is asked for.
    IgnoresLayouts,
}

/// A defect, the case that finds it, and what the case says.
const TABLE: [(Defect, &str, &str); 20] = [
    (Defect::SwapsPositions, "l2_4_answers_carry_their_positions", "key 0"),
    (Defect::AnswersWithTheFuture, "l2_1_put_dropped_after_k_polls", "failed and is there"),
    (Defect::PublishesLate, "l2_3_timed_out_put_leaves_nothing", "failed and is there"),
    (Defect::IgnoresDeadlines, "l2_5_hung_device_holds_nobody", "get did not end"),
    (Defect::IgnoresDeadlines, "l2_5_past_deadline_is_answered_at_once", "Loaded"),
    (Defect::IgnoresDeadlines, "l2_3_late_put_leaves_nothing", "Ok(Written)"),
    (Defect::LoadsAWrongByte, "l2_2_every_size_comes_back", "1 wrong bytes"),
    (Defect::LoadsAWrongByte, "l2_2_concurrent_tasks_get_right_bytes", "1 wrong bytes"),
    (Defect::ForgetsPresent, "l2_3_put_again_is_present", "[Written, Written, Written]"),
    (Defect::AlwaysPresent, "l2_2_replaced_by_another_digest", "left: Present"),
    (Defect::FailsTogether, "l2_4_bad_keys_fail_alone", "loading key 0"),
    (Defect::LeaksPins, "l2_4_full_batch", "giving the buffers back did not end"),
    (Defect::StaysOpen, "l2_7_closed_after_shutdown", "closed: Present"),
    (Defect::CannotHeal, "l2_2_flipped_bit_is_healed", "a bad object is not said to be there"),
    (Defect::ReportsNoUsage, "l2_6_usage_never_exceeds_the_limit", "takes at least its payload"),
    (Defect::ReportsNoDeclines, "l2_6_too_large_is_declined_alone", "(3, 0, 0)"),
    (Defect::RemovesNothingGladly, "l2_remove_says_what_was_there", "[true, true, true]"),
    (Defect::ListsTwice, "l2_list_pages_have_everything_once", "listed twice"),
    (Defect::ProbesShifted, "l2_3_found_only_after_the_put", "[None, None]"),
    (Defect::IgnoresLayouts, "l2_2_another_layout_is_a_miss", "Loaded"),
];

#[derive(Debug)]
struct Broken {
    defect: Defect,
    inner: Arc<dyn L2Store>,
    cx: Context,
}

#[async_trait]
impl L2Store for Broken {
    fn desc(&self) -> &L2Desc {
        self.inner.desc()
    }

    async fn put(&self, mut request: Put, done: PutSink) {
        let deadline = request.deadline;
        match self.defect {
            Defect::IgnoresDeadlines => request.deadline = Instant::FAR_FUTURE,
            Defect::LeaksPins => std::mem::forget(request.items.first().map(|i| i.buf.clone())),
            Defect::AnswersWithTheFuture => {
                let got = Arc::new(Mutex::new(Vec::new()));
                let to = Arc::clone(&got);
                let keys = request.items.len();
                let sink =
                    PutSink::new(keys, Arc::new(move |i: usize, a: Result<Stored>| to.lock().push((i, a))));
                self.inner.put(request, sink).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                got.lock().drain(..).for_each(|(i, a)| {
                    done.answer(i, a);
                });
                return;
            }
            Defect::PublishesLate => {
                request.deadline = Instant::FAR_FUTURE;
                let (inner, to) = (Arc::clone(&self.inner), done.clone());
                let keys = request.items.len();
                let sink = PutSink::new(
                    keys,
                    Arc::new(move |i: usize, a| {
                        to.answer(i, a);
                    }),
                );
                let work = tokio::spawn(async move { inner.put(request, sink).await });
                if until(&*self.cx.timer, deadline, work).await.is_none() {
                    done.answer_rest(|_| Err(timed_out("put", deadline)));
                }
                return;
            }
            Defect::ForgetsPresent | Defect::AlwaysPresent => {
                let defect = self.defect;
                let held = match defect {
                    Defect::AlwaysPresent => self.held(&request).await,
                    _ => vec![false; request.items.len()],
                };
                let lie = move |i: usize, a: Result<Stored>| {
                    let a = a.map(|_| if held[i] { Stored::Present } else { Stored::Written });
                    done.answer(i, a);
                };
                let sink = PutSink::new(request.items.len(), Arc::new(lie));
                return self.inner.put(request, sink).await;
            }
            _ => {}
        }
        self.inner.put(request, done).await;
    }

    async fn get(&self, mut request: Get, done: GetSink) {
        let defect = self.defect;
        let keys = request.items.len();
        if defect == Defect::IgnoresDeadlines {
            request.deadline = Instant::FAR_FUTURE;
        }
        if defect == Defect::FailsTogether {
            let keys: Keys = request.items.iter().map(|i| i.key.clone()).collect();
            let found =
                self.probe(Probe { keys, deadline: request.deadline, affinity: request.affinity }).await;
            if found.iter().any(|f| matches!(f, Ok(None))) {
                let e = Error::new(ErrorKind::Io, "get", "a key of the batch is missing");
                return done.answer_rest(|_| Answer::Failed(e.clone(), None));
            }
        }
        let to = done;
        let bend = move |i: usize, answer: Answer| {
            let (i, answer) = match (defect, answer) {
                (Defect::SwapsPositions, a) if keys > 1 && i < 2 => (1 - i, a),
                (Defect::LoadsAWrongByte, Answer::Loaded(mut l)) => {
                    let last = l.buf.len() - 1;
                    let mut byte = [0];
                    l.buf.read_at(last, &mut byte).unwrap();
                    l.buf.write_at(last, &[byte[0] ^ 0x80]).unwrap();
                    (i, Answer::Loaded(l))
                }
                (Defect::IgnoresLayouts, Answer::Miss(kvstrata_l2::Miss::Layout, Some(buf))) => {
                    let found = Found { len: buf.len() as u64, layout: None, digest: None };
                    (i, Answer::Loaded(Loaded::new(buf, found)))
                }
                (_, a) => (i, a),
            };
            to.answer(i, answer);
        };
        self.inner.get(request, GetSink::new(keys, Arc::new(bend))).await;
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let mut found = self.inner.probe(request).await;
        if self.defect == Defect::ProbesShifted && !found.is_empty() {
            found.rotate_left(1);
        }
        found
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        if self.defect == Defect::StaysOpen { Ok(()) } else { self.inner.shutdown(deadline).await }
    }
}

impl Broken {
    async fn held(&self, request: &Put) -> Vec<bool> {
        let keys: Keys = request.items.iter().map(|i| i.key.clone()).collect();
        let probe = Probe { keys, deadline: request.deadline, affinity: request.affinity };
        self.inner.probe(probe).await.into_iter().map(|f| f.is_ok_and(|f| f.is_some())).collect()
    }
}

/// The optional abilities, broken or not.
struct Abilities {
    defect: Defect,
    inner: Adapter,
}

#[async_trait]
impl L2Remove for Abilities {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let removed = self.inner.remove.as_ref().unwrap().remove(keys, deadline).await;
        let gladly = self.defect == Defect::RemovesNothingGladly;
        removed.into_iter().map(|r| r.map(|was| was || gladly)).collect()
    }
}

#[async_trait]
impl L2List for Abilities {
    async fn list(&self, cursor: Option<&str>, limit: usize) -> Result<ListPage> {
        let mut page = self.inner.list.as_ref().unwrap().list(cursor, limit).await?;
        if self.defect == Defect::ListsTwice && cursor.is_some() && page.entries.len() < limit {
            let first = self.inner.list.as_ref().unwrap().list(None, 1).await?;
            page.entries.extend(first.entries);
        }
        Ok(page)
    }
}

impl L2Usage for Abilities {
    fn usage(&self) -> StoreUsage {
        let mut usage = self.inner.usage.as_ref().unwrap().usage();
        match self.defect {
            Defect::ReportsNoUsage => usage.used = 0,
            Defect::ReportsNoDeclines => usage.declined = 0,
            _ => {}
        }
        usage
    }

    fn parts(&self) -> Vec<PartUsage> {
        self.inner.usage.as_ref().unwrap().parts()
    }
}

struct Doubles(Defect);

struct Switch(Mock);

impl Device for Switch {
    fn hang(&self) {
        self.0.hang();
    }
    fn resume(&self) {
        self.0.resume();
    }
}

#[async_trait]
impl Factory for Doubles {
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject> {
        let defect = self.0;
        let gb = capacity.unwrap_or(1 << 30) as f64 / (1u64 << 30) as f64;
        let mock = Mock::open(&MockConfig::new(gb, 100.0), cx.clone())?;
        let inner = mock.adapter();
        let abilities = Arc::new(Abilities { defect, inner: inner.clone() });
        let adapter = Adapter {
            store: Arc::new(Broken { defect, inner: inner.store, cx }),
            remove: (defect != Defect::CannotHeal).then(|| Arc::clone(&abilities) as _),
            list: Some(Arc::clone(&abilities) as _),
            usage: Some(abilities),
            quotas: None,
        };
        let rot = mock.clone();
        let damage = move |damage: Damage<'_>| match damage {
            Damage::Flip(key) => rot.damage(key, Rot::Flip(1)),
            Damage::Truncate(key) => rot.damage(key, Rot::Truncate(1)),
            Damage::Swap(a, b) => rot.swap(a, b),
            Damage::Header(_) => false,
        };
        let device: Arc<dyn Device> = Arc::new(Switch(mock));
        Ok(Subject { damage: Some(Box::new(damage)), device: Some(device), ..Subject::new(adapter) })
    }
}

/// Runs a case, which must not be ignored; what it says if it fails.
fn run(defect: Defect, case: &str, patience: Duration) -> Result<(), String> {
    let suite = Suite::new(Doubles(defect)).patience(patience);
    let name = format!("{case}/plain/private");
    let case = suite.cases().into_iter().find(|c| c.name() == name).expect("a case of that name");
    catch_unwind(AssertUnwindSafe(|| case.run().expect("the case runs"))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).expect("a panic with words").to_owned()
    })
}

#[test]
fn each_defect_fails_its_case() {
    for (defect, case, says) in TABLE {
        let said = run(defect, case, Duration::from_millis(200)).expect_err(case);
        assert!(said.contains(says), "{defect:?} fails {case}, but for another reason: {said}");
    }
}

#[test]
fn the_double_without_a_defect_passes_the_same_cases() {
    for (_, case, _) in TABLE {
        run(Defect::None, case, Duration::from_secs(30)).expect(case);
    }
}
