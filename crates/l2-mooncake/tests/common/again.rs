//! A caller's patience as a decorator: what an injected fault may have been the answer to is asked for again. Over an injector
//! it makes the suite's exact answers possible, although calls below it fail, and miss what is there.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kvstrata_core::{Error, ErrorKind, Instant, Result};
use kvstrata_l2::{
    Adapter, Answer, Checked, Context, Found, Get, GetItem, GetSink, Keys, L2Desc, L2Remove, L2Store, Miss,
    Probe, Put, PutItem, PutSink, Stored, Verify,
};
use kvstrata_l2_fault::{Fault, FaultConfig, Injector, Op, Rule};

/// How often a key is asked for at most. The rules below hit less than half of the keys each time.
const TRIES: usize = 12;

/// Faults that change answers, and somebody who asks again. Not those that change bytes: the checked handle takes the object
/// away then, so that the next load is a miss for good.
pub(crate) fn faults_and_patience(adapter: Adapter, cx: &Context) -> Adapter {
    let each = |op, fault, every| Rule { every: Some(every), ..Rule::new(op, fault) };
    let script = vec![
        each(Op::Put, Fault::Error, 5),
        each(Op::Put, Fault::NoSpace, 7),
        each(Op::Get, Fault::Error, 5),
        each(Op::Get, Fault::Gap, 7),
        each(Op::Probe, Fault::Error, 3),
        each(Op::Remove, Fault::Error, 3),
    ];
    let injector = Injector::new(adapter, &FaultConfig::scripted(script), cx.clone()).expect("an injector");
    let Adapter { store, remove, list, usage, quotas } =
        Checked::new(injector.adapter(), Verify::On, cx.clone()).adapter;
    let remove = remove.map(|inner| Arc::new(AgainRemove(inner)) as Arc<dyn L2Remove>);
    Adapter { store: Arc::new(Again(store)), remove, list, usage, quotas }
}

fn was_injected(e: &Error) -> bool {
    e.operation().ends_with("with faults") && e.kind() != ErrorKind::TimedOut
}

#[derive(Debug)]
struct Again(Arc<dyn L2Store>);

#[async_trait]
impl L2Store for Again {
    fn desc(&self) -> &L2Desc {
        self.0.desc()
    }

    async fn put(&self, request: Put, done: PutSink) {
        let Put { items, deadline, affinity } = request;
        let mut open: Vec<(usize, PutItem)> = items.into_iter().enumerate().collect();
        for round in 1..=TRIES {
            let failed = Arc::<Mutex<Vec<usize>>>::default();
            let copy = |PutItem { key, layout, digest, buf }: &PutItem| PutItem {
                key: key.clone(),
                layout: layout.clone(),
                digest: *digest,
                buf: buf.clone(),
            };
            let (positions, items): (Vec<_>, Vec<_>) =
                open.iter().map(|(at, item)| (*at, copy(item))).unzip();
            let receiver = {
                let (failed, done) = (Arc::clone(&failed), done.clone());
                move |i: usize, answer: Result<Stored>| match answer {
                    Err(e) if was_injected(&e) && round < TRIES => {
                        failed.lock().expect("a list").push(positions[i])
                    }
                    answer => {
                        done.answer(positions[i], answer);
                    }
                }
            };
            let sink = PutSink::new(items.len(), Arc::new(receiver));
            self.0.put(Put { items, deadline, affinity }, sink).await;
            let failed = failed.lock().expect("a list").clone();
            open.retain(|(position, _)| failed.contains(position));
            if open.is_empty() {
                return;
            }
        }
    }

    async fn get(&self, request: Get, done: GetSink) {
        let Get { items, deadline, affinity } = request;
        let keys: Vec<_> = items.iter().map(|i| (i.key.clone(), i.layout.clone())).collect();
        let mut open: Vec<(usize, GetItem)> = items.into_iter().enumerate().collect();
        // What was said first of a key counts: the next load finds it taken away, perhaps.
        let first = Arc::new(Mutex::new(vec![None::<Miss>; keys.len()]));
        for round in 1..=TRIES {
            let again = Arc::<Mutex<Vec<(usize, GetItem)>>>::default();
            let (positions, items): (Vec<_>, Vec<_>) = open.into_iter().unzip();
            let receiver = {
                let (again, first, done) = (Arc::clone(&again), Arc::clone(&first), done.clone());
                let keys = keys.clone();
                move |i: usize, answer: Answer| {
                    let position = positions[i];
                    let mut first = first.lock().expect("a list");
                    let answer = match (answer, &mut first[position]) {
                        (Answer::Failed(e, Some(buf)), Some(said)) if was_injected(&e) => {
                            Answer::Miss(*said, Some(buf))
                        }
                        (Answer::Miss(miss, buf), said) => Answer::Miss(*said.get_or_insert(miss), buf),
                        (answer, _) => answer,
                    };
                    drop(first);
                    let buf = match answer {
                        Answer::Failed(e, Some(buf)) if was_injected(&e) && round < TRIES => buf,
                        Answer::Miss(_, Some(buf)) if round < TRIES => buf,
                        answer => {
                            done.answer(position, answer);
                            return;
                        }
                    };
                    let (key, layout) = keys[position].clone();
                    again.lock().expect("a list").push((position, GetItem { key, layout, buf }));
                }
            };
            let sink = GetSink::new(items.len(), Arc::new(receiver));
            self.0.get(Get { items, deadline, affinity }, sink).await;
            open = std::mem::take(&mut *again.lock().expect("a list"));
            if open.is_empty() {
                return;
            }
        }
    }

    async fn probe(&self, request: Probe) -> Vec<Result<Option<Found>>> {
        let mut all = self.0.probe(request.clone()).await;
        again(&mut all, &request.keys, |keys| self.0.probe(Probe { keys, ..request.clone() })).await;
        all
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.0.shutdown(deadline).await
    }
}

struct AgainRemove(Arc<dyn L2Remove>);

#[async_trait]
impl L2Remove for AgainRemove {
    async fn remove(&self, keys: Keys, deadline: Instant) -> Vec<Result<bool>> {
        let mut all = self.0.remove(Arc::clone(&keys), deadline).await;
        again(&mut all, &keys, |keys| self.0.remove(keys, deadline)).await;
        all
    }
}

/// Asks anew for the keys whose answers are injected errors.
async fn again<'a, T>(
    all: &mut [Result<T>],
    keys: &Keys,
    ask: impl Fn(Keys) -> kvstrata_l2::Call<'a, Vec<Result<T>>>,
) {
    for _ in 1..TRIES {
        let failed: Vec<_> = (0..all.len()).filter(|i| all[*i].as_ref().is_err_and(was_injected)).collect();
        if failed.is_empty() {
            return;
        }
        let answers = ask(failed.iter().map(|i| keys[*i].clone()).collect()).await;
        for (i, answer) in failed.into_iter().zip(answers) {
            all[i] = answer;
        }
    }
}
