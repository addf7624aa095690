//! The conformance suite: one set of cases per numbered obligation of [`L2Store`](kvstrata_l2::L2Store), run by every
//! adapter and every decorator.
//!
//! An adapter says how to open a fresh store of its own ([`Factory`]), hands the suite what hooks into its medium it can
//! ([`Subject`]), and has a test target without the standard harness:
//!
//! ```no_run
//! use kvstrata_l2::{Adapter, Context};
//! use kvstrata_testkit::conformance::{Factory, Subject, Suite};
//!
//! struct Mine;
//!
//! #[async_trait::async_trait]
//! impl Factory for Mine {
//!     async fn open(&self, cx: Context, capacity: Option<u64>) -> kvstrata_core::Result<Subject> {
//! #       fn open_mine(_: Context, _: Option<u64>) -> kvstrata_core::Result<Adapter> { unimplemented!() }
//!         Ok(Subject::new(open_mine(cx, capacity)?))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     Suite::new(Mine).may_ignore(["l2_6_"]).main()
//! }
//! ```
//!
//! Each case runs plain and below the checked handle, from private and from shared memory. A case whose hook or ability is
//! absent is reported as ignored, with the reason; one that is ignored without [`Suite::may_ignore`] naming it fails.

mod abilities;
mod bounded;
mod capacity;
mod device;
mod ownership;
mod per_key;
mod rig;
mod truth;
mod visibility;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kvstrata_core::{ObjectKey, Result};
use kvstrata_l2::{Adapter, Checked, Context, Verify};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::arena::Memory;
pub use device::BusyThreads;
use rig::Setup;

/// Opens stores to be tested.
#[async_trait]
pub trait Factory: Send + Sync + 'static {
    /// A fresh, empty store on a medium of its own, limited to `capacity` bytes if that is given and the adapter has
    /// such a limit.
    ///
    /// # Errors
    /// Any; the case fails.
    async fn open(&self, cx: Context, capacity: Option<u64>) -> Result<Subject>;
}

/// Opens the same store again, after a shutdown.
pub type Reopen = Box<dyn Fn(Context) -> Pin<Box<dyn Future<Output = Result<Adapter>> + Send>> + Send + Sync>;

