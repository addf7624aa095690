//! What goes wrong on a simulated disk, and when.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::{Condvar, Mutex};

use super::rng::Rng;

/// The operations of a [`Disk`](crate::Disk), as far as faults tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "each is named after the method it stands for")]
pub enum OpKind {
    Open,
    CreateDir,
    Rename,
    RenameNew,
    Unlink,
    RemoveDir,
    List,
    Metadata,
    Space,
    SyncDir,
    Read,
    Write,
    SetLen,
    Allocate,
    SyncFile,
    FileMetadata,
    Lock,
}

impl OpKind {
    /// The operations that change something, opening and syncing not included.
    pub const CHANGES: [Self; 7] = [
        Self::CreateDir,
        Self::Rename,
        Self::RenameNew,
        Self::Unlink,
        Self::RemoveDir,
        Self::Write,
        Self::SetLen,
    ];
}

/// An operation that is about to be carried out. A transfer is asked about again for each piece of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OpInfo<'a> {
    /// Which one.
    pub kind: OpKind,
    /// What it is done to; of a rename, the old name; of an open file, the path it was opened by.
    pub path: &'a Path,
    /// The new name of a rename.
    pub to: Option<&'a Path>,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing happens, and this errno is the answer.
    Errno(i32),
    /// A read or write moves at most so many bytes at a time. The caller goes on with the rest.
    Short(usize),
    /// A read brings its bytes with this bit flipped (counted around its length).
    FlipBit(u64),
    /// Nothing happens, and the answer is success: a lost write, a sync that did not sync. Means nothing for operations
    /// that answer with more than success.
    Skip,
    /// Nothing happens until [`SimDisk::release`](super::SimDisk::release).
    Hang,
}

/// A fault, and the operations it befalls: all of them unless narrowed.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    kinds: Option<Vec<OpKind>>,
    part: Option<PathBuf>,
    skip: u64,
    times: u64,
    rate: Option<(f64, Rng)>,
    fired: Arc<AtomicU64>,
}

impl Rule {
    /// A rule for every operation.
    pub fn new(fault: Fault) -> Self {
        Self { fault, kinds: None, part: None, skip: 0, times: u64::MAX, rate: None, fired: Arc::default() }
    }

    /// Only these operations.
    #[must_use]
    pub fn on(mut self, kinds: &[OpKind]) -> Self {
        self.kinds = Some(kinds.to_vec());
        self
    }

    /// Only what has this text somewhere in its path (or in the new name, of a rename).
    #[must_use]
    pub fn at(mut self, part: impl Into<PathBuf>) -> Self {
        self.part = Some(part.into());
        self
    }

    /// Not the first `n` of them.
    #[must_use]
    pub fn after(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// At most `n` of them.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }

    /// Each of them with this probability, by this seed.
    #[must_use]
    pub fn rate(mut self, rate: f64, seed: u64) -> Self {
        self.rate = Some((rate, Rng::new(seed)));
        self
    }

    fn matches(&self, op: &OpInfo<'_>) -> bool {
        let part = |path: &Path| {
            self.part.as_ref().is_none_or(|part| {
                let (part, path) = (part.as_os_str().as_encoded_bytes(), path.as_os_str().as_encoded_bytes());
                part.is_empty() || path.windows(part.len()).any(|w| w == part)
            })
        };
        self.kinds.as_ref().is_none_or(|k| k.contains(&op.kind)) && (part(op.path) || op.to.is_some_and(part))
    }

    fn decide(&mut self, op: &OpInfo<'_>) -> Option<Fault> {
        if self.times == 0 || !self.matches(op) {
            return None;
        }
        if let Some(left) = self.skip.checked_sub(1) {
            self.skip = left;
            return None;
        }
        if let Some((rate, rng)) = &mut self.rate
            && (rng.next() >> 11) as f64 / (1u64 << 53) as f64 >= *rate
        {
            return None;
        }
        self.times -= 1;
        self.fired.fetch_add(1, Relaxed);
        Some(self.fault)
    }
}

/// How often a rule has struck.
#[derive(Clone, Debug)]
pub struct Fired(Arc<AtomicU64>);

impl Fired {
    /// So often until now.
    pub fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Looks at every operation before it is carried out, on the thread that carries it out and outside every lock: it may
/// let time pass (a slow device, a limit of bytes per second), and may make it go wrong.
pub type Hook = dyn Fn(&OpInfo<'_>) -> Option<Fault> + Send + Sync;

/// The faults of a simulated disk. The hook is asked first, then the rules in their order; the first answer counts.
#[derive(Default)]
pub struct Faults {
    plan: Mutex<Plan>,
    /// Whether there is a hook or a rule: without, an operation takes no lock here.
    armed: AtomicBool,
    hung: Mutex<Hung>,
    released: Condvar,
}

#[derive(Default)]
struct Plan {
    hook: Option<Arc<Hook>>,
    rules: Vec<Rule>,
}

#[derive(Default)]
struct Hung {
    waiting: usize,
    releases: u64,
    never: bool,
}

impl Faults {
    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) -> Fired {
        let fired = Fired(Arc::clone(&rule.fired));
        self.plan.lock().rules.push(rule);
        self.armed.store(true, Relaxed);
        fired
    }

    /// Sets the hook.
    pub fn hook(&self, hook: impl Fn(&OpInfo<'_>) -> Option<Fault> + Send + Sync + 'static) {
        self.plan.lock().hook = Some(Arc::new(hook));
        self.armed.store(true, Relaxed);
    }

    /// Removes the rules and the hook. What hangs goes on hanging.
    pub fn clear(&self) {
        *self.plan.lock() = Plan::default();
        self.armed.store(false, Relaxed);
    }

    /// Ends the rules that hang, and lets go on the threads that do.
    pub(super) fn release(&self) {
        self.plan.lock().rules.retain(|r| r.fault != Fault::Hang);
        self.hung.lock().releases += 1;
        self.released.notify_all();
    }

    /// Nothing hangs any more, ever.
    pub(super) fn retire(&self) {
        self.hung.lock().never = true;
        self.release();
    }

    /// Threads that hang now.
    pub(super) fn hanging(&self) -> usize {
        self.hung.lock().waiting
    }

    /// What happens to this operation, and how many releases there were before that was decided.
    pub(super) fn decide(&self, op: &OpInfo<'_>) -> Option<(Fault, u64)> {
        if !self.armed.load(Relaxed) {
            return None;
        }
        // Read first: a release after it, rule or not, ends the hanging that may be decided below.
        let releases = self.hung.lock().releases;
        let hook = self.plan.lock().hook.clone();
        let fault = hook.and_then(|hook| hook(op));
        let fault = fault.or_else(|| self.plan.lock().rules.iter_mut().find_map(|rule| rule.decide(op)))?;
        Some((fault, releases))
    }

    /// Waits for a release after the first `releases`.
    pub(super) fn hang(&self, releases: u64) {
        let mut hung = self.hung.lock();
        hung.waiting += 1;
        while hung.releases == releases && !hung.never {
            self.released.wait(&mut hung);
        }
        hung.waiting -= 1;
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("rules", &self.plan.lock().rules).finish_non_exhaustive()
    }
}
