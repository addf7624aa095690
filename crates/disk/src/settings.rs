//! How a store is opened, and what it counts.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstrata_core::Namespace;
use kvstrata_evict::EvictionPolicy;

/// How a store's objects lie in files. A store keeps the layout that it was made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreLayout {
    /// A file for each object. Any file system can do that, without a limit on bytes too, and several machines can see what
    /// one of them wrote.
    Files,
    /// Many objects in few files that are set aside in advance: nothing of the file system's own is touched when objects
    /// come and go. Needs a limit on bytes, which then is hard from the beginning.
    Slab,
}

impl StoreLayout {
    /// What the manifest calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "file-per-object",
            Self::Slab => "slab",
        }
    }
}

/// Whether something that not every file system can do is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wanted {
    /// Never.
    Off,
    /// Where it works; said once where it does not.
    #[default]
    Try,
    /// Opening fails where it does not work.
    Require,
}

/// What a store waits for before an object counts as stored.
///
/// By default nothing: after a power failure the newest objects may be gone, or be there with bytes that never reached the
/// device, which their digest tells. A cache may lose; it must not lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Nothing. Objects survive the process, not the machine.
    #[default]
    None,
    /// The object's bytes. Its name may still be lost.
    Data,
    /// The bytes and the directories.
    Full,
}

/// Who writes: unique names and generations are made of this, so that nothing in here draws random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Writer {
    /// The process.
    pub pid: u32,
    /// A number that no other run has, drawn by the caller.
    pub id: u64,
}

/// What tenants (cache salts) are promised, in bytes. They may be changed while the store is open (`L2Quotas`); what is
/// changed then is not kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Quotas {
    /// For tenants without a quota of their own; `None`: they share what is left.
    pub default: Option<u64>,
    /// By salt.
    pub own: Vec<(String, u64)>,
}

/// How a store is opened.
#[derive(Debug)]
pub struct Settings {
    /// The directory. It is made if it is not there.
    pub root: PathBuf,
    /// How objects lie in files. `None`: as in the store that is there; a new one gets what [`crate::choose_layout`] says.
    pub layout: Option<StoreLayout>,
    /// Where files are written before they are published, relative to the root and on the same file system; `tmp` if
    /// `None`. A store of segments writes none.
    pub tmp: Option<PathBuf>,
    /// The hard limit in bytes: files, directories, headers, rounding and what is being written included.
    pub capacity: Option<u64>,
    /// Who goes first when the limit is reached.
    pub policy: Box<dyn EvictionPolicy>,
    /// What tenants are promised; refused unless the policy keeps tenants apart.
    pub quotas: Quotas,
    /// What a store waits for.
    pub durability: Durability,
    /// Bypassing the page cache.
    pub direct: Wanted,
    /// Leaving access times alone.
    pub no_atime: Wanted,
    /// Who writes.
    pub writer: Writer,
    /// What the caller will store. A stored description of the same model must be equal.
    pub namespaces: Vec<Namespace>,
    /// Whether other processes may have the directory open too, all of them with this setting. A file for each object only.
    ///
    /// Each writer keeps its own limit and evicts by what it knows: what was there when it opened, and what it stored.
    /// Together they take no more than the sum of their limits. What others store is found when it is asked for. The index
    /// has no snapshot: every start reads every header. Listings are of what this writer knows. On network file systems the
    /// locks have to reach the other machines (NFS: not with `nolock` or `local_lock`).
    pub shared: bool,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counts { $(pub(crate) $name: AtomicU64,)* }

        /// What a store counted since it was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct StoreStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Direct reads that were refused; they go through the page cache since the first.
            pub direct_read_refused: u64,
            /// Direct writes that were refused; they go through the page cache since the first.
            pub direct_write_refused: u64,
            /// Opens without access time that were refused; access times are updated since the first.
            pub no_atime_refused: u64,
            /// 1 once the eviction policy has panicked: the store is out of service.
            pub policy_panics: u64,
        }

        impl Counts {
            pub(crate) fn snapshot(&self) -> StoreStats {
                StoreStats { $($name: self.$name.load(Ordering::Relaxed),)* ..StoreStats::default() }
            }
        }
    };
}

counters! {
    /// Objects written.
    written,
    /// Stores of objects that were there.
    present,
    /// Stores that failed, those without room aside.
    failed,
    /// Stores declined for want of room.
    declined,
    /// Loads that found their object whole.
    loaded,
    /// Loads of objects that are not there.
    miss_absent,
    /// Loads of objects that are too short.
    miss_truncated,
    /// Loads of objects whose header does not decode.
    miss_header,
    /// Loads that found another key's object.
    miss_foreign,
    /// Loads of objects with another layout.
    miss_layout,
    /// Loads of objects that went or were replaced meanwhile.
    miss_stale,
    /// Loads of objects that another writer of the directory stored; in `loaded` too.
    loaded_elsewhere,
    /// Loads that failed.
    load_failed,
    /// Objects removed on request.
    removed,
    /// Bad objects moved to quarantine, at the start too.
    quarantined,
    /// Bad objects, files of dead writers and quarantined files deleted.
    deleted,
    /// Objects that could not be deleted and still take their bytes.
    stuck,
    /// Snapshots of the index written.
    snapshots,
    /// Snapshots that were not written: no room, or the device said no.
    snapshots_failed,
    /// Objects taken from the snapshot at the start.
    recovered_snapshot,
    /// Records of the index log that were read at the start.
    recovered_log,
    /// Objects of the index that could not be believed at the start.
    forgotten,
    /// Objects whose header was read at the start.
    recovered_scan,
    /// Files at the start that are none of ours; they stay.
    strangers,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
