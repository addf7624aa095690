//! How a simulated disk carries out what is submitted.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

use super::SimFile;
use super::fault::Faults;
use super::rng::Rng;
use crate::pool::ThreadPool;
use crate::queue::{Counts, Queues, Task};
use crate::{CompletionSink, EngineStats, IoEngine, IoOp, Job, Rejected};

/// Who carries out submitted work, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SimMode {
    /// The submitting thread, before `submit` or `spawn` returns. Work submitted from inside a sink or a job follows when
    /// that has ended. A job must therefore not wait for work that it submits.
    #[default]
    Inline,
    /// Whoever calls [`SimEngine::step`], one piece at a time. Among pieces that may go next (obligation 4) the seed
    /// chooses.
    Stepped {
        /// Decides the order.
        seed: u64,
    },
    /// So many threads, as on a real disk. The order is the scheduler's.
    Threads(usize),
}

/// The engine of a simulated disk.
///
/// A transfer that hangs is set aside, unless threads carry it out, so that the caller goes on; a job that hangs holds up
/// whoever carries it out. Dropping the engine ends all hanging and finishes what was submitted.
pub struct SimEngine {
    mode: Mode,
    faults: Arc<Faults>,
}

enum Mode {
    Local(Local),
    Threads(ThreadPool<SimFile>),
}

struct Local {
    stepped: bool,
    state: Mutex<LocalState>,
    counts: Counts,
}

struct LocalState {
    queues: Queues<SimFile>,
    /// Transfers that hang.
    parked: Vec<Task<SimFile>>,
    /// Threads that are carrying work out: what they submit waits for them.
    busy: HashSet<ThreadId>,
    rng: Rng,
}

impl SimEngine {
    /// # Panics
    /// If the system refuses a thread, or none is asked for.
    pub(super) fn new(mode: SimMode, faults: Arc<Faults>) -> Self {
        let local = |stepped, seed| {
            let state = LocalState {
                queues: Queues::new(),
                parked: Vec::new(),
                busy: HashSet::new(),
                rng: Rng::new(seed),
            };
            Mode::Local(Local { stepped, state: Mutex::new(state), counts: Counts::default() })
        };
        let mode = match mode {
            SimMode::Inline => local(false, 0),
            SimMode::Stepped { seed } => local(true, seed),
            SimMode::Threads(n) => {
                let transfer = |op: &mut IoOp<SimFile>| super::transfer(op, false).expect("threads wait");
                Mode::Threads(ThreadPool::new("kvs-sim", n, Box::new(transfer)).expect("threads start"))
            }
        };
        Self { mode, faults }
    }

    /// Carries out one waiting piece of work; whether there was one. Always `false` unless the mode is
    /// [`SimMode::Stepped`].
    pub fn step(&self) -> bool {
        match &self.mode {
            Mode::Local(local) if local.stepped => local.step(),
            _ => false,
        }
    }

    /// Steps until nothing is left to do, the work that this brings along included; how many steps it took.
    pub fn run(&self) -> usize {
        std::iter::from_fn(|| self.step().then_some(())).count()
    }

    /// Transfers that hang and were set aside.
    pub(super) fn parked(&self) -> usize {
        match &self.mode {
            Mode::Local(local) => local.state.lock().parked.len(),
            Mode::Threads(_) => 0,
        }
    }

    /// Queues again what was set aside.
    pub(super) fn unpark(&self) {
        let Mode::Local(local) = &self.mode else { return };
        let mut state = local.state.lock();
        for task in std::mem::take(&mut state.parked) {
            state.queues.ended(task.first());
            state.queues.push(task);
        }
        drop(state);
        local.kick();
    }
}

impl Local {
    fn step(&self) -> bool {
        let mut state = self.state.lock();
        let LocalState { queues, rng, .. } = &mut *state;
        let stepped = self.stepped;
        let Some(task) = queues.pop(true, |n| if stepped { rng.below(n) } else { 0 }) else { return false };
        drop(state);
        let first = task.first();
        let put_off = self.counts.carry_out(task, |op| super::transfer(op, true));
        let mut state = self.state.lock();
        match put_off {
            None => state.queues.ended(first),
            Some(task) => state.parked.push(task),
        }
        true
    }

    /// Carries everything out, unless it is done step by step, or this thread is at it already.
    fn kick(&self) {
        let me = thread::current().id();
        if self.stepped || !self.state.lock().busy.insert(me) {
            return;
        }
        while self.step() {}
        self.state.lock().busy.remove(&me);
    }
}

impl IoEngine for SimEngine {
    type File = SimFile;

    fn submit(
        &self,
        ops: Vec<IoOp<SimFile>>,
        sink: Arc<dyn CompletionSink<SimFile>>,
    ) -> Result<(), Rejected<SimFile>> {
        match &self.mode {
            Mode::Threads(pool) => pool.submit(ops, sink),
            Mode::Local(local) => {
                local.counts.took(&ops);
                let taken = local.state.lock().queues.submit(ops, &sink);
                if let Err(rejected) = taken {
                    local.counts.refused(&rejected.ops);
                    return Err(rejected);
                }
                local.kick();
                Ok(())
            }
        }
    }

    fn spawn(&self, urgent: bool, job: Job) -> Result<(), Job> {
        match &self.mode {
            Mode::Threads(pool) => pool.spawn(urgent, job),
            Mode::Local(local) => {
                local.state.lock().queues.spawn(urgent, job)?;
                local.kick();
                Ok(())
            }
        }
    }

    fn close(&self) {
        match &self.mode {
            Mode::Threads(pool) => pool.close(),
            Mode::Local(local) => local.state.lock().queues.closed = true,
        }
    }

    fn stats(&self) -> EngineStats {
        match &self.mode {
            Mode::Threads(pool) => pool.stats(),
            Mode::Local(local) => local.state.lock().queues.stats(&local.counts),
        }
    }
}

impl Drop for SimEngine {
    fn drop(&mut self) {
        self.close();
        self.faults.retire();
        self.unpark();
        if let Mode::Local(local) = &self.mode {
            while local.step() {}
        }
    }
}

impl fmt::Debug for SimEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match &self.mode {
            Mode::Threads(_) => "threads",
            Mode::Local(local) if local.stepped => "stepped",
            Mode::Local(_) => "inline",
        };
        f.debug_struct("SimEngine").field("mode", &mode).field("stats", &self.stats()).finish()
    }
}

/// What a put-off transfer answers on its way out.
pub(super) fn put_off() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "set aside until the disk is released")
}