/// Damages the medium under a store, behind its back; false if this medium cannot be damaged so.
pub type DamageMedium = Box<dyn Fn(Damage<'_>) -> bool + Send + Sync>;

/// Damage to the medium.
#[derive(Clone, Copy, Debug)]
pub enum Damage<'a> {
    /// One bit of the payload is flipped.
    Flip(&'a ObjectKey),
    /// The last bytes of the object are gone.
    Truncate(&'a ObjectKey),
    /// Two objects lie in each other's place.
    Swap(&'a ObjectKey, &'a ObjectKey),
    /// What describes the object no longer decodes.
    Header(&'a ObjectKey),
}

/// A switch on the device under a store.
pub trait Device: Send + Sync + 'static {
    /// From now on the device touches no buffer and finishes nothing. Returns when that is so.
    fn hang(&self);
    /// It goes on, with what was asked of it before and meanwhile.
    fn resume(&self);
}

/// An opened store, and hooks into what is below it. A hook that is absent leaves out the cases that need it.
pub struct Subject {
    /// The adapter.
    pub adapter: Adapter,
    /// Opens it again after its shutdown. Every durable store has this.
    pub reopen: Option<Reopen>,
    /// Damages the medium.
    pub damage: Option<DamageMedium>,
    /// Hangs the device.
    pub device: Option<Arc<dyn Device>>,
    /// What must live as long as the store does, such as a temporary directory.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl Subject {
    /// A subject without hooks.
    pub fn new(adapter: Adapter) -> Self {
        Self { adapter, reopen: None, damage: None, device: None, keep: Box::new(()) }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("adapter", &self.adapter)
            .field("reopen", &self.reopen.is_some())
            .field("damage", &self.damage.is_some())
            .field("device", &self.device.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a case did not run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored(pub String);

/// What a case ends with; it fails by a panic.
type Outcome = Result<(), Ignored>;

type Layer = Arc<dyn Fn(Adapter, &Context) -> Adapter + Send + Sync>;
type Run = fn(Setup) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The names and bodies of all cases.
fn all() -> Vec<(&'static str, Run)> {
    macro_rules! cases {
        ($($module:ident: $($name:ident)*;)*) => {
            vec![$($((stringify!($name), (|setup| Box::pin($module::$name(setup))) as Run)),*),*]
        };
    }
    cases! {
        ownership: l2_1_put_dropped_after_k_polls l2_1_get_dropped_after_k_polls l2_1_timed_out_put_keeps_its_buffers
            l2_1_timed_out_get_keeps_its_buffers l2_1_sink_is_kept_with_the_buffers;
        truth: l2_2_every_size_comes_back l2_2_absent_is_a_miss l2_2_another_layout_is_a_miss
            l2_2_replaced_by_another_digest l2_2_flipped_bit_is_healed l2_2_truncated_is_healed
            l2_2_swapped_is_healed l2_2_broken_header_is_healed l2_2_everything_survives_reopening
            l2_2_concurrent_tasks_get_right_bytes;
        visibility: l2_3_found_only_after_the_put l2_3_put_again_is_present l2_3_timed_out_put_leaves_nothing
            l2_3_late_put_leaves_nothing;
        per_key: l2_4_answers_carry_their_positions l2_4_bad_keys_fail_alone l2_4_zero_keys
            l2_4_full_batch;
        bounded: l2_5_past_deadline_is_answered_at_once l2_5_hung_device_holds_nobody l2_7_closed_after_shutdown
            l2_7_shutdown_answers_what_is_in_flight;
        capacity: l2_6_usage_never_exceeds_the_limit l2_6_too_large_is_declined_alone l2_6_room_of_failed_puts_comes_back
            l2_6_removed_bytes_come_back;
        abilities: l2_remove_says_what_was_there l2_list_pages_have_everything_once;
    }
}

/// The suite for one adapter.
pub struct Suite {
    factory: Arc<dyn Factory>,
    layers: Vec<(String, Layer)>,
    may_ignore: Vec<String>,
    patience: Duration,
}

impl Suite {
    /// The suite for the stores that `factory` opens: plain, and below the checked handle.
    pub fn new(factory: impl Factory) -> Self {
        let suite = Self {
            factory: Arc::new(factory),
            layers: Vec::new(),
            may_ignore: Vec::new(),
            patience: Duration::from_secs(30),
        };
        suite
            .layer("plain", |adapter, _| adapter)
            .layer("checked", |adapter, cx| Checked::new(adapter, Verify::On, cx.clone()).adapter)
    }

    /// Runs every case once more with this put around the adapter. For decorators.
    #[must_use]
    pub fn layer(
        mut self,
        name: &str,
        wrap: impl Fn(Adapter, &Context) -> Adapter + Send + Sync + 'static,
    ) -> Self {
        self.layers.push((name.to_owned(), Arc::new(wrap)));
        self
    }

    /// Names beginnings of cases that may be ignored because a hook, an ability or a kind of memory is absent.
    #[must_use]
    pub fn may_ignore<'a>(mut self, beginnings: impl IntoIterator<Item = &'a str>) -> Self {
        self.may_ignore.extend(beginnings.into_iter().map(str::to_owned));
        self
    }

    /// How long a call may take that is to end at once, before the case fails; 30 seconds unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The cases, named `obligation_case/layer/memory`.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for (name, run) in all() {
            for (layer_name, layer) in &self.layers {
                for memory in [Memory::Private, Memory::Shared] {
                    let memory_name = format!("{memory:?}").to_lowercase();
                    cases.push(Case {
                        name: format!("{name}/{layer_name}/{memory_name}"),
                        may_ignore: self.may_ignore.iter().any(|b| name.starts_with(b.as_str())),
                        run,
                        setup: Setup {
                            factory: Arc::clone(&self.factory),
                            layer: Arc::clone(layer),
                            memory,
                            patience: self.patience,
                        },
                    });
                }
            }
        }
        cases
    }

    /// Runs the cases as a test program with the usual arguments.
    pub fn main(&self) -> ExitCode {
        let trials = self.cases().into_iter().map(|case| {
            Trial::ignorable_test(case.name.clone(), move || match case.run() {
                Ok(()) => Ok(Completion::Completed),
                Err(Ignored(reason)) if case.may_ignore => Ok(Completion::ignored_with(reason)),
                Err(Ignored(reason)) => Err(Failed::from(format!("did not run, and has to: {reason}"))),
            })
        });
        libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers: Vec<&str> = self.layers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Suite")
            .field("layers", &layers)
            .field("may_ignore", &self.may_ignore)
            .finish_non_exhaustive()
    }
}

/// One case of a [`Suite`].
pub struct Case {
    name: String,
    may_ignore: bool,
    run: Run,
    setup: Setup,
}

impl Case {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it on a tokio runtime of its own.
    ///
    /// # Errors
    /// The reason, if it could not run.
    ///
    /// # Panics
    /// If the adapter does not hold to its obligation.
    pub fn run(&self) -> Result<(), Ignored> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime for the case");
        let outcome = runtime.block_on((self.run)(self.setup.clone()));
        // A case that failed may have left tasks that hang.
        runtime.shutdown_background();
        outcome
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}
