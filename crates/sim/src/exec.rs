//! One thread that runs every task, in an order that a seed decides, under a clock that only moves when nothing else can.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Cx, Poll, Wake, Waker};

use kvstrata_core::{Clock, Instant};
use kvstrata_l2::{Context, Spawn, Task, Timer};
use kvstrata_testkit::rng::{Rng, mix};
use parking_lot::Mutex;

/// Tasks and virtual time. Clones are the same.
#[derive(Clone)]
pub(crate) struct Executor(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

#[derive(Default)]
struct State {
    now: u64,
    next: u64,
    /// `None` while it is being polled.
    tasks: BTreeMap<u64, Option<Task>>,
    /// By time, and then in the order they were asked for.
    timers: BTreeMap<(u64, u64), Waker>,
    panics: Vec<String>,
    /// A digest of every decision so far.
    trace: u64,
}

struct Woken {
    id: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.ready.lock().insert(self.id);
    }
}

impl Executor {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), ready: Arc::default() }))
    }

    pub(crate) fn context(&self) -> Context {
        Context { timer: Arc::new(self.clone()), spawn: Arc::new(self.clone()) }
    }

    /// Tasks that are ready to go on.
    pub(crate) fn ready(&self) -> usize {
        self.0.ready.lock().len()
    }

    /// Lets one ready task go on; whether there was one.
    pub(crate) fn poll_one(&self, rng: &mut Rng) -> bool {
        let id = {
            let mut ready = self.0.ready.lock();
            if ready.is_empty() {
                return false;
            }
            let at = rng.below(ready.len() as u64) as usize;
            let id = *ready.iter().nth(at).expect("as many as were counted");
            ready.remove(&id);
            id
        };
        let task = {
            let mut state = self.0.state.lock();
            state.note(id);
            state.tasks.get_mut(&id).and_then(Option::take)
        };
        // A waker may outlive its task.
        let Some(mut task) = task else { return true };
        let waker = Waker::from(Arc::new(Woken { id, ready: Arc::clone(&self.0.ready) }));
        let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut Cx::from_waker(&waker))));
        match polled {
            Ok(Poll::Pending) => {
                let put_back = match self.0.state.lock().tasks.get_mut(&id) {
                    Some(place) => place.replace(task).is_none(),
                    None => false,
                };
                debug_assert!(put_back, "a task vanished while it was polled");
            }
            Ok(Poll::Ready(())) => {
                self.0.state.lock().tasks.remove(&id);
            }
            Err(panic) => {
                let mut state = self.0.state.lock();
                state.tasks.remove(&id);
                state.panics.push(text_of(&*panic));
                drop(state);
                drop(catch_unwind(AssertUnwindSafe(|| drop(task))));
            }
        }
        true
    }

    /// Moves the clock to the next timer, at most to `limit`; whether anything fell due.
    pub(crate) fn advance(&self, limit: Instant) -> bool {
        let mut due = Vec::new();
        {
            let mut state = self.0.state.lock();
            let Some((&(at, _), _)) = state.timers.first_key_value() else {
                state.now = state.now.max(limit.as_nanos());
                return false;
            };
            if at > limit.as_nanos() {
                state.now = state.now.max(limit.as_nanos());
                return false;
            }
            state.now = state.now.max(at);
            while let Some(entry) = state.timers.first_entry() {
                if entry.key().0 > at {
                    break;
                }
                due.push(entry.remove());
            }
            let now = state.now;
            state.note(now);
        }
        due.into_iter().for_each(Waker::wake);
        true
    }

    /// Panics of tasks since the last call.
    pub(crate) fn panics(&self) -> Vec<String> {
        std::mem::take(&mut self.0.state.lock().panics)
    }

    /// Tasks that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.0.state.lock().tasks.len()
    }

    /// A number that two runs share only if every decision was the same.
    pub(crate) fn trace(&self) -> u64 {
        self.0.state.lock().trace
    }

    /// What happens when the process is killed: every task is gone. The clock goes on.
    pub(crate) fn kill(&self) {
        let tasks = std::mem::take(&mut self.0.state.lock().tasks);
        for task in tasks.into_values() {
            // Guards in there may call what is being taken apart.
            drop(catch_unwind(AssertUnwindSafe(|| drop(task))));
        }
        let mut state = self.0.state.lock();
        state.tasks.clear();
        state.timers.clear();
        drop(state);
        self.0.ready.lock().clear();
    }
}

pub(crate) fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    kvstrata_core::panic_text(panic).unwrap_or("a panic without a text").into()
}

impl State {
    fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ what.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(1);
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}

impl Spawn for Executor {
    fn spawn(&self, task: Task) {
        let mut state = self.0.state.lock();
        let id = state.next;
        state.next += 1;
        state.tasks.insert(id, Some(task));
        drop(state);
        self.0.ready.lock().insert(id);
    }
}

impl Clock for Executor {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.state.lock().now)
    }
}

impl Timer for Executor {
    fn sleep_until(&self, at: Instant) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Sleep { shared: Arc::clone(&self.0), at: at.as_nanos(), key: None })
    }
}

struct Sleep {
    shared: Arc<Shared>,
    at: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Cx<'_>) -> Poll<()> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        if state.now >= self.at {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            state.next += 1;
            (self.at, state.next)
        });
        self.key = Some(key);
        state.timers.insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.shared.state.lock().timers.remove(&key);
            drop(waker);
        }
    }
}
